"""Learning rates before a training: the range test on a recipe's own images, and its schedule's rates."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.processes import stop_requests
from bench.runs.request import Request
from bench.runs.sources import open_folders, split
from bench.runs.training import opened
from bench.screen import Say, Screen
from loaders.datasets import KNOWN
from models.training import checkpoint, lr_finder
from models.training.distributed import World
from models.training.lr_finder import LrCurve
from models.training.schedules import lr_series
from results.pictures import curves
from results.pictures.style import save
from results.store import write_whole
from results.tables import Cell, render, to_json


@dataclass(frozen=True)
class RangeTest:
    """A range test and whether it left the network as it was; the digest is of all weights and buffers after it."""

    curve: LrCurve
    model: str
    optimizer: str
    batch: int
    weights_restored: bool
    weights_digest: str

    def draw(self, path: Path) -> list[Path]:
        """Write the curve as a picture, and as CSV beside it. Raises RecordError: a file cannot be written."""
        curve = self.curve
        # Without the advice that follows the semicolon, as a picture has room for.
        caution = None if curve.caution is None else f"no rate suggested: {curve.caution.partition(';')[0]}"
        title = f"{self.model}, {self.optimizer}, batch {self.batch}"
        figure = curves.lr_finder(curve.lrs, curve.losses, curve.smoothed, curve.suggestion, title, caution)
        return [save(figure, path), _save_csv(path, ("lr", "loss", "smoothed"), self._rows())]

    def text(self, format: str, files: Sequence[Path]) -> str:
        """The result in one of text, markdown, csv and json; `files` are those that were written beside it."""
        curve = self.curve
        if format == "json":
            fields = asdict(self)
            figures = fields.pop("curve")
            figures["lr"], figures["loss"] = figures.pop("lrs"), figures.pop("losses")
            figures["scatter"] = curve.scatter if math.isfinite(curve.scatter) else None
            return to_json({**fields, **figures, "caution": curve.caution, "files": list(map(str, files))})
        if format != "text":
            return render(("lr", "loss", "smoothed"), self._rows(), format)
        end = "the loss diverged there" if curve.stopped_early else curve.interrupted or "the highest asked for"
        if curve.caution is None:
            lines = [
                f"suggested learning rate: {curve.suggestion:.3g} (steepest fall of the loss)",
                f"a tenth of the rate at the lowest loss: {curve.minimum_tenth:.3g}",
            ]
        else:
            lines = [f"suggested learning rate: none; caution: {curve.caution}"]
        return "\n".join(
            [
                *lines,
                f"{len(curve.lrs)} rates from {curve.lrs[0]:.3g} to {curve.lrs[-1]:.3g} ({end}); "
                f"{self.model}, {self.optimizer}, batch {self.batch}",
                f"smoothed loss from {curve.smoothed[0]:.4g}, at its lowest {min(curve.smoothed):.4g}",
                f"weights restored: {'yes' if self.weights_restored else 'NO'} (digest {self.weights_digest[:12]})",
            ]
        )

    def _rows(self) -> list[list[Cell]]:
        return [list(row) for row in zip(self.curve.lrs, self.curve.losses, self.curve.smoothed, strict=True)]


def range_test(request: Request, low: float, high: float, steps: int, screen: Screen) -> RangeTest:
    """Train the request's network for some steps at rising rates, as `bench train` would, and restore its weights.

    Raises UsageError, ModelError, DataError: see `bench.runs.training.train`.
    """
    with opened(request, screen.say, World(), None) as run:
        training, recipe = run.training, run.recipe
        screen.say(
            f"range test: {steps} steps of {recipe.model}, batch {recipe.batch}, at rates from {low:g} to {high:g}"
        )
        source = training.sources.train(recipe.size_at(1) or recipe.size)
        before = checkpoint.digest(checkpoint.weights_of(training.raw))
        try:
            with lr_finder.restored(training.raw, training.optimizer), stop_requests() as asked:
                curve = lr_finder.find(
                    training.probe,
                    source,
                    low,
                    high,
                    steps,
                    watch=lambda done: screen.steps("range test", done, steps, tenths=True),
                    stop=asked,
                )
        finally:
            screen.clear()
        after = checkpoint.digest(checkpoint.weights_of(training.raw))
        return RangeTest(curve, recipe.model, recipe.optimizer, recipe.batch, before == after, after)


@dataclass(frozen=True)
class LrSchedule:
    """The rate of every step of a training; `lr` is the recipe's, before the schedule's factor."""

    name: str
    lr: float
    steps_per_epoch: int
    lrs: tuple[float, ...]

    @classmethod
    def from_request(cls, request: Request, say: Say) -> "LrSchedule":
        """The rates that the request's schedule will take with its images, or with as many as its data set has.

        Raises:
            UsageError: no images are named, and how many the recipe's data set has is not known.
            ModelError: an impossible schedule.
        """
        recipe = request.recipe
        if request.data:
            kept = len(split(open_folders(request.data), recipe, say).train)
        elif recipe.data in KNOWN:
            images = KNOWN[recipe.data].images[0]
            say(f"without --data: as many images as {recipe.data} has, {images:,}")
            kept = int(images - (recipe.holdout if recipe.holdout >= 1 else round(images * recipe.holdout)))
        else:
            raise UsageError("no data: the steps of an epoch follow from the number of images; name them with --data")
        batches = max(1, kept // recipe.batch)
        steps = max(1, batches // recipe.divide // recipe.accumulate)
        return cls(recipe.schedule, recipe.lr, steps, tuple(lr_series(recipe, steps)))

    def draw(self, path: Path) -> list[Path]:
        """Write the rates as a picture, and those of every step as CSV beside it.

        Raises RecordError: a file cannot be written.
        """
        per = self.steps_per_epoch
        figure = curves.schedule(self.lrs, "step", f"{self.name}, {per} steps an epoch")
        rows: list[list[Cell]] = [[i + 1, i // per + 1, lr] for i, lr in enumerate(self.lrs)]
        return [save(figure, path), _save_csv(path, ("step", "epoch", "lr"), rows)]

    def text(self, format: str) -> str:
        """First, last, lowest and highest rate of every epoch in one of text, markdown, csv and json."""
        headers, rows, per = ("epoch", "first", "last", "lowest", "highest"), list[list[Cell]](), self.steps_per_epoch
        for start in range(0, len(self.lrs), per):
            rates = self.lrs[start : start + per]
            rows.append([start // per + 1, rates[0], rates[-1], min(rates), max(rates)])
        if format != "json":
            return render(headers, rows, format)
        return to_json(
            {
                "schedule": self.name,
                "lr": self.lr,
                "steps_per_epoch": per,
                "steps": len(self.lrs),
                "epochs": [dict(zip(headers, row, strict=True)) for row in rows],
            }
        )


def _save_csv(picture: Path, headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Path:
    path = picture.with_suffix(".csv")
    write_whole(path, render(headers, list(rows), "csv").encode())
    return path
