"""The folder of a training run: the names of its files, what `run.json` says, and when it may be used."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from results.reading import read
from results.runs import FILE as SUMMARY
from results.store import read_json, write_whole
from results.tables import to_json

RECIPE, RUN, HISTORY, STEPS, LOG = "recipe.toml", "run.json", "history.csv", "steps.csv", "log.md"
# What a run writes before its first checkpoint.
_BEGINNING = (RUN, RECIPE, HISTORY, STEPS, LOG, "*_history.txt", SUMMARY, "events.out.tfevents.*")


class RunError(BenchError):
    """A training that cannot start, resume or end as asked."""


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
            return [str(Path(path).absolute()) for path in paths.split(",")]

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
        machine: see `bench.machine.facts.describe`.
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

    def save(self, folder: Path) -> None:
        """Write run.json, the whole file or nothing. Raises RecordError."""
        write_whole(folder / RUN, to_json(asdict(self)).encode())

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Read run.json of a run's folder. Raises RecordError: missing or damaged."""
        return read(cls, read_json(folder / RUN), str(folder / RUN))


def stored_nothing(folder: Path) -> bool:
    """Whether a run began here and ended before its first checkpoint, so that there is nothing to resume."""
    from models.training import checkpoint

    return (folder / RUN).is_file() and not (folder / checkpoint.LAST).exists()


def refuse_existing(folder: Path) -> None:
    """Raise RunError if a run of this name has stored anything that could be lost."""
    # A run that failed at its first step gives its name back.
    if folder.exists() and not stored_nothing(folder):
        raise RunError(f"run {folder} exists; choose another --name, or resume it: bench train --resume {folder}")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a run's folder; take it away again if the block fails before the first checkpoint.

    A run that has left its summary, as one does whose loss diverged, keeps its folder.

    Raises RunError: the folder holds another run, or cannot be written.
    """
    from models.training import checkpoint

    refuse_existing(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    _empty(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise RunError(
            f"cannot write run folder {folder}: {error.strerror}; choose another place with --runs"
        ) from None
    try:
        yield
    except BaseException:
        if not (folder / checkpoint.LAST).exists() and not (folder / SUMMARY).exists():
            _empty(folder)
            # Folders that hold anything else stay.
            with suppress(OSError):
                for path in dict.fromkeys((folder, *made)):
                    path.rmdir()
        raise


def _empty(folder: Path) -> None:
    for pattern in _BEGINNING:
        for path in folder.glob(pattern):
            path.unlink()
