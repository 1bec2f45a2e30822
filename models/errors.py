"""The exception for input that the user can correct, and checks that raise it."""

import shutil
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

FULL = 1 << 20  # bytes: a disk with less left is full for what is written here


class ModelError(ValueError):
    """A model, argument, recipe or configuration that does not exist or cannot work."""


def unknown(kind: str, name: object, known: Iterable[str], listing: str = "") -> ModelError:
    """The error for a `name` that is not among `known`, with similar names and, if they are few, all of them.

    `listing` says where to find all of them if they are many.
    """
    names = sorted(known)
    spelled = {known.lower(): known for known in names}
    near = [spelled[word] for word in get_close_matches(str(name).lower(), spelled, n=4)]
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if len(names) <= 30:
        hints.append(f"known: {', '.join(names) or 'none'}")
    elif listing:
        hints.append(listing)
    return ModelError(f"unknown {kind} {name!r}; {' '.join(hints)}")


def install(extra: str) -> str:
    """How to get an optional part: pip adds to the pixbench that is installed, from an index or from a checkout."""
    return f"pip install 'pixbench[{extra}]'"


def check_counts(length: int | None = None, **arguments: int | Sequence[int]) -> None:
    """Check that arguments are whole numbers above 0, or lists of them that are not empty and of this length.

    Raises:
        ModelError: one is not.
    """
    for name, value in arguments.items():
        numbers = value if isinstance(value, Sequence) else (value,)
        whole = all(isinstance(number, int) and number > 0 for number in numbers)
        if not whole or not numbers or (length and len(numbers) != length):
            wanted = f"{length} whole numbers" if length else "whole numbers" if numbers is value else "a whole number"
            raise ModelError(f"{name} is {value}; give {wanted} above 0")


def where(error: BaseException, folder: Path | None = None, libraries: bool = True) -> str:
    """ " (FILE, line N)": the user's code that was the last to run, or a syntax error; "" where nothing is known.

    Args:
        folder: of the user's code.
        libraries: also what was installed.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    own = str(Path(__file__).parents[1])
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<")]
    theirs = [one for one in frames if folder is not None and one.filename.startswith(str(folder))]
    others = [one for one in frames if not one.filename.startswith(own)]
    if not libraries:
        others = [one for one in others if "site-packages" not in Path(one.filename).parts]
    last = next(reversed(theirs or others), None)
    return f" ({last.filename}, line {last.lineno})" if last else ""


def reason(error: Exception, folder: Path) -> str:
    """Why nothing could be written into a folder: libraries written in C++ only say that it failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        if shutil.disk_usage(folder).free < FULL:
            return "No space left on device"
    except OSError as gone:
        return str(gone.strerror)
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
