"""The history of stored runs as text and pages: all workloads, how one went, where it changed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from results.changes import MARKED_BREAKS, Change, Trend, fewest_points, letter, limits
from results.errors import RecordError
from results.index import Index
from results.series import Point, collect, look_at
from results.store import Skipped
from results.tables import (
    Cell,
    commit_text,
    notes,
    page,
    percent,
    plural,
    quantity,
    render,
    signed_percent,
    to_json,
    unit_for,
)

WIDTH = 80
HEIGHT = 14


def load(
    store: Path, since: datetime | None = None, index: Index | None = None
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Every workload's history in a folder, oldest first, and the files that gave nothing.

    Args:
        index: what remembers the folder's files; without one each is read.

    Raises:
        RecordError: the folder cannot be read.
    """
    found, skipped = collect(store, index.contents if index else look_at)
    kept = {id: [p for p in points if since is None or p.moment >= since] for id, points in found.items()}
    return {id: points for id, points in kept.items() if points}, skipped


def judge(series: Mapping[str, Sequence[Point]], index: Index | None = None) -> list[Trend]:
    """The history of each workload, the worst last change first."""
    trends = []
    for id, points in series.items():
        trends.append(Trend.of(id, points, index.judged if index else None))
        if index:
            index.progress.steps("looking for changes", len(trends), len(series))
    return sorted(trends, key=lambda trend: -trend.changes[-1].ratio if trend.changes else -1.0)


def chosen(ids: Collection[str], text: str) -> str:
    """The id that is `text`, or the only one that contains it.

    Raises:
        RecordError: none or several; near ones are named.
    """
    if text in ids:
        return text
    holding = [id for id in ids if text in id]
    if len(holding) == 1:
        return holding[0]
    if holding:
        more = f" and {len(holding) - 6} more" if len(holding) > 6 else ""
        raise RecordError(f"{len(holding)} series contain {text!r}: {', '.join(sorted(holding)[:6])}{more}; name one")
    words = {word: id for id in ids for word in (*re.split("[/@]", id), id)}
    near = [words[word] for word in get_close_matches(text, words, n=3, cutoff=0.5)]
    advice = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "bench trend lists them all"
    raise RecordError(f"no series contains {text!r}; {advice}")


def listing(trends: Sequence[Trend], format: str) -> str:
    """All series, a line each: how many points, the last time, the last change."""
    if format == "json":
        return to_json({"series": [_facts(trend) for trend in trends]})
    if format == "csv":
        headers = ("id", "points", "seconds", "relative", "margin", "ratio", "created", "commit", "p")
        return render(headers, [_raw_line(trend) for trend in trends], "csv")
    rows = [_line(trend) for trend in trends]
    table = render(("workload", "points", "a step", "last change", "when", "commit"), rows, _table_format(format))
    least = fewest_points()
    short = sum(max(len(chain.values) for chain in trend.chains) < least for trend in trends)
    if not short:
        return table
    which = "Every series has" if short == len(trends) else f"{short} of {len(trends)} series have"
    return page(table, f"{which} fewer than {least} comparable points, too few to show a change.")


def one(trend: Trend, format: str) -> str:
    """One series: drawn as text, as a table of its points, or as a picture."""
    points = [point.to_json() for point in trend.points]
    if format == "json":
        return to_json({**_facts(trend), "points": points})
    if format == "svg":
        from results.pictures.style import svg
        from results.pictures.trend import figure

        return svg(figure(trend))
    if format == "text":
        return drawing(trend)
    ratios = {change.index: change.ratio for change in trend.changes}
    if format == "csv":
        return render([*points[0], "change"], [[*p.values(), ratios.get(i)] for i, p in enumerate(points)], "csv")
    rows: list[list[Cell]] = []
    for i, point in enumerate(trend.points):
        rate = quantity(point.images / point.seconds, "images/s") if point.images else "-"
        relative = "-" if point.relative is None else f"{point.relative:.4g}"
        change = signed_percent(ratios[i] - 1) if i in ratios else ""
        step = quantity(point.seconds, "s", point.low, point.high)
        rows.append([_when(point.created), commit_text(point.commit, point.dirty), step, rate, relative, change])
    table = render(("when", "commit", "a step", "rate", "of the reference", "change"), rows, _table_format(format))
    return page(trend.id, table, notes(explanations(trend), format))


def drawing(trend: Trend, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The series in plain characters: o a point, - the median between changes, | a change, : another machine."""
    values, stretches = trend.values, trend.stretches
    low, high = limits(values, [level for _, level in stretches])
    factor, unit = (1.0, "x") if trend.relative else unit_for(values, "s")
    labels = _labels(low / factor, high / factor, unit, height)
    margin = max(map(len, labels))
    columns = width - margin - 2
    # Few points stand apart, many share a column.
    spread = min(3.0, (columns - 1) / max(1, len(values) - 1))
    at = [round(i * spread) for i in range(len(values))]
    grid = [[" "] * columns for _ in range(height)]

    def row(value: float) -> int:
        return min(height - 1, max(0, round((high - value) / (high - low) * (height - 1))))

    for i in trend.breaks if len(trend.breaks) <= MARKED_BREAKS else ():
        for line in grid:
            line[max(0, at[i] - 1)] = ":"
    top = [" "] * columns
    for number, change in enumerate(trend.changes):
        place = max(0, at[change.index] - 1)
        top[place] = letter(number)[0]
        for line in grid:
            line[place] = "|"
    for indices, level in stretches:
        for column in range(at[indices[0]], at[indices[-1]] + 1):
            grid[row(level)][column] = "-"
    for i, value in enumerate(values):
        grid[row(value)][at[i]] = "^" if value > high else "v" if value < low else "o"

    lines = [f"{label:>{margin}} |{''.join(line)}".rstrip() for label, line in zip(labels, grid, strict=True)]
    first, last = trend.points[0].created[:10], trend.points[-1].created[:10]
    days = first if first == last else first + last.rjust(max(len(last) + 2, at[-1] + 1 - len(first)))
    head = [trend.id, summary(trend), ""]
    if trend.changes:
        head.append(" " * (margin + 2) + "".join(top).rstrip())
    foot = [" " * margin + " +" + "-" * (at[-1] + 1), " " * (margin + 2) + days]
    below = [textwrap.fill(line, width, subsequent_indent="   ") for line in explanations(trend)]
    return "\n".join([*head, *lines, *foot, "", *below]) + "\n"


def explanations(trend: Trend) -> list[str]:
    """A line for each change, and for what else a reader of a picture must know."""
    lines = [f"{letter(number)}  {_change(change)}" for number, change in enumerate(trend.changes)]
    longest = max(len(chain.values) for chain in trend.chains)
    if longest < fewest_points():
        lines.append(f"{plural(longest, 'comparable point')}; a change can be shown from {fewest_points()} on")
    elif not lines:
        lines.append(f"no change of more than {percent(trend.margin)}")
    if 0 < len(trend.breaks) <= MARKED_BREAKS:
        lines.append("dotted: the machine, its software or its settings changed")
    if len(trend.chains) > 1:
        lines.append(
            f"{len(trend.chains)} parts from different machines or without the pinned reference; "
            "they are not compared with each other"
        )
    if trend.relative:
        lines.append("in steps of the pinned reference, measured in the same runs")
    return lines


def _facts(trend: Trend) -> dict[str, Any]:
    return {
        "id": trend.id,
        "points": len(trend.points),
        "margin": trend.margin,
        "last": trend.points[-1].to_json(),
        "changes": [asdict(change) for change in trend.changes],
    }


def _raw_line(trend: Trend) -> list[Cell]:
    last, change = trend.points[-1], trend.changes[-1] if trend.changes else None
    changed: list[Cell] = [None] * 4 if change is None else [change.ratio, change.created, change.commit, change.p]
    return [trend.id, len(trend.points), last.seconds, last.relative, trend.margin, *changed]


def _line(trend: Trend) -> list[Cell]:
    last = trend.points[-1]
    changed: list[Cell] = ["-", "-", "-"]
    if trend.changes:
        change = trend.changes[-1]
        changed = [signed_percent(change.ratio - 1), change.created[:10], commit_text(change.commit)]
    return [trend.id, len(trend.points), quantity(last.seconds, "s", last.low, last.high), *changed]


def summary(trend: Trend) -> str:
    """How many runs, and what the last one measured."""
    last = trend.points[-1]
    rate = f" ({quantity(last.images / last.seconds, 'images/s')})" if last.images else ""
    step = f"{quantity(last.seconds, 's', last.low, last.high)} a step{rate}"
    return f"{plural(len(trend.points), 'run')}, the last on {_when(last.created)}: {step}"


def _change(change: Change) -> str:
    if change.relative:
        sizes = f"{change.before:.4g} -> {change.after:.4g} of the reference"
    else:
        sizes = f"{quantity(change.before, 's')} -> {quantity(change.after, 's')}"
    where = f"{change.created[:10]} {commit_text(change.commit)}"
    machine = "; the machine or its software changed there too" if change.new_machine else ""
    return f"{where}: {signed_percent(change.ratio - 1)} time ({sizes}), p={change.p:.1g}{machine}"


def _labels(low: float, high: float, unit: str, height: int) -> list[str]:
    """A scale at every third row; the others are blank."""
    step = 3 * (high - low) / (height - 1)
    decimals = next((d for d in range(6) if step >= 5 * 10.0**-d), 6)
    values = [high - i * (high - low) / (height - 1) for i in range(height)]
    return [f"{value:.{decimals}f} {unit}" if i % 3 == 0 else "" for i, value in enumerate(values)]


def _when(created: str) -> str:
    return created[:16].replace("T", " ")


def _table_format(format: str) -> str:
    return "text" if format == "table" else format
