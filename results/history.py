"""What a training did, epoch by epoch and step by step: rows, their files, and one line for a log.

Seconds, images and fractions, as measured; percent only for readers. A CSV read back gives the rows
that were written, bit for bit.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from results.errors import RecordError
from results.store import GrowingFile, read_text, write_whole
from results.tables import Cell, duration, percent, plural, quantity, render


@dataclass(frozen=True)
class Epoch:
    """One epoch. `epoch` counts from 1; `lr` is the one of its last step; `size` is the side of its images.

    Accuracies are fractions. The `val_` figures are None where the epoch was not evaluated, and are those of the
    test set in a run that holds nothing out. `seconds` is the wall time of the whole epoch, evaluation
    included, of which `loader_seconds` were spent waiting for batches, `step_seconds` in training steps and
    `evaluation_seconds` in evaluation. `images` were trained on, at `images_per_second`, the evaluation's time
    not counted.

    Raises RecordError for an epoch below 1 or an accuracy outside 0..1.
    """

    epoch: int
    lr: float
    size: int
    train_loss: float
    train_top1: float
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    images: int
    seconds: float
    loader_seconds: float
    step_seconds: float
    evaluation_seconds: float
    images_per_second: float
    batch: int

    def __post_init__(self) -> None:
        _plain(self)
        _check_row(self, "epoch", ("train_top1", "val_top1", "val_top5"))


@dataclass(frozen=True)
class Step:
    """One training step. `step` counts from 1 over the whole run; `top1` is the fraction of its own batch.

    Raises RecordError for a step or epoch below 1 or an accuracy outside 0..1.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    top1: float

    def __post_init__(self) -> None:
        _plain(self)
        _check_row(self, "step", ("top1",))
        _check_row(self, "epoch", ())


@dataclass(frozen=True)
class Totals:
    """Sums over epochs, and the rates that follow from them (None where nothing was timed)."""

    epochs: int
    images: int
    seconds: float
    loader_seconds: float
    step_seconds: float
    evaluation_seconds: float

    @property
    def seconds_per_epoch(self) -> float | None:
        return self.seconds / self.epochs if self.epochs else None

    @property
    def images_per_second(self) -> float | None:
        """Training images a second, the evaluation's time not counted."""
        seconds = self.seconds - self.evaluation_seconds
        return self.images / seconds if seconds > 0 else None


class History:
    """The rows of one run in order. `steps` may be empty: they are many, and most readers need none."""

    def __init__(self, epochs: Iterable[Epoch] = (), steps: Iterable[Step] = ()) -> None:
        self.epochs: list[Epoch] = []
        self.steps: list[Step] = []
        for epoch in epochs:
            self.append(epoch)
        for step in steps:
            self.append(step)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and (self.epochs, self.steps) == (other.epochs, other.steps)

    def append(self, row: Epoch | Step) -> None:
        """Adds a row. Raises RecordError for an epoch that is not the next one or a step that is not later."""
        if isinstance(row, Epoch):
            expected = self.epochs[-1].epoch + 1 if self.epochs else row.epoch
            if row.epoch != expected:
                raise RecordError(f"epoch {row.epoch} cannot follow epoch {expected - 1}")
            self.epochs.append(row)
        else:
            if self.steps and row.step <= self.steps[-1].step:
                raise RecordError(f"step {row.step} cannot follow step {self.steps[-1].step}")
            self.steps.append(row)

    @property
    def best(self) -> Epoch | None:
        """The epoch with the highest validation accuracy, the earliest of equals; None where none has one."""
        rated = [e for e in self.epochs if e.val_top1 is not None and not math.isnan(e.val_top1)]
        return max(rated, key=lambda e: e.val_top1 or 0.0) if rated else None

    @property
    def totals(self) -> Totals:
        def total(name: str) -> float:
            return math.fsum(getattr(e, name) for e in self.epochs)

        return Totals(
            epochs=len(self.epochs),
            images=sum(e.images for e in self.epochs),
            seconds=total("seconds"),
            loader_seconds=total("loader_seconds"),
            step_seconds=total("step_seconds"),
            evaluation_seconds=total("evaluation_seconds"),
        )

    def save(self, path: Path | str) -> None:
        """Writes the epochs as CSV, the whole file or nothing. Raises RecordError when it cannot."""
        write_whole(Path(path), render(_names(Epoch), [_cells(e) for e in self.epochs], "csv").encode())

    @classmethod
    def load(cls, path: Path | str, steps: Path | str | None = None) -> History:
        """Reads what `save` wrote, and the steps of a `StepLog` if a file of them is named.

        Raises RecordError with file and line: unknown or missing columns, a cell that is no number, rows out
        of order.
        """
        rows = _read(Path(path), Epoch)
        try:
            return cls(rows, () if steps is None else load_steps(steps))
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error

    def save_texts(self, folder: Path | str) -> None:
        """Four files of one number a line, an epoch a line, as `numpy.loadtxt` reads them.

        `train_loss_history.txt`, `train_acc_history.txt`, `test_loss_history.txt`, `test_acc_history.txt`;
        accuracies are fractions, the test files hold the validation figures, an epoch without them is nan.
        """
        columns: dict[str, list[float | None]] = {
            "train_loss": [e.train_loss for e in self.epochs],
            "train_acc": [e.train_top1 for e in self.epochs],
            "test_loss": [e.val_loss for e in self.epochs],
            "test_acc": [e.val_top1 for e in self.epochs],
        }
        for name, numbers in columns.items():
            text = "".join(f"{math.nan if x is None else x:.18e}\n" for x in numbers)
            write_whole(Path(folder) / f"{name}_history.txt", text.encode())

    def log(self) -> str:
        """The run as a markdown table, a row an epoch, and the totals below it."""
        best = self.best
        rows: list[list[Cell]] = []
        for e in self.epochs:
            row: list[Cell] = [e.epoch, f"{e.lr:.4g}", _loss(e.train_loss), _percent(e.train_top1)]
            row += [_loss(e.val_loss), _percent(e.val_top1), _percent(e.val_top5), f"{e.images_per_second:.0f}"]
            row += [f"{x:.1f}" for x in (e.seconds, e.loader_seconds, e.step_seconds, e.evaluation_seconds)]
            rows.append([*row, "best" if e is best else ""])
        return f"{render(_LOG_COLUMNS, rows, 'markdown')}\n{totals_line(self.totals)}\n"

    def save_log(self, path: Path | str) -> None:
        """Writes `log` to a file, usually `log.md`."""
        write_whole(Path(path), self.log().encode())


_LOG_COLUMNS = (
    *("epoch", "lr", "train loss", "train acc %", "val loss", "val top1 %", "val top5 %"),
    *("images/s", "seconds", "loader s", "step s", "evaluation s", "best"),
)


def line(epoch: Epoch, epochs: int, best: Epoch | None = None) -> str:
    """One epoch in one line, for logs and for screens that are no terminal.

    `epochs` is how many the run has, `best` its best epoch so far, this one included.
    """
    pieces = [
        f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}",
        f"lr {epoch.lr:.4g}",
        f"train loss {_loss(epoch.train_loss)} top1 {_percent(epoch.train_top1)} %",
    ]
    if epoch.val_top1 is not None or epoch.val_loss is not None:
        top5 = "" if epoch.val_top5 is None else f" top5 {_percent(epoch.val_top5)} %"
        pieces.append(f"val loss {_loss(epoch.val_loss)} top1 {_percent(epoch.val_top1)} %{top5}")
    pieces += [quantity(epoch.images_per_second, "images/s"), f"{duration(epoch.seconds)}{_shares(epoch)}"]
    if best is not None:
        pieces.append("best" if best.epoch == epoch.epoch else f"best {_percent(best.val_top1)} % at {best.epoch}")
    return "  ".join(pieces)


def totals_line(totals: Totals) -> str:
    """The sums of a run in one sentence."""
    if not totals.epochs:
        return "No epoch was finished."
    return (
        f"{plural(totals.epochs, 'epoch')} in {duration(totals.seconds)}, "
        f"{duration(totals.seconds_per_epoch or 0.0)} an epoch{_shares(totals)}; "
        f"{totals.images} images, {quantity(totals.images_per_second, 'images/s')} in training."
    )


def _shares(times: Epoch | Totals) -> str:
    """ " (step 75 %, loader 10 %, evaluation 15 %)" of the wall time; "" where nothing was timed."""
    if times.seconds <= 0:
        return ""
    parts = {"step": times.step_seconds, "loader": times.loader_seconds, "evaluation": times.evaluation_seconds}
    return f" ({', '.join(f'{name} {percent(seconds / times.seconds)}' for name, seconds in parts.items())})"


class StepLog(GrowingFile):
    """A CSV of steps that grows while a training runs.

    Rows wait in memory until `flush`, which puts them on the disk: a kill loses the rows since then and may
    break the last line, which `load_steps` and the next StepLog leave out.
    """

    def __init__(self, path: Path | str, after: int = 0) -> None:
        """Opens `path`, keeping its rows up to step `after`: 0 starts anew, the step resumed from goes on.

        Raises RecordError for a file that is no such CSV or a place that cannot be written.
        """
        path = Path(path)
        kept = [s for s in load_steps(path) if s.step <= after] if after and path.exists() else []
        self._last = kept[-1].step if kept else after
        write_whole(path, render(_names(Step), [_cells(s) for s in kept], "csv").encode())
        self._waiting: list[Step] = []
        super().__init__(path)
        self._writer = csv.writer(self._file, lineterminator="\n")

    def append(self, step: Step) -> None:
        """Adds a row; raises RecordError for a step that is not later than the last."""
        if step.step <= self._last:
            raise RecordError(f"{self._path}: step {step.step} cannot follow step {self._last}")
        self._last = step.step
        self._waiting.append(step)

    def flush(self) -> None:
        with self._writing():
            self._writer.writerows(_cells(s) for s in self._waiting)
            self._waiting.clear()
        super().flush()


def load_steps(path: Path | str) -> list[Step]:
    """The rows of a StepLog; a last line without its line end was cut off and is left out.

    Raises RecordError with file and line for anything else that is no row.
    """
    return _read(Path(path), Step, growing=True)


_Row = TypeVar("_Row", Epoch, Step)

_TYPES: dict[type, dict[str, object]] = {kind: get_type_hints(kind) for kind in (Epoch, Step)}
_PARSERS: dict[object, Callable[[str], int | float | None]] = {
    int: int,
    float: float,
    float | None: lambda cell: float(cell) if cell else None,
}


def _read(path: Path, kind: type[_Row], growing: bool = False) -> list[_Row]:
    text = read_text(path, "a history")
    if growing:
        text = text[: text.rfind("\n") + 1]
    reader = csv.reader(io.StringIO(text))
    names = _names(kind)
    header = next(reader, [])
    for name in header:
        if name not in names:
            raise RecordError(f"{path}: unknown column {name!r}; known: {', '.join(names)}")
    missing = [name for name in names if name not in header]
    if missing or len(header) != len(names):
        raise RecordError(f"{path}: columns missing or repeated ({', '.join(missing) or 'repeated'}); was it cut off?")
    parsers = {name: _PARSERS[hint] for name, hint in _TYPES[kind].items()}
    rows: list[_Row] = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise RecordError(f"{where}: {len(cells)} cells where the header has {len(header)}; was it cut off?")
        values: dict[str, Any] = {}
        for name, cell in zip(header, cells, strict=True):
            try:
                values[name] = parsers[name](cell)
            except ValueError as error:
                raise RecordError(f"{where}: {name} is {cell!r}, which is no number") from error
        try:
            rows.append(kind(**values))
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from error
    return rows


def _plain(row: Epoch | Step) -> None:
    # A float32 or an array's scalar would be written with fewer digits, or as a call, and not come back the same.
    for name, hint in _TYPES[type(row)].items():
        value = getattr(row, name)
        if value is not None:
            object.__setattr__(row, name, int(value) if hint is int else float(value))


def _check_row(row: Epoch | Step, count: str, fractions: Sequence[str]) -> None:
    if getattr(row, count) < 1:
        raise RecordError(f"{count} {getattr(row, count)}: {count}s count from 1")
    for name in fractions:
        x = getattr(row, name)
        if x is not None and not math.isnan(x) and not 0 <= x <= 1:
            raise RecordError(f"{name} is {x}; accuracies are fractions from 0 to 1")


def _names(kind: type[Epoch] | type[Step]) -> list[str]:
    return list(_TYPES[kind])


def _cells(row: Epoch | Step) -> list[Cell]:
    return [getattr(row, name) for name in _names(type(row))]


def _loss(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.2f}"
