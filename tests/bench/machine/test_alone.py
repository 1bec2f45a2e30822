"""Measurements wait for each other and for trainings; trainings share a machine among themselves."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.machine import alone
from bench.machine.alone import lock_file, measuring, training, user

ROOT = Path(__file__).parents[3]
OTHER = """
import sys, time
from bench.machine import alone
with getattr(alone, sys.argv[1])(sys.argv[2], print):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def other(kind: str, device: str = "cpu") -> Iterator["subprocess.Popen[str]"]:
    """A process that measures or trains."""
    words = [sys.executable, "-c", OTHER, kind, device]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def waited_for(use: Callable[..., Any], process: "subprocess.Popen[str]") -> str:
    """What is said while it waits for a process, which is then killed."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        os.kill(process.pid, signal.SIGKILL)

    with use("cpu", say):
        assert said, "it did not wait"
    [line] = said
    return line


@pytest.mark.parametrize("kind", ["measuring", "training"])
def test_a_measurement_waits_and_says_for_whom(kind: str) -> None:
    assert user() is None
    with other(kind) as process:
        assert user() == f"process {process.pid}"
        with pytest.raises(UsageError, match=f"process {process.pid} measures or trains on this cpu"):
            measuring("cpu", print, wait=False).__enter__()
        assert waited_for(measuring, process).startswith(f"waiting for process {process.pid}, which measures or trains")


def test_a_training_waits_for_a_measurement_and_not_for_another_training() -> None:
    said: list[str] = []
    with other("training") as process, training("cpu", said.append), training("cpu", said.append):
        assert said == []
        assert user() is not None
        process.kill()
        process.wait()
    with other("measuring") as process:
        assert waited_for(training, process).startswith(f"waiting for process {process.pid}, which measures")


def test_the_last_of_several_trainings_is_waited_for() -> None:
    with other("training") as first, other("training") as last:
        last.kill()
        last.wait()
        with pytest.raises(UsageError, match="another process measures or trains"):
            measuring("cpu", print, wait=False).__enter__()
        first.kill()
        first.wait()
        with measuring("cpu", print, wait=False):
            pass


def test_a_training_on_a_gpu_needs_the_cpu_too() -> None:
    with other("training", "cuda"):
        for device in ("cpu", "cuda"):
            with pytest.raises(UsageError):
                measuring(device, print, wait=False).__enter__()
    with other("measuring", "cuda"), measuring("cpu", print, wait=False):
        pass


def test_force_measures_beside_others_and_says_so() -> None:
    said: list[str] = []
    with other("training") as process, measuring("cpu", said.append, force=True):
        assert said == [f"note: process {process.pid} measures or trains on this cpu at the same time"]


def test_where_no_lock_can_be_written_work_goes_on_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "lock_file", lambda device: tmp_path / "file" / "cpu.lock")
    (tmp_path / "file").write_text("")
    for use in (measuring, training):
        said: list[str] = []
        with use("cpu", said.append):
            assert len(said) == 1
            assert "other measurements are not kept away" in said[0]


def test_threads_of_one_process_wait_too() -> None:
    order: list[str] = []
    with measuring("cpu", print):
        thread = threading.Thread(target=lambda: [order.append("waits"), measuring("cpu", order.append).__enter__()])
        thread.start()
        thread.join(0.5)
        assert order[0] == "waits"
        assert len(order) == 2
    thread.join(10)
    assert not thread.is_alive()


def test_the_lock_is_of_this_host_and_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock_file("cpu") == tmp_path / "pixbench/cpu.lock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert str(os.getuid()) in str(lock_file("cuda").parent)
    assert lock_file("cuda").name == "cuda.lock"
