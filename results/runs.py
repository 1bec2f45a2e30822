"""Figures of training runs, beside each other and beside what others published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from results.errors import RecordError
from results.reading import Amount, Count, Fraction, check, did_you_mean, read
from results.record import plain
from results.store import Skipped, list_folders, read_json, write_whole
from results.tables import Cell, Footnotes, duration, fixed, notes, page, render, time_unit, to_json, unit_for

FILE = "summary.json"
"""The file of a run's folder that holds its summary."""

SCHEMA = 1
Status = Literal["finished", "stopped", "failed"]
Evaluated = Literal["val", "test", "held-out"]


@dataclass(frozen=True)
class Published:
    """What someone else reported for such a run: accuracies as fractions, seconds of training.

    `top1` is the last epoch's and `top1_best` the best's; `defects` are what makes the figures hard to compare.
    """

    study: str | int | None = None
    top1: Fraction | None = None
    top1_best: Fraction | None = None
    epochs: Count | None = None
    seconds: Amount | None = None
    hardware: str | None = None
    source: str | None = None
    defects: tuple[str, ...] = ()
    note: str | None = None

    def __post_init__(self) -> None:
        check(self)

    def text(self) -> str:
        """What a reader must know beside the figure, in one line."""
        took = [] if self.epochs is None else [f"{self.epochs} epochs"]
        took += [] if self.seconds is None else [f"in {duration(self.seconds)}"]
        took += [] if self.hardware is None else [f"on {self.hardware}"]
        pieces = [f"published (study {self.study})" if self.study is not None else "published"]
        pieces[0] += f": {' '.join(took)}" if took else ""
        pieces += [f"defect: {text}" for text in self.defects]
        pieces += [text for text in (self.note, self.source and f"source {self.source}") if text]
        return "; ".join(pieces)


@dataclass(frozen=True)
class RunSummary:
    """One run's figures in seconds, bytes and fractions; None where there is none, with the reason in `missing`.

    `top1` and `top5` are of the test set, with the weights that the run ended with; `best_top1` is the best
    epoch's, of the data named in `evaluated`: "val" (held out for validation) or "test"; with "held-out" there was no
    test set, and all figures are of the training images that were held out. `train_seconds` is the
    wall time of all epochs. `inference_warm_seconds` is a median, low and high the bounds of its 95 % interval;
    they are absent in old files. `weight_bytes` counts the parameters alone, `checkpoint_bytes` a full checkpoint with
    the optimizer's state; `params` are single numbers, `state_entries` the entries of the state dictionary.
    `test_images_trained_on` are images behind `top1` that are training images too, None in files of earlier versions;
    `test_fingerprint` is the same for the same images with the same labels. `status` is "finished", "stopped" (by hand
    or by a limit) or "failed", the last two with `reason`.
    """

    name: str
    model: str
    data: str
    recipe: str
    evaluated: Evaluated
    status: Status
    epochs: Count
    top1: Fraction | None = None
    top5: Fraction | None = None
    best_top1: Fraction | None = None
    best_epoch: Count | None = None
    train_seconds: Amount | None = None
    seconds_per_epoch: Amount | None = None
    images_per_second: Amount | None = None
    inference_cold_seconds: Amount | None = None
    inference_warm_seconds: Amount | None = None
    inference_warm_low_seconds: Amount | None = None
    inference_warm_high_seconds: Amount | None = None
    params: Count | None = None
    parameter_tensors: Count | None = None
    state_entries: Count | None = None
    weight_bytes: Count | None = None
    checkpoint_bytes: Count | None = None
    peak_bytes: Count | None = None
    test_images_trained_on: Count | None = None
    test_fingerprint: str | None = None
    reason: str | None = None
    published: Published | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"run {self.name!r}"
        check(self)
        if self.status != "finished" and not self.reason:
            raise RecordError(f"{where}: a run with status {self.status!r} needs a reason")
        for key in self.missing:
            if key not in _OPTIONAL:
                raise RecordError(
                    f"{where}: missing names {key!r}{did_you_mean(key, _OPTIONAL)}, which is not a figure of a run"
                )
            if getattr(self, key) is not None:
                raise RecordError(f"{where}: {key} has a value and a reason why it is missing")

    @property
    def warm_interval(self) -> tuple[float, float] | None:
        """Bounds of the warm inference time in seconds."""
        low, high = self.inference_warm_low_seconds, self.inference_warm_high_seconds
        return None if low is None or high is None else (low, high)

    @property
    def generated(self) -> bool:
        """Whether its images were made by `bench data make`, whatever set their layout is that of."""
        return self.data.startswith("generated ")

    @property
    def difference(self) -> float | None:
        """Published top1 minus ours: above 0 the published run was better.

        Where only the best epoch's accuracy was published, it stands against our best epoch's.
        """
        if self.published is None:
            return None
        for theirs, ours in ((self.published.top1, self.top1), (self.published.top1_best, self.best_top1)):
            if theirs is not None and ours is not None:
                return theirs - ours
        return None

    def why(self, name: str) -> str:
        """Why the figure `name` is not there."""
        return self.missing.get(name) or (f"the run {self.status}: {self.reason}" if self.reason else "not measured")

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **plain(self)}

    @classmethod
    def from_json(cls, data: Any, where: str = "summary") -> RunSummary:
        """Raises RecordError on unknown, absent or mistyped keys and on another schema."""
        if not isinstance(data, dict):
            raise RecordError(f"{where}: expected an object; is it a run's {FILE}?")
        if data.get("schema") != SCHEMA:
            raise RecordError(f"{where}: schema {data.get('schema')!r}; this version reads {SCHEMA}")
        return read(cls, data, where, ignore=("schema",))

    def save(self, folder: Path | str) -> Path:
        """Writes `summary.json` into the run's folder, the whole file or nothing, and returns its path."""
        path = Path(folder) / FILE
        write_whole(path, to_json(self.to_json()).encode())
        return path

    @classmethod
    def load(cls, path: Path | str) -> RunSummary:
        """From a run's folder or from the file in it. Raises RecordError: what is wrong, where, what to do."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        return cls.from_json(read_json(path), str(path))


def list_runs(folder: Path | str = "runs") -> tuple[list[RunSummary], list[Skipped]]:
    """The summaries of every folder in `folder`, by name, and the folders without a usable one with the reason.

    A folder that does not exist holds no runs. Raises RecordError when it cannot be read.
    """
    found: list[RunSummary] = []
    skipped: list[Skipped] = []
    for place in list_folders(folder):
        if not (place / FILE).exists():
            skipped.append(Skipped(place, f"no {FILE}: not a run, or one that is under way or was killed"))
            continue
        try:
            found.append(RunSummary.load(place))
        except RecordError as error:
            skipped.append(Skipped(place, str(error)))
    return found, skipped


class _Column(NamedTuple):
    """One column: its name in csv and json, its header, its unit ("" for text), how to read and rank it.

    One that is `theirs` is not shown where no run has a published figure.
    """

    name: str
    header: str
    unit: str
    read: Callable[[RunSummary], Cell]
    descending: bool = False
    theirs: bool = False


def _own(name: str, header: str, unit: str, descending: bool = False) -> _Column:
    return _Column(name, header, unit, lambda run: getattr(run, name), descending)


def _theirs(name: str, header: str, unit: str, descending: bool = False) -> _Column:
    return _Column(
        f"published_{name}",
        header,
        unit,
        lambda run: None if run.published is None else getattr(run.published, name),
        descending,
        theirs=True,
    )


_NAME = _own("name", "run", "")
_PARAMS = _own("params", "parameters", "parameters")
_WEIGHTS = _own("weight_bytes", "weights\nonly", "bytes")
_CHECKPOINT = _own("checkpoint_bytes", "full\ncheckpoint", "bytes")

_ACCURACY = (
    _own("model", "model", ""),
    _own("data", "data", ""),
    _own("evaluated", "best\non", ""),
    _own("epochs", "epochs", "count"),
    _own("top1", "top1", "1", descending=True),
    _theirs("top1", "published\ntop1", "1", descending=True),
    _Column("difference", "published\n- ours", "points", lambda run: run.difference, theirs=True),
    _own("best_top1", "best\ntop1", "1", descending=True),
    _own("best_epoch", "at\nepoch", "count"),
    _theirs("top1_best", "published\nbest", "1", descending=True),
    _own("top5", "top5", "1", descending=True),
    _own("status", "status", ""),
)
_COST = (
    _own("train_seconds", "training", "s"),
    _theirs("seconds", "published\ntraining", "s"),
    _own("seconds_per_epoch", "an\nepoch", "s"),
    _own("images_per_second", "training", "images/s", descending=True),
    _own("inference_cold_seconds", "inference\ncold", "s"),
    _own("inference_warm_seconds", "inference\nwarm", "s"),
    _PARAMS,
    _WEIGHTS,
    _CHECKPOINT,
    _own("peak_bytes", "peak\nmemory", "bytes"),
)
_SIZES = (
    _own("model", "model", ""),
    _PARAMS,
    _own("parameter_tensors", "parameter\ntensors", "count"),
    _own("state_entries", "state\nentries", "count"),
    _WEIGHTS,
    _CHECKPOINT,
)
_UNSHOWN = (
    _own("recipe", "recipe", ""),
    _own("reason", "reason", ""),
    _own("test_images_trained_on", "trained on\ntest images", "count"),
    _own("test_fingerprint", "test\nimages", ""),
    _own("inference_warm_low_seconds", "warm\nlow", "s"),
    _own("inference_warm_high_seconds", "warm\nhigh", "s"),
    _theirs("study", "published\nstudy", ""),
    _theirs("epochs", "published\nepochs", "count"),
    _theirs("hardware", "published\nhardware", ""),
)
"""What only csv and json carry; a reader has it in the notes."""
_OF_IMAGES = ("test_images_trained_on", "test_fingerprint")
_BOUNDS = ("inference_warm_low_seconds", "inference_warm_high_seconds")
"""Absent from files that were written before they were kept; that is no figure to explain."""
_COLUMNS = {column.name: column for column in (_NAME, *_ACCURACY, *_COST, *_SIZES, *_UNSHOWN)}

SORTS = tuple(_COLUMNS)
"""What `table` sorts by: the best first, missing last."""


def ranked(summaries: Iterable[RunSummary], sort: str = "top1") -> list[RunSummary]:
    """The runs, best first by one of `SORTS` and those without the figure last; equals by name.

    Raises RecordError for another key.
    """
    if sort not in _COLUMNS:
        raise RecordError(f"cannot sort by {sort!r}{did_you_mean(sort, _COLUMNS)}; known: {', '.join(_COLUMNS)}")
    column = _COLUMNS[sort]
    runs = sorted(summaries, key=lambda run: run.name)
    known = [run for run in runs if column.read(run) is not None]
    # A study may be a name in one run and a number in another; those two do not order by themselves.
    numeric = all(isinstance(column.read(run), (int, float)) for run in known)
    key: Callable[[RunSummary], Any] = column.read if numeric else lambda run: str(column.read(run))
    known.sort(key=key, reverse=column.descending)
    return known + [run for run in runs if column.read(run) is None]


def table(summaries: Sequence[RunSummary], format: str = "text", sort: str = "top1") -> str:
    """Runs ranked beside each other and beside published figures.

    As text two tables that a screen holds, accuracy and cost; as markdown one; csv and json hold raw numbers
    under the fields' names, an empty cell (null) for a missing one and the reasons under `missing`. Text and
    markdown show a missing figure as a dash with the number of the reason below. Raises RecordError on an
    unknown format or sort.
    """
    runs = ranked(summaries, sort)
    if format in ("csv", "json"):
        return _raw(runs, format)
    footnotes = Footnotes()
    groups = [_varying(runs), _COST] if format == "text" else [(*_ACCURACY, *_COST)]
    tables = [_shown(runs, group, format, footnotes) for group in groups]
    return page(*tables, notes([*_shared(runs, format), *footnotes.lines()], format))


def size_table(summaries: Sequence[RunSummary], format: str = "text") -> str:
    """Sizes as text or markdown, fewest parameters first: the bytes of weights alone and of a full checkpoint apart."""
    footnotes = Footnotes()
    sizes = _shown(ranked(summaries, "params"), _SIZES, format, footnotes)
    return page(sizes, notes(footnotes.lines(), format))


def compare(summaries: Sequence[RunSummary], format: str = "text", sort: str = "top1") -> str:
    """`table` and `size_table` below one another; csv is one table, json has it under "runs"."""
    if format == "json":
        return to_json({"runs": json.loads(table(summaries, format, sort))})
    if format == "csv":
        return table(summaries, format, sort)
    return page(table(summaries, format, sort), size_table(summaries, format))


def _raw(runs: Sequence[RunSummary], format: str) -> str:
    columns = _COLUMNS.values()
    rows: list[list[Cell]] = []
    for i, run in enumerate(runs):
        absent: dict[str, list[str]] = {}
        for column in columns:
            if column.read(run) is None and column.name in _OPTIONAL and column.name not in _BOUNDS:
                absent.setdefault(run.why(column.name), []).append(column.name)
        reasons = "; ".join(f"{', '.join(names)}: {why}" for why, names in absent.items())
        rows.append([i + 1, *(column.read(run) for column in columns), reasons or None])
    return render(["rank", *_COLUMNS, "missing"], rows, format)


def _varying(runs: Sequence[RunSummary]) -> list[_Column]:
    """The columns of the accuracy table less those that are the same for every run; `_shared` says it once."""
    same = {name for name in ("data", "evaluated") if len({getattr(run, name) for run in runs}) == 1}
    return [column for column in _ACCURACY if column.name not in same]


def _shared(runs: Sequence[RunSummary], format: str) -> list[str]:
    seen = [f"{run.name} ({run.test_images_trained_on:,})" for run in runs if run.test_images_trained_on]
    made = sorted({run.data for run in runs if run.generated and run.published is not None})
    return [
        *_sets(runs, format),
        *([f"Trained on test images, so too good: {', '.join(seen)}."] if seen else []),
        *([f"Published figures are of real images, and say nothing of {', '.join(made)}."] if made else []),
    ]


def _sets(runs: Sequence[RunSummary], format: str) -> list[str]:
    data, evaluated = {run.data for run in runs}, {run.evaluated for run in runs}
    prints = {run.test_fingerprint for run in runs}
    # Names of folders tell data apart only where nobody looked at the images, or every seed holds out its own.
    if len(data if None in prints or "held-out" in evaluated else prints) > 1:
        return ["Accuracies on different data are not comparable."]
    if len(evaluated) > 1:
        return ["top1 and top5 are on the test set for all runs; the best top1 on val and on test are not comparable."]
    return [_SETS[evaluated.pop()].format(data.pop())] if runs and format == "text" else []


_SETS: dict[str, str] = {
    "val": "top1 and top5 are on the test set of {}, the best top1 is on images held out for validation.",
    "test": "Accuracies are on the test set of {}.",
    "held-out": "Accuracies are on held-out training images of {}, which has no others.",
}


def _shown(runs: Sequence[RunSummary], columns: Sequence[_Column], format: str, footnotes: Footnotes) -> str:
    # Two lines of header a column are what keeps ten columns on a screen; markdown has no second line.
    joint = "\n" if format == "text" else " "
    shown = [c for c in columns if not c.theirs or any(c.read(run) is not None for run in runs)]
    headers, factors = ["rank", _NAME.header], []
    for column in shown:
        factor, unit = _unit(column.unit, [x for run in runs if isinstance(x := column.read(run), (int, float))])
        headers.append(column.header.replace("\n", joint) + (f"{joint}[{unit}]" if unit else ""))
        factors.append(factor)
    rows: list[list[Cell]] = []
    for i, run in enumerate(runs):
        cells = [_cell(run, column, factor, footnotes) for column, factor in zip(shown, factors, strict=True)]
        rows.append([i + 1, run.name, *cells])
    return render(headers, rows, format)


def _unit(unit: str, numbers: Sequence[int | float]) -> tuple[float, str]:
    if unit in ("", "count"):
        return 1.0, ""
    if unit in ("1", "points"):
        return 0.01, "%" if unit == "1" else unit
    return time_unit(numbers) if unit == "s" else unit_for(numbers, unit)


def _cell(run: RunSummary, column: _Column, factor: float, footnotes: Footnotes) -> Cell:
    x = column.read(run)
    if x is None:
        # No published figure is the usual case and needs no reason.
        if column.name in _OPTIONAL:
            return f"-{footnotes.mark(run.why(column.name))}"
        if column.name == "difference" and run.published is not None and run.top1 is None:
            return f"-{footnotes.mark(run.why('top1'))}"
        return "-"
    if isinstance(x, str):
        return x + footnotes.mark(run.reason if column.name == "status" else None)
    if column.unit == "points":
        return f"{x / factor:+.2f}"
    if column.unit == "1":
        published = run.published if column.theirs else None
        return f"{x / factor:.2f}" + footnotes.mark(published.text() if published else None)
    if column.unit == "count" or (isinstance(x, int) and factor == 1.0):
        return str(x)
    if column.name == "inference_warm_seconds" and run.warm_interval is not None:
        low, high = run.warm_interval
        return fixed(x / factor, low / factor, high / factor)
    return float(x / factor)


_OPTIONAL = tuple(
    f.name
    for f in dataclasses.fields(RunSummary)
    if f.default is None and f.name not in (*_OF_IMAGES, "reason", "published", "missing")
)
