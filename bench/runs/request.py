"""A training run as a command line asks for it."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.runs.folder import LOCK, RECIPE, RUN, DataFolders, RunError, RunRecord, refuse_living, stored_nothing
from bench.screen import Say
from models.training.recipe import Recipe, load, parse_setting, shortened
from results.errors import RecordError
from results.runs import RunSummary


@dataclass(frozen=True)
class Request:
    """A run to start or to resume.

    Attributes:
        recipe: with every key the user changed.
        title: the recipe's name, "" for one put together from options.
        data: the folders of its images.
        name: of the run; "" makes one from recipe or model and the time.
        runs: folder of all runs.
        resume: folder of the run to resume.
        named: the images of a run to resume were named anew, so others are meant.
        changes: keys of the recipe of a run to resume that are other ones now.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads, 0 for every usable core.
        max_minutes: stop cleanly after so long; 0 for the recipe's own limit.
    """

    recipe: Recipe
    title: str = ""
    data: DataFolders = field(default_factory=DataFolders)
    name: str = ""
    runs: Path = Path("runs")
    resume: Path | None = None
    device: str = "auto"
    threads: int = 0
    max_minutes: float = 0.0
    named: bool = False
    changes: tuple[str, ...] = ()

    @classmethod
    def from_options(
        cls,
        recipe: str | None,
        say: Say,
        data: Path | None = None,
        train: Sequence[str] = (),
        val: str | None = None,
        settings: Sequence[str] = (),
        name: str = "",
        runs: Path = Path("runs"),
        device: str = "auto",
        threads: int = 0,
        **keys: Any,
    ) -> "Request":
        """A new run: a recipe, or a network with the usual recipe, and what is changed in it.

        Args:
            settings: `key=value` texts; they win over `keys`. Fewer epochs among `keys` shorten a recipe in proportion,
                in a setting they change nothing else.
            keys: recipe keys that have options of their own; None leaves a key as it is.

        Raises:
            UsageError: neither a recipe nor a network is named.
            ModelError: no such recipe or key, or a value of another type.
        """
        changes, epochs = _changes(keys, settings), keys.get("epochs")
        if recipe is not None:
            base = load(recipe)
            if epochs is not None and epochs < base.epochs:
                base = _in_fewer_epochs(base, epochs, say)
        elif "model" in changes:
            base = Recipe(model=changes.pop("model"))
        else:
            raise UsageError("name a recipe (bench list recipes) or a network: --model resnet18 --data DIR")
        folders = DataFolders.from_options(data, train, val)
        title = Path(recipe).stem if recipe else ""
        return cls(base, title, folders, name, runs, device=device, threads=threads).changed(changes)

    @classmethod
    def to_resume(
        cls,
        folder: Path,
        data: Path | None = None,
        train: Sequence[str] = (),
        val: str | None = None,
        settings: Sequence[str] = (),
        device: str = "auto",
        threads: int = 0,
        **keys: Any,
    ) -> "Request":
        """A stored run to resume, some of its keys, its images or its threads changed; see `from_options`.

        Raises:
            RunError: not a run's folder, its weights are missing, or changes that would make it another run or that
                nothing would be trained with.
            ModelError: its recipe is damaged, an unknown key, or a value of another type.
        """
        from models.training import checkpoint

        if (folder / LOCK).exists() and not (folder / RUN).exists() and stored_nothing(folder):
            refuse_living(folder)
            raise RunError(f"run {folder} was ended before it stored anything; give the command that began it again")
        try:
            record = RunRecord.load(folder)
        except RecordError as error:
            raise RunError(f"{folder} is not a run that can be resumed: {error}") from None
        if not (folder / checkpoint.LAST).exists() and not stored_nothing(folder):
            raise RunError(f"run {folder} has lost its {checkpoint.LAST}, without which it cannot be resumed")
        if device not in ("auto", record.device) and record.device != "auto":
            raise RunError(f"run {folder} is trained on {record.device}, not on {device}; leave out --device")
        recipe, threads = load(folder / RECIPE), threads or record.threads
        named = DataFolders.from_options(data, train, val)
        folders = named or record.data
        stored = cls(recipe, record.recipe, folders, folder.name, folder.parent, folder, record.device, threads)
        request = stored.changed(_changes(keys, settings))
        was, now = recipe.to_mapping(), request.recipe.to_mapping()
        request = replace(request, named=bool(named), changes=tuple(key for key in was if was[key] != now[key]))
        for key in ("seed", "model"):
            if key in request.changes:
                raise RunError(
                    f"run {folder} has {key} {was[key]}, not {now[key]}; a run with another {key} is a new one: "
                    "--name NEW"
                )
        done = _epochs_trained(folder)
        if request.recipe.epochs < done:
            raise RunError(
                f"run {folder} has trained {done} epochs, more than {request.recipe.epochs}; give more --epochs"
            )
        if request.changes and request.finished():
            raise RunError(
                f"run {folder} has finished its {done} epochs, so that nothing is left to train with another "
                f"{', '.join(request.changes)}; give more --epochs as well"
            )
        return request

    def changed(self, changes: Mapping[str, Any]) -> "Request":
        """The request with recipe keys changed. Raises ModelError: an unknown key or a value of another type."""
        recipe = self.recipe.replaced(changes)
        if "max_minutes" not in changes:
            return replace(self, recipe=recipe)
        # Checked as the recipe's key is, but not stored with it: a resumed run has a limit of its own.
        kept = replace(recipe, max_minutes=self.recipe.max_minutes)
        return replace(self, recipe=kept, max_minutes=recipe.max_minutes)

    def run_name(self) -> str:
        """The name asked for, or recipe (or model) and time. Raises UsageError: a name that no folder can have."""
        if not self.name:
            return f"{self.title or self.recipe.model}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name.startswith("."):
            raise UsageError(f"run name {self.name!r} is not a folder name; use letters, digits, . _ + -")
        return self.name

    def finished(self) -> bool:
        """Whether the run to resume has trained all of its epochs and has been tested."""
        if self.resume is None or _epochs_trained(self.resume) < self.recipe.epochs:
            return False
        with suppress(RecordError):
            return RunSummary.load(self.resume).status == "finished"
        return False


def _changes(keys: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None} | dict(map(parse_setting, settings))


def _epochs_trained(folder: Path) -> int:
    from models.training import checkpoint

    last = folder / checkpoint.LAST
    return checkpoint.read_card(last).epoch if last.exists() else 0


def _in_fewer_epochs(recipe: Recipe, epochs: int, say: Say) -> Recipe:
    """A recipe shortened in proportion, and a line about what shrinks with its epochs."""
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
