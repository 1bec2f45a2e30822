"""What a command shows on stderr while it works: lines that stay, and one that moves on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from results.record import Metric

Say = Callable[[str], None]
"""Takes one message for the user: `Screen.say` or `Screen.progress`, in tests often a list's `append`."""

REDRAW_SECONDS = 0.1
"""Least time between two drawings of counted progress: a terminal may take longer to draw than a step to run."""


class MetricLog(Protocol):
    """What stores metrics as they are measured."""

    def add(self, metric: Metric) -> None: ...


class Screen:
    """Progress and messages of one command. Without a terminal, or with TERM=dumb, only the lines that stay.

    Args:
        silent: show nothing, as all but the first of several training processes do.

    Attributes:
        moving: whether there is a line that moves.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.moving = not silent and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._begin = time.monotonic()
        self._shown: set[str] = set()
        self._counting = ""
        self._first, self._since, self._drawn = 0, 0.0, 0.0

    def progress(self, text: str) -> None:
        """Put `text` on the moving line, after the seconds since the command began."""
        if self.moving:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write("\r\x1b[K" + f"[{time.monotonic() - self._begin:4.0f} s] {text}"[:width])
            sys.stderr.flush()

    def steps(self, what: str, done: int, total: int, tenths: bool = False) -> None:
        """Show how many steps of `what` are done and about how long the rest takes; call it after every step.

        Args:
            tenths: without a terminal, a line that stays after every tenth of the steps.
        """
        now = time.monotonic()
        if what != self._counting:
            self._counting, self._first, self._since, self._drawn = what, done, now, 0.0
        if self.moving and now - self._drawn < REDRAW_SECONDS:
            return
        if not self.moving and not (tenths and done < total and 10 * done // total > 10 * (done - 1) // total):
            return
        self._drawn = now
        text = f"{what}: step {done} of {total}"
        if done > self._first:
            from results.tables import duration

            text += f", about {duration((now - self._since) / (done - self._first) * (total - done))} left"
        if self.moving:
            self.progress(text)
        else:
            self.say(text)

    def clear(self) -> None:
        """Empty the moving line."""
        if self.moving:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        if not self.silent:
            click.echo(text, err=True)

    def row(self, log: MetricLog) -> Callable[[Metric], None]:
        """A function that adds a metric to the log, and prints its line when its name comes for the first time."""
        from results.comparison import metric_line

        def emit(metric: Metric) -> None:
            log.add(metric)
            if metric.name not in self._shown:
                self._shown.add(metric.name)
                self.say(metric_line(metric))

        return emit
