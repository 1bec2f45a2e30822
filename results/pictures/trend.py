"""The picture of a workload's history: points, medians between changes, and the changes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from results.changes import MARKED_BREAKS, Trend, letter, limits
from results.pictures.style import COLOURS, new_figure, styled
from results.tables import unit_for

_DATES = 7


@styled()
def figure(trend: Trend) -> Figure:
    """Draws the series by run number, with dates below; one colour for each part that is comparable in itself."""
    values = trend.values
    factor, unit = (1.0, "steps of the reference") if trend.relative else unit_for(values, "s")
    low, high = limits(values, [level for _, level in trend.stretches])
    drawn, axes = new_figure(9, 3.4)
    for number, chain in enumerate(trend.chains):
        colour = COLOURS[number % len(COLOURS)]
        axes.vlines(*_intervals(trend, chain.indices, factor), color=colour, alpha=0.35, linewidth=1)
        shown = [min(max(values[i], low), high) / factor for i in chain.indices]
        axes.plot(chain.indices, shown, "o", color=colour, markersize=3, linestyle="none")
        wild = [(i, x) for i, x in zip(chain.indices, shown, strict=True) if not low <= values[i] <= high]
        for i, x in wild:
            axes.plot([i], [x], "^" if values[i] > high else "v", color=colour, markersize=7, clip_on=False)
    for indices, level in trend.stretches:
        axes.plot([indices[0], indices[-1]], [level / factor] * 2, color="#222222", linewidth=1.2)
    for i in trend.breaks if len(trend.breaks) <= MARKED_BREAKS else ():
        axes.axvline(i - 0.5, color="#888888", linewidth=1, linestyle=":")
    for number, change in enumerate(trend.changes):
        slower = change.ratio > 1
        colour = COLOURS[1] if slower else COLOURS[2]
        axes.axvline(change.index - 0.5, color=colour, linewidth=1, linestyle="--")
        axes.annotate(
            f"{letter(number)} {100 * (change.ratio - 1):+.1f} %",
            (change.index - 0.5, 1),
            xycoords=("data", "axes fraction"),
            # Neighbours stand on two levels, so that they do not cover each other.
            xytext=(0, 2 + 10 * (number % 2)),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )
    axes.set_ylim(low / factor, high / factor)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.set_ylabel(unit if trend.relative else f"time of a step [{unit}]")
    axes.grid(True, axis="y")
    step = max(1, -(-len(values) // _DATES))
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, len(values), step))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _day(trend, x)))
    drawn.suptitle(trend.id, fontsize=9)
    return drawn


def _intervals(trend: Trend, indices: Sequence[int], factor: float) -> tuple[list[int], list[float], list[float]]:
    """Where the intervals of points stand, and their ends in the picture's unit."""
    at, lows, highs = [], [], []
    for i in indices:
        point = trend.points[i]
        if point.low is not None and point.high is not None:
            # The reference's own scatter is not stored, so the interval is the workload's.
            scale = trend.values[i] / point.seconds / factor
            at.append(i)
            lows.append(point.low * scale)
            highs.append(point.high * scale)
    return at, lows, highs


def _day(trend: Trend, x: float) -> str:
    i = round(x)
    return trend.points[i].created[:10] if 0 <= i < len(trend.points) else ""
