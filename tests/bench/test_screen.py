"""What a command shows while it works: on a terminal, without one, and in a process that is to be silent."""

import functools
import io
import os
import sys

import pytest
import rich.console

from bench import screen
from bench.screen import Screen
from results.record import Metric, Value


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def taken(self) -> str:
        """What was written since the last time."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: between a fixture and its test pytest puts its own stderr back."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((60, 24)))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(sys.stderr, Terminal)
    return sys.stderr


def test_a_line_moves_on_a_terminal_and_gives_way_to_one_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, shown = on_terminal(monkeypatch), Screen()
    shown.progress("x" * 100)
    assert terminal.taken() == "\r\x1b[K" + f"[   0 s] {'x' * 50}", "no wider than the terminal"
    shown.say("done")
    assert terminal.taken() == "\r\x1b[Kdone\n"


def test_nothing_moves_on_a_dumb_terminal_or_in_a_silent_process(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, silent = on_terminal(monkeypatch), Screen(silent=True)
    silent.say("nobody reads this")
    monkeypatch.setenv("TERM", "dumb")
    dumb = Screen()
    for quiet in (dumb, silent):
        quiet.progress("half")
        quiet.steps("epoch 1/2", 1, 2)
        quiet.clear()
    dumb.say("done")
    assert terminal.taken() == "done\n"


def test_steps_leave_a_line_every_tenth_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    shown = Screen()
    for done in range(1, 31):
        now += 2
        shown.steps("range test", done, 30, tenths=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "range test: step 3 of 30, about 54.0 s left"
    assert len(lines) == 9


def test_steps_are_drawn_no_more_often_than_a_terminal_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    terminal, shown = on_terminal(monkeypatch), Screen()
    for done in range(1, 101):
        shown.steps("epoch 1/2", done, 100)
        now += 0.01
    drawn = terminal.taken().split("\r\x1b[K")[1:]
    assert 9 <= len(drawn) <= 11
    assert drawn[0].endswith("epoch 1/2: step 1 of 100")
    assert "left" in drawn[1]
    shown.steps("epoch 2/2", 1, 100)
    assert terminal.taken().endswith("epoch 2/2: step 1 of 100"), "each count begins anew"


def test_a_table_narrows_in_place_and_gives_way_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    drawn = io.StringIO()
    console = functools.partial(rich.console.Console, file=drawn, force_terminal=True, width=100)
    monkeypatch.setattr(rich.console, "Console", console)
    stored: list[Metric] = []
    shown = Screen()

    class Log:
        def add(self, metric: Metric) -> None:
            stored.append(metric)

    emit = shown.row(Log())
    first = Metric.named(
        "inference_throughput", {"a": Value(90.0, None, None, 3), "b": Value(45.0, None, None, 3)}, batch=8
    )
    shown.estimate(first)
    assert "~90" in drawn.getvalue()
    assert "~ first estimate" in drawn.getvalue()
    drawn.truncate(0)
    emit(
        Metric.named(
            "inference_throughput", {"a": Value(100.0, 99.0, 101.0, 9), "b": Value(50.0, 49.0, 51.0, 9)}, batch=8
        )
    )
    text = drawn.getvalue()
    assert "100.0" in text
    assert "~" not in text
    shown.progress("compiling b")
    assert "compiling b" in drawn.getvalue()
    drawn.truncate(0)
    shown.say("a warning")
    assert "a warning" in drawn.getvalue()
    shown.clear()
    assert len(stored) == 1
    shown.say("the end")
    assert isinstance(sys.stderr, Terminal)
    assert sys.stderr.taken().endswith("the end\n")
