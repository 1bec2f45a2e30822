"""What a parent does when it is interrupted, and whose code its children run."""

import os
import signal
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from bench.processes import bench_command, bench_environment, interrupt, is_interrupt, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_raises(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as asked:
        assert asked() is None
        os.kill(os.getpid(), number)
        assert asked() == f"stopped by {number.name}"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_an_interrupt_within_a_wait_for_a_thread_is_still_one() -> None:
    condition = threading.Condition()

    def wait() -> None:
        # As if the signal came just after the lock was given back.
        with condition:
            condition.release()
            raise KeyboardInterrupt

    with pytest.raises(RuntimeError) as became:
        wait()
    assert is_interrupt(became.value)
    with pytest.raises(RuntimeError) as bug:
        condition.release()
    assert not is_interrupt(bug.value)


def test_an_interrupt_waits_until_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ code that meets an exception in the middle of the import aborts the process."""
    module, before = ModuleType("torch"), signal.getsignal(signal.SIGALRM)
    module.__spec__ = ModuleSpec("torch", None)
    module.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", module)
    try:
        interrupt(signal.SIGINT, None)
        signal.pause()
        module.__spec__._initializing = False  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            signal.pause()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


FINALISER = """
import os, signal, time
from bench.processes import take_interrupts

take_interrupts()
take_interrupts()

class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

try:
    thing = Closing()
    del thing
    print("gone on", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
AT_THE_END = """
import atexit, os, signal, time
from bench.processes import take_interrupts

take_interrupts()
atexit.register(os.kill, os.getpid(), signal.SIGTERM)

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.2)

thing = Slow()
print("done")
"""
FORKED = """
import os, signal
from bench.processes import take_interrupts

take_interrupts()
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(FINALISER, "gone on\ninterrupted\n", id="a finaliser cannot swallow an interrupt"),
        pytest.param(AT_THE_END, "done\n", id="an interrupt after the end changes nothing"),
        pytest.param(FORKED, "143\n", id="a fork leaves Ctrl-C to its parent"),
    ],
)
def test_interrupts_print_nothing_and_are_not_lost(script: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], env=bench_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)


def test_a_folder_named_models_in_the_working_directory_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('not ours')")
    command, environ = bench_command(["study", "--help"]), bench_environment()
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "imagenet-resnet50" in done.stdout
