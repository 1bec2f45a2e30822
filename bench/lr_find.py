"""Learning rates before a training: the range test on a recipe's own images, and the rates its schedule will take."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from bench.sources import Say
from bench.training import Request, opened
from models.training import checkpoint, lr_finder
from models.training.distributed import World
from models.training.loop import schedule_options
from models.training.lr_finder import LrCurve
from models.training.schedules import lr_series
from results import plots
from results.store import write_whole


@dataclass(frozen=True)
class RangeTest:
    """A range test and whether it left the network as it was.

    Attributes:
        before, after: digests of all weights and buffers.
    """

    curve: LrCurve
    model: str
    batch: int
    optimizer: str
    before: str
    after: str

    @property
    def restored(self) -> bool:
        return self.before == self.after


def range_test(request: Request, low: float, high: float, steps: int, say: Say) -> RangeTest:
    """Train the request's network for some steps at rising rates, as `bench train` would, and put it back.

    Raises:
        UsageError, ModelError, DataError: see `bench.training.train`.
    """
    with opened(request, say, World(), None) as run:
        training = run.training
        source = training.sources.train(training.recipe.size_at(1) or training.recipe.size)
        before = checkpoint.digest(checkpoint.weights_of(training.raw))
        with lr_finder.restored(training.raw, training.optimizer):
            curve = lr_finder.find(training.probe, source, low, high, steps)
        after = checkpoint.digest(checkpoint.weights_of(training.raw))
        recipe = training.recipe
        return RangeTest(curve, recipe.model, recipe.batch, recipe.optimizer, before, after)


@dataclass(frozen=True)
class Series:
    """The rate of every step of a training."""

    name: str
    steps_per_epoch: int
    lrs: tuple[float, ...]

    def epochs(self) -> list[tuple[int, float, float, float, float]]:
        """For every epoch from 1 its number, first, last, lowest and highest rate."""
        found = []
        for epoch in range(math.ceil(len(self.lrs) / self.steps_per_epoch)):
            rates = self.lrs[epoch * self.steps_per_epoch : (epoch + 1) * self.steps_per_epoch]
            found.append((epoch + 1, rates[0], rates[-1], min(rates), max(rates)))
        return found


def series(request: Request, images: int) -> Series:
    """The rates the request's schedule will take with so many training images.

    Raises:
        ModelError: an impossible schedule.
    """
    recipe = request.recipe
    kept = images - (recipe.holdout if recipe.holdout >= 1 else round(images * recipe.holdout))
    batches = max(1, int(kept) // recipe.batch)
    steps = max(1, batches // recipe.divide // recipe.accumulate)
    return Series(recipe.schedule, steps, tuple(lr_series(schedule_options(recipe), recipe.lr, steps)))


def draw_range_test(test: RangeTest, path: Path) -> list[Path]:
    """Write the curve as a picture, and as CSV beside it.

    Raises:
        RecordError: a file cannot be written.
    """
    curve = test.curve
    title = f"{test.model}, {test.optimizer}, batch {test.batch}"
    figure = plots.lr_finder(curve.lrs, curve.losses, curve.smoothed, curve.suggestion, title)
    rows = zip(curve.lrs, curve.losses, curve.smoothed, strict=True)
    return [plots.save(figure, path), _table(path, ("lr", "loss", "smoothed"), rows)]


def draw_series(found: Series, path: Path) -> list[Path]:
    """Write the rates as a picture, and those of every step as CSV beside it.

    Raises:
        RecordError: a file cannot be written.
    """
    per = found.steps_per_epoch
    figure = plots.schedule(found.lrs, "step", f"{found.name}, {per} steps an epoch")
    rows = ((i + 1, i // per + 1, lr) for i, lr in enumerate(found.lrs))
    return [plots.save(figure, path), _table(path, ("step", "epoch", "lr"), rows)]


def _table(picture: Path, headers: tuple[str, ...], rows: object) -> Path:
    path = picture.with_suffix(".csv")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)  # type: ignore[arg-type]
    write_whole(path, text.getvalue().encode())
    return path
