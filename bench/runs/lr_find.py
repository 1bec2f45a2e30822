"""Learning rates before a training: the range test on a recipe's own images, and the rates its schedule will take."""

import csv
import io
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runs.request import Request
from bench.runs.sources import Say
from bench.runs.training import interruptible, opened
from models.training import checkpoint, lr_finder
from models.training.distributed import World
from models.training.lr_finder import LrCurve
from models.training.schedules import lr_series
from results.pictures import curves
from results.pictures.style import save
from results.store import write_whole
from results.tables import duration


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


class Progress:
    """What a range test shows on its way: a bar on a terminal, elsewhere a line every tenth with the time left."""

    def __init__(self, steps: int, say: Say) -> None:
        self._steps, self._say = steps, say
        self._begin = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from tqdm import tqdm

            self._bar = tqdm(total=steps, desc="range test", leave=False, unit="step")

    def step(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(1)
        elif 10 * done // self._steps > 10 * (done - 1) // self._steps and done < self._steps:
            left = (time.monotonic() - self._begin) / done * (self._steps - done)
            self._say(f"step {done} of {self._steps}, about {duration(left)} left")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def range_test(request: Request, low: float, high: float, steps: int, say: Say) -> RangeTest:
    """Train the request's network for some steps at rising rates, as `bench train` would, and put it back.

    Raises:
        UsageError, ModelError, DataError: see `bench.runs.training.train`.
    """
    with opened(request, say, World(), None) as run:
        training, recipe = run.training, run.recipe
        say(f"range test: {steps} steps of {recipe.model}, batch {recipe.batch}, at rates from {low:g} to {high:g}")
        source = training.sources.train(training.recipe.size_at(1) or training.recipe.size)
        before = checkpoint.digest(checkpoint.weights_of(training.raw))
        progress = Progress(steps, say)
        try:
            with lr_finder.restored(training.raw, training.optimizer), interruptible(run.world) as asked:
                curve = lr_finder.find(training.probe, source, low, high, steps, watch=progress.step, stop=asked)
        finally:
            progress.close()
        after = checkpoint.digest(checkpoint.weights_of(training.raw))
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
    return Series(recipe.schedule, steps, tuple(lr_series(recipe, steps)))


def draw_range_test(test: RangeTest, path: Path) -> list[Path]:
    """Write the curve as a picture, and as CSV beside it.

    Raises:
        RecordError: a file cannot be written.
    """
    curve = test.curve
    title = f"{test.model}, {test.optimizer}, batch {test.batch}"
    figure = curves.lr_finder(curve.lrs, curve.losses, curve.smoothed, curve.suggestion, title, _short_caution(curve))
    rows = zip(curve.lrs, curve.losses, curve.smoothed, strict=True)
    return [save(figure, path), _table(path, ("lr", "loss", "smoothed"), rows)]


def _short_caution(curve: LrCurve) -> str | None:
    """The caution without its advice, as a picture has room for."""
    return None if curve.caution is None else f"no rate suggested: {curve.caution.partition(';')[0]}"


def draw_series(found: Series, path: Path) -> list[Path]:
    """Write the rates as a picture, and those of every step as CSV beside it.

    Raises:
        RecordError: a file cannot be written.
    """
    per = found.steps_per_epoch
    figure = curves.schedule(found.lrs, "step", f"{found.name}, {per} steps an epoch")
    rows = ((i + 1, i // per + 1, lr) for i, lr in enumerate(found.lrs))
    return [save(figure, path), _table(path, ("step", "epoch", "lr"), rows)]


def _table(picture: Path, headers: tuple[str, ...], rows: object) -> Path:
    path = picture.with_suffix(".csv")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)  # type: ignore[arg-type]
    write_whole(path, text.getvalue().encode())
    return path
