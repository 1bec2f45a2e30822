"""The exceptions that loaders raises for input the user can mend, and how a cause is told."""

import re


class DataError(ValueError):
    """A data set, a file in it, or a loader that is missing or cannot be read."""


class NoSplitError(DataError):
    """A data set that is whole, but has no such split."""


def without_traceback(error: DataError) -> DataError:
    """A worker's error as the worker raised it: DataLoader puts the whole traceback in front of its message."""
    return DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip())


def reason(error: Exception) -> str:
    """What a decoder complains of, in one line, without the place in its own source files."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^.*?/\S+\.(?:cpp|cc|h):\d+\W*", "", lines[0])
