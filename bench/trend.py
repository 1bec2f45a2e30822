"""The history of stored runs: which workloads there are, how one went, and where it changed."""

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from results.changes import MARKED_BREAKS, Change, Trend, fewest_points, letter, limits
from results.series import collect
from results.store import Skipped
from results.tables import Cell, quantity, render, to_json, unit_for

WIDTH = 80
HEIGHT = 14


def load(store: Path, since: datetime | None = None) -> tuple[list[Trend], list[Skipped]]:
    """Every workload's history in a folder, the worst last change first, and the files that gave nothing.

    Raises:
        RecordError: the folder cannot be read.
    """
    found, skipped = collect(store)
    kept = {id: [p for p in points if since is None or p.moment >= since] for id, points in found.items()}
    trends = [Trend.of(id, points) for id, points in kept.items() if points]
    return sorted(trends, key=lambda trend: -trend.changes[-1].ratio if trend.changes else -1.0), skipped


def choose(trends: Sequence[Trend], text: str) -> Trend:
    """The series whose id is `text`, or the only one that contains it.

    Raises:
        UsageError: none or several; near ones are named.
    """
    ids = {trend.id: trend for trend in trends}
    if text in ids:
        return ids[text]
    holding = [id for id in ids if text in id]
    if len(holding) == 1:
        return ids[holding[0]]
    if holding:
        more = f" and {len(holding) - 6} more" if len(holding) > 6 else ""
        raise UsageError(f"{len(holding)} series contain {text!r}: {', '.join(sorted(holding)[:6])}{more}; name one")
    words = {word: id for id in ids for word in (*re.split("[/@]", id), id)}
    near = [words[word] for word in get_close_matches(text, words, n=3, cutoff=0.5)]
    advice = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "bench trend lists what there is"
    raise UsageError(f"no series contains {text!r}; {advice}")


def listing(trends: Sequence[Trend], format: str) -> str:
    """All series, a line each: how many points, the last time, the last change."""
    if format == "json":
        return to_json({"series": [_facts(trend) for trend in trends]})
    if format == "html":
        return page(trends)
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
    return f"{table}\n{which} fewer than {least} comparable points, too few to show a change.\n"


def one(trend: Trend, format: str) -> str:
    """One series: drawn as text, as a table of its points, or as a picture."""
    if format == "json":
        points = [point.to_json() for point in trend.points]
        return to_json({**_facts(trend), "points": points})
    if format == "html":
        return page([trend])
    if format == "svg":
        from results.trend_picture import svg

        return svg(trend)
    if format == "text":
        return drawing(trend)
    changes = {change.index: change for change in trend.changes}
    if format == "csv":
        points = [point.to_json() for point in trend.points]
        rows = [[*p.values(), changes[i].ratio if i in changes else None] for i, p in enumerate(points)]
        return render([*points[0], "change"], rows, "csv")
    rows = []
    for i, point in enumerate(trend.points):
        rate = quantity(point.images / point.seconds, "images/s") if point.images else "-"
        relative = "-" if point.relative is None else f"{point.relative:.4g}"
        change = _percent(changes[i].ratio) if i in changes else ""
        step = quantity(point.seconds, "s", point.low, point.high)
        rows.append([_when(point.created), _short(point.commit, point.dirty), step, rate, relative, change])
    table = render(("when", "commit", "a step", "rate", "of the reference", "change"), rows, _table_format(format))
    bullet = "- " if format == "markdown" else ""
    return "\n\n".join([trend.id, table.rstrip("\n"), *_block([bullet + line for line in named(trend)])]) + "\n"


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
    head = [trend.id, _summary(trend), ""]
    if trend.changes:
        head.append(" " * (margin + 2) + "".join(top).rstrip())
    foot = [" " * margin + " +" + "-" * (at[-1] + 1), " " * (margin + 2) + days]
    told = [textwrap.fill(line, width, subsequent_indent="   ") for line in named(trend)]
    return "\n".join([*head, *lines, *foot, "", *told]) + "\n"


def named(trend: Trend) -> list[str]:
    """A line for each change, and for what else a reader of a picture must know."""
    lines = [f"{letter(number)}  {_told(change)}" for number, change in enumerate(trend.changes)]
    longest = max(len(chain.values) for chain in trend.chains)
    if longest < fewest_points():
        count = "1 comparable point" if longest == 1 else f"{longest} comparable points"
        lines.append(f"{count}; a change can be shown from {fewest_points()} on")
    elif not lines:
        lines.append(f"no change beyond {100 * trend.margin:g} %")
    if 0 < len(trend.breaks) <= MARKED_BREAKS:
        lines.append("dotted: the machine, its software or its settings changed")
    if len(trend.chains) > 1:
        lines.append(
            f"{len(trend.chains)} parts of other machines or without the pinned reference; "
            "they are not compared with one another"
        )
    if trend.relative:
        lines.append("in steps of the pinned reference, measured in the same runs")
    return lines


def page(trends: Sequence[Trend]) -> str:
    """One HTML page with the list and every picture in it; it needs no other file."""
    from results.trend_picture import svg

    title = trends[0].id if len(trends) == 1 else f"{len(trends)} workloads"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>bench trend: {html.escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        "<h1>bench trend</h1>",
    ]
    if len(trends) > 1:
        parts.append("<table><tr><th>workload<th>points<th>a step<th>last change<th>when<th>commit</tr>")
        for number, trend in enumerate(trends):
            id, *cells = _line(trend)
            tone = "" if not trend.changes else "worse" if trend.changes[-1].ratio > 1 else "better"
            link = f'<a href="#s{number}">{html.escape(str(id))}</a>'
            parts.append(f'<tr class="{tone}"><td>{link}' + "".join(f"<td>{html.escape(str(c))}" for c in cells))
        parts.append("</table>")
    for number, trend in enumerate(trends):
        # An SVG inside HTML has no prologue of its own.
        picture = svg(trend)
        parts.append(f'<section id="s{number}"><h2>{html.escape(trend.id)}</h2><p>{html.escape(_summary(trend))}</p>')
        parts.append(picture[picture.index("<svg") :].strip())
        parts.append("<ul>" + "".join(f"<li>{html.escape(line)}" for line in named(trend)) + "</ul></section>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h2{font-size:1rem;overflow-wrap:anywhere;margin-top:2.5rem}table{border-collapse:collapse;font-size:.85rem}"
    "th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #ddd}svg{max-width:100%;height:auto}"
    "td:first-child{overflow-wrap:anywhere}tr.worse td:nth-child(4){color:#b34700}"
    "tr.better td:nth-child(4){color:#00694b}"
)


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
    told: list[Cell] = [None] * 4 if change is None else [change.ratio, change.created, change.commit, change.p]
    return [trend.id, len(trend.points), last.seconds, last.relative, trend.margin, *told]


def _line(trend: Trend) -> list[Cell]:
    last = trend.points[-1]
    told: list[Cell] = ["-", "-", "-"]
    if trend.changes:
        change = trend.changes[-1]
        told = [_percent(change.ratio), change.created[:10], _short(change.commit)]
    return [trend.id, len(trend.points), quantity(last.seconds, "s", last.low, last.high), *told]


def _summary(trend: Trend) -> str:
    last = trend.points[-1]
    count = "1 run" if len(trend.points) == 1 else f"{len(trend.points)} runs"
    rate = f" ({quantity(last.images / last.seconds, 'images/s')})" if last.images else ""
    return (
        f"{count}, the last of {_when(last.created)}: {quantity(last.seconds, 's', last.low, last.high)} a step{rate}"
    )


def _told(change: Change) -> str:
    if change.relative:
        sizes = f"{change.before:.4g} -> {change.after:.4g} of the reference"
    else:
        sizes = f"{quantity(change.before, 's')} -> {quantity(change.after, 's')}"
    told = f"{change.created[:10]} {_short(change.commit)}: {_percent(change.ratio)} time ({sizes}), p={change.p:.1g}"
    return told + ("; the machine or its software changed there too" if change.new_machine else "")


def _labels(low: float, high: float, unit: str, height: int) -> list[str]:
    """A scale at every third row; the others are blank."""
    step = 3 * (high - low) / (height - 1)
    decimals = next((d for d in range(6) if step >= 5 * 10.0**-d), 6)
    values = [high - i * (high - low) / (height - 1) for i in range(height)]
    return [f"{value:.{decimals}f} {unit}" if i % 3 == 0 else "" for i, value in enumerate(values)]


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _short(commit: str | None, dirty: bool = False) -> str:
    return "-" if commit is None else commit[:10] + ("+" if dirty else "")


def _when(created: str) -> str:
    return created[:16].replace("T", " ")


def _table_format(format: str) -> str:
    return "text" if format == "table" else format


def _block(lines: list[str]) -> list[str]:
    return ["\n".join(lines)] if lines else []
