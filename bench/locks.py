"""Files that one process holds at a time: a run, a study, a stored comparison, a measured device.

The kernel lets go of a lock when its process ends, however that ends, so nothing is left to be cleared away by hand.
"""

import contextlib
import fcntl
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from bench.errors import BenchError

# A process that asks who holds a lock holds it for an instant itself, and one that has just got it has not yet written
# its number.
PATIENCE = 0.5  # seconds

_held: set[int] = set()


class HeldError(BenchError):
    """Another process holds a lock; `who` names it."""

    def __init__(self, path: Path, who: str) -> None:
        super().__init__(f"{path} is held by {who}")
        self.who = who


@contextlib.contextmanager
def hold(path: Path, waiting: Callable[[str], None] | None = None, shared: bool = False) -> Iterator[int]:
    """Hold the lock file `path` while the block runs; made if it is missing. Yields its descriptor.

    It may be removed within the block: who waits for it notices and makes another.

    Args:
        waiting: called with a name for the process that holds it, for whose end this one then waits.
        shared: with others that share it; who wants it alone waits for all of them.

    Raises:
        HeldError: another process holds it and `waiting` is None.
        OSError: the place cannot be written.
    """
    _not_in_children()
    handle = _locked(path, waiting, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    _held.add(handle)
    try:
        yield handle
    finally:
        # In a child that was forked meanwhile it is closed already, and the number may be another file's.
        if handle in _held:
            _held.discard(handle)
            os.close(handle)


def holder(path: Path) -> str | None:
    """A name for the process that holds a lock file alone, None if nobody does."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _who(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
    return None


def _locked(path: Path, waiting: Callable[[str], None] | None, kind: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _took(handle, path, waiting, kind, time.monotonic() >= deadline) and _still_there(handle, path):
                # The number only helps a reader of messages: a full disk is no reason to stop.
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} {platform.node()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _took(handle: int, path: Path, waiting: Callable[[str], None] | None, kind: int, last: bool) -> bool:
    """Whether the lock is this process's now; False to try again."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if not last and not _alive(handle):
            time.sleep(0.01)
            return False
        if waiting is None:
            raise HeldError(path, _who(handle)) from None
        waiting(_who(handle))
        fcntl.flock(handle, kind)
    except OSError as error:
        # Some network file systems have none. Not a reason to refuse all work there, but to say it.
        print(f"note: {path.parent} has no locks ({error.strerror}): use it in one command at a time", file=sys.stderr)
    return True


def _still_there(handle: int, path: Path) -> bool:
    """Whether the open file is the one of that name: its last holder may have removed it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _written(handle: int) -> tuple[int, str]:
    """Number and machine of the process that wrote its number last; 0 for none."""
    number, _, node = os.pread(handle, 300, 0).decode(errors="replace").partition(" ")
    return (int(number) if number.isdigit() else 0), node.strip()


def _alive(handle: int) -> bool:
    number, node = _written(handle)
    if not number or node != platform.node():
        # Of a process on another machine only the lock itself is known.
        return bool(number)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _who(handle: int) -> str:
    number, node = _written(handle)
    if not number:
        return "another process"
    if not _alive(handle):
        return "another process" if _shared(handle) else f"a process that process {number} started"
    return f"process {number}" + (f" on {node}" if node != platform.node() else "")


def _shared(handle: int) -> bool:
    """Whether a lock is held by processes that share it: the one that wrote its number may have ended before them."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(handle, fcntl.LOCK_UN)
    return True


@cache
def _not_in_children() -> None:
    """Keep locks out of forked children: a loader's worker may outlive its killed parent for some seconds."""
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())
