"""Errors a user can mend, and the one tuple that cli.py catches.

The leaf packages may not import bench, so each has a root of its own for bad input;
REPORTED joins the four into what is printed as one line with exit code 2.

    BenchError            anything that stops a command
    ├── UsageError        the command's words make no sense
    ├── WorkloadError     a workload cannot run as described (no such device, lever or loader here)
    ├── OutOfMemoryError       a workload did not fit; recorded as a row, never made smaller
    └── WorkerError       a measuring process died, hung or answered nonsense
"""

from loaders.errors import DataError
from models.errors import ModelError
from results.errors import RecordError


class BenchError(Exception):
    """Root of everything bench itself raises; the message says what is wrong, where, and what to do."""


class UsageError(BenchError):
    """The command's words make no sense together."""


class WorkloadError(BenchError):
    """A workload cannot run as described on this machine."""


class OutOfMemoryError(BenchError):
    """A workload did not fit in memory."""


class WorkerError(BenchError):
    """A measuring process died, hung or answered nonsense."""


REPORTED: tuple[type[Exception], ...] = (BenchError, DataError, ModelError, RecordError)
