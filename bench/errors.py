"""Errors that a user can act on, and the one tuple of them that cli.py catches.

The leaf packages may not import bench, so each has a root of its own for bad input;
REPORTED joins the four into what is printed as one line with exit code 2.

    BenchError            anything that stops a command
    ├── UsageError        the command's words make no sense
    ├── WorkloadError     a workload cannot run as described (no such device, lever or loader here)
    ├── OutOfMemoryError       a workload did not fit; recorded as a row, never made smaller
    └── WorkerError       a measuring process died, hung or gave no valid answer
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from loaders.errors import DataError
from models.errors import ModelError
from results.errors import RecordError, first_line

GONE = "the folder in which this command was started is gone; change to another one"
SHOWN = 6  # lines of a measuring process's output


class BenchError(Exception):
    """Root of everything bench itself raises; the message says what is wrong, where, and what to do.

    Attributes:
        side: which side of a duel it happened on, "" elsewhere.
    """

    side: str = ""

    @property
    def summary(self) -> str:
        """The first line of the message: what a cell of a table holds."""
        return (str(self).splitlines() or [type(self).__name__])[0]


class UsageError(BenchError):
    """The command's words make no sense together."""


class WorkloadError(BenchError):
    """A workload cannot run as described on this machine."""


class OutOfMemoryError(BenchError):
    """A workload did not fit in memory."""


class WorkerError(BenchError):
    """A measuring process died, hung or gave no valid answer.

    Args:
        message: what happened.
        output: the last lines that the process printed; a few of them are shown, none is part of the summary.
    """

    def __init__(self, message: str, output: str = "") -> None:
        last = "\n".join(output.splitlines()[-SHOWN:])
        super().__init__(message + (f"; its last output was:\n{last}" if last else ""))
        self.message = message
        self.output = output

    @property
    def summary(self) -> str:
        """What happened, in one line."""
        return (self.message.splitlines() or [type(self).__name__])[0]


@contextlib.contextmanager
def on_side(name: str) -> Iterator[None]:
    """Errors inside say which side they happened on."""
    try:
        yield
    except BenchError as error:
        error.side = error.side or name
        raise


REPORTED: tuple[type[Exception], ...] = (BenchError, DataError, ModelError, RecordError)

# How torch (CPU and CUDA) words an allocation that failed; MemoryError is Python's own.
MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
)
_KILLED = (
    "a process that loads images was killed: most likely memory ran out (in a container perhaps only /dev/shm: "
    "--shm-size=8g); take fewer --threads or a smaller --batch"
)
# What a library says of a cause that a user can mend -> what to do about it.
_KNOWN = {
    "Expected more than 1 value per channel when training": (
        "BatchNorm cannot be trained with one value a channel, and this network makes a single pixel of an image: "
        "take a batch of 2 or more, or larger images (--size)"
    ),
    "DataLoader worker (pid": _KILLED,
    "terminated abruptly": _KILLED,
    "No space left on device": "a disk is full: {line}; free some space (bench doctor says where it is short)",
    "No usable temporary directory": (
        "no folder for temporary files can be written: free some space in /tmp, or set TMPDIR to another folder"
    ),
    "Too many open files": "too many files are open at once; raise the limit (ulimit -n 4096) or take fewer --threads",
    "can't start new thread": "no further thread can be started; raise the limit (ulimit -u) or take fewer --threads",
}


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, whoever words it."""
    classes = {one.__name__ for one in type(error).__mro__}
    return bool(classes & {"MemoryError", "OutOfMemoryError"}) or any(word in str(error) for word in MEMORY_WORDS)


def foreseen(error: BaseException) -> str:
    """What to do about an error of the system or a library that a user can mend, in one line; "" for any other."""
    one: BaseException | None = error
    while one is not None:
        for words, text in _KNOWN.items():
            line = next((line.strip() for line in str(one).splitlines() if words in line), None)
            if line is not None and not isinstance(one, OSError):
                return text.format(line=line[:300])
        # A compiler wraps what went wrong while it traced.
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    if out_of_memory(error):
        return f"out of memory: {first_line(error)}; take a smaller --batch or --size, or end other programs"
    if isinstance(error, OSError) and error.strerror:
        return _of_the_system(error)
    if isinstance(error, ImportError):
        return f"cannot import what this needs: {first_line(error)}; bench doctor says what is missing"
    return ""


def _of_the_system(error: OSError) -> str:
    named = isinstance(error.filename, str | bytes | os.PathLike)
    place, reason = os.fsdecode(error.filename) if named else "", str(error.strerror)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot write {place or 'a file'}: {reason}; free some space or choose another place"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{place or 'a file'}: {reason}; choose another place, or see who may use it: ls -ld"
    if error.errno == errno.ELOOP:
        return f"{place or 'a file'}: {reason}; a link there leads back to itself: remove it"
    for words, text in _KNOWN.items():
        if words in reason:
            return text
    if error.errno == errno.ENOENT and not os.path.isdir("."):
        return GONE
    return f"{place}: {reason}" if place else reason


def explained(error: BaseException) -> str:
    """What ended a command, in one line."""
    return foreseen(error) or f"unexpected {type(error).__name__}: {first_line(error)}"
