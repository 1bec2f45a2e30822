"""Charts of a report: small enough to be read on a phone, in the page's own colours, titled by what they show.

Each function returns the title with the figure, or None where there is nothing to draw. `inline` makes a figure part of
a page: text stays text, sizes follow the page, and colours follow its theme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results import profile_pictures
from results.classification import most_confused
from results.gate import CheckReport
from results.history import History, time_unit
from results.plots import COLOURS, confusion_axes, style_context
from results.profile import OVERHEAD, Profile, plain_name
from results.record import Metric, Record
from results.runs import RunSummary
from results.tables import quantity, unit_for
from results.verdict import BETTER, WORSE, compare_verdict, margin_of

Drawn = tuple[str, Figure] | None

WIDTH = 4.9  # inches: at a phone's width text is still as large as the page's notes
LATENCY = "inference_latency_p50"
NAMED_CLASSES = 12  # of a confusion matrix, beyond which only the pairs most confused are drawn

# Colours that no chart uses otherwise, which `inline` turns into the page's own.
INK, FAINT, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_THEMED = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)", PAPER: "var(--paper)"}
# The same by the names other pictures of this project use.
_THEMED |= {"#222222": "var(--ink)", "#444444": "var(--ink)", "#000000": "var(--ink)", "#dddddd": "var(--grid)"}

_STYLE: dict[str, Any] = {
    "text__color": INK,
    "axes__labelcolor": INK,
    "axes__titlecolor": INK,
    "xtick__color": INK,
    "ytick__color": INK,
    "axes__edgecolor": FAINT,
    "grid__color": GRID,
    "axes__facecolor": "none",
    "figure__facecolor": "none",
    "savefig__facecolor": "none",
    "legend__frameon": False,
    "svg__fonttype": "none",
    "font__size": 9.0,
    "xtick__labelsize": 8.0,
    "ytick__labelsize": 8.0,
    "legend__fontsize": 8.0,
}


def inline(figure: Figure, title: str) -> str:
    """The figure as SVG markup for a page: no size of its own but a largest one, and the page's colours."""
    data = io.StringIO()
    with style_context(**_STYLE):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    svg = data.getvalue()
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    width = float(box[1].split()[2])
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)
    for colour, variable in _THEMED.items():
        rest = rest.replace(colour, variable)
    # The page's typeface: matplotlib's own is seldom installed.
    rest = re.sub(r"font: ([^;\"]*?)(\d[\d.]*)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", rest)
    words = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return (
        f'<svg viewBox="{box[1]}" role="img" aria-label="{words}" style="max-width:{1.35 * width:.0f}px" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _styled(draw: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """Colours are taken when something is drawn, so the style is set around the drawing too."""

    def drawn(*given: Any) -> Drawn:
        with style_context(**_STYLE):
            return draw(*given)

    drawn.__doc__ = draw.__doc__
    drawn.__name__ = draw.__name__
    return drawn


def _bars(
    axes: Axes,
    values: Mapping[str, float],
    text: Callable[[float], str],
    colours: Sequence[str] = (COLOURS[0],),
    room: float = 1.15,
) -> None:
    """Horizontal bars from 0, the first on top, each with its number at the end; the axis leaves room for these."""
    for place, value in enumerate(values.values()):
        axes.barh(place, value, 0.7, color=colours[place % len(colours)])
        axes.annotate(text(value), (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(values)), [_short(name, 30) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(0, room * max(*values.values(), 1e-9))
    axes.grid(True, axis="x")


# ---- comparisons ----


@_styled
def ratios(record: Record) -> Drawn:
    """Every measured ratio with its interval, on one axis, better to the right."""
    rows = [
        (metric, ratio)
        for metric in record.metrics
        for ratio in metric.comparisons
        if not ratio.counted and ratio.estimate and metric.name != "compile_seconds"
    ]
    if not rows:
        return None
    several = len(record.operands) > 2
    figure, axes = _figure(0.9 + 0.24 * len(rows))
    better = 0
    for place, (metric, ratio) in enumerate(rows):
        # Times count the other way round: a bar to the right is always the better one.
        turned = ratio if metric.better == "higher" else ratio.inverse()
        verdict = compare_verdict(ratio, metric.better, margin_of(metric.name))
        better += verdict == BETTER
        colour = {BETTER: COLOURS[2], WORSE: COLOURS[1]}.get(verdict, "#888888")
        x = math.log2(turned.estimate or 1)
        if turned.low and turned.high:
            axes.plot([math.log2(turned.low), math.log2(turned.high)], [place, place], color=colour, linewidth=2.5)
        axes.plot([x], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(
        range(len(rows)),
        [_metric_words(metric) + (f": {_short(ratio.of)}" if several else "") for metric, ratio in rows],
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low, high = axes.get_xlim()
    ticks = [t for t in _RATIOS if low <= math.log2(t) <= high]
    axes.set_xticks([math.log2(t) for t in ticks], [f"{t:g}" for t in ticks])
    axes.set_xlabel(f"times as good as {_short(rows[0][1].to)}: right of 1 is better")
    axes.grid(True, axis="x")
    who = "others" if several else _short(rows[0][1].of)
    return f"{who} measured better than {_short(rows[0][1].to)} in {better} of {len(rows)} figures", figure


# Ratios that an axis may name: close together around 1, where it matters.
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 100)


def _metric_words(metric: Metric) -> str:
    return metric.name.replace("_", " ").replace("inference latency ", "latency ").replace("throughput", "rate")


@_styled
def speed_and_size(record: Record) -> Drawn:
    """Images a second of inference against parameters, a point a network."""
    speed, size = record.metric("inference_throughput"), record.metric("params")
    if speed is None or size is None or len({v.median for v in size.values.values()}) < 2:
        return None
    points = {
        name: (float(size.values[name].median or 0), value)
        for name, value in speed.values.items()
        if value.median is not None and name in size.values and size.values[name].median
    }
    if len(points) < 2:
        return None
    factor, unit = unit_for([x for x, _ in points.values()], "parameters")
    figure, axes = _figure(2.9)
    _scatter(axes, {name: (x / factor, value) for name, (x, value) in points.items()})
    axes.set_xlabel(f"parameters [{unit}]")
    axes.set_ylabel(f"inference [images/s], batch {speed.batch}")
    fastest = max(points, key=lambda name: points[name][1].median or 0)
    smallest = min(points, key=lambda name: points[name][0])
    if fastest == smallest:
        return f"{_short(fastest)} is both the fastest and the smallest", figure
    return f"{_short(fastest)} is the fastest, {_short(smallest)} the smallest", figure


@_styled
def speed_and_accuracy(record: Record, accuracy: Mapping[str, float]) -> Drawn:
    """Images a second of inference against the top-1 accuracy that was published for the network's weights."""
    speed = record.metric("inference_throughput")
    if speed is None:
        return None
    points = {
        name: (100 * accuracy[name.split("@")[0].split("#")[0]], value)
        for name, value in speed.values.items()
        if value.median is not None and name.split("@")[0].split("#")[0] in accuracy
    }
    if len({x for x, _ in points.values()}) < 2:
        return None
    figure, axes = _figure(2.9)
    _scatter(axes, points)
    axes.set_xlabel("top-1 on ImageNet published for torchvision's first weights [%]")
    axes.set_ylabel(f"inference [images/s], batch {speed.batch}")
    fastest = max(points, key=lambda name: points[name][1].median or 0)
    best = max(points, key=lambda name: points[name][0])
    if fastest == best:
        return f"{_short(fastest)} is both the fastest and the most accurate", figure
    return f"{_short(fastest)} is the fastest, {_short(best)} the most accurate", figure


def _scatter(axes: Axes, points: Mapping[str, tuple[float, Any]]) -> None:
    for number, (name, (x, value)) in enumerate(points.items()):
        colour = COLOURS[number % 6]
        if value.low is not None and value.high is not None:
            axes.plot([x, x], [value.low, value.high], color=colour, linewidth=2)
        axes.plot([x], [value.median], "o", color=colour, markersize=6)
        top = value.median if value.high is None else value.high
        axes.annotate(_short(name), (x, top), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(x=0.25, y=0.25)
    axes.set_ylim(bottom=0)
    axes.grid(True)


@_styled
def latencies(record: Record) -> Drawn:
    """How long single images take: the share answered within a time."""
    metric = record.metric(LATENCY)
    if metric is None:
        return None
    known = {name: values for name, values in metric.quantiles.items() if values}
    figure, axes = _figure(2.9)
    if known:
        factor, unit = unit_for([values[50] for values in known.values()], "s")
        for number, (name, values) in enumerate(known.items()):
            shares = np.linspace(0, 100, len(values))
            axes.plot(np.array(values) / factor, shares, color=COLOURS[number % 6], label=_short(name))
        # The slowest percent of a shared machine would squeeze the rest into a line.
        axes.set_xlim(left=0, right=1.15 * max(values[-2] for values in known.values()) / factor)
        axes.set_ylabel("images answered [%]")
    else:
        rows = {p: record.metric(f"inference_latency_p{p}") for p in (50, 90, 99)}
        names = [name for name, value in metric.values.items() if value.median is not None]
        if not names:
            return None
        factor, unit = unit_for([metric.values[name].median for name in names], "s")
        for number, name in enumerate(names):
            found = [
                (p, row.values[name])
                for p, row in rows.items()
                if row is not None and row.values[name].median is not None
            ]
            x, y = [float(v.median or 0) / factor for _, v in found], [p for p, _ in found]
            axes.plot(x, y, "o-", color=COLOURS[number % 6], label=_short(name), markersize=4)
        axes.set_xlim(left=0)
        axes.set_ylabel("percentile")
    axes.set_xlabel(f"time for one image [{unit}]")
    axes.grid(True)
    figure.legend(loc="outside lower center", ncols=2)
    medians = {name: value.median for name, value in metric.values.items() if value.median is not None}
    fastest = min(medians, key=lambda name: medians[name] or math.inf)
    return f"{_short(fastest)} answers half of its images within {quantity(medians[fastest], 's')}", figure


@_styled
def roofs(record: Record) -> Drawn:
    """Share of the measured ceilings that each operand reaches."""
    metric = record.metric("roof_fraction")
    if metric is None:
        return None
    known = {name: value for name, value in metric.values.items() if value.median is not None}
    if not known:
        return None
    figure, axes = _figure(0.9 + 0.3 * len(known))
    _bars(axes, {name: 100 * float(v.median or 0) for name, v in known.items()}, "{:.0f} %".format)
    axes.axvline(100, color=FAINT, linewidth=1, linestyle="--")
    axes.set_xlim(right=max(112.0, axes.get_xlim()[1]))
    axes.set_xlabel("share of the roof measured in this run [%]")
    nearest = max(known, key=lambda name: known[name].median or 0)
    of = "training" if record.metric("training_throughput") else "inference"
    return f"{_short(nearest)} comes nearest to the roof in {of}: {100 * (known[nearest].median or 0):.0f} %", figure


@_styled
def changes(report: CheckReport) -> Drawn:
    """Change of time of every workload with its interval and the margin that matters."""
    rows = [row for row in report.rows if row.decision is not None]
    if not rows:
        return None
    figure, axes = _figure(0.9 + 0.3 * len(rows))
    colours = {"REGRESSED": COLOURS[1], "IMPROVED": COLOURS[2], "CLEAN": COLOURS[0]}
    for place, row in enumerate(rows):
        decision = row.decision
        assert decision is not None
        colour = colours.get(row.verdict, "#888888")
        margin = 100 * decision.margin
        axes.barh(place, 2 * margin, 0.8, left=-margin, color=GRID, alpha=0.5)
        if decision.clean_low is not None and decision.clean_high is not None:
            low, high = 100 * (decision.clean_low - 1), 100 * (decision.clean_high - 1)
            axes.plot([low, high], [place, place], color=colour, linewidth=2.5)
        axes.plot([100 * (decision.estimate - 1)], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(rows)), [_short("/".join(row.workload.split("/")[:2]), 34) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("change of time [%]; grey: the margin")
    axes.grid(True, axis="x")
    said = {row.verdict for row in rows}
    counts = ", ".join(f"{sum(row.verdict == v for row in rows)} {v}" for v in sorted(said))
    return f"{counts} of {len(rows)} workload{'' if len(rows) == 1 else 's'}", figure


# ---- profiles ----


@_styled
def flame(profile: Profile) -> Drawn:
    """Time by layer."""
    figure = profile_pictures.flame(profile)
    if figure is None:
        return None
    title = str(figure.axes[0].get_title())
    figure.axes[0].set_title("")
    return title, figure


@_styled
def operators(profile: Profile) -> Drawn:
    """Time by operator as bars."""
    shown = list(profile.operators[:8])
    if not shown:
        return None
    shares: dict[str, float] = {}
    for one in shown:
        # Operators of one kind may have several names.
        name = plain_name(one.name)
        shares[name] = shares.get(name, 0.0) + 100 * one.seconds / profile.profiled_seconds
    shown = shown[: len(shares)]
    rest = 100 * sum(one.seconds for one in profile.operators[8:]) / profile.profiled_seconds
    if rest >= 0.1:
        shares["other operators"] = rest
    if profile.idle is None:
        shares[OVERHEAD] = 100 * profile.host_share
    figure, axes = _figure(0.8 + 0.25 * len(shares))
    colours = [COLOURS[0] if place < len(shown) else "#999999" for place in range(len(shares))]
    _bars(axes, shares, "{:.1f} %".format, colours)
    axes.set_xlabel("share of a profiled step [%]")
    first = next(iter(shares))
    return f"{first} takes {shares[first]:.0f} % of the step", figure


@_styled
def roofline(profile: Profile) -> Drawn:
    """Operators under the ceilings."""
    figure = profile_pictures.roofline(profile)
    if figure is None:
        return None
    title = str(figure.axes[0].get_title())
    figure.axes[0].set_title("")
    figure.set_size_inches(WIDTH, 3.6)
    return title, figure


@_styled
def loader_stages(profile: Profile) -> Drawn:
    """Rates of loader, step and both, and what the loader spends its time on."""
    stalls = profile.stalls
    if stalls is None:
        return None
    rates = {"loader alone": stalls.loader_rate, "step alone": stalls.step_rate, "joined": stalls.joined_rate}
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    above, below = figure.subplots(2, 1)
    _bars(above, rates, lambda rate: quantity(rate, "images/s"), COLOURS, room=1.3)
    above.set_xlabel("images/s")
    total = sum(seconds for _, seconds in stalls.stages)
    left = 0.0
    for place, (name, seconds) in enumerate(stalls.stages):
        share = 100 * seconds / total if total else 0.0
        below.barh(0, share, 0.6, left=left, color=COLOURS[place % 6], label=f"{name} {share:.0f} %")
        left += share
    below.set_yticks([])
    below.set_xlim(0, 100)
    below.set_xlabel("share of an image's loading [%]")
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return stalls.sentence(), figure


# ---- training runs ----


@_styled
def losses(history: History, summary: RunSummary) -> Drawn:
    """Loss of each epoch."""
    if not history.epochs:
        return None
    figure, axes = _figure(2.7)
    _epochs(axes, history, (("train_loss", "training"), ("val_loss", _evaluated(summary))), 1)
    axes.set_ylabel("loss")
    last = history.epochs[-1]
    return f"training loss {history.epochs[0].train_loss:.2f} to {last.train_loss:.2f} in {last.epoch} epochs", figure


@_styled
def curves(history: History, summary: RunSummary) -> Drawn:
    """Accuracy of each epoch."""
    if not history.epochs:
        return None
    figure, axes = _figure(2.7)
    _epochs(axes, history, (("train_top1", "training"), ("val_top1", _evaluated(summary))), 100)
    axes.set_ylabel("top-1 [%]")
    best = history.best
    if best is None or best.val_top1 is None:
        return f"training top-1 {100 * history.epochs[-1].train_top1:.1f} %", figure
    return f"best {_evaluated(summary)} top-1 {100 * best.val_top1:.2f} %, in epoch {best.epoch}", figure


@_styled
def learning_rate(history: History) -> Drawn:
    """Learning rate by step where steps are known, else by epoch."""
    rows: Sequence[Any] = history.steps or history.epochs
    if not rows:
        return None
    figure, axes = _figure(2.2)
    unit = "step" if history.steps else "epoch"
    axes.plot([getattr(row, unit) for row in rows], [row.lr for row in rows], color=COLOURS[0])
    axes.set_xlabel(unit)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(True)
    top = max(rows, key=lambda row: row.lr)
    return f"learning rate up to {top.lr:.3g}, at {unit} {getattr(top, unit)}", figure


def _evaluated(summary: RunSummary) -> str:
    return {"val": "validation"}.get(summary.evaluated, summary.evaluated)


def _epochs(axes: Axes, history: History, lines: Sequence[tuple[str, str]], factor: float) -> None:
    for number, (name, title) in enumerate(lines):
        points = [(e.epoch, factor * x) for e in history.epochs if (x := getattr(e, name)) is not None]
        if points:
            marker = "o" if len(points) <= 40 else None
            axes.plot(*zip(*points, strict=True), color=COLOURS[number], marker=marker, markersize=3, label=title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True)
    axes.legend(loc="best")


@_styled
def confusion(matrix: Any, names: Sequence[str]) -> Drawn:
    """The matrix of few classes, or the pairs most confused of many."""
    pairs = most_confused(matrix, names, 12)
    if len(names) <= NAMED_CLASSES:
        figure, axes = _figure(1.4 + 0.28 * len(names))
        confusion_axes(axes, matrix, names, 7.0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    elif pairs:
        figure, axes = _figure(0.8 + 0.24 * len(pairs))
        named = {f"{_short(p.true, 14)} as {_short(p.predicted, 14)}": 100 * p.share for p in pairs}
        _bars(axes, named, "{:.1f} %".format)
        axes.set_xlabel("share of the true class [%]")
    else:
        return None
    if not pairs:
        return "no image was taken for another class", figure
    worst = pairs[0]
    return f"{worst.true} is taken for {worst.predicted} most often: {worst.images} images", figure


@_styled
def accuracies(summaries: Sequence[RunSummary]) -> Drawn:
    """Top-1 of each run beside what was published."""
    known = [run for run in summaries if run.top1 is not None]
    if not known:
        return None
    figure, axes = _figure(0.9 + 0.3 * len(known))
    _bars(axes, {run.name: 100 * float(run.top1 or 0) for run in known}, "{:.2f}".format)
    for place, run in enumerate(known):
        theirs = None if run.published is None else run.published.top1
        if theirs is not None:
            axes.plot([100 * theirs], [place], "D", color=COLOURS[1], markersize=5)
    if any(run.published is not None and run.published.top1 is not None for run in known):
        axes.plot([], [], "D", color=COLOURS[1], label="published")
        axes.legend(loc="lower left")
    axes.set_yticks(range(len(known)), [_short(run.name, 26) for run in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlim(0, 112)
    axes.set_xlabel("test top-1 [%]")
    axes.grid(True, axis="x")
    return f"{known[0].name} leads with {100 * float(known[0].top1 or 0):.2f} %", figure


@_styled
def accuracy_and_params(summaries: Sequence[RunSummary]) -> Drawn:
    """Top-1 against parameters."""
    return _accuracy_against(summaries, "params", "parameters", "parameters")


@_styled
def accuracy_and_time(summaries: Sequence[RunSummary]) -> Drawn:
    """Top-1 against the time of training."""
    return _accuracy_against(summaries, "train_seconds", "s", "training")


def _accuracy_against(summaries: Sequence[RunSummary], name: str, unit: str, words: str) -> Drawn:
    known = [(run, float(getattr(run, name))) for run in summaries if run.top1 is not None and getattr(run, name)]
    if len({x for _, x in known}) < 2:
        return None
    factor, scale = time_unit([x for _, x in known]) if unit == "s" else unit_for([x for _, x in known], unit)
    figure, axes = _figure(2.9)
    for number, (run, x) in enumerate(known):
        y = 100 * float(run.top1 or 0)
        axes.plot([x / factor], [y], "o", color=COLOURS[number % 6], markersize=6)
        axes.annotate(
            _short(run.name, 18), (x / factor, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7.5
        )
    axes.margins(x=0.25, y=0.2)
    axes.set_xlabel(f"{words} [{scale}]")
    axes.set_ylabel("test top-1 [%]")
    axes.grid(True)
    least = min(known, key=lambda pair: pair[1])[0]
    best = max(known, key=lambda pair: pair[0].top1 or 0)[0]
    what = "needs the fewest parameters" if name == "params" else "trains in the least time"
    if least is best:
        return f"{best.name} is the most accurate and {what}", figure
    return f"{best.name} is the most accurate, {least.name} {what}", figure


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length - 9]}…{text[-8:]}"
