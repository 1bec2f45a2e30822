"""Child processes that run this project's own code."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

# The folder that holds the five packages: the child runs the parent's own code, installed or not.
SOURCE = Path(__file__).resolve().parents[1]


class Process(Protocol):
    """What this module asks of a process; subprocess.Popen has it."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


Start = Callable[[Sequence[str], IO[bytes], int], Process]


def start(arguments: Sequence[str], log: IO[bytes], lock: int) -> Process:
    """`bench ARGUMENTS` as a process of its own, with this code, all it prints going to `log`.

    Ctrl-C in the terminal reaches only this process, which then asks the other to stop. Should this one be killed,
    the kernel asks. The lock stays taken until both have ended.
    """
    inherited = os.environ.get("PYTHONPATH")
    return subprocess.Popen(
        # -P: a folder named models in the user's working directory must not be taken for ours.
        [sys.executable, "-P", "-c", "from bench.runs.study import serve; serve()", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=(lock,),
        env={
            **os.environ,
            "BENCH_STUDY_PARENT": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, [inherited])]),
        },
    )
