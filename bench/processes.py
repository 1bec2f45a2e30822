"""Child processes that run this project's own code."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

# The folder that holds the five packages: the child runs the parent's own code, installed or not.
SOURCE = Path(__file__).resolve().parents[1]
# The variable that tells a child its parent's process number. `bench check` also starts the code of older commits,
# which know it by this name.
PARENT = "BENCH_WORKER_PARENT"


def end_with_parent(with_signal: int = signal.SIGTERM) -> None:
    """Linux: have the kernel send this process a signal when the one that started it ends, however that ends."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, with_signal)  # PR_SET_PDEATHSIG
    if os.environ.get(PARENT) != str(os.getppid()):
        os._exit(1)


class Process(Protocol):
    """What this module asks of a process; subprocess.Popen has it."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


# What a started process does: it follows its parent, then is the `bench` command.
STARTED = "from bench.processes import end_with_parent; end_with_parent(); from bench.cli import main; main()"

Start = Callable[[Sequence[str], IO[bytes], int], Process]


def start(arguments: Sequence[str], log: IO[bytes], lock: int) -> Process:
    """`bench ARGUMENTS` as a process of its own, with this code, all it prints going to `log`.

    Ctrl-C in the terminal reaches only this process, which then asks the other to stop. Should this one be killed,
    the kernel asks. The lock stays taken until both have ended.
    """
    inherited = os.environ.get("PYTHONPATH")
    return subprocess.Popen(
        # -P: a folder named models in the user's working directory must not be taken for ours.
        [sys.executable, "-P", "-c", STARTED, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=(lock,),
        env={
            **os.environ,
            PARENT: str(os.getpid()),
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, [inherited])]),
        },
    )
