"""Charts of stored results: small enough for a phone, titled by what they show.

Each function returns the title with the figure, or None where there is nothing to draw. They have the colours of the
page that they are drawn for (style.PAGE), or without one those of a file.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from results.classification import most_confused
from results.curves import Curve, curves_of, has_knee, point_label
from results.gate import CheckReport
from results.history import Epoch, History, Step
from results.pictures import profile as profile_pictures
from results.pictures.bars import draw_bars
from results.pictures.curves import draw_epochs
from results.pictures.images import confusion_axes
from results.pictures.style import (
    COLOURS,
    label_axes,
    new_figure,
    save,
    shortened,
    styled,
)
from results.profile import OVERHEAD, Profile, plain_name
from results.record import Metric, Record, Value
from results.runs import RunSummary
from results.tables import percent, plural, quantity, time_unit, unit_for
from results.verdict import BETTER, WORSE, compare_verdict, margin_of

Drawn = tuple[str, Figure] | None

WIDTH = 4.9
"""Inches of every chart: at a phone's width text is still as large as the page's notes."""
NAMED_CLASSES = 12
"""Of a confusion matrix; with more classes only the pairs most confused are drawn."""

_GREY = "#888888"

_Point = tuple[float, float | None, float | None, str]
"""A number, the ends of its interval, and the colour of its mark."""


def _figure(height: float) -> tuple[Figure, Axes]:
    return new_figure(WIDTH, height)


def _name(text: str) -> str:
    return shortened(text, 24)


def _rows(axes: Axes, points: Sequence[_Point], names: Sequence[str]) -> None:
    """A row a point, the first on top: its mark on its interval."""
    for place, (x, low, high, colour) in enumerate(points):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2.5)
        axes.plot([x], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color=rcParams["axes.edgecolor"], linewidth=1)
    axes.set_yticks(range(len(points)), names)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.grid(True, axis="x")


def _scatter(axes: Axes, points: Mapping[str, tuple[float, float, float | None, float | None]], x: str, y: str) -> None:
    """Named points (x, y, low, high) with the intervals of y."""
    for number, (name, (at, value, low, high)) in enumerate(points.items()):
        paint = COLOURS[number % 6]
        if low is not None and high is not None:
            axes.plot([at, at], [low, high], color=paint, linewidth=2)
        axes.plot([at], [value], "o", color=paint, markersize=6)
        top = (at, value if high is None else high)
        axes.annotate(_name(name), top, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(x=0.25, y=0.25)
    label_axes(axes, None, x, y)


def _two_best(first: str, is_first: str, second: str, is_second: str) -> str:
    if first == second:
        return f"{_name(first)} is both {is_first} and {is_second}"
    return f"{_name(first)} is {is_first}, {_name(second)} is {is_second}"


def of_comparison(record: Record, accuracy: Mapping[str, float]) -> dict[str, Drawn]:
    """The charts of a comparison by their names; of one over something, its curves.

    Args:
        accuracy: published top-1 accuracies of models, fractions.
    """
    found = _of_comparison(record, accuracy)
    if record.settings.get("quick"):
        return {name: made and (f"first estimate: {made[0]}", made[1]) for name, made in found.items()}
    return found


def _of_comparison(record: Record, accuracy: Mapping[str, float]) -> dict[str, Drawn]:
    varied = {metric.name: curves_of(record, metric) for metric in record.metrics if has_knee(metric)}
    if any(varied.values()):
        found: dict[str, Drawn] = {}
        for name, drawn in varied.items():
            task = name.split("_")[0]
            found[name.replace("_", "-")] = knees(drawn)
            if name.endswith("_throughput"):
                found[f"{task}-batch-time"] = batch_times(drawn)
                found[f"{task}-memory"] = memories(drawn, record.metric(f"{task}_peak_bytes"))
        return found
    return {
        "ratios": ratios(record),
        "speed-and-size": speed_and_size(record),
        "speed-and-accuracy": speed_and_accuracy(record, accuracy),
        "latencies": latencies(record),
        "roofs": roofs(record),
    }


def write(record: Record, accuracy: Mapping[str, float], folder: Path) -> list[Path]:
    """Write the charts of a comparison as .png into a folder, which is made where it is missing; returns the files.

    Raises:
        RecordError: a file cannot be written.
    """
    written = []
    for name, drawn in of_comparison(record, accuracy).items():
        if drawn is not None:
            title, figure = drawn
            figure.suptitle(textwrap.fill(title, 60), fontsize=10, x=0.01, ha="left")
            written.append(save(figure, folder / f"{name}.png", dpi=180))
    return written


def _lines(lines: Mapping[str, Mapping[int, Value]], factor: float, key: str, y: str) -> Figure:
    """A line a name through its numbers, in the unit of `factor`, over what was varied; their intervals as a band."""
    figure, axes = _figure(2.9)
    for number, (name, values) in enumerate(lines.items()):
        paint = COLOURS[number % 6]
        points = [(at, x.median / factor) for at, x in values.items() if x.median is not None]
        axes.plot(*zip(*points, strict=True), "o-", color=paint, label=_name(name))
        sure = [(at, x.low / factor, x.high / factor) for at, x in values.items() if x.low is not None and x.high]
        if sure:
            at, low, high = zip(*sure, strict=True)
            axes.fill_between(at, low, high, color=paint, alpha=0.2, linewidth=0)
    label_axes(axes, None, key, y)
    if key == "batch":
        axes.set_xscale("log", base=2)
    ticks = sorted({at for values in lines.values() for at in values})
    axes.set_xticks(ticks, [str(at) for at in ticks])
    axes.minorticks_off()
    # Room for the highest mark.
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    if len(lines) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled()
def knees(drawn: Sequence[Curve]) -> Drawn:
    """A rate or a latency over what was varied, a ring around each curve's knee."""
    known = [curve for curve in drawn if curve.knee is not None]
    if not known:
        return None
    metric, key = known[0].metric, known[0].key
    factor, unit = unit_for([value.median for curve in known for value in curve.values.values()], metric.unit)
    task = _metric_words(metric)
    figure = _lines({curve.subject: curve.values for curve in known}, factor, key, f"{task} [{unit}]")
    for curve in known if key != "size" else ():
        height = curve.values[curve.knee or 0].median or 0.0
        ring = {"fillstyle": "none", "markersize": 12, "color": rcParams["text.color"]}
        figure.axes[0].plot([curve.knee or 0], [height / factor], "o", **ring)
    if len(known) == 1:
        return f"{task}: {known[0].verdict()}", figure
    return f"{task}: " + "; ".join(f"{_name(curve.subject)} {curve.verdict()}" for curve in known), figure


@styled()
def batch_times(drawn: Sequence[Curve]) -> Drawn:
    """How long a batch takes, over what was varied."""
    times = {curve.subject: {at: took for at in curve.values if (took := curve.seconds(at))} for curve in drawn}
    return _first_and_last(times, "s", drawn[0].key, "time of a batch", "a batch of {} takes")


@styled()
def memories(drawn: Sequence[Curve], peaks: Metric | None) -> Drawn:
    """Peak memory of a step, over what was varied."""
    if peaks is None:
        return None
    labels = {curve.subject: {at: point_label(curve.subject, curve.key, at) for at in curve.values} for curve in drawn}
    found = {
        name: {at: peaks.values[label] for at, label in points.items() if label in peaks.values}
        for name, points in labels.items()
    }
    return _first_and_last(found, peaks.unit, drawn[0].key, "peak memory", "{} needs")


def _first_and_last(found: Mapping[str, Mapping[int, Value]], unit: str, key: str, label: str, words: str) -> Drawn:
    """Numbers over what was varied, titled by the smallest and largest value of the first operand."""
    lines = {name: {at: x for at, x in values.items() if x.median is not None} for name, values in found.items()}
    lines = {name: values for name, values in lines.items() if len({x.median for x in values.values()}) > 1}
    if not lines:
        return None
    numbers = [x.median for values in lines.values() for x in values.values()]
    factor, scaled = time_unit(numbers) if unit == "s" else unit_for(numbers, unit)
    name, values = next(iter(lines.items()))
    ends = [f"{quantity(values[at].median, unit)} at {key} {at}" for at in (min(values), max(values))]
    title = f"{words.format(_name(name))} {', '.join(ends)}"
    return title, _lines(lines, factor, key, f"{label} [{scaled}]")


@styled()
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
    points, names, verdicts = [], [], []
    for metric, ratio in rows:
        verdicts.append(compare_verdict(ratio, metric.better, margin_of(metric.name)))
        # Times count the other way round: a point to the right is always the better one.
        turned = ratio if metric.better == "higher" else ratio.inverse()
        x, low, high = (math.log2(x) if x else None for x in (turned.estimate, turned.low, turned.high))
        paint = {BETTER: COLOURS[2], WORSE: COLOURS[1]}.get(verdicts[-1], _GREY)
        points.append((x or 0.0, low, high, paint))
        names.append(_metric_words(metric) + (f": {_name(ratio.of)}" if several else ""))
    figure, axes = _figure(0.9 + 0.24 * len(rows))
    _rows(axes, points, names)
    left, right = axes.get_xlim()
    ticks = [t for t in _RATIOS if left <= math.log2(t) <= right]
    axes.set_xticks([math.log2(t) for t in ticks], [f"{t:g}" for t in ticks])
    reference = _name(rows[0][1].to)
    axes.set_xlabel(f"times as good as {reference}: right of 1 is better")
    who = "others are" if several else f"{_name(rows[0][1].of)} is"
    # What is never better is told by where it is worse.
    verdict = BETTER if BETTER in verdicts or WORSE not in verdicts else WORSE
    return f"{who} {verdict} than {reference} in {verdicts.count(verdict)} of {plural(len(rows), 'figure')}", figure


# Ratios that an axis may name: close together around 1, where it matters.
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 100)


def _metric_words(metric: Metric) -> str:
    return metric.name.replace("_", " ").replace("inference latency ", "latency ").replace("throughput", "rate")


@styled()
def speed_and_size(record: Record) -> Drawn:
    """Images a second of inference against parameters, a point a network."""
    size = record.metric("params")
    counts = {} if size is None else {name: float(value.median or 0) for name, value in size.values.items()}
    factor, unit = unit_for([x for x in counts.values() if x], "parameters")
    known = {name: x / factor for name, x in counts.items() if x}
    return _speed_against(record, known, f"parameters [{unit}]", -1, "the smallest")


@styled()
def speed_and_accuracy(record: Record, accuracy: Mapping[str, float]) -> Drawn:
    """Images a second of inference against the top-1 accuracy that was published for the network's weights."""
    networks = {name: name.split("@")[0].split("#")[0] for name in record.operands}
    known = {name: 100 * accuracy[network] for name, network in networks.items() if network in accuracy}
    label = "top-1 on ImageNet published for torchvision's first weights [%]"
    return _speed_against(record, known, label, 1, "the most accurate")


def _speed_against(record: Record, known: Mapping[str, float], label: str, sign: int, words: str) -> Drawn:
    """Speed against what is `known` of operands; the one with the greatest `sign` times that is named by `words`."""
    speed = record.metric("inference_throughput")
    points = {
        name: (known[name], float(value.median), value.low, value.high)
        for name, value in ({} if speed is None else speed.values).items()
        if value.median is not None and name in known
    }
    if speed is None or len({x for x, *_ in points.values()}) < 2:
        return None
    figure, axes = _figure(2.9)
    _scatter(axes, points, label, f"inference [images/s], batch {speed.batch}")
    axes.set_ylim(bottom=0)
    fastest = max(points, key=lambda name: points[name][1])
    best = max(points, key=lambda name: sign * points[name][0])
    return _two_best(fastest, "the fastest", best, words), figure


@styled()
def latencies(record: Record) -> Drawn:
    """How long single images take: the share answered within a time."""
    metric = record.metric("inference_latency_p50")
    medians = {} if metric is None else {o: v.median for o, v in metric.values.items() if v.median is not None}
    if metric is None or not medians:
        return None
    figure, axes = _figure(2.9)
    known = {name: values for name, values in metric.quantiles.items() if values}
    factor, unit = unit_for([v[50] for v in known.values()] if known else list(medians.values()), "s")
    if known:
        for number, (name, values) in enumerate(known.items()):
            shares = np.linspace(0, 100, len(values))
            axes.plot(np.array(values) / factor, shares, color=COLOURS[number % 6], label=_name(name))
        # The slowest percent of a shared machine would squeeze the rest into a line.
        axes.set_xlim(right=1.15 * max(values[-2] for values in known.values()) / factor)
    else:
        rows = {p: record.metric(f"inference_latency_p{p}") for p in (50, 90, 99)}
        for number, name in enumerate(medians):
            found = [(p, row.values[name].median) for p, row in rows.items() if row is not None]
            points = [(x / factor, p) for p, x in found if x is not None]
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[number % 6], label=_name(name), markersize=4)
    axes.set_xlim(left=0)
    label_axes(axes, None, f"time for one image [{unit}]", "images answered [%]" if known else "percentile")
    figure.legend(loc="outside lower center", ncols=2)
    fastest = min(medians, key=lambda name: medians[name])
    return f"{_name(fastest)} answers half of its images within {quantity(medians[fastest], 's')}", figure


@styled()
def roofs(record: Record) -> Drawn:
    """Share of the measured ceilings that each operand reaches."""
    metric = record.metric("roof_fraction")
    shares = {} if metric is None else {o: 100 * v.median for o, v in metric.values.items() if v.median is not None}
    if not shares:
        return None
    figure, axes = _figure(0.9 + 0.3 * len(shares))
    draw_bars(axes, {name: {"": share} for name, share in shares.items()}, "{:.0f} %".format)
    axes.axvline(100, color=rcParams["axes.edgecolor"], linewidth=1, linestyle="--")
    axes.set_xlim(right=max(112.0, axes.get_xlim()[1]))
    axes.set_xlabel("share of the roof measured in this run [%]")
    nearest = max(shares, key=lambda name: shares[name])
    task = "training" if record.metric("training_throughput") else "inference"
    return f"{_name(nearest)} comes closest to the roof in {task}: {shares[nearest]:.0f} %", figure


@styled()
def changes(report: CheckReport) -> Drawn:
    """Change of time of every workload with its interval and the margin that matters."""
    rows = [(row, row.decision) for row in report.rows if row.decision is not None]
    if not rows:
        return None
    figure, axes = _figure(0.9 + 0.3 * len(rows))
    colours = {"REGRESSED": COLOURS[1], "IMPROVED": COLOURS[2], "CLEAN": COLOURS[0]}
    points = []
    for place, (row, decision) in enumerate(rows):
        axes.barh(
            place, 200 * decision.margin, 0.8, left=-100 * decision.margin, color=rcParams["grid.color"], alpha=0.5
        )
        low, high = (None if x is None else 100 * (x - 1) for x in (decision.clean_low, decision.clean_high))
        points.append((100 * (decision.estimate - 1), low, high, colours.get(row.verdict, _GREY)))
    _rows(axes, points, [shortened("/".join(row.workload.split("/")[:2]), 34) for row, _ in rows])
    axes.set_xlabel("change of time [%]; grey: the margin")
    verdicts = [row.verdict for row, _ in rows]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
    return f"{counts} of {plural(len(rows), 'workload')}", figure


@styled()
def flame(profile: Profile) -> Drawn:
    """Time by layer."""
    return _untitled(profile_pictures.flame(profile))


@styled()
def roofline(profile: Profile) -> Drawn:
    """Operators under the ceilings."""
    drawn = _untitled(profile_pictures.roofline(profile))
    if drawn is not None:
        drawn[1].set_size_inches(WIDTH, 3.6)
    return drawn


def _untitled(figure: Figure | None) -> Drawn:
    """The title apart: a page has it in its text."""
    if figure is None:
        return None
    title = str(figure.axes[0].get_title())
    figure.axes[0].set_title("")
    return title, figure


@styled()
def operators(profile: Profile) -> Drawn:
    """Time by operator as bars."""
    shares: dict[str, float] = {}
    for operator in profile.operators[:8]:
        # Operators of one kind may have several names.
        name = plain_name(operator.name)
        shares[name] = shares.get(name, 0.0) + operator.seconds / profile.profiled_seconds
    if not shares:
        return None
    colours = [COLOURS[0]] * len(shares) + ["#999999"] * 2
    rest = sum(operator.seconds for operator in profile.operators[8:]) / profile.profiled_seconds
    if rest >= 0.001:
        shares["other operators"] = rest
    if profile.idle is None:
        shares[OVERHEAD] = profile.host_share
    figure, axes = _figure(0.8 + 0.25 * len(shares))
    draw_bars(axes, {name: {"": 100 * x} for name, x in shares.items()}, "{:.1f} %".format, colours=colours)
    axes.set_xlabel("share of a profiled step [%]")
    first = next(iter(shares))
    return f"{first} takes {percent(shares[first])} of the step", figure


@styled()
def loader_stages(profile: Profile) -> Drawn:
    """Rates of loader, step and both, and what the loader spends its time on."""
    stalls = profile.stalls
    if stalls is None:
        return None
    rates = {"loader alone": stalls.loader_rate, "step alone": stalls.step_rate, "joined": stalls.joined_rate}
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    above, below = figure.subplots(2, 1)
    bars = {name: {"": rate} for name, rate in rates.items()}
    draw_bars(above, bars, lambda rate: quantity(rate, "images/s"), colours=COLOURS, room=0.3)
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
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return stalls.sentence(), figure


@styled()
def losses(history: History, summary: RunSummary) -> Drawn:
    """Loss of each epoch."""
    if not history.epochs:
        return None
    figure, axes = _figure(2.7)
    draw_epochs(axes, history, {"train_loss": "training", "val_loss": _evaluated(summary)})
    label_axes(axes, None, "epoch", "loss")
    first, last = history.epochs[0].train_loss, history.epochs[-1].train_loss
    return f"training loss from {first:.2f} to {last:.2f} in {plural(history.epochs[-1].epoch, 'epoch')}", figure


@styled()
def curves(history: History, summary: RunSummary) -> Drawn:
    """Accuracy of each epoch."""
    if not history.epochs:
        return None
    figure, axes = _figure(2.7)
    draw_epochs(axes, history, {"train_top1": "training", "val_top1": _evaluated(summary)}, 100)
    label_axes(axes, None, "epoch", "top-1 [%]")
    best = history.best
    if best is None or best.val_top1 is None:
        return f"training top-1 {100 * history.epochs[-1].train_top1:.1f} %", figure
    return f"best {_evaluated(summary)} top-1 {100 * best.val_top1:.2f} %, in epoch {best.epoch}", figure


@styled()
def learning_rate(history: History) -> Drawn:
    """Learning rate by step where steps are known, else by epoch."""
    rows: Sequence[Step | Epoch] = history.steps or history.epochs
    if not rows:
        return None
    figure, axes = _figure(2.2)
    unit = "step" if history.steps else "epoch"
    at = [getattr(row, unit) for row in rows]
    axes.plot(at, [row.lr for row in rows], color=COLOURS[0])
    label_axes(axes, None, unit, "learning rate")
    axes.set_ylim(bottom=0)
    top = max(range(len(rows)), key=lambda i: rows[i].lr)
    return f"learning rate up to {rows[top].lr:.3g}, at {unit} {at[top]}", figure


def _evaluated(summary: RunSummary) -> str:
    return "validation" if summary.evaluated == "val" else summary.evaluated


@styled()
def confusion(matrix: ArrayLike, names: Sequence[str]) -> Drawn:
    """The matrix of few classes, or the pairs most confused of many."""
    pairs = most_confused(matrix, names, 12)
    if len(names) <= NAMED_CLASSES:
        figure, axes = _figure(1.4 + 0.28 * len(names))
        confusion_axes(axes, matrix, names, 7.0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    elif pairs:
        figure, axes = _figure(0.8 + 0.24 * len(pairs))
        shares = {f"{shortened(p.true, 14)} as {shortened(p.predicted, 14)}": {"": 100 * p.share} for p in pairs}
        draw_bars(axes, shares, "{:.1f} %".format)
        axes.set_xlabel("share of the true class [%]")
    else:
        return None
    if not pairs:
        return "no image was taken for another class", figure
    worst = pairs[0]
    return f"{worst.true} is most often taken for {worst.predicted}: {plural(worst.images, 'image')}", figure


@styled()
def accuracies(summaries: Sequence[RunSummary]) -> Drawn:
    """Top-1 of each run beside what was published."""
    known = [(run, 100 * run.top1) for run in summaries if run.top1 is not None]
    if not known:
        return None
    figure, axes = _figure(0.9 + 0.3 * len(known))
    draw_bars(axes, {run.name: {"": top1} for run, top1 in known}, "{:.2f}".format)
    theirs = [(place, run.published.top1) for place, (run, _) in enumerate(known) if run.published is not None]
    marks = [(100 * top1, place) for place, top1 in theirs if top1 is not None]
    if marks:
        axes.plot(*zip(*marks, strict=True), "D", color=COLOURS[1], markersize=5, label="published")
        axes.legend(loc="lower left")
    axes.set_xlim(0, 112)
    axes.set_xlabel("test top-1 [%]")
    return f"{known[0][0].name} leads with {known[0][1]:.2f} %", figure


@styled()
def accuracy_and_params(summaries: Sequence[RunSummary]) -> Drawn:
    """Top-1 against parameters."""
    known = {run.name: (run.params, run.top1) for run in summaries}
    return _accuracy_against(known, "parameters", "parameters", "has the fewest parameters")


@styled()
def accuracy_and_time(summaries: Sequence[RunSummary]) -> Drawn:
    """Top-1 against the time of training."""
    known = {run.name: (run.train_seconds, run.top1) for run in summaries}
    return _accuracy_against(known, "s", "training", "trains in the least time")


def _accuracy_against(
    figures: Mapping[str, tuple[float | None, float | None]], unit: str, label: str, least_words: str
) -> Drawn:
    known = {name: (x, 100 * top1) for name, (x, top1) in figures.items() if x and top1 is not None}
    costs = [x for x, _ in known.values()]
    if len(set(costs)) < 2:
        return None
    factor, scale = time_unit(costs) if unit == "s" else unit_for(costs, unit)
    figure, axes = _figure(2.9)
    points = {name: (x / factor, top1, None, None) for name, (x, top1) in known.items()}
    _scatter(axes, points, f"{label} [{scale}]", "test top-1 [%]")
    least = min(known, key=lambda name: known[name][0])
    best = max(known, key=lambda name: known[name][1])
    if least == best:
        return f"{best} is the most accurate and {least_words}", figure
    return f"{best} is the most accurate, {least} {least_words}", figure
