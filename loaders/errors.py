"""The exceptions of loaders, for input that a user can correct, and the messages they share."""

import difflib
import re
import shlex
from collections.abc import Collection
from pathlib import Path


class DataError(ValueError):
    """A data set, a file in it, or a loader that is missing or cannot be read."""


class NoSplitError(DataError):
    """A data set without problems that has no such split."""


class LargeError(DataError):
    """An image with more pixels than are allowed."""


def unknown(kind: str, name: str, known: Collection[str], listing: str | None = None) -> DataError:
    """The error for a name that does not exist: with a similar one, and all known ones or `listing` in their place."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return DataError(f"unknown {kind} {name}{hint} {listing or 'Known: ' + ', '.join(known)}")


def undecodable(path: str, error: Exception) -> DataError:
    """The error for a file that a decoder refused."""
    return DataError(f"cannot decode {path}: {reason(error)}; find all with: {check_of(path)}")


def check_of(path: str) -> str:
    """The command that looks at all images of the set of which this is one, in a folder for its class."""
    return f"bench data check {shlex.quote(str(Path(path).parent.parent))}"


def without_traceback(error: DataError) -> DataError:
    """A worker's error as the worker raised it: DataLoader puts the whole traceback in front of its message."""
    text = str(error)
    named = list(re.finditer(rf"^(?:\w+\.)*{DataError.__name__}: ", text, re.MULTILINE))
    return DataError(text[named[-1].end() :].strip() if named else text.strip())


def reason(error: Exception) -> str:
    """A decoder's message in one line, without the place in its own source files."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # Only what separates the place from the message: this may begin with a bracket of its own, as [Errno 2] does.
    line = re.sub(r" *\(/\S+\.(?:cpp|cc|h):\d+\)$", "", lines[0])
    return re.sub(r"^.*?/\S+\.(?:cpp|cc|h):\d+\]?[\s,:.]*", "", line)
