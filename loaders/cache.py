"""The cache folder, for what can be made again: compiled code, tuned settings, generated images."""

import contextlib
import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loaders.errors import DataError

NAME = "pixbench"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/pixbench, ~/.cache/pixbench where that is not set, a temporary folder where it cannot be written.

    The last is said once on stderr, and holds for the processes that this one starts too.
    """
    folder, reason = usual_folder()
    if not reason:
        try:
            # Asking for permission is not enough: not every file system says what it will refuse.
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        except OSError as error:
            reason = f"the cache folder {folder} cannot be made ({error.strerror})"
    try:
        instead = temporary_folder()
    except OSError:
        # Whoever writes there says what is wrong with it.
        return folder
    print(
        f"note: {reason}, so generated images and compiled code go to {instead / NAME}; "
        "XDG_CACHE_HOME names a folder that stays",
        file=sys.stderr,
    )
    os.environ["XDG_CACHE_HOME"] = str(instead)
    return instead / NAME


def usual_folder() -> tuple[Path, str]:
    """The cache folder as the user's variables name it, and why it cannot be used, "" if it can."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME
    except RuntimeError:
        return Path("/nonexistent") / NAME, "this user has no home folder"
    reason = unwritable(folder)
    return folder, f"the cache folder {folder} cannot be used ({reason})" if reason else ""


def unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which need not exist yet; "" if it can."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not os.path.isdir(there):
        return f"{there} is not a folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


def temporary_folder() -> Path:
    """A folder of this user alone among the temporary files, the same in every process. Raises OSError."""
    folder = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        # Compiled code is run from it: another user must not have put anything there.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    return folder


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
