"""Curves of training runs: one run, several together, checkpoints, and learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from results.errors import RecordError
from results.history import Epoch, History
from results.pictures.style import (
    COLOURS,
    colour,
    label_axes,
    legend_below,
    legible,
    new_figure,
    plain_logarithms,
    shortened,
    styled,
    whole_numbers,
)

OVERLAYS = {
    "test_loss": ("{} loss", "loss"),
    "test_accuracy": ("{} accuracy", "accuracy [%]"),
    "train_test": ("train and {} accuracy", "accuracy [%]"),
}
"""What `overlay` shows -> its title, for the data that epochs are evaluated on, and its vertical axis."""

_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_MARKED = 40
"""Up to so many epochs each is marked."""
_POINTS = 600
"""A curve of more points than this is drawn as the mean and range of so many bins."""


@styled()
def curves(history: History, title: str | None = None, evaluated: str = "validation") -> Figure:
    """One run: loss, accuracy and learning rate per epoch, and below them the same a step if there are steps.

    `evaluated` names what the `val_` figures are of, for the legend.
    """
    if not history.epochs and not history.steps:
        raise RecordError("a history without rows cannot be drawn")
    per_epoch, per_step = bool(history.epochs), bool(history.steps)
    rows = per_epoch + per_step
    figure = Figure(figsize=(13, 3.6 * rows), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    grid = figure.subplots(rows, 3, squeeze=False)
    if per_epoch:
        loss, accuracy, lr = grid[0]
        draw_epochs(loss, history, {"train_loss": "train", "val_loss": evaluated})
        label_axes(loss, "loss per epoch", "epoch", "loss")
        top1 = {"train_top1": "train top-1", "val_top1": f"{evaluated} top-1", "val_top5": f"{evaluated} top-5"}
        draw_epochs(accuracy, history, top1, 100)
        label_axes(accuracy, "accuracy per epoch", "epoch", "accuracy [%]")
        _mark_best(accuracy, history.best, evaluated)
        draw_epochs(lr, history, {"lr": "learning rate"})
        label_axes(lr, "learning rate per epoch", "epoch", "learning rate")
    if per_step:
        at = np.array([step.step for step in history.steps])
        names = (("loss", "loss", 1), ("top1", "accuracy [%]", 100), ("lr", "learning rate", 1))
        for axes, (name, label, factor) in zip(grid[-1], names, strict=True):
            values = factor * np.array([getattr(step, name) for step in history.steps])
            _dense(axes, at, values, smooth=name != "lr")
            label_axes(axes, f"{label.removesuffix(' [%]')} per training step", "step", label)
    if title:
        figure.suptitle(shortened(title, 100))
    return figure


@styled()
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
    if not histories:
        raise RecordError("no run to draw")
    if what not in OVERLAYS:
        raise RecordError(f"cannot overlay {what!r}; known: {', '.join(OVERLAYS)}")
    unknown = [name for name in published or {} if name not in histories]
    if unknown:
        raise RecordError(f"published figures for {', '.join(unknown)}, but the runs are {', '.join(histories)}")
    figure, axes = new_figure(9, 5.2)
    for i, (name, history) in enumerate(histories.items()):
        run, best = shortened(name), history.best
        if what == "train_test":
            _line(axes, history, "train_top1", i, f"{run} train", 100, linestyle=":", hollow=True)
            _line(axes, history, "val_top1", i, f"{run} {evaluated}", 100, linestyle="-")
        elif what == "test_loss":
            _line(axes, history, "val_loss", i, run)
        else:
            tail = "" if best is None else f" (best {100 * (best.val_top1 or 0):.2f} % at {best.epoch})"
            _line(axes, history, "val_top1", i, run + tail, 100)
    words, vertical = OVERLAYS[what]
    label_axes(axes, title or words.format(evaluated), "epoch", vertical)
    if what != "test_loss":
        _published_ticks(axes, list(histories), published or {})
    _epoch_axis(axes, [e.epoch for history in histories.values() for e in history.epochs])
    legend_below(axes)
    return figure


@styled()
def accuracy_over_epochs(
    points: Mapping[str, Mapping[int, float]],
    published: Mapping[str, Mapping[int, float]] | None = None,
    evaluated: str = "test",
    title: str | None = None,
) -> Figure:
    """Accuracy of saved checkpoints against their epoch: name -> {epoch: top1 as a fraction}.

    `published` is drawn dashed with hollow marks. Raises RecordError when there is no point.
    """
    if not any(points.values()):
        raise RecordError("no accuracy to draw")
    figure, axes = new_figure(8, 4.6)
    names = list(dict.fromkeys([*points, *(published or {})]))
    for given, style, tail in ((points, "-o", ""), (published or {}, "--o", " published")):
        for name, by_epoch in given.items():
            paint = colour(names.index(name))
            face = paint if not tail else "white"
            epochs = sorted(by_epoch)
            accuracies = [100 * by_epoch[e] for e in epochs]
            label = legible(shortened(name)) + tail
            axes.plot(epochs, accuracies, style, color=paint, markerfacecolor=face, markersize=5, label=label)
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
    label_axes(axes, title or f"{evaluated} accuracy over epochs", "epochs trained", f"{evaluated} accuracy [%]")
    legend_below(axes)
    return figure


@styled()
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
    if not lrs:
        raise RecordError("no learning rate to draw")
    if len(losses) != len(lrs) or (smoothed is not None and len(smoothed) != len(lrs)):
        raise RecordError(f"{len(lrs)} learning rates for {len(losses)} losses; expected one each")
    if min(lrs) <= 0:
        raise RecordError(f"learning rate {min(lrs)}: the axis is logarithmic, rates must be above 0")
    figure, axes = new_figure(7.5, 4.4)
    faint = smoothed is not None
    axes.plot(lrs, losses, color=COLOURS[5], linewidth=0.8 if faint else 1.5, label="loss")
    if smoothed is not None:
        axes.plot(lrs, smoothed, color=COLOURS[0], label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color=COLOURS[1], linestyle="--", label=f"suggested {suggestion:.3g}")
    axes.set_xscale("log")
    plain_logarithms(axes.xaxis)
    # The end of such a test explodes; what matters is the valley before it, with all of the raw line.
    shown = _before_divergence(losses, losses if smoothed is None else smoothed)
    if len(shown) and shown.max() > shown.min():
        margin = 0.08 * float(shown.max() - shown.min())
        axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)
    label_axes(axes, title or "learning rate finder", "learning rate", "loss")
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


@styled()
def schedule(lrs: Sequence[float], unit: str = "step", title: str | None = None) -> Figure:
    """The learning rate over a run; `lrs` holds one for each `unit` ("step" or "epoch") from the first on."""
    if not lrs:
        raise RecordError("no learning rate to draw")
    figure, axes = new_figure(7.5, 3.8)
    axes.plot(range(1, len(lrs) + 1), lrs, color=COLOURS[0], marker="o" if len(lrs) == 1 else None)
    axes.set_ylim(bottom=0)
    whole_numbers(axes.xaxis)
    label_axes(axes, title or "learning rate schedule", unit, "learning rate")
    return figure


def _published_ticks(axes: Axes, names: Sequence[str], published: Mapping[str, float]) -> None:
    """Ticks at the right edge, and beside them their numbers, joined where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    beside: list[tuple[float, list[float]]] = []
    for name in sorted(published, key=published.__getitem__):
        x = 100 * published[name]
        label = f"{shortened(name)} published {x:.2f} %"
        within = [x] if low <= x <= high else []
        (tick,) = axes.plot(
            [1.0] * len(within),
            within,
            linestyle="none",
            marker="_",
            markersize=16,
            markeredgewidth=2.2,
            color=colour(names.index(name)),
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


def draw_epochs(axes: Axes, history: History, lines: Mapping[str, str], factor: float = 1) -> None:
    """Columns of a run's epochs as curves, column -> label; several have a legend inside the axes."""
    for i, (name, label) in enumerate(lines.items()):
        if _column(history, name, factor)[0]:
            _line(axes, history, name, i, label, factor)
    if len(lines) > 1:
        axes.legend(loc="best")
    _epoch_axis(axes, [e.epoch for e in history.epochs])


def _column(history: History, name: str, factor: float) -> tuple[list[int], list[float]]:
    """Epochs and values of a column, the epochs without one left out, so that the line joins its neighbours."""
    pairs = [(e.epoch, factor * x) for e in history.epochs if (x := getattr(e, name)) is not None]
    return [epoch for epoch, _ in pairs], [x for _, x in pairs]


def _line(
    axes: Axes,
    history: History,
    name: str,
    number: int,
    label: str,
    factor: float = 1,
    linestyle: str | None = None,
    hollow: bool = False,
) -> None:
    epochs, values = _column(history, name, factor)
    dashes: Any = _DASHES[number // len(COLOURS) % len(_DASHES)] if linestyle is None else linestyle
    axes.plot(
        epochs,
        values,
        color=colour(number),
        linestyle=dashes,
        # A single epoch is a mark without a line, which must tell the two apart as well.
        marker=None if len(epochs) > _MARKED else "s" if hollow else "o",
        markerfacecolor="white" if hollow else colour(number),
        markersize=(5 if hollow else 4) if len(epochs) == 1 else 3,
        label=legible(label),
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
    whole_numbers(axes.xaxis, nbins=6)


def _epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    if epochs and min(epochs) == max(epochs):
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    whole_numbers(axes.xaxis, min_n_ticks=1)
