"""What a command line asks of a training run, and the folder it goes to."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError, UsageError
from bench.runs.sources import Say
from models.errors import ModelError
from models.training import checkpoint
from models.training.recipe import Recipe, load, shortened
from results.errors import RecordError
from results.runs import RunSummary

RECIPE, RUN, HISTORY, STEPS = "recipe.toml", "run.json", "history.csv", "steps.csv"


class RunError(BenchError):
    """A training that cannot begin, go on or end as asked."""


@dataclass(frozen=True)
class Request:
    """A run as a command line asks for it.

    Attributes:
        recipe: with every key the user changed.
        title: the recipe's name, "" for one put together from options.
        data, train, val: a folder with splits, or folders of each.
        name: of the run; "" makes one from recipe or model and the time.
        runs: folder of all runs.
        resume: folder of a run to go on with.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads, 0 for every usable core.
        max_minutes: stop cleanly after so long; 0 for the recipe's own limit.
    """

    recipe: Recipe
    title: str = ""
    data: Path | None = None
    train: tuple[str, ...] = ()
    val: str | None = None
    name: str = ""
    runs: Path = Path("runs")
    resume: Path | None = None
    device: str = "auto"
    threads: int = 0
    max_minutes: float = 0.0


def run_name(request: Request) -> str:
    """The name asked for, or recipe (or model) and time.

    Raises:
        UsageError: a name that is no folder name.
    """
    if request.name:
        if not re.fullmatch(r"[\w.+-]+", request.name) or request.name.startswith("."):
            raise UsageError(f"run name {request.name!r} is not a folder name; use letters, digits, . _ + -")
        return request.name
    return f"{request.title or request.recipe.model}-{time.strftime('%Y%m%d-%H%M%S')}"


def refuse_existing(folder: Path) -> None:
    """Raise RunError if a run of this name has stored anything that could be lost."""
    if folder.exists() and not _never_stored(folder):
        raise RunError(f"run {folder} exists; choose another --name, or go on with it: bench train --resume {folder}")


def make_folder(folder: Path) -> list[Path]:
    """Create the run's folder, or empty the one of a run that never stored a checkpoint.

    Returns:
        The folders that were not there before, innermost first.

    Raises:
        RunError: it exists, or cannot be written.
    """
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
    return made


def _empty(folder: Path) -> None:
    """Remove what a run writes before its first checkpoint."""
    for pattern in (RUN, RECIPE, HISTORY, STEPS, "log.md", "*_history.txt", "summary.json", "events.out.tfevents.*"):
        for path in folder.glob(pattern):
            path.unlink()


def _never_stored(folder: Path) -> bool:
    """Whether a run began here and ended before it had a checkpoint to go on from.

    Otherwise a run that fails at its first step would take its name with it.
    """
    return (folder / RUN).is_file() and not (folder / checkpoint.LAST).exists()


def stored_request(folder: Path) -> Request:
    """The request of a run that left its folder, to be changed and gone on with.

    Raises:
        RunError: not a run's folder, or nothing was stored in it.
    """
    if _never_stored(folder):
        raise RunError(f"run {folder} failed before its first checkpoint; remove it, and train anew")
    # Outside: what is wrong with the recipe is said of the recipe.
    recipe = load(folder / RECIPE) if (folder / RUN).is_file() else None
    try:
        said = json.loads((folder / RUN).read_text(encoding="utf-8"))
        data = said["data"]
        return Request(
            recipe=recipe or load(folder / RECIPE),
            title=said["recipe"],
            data=Path(data["folder"]) if data["folder"] else None,
            train=tuple(data["train"]),
            val=data["val"],
            name=folder.name,
            runs=folder.parent,
            resume=folder,
            device=said["device"],
            threads=said["threads"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} is no run that can be resumed: {RUN} is missing or damaged ({error})") from None


def resumed(folder: Path, changes: Mapping[str, Any]) -> Request:
    """The request to go on with a run, some keys changed.

    Raises:
        RunError: not a run's folder, or changes with which it would be another run.
        ModelError: an unknown key or a value of another type.
    """
    stored = stored_request(folder)
    request = changed(stored, changes)
    for key in ("seed", "model"):
        was, now = getattr(stored.recipe, key), getattr(request.recipe, key)
        if was != now:
            raise RunError(
                f"run {folder} has {key} {was}, not {now}; a run with another {key} is a new one: --name NEW"
            )
    done = checkpoint.read_card(folder / checkpoint.LAST).epoch
    if request.recipe.epochs < done:
        raise RunError(f"run {folder} has trained {done} epochs, more than {request.recipe.epochs}; give more --epochs")
    return request


def finished(request: Request) -> bool:
    """Whether the run to go on with has trained all of its epochs and has been tested."""
    if request.resume is None or checkpoint.read_card(request.resume / checkpoint.LAST).epoch < request.recipe.epochs:
        return False
    with suppress(RecordError):
        return RunSummary.load(request.resume).status == "finished"
    return False


def in_fewer_epochs(recipe: Recipe, epochs: int, say: Say) -> Recipe:
    """A recipe shortened by a command line, and a line about what shrinks with it."""
    short = shortened(recipe, epochs)
    was, now = recipe.to_mapping(), short.to_mapping()
    changes = [f"{key} {_brief(was[key])} to {_brief(now[key])}" for key in was if was[key] != now[key]]
    if len(changes) > 1:
        say(f"shortened in proportion: {', '.join(changes)}")
    return short


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def changed(request: Request, changes: Mapping[str, Any]) -> Request:
    """The request with recipe keys changed.

    Raises:
        ModelError: an unknown key or a value of another type.
    """
    try:
        return replace(request, recipe=request.recipe.replaced(changes))
    except TypeError as error:
        raise ModelError(f"cannot set {', '.join(changes)}: {error}") from None
