"""The cache folder, for what can be made again: compiled code, tuned settings, generated images."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from loaders.errors import DataError


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/pixbench, ~/.cache/pixbench where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixbench"


@contextlib.contextmanager
def updating(path: Path) -> Iterator[bool]:
    """One process at a time in this block, for each `path`: to make it, or to read it, change it and write it again.

    The others wait. A process that is killed within the block leaves it to the next.

    Yields:
        whether this process is alone; False on a file system without locks.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)
