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
from collections.abc import Iterator

from loaders.errors import DataError
from models.errors import ModelError
from results.errors import RecordError


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
        output: the last lines that the process printed; shown, and no part of the summary.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message + (f"; its last output was:\n{output}" if output else ""))
        self.message = message

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
