"""Child processes that run this project's own code, and what a parent does when it is interrupted."""

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

# The folder that holds the five packages: the child runs the parent's own code, installed or not.
SOURCE = Path(__file__).resolve().parents[1]
# The variable that tells a child its parent's process number. `bench check` also starts the code of older commits,
# which know it by this name.
PARENT = "BENCH_WORKER_PARENT"
STOPPING = (signal.SIGINT, signal.SIGTERM)
_AGAIN = "take_interrupts.again"


def end_with_parent(with_signal: int = signal.SIGTERM, forked: bool = False) -> None:
    """Linux: have the kernel send this process a signal when the one that started it ends, however that ends.

    Args:
        forked: it was forked: the variable names the parent of the process that it was forked from.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, with_signal)  # PR_SET_PDEATHSIG
    if not forked and os.environ.get(PARENT) != str(os.getppid()):
        os._exit(1)


def take_interrupts() -> None:
    """From now on SIGTERM does what Ctrl-C does, and neither gets lost: see `interrupt`."""
    owner, unraisable = os.getpid(), sys.unraisablehook

    def interrupted(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            interrupt(number, frame)
        elif number == signal.SIGTERM:
            # A process forked from this one, such as a loader's, which has not set its own handlers yet. Ctrl-C it
            # leaves to its parent, who ends it: two of them would print a traceback each.
            os._exit(128 + number)

    def again(event: "sys.UnraisableHookArgs") -> None:
        # A finaliser cannot pass an exception on: Python prints it and goes on, and the interrupt is lost.
        if event.exc_type is KeyboardInterrupt:
            if not sys.is_finalizing():
                _interrupt_soon()
        else:
            unraisable(event)

    again.__qualname__ = _AGAIN
    if getattr(unraisable, "__qualname__", "") != _AGAIN:
        sys.unraisablehook = again
        # Python's own end forgets handlers, and a timer that is still under way would then end the process by a signal.
        # Registered first, this is called last.
        atexit.register(signal.signal, signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, interrupted)
    # A job that a shell runs in the background ignores Ctrl-C, and goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: raises KeyboardInterrupt, where torch is just being imported as soon as that has ended.

    An exception inside that import would meet C++ code that answers it by aborting the process.
    """
    torch = sys.modules.get("torch")
    if getattr(getattr(torch, "__spec__", None), "_initializing", False):
        _interrupt_soon()
    else:
        raise KeyboardInterrupt


def is_interrupt(error: BaseException) -> bool:
    """Whether it is a KeyboardInterrupt, or what became of one.

    Raised while `threading.Condition` gives its lock back or takes it again, as in each wait for a thread's result, a
    KeyboardInterrupt ends as the RuntimeError of a lock that nobody holds.
    """
    became = isinstance(error, RuntimeError) and "un-acquired lock" in str(error)
    return isinstance(error, KeyboardInterrupt) or (became and isinstance(error.__context__, KeyboardInterrupt))


def _interrupt_soon() -> None:
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)


@contextlib.contextmanager
def stop_requests(signals: Sequence[signal.Signals] = STOPPING) -> Iterator[Callable[[], str | None]]:
    """Within the block the first of `signals` only asks for a clean stop; a second one raises KeyboardInterrupt.

    Yields a function that gives the reason to stop ("stopped by SIGINT"), None before a signal arrives.
    """
    arrived: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if arrived:
            raise KeyboardInterrupt
        arrived.append(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield lambda: arrived[0] if arrived else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# A child follows its parent, then is the `bench` command.
BENCH = "from bench.processes import end_with_parent; end_with_parent(); from bench.cli import main; main()"


def bench_command(arguments: Sequence[str]) -> list[str]:
    """`bench ARGUMENTS` as a command line; run it with `bench_environment`."""
    # -P: a folder named models in the user's working directory must not be taken for ours.
    return [sys.executable, "-P", "-c", BENCH, *arguments]


def bench_environment() -> dict[str, str]:
    """The environment in which a child finds this project's code, and knows its parent."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(SOURCE), *filter(None, [inherited])])
    return {**os.environ, PARENT: str(os.getpid()), "PYTHONPATH": path}


def start(
    arguments: Sequence[str], log: IO[bytes], locks: Sequence[int] = (), variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """`bench ARGUMENTS` as a process of its own, with this code, all it prints going to `log`.

    Ctrl-C in the terminal reaches only this process, which then asks the other to stop. Should this one be killed,
    the kernel asks. The locks stay taken until both have ended.
    """
    return subprocess.Popen(
        bench_command(arguments),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=locks,
        env={**bench_environment(), **(variables or {})},
    )
