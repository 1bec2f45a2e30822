"""The two sides of a check: their processes, compile caches and lock."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.checking.trees import Tree
from bench.errors import BenchError, UsageError
from bench.locks import HeldError, hold
from bench.machine.alone import measuring
from bench.processes import SOURCE
from bench.screen import Say
from bench.sides.crew import worker_environment
from bench.sides.process import Worker
from loaders.cache import cache_folder
from models.project import OTHERWISE

CACHE_BYTES = 4 << 30
OUTPUTS = "outputs-"  # begins the names of folders with what the sides have computed
DAY = 86400.0  # seconds
# (name, variables, folder of the packages, interpreter) -> a measuring process.
Spawn = Callable[[str, Mapping[str, str], Path, str], Worker]


def open_side(tree: Tree, name: str, threads: int, spawn: Spawn = Worker) -> Worker:
    """A process that runs a tree's code, with compile caches that no other side reads.

    A repository's own code is run by the packages that run now.
    """
    cache = side_cache("head" if name == "head" else "base")
    environment = {
        **worker_environment(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        **tree.environment,
    }
    return spawn(name, environment, tree.source, tree.python)


def open_host(threads: int, spawn: Spawn = Worker, settings: str = "") -> Worker:
    """A process that runs this code, for both sides to live in; compilers look up what they know by content.

    Args:
        settings: file whose settings hold where a side's own code has none.
    """
    cache = side_cache("head")
    environment = {
        **worker_environment(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        OTHERWISE: settings,
    }
    return spawn("both", environment, SOURCE, sys.executable)


def said_by(error: BenchError) -> str:
    """An error in one line, behind the side that it happened on."""
    # "again" is a second process of base, for the self-test.
    side = "base" if error.side == "again" else error.side
    return f"{side}: {error.summary}" if side else error.summary


def side_cache(name: str) -> Path:
    """Folder of a side's compiled code, kept for the next check: the compilers look up what they know by content."""
    return check_folder() / name


def check_folder() -> Path:
    """Where checks keep compiled code and their lock."""
    return cache_folder() / "check"


def open_caches(limit: int = CACHE_BYTES) -> Path:
    """Make the sides' folders, emptying one that holds more than `limit` bytes; the folder for temporary ones.

    Raises:
        UsageError: the place cannot be written.
    """
    with _writable():
        for name in ("base", "head"):
            place = side_cache(name)
            place.mkdir(parents=True, exist_ok=True)
            if _size(place) > limit:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(exist_ok=True)
        for left in check_folder().glob(f"{OUTPUTS}*"):
            # Of a check that was killed: none keeps them for long.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left, ignore_errors=True)
    return check_folder()


def _size(place: Path) -> int:
    """Bytes of all files below a folder; a check on another device may remove some meanwhile."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or check_folder()}: {error.strerror}; free some space or set "
            "XDG_CACHE_HOME to another place"
        ) from error


@contextlib.contextmanager
def only_one(device: str, wait: bool, say: Say) -> Iterator[None]:
    """Hold a device alone, and the compiled code of both sides.

    Raises:
        UsageError: another check, measurement or training is running and `wait` is off, or the place cannot be written.
    """

    def waiting(who: str) -> None:
        say(f"waiting for another check ({who}) on this {device} to end")

    with contextlib.ExitStack() as stack, _writable():
        check_folder().mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(hold(check_folder() / f"{device}.lock", waiting if wait else None))
        except HeldError as error:
            raise UsageError(
                f"another check ({error.who}) is measuring on this {device}; let it end, or leave out --no-wait"
            ) from None
        held = stack.pop_all()
    with held, measuring(device, say, wait):
        yield
