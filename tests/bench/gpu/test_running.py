"""Jobs run one by one; each ends in a line, however it ends."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.parts import FILE, ROWS, Job
from bench.gpu.running import OUTCOMES, outcomes, run
from results.errors import RecordError


def job(name: str, code: str, seconds: float = 60, part: str = "kernels") -> Job:
    return Job(part, name, (sys.executable, "-S", "-c", code, FILE), seconds)


def within(seconds: float) -> dict[str, float]:
    """Limits of the parts of these jobs."""
    return {"kernels": seconds, "tests": 0.0, "training": 0.0}


WRITES = "import sys; open(sys.argv[1], 'w').write('{}')"


def test_each_job_leaves_its_file_and_its_end(tmp_path: Path) -> None:
    said: list[str] = []
    wanted = [job("good", WRITES), job("bad", "print('why'); raise SystemExit(2)"), job("after", WRITES)]
    done = run(wanted, tmp_path, within(60), said.append)
    assert [(one.name, one.file, one.exit_code, one.reason) for one in done] == [
        ("good", "good.json", 0, ""),
        ("bad", "", 2, "exit code 2: why"),
        ("after", "after.json", 0, ""),
    ]
    assert outcomes(tmp_path) == done
    assert "bad: exit code 2: why" in said
    assert done[0].command[-1] == str(tmp_path / "good.json")


def test_a_job_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); "
        "open(sys.argv[1], 'w').write(str(p.pid)); time.sleep(60)"
    )
    from bench.gpu import running

    patience = running.PATIENCE
    running.PATIENCE = 0.3
    try:
        [hung] = run([job("hung", code, seconds=1.5)], tmp_path, within(60), lambda text: None)
    finally:
        running.PATIENCE = patience
    assert (hung.exit_code, hung.reason) == (None, "ended after 2 s")
    assert hung.file == "hung.json"
    child = Path("/proc") / (tmp_path / "hung.json").read_text()
    for _ in range(50):
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is left")


def test_what_measures_nothing_runs_beside_its_neighbours(tmp_path: Path) -> None:
    """Each waits for a file of the other's; what measures has the machine alone."""
    code = (
        "import pathlib, sys, time; own, other = map(pathlib.Path, sys.argv[2:4]); own.touch(); "
        "begin = time.monotonic()\n"
        "while not other.exists():\n"
        "    assert time.monotonic() - begin < 30\n"
        "    time.sleep(0.01)\n"
        "pathlib.Path(sys.argv[1]).write_text('{}')"
    )
    files = [str(tmp_path / name) for name in ("a", "b")]
    both = [
        Job("tests", f"tests-{n}", (sys.executable, "-S", "-c", code, FILE, files[n], files[1 - n]), 60, timed=False)
        for n in range(2)
    ]
    done = run([*both, job("alone", WRITES)], tmp_path, within(60), lambda text: None)
    assert {one.name for one in done[:2]} == {"tests-0", "tests-1"}
    assert [one.exit_code for one in done] == [0, 0, 0]
    assert done[2].name == "alone"


@pytest.mark.parametrize("late", [False, True], ids=["all run", "one is about to start"])
def test_an_interruption_ends_all_that_run(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = threading.Event()
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(command: tuple[str, ...], **how: Any) -> "subprocess.Popen[bytes]":
        if late and command[-1] == "1":
            assert interrupted.wait(60)
        started.append(popen(command, **how))
        return started[-1]

    # Hangs, except for the last, at whose end the others are interrupted.
    code = "import sys, time; time.sleep(600 if sys.argv[1] < '2' else 0)"
    jobs = [Job("tests", f"tests-{n}", (sys.executable, "-S", "-c", code, str(n)), 600, timed=False) for n in range(3)]

    def interrupt(text: str) -> None:
        if text.startswith("tests-2: "):
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        run(jobs, tmp_path, within(600), interrupt)
    assert sorted(process.returncode != 0 for process in started) == [False, True, True]


def test_jobs_that_would_begin_too_late_are_named(tmp_path: Path) -> None:
    wanted = [job("first", "import time; time.sleep(0.3)"), job("second", WRITES)]
    done = run(wanted, tmp_path, within(0.2), lambda text: None)
    assert done[0].reason == "ended after 0 s"
    assert done[1].reason == "not run: the 0 s of kernels were over"
    assert not (tmp_path / "second.json").exists()


def test_of_a_job_that_was_run_again_the_latest_counts(tmp_path: Path) -> None:
    run([job("one", "raise SystemExit(2)")], tmp_path, within(60), lambda text: None)
    run([job("one", WRITES)], tmp_path, within(60), lambda text: None)
    [one] = outcomes(tmp_path)
    assert one.exit_code == 0


def test_a_run_that_gives_nothing_leaves_what_an_earlier_one_measured(tmp_path: Path) -> None:
    run([job("one", WRITES)], tmp_path, within(60), lambda text: None)
    [failed] = run([job("one", "raise SystemExit(2)")], tmp_path, within(60), lambda text: None)
    assert (failed.file, failed.exit_code) == ("", 2)
    assert (tmp_path / "one.json").read_text() == "{}"
    [one] = outcomes(tmp_path)
    assert (one.file, one.exit_code) == ("one.json", 0)


def test_of_a_comparison_that_is_ended_the_rows_that_it_has_are_kept(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; os.makedirs(sys.argv[2]); "
        "open(os.path.join(sys.argv[2], '1.json'), 'w').write('[3]'); time.sleep(60)"
    )
    hanging = Job("training", "half", (sys.executable, "-S", "-c", code, FILE, ROWS), 1.0)
    [half] = run([hanging], tmp_path, within(60), lambda text: None)
    assert (half.file, half.exit_code, half.reason) == ("half.json", None, "ended after 1 s")
    assert json.loads((tmp_path / "half.json").read_text()) == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.json", "half.log", OUTCOMES]


def test_a_job_stops_cleanly_also_where_ctrl_c_is_ignored(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_): open(sys.argv[1], 'w').write('[1]'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN: signal.signal(signal.SIGINT, stop)\n"
        "time.sleep(60)"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        [stopped] = run([job("stopped", code, seconds=1.0)], tmp_path, within(60), lambda text: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stopped.file, stopped.reason) == ("stopped.json", "ended after 1 s")


@pytest.mark.parametrize("text", [None, "{\n", "[1]\n", '{"part": "x"}\n'])
def test_a_folder_of_something_else_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / OUTCOMES).write_text(text)
    with pytest.raises(RecordError, match=r"jobs\.jsonl"):
        outcomes(tmp_path)
