"""Pictures of runs: curves, comparisons, confusion matrices, images.

Every function returns a matplotlib Figure of its own, without pyplot: no window opens, no figure is kept, and
matplotlib's settings are afterwards what they were.
The same figure saved twice gives the same bytes. Accuracies come in as fractions and are drawn in percent.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from results.classification import checked
from results.errors import RecordError
from results.history import Epoch, History, time_unit
from results.store import write_whole
from results.tables import fixed, quantity, unit_for

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart under the common colour blindnesses; its yellow is too pale for lines."""

MISSING = "missing"
"""What stands in place of a bar that has no value."""

_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_NAMED_CELLS = 20
"""Up to so many classes a confusion matrix has room for numbers."""
_NAMED_CLASSES = 120
"""Up to so many classes it has room for names."""
_POINTS = 600
"""A curve of more points than this is drawn as the mean and range of so many bins."""

_STYLE: Any = {
    # Class and run names are shown as they are, not read as formulas.
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#666666",
    "axes.facecolor": "white",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "white",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.0,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "#dddddd",
    "lines.linewidth": 1.5,
    "savefig.facecolor": "white",
    "svg.hashsalt": "pixbench",
    "svg.fonttype": "path",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}


class Sized(Protocol):
    """What `sizes` draws; a RunSummary is one."""

    @property
    def name(self) -> str: ...
    @property
    def weight_bytes(self) -> int | None: ...
    @property
    def checkpoint_bytes(self) -> int | None: ...
    @property
    def params(self) -> int | None: ...


def save(figure: Figure, path: Path | str, dpi: int = 130) -> Path:
    """Writes the figure as its file's ending says, .png or .svg, the whole file or nothing.

    Neither carries a date or a program's name. Raises RecordError for another ending or a place that cannot be
    written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    # None leaves an entry out that would otherwise differ from day to day or version to version.
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    if kind not in metadata:
        raise RecordError(f"{path}: pictures are written as .png or .svg")
    data = io.BytesIO()
    with style_context():
        figure.savefig(data, format=kind, dpi=dpi, metadata=metadata[kind])
    write_whole(path, data.getvalue())
    return path


def curves(history: History, title: str | None = None, evaluated: str = "validation") -> Figure:
    """One run: loss, accuracy and learning rate per epoch, and below them the same a step if there are steps.

    `evaluated` names what the `val_` figures are of, for the legend.
    """
    _some(history.epochs or history.steps, "a history without rows cannot be drawn")
    per_epoch, per_step = bool(history.epochs), bool(history.steps)
    rows = per_epoch + per_step
    with style_context():
        figure = Figure(figsize=(13, 3.6 * rows), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        grid = figure.subplots(rows, 3, squeeze=False)
        if per_epoch:
            loss, accuracy, lr = grid[0]
            _epoch_lines(loss, history, (("train_loss", "train"), ("val_loss", evaluated)))
            _label(loss, "loss per epoch", "epoch", "loss")
            shown = (("train_top1", "train top-1"), ("val_top1", f"{evaluated} top-1"))
            _epoch_lines(accuracy, history, (*shown, ("val_top5", f"{evaluated} top-5")), 100)
            _label(accuracy, "accuracy per epoch", "epoch", "accuracy [%]")
            _mark_best(accuracy, history.best, evaluated)
            _epoch_lines(lr, history, (("lr", "learning rate"),), legend=False)
            _label(lr, "learning rate per epoch", "epoch", "learning rate")
            for axes in grid[0]:
                _epoch_axis(axes, [e.epoch for e in history.epochs])
        if per_step:
            at = np.array([step.step for step in history.steps])
            names = (("loss", "loss", 1), ("top1", "accuracy [%]", 100), ("lr", "learning rate", 1))
            for axes, (name, label, factor) in zip(grid[-1], names, strict=True):
                values = factor * np.array([getattr(step, name) for step in history.steps])
                _dense(axes, at, values, smooth=name != "lr")
                _label(axes, f"{label.removesuffix(' [%]')} per training step", "step", label)
        if title:
            figure.suptitle(_short(title, 100))
    return figure


def overlay(
    histories: Mapping[str, History],
    what: str = "test_accuracy",
    published: Mapping[str, float] | None = None,
    evaluated: str = "test",
    title: str | None = None,
) -> Figure:
    """Several runs in one picture: `what` is "test_loss", "test_accuracy" or "train_test" (accuracy of both).

    `published` gives top1 fractions for names, drawn as short ticks at the right edge in the run's colour; they never
    move the axis, and those beyond it are named there. `evaluated` names what the `val_` figures are of. Raises
    RecordError for another `what`, no run, or a published name that is no run's.
    """
    _some(histories, "no run to draw")
    if what not in _OVERLAYS:
        raise RecordError(f"cannot overlay {what!r}; known: {', '.join(_OVERLAYS)}")
    strange = [name for name in published or {} if name not in histories]
    if strange:
        raise RecordError(f"published figures for {', '.join(strange)}, which is none of {', '.join(histories)}")
    with style_context():
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.subplots()
        _OVERLAYS[what](axes, histories, evaluated)
        if what != "test_loss":
            _published_ticks(axes, list(histories), published or {})
        _epoch_axis(axes, [e.epoch for history in histories.values() for e in history.epochs])
        if title:
            axes.set_title(_short(title, 80))
        _legend_below(axes)
    return figure


def accuracy_over_epochs(
    points: Mapping[str, Mapping[int, float]],
    published: Mapping[str, Mapping[int, float]] | None = None,
    evaluated: str = "test",
    title: str | None = None,
) -> Figure:
    """Accuracy of saved checkpoints against their epoch: name -> {epoch: top1 as a fraction}.

    `published` is drawn dashed with hollow marks. Raises RecordError when there is no point.
    """
    _some([p for p in points.values() if p], "no accuracy to draw")
    with style_context():
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys([*points, *(published or {})]))
        for given, style, tail in ((points, "-o", ""), (published or {}, "--o", " published")):
            for name, by_epoch in given.items():
                colour = _colour(names.index(name))
                face = colour if not tail else "white"
                epochs = sorted(by_epoch)
                accuracies = [100 * by_epoch[e] for e in epochs]
                label = _legible(_short(name)) + tail
                axes.plot(epochs, accuracies, style, color=colour, markerfacecolor=face, markersize=5, label=label)
                if not tail and len(points) == 1:
                    best = max(epochs, key=lambda e: by_epoch[e])
                    axes.annotate(
                        f"{100 * by_epoch[best]:.2f} % at {best}",
                        (best, 100 * by_epoch[best]),
                        xytext=(0, 8),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8,
                    )
        axes.margins(y=0.15)
        _epoch_axis(axes, [epoch for by_epoch in points.values() for epoch in by_epoch])
        _label(axes, title or f"{evaluated} accuracy over epochs", "epochs trained", f"{evaluated} accuracy [%]")
        _legend_below(axes)
    return figure


def confusion(matrix: ArrayLike, classes: Sequence[str], title: str | None = None) -> Figure:
    """A confusion matrix of counts, rows true: colour is the share of the true class.

    Up to 20 classes the counts stand in the cells, up to 120 the axes carry names (long ones shortened), beyond
    that numbers. Raises RecordError as `classification.checked` does.
    """
    counts = checked(matrix, classes)
    n, images = len(counts), int(counts.sum())
    with style_context():
        side = min(max(4.5, 0.62 * n + 2), 11) if n <= _NAMED_CELLS else min(max(9, 0.15 * n + 2), 15)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        size = 9.0 if n <= _NAMED_CELLS else max(4.0, min(8.0, 0.62 * 72 * (side - 2.2) / n))
        image = confusion_axes(axes, counts, classes, size)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
        bar.set_label("share of the true class [%]")
        top1 = f"top-1 {100 * counts.trace() / images:.2f} % of {images} images" if images else "no images"
        axes.set_title(f"{_short(title, 60)}: {top1}" if title else top1)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    return figure


def confusion_axes(axes: Axes, matrix: ArrayLike, classes: Sequence[str], size: float) -> Any:
    """Draws a confusion matrix of counts as shares of the true class, with names and numbers where there is room.

    `size` is of the class names, in points. Returns the image, for a colour bar.
    """
    counts = checked(matrix, classes)
    n = len(counts)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, support, out=np.zeros(counts.shape), where=support > 0)
    # A square root: confusions of a few percent are what is looked for, and a linear scale leaves them white.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.spines[:].set_visible(True)
    if n <= _NAMED_CLASSES:
        names = [_short(name, 18) for name in classes]
        # Upright names in the smallest sizes stand clear of each other where slanted ones run together.
        upright = n > 12 or n * max(map(len, names)) > 60
        axes.set_xticks(range(n), names, rotation=90 if upright else 0, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if n <= _NAMED_CELLS:
        figures = min(size, 8.0 if len(str(counts.max())) <= 5 else 6.0)
        for i, j in np.ndindex(n, n):
            # On the colour of the cell, whatever the colours around the picture are.
            colour = "#ffffff" if shares[i, j] > 40 else "#333333" if counts[i, j] else "#bbbbbb"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=figures)
    return image


def bars(
    rows: Mapping[str, Mapping[str, float | None]],
    label: str,
    unit: str = "",
    title: str | None = None,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Figure:
    """Horizontal bars: a group a row, a bar a series, the value at its end: {"resnet18": {"train": .97, "test": .78}}.

    `unit` is the numbers' as records have it ("1" for fractions, "s", "bytes", "images/s", "parameters", ...);
    the scale is chosen here. A series that a row lacks, None, or NaN is written as "missing". `intervals` gives
    (low, high) of some of the numbers, drawn as error bars, with those digits alone that they support. Raises
    RecordError when there is no row.
    """
    _some(rows, "no row to draw")
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    _some(series, "rows without a value cannot be drawn")
    numbers = [_number(row.get(name)) for row in rows.values() for name in series]
    factor, scale = unit_for(numbers, unit)
    if unit == "1":
        factor, scale = 0.01, "%"
    elif unit == "s":
        factor, scale = time_unit(numbers)
    height = 0.8 / len(series)
    with style_context():
        figure = Figure(figsize=(9, max(2.2, 0.9 + 0.26 * len(rows) * (len(series) + 0.7))), layout="constrained")
        axes = figure.subplots()
        for s, name in enumerate(series):
            for i, (row_name, row) in enumerate(rows.items()):
                x, y = _number(row.get(name)), i + (s - (len(series) - 1) / 2) * height
                handle = axes.barh(y, (x or 0.0) / factor, height * 0.92, color=_colour(s))
                if not i:
                    handle.set_label(_legible(_short(name)))
                interval = (intervals or {}).get(row_name, {}).get(name)
                if x is None or interval is None:
                    text = MISSING if x is None else f"{x / factor:.2f}" if unit == "1" else _short_number(x / factor)
                    _bar_text(axes, x if x is None else x / factor, y, text)
                    continue
                low, high = (bound / factor for bound in interval)
                axes.errorbar((low + high) / 2, y, xerr=(high - low) / 2, color="#222222", capsize=3, linewidth=1)
                _bar_text(axes, x / factor, y, fixed(x / factor, low, high), max(x / factor, high))
        axes.set_yticks(range(len(rows)), [_short(name, 32) for name in rows])
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.margins(x=0.12)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if any((x or 0) < 0 for x in numbers) else 0.0)
        _label(axes, title, f"{label} [{scale}]" if scale else label, "")
        axes.grid(False, axis="y")
        if len(series) > 1:
            _legend_below(axes)
    return figure


def sizes(rows: Sequence[Sized], title: str | None = None) -> Figure:
    """Bytes of the weights alone and of a full checkpoint as bars, the number of parameters as points between them.

    The two sizes are never mixed: each has its bar, and one that is not there says so. Raises RecordError when
    there is no row.
    """
    _some(rows, "no row to draw")
    kinds = (("weights only", [r.weight_bytes for r in rows]), ("full checkpoint", [r.checkpoint_bytes for r in rows]))
    factor, scale = unit_for([x for _, values in kinds for x in values], "bytes")
    if scale == "B":
        factor, scale = 2.0**20, "MiB"
    params = [r.params for r in rows]
    count, count_scale = unit_for(params, "parameters")
    at = np.arange(len(rows), dtype=float)
    labels: list[tuple[float, int | None]] = []
    with style_context():
        figure = Figure(figsize=(max(6.5, 1.6 + 1.35 * len(rows)), 5), layout="constrained")
        axes = figure.subplots()
        for k, (name, values) in enumerate(kinds):
            x = at + (k - 0.5) * 0.4
            axes.bar(x, [(v or 0) / factor for v in values], 0.37, color=(COLOURS[0], COLOURS[5])[k], label=name)
            labels += [(place, v) for place, v in zip(x.tolist(), values, strict=True)]
        names = [f"{_folded(r.name)}\n{_params(r.params)}" for r in rows]
        axes.set_xticks(at, names)
        axes.margins(y=0.15)
        _label(axes, title, "", f"size [{scale}]")
        axes.grid(False, axis="x")
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        drawn = [math.nan if p is None else p / count for p in params]
        # No line: the networks have nothing in common that would lie between them.
        right.plot(at, drawn, "D", color=COLOURS[1], markersize=4.5, label="parameters (right axis)")
        right.set_ylabel(f"parameters [{count_scale}]" if count_scale else "parameters", color=COLOURS[1])
        right.tick_params(axis="y", colors=COLOURS[1])
        right.set_ylim(0, 1.25 * max([d for d in drawn if not math.isnan(d)], default=1.0))
        for place, v in labels:
            # On the axes drawn last, at the first ones' heights: a point never covers a number.
            right.annotate(
                MISSING if v is None else _short_number(v / factor),
                (place, (v or 0) / factor),
                xycoords=axes.transData,
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90 if v is None else 0,
                fontsize=7.5,
                color="#222222" if v is not None else "#a04000",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
            )
        handles = [h for a in (axes, right) for h in a.get_legend_handles_labels()[0]]
        said = [text for a in (axes, right) for text in a.get_legend_handles_labels()[1]]
        figure.legend(handles, said, loc="outside lower center", ncols=3)
    return figure


def lr_finder(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float] | None = None,
    suggestion: float | None = None,
    title: str | None = None,
    caution: str | None = None,
) -> Figure:
    """Loss against a growing learning rate, raw and smoothed, with the suggested rate as a line, or a caution.

    Raises RecordError for lists of different lengths, none, or a rate that is not above 0.
    """
    _some(lrs, "no learning rate to draw")
    if len(losses) != len(lrs) or (smoothed is not None and len(smoothed) != len(lrs)):
        raise RecordError(f"{len(lrs)} learning rates for {len(losses)} losses; expected one each")
    if min(lrs) <= 0:
        raise RecordError(f"learning rate {min(lrs)}: the axis is logarithmic, rates must be above 0")
    with style_context():
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axes = figure.subplots()
        faint = smoothed is not None
        axes.plot(lrs, losses, color=COLOURS[5], linewidth=0.8 if faint else 1.5, label="loss")
        if smoothed is not None:
            axes.plot(lrs, smoothed, color=COLOURS[0], label="smoothed")
        if suggestion is not None:
            axes.axvline(suggestion, color=COLOURS[1], linestyle="--", label=f"suggested {suggestion:.3g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        # The end of such a test explodes; what matters is the valley before it, with all of the raw line.
        shown = _before_divergence(losses, losses if smoothed is None else smoothed)
        if len(shown) and shown.max() > shown.min():
            margin = 0.08 * float(shown.max() - shown.min())
            axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)
        _label(axes, title or "learning rate finder", "learning rate", "loss")
        if caution:
            axes.set_xlabel(f"learning rate\n{caution}")
        axes.legend(loc="best")
    return figure


def _before_divergence(losses: Sequence[float], course: Sequence[float]) -> NDArray[Any]:
    """Finite losses before their course, past its minimum, stands above all that was seen before by its own fall."""
    known = [(a, b) for a, b in zip(losses, course, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not known:
        return np.array([])
    raw, smooth = np.array(known).T
    least = int(smooth.argmin())
    limit = raw[: least + 1].max() + max(raw[0], smooth[0]) - smooth[least]
    gone = np.flatnonzero(smooth[least:] > limit)
    end = least + int(gone[0]) if len(gone) else len(raw)
    return np.concatenate([raw[:end], smooth[:end]])


def schedule(lrs: Sequence[float], unit: str = "step", title: str | None = None) -> Figure:
    """The learning rate over a run; `lrs` holds one for each `unit` ("step" or "epoch") from the first on."""
    _some(lrs, "no learning rate to draw")
    with style_context():
        figure = Figure(figsize=(7.5, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(1, len(lrs) + 1), lrs, color=COLOURS[0], marker="o" if len(lrs) == 1 else None)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label(axes, title or "learning rate schedule", unit, "learning rate")
    return figure


def image_grid(
    images: ArrayLike, titles: Sequence[str] | None = None, columns: int = 8, title: str | None = None
) -> Figure:
    """Images [n, h, w, 3], uint8 or floats from 0 to 1, in rows of `columns`, each under its title.

    Raises RecordError for another shape, no image, values outside the range, or titles that do not match.
    """
    pictures = _pictures(images)
    if titles is not None and len(titles) != len(pictures):
        raise RecordError(f"{len(titles)} titles for {len(pictures)} images")
    if columns < 1:
        raise RecordError(f"a grid of {columns} columns; expected 1 or more")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = [] if titles is None else [_wrapped(text) for text in titles]
    height, width = pictures.shape[1:3]
    # Laid out by hand: cells are all alike, so nothing needs a solver, which would also cut the upper titles.
    cell, gap, above = 1.3, 0.06, 0.12 * max((text.count("\n") + 1 for text in lines), default=0)
    tall, top = cell * min(2.0, max(0.5, height / width)), 0.36 if title else 0.0
    across, down = columns * (cell + gap) + gap, rows * (tall + above + gap) + gap + top
    with style_context():
        figure = Figure(figsize=(across, down))
        for i, picture in enumerate(pictures):
            row, column = divmod(i, columns)
            left, bottom = gap + column * (cell + gap), down - top - (row + 1) * (tall + above + gap)
            axes = figure.add_axes((left / across, bottom / down, cell / across, tall / down))
            axes.set_axis_off()
            # Few pixels stay the squares that the network sees; many are smoothed down.
            axes.imshow(picture, interpolation="nearest" if max(height, width) <= 96 else "antialiased")
            if lines:
                axes.set_title(lines[i], fontsize=6.5, pad=2, linespacing=1.05)
        if title:
            figure.text(0.5, 1 - 0.18 / down, _short(title, 12 * columns), ha="center", va="center", fontsize=11)
    return figure


def mistake(true: str, predicted: str, probability: float) -> str:
    """The title of a misclassified image: "cat -> dog 87 %"."""
    return f"{true} -> {predicted} {100 * probability:.0f} %"


def _pictures(images: ArrayLike) -> NDArray[Any]:
    given = np.asarray(images)
    if given.ndim != 4 or given.shape[-1] != 3 or not given.size:
        shape = " x ".join(str(n) for n in given.shape)
        raise RecordError(f"images of shape {shape}; expected n x height x width x 3")
    if given.dtype == np.uint8:
        return given
    if given.dtype.kind != "f":
        raise RecordError(f"images of {given.dtype}; expected uint8 or floats from 0 to 1")
    # De-normalising in single precision may leave the range by a rounding error, not by more.
    if not (np.isfinite(given).all() and given.min() >= -1e-3 and given.max() <= 1 + 1e-3):
        raise RecordError(f"images from {given.min():.3g} to {given.max():.3g}; undo their normalisation to 0..1 first")
    return given.clip(0, 1)


def _test_loss(axes: Axes, histories: Mapping[str, History], evaluated: str) -> None:
    for i, (name, history) in enumerate(histories.items()):
        _run_line(axes, history, "val_loss", i, _short(name))
    _label(axes, f"{evaluated} loss", "epoch", "loss")


def _test_accuracy(axes: Axes, histories: Mapping[str, History], evaluated: str) -> None:
    for i, (name, history) in enumerate(histories.items()):
        best = history.best
        tail = "" if best is None else f" (best {100 * (best.val_top1 or 0):.2f} % at {best.epoch})"
        _run_line(axes, history, "val_top1", i, _short(name) + tail, 100)
    _label(axes, f"{evaluated} accuracy", "epoch", "accuracy [%]")


def _published_ticks(axes: Axes, names: Sequence[str], published: Mapping[str, float]) -> None:
    """Ticks at the right edge, and beside them their numbers, joined where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    beside: list[tuple[float, list[float]]] = []
    for name in sorted(published, key=published.__getitem__):
        x = 100 * published[name]
        label = f"{_short(name)} published {x:.2f} %"
        within = [x] if low <= x <= high else []
        (tick,) = axes.plot(
            [1.0] * len(within),
            within,
            linestyle="none",
            marker="_",
            markersize=16,
            markeredgewidth=2.2,
            color=_colour(names.index(name)),
            transform=axes.get_yaxis_transform(),
            clip_on=False,
            label=label,
        )
        # One without a place would make the layout reserve room for it at the corner.
        tick.set_in_layout(False)
        place = min(max(x, low), high)
        if beside and place - beside[-1][0] < 0.1 * (high - low):
            beside[-1][1].append(x)
        else:
            beside.append((place, [x]))
    for place, values in beside:
        numbers = f"{values[0]:.2f}" if values[0] == values[-1] else f"{values[0]:.2f} to {values[-1]:.2f}"
        where = " above" if values[0] > high else " below" if values[-1] < low else ""
        axes.annotate(
            f"published{where}\n{numbers} %",
            (1.0, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="#222222",
            annotation_clip=False,
        )


def _train_test(axes: Axes, histories: Mapping[str, History], evaluated: str) -> None:
    for i, (name, history) in enumerate(histories.items()):
        _run_line(axes, history, "train_top1", i, f"{_short(name)} train", 100, linestyle=":", hollow=True)
        _run_line(axes, history, "val_top1", i, f"{_short(name)} {evaluated}", 100, linestyle="-")
    _label(axes, f"train and {evaluated} accuracy", "epoch", "accuracy [%]")


_OVERLAYS: dict[str, Callable[[Axes, Mapping[str, History], str], None]] = {
    "test_loss": _test_loss,
    "test_accuracy": _test_accuracy,
    "train_test": _train_test,
}


_NONE: Mapping[str, Any] = MappingProxyType({})
_OVERLAY: ContextVar[Mapping[str, Any]] = ContextVar("overlay", default=_NONE)


@contextmanager
def style_context(**changes: Any) -> Iterator[None]:
    """This project's style; changes (two underscores for a dot) hold for every picture that is drawn within."""
    overlay: Any = {**_OVERLAY.get(), **{name.replace("__", "."): value for name, value in changes.items()}}
    token = _OVERLAY.set(overlay)
    try:
        with matplotlib.rc_context({**_STYLE, **overlay}):
            yield
    finally:
        _OVERLAY.reset(token)


def _some(things: Any, otherwise: str) -> None:
    if not len(things):
        raise RecordError(otherwise)


def _column(history: History, name: str, factor: float = 1) -> tuple[list[int], list[float]]:
    """Epochs and values of a column, the epochs without one left out, so that the line joins its neighbours."""
    pairs = [(e.epoch, factor * x) for e in history.epochs if (x := getattr(e, name)) is not None]
    return [epoch for epoch, _ in pairs], [x for _, x in pairs]


def _epoch_lines(
    axes: Axes, history: History, names: Sequence[tuple[str, str]], factor: float = 1, legend: bool = True
) -> None:
    for i, (name, label) in enumerate(names):
        epochs, values = _column(history, name, factor)
        if epochs:
            axes.plot(epochs, values, color=_colour(i), marker=_marker(len(epochs)), markersize=3, label=label)
    if legend:
        axes.legend(loc="best")


def _run_line(
    axes: Axes,
    history: History,
    name: str,
    i: int,
    label: str,
    factor: float = 1,
    linestyle: Any = None,
    hollow: bool = False,
) -> None:
    epochs, values = _column(history, name, factor)
    dashes = _DASHES[i // len(COLOURS) % len(_DASHES)] if linestyle is None else linestyle
    axes.plot(
        epochs,
        values,
        color=_colour(i),
        linestyle=dashes,
        # A single epoch is a mark without a line, which must tell the two apart as well.
        marker="s" if hollow and _marker(len(epochs)) else _marker(len(epochs)),
        markerfacecolor="white" if hollow else _colour(i),
        markersize=(5 if hollow else 4) if len(epochs) == 1 else 3,
        label=_legible(label),
    )


def _mark_best(axes: Axes, best: Epoch | None, evaluated: str) -> None:
    if best is None or best.val_top1 is None:
        return
    label = f"best {evaluated} {100 * best.val_top1:.2f} % at {best.epoch}"
    axes.plot([best.epoch], [100 * best.val_top1], "o", color="#000000", markerfacecolor="none", label=label)
    axes.legend(loc="best")


def _dense(axes: Axes, at: NDArray[Any], values: NDArray[Any], smooth: bool) -> None:
    """Many points as one line: the mean of bins over their range, or the points under a running mean."""
    if len(at) > _POINTS:
        edges = np.linspace(0, len(at), _POINTS + 1).astype(int)
        pieces = [values[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        places = [float(at[a:b].mean()) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        if smooth:
            low, high = [float(p.min()) for p in pieces], [float(p.max()) for p in pieces]
            axes.fill_between(places, low, high, color=COLOURS[5], alpha=0.35, linewidth=0, label="range")
        axes.plot(places, [float(p.mean()) for p in pieces], color=COLOURS[0], linewidth=1.1, label="mean")
    else:
        span = max(1, len(at) // 20)
        axes.plot(at, values, color=COLOURS[5 if smooth and span > 1 else 0], linewidth=0.8, label="step")
        if smooth and span > 1:
            mean = np.convolve(values, np.ones(span) / span, mode="valid")
            axes.plot(at[span // 2 : span // 2 + len(mean)], mean, color=COLOURS[0], label=f"mean of {span} steps")
    if smooth and len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="best")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    if epochs and min(epochs) == max(epochs):
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _label(axes: Axes, title: str | None, x: str, y: str) -> None:
    if title:
        axes.set_title(_short(title, 80))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True)


def _legend_below(axes: Axes) -> None:
    """A legend under the axes, where it hides nothing; none for a single line."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    longest = max(len(text) for text in labels)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # In inches: what a letter takes on average, and the line before and the space after each label.
    columns = max(1, min(4, len(labels), int((figure.get_figwidth() - 0.3) / (0.066 * longest + 0.6))))
    # The figure grows with the legend, so that the axes keep their height.
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, -(-len(labels) // columns) - 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _bar_text(axes: Axes, x: float | None, y: float, text: str, end: float | None = None) -> None:
    axes.annotate(
        text,
        ((x or 0.0) if end is None else end, y),
        xytext=(3 if (x or 0.0) >= 0 else -3, 0),
        textcoords="offset points",
        ha="left" if (x or 0.0) >= 0 else "right",
        va="center",
        fontsize=7.5,
        color="#222222" if x is not None else "#a04000",
        style="normal" if x is not None else "italic",
    )


def _number(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else x


def _short_number(x: float) -> str:
    return f"{x:.4g}" if abs(x) < 1000 else f"{x:.0f}"


def _short(text: str, length: int = 28) -> str:
    """The text, its middle left out where it is too long: names of a family differ at their ends."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def _folded(name: str, width: int = 16) -> str:
    """A name in lines that stand under a group of bars, at most three."""
    pieces = textwrap.wrap(_short(name, 3 * width - 6), width)
    return "\n".join(pieces) or name


def _params(params: int | None) -> str:
    return f"parameters {MISSING}" if params is None else f"{quantity(params, 'parameters')} parameters"


def _legible(label: str) -> str:
    # matplotlib leaves labels with a leading underscore out of the legend.
    return f" {label}" if label.startswith("_") else label


def _wrapped(title: str, width: int = 20) -> str:
    """A title in lines that a cell of the grid holds: the arrow's two sides apart, each shortened to one line."""
    left, arrow, right = title.partition(" -> ")
    if arrow:
        return f"{_short(left, width)}\n-> {_ending_kept(right, width - 3)}"
    return "\n".join(textwrap.wrap(title, width, max_lines=2, placeholder="…")) or " "


def _ending_kept(text: str, width: int) -> str:
    """Shortened before its last two words if they are a percentage, which must stay whole."""
    words = text.rsplit(" ", 2)
    if len(words) == 3 and words[2] == "%":
        tail = f" {words[1]} %"
        return _short(words[0], width - len(tail)) + tail
    return _short(text, width)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _marker(points: int) -> str | None:
    return "o" if points <= 40 else None
