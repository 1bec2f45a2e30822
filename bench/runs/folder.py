"""The folder of a training run: the names of its files, what `run.json` says, and when it may be used."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.locks import HeldError, hold, holder
from results.errors import RecordError
from results.history import History
from results.reading import read
from results.runs import FILE as SUMMARY
from results.store import read_json, write_whole
from results.tables import to_json

RECIPE, RUN, HISTORY, STEPS, LOG, LOCK = "recipe.toml", "run.json", "history.csv", "steps.csv", "log.md", ".lock"
IMAGES = "images.npz"
# What a kill leaves of a file that was being written.
_TEMPORARY = ".*.tmp"
# What a run writes before its first checkpoint is complete.
_BEGINNING = (
    *(RUN, RECIPE, IMAGES, HISTORY, STEPS, LOG, "*_history.txt", SUMMARY, "events.out.tfevents.*"),
    *("*.safetensors", "state-*.pt", LOCK, _TEMPORARY),
)
_TRIES = 100


class RunError(BenchError):
    """A training that cannot start, resume or end as asked."""


def named_folders(text: str) -> list[str]:
    """The folders that an option names, separated by commas, which may also be part of the name of one that exists."""
    words, found = text.split(","), list[str]()
    while words:
        # The longest name first: "a,b" is one folder where there is one of that name.
        count = next((n for n in range(len(words), 1, -1) if Path(",".join(words[:n])).is_dir()), 1)
        found.append(",".join(words[:count]))
        del words[:count]
    # A comma at the end names no folder; it must not be taken for the working folder.
    return [name for name in found if name.strip()]


@dataclass(frozen=True)
class DataFolders:
    """Where the images of a training lie, as absolute paths.

    Attributes:
        folder: holds all splits; "" where they are named one by one.
        train: training folders to merge.
        val: validation folders to merge, separated by commas; None for none.
    """

    folder: str = ""
    train: tuple[str, ...] = ()
    val: str | None = None

    @classmethod
    def from_options(cls, data: Path | None, train: Sequence[str], val: str | None) -> "DataFolders":
        """From --data, --train and --val; the last two may name several folders, separated by commas."""

        def absolute(paths: str) -> list[str]:
            return [str(Path(path).absolute()) for path in named_folders(paths)]

        folders = tuple(path for paths in train for path in absolute(paths))
        return cls(str(data.absolute()) if data else "", folders, ",".join(absolute(val)) if val else None)

    def __bool__(self) -> bool:
        """Whether any images are named to train on."""
        return bool(self.folder or self.train)

    def options(self) -> list[str]:
        """These folders as options of `bench train`."""
        words = ["--data", self.folder] if self.folder else []
        words += [word for path in self.train for word in ("--train", path)]
        return words + (["--val", self.val] if self.val else [])


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says of a run: how it was asked for, and where it ran.

    Attributes:
        recipe: title of the recipe; "" for one put together from options.
        images: how many there are to train on, to validate on and to test on.
        test_is_independent: see `Splits.independent`.
        test_images_trained_on: see `Splits.trained_on`; None where an earlier version made the run.
        machine: see `bench.machine.facts.describe`.
        launch: see `World.launch`.
    """

    command: str
    recipe: str
    data: DataFolders
    images: Mapping[str, int]
    test_is_independent: bool
    device: str
    processes: int
    threads: int
    configuration: str
    machine: Mapping[str, Any]
    test_images_trained_on: int | None = None
    launch: str = ""

    def save(self, folder: Path) -> None:
        """Write run.json, the whole file or nothing. Raises RecordError."""
        write_whole(folder / RUN, to_json(asdict(self)).encode())

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Read run.json of a run's folder. Raises RecordError: missing or damaged."""
        return read(cls, read_json(folder / RUN), str(folder / RUN))


def stored_nothing(folder: Path) -> bool:
    """Whether a run began here and ended before its first checkpoint, so that there is nothing to go on from."""
    from models.training import checkpoint

    if not folder.is_dir() or (folder / checkpoint.LAST).exists():
        return False
    with suppress(RecordError):
        if History.load(folder / HISTORY).epochs:
            # It had a checkpoint, which somebody has taken away; the others may be all that is left of it.
            return False
    return (folder / RUN).is_file() or set(_begun(folder)).issuperset(folder.iterdir())


def refuse_living(folder: Path) -> None:
    """Raise RunError if a process is training the run of this folder."""
    who = holder(folder / LOCK)
    if who is not None:
        raise _living(folder, who)


def refuse_existing(folder: Path) -> None:
    """Raise RunError if a run of this name is being trained, or has stored anything that could be lost."""
    refuse_living(folder)
    # A run that failed at its first step gives its name back.
    if folder.exists() and not stored_nothing(folder):
        raise RunError(f"run {folder} exists; choose another --name, or resume it: bench train --resume {folder}")


@contextmanager
def new_folder(folder: Path, numbered: bool = False) -> Iterator[Path]:
    """Make a run's folder and hold it; take it away again if the block fails before the first checkpoint.

    A run that has left its summary, as one does whose loss diverged, keeps its folder.

    Args:
        numbered: nobody chose its name, so where that is taken the run gets the next free one: NAME-2, NAME-3.

    Raises RunError: the folder holds another run, or cannot be written.
    """
    from models.training import checkpoint

    with ExitStack() as stack:
        folder, made = _claim(stack, folder, numbered)
        _remove(_begun(folder), keep=(LOCK,))
        try:
            yield folder
        except BaseException:
            if not (folder / checkpoint.LAST).exists() and not (folder / SUMMARY).exists():
                _remove(_begun(folder))
                # Folders that hold anything else stay.
                with suppress(OSError):
                    for path in dict.fromkeys((folder, *made)):
                        path.rmdir()
            raise


@contextmanager
def existing_folder(folder: Path) -> Iterator[None]:
    """Hold the folder of a run that is resumed, and remove what a kill has left unfinished in it.

    Of a run without a checkpoint only its recipe and what `run.json` says are left.

    Raises RunError: another process is training it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            _hold(stack, folder)
        except FileNotFoundError as error:
            raise _unwritable(folder, error) from None
        _remove(_begun(folder) if stored_nothing(folder) else folder.glob(_TEMPORARY), keep=(LOCK, RUN, RECIPE))
        yield


def _claim(stack: ExitStack, folder: Path, numbered: bool) -> tuple[Path, list[Path]]:
    """Make a run's folder, or take over one in which nothing was stored; it, and the folders above it that were made.

    Making a folder is one step, in which only one of several processes succeeds; the lock decides between those that
    take one over.
    """
    name, number, last = folder.name, 1, OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    made = [path for path in folder.parents if not path.exists()]
    for _ in range(_TRIES):
        try:
            if not numbered:
                refuse_existing(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=not numbered)
            _hold(stack, folder)
            if stored_nothing(folder):
                return folder, made
            # Since it was looked at, it got a checkpoint and lost its process.
            stack.close()
        except FileExistsError as error:
            last = error
            if numbered:
                number += 1
                folder = folder.with_name(f"{name}-{number}")
        except FileNotFoundError as error:
            # Another run has just failed and taken the folder away.
            last = error
        except OSError as error:
            raise _unwritable(folder, error) from None
    raise _unwritable(folder, last)


def _hold(stack: ExitStack, folder: Path) -> None:
    """Raises RunError: another process has it, or it cannot be written. FileNotFoundError: there is no such folder."""
    try:
        stack.enter_context(hold(folder / LOCK))
    except HeldError as error:
        raise _living(folder, error.who) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unwritable(folder, error) from None


def _living(folder: Path, who: str) -> RunError:
    return RunError(f"run {folder} is being trained by {who}; choose another --name, or wait for its end to resume it")


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(f"cannot write run folder {folder}: {error.strerror}; choose another place with --runs")


def _begun(folder: Path) -> list[Path]:
    """What a run has written that ended before its first checkpoint, also inside of that."""
    return [path for pattern in _BEGINNING for path in folder.glob(pattern)]


def _remove(paths: Iterable[Path], keep: Sequence[str] = ()) -> None:
    for path in paths:
        if path.name not in keep:
            path.unlink(missing_ok=True)
