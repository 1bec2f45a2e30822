"""What processes and others do with the CPU, on a fabricated /proc."""

import os
from pathlib import Path

import pytest

from bench.machine.cpu import Busy, CpuTimes, Load, Roots, children, cpu_seconds

TICKS = os.sysconf("SC_CLK_TCK")


def process(proc: Path, number: str, ticks: tuple[int, int, int, int] = (0, 0, 0, 0), started: str = "") -> None:
    """A process with its user and system time, those of children that have ended, and its living children."""
    task = proc / number / "task" / "1"
    task.mkdir(parents=True, exist_ok=True)
    (task / "children").write_text(started)
    fields = ["S", *["0"] * 10, *map(str, ticks), *["0"] * 10]
    # The name of a program may hold spaces and brackets.
    (proc / number / "stat").write_text(f"{number} (a (b) c) {' '.join(fields)}")


def machine(proc: Path, user: int, idle: int, stolen: int) -> None:
    (proc / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {stolen} 0 0\ncpu0 1 1 1 1\n")


def test_cpu_time_is_that_of_a_process_and_of_all_that_it_started(tmp_path: Path) -> None:
    process(tmp_path, "self", started="77 ")
    process(tmp_path, "77", (300, 200, 50, 0), started="78 79")
    process(tmp_path, "78", (10, 0, 0, 0))
    assert children(proc=tmp_path / "nothing") == []
    assert children(proc=tmp_path) == ["77"]
    assert children(77, tmp_path) == ["78", "79"]
    # The last of them is gone already.
    assert cpu_seconds(77, tmp_path) == pytest.approx(560 / TICKS)
    assert cpu_seconds(80, tmp_path) == 0.0


def test_other_work_is_what_is_neither_idle_nor_ours(tmp_path: Path) -> None:
    roots = Roots(tmp_path, tmp_path)
    machine(tmp_path, 1000, 5000, 0)
    process(tmp_path, "77", (100, 0, 0, 0), "78")
    process(tmp_path, "78", (100, 0, 0, 0))
    before = Busy.now([77], roots)
    machine(tmp_path, 1000 + 600 * TICKS, 5000 + 300 * TICKS, 100 * TICKS)
    process(tmp_path, "77", (100 + 250 * TICKS, 0, 0, 0), "78")
    process(tmp_path, "78", (100, 250 * TICKS, 0, 0))
    load = Busy.now([77], roots).since(before)
    assert load is not None
    # Of 1000 s of CPU 700 s were busy, 500 s of them ours, and 100 s the host's other guests'.
    assert load.foreign == pytest.approx(0.2, abs=0.001)
    assert load.stolen == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("own", "idle", "stolen", "expected"),
    [
        (4.0, 4, 1, Load(0.2, 0.1)),
        # What was stolen is foreign, also where our seconds were counted a tick too many.
        (5.5, 4, 1, Load(0.1, 0.1)),
        (9.0, 4, 0, Load(0.0, 0.0)),
        (0.0, 10, 0, Load(0.0, 0.0)),
        (0.0, 0, 0, Load(1.0, 0.0)),
    ],
)
def test_shares_are_of_the_whole_machine(own: float, idle: int, stolen: int, expected: Load) -> None:
    before = Busy(CpuTimes(7, 7, 7), 3.0)
    after = Busy(CpuTimes(7 + 10 * TICKS, 7 + idle * TICKS, 7 + stolen * TICKS), 3.0 + own)
    found = after.since(before)
    assert found is not None
    assert (found.foreign, found.stolen) == pytest.approx((expected.foreign, expected.stolen))


def test_without_a_reading_nothing_is_said(tmp_path: Path) -> None:
    some = Busy(CpuTimes(10, 5, 0), 0.0)
    assert some.since(some) is None, "no tick has passed"
    assert some.since(Busy(None, 0.0)) is None
    assert Busy(None, 1.0).since(some) is None
    assert Busy.now([], Roots(tmp_path, tmp_path)).ticks is None
