"""A lock belongs to one process, which it names, and is free as soon as that has ended."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.locks import HeldError, hold, holder

ROOT = Path(__file__).parents[2]
HOLDING = """
import multiprocessing, sys, time
from pathlib import Path
from bench.locks import hold
with hold(Path(sys.argv[1])):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_once_and_names_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    assert not path.exists()
    with hold(path):
        assert holder(path) == f"process {os.getpid()}"
        with pytest.raises(HeldError) as refused, hold(path):
            pass
        assert refused.value.who == f"process {os.getpid()}"
        with hold(tmp_path / "another"):
            pass
    assert holder(path) is None
    with hold(path):
        pass


def test_a_lock_that_is_removed_is_another_one(tmp_path: Path) -> None:
    """Who opened the removed file must not believe to have the lock that others find."""
    path = tmp_path / "lock"
    with hold(path):
        path.unlink()
        with hold(path):
            assert path.exists()
            with pytest.raises(HeldError), hold(path):
                pass


def test_a_killed_process_keeps_no_lock_although_its_child_lives(tmp_path: Path) -> None:
    """A loader's worker, which was forked, outlives its killed parent for some seconds."""
    path = tmp_path / "lock"
    words = [sys.executable, "-c", HOLDING, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert holder(path) == f"process {process.pid}"
            process.kill()
            process.wait()
            with hold(path):
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_process_that_only_inherited_a_lock_is_not_named_as_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path):
        gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
        gone.wait()
        path.write_text(f"{gone.pid} {os.uname().nodename}")
        with pytest.raises(HeldError, match=f"a process that process {gone.pid} started"), hold(path):
            pass
        path.write_text(f"{gone.pid} elsewhere")
        with pytest.raises(HeldError, match=f"process {gone.pid} on elsewhere"), hold(path):
            pass
        path.write_text("")
        with pytest.raises(HeldError, match="another process"), hold(path):
            pass


def test_a_place_without_locks_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(handle: int, what: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with hold(tmp_path / "lock"):
        assert holder(tmp_path / "lock") is None
    assert f"{tmp_path} has no locks (No locks available)" in capsys.readouterr().err
