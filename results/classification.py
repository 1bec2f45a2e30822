"""From a confusion matrix to accuracy, precision, recall and F1, as text and files.

Everywhere: rows are the true classes, columns the predicted ones.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from results.errors import RecordError
from results.store import read_text, write_whole
from results.tables import fixed, render, to_json

Matrix: TypeAlias = NDArray[np.int64]

CORNER = "true/predicted"
"""The first cell of a confusion CSV, above the names of the true classes."""


@dataclass(frozen=True)
class Score:
    """Precision TP/(TP+FP), recall TP/(TP+FN) and F1 = 2TP/(2TP+FP+FN) of one class, or means over the classes.

    `support` is how many images truly are of the class. A quotient of nothing by nothing is 0.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class Confused(NamedTuple):
    """How often one class was taken for another; `share` is of the images of the true class."""

    true: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class Classification:
    """The figures of one evaluation.

    `macro` is the plain mean over all classes, `weighted` the mean weighted by support. `undefined` says, a
    sentence each, which figures had nothing to divide by and stand as 0.
    """

    top1: float
    images: int
    classes: tuple[Score, ...]
    macro: Score
    weighted: Score
    undefined: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    top5: float | None = None
    loss: float | None = None
    seconds: float | None = None

    @classmethod
    def from_confusion(
        cls,
        confusion: ArrayLike,
        names: Sequence[str],
        top5: float | None = None,
        loss: float | None = None,
        seconds: float | None = None,
    ) -> Classification:
        """From counts [classes, classes] and class names in the same order.

        Raises RecordError for a matrix that is not square, not whole numbers from 0 up, empty, or of another
        size than `names`, and for a top5 below the top1 of the matrix.
        """
        matrix = checked(confusion, names)
        images = int(matrix.sum())
        if not images:
            raise RecordError("the confusion matrix counts no image; was anything evaluated?")
        right = matrix.diagonal().astype(np.float64)
        support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        precision, recall = _quotient(right, predicted), _quotient(right, support)
        f1 = _quotient(2 * right, support + predicted)
        top1 = float(right.sum() / images)
        if top5 is not None and not top1 - 1e-9 <= top5 <= 1:
            raise RecordError(f"top5 is {top5}, which is impossible with a top1 of {top1}; both are fractions")
        columns = np.stack([precision, recall, f1])
        undefined = [_undefined(n, "precision", "predicted") for n, p in zip(names, predicted, strict=True) if not p]
        undefined += [_undefined(n, "recall", "among the images") for n, s in zip(names, support, strict=True) if not s]
        return cls(
            top1=top1,
            images=images,
            classes=tuple(
                Score(name, float(p), float(r), float(f), int(s))
                for name, p, r, f, s in zip(names, precision, recall, f1, support, strict=True)
            ),
            macro=_mean("macro avg", columns.mean(axis=1), images),
            weighted=_mean("weighted avg", columns @ support / images, images),
            undefined=tuple(undefined),
            confusion=tuple(tuple(row) for row in matrix.tolist()),
            top5=top5,
            loss=loss,
            seconds=seconds,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(score.name for score in self.classes)

    def to_json(self) -> dict[str, Any]:
        """The form that `bench evaluate --format json` prints; `loss` and `seconds` only where known."""
        out: dict[str, Any] = {
            "top1": self.top1,
            "top5": self.top5,
            "images": self.images,
            "classes": [asdict(score) for score in self.classes],
            "confusion": [list(row) for row in self.confusion],
        }
        # JSON has no NaN; a loss that is none is left out rather than written as a number.
        extra = {"loss": self.loss, "seconds": self.seconds}
        return out | {key: x for key, x in extra.items() if x is not None and math.isfinite(x)}

    def text(self) -> str:
        """The report for reading: a line a class, accuracy, both means, then what was not defined."""
        width = max(len(name) for name in ("weighted avg", *self.names))
        digits = max(len("support"), len(str(self.images)))

        def row(name: str, cells: Sequence[str], support: int) -> str:
            return f"{name:>{width}}  " + "  ".join(f"{c:>9}" for c in cells) + f"  {support:>{digits}}"

        def score(s: Score) -> str:
            return row(s.name, [f"{x:.4f}" for x in (s.precision, s.recall, s.f1)], s.support)

        lines = [f"{'':>{width}}  {'precision':>9}  {'recall':>9}  {'f1-score':>9}  {'support':>{digits}}", ""]
        lines += [score(s) for s in self.classes]
        lines += ["", row("accuracy", ["", "", f"{self.top1:.4f}"], self.images), score(self.macro)]
        lines += [score(self.weighted), "", self.summary(), *self.undefined]
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """Accuracy in one line: "top1 64.81 % (6481 of 10000), top5 96.20 %, loss 1.0312"."""
        right = sum(row[i] for i, row in enumerate(self.confusion))
        said = [f"top1 {100 * self.top1:.2f} % ({right} of {self.images})"]
        said += [] if self.top5 is None else [f"top5 {100 * self.top5:.2f} %"]
        said += [] if self.loss is None else [f"loss {self.loss:.4f}"]
        if self.seconds is not None:
            rate = f" ({self.images / self.seconds:.0f} images/s)" if self.seconds > 0 else ""
            said.append(f"{fixed(self.seconds)} s{rate}")
        return ", ".join(said)

    def save(self, folder: Path | str, split: str = "") -> None:
        """Writes report.txt, evaluation.json, confusion.csv and confusion.txt, each whole or not at all.

        A `split` goes into the names: "train" gives report_train.txt and so on.
        """
        folder, tail = Path(folder), f"_{split}" if split else ""
        files = {
            f"report{tail}.txt": self.text(),
            f"evaluation{tail}.json": to_json(self.to_json()),
            f"confusion{tail}.csv": confusion_csv(self.confusion, self.names),
            f"confusion{tail}.txt": confusion_text(self.confusion, self.names),
        }
        for name, text in files.items():
            write_whole(folder / name, text.encode("utf-8", "backslashreplace"))


def checked(confusion: ArrayLike, names: Sequence[str]) -> Matrix:
    """The matrix as int64 [classes, classes].

    Raises RecordError unless it is square, of whole numbers from 0 up, and has a name for every class.
    """
    try:
        given = np.asarray(confusion)
    except ValueError as error:
        raise RecordError("the confusion matrix has rows of different lengths") from error
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size:
        shape = " x ".join(str(n) for n in given.shape)
        raise RecordError(f"the confusion matrix is {shape or 'a number'}; expected as many rows as columns")
    if len(names) != len(given):
        raise RecordError(f"{len(names)} class names for a confusion matrix of {len(given)} classes")
    try:
        matrix = given.astype(np.int64)
        exact = bool((matrix == given).all() and (matrix >= 0).all())
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise RecordError("the confusion matrix holds something other than whole numbers from 0 up")
    return matrix


def most_confused(confusion: ArrayLike, names: Sequence[str], count: int = 10) -> list[Confused]:
    """The pairs of classes taken for each other most often, most images first; fewer where fewer were wrong."""
    matrix = checked(confusion, names)
    support = matrix.sum(axis=1)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    # Stable: equal counts stay in the order of the classes, so that two reports of one matrix are the same.
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(i), len(matrix)) for i in order]
    return [
        Confused(names[t], names[p], int(wrong[t, p]), float(wrong[t, p] / support[t])) for t, p in pairs if wrong[t, p]
    ]


def confusion_csv(confusion: ArrayLike, names: Sequence[str]) -> str:
    """The matrix as CSV: a header of the class names, then a row a true class, its name first."""
    matrix = checked(confusion, names)
    rows = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
    return render([CORNER, *names], rows, "csv")


def read_confusion(path: Path | str) -> tuple[Matrix, tuple[str, ...]]:
    """Counts and class names from a CSV: `confusion_csv`'s, or a header of names above rows of numbers only.

    Raises RecordError with file and line for a cell that is no whole number, rows that do not fit the header,
    or row names that are not the header's.
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(read_text(path, "a confusion matrix")))
    numbered = [(reader.line_num, row) for row in reader if row]
    if len(numbered) < 2:
        raise RecordError(f"{path}: no matrix below the header; expected class names, then a row a class")
    header, body = numbered[0][1], numbered[1:]
    named = len(header) == len(body) + 1
    names = tuple(header[1:] if named else header)
    rows: list[list[int]] = []
    for i, (line, row) in enumerate(body):
        if len(row) != len(header):
            raise RecordError(f"{path}, line {line}: {len(row)} cells where the header has {len(header)}")
        if named and row[0] != names[i]:
            raise RecordError(f"{path}, line {line}: row of {row[0]!r} where the header's order has {names[i]!r}")
        try:
            rows.append([int(cell) for cell in row[named:]])
        except ValueError as error:
            raise RecordError(f"{path}, line {line}: {error}; expected whole numbers") from error
    try:
        return checked(rows, names), names
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def confusion_text(confusion: ArrayLike, names: Sequence[str], count: int = 10) -> str:
    """The matrix aligned, its columns by the numbers that stand before the rows, and the pairs most confused."""
    matrix = checked(confusion, names)
    right, images = int(matrix.trace()), int(matrix.sum())
    cell = max(len(str(matrix.max())), len(str(len(names) - 1)))
    number, name = len(str(len(names) - 1)), max(len(n) for n in names)
    lines = ["rows: true class, columns: predicted class", ""]
    lines.append(" " * (number + 1 + name) + "".join(f"  {i:>{cell}}" for i in range(len(names))))
    for i, row in enumerate(matrix.tolist()):
        lines.append(f"{i:>{number}} {names[i]:<{name}}" + "".join(f"  {x:>{cell}}" for x in row))
    share = f" = {100 * right / images:.2f} %" if images else ""
    lines += ["", f"accuracy: {right} of {images}{share}"]
    pairs = most_confused(matrix, names, count)
    if pairs:
        lines += ["", "most confused:"]
        table = [[p.true, "taken for", p.predicted, p.images, f"{100 * p.share:.1f} % of {p.true}"] for p in pairs]
        widths = [max(len(str(row[i])) for row in table) for i in range(4)]
        for a, b, c, n, of in table:
            lines.append(f"  {a:<{widths[0]}} {b} {c:<{widths[2]}}  {n:>{widths[3]}}  ({of})")
    return "\n".join(lines) + "\n"


def _quotient(part: NDArray[np.float64], whole: Matrix) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _mean(name: str, figures: NDArray[np.float64], images: int) -> Score:
    precision, recall, f1 = figures.tolist()
    return Score(name, precision, recall, f1, images)


def _undefined(name: str, figure: str, what: str) -> str:
    return f"{figure} of {name} is not defined and stands as 0: it was never {what}."
