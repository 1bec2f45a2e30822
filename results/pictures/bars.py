"""Horizontal bars with their numbers, and the sizes of networks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.errors import RecordError
from results.pictures.style import COLOURS, colour, label_axes, legend_below, legible, new_figure, shortened, styled
from results.runs import RunSummary
from results.tables import fixed, quantity, time_unit, unit_for

MISSING = "missing"
"""What stands in place of a bar that has no value."""
_MISSING_COLOUR = "#a04000"

Rows = Mapping[str, Mapping[str, float | None]]
"""Row -> series -> number, for example {"resnet18": {"train": 0.97, "test": 0.78}}."""
Intervals = Mapping[str, Mapping[str, tuple[float, float]]]
"""Row -> series -> low and high."""


@styled()
def bars(
    rows: Rows, label: str, unit: str = "", title: str | None = None, intervals: Intervals | None = None
) -> Figure:
    """A picture of bars: a group a row, a bar a series, the value at its end.

    `unit` is the numbers' as records have it ("1" for fractions, "s", "bytes", "images/s", "parameters", ...);
    the scale is chosen here. A series that a row lacks, None, or NaN is written as "missing". `intervals` gives
    (low, high) of some of the numbers, drawn as error bars, with those digits alone that they support. Raises
    RecordError when there is no row or no value.
    """
    series = {name for row in rows.values() for name in row}
    if not series:
        raise RecordError("no value to draw")
    numbers = [_finite(x) for row in rows.values() for x in row.values()]
    factor, scale = (0.01, "%") if unit == "1" else time_unit(numbers) if unit == "s" else unit_for(numbers, unit)
    known = {name: {s: _finite(x) for s, x in row.items()} for name, row in rows.items()}
    scaled = {name: {s: None if x is None else x / factor for s, x in row.items()} for name, row in known.items()}
    bounds = {
        name: {s: (low / factor, high / factor) for s, (low, high) in row.items()}
        for name, row in (intervals or {}).items()
    }
    figure, axes = new_figure(9, max(2.2, 0.9 + 0.26 * len(rows) * (len(series) + 0.7)))
    draw_bars(axes, scaled, (lambda x: f"{x:.2f}") if unit == "1" else _short_number, bounds)
    label_axes(axes, title, f"{label} [{scale}]" if scale else label, "")
    axes.grid(False, axis="y")
    legend_below(axes)
    return figure


def draw_bars(
    axes: Axes,
    rows: Rows,
    text: Callable[[float], str],
    intervals: Intervals | None = None,
    colours: Sequence[str] = (),
    room: float = 0.15,
) -> None:
    """Horizontal bars from 0, the first row on top, each with its number at the end.

    Args:
        text: a number as it is written; one with an interval has the digits that the interval supports.
        colours: of the rows; without them each series has its own.
        room: share of the width that is kept free for the numbers.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    height = 0.8 / len(series)
    for i, (row_name, row) in enumerate(rows.items()):
        for s, name in enumerate(series):
            x, y = row.get(name), i + (s - (len(series) - 1) / 2) * height
            bar = axes.barh(y, x or 0.0, 0.92 * height, color=colours[i] if colours else colour(s))
            if not i:
                bar.set_label(legible(shortened(name)))
            end, said = (0.0, MISSING) if x is None else (x, text(x))
            interval = (intervals or {}).get(row_name, {}).get(name)
            if x is not None and interval is not None:
                low, high = interval
                axes.errorbar((low + high) / 2, y, xerr=(high - low) / 2, color="#222222", capsize=3, linewidth=1)
                end, said = max(x, high), fixed(x, low, high)
            axes.annotate(
                said,
                (end, y),
                xytext=(-3 if end < 0 else 3, 0),
                textcoords="offset points",
                ha="right" if end < 0 else "left",
                va="center",
                fontsize=8,
                color=_MISSING_COLOUR if x is None else "#222222",
                style="italic" if x is None else "normal",
            )
    axes.set_yticks(range(len(rows)), [shortened(name, 32) for name in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=room)
    negative = any((x or 0) < 0 for row in rows.values() for x in row.values())
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if negative else 0.0)
    axes.grid(True, axis="x")


@styled()
def sizes(rows: Sequence[RunSummary], title: str | None = None) -> Figure:
    """Bytes of the weights alone and of a full checkpoint as bars, the number of parameters as points between them.

    The two sizes are never mixed: each has its bar, and one that is not known says so. Raises RecordError when
    there is no row.
    """
    if not rows:
        raise RecordError("no row to draw")
    kinds = (("weights only", [r.weight_bytes for r in rows]), ("full checkpoint", [r.checkpoint_bytes for r in rows]))
    factor, scale = unit_for([x for _, values in kinds for x in values], "bytes")
    if scale == "B":
        factor, scale = 2.0**20, "MiB"
    params = [r.params for r in rows]
    count, count_scale = unit_for(params, "parameters")
    at = np.arange(len(rows), dtype=float)
    labels: list[tuple[float, int | None]] = []
    figure, axes = new_figure(max(6.5, 1.6 + 1.35 * len(rows)), 5)
    for k, (name, values) in enumerate(kinds):
        x = at + (k - 0.5) * 0.4
        axes.bar(x, [(v or 0) / factor for v in values], 0.37, color=(COLOURS[0], COLOURS[5])[k], label=name)
        labels += [(place, v) for place, v in zip(x.tolist(), values, strict=True)]
    axes.set_xticks(at, [f"{_folded(r.name)}\n{_params(r.params)}" for r in rows])
    axes.margins(y=0.15)
    label_axes(axes, title, "", f"size [{scale}]")
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
            color="#222222" if v is not None else _MISSING_COLOUR,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )
    handles = [h for a in (axes, right) for h in a.get_legend_handles_labels()[0]]
    texts = [text for a in (axes, right) for text in a.get_legend_handles_labels()[1]]
    figure.legend(handles, texts, loc="outside lower center", ncols=3)
    return figure


def _finite(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else x


def _short_number(x: float) -> str:
    return f"{x:.4g}" if abs(x) < 1000 else f"{x:.0f}"


def _folded(name: str, width: int = 16) -> str:
    """A name in lines that stand under a group of bars, at most three."""
    pieces = textwrap.wrap(shortened(name, 3 * width - 6), width)
    return "\n".join(pieces) or name


def _params(params: int | None) -> str:
    return f"parameters {MISSING}" if params is None else f"{quantity(params, 'parameters')} parameters"
