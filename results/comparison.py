"""A comparison as tables and notes below its sentences, for a terminal, a page or a program."""

from __future__ import annotations

import re
from collections.abc import Sequence

from results.curves import beside, curves_of, has_knee, point_label, point_of
from results.errors import RecordError
from results.record import ONE_READING, Metric, Ratio, Record, Value, current_id
from results.tables import (
    FORMATS,
    Cell,
    Footnotes,
    broken,
    fixed,
    html,
    machine_line,
    notes,
    page,
    paint_verdict,
    percent,
    plural,
    ratio_text,
    render,
    time_unit,
    to_json,
    unit_for,
)
from results.verdict import compare_verdict, margin_of, sentence, topic

HEADLINES = (
    "inference_throughput",
    "training_throughput",
    "end_to_end_throughput",
    "loader_throughput",
    "kernel_throughput",
    "step_time",
    "inference_latency_p50",
    "step_peak_bytes",
    "inference_peak_bytes",
    "training_peak_bytes",
    "params",
)
"""Metrics that are reported in words where they were measured; the table holds the rest."""

_HEADER_WIDTH = 18
_NAIVE = "fp32-nchw-eager"
_NOMINAL = 0.9495
"""Below this a confidence is not the 95 % that the legend promises."""
_NOT_MEASURED = Value.none("not measured for this operand")


def compare_table(record: Record, format: str = "text", colour: bool = False, explain: bool = False) -> str:
    """A comparison: sentences, then the tables, then notes and the machine; csv and json are raw.

    Args:
        explain: also what the numbers consist of and how they were measured, and rows without a number. Without it
            there are only the notes that may change what is decided.

    Raises RecordError on an unknown format.
    """
    if format == "json":
        return to_json(record.to_json())
    if format == "csv":
        return _csv(record)
    if format not in FORMATS:
        raise RecordError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    colour = colour and format == "text"
    footnotes = _Notes(record)
    varied = record.settings.get("over")
    if varied:
        tables = _curve_tables(record, format, colour, footnotes, explain)
    else:
        tables = [_values_table(record, format, colour, footnotes, explain)]
    if not varied and len(record.operands) > 2 and any(m.comparisons for m in record.metrics):
        tables.append(_ratios_table(record, format, colour, footnotes))
    below = [
        *footnotes.lines(),
        *([] if explain else _unexplained(record)),
        *_estimated(record),
        *disturbed(record),
        *_twins(record),
        *_meaning(record),
    ]
    if not record.complete:
        below.append("This run was interrupted; the table holds what was measured until then.")
    return page(notes(sentences(record), format), *tables, notes(below, format), notes([machine_line(record)], format))


def compare_html(record: Record) -> str:
    """The same as HTML, to be shown inside a page."""
    return html(compare_table(record, "markdown", explain=True))


# Metrics whose notes say what the number consists of.
_EXPLAINED = (
    "inference_peak_bytes",
    "training_peak_bytes",
    "compile_seconds",
    "roof_fraction",
    "mfu",
    "energy_per_image",
)
_EXPLAINS = re.compile("take the same batches: measured once|; step-bound, |^each in a process of its own")
_DISTANCE = re.compile(r"logits differ from plain fp32's by ([\d.e+-]+) of their spread")
FAR = 0.1
"""Distance of logits from plain fp32's, as a share of their spread, from which on a table always says it."""


def _only_explains(metric: Metric, note: str) -> bool:
    """Whether a note would change nothing that is decided: what is not known to be one of these is shown."""
    if distance := _DISTANCE.search(note):
        return float(distance[1]) < FAR
    return metric.name in _EXPLAINED or _EXPLAINS.search(note) is not None


def _said(metric: Metric, explain: bool) -> list[str]:
    """The notes of a metric that a table shows."""
    said = [note for note in metric.notes if explain or not _only_explains(metric, note)]
    return [*said, ONE_READING] if metric.one_reading else said


def _unexplained(record: Record) -> list[str]:
    """What a table without explanations leaves out: rows without a number, with the reason, and how many notes."""
    lines, shown = [], [metric for metric in record.metrics if in_tables(metric)]
    absent = [
        f"{_title(metric)} ({reasons[0]})"
        for metric in shown
        if (reasons := _reasons(metric)) and len(set(reasons)) == 1
    ]
    if absent:
        lines.append(f"No number: {', '.join(absent)}.")
    if notes := {note for metric in shown for note in metric.notes if _only_explains(metric, note)}:
        lines.append(f"--explain says what the numbers consist of ({plural(len(notes), 'note')}).")
    return lines


def _reasons(metric: Metric) -> list[str]:
    """Why a metric has no number for any operand, one reason each; none if it has a number."""
    reasons = [value.missing or "" for value in metric.values.values()]
    return reasons if all(reasons) else []


def _meaning(record: Record) -> list[str]:
    """What a word of an older record means: its naive is not today's."""
    ids = {id for metric in record.metrics for id in metric.workloads.values()}
    if any(f"@{_NAIVE}/" in id and current_id(id, record.machine) != id for id in ids):
        return [f"naive kept freed memory in this run; today that is {_NAIVE}-keep, and naive is slower."]
    return []


def sentences(record: Record) -> list[str]:
    """The comparison in words: the headline metrics, or every metric when none of those was measured."""
    if record.settings.get("over"):
        drawn = [curve for metric in record.metrics if has_knee(metric) for curve in curves_of(record, metric)]
        return [text for curve in drawn if (text := curve.sentence())]
    found: list[str] = []
    names = [metric.name for metric in record.metrics]
    for metric in [m for name in HEADLINES for m in record.metrics if m.name == name] or record.metrics:
        several = names.count(metric.name) > 1
        found += [sentence(metric, ratio, with_batch=several) for ratio in metric.comparisons]
        if not metric.comparisons:
            missing = {operand: value.missing for operand, value in metric.values.items() if value.missing}
            found += [f"{topic(metric, several)}: no number for {operand} ({why})" for operand, why in missing.items()]
    return found


def _estimated(record: Record) -> list[str]:
    """What first estimates are, in one line; nothing for what was measured in blocks."""
    if not record.settings.get("quick"):
        return []
    return ["First estimates, of a few steps and without compiled code: leave out --quick for an answer."]


BESIDE = {"core": "busy at random times", "busy": "busy at all times"}
"""What `--beside` asked for, in words."""

FOREIGN = 0.02
"""Share of the machine that other programs had while it was measured, from which up a table says so."""


def disturbed(record: Record) -> list[str]:
    """What else the machine did while this was measured, as one line; none where nothing is known or worth saying."""
    load = record.machine.get("load") or {}
    foreign, stolen, stalls = load.get("foreign") or 0.0, load.get("stolen") or 0.0, load.get("stalls") or 0
    parts = []
    if foreign >= FOREIGN:
        # Where only a sliver of it went to other guests, whose it was does not matter.
        guests = f" (of that {percent(stolen)} other guests of its host)" if stolen >= 0.005 else ""
        parts.append(f"other programs had {percent(foreign)} of the machine{guests}")
    if record.settings.get("beside", "none") != "none":
        parts.insert(0, f"a process of the comparison kept one core {BESIDE[str(record.settings['beside'])]}")
    if stalls:
        parts.append(f"{stalls:,} of {plural(load['turns'], 'turn')} took over 5 times as long as usual")
    return [f"While this was measured, {'; '.join(parts)}."] if parts else []


def _twins(record: Record) -> list[str]:
    """Operands that are the same thing as the first one of these, in one line: what a table shows of them is noise."""
    measured = [metric.workloads for metric in record.metrics if metric.workloads]
    groups: dict[tuple[str | None, ...], list[str]] = {}
    varied = record.settings.get("over")
    for operand in record.operands if measured and record.kind != "stored" and not varied else ():
        groups.setdefault(tuple(ids.get(operand) for ids in measured), []).append(operand)
    return [
        f"{', '.join(same[:-1])} and {same[-1]} are the same in the same configuration: what is measured differs by "
        "noise, what is counted is equal by definition."
        for ids, same in groups.items()
        if len(same) > 1 and any(ids)
    ]


def metric_line(metric: Metric) -> str:
    """One metric as soon as it is known, in one line: its values in one unit, then its ratios."""
    factor, unit = unit_for([v.median for v in metric.values.values()], metric.unit)
    values = ", ".join(
        f"{operand} none ({value.missing})" if value.missing else f"{operand} {_value_text(value, factor)[0]}"
        for operand, value in metric.values.items()
    )
    ratios = "".join(f"; {r.of} / {r.to} {ratio_text(r)}" for r in metric.comparisons if r.estimate)
    return f"{_title(metric)}: {values}{' ' + unit if unit else ''}{ratios}"


def in_tables(metric: Metric) -> bool:
    """Whether a metric has a place in tables: over something, only what has a knee and its memory do."""
    return has_knee(metric) or metric.name.endswith("_peak_bytes") or not any(map(point_of, metric.values))


def live_cells(metric: Metric, operands: Sequence[str], estimate: bool) -> list[str]:
    """A metric as a row of a table that is still being measured: name, unit, a number an operand, of two their ratio.

    Args:
        estimate: it is only a first one: no intervals.
    """
    factor, unit = unit_for([v.median for v in metric.values.values()], metric.unit)
    row = [_title(metric), unit or metric.unit]
    for operand in operands:
        value = metric.values.get(operand, _NOT_MEASURED)
        text = _value_text(value, factor)[0]
        row.append(f"~{text.partition(' ')[0]}" if estimate and value.median is not None else text)
    if len(operands) == 2:
        ratio = next(iter(metric.comparisons), None)
        if ratio is None or ratio.estimate is None:
            row.append("-")
        elif estimate:
            row.append(f"~{ratio.estimate:.2f}")
        else:
            row.append(f"{ratio_text(ratio)} {_verdict(metric, ratio)}")
    return row


class _Notes(Footnotes):
    """The footnotes of one comparison; what holds for every measured ratio is said once and marks no cell."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        ratios = [ratio for metric in record.metrics for ratio in metric.comparisons]
        caveats = [_caveats(ratio) for ratio in ratios if not ratio.counted and ratio.estimate]
        self._everywhere = [text for text in caveats[0] if all(text in texts for texts in caveats)] if caveats else []
        self._intervals = bool(ratios)

    def mark(self, text: str | None) -> str:
        return "" if text in self._everywhere else super().mark(text)

    def lines(self) -> list[str]:
        lines = super().lines()
        if self._intervals:
            lines.append("± and [a, b] are 95 % confidence intervals unless a note says otherwise.")
        return lines + [f"Every measured ratio: {text}." for text in self._everywhere]


def _values_table(record: Record, format: str, colour: bool, footnotes: _Notes, explain: bool) -> str:
    shown = next((r for m in record.metrics for r in m.comparisons), None) if len(record.operands) <= 2 else None
    headers = ["metric", "unit", *(_header(o, format) for o in record.operands)]
    if shown is not None:
        headers += [f"{_header(shown.of, format)}\n/ {_header(shown.to, format)}"]
        headers += [] if format == "text" else ["verdict"]
    rows: list[list[Cell]] = []
    for metric in record.metrics:
        factor, unit = unit_for([v.median for v in metric.values.values()], metric.unit)
        if not explain and len(set(_reasons(metric))) == 1:
            continue
        marks = "".join(map(footnotes.mark, _said(metric, explain)))
        row: list[Cell] = [_title(metric) + marks, unit or metric.unit]
        for operand in record.operands:
            text, note = _value_text(metric.values.get(operand, _NOT_MEASURED), factor)
            row.append(text + footnotes.mark(note))
        if shown is not None:
            ratio = next(iter(metric.comparisons), None)
            if ratio is not None and ratio.of != shown.of:
                ratio = ratio.inverse()
            cells = _ratio_cells(metric, ratio, colour, footnotes)
            row += [_joined(cells)] if format == "text" else cells
        rows.append(row)
    return render(headers, rows, format)


def _curve_tables(record: Record, format: str, colour: bool, footnotes: _Notes, explain: bool) -> list[str]:
    """A table for each rate or latency that was measured over something: a row a value, the best's share beside it."""
    tables = []
    for metric in record.metrics:
        drawn = curves_of(record, metric) if has_knee(metric) else []
        if not drawn:
            continue
        factor, unit = unit_for([v.median for v in metric.values.values()], metric.unit)
        task, timed = metric.name.split("_")[0], metric.better == "higher"
        peaks = next((m for m in record.metrics if timed and m.name == f"{task}_peak_bytes"), None)
        sizes = unit_for([v.median for v in peaks.values.values()], peaks.unit) if peaks else (1.0, "")
        seconds = {(c.subject, at): c.seconds(at) for c in drawn for at in c.values}
        time = time_unit([value.median for value in seconds.values() if value])
        marks = "".join(map(footnotes.mark, _said(metric, explain)))
        headers = [*(["operand"] if len(drawn) > 1 else []), drawn[0].key]
        headers += [f"{metric.name}\n[{unit or metric.unit}]{marks}"]
        headers += ["of the\nbest rate"]
        headers += [f"a batch\n[{time[1]}]"] if any(seconds.values()) else []
        headers += [f"peak\n[{sizes[1]}]" + "".join(map(footnotes.mark, _said(peaks, explain)))] if peaks else []
        headers += [f"/ {drawn[0].subject}"] if len(drawn) > 1 else []
        rows: list[list[Cell]] = []
        for curve in drawn:
            for at, value in curve.values.items():
                label = point_label(curve.subject, curve.key, at)
                text, note = _value_text(value, factor)
                row: list[Cell] = [curve.subject] if len(drawn) > 1 else []
                row += [at, text + footnotes.mark(note)]
                share = curve.shares.get(at)
                marks = "".join(map(footnotes.mark, _caveats(share))) if share else ""
                row.append(ratio_text(share) + marks if share else "best" if at == curve.best else "-")
                if any(seconds.values()):
                    took = seconds[curve.subject, at]
                    row.append(_value_text(took, time[0])[0] if took else "-")
                if peaks:
                    size, why = _value_text(peaks.values.get(label, _NOT_MEASURED), sizes[0])
                    row.append(size + footnotes.mark(why))
                if len(drawn) > 1:
                    row.append(_joined(_ratio_cells(metric, beside(metric, label), colour, footnotes)))
                rows.append(row)
        tables.append(render(headers, rows, format))
    return tables


def _ratios_table(record: Record, format: str, colour: bool, footnotes: _Notes) -> str:
    pairs = list(dict.fromkeys((r.of, r.to) for m in record.metrics for r in m.comparisons))
    same_reference = len({to for _, to in pairs}) == 1
    headers = [f"ratio to {pairs[0][1]}" if same_reference else "ratio"]
    headers += [_header(of, format) if same_reference else f"{of}\n/ {to}" for of, to in pairs]
    rows: list[list[Cell]] = []
    for metric in record.metrics:
        by_pair = {(r.of, r.to): r for r in metric.comparisons}
        if by_pair:
            cells = [_ratio_cells(metric, by_pair.get(pair), colour, footnotes) for pair in pairs]
            rows.append([_title(metric), *(_joined(c) for c in cells)])
    return render(headers, rows, format)


def _joined(cells: Sequence[str]) -> str:
    number, word = cells
    return number if word == "-" else f"{number} {word}"


def _title(metric: Metric) -> str:
    return metric.name if metric.batch is None else f"{metric.name} b{metric.batch}"


def _value_text(value: Value, factor: float) -> tuple[str, str | None]:
    """A number in the unit of `factor` with its relative error, and what a note must say of it.

    Where the error is as large as the number, the interval stands in its place.
    """
    x, low, high = value.median, value.low, value.high
    if x is None:
        reason = value.missing or "no number"
        head = reason.split(": ")[0]
        if len(head) > 16:
            head = "none"
        return head, None if head == reason else reason
    if value.samples == 1 and value.confidence != 1:
        return fixed(x / factor), "measured once, so no interval"
    if low is None or high is None:
        return fixed(x / factor), "too few samples for an interval"
    note = None
    if value.confidence is not None and value.confidence < _NOMINAL:
        note = f"the range of {value.samples} samples, {percent(value.confidence)} confidence"
    half = max(x - low, high - x)
    if half <= 0 or x == 0:
        return (str(x) if isinstance(x, int) and factor == 1.0 else fixed(x / factor, x / factor, x / factor)), note
    if half >= abs(x):
        return f"{fixed(x / factor)} [{fixed(low / factor)}, {fixed(high / factor)}]", note
    text = fixed(x / factor, (x - half) / factor, (x + half) / factor)
    return f"{text} ±{_relative_error(half / abs(x))}", note


def _relative_error(error: float) -> str:
    """In percent: whole ones from 10 % up, below it one digit, or two where the first is 1 or 2."""
    share = 100 * error
    # What rounds to 10 has two digits as well.
    return f"{share:.0f}%" if share >= 9.5 else f"{share:.{2 if f'{share:e}'[0] in '12' else 1}g}%"


def _ratio_cells(metric: Metric, ratio: Ratio | None, colour: bool, footnotes: _Notes) -> list[str]:
    if ratio is None or ratio.estimate is None:
        return ["-", "-"]
    marks = "".join(map(footnotes.mark, _caveats(ratio)))
    return [ratio_text(ratio) + marks, paint_verdict(_verdict(metric, ratio), colour)]


def _verdict(metric: Metric, ratio: Ratio) -> str:
    """The record's own verdict for the ratio that it is about, the rule's for any other."""
    if metric.verdict and metric.comparisons[0] == ratio:
        return metric.verdict
    return compare_verdict(ratio, metric.better, margin_of(metric.name))


def _caveats(ratio: Ratio) -> list[str]:
    """What a reader must know of this ratio's interval; nothing for a 95 % one over blocks, or a count."""
    if ratio.counted:
        return []
    texts: list[str] = []
    count = plural(ratio.pairs, "pair") if ratio.within_process else f"{ratio.blocks} pairs of processes"
    if ratio.unpaired:
        texts.append("from separate runs, not in turns; variation between processes is not included")
        count = "separate runs"
    elif ratio.within_process:
        texts.append("from one pair of processes; variation between processes is not included")
    if ratio.low is None or ratio.high is None:
        if ratio.within_process:
            return ["measured once, so no interval; a larger --budget measures in more processes"]
        texts.append(f"{count}, too few for an interval")
    elif ratio.confidence is not None and ratio.confidence < _NOMINAL:
        texts.append(f"the range of {count}, {percent(ratio.confidence)} confidence")
    return texts


_COLUMNS = (
    *("metric", "unit", "better", "batch", "operand", "median", "low", "high", "samples", "missing", "workload"),
    *("ratio_to", "ratio", "ratio_low", "ratio_high", "ratio_confidence", "blocks", "pairs", "verdict"),
)


def _csv(record: Record) -> str:
    rows: list[list[Cell]] = []
    for m in record.metrics:
        for operand in record.operands:
            v = m.values.get(operand, _NOT_MEASURED)
            row: list[Cell] = [m.name, m.unit, m.better, m.batch, operand, v.median, v.low, v.high, v.samples]
            row += [v.missing, m.workloads.get(operand)]
            r = next((r for r in m.comparisons if r.of == operand), None)
            if r is None:
                row += [None] * 8
            else:
                row += [r.to, r.estimate, r.low, r.high, r.confidence, r.blocks, r.pairs, _verdict(m, r)]
            rows.append(row)
    return render(_COLUMNS, rows, "csv")


def _header(name: str, format: str) -> str:
    """A long operand breaks at its joints, so that two of them fit beside each other."""
    return name if format != "text" or len(name) <= _HEADER_WIDTH else broken(name, _HEADER_WIDTH)
