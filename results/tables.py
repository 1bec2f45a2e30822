"""Numbers for eyes: the only place that scales units, rounds, or knows a colour.

Takes records and rows, returns text. Stored and machine-read forms (JSON, CSV) pass through unrounded.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, TypeAlias

from tabulate import tabulate

from results.errors import RecordError
from results.record import Metric, Number, Ratio, Record, Value
from results.stats import supported_decimals
from results.verdict import compare_verdict, label, margin_of, sentence

FORMATS = ("text", "markdown", "csv", "json")
WIDTH = 100
"""Columns that a table of two operands keeps to."""

_HEADER_WIDTH = 18
_NOMINAL = 0.9495
"""Below this a confidence is not the 95 % that the legend promises."""

Cell: TypeAlias = str | int | float | None

_COLOURS = {"good": "32", "bad": "31", "doubt": "33", "faint": "2", "strong": "1"}
_TONES = {
    "better": "good",
    "IMPROVED": "good",
    "CLEAN": "good",
    "worse": "bad",
    "REGRESSED": "bad",
    "unsure": "doubt",
    "UNSURE": "doubt",
}

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_LADDERS: dict[str, tuple[tuple[float, str], ...]] = {
    "s": _TIME,
    # Memory is built, allocated and reported by drivers in powers of two, so bytes are shown that way.
    "bytes": _BINARY,
    "bytes/s": tuple((f, f"{u}/s") for f, u in _BINARY),
    "J": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ")),
    "1": ((0.01, "%"),),
    "MAC": ((1e9, "GMAC"), (1e6, "MMAC"), (1e3, "kMAC"), (1.0, "MAC")),
    "FLOP": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1.0, "FLOP/s")),
    "images/s": ((1e7, "M images/s"), (1e5, "k images/s"), (1.0, "images/s")),
    "parameters": ((1e9, "G"), (1e6, "M"), (1e4, "k"), (1.0, "")),
    "elements": ((1e9, "G"), (1e6, "M"), (1e4, "k"), (1.0, "")),
}
_FACTORS = {"M images/s": 1e6, "k images/s": 1e3, "k": 1e3}
"""Where the unit begins to be used later than at 1 of it."""


def coloured(stream: TextIO | None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether text for `stream` may carry colour.

    NO_COLOR forbids and FORCE_COLOR demands it (set and not empty; FORCE_COLOR=0 forbids). Otherwise the
    stream must be a terminal and TERM not dumb.
    """
    env = os.environ if environ is None else environ
    if env.get("NO_COLOR"):
        return False
    if env.get("FORCE_COLOR"):
        return env["FORCE_COLOR"] != "0"
    return env.get("TERM") != "dumb" and stream is not None and stream.isatty()


def paint(text: str, tone: str | None, colour: bool) -> str:
    """The one place that emits colour; `tone` is a key of good, bad, doubt, faint, strong, or None."""
    code = _COLOURS.get(tone or "")
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def unit_for(numbers: Sequence[Number | None], unit: str) -> tuple[float, str]:
    """Divisor and name of the one unit in which all these numbers are read most easily.

    Chosen by the largest, unless the smallest would then start below a hundredth.
    """
    ladder = _LADDERS.get(unit)
    sizes = [abs(x) for x in numbers if x]
    if ladder is None:
        return 1.0, unit
    if not sizes:
        return 1.0, next((n for f, n in ladder if f == 1.0), unit) if unit != "1" else "1"
    for size in (max(sizes), min(sizes)):
        factor, name = next(((f, n) for f, n in ladder if size >= f), ladder[-1])
        factor = _FACTORS.get(name, factor)
        if min(sizes) / factor >= 0.01:
            break
    return factor, name


def quantity(x: Number | None, unit: str, low: Number | None = None, high: Number | None = None) -> str:
    """One number with its unit, to the digits its interval supports: quantity(0.01234, "s") -> "12.3 ms"."""
    if x is None:
        return "-"
    factor, name = unit_for([x], unit)
    counted = isinstance(x, int) and factor == 1.0 and low is None
    digits = str(x) if counted else fixed(x / factor, *(None if b is None else b / factor for b in (low, high)))
    return f"{digits} {name}".rstrip() if name != "%" else f"{digits} %"


def fixed(x: float, low: float | None, high: float | None) -> str:
    """A number in plain digits, rounded where its interval stops supporting them."""
    return _rounded(x, supported_decimals(x, low, high))


def ratio_text(ratio: Ratio) -> str:
    """ "2.07 [1.98, 2.15]"; no bounds for a counted ratio or where there are none."""
    x, low, high = ratio.estimate, ratio.low, ratio.high
    if x is None:
        return "-"
    decimals = supported_decimals(x, low, high)
    if x >= 0.1:
        # A tenth of a percent is as much as anyone acts on.
        decimals = min(decimals, 3)
    if ratio.counted or low is None or high is None:
        return _rounded(x, decimals)
    return f"{_rounded(x, decimals)} [{_rounded(low, decimals)}, {_rounded(high, decimals)}]"


def render(headers: Sequence[str], rows: Sequence[Sequence[Cell]], format: str = "text") -> str:
    """A table as text, markdown, csv or json (a list of objects), ending in a line end.

    Cells that are numbers are shown to 4 significant digits in text and markdown, and whole in csv and json.
    None is "-" there and empty (null) here. Raises RecordError on another format.
    """
    if format == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(headers)
        writer.writerows([["" if c is None else c for c in row] for row in rows])
        return out.getvalue()
    if format == "json":
        return to_json([dict(zip(headers, row, strict=True)) for row in rows])
    if format not in FORMATS:
        raise RecordError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    shown = [[_cell(c) for c in row] for row in rows]
    right = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(headers))]
    align = ["right" if r else "left" for r in right]
    if format == "markdown":
        shown = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in shown]
        headers = [h.replace("|", "\\|").replace("\n", " ") for h in headers]
        table = tabulate(
            shown, headers=headers, tablefmt="pipe", colalign=align if rows else None, disable_numparse=True
        )
    else:
        # The header goes in as rows: tabulate widens every column with a header by two, and 100 is not much.
        widths = [max(_width(row[i]) for row in [headers, *shown]) for i in range(len(headers))]
        lines = [list(headers), ["-" * w for w in widths], *shown]
        table = tabulate(lines, tablefmt="plain", colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines()) + "\n"


def to_json(data: Any) -> str:
    """JSON as every command prints it: indented, numbers whole; ValueError for NaN and infinity."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def compare_table(record: Record, format: str = "text", colour: bool = False) -> str:
    """A comparison for reading: sentences, then the table, then notes and the machine; csv and json are raw.

    Raises RecordError on an unknown format.
    """
    if format == "json":
        return to_json(record.to_json())
    if format == "csv":
        return _compare_csv(record)
    if format not in FORMATS:
        raise RecordError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    notes = _Notes(record)
    tables = [_values_table(record, format, colour and format == "text", notes)]
    if len(record.operands) > 2 and any(m.comparisons for m in record.metrics):
        tables.append(_ratios_table(record, format, colour and format == "text", notes))
    below = notes.lines()
    if not record.complete:
        below.append("This run was cut off before its end; what was measured until then is shown.")
    bullet = "- " if format == "markdown" else ""

    def paragraph(lines: Sequence[str]) -> str:
        return "\n".join(_folded(bullet + line, fold=format == "text") for line in lines)

    pieces = [paragraph(sentences(record)), *tables, paragraph(below), paragraph([machine_line(record)])]
    return "\n\n".join(piece.rstrip("\n") for piece in pieces if piece) + "\n"


HEADLINES = (
    "inference_throughput",
    "training_throughput",
    "end_to_end_throughput",
    "loader_throughput",
    "kernel_throughput",
    "inference_latency_p50",
    "inference_peak_bytes",
    "training_peak_bytes",
    "params",
)
"""What is said in words when it is there; the table holds the rest."""


def sentences(record: Record) -> list[str]:
    """The comparison in words: the headline metrics, or every metric when none of those is there."""
    chosen = [m for name in HEADLINES for m in record.metrics if m.name == name] or list(record.metrics)
    said: list[str] = []
    warned = False
    for metric in chosen:
        for ratio in metric.comparisons:
            # Said in full once: repeated on every line it would be skipped on every line.
            said.append(sentence(metric, ratio, brief=warned and ratio.within_process))
            warned = warned or ratio.within_process
        if not metric.comparisons:
            at = "" if metric.batch is None else f" at batch {metric.batch}"
            said += [
                f"no {label(metric.name)} for {operand}{at}: {value.missing}"
                for operand, value in metric.values.items()
                if value.missing
            ]
    return said


def metric_line(metric: Metric) -> str:
    """One metric as soon as it is known, in one line: its values in one unit, then its ratios."""
    factor, unit = unit_for([v.median for v in metric.values.values()], metric.unit)
    notes = _Notes(None)
    values = ", ".join(
        f"{operand} none ({value.missing})" if value.missing else f"{operand} {_value_cell(value, factor, notes)}"
        for operand, value in metric.values.items()
    )
    ratios = "".join(f"; {r.of} / {r.to} {ratio_text(r)}" for r in metric.comparisons if r.estimate)
    return f"{_title(metric)}: {values}{' ' + unit if unit else ''}{ratios}"


_MACHINE = {
    "device": "{}",
    "driver": "driver {}",
    "power_limit_watts": "limit {} W",
    "cpu": "{}",
    "cores": "{} cores",
    "threads": "{} threads",
    "python": "Python {}",
    "torch": "torch {}",
    "cuda": "CUDA {}",
    "cudnn": "cuDNN {}",
    "dali": "DALI {}",
    "triton": "Triton {}",
}
"""What of a fingerprint is worth a reader's line; all of it is in the record."""


def machine_line(record: Record) -> str:
    """Where the numbers come from, in one line: the main facts of the fingerprint, commit, time."""
    fingerprint = record.machine.get("fingerprint")
    known: Mapping[str, Any] = fingerprint if isinstance(fingerprint, Mapping) else {}
    present = {key: known.get(key) for key in _MACHINE if known.get(key) not in (None, "")}
    facts = [_MACHINE[key].format(value) for key, value in present.items()]
    facts = list(dict.fromkeys(facts)) or ["not recorded"]
    if record.commit and record.commit.get("sha"):
        dirty = " with uncommitted changes" if record.commit.get("dirty") else ""
        facts.append(f"commit {str(record.commit['sha'])[:10]}{dirty}")
    facts.append(f"measured {record.created}")
    return "machine: " + ", ".join(facts)


class _Notes:
    """The footnotes of one comparison. What holds for every timed ratio is said once and marks no cell."""

    def __init__(self, record: Record | None) -> None:
        ratios = [] if record is None else [r for m in record.metrics for r in m.comparisons]
        caveats = {_caveat(r) for r in ratios if not r.counted and r.estimate}
        self._everywhere = caveats.pop() if len(caveats) == 1 else None
        self._intervals = bool(ratios)
        self._silent = record is None
        self._texts: list[str] = []

    def mark(self, text: str | None) -> str:
        """ " (2)" for the text's number, the same for the same text; nothing for what is said of all."""
        if self._silent or text is None or text == self._everywhere:
            return ""
        if text not in self._texts:
            self._texts.append(text)
        return f" ({self._texts.index(text) + 1})"

    def lines(self) -> list[str]:
        lines = [f"({i + 1}) {text}" for i, text in enumerate(self._texts)]
        if self._intervals:
            lines.append("± and [a, b] enclose the number with 95 % confidence unless a note says otherwise.")
        if self._everywhere:
            lines.append(f"Every measured ratio: {self._everywhere}.")
        return lines


def _values_table(record: Record, format: str, colour: bool, notes: _Notes) -> str:
    shown = next((r for m in record.metrics for r in m.comparisons), None) if len(record.operands) <= 2 else None
    headers = ["metric", "unit", *(_header(o, format) for o in record.operands)]
    if shown is not None:
        headers += [f"{_header(shown.of, format)}\n/ {_header(shown.to, format)}"]
        headers += [] if format == "text" else ["verdict"]
    rows: list[list[Cell]] = []
    for metric in record.metrics:
        factor, unit = unit_for([v.median for v in metric.values.values()], metric.unit)
        row: list[Cell] = [_title(metric) + "".join(notes.mark(n) for n in metric.notes), unit or metric.unit]
        row += [_value_cell(metric.values.get(o), factor, notes) for o in record.operands]
        if shown is not None:
            ratio = next(iter(metric.comparisons), None)
            if ratio is not None and ratio.of != shown.of:
                ratio = ratio.inverse()
            cells = _ratio_cells(metric, ratio, colour, notes)
            row += [_joined(cells)] if format == "text" else cells
        rows.append(row)
    return render(headers, rows, format)


def _ratios_table(record: Record, format: str, colour: bool, notes: _Notes) -> str:
    pairs = list(dict.fromkeys((r.of, r.to) for m in record.metrics for r in m.comparisons))
    same_reference = len({to for _, to in pairs}) == 1
    headers = [f"ratio to {pairs[0][1]}" if same_reference else "ratio"]
    headers += [_header(of, format) if same_reference else f"{of}\n/ {to}" for of, to in pairs]
    rows: list[list[Cell]] = []
    for metric in record.metrics:
        by_pair = {(r.of, r.to): r for r in metric.comparisons}
        if by_pair:
            cells = [_ratio_cells(metric, by_pair.get(p), colour, notes) for p in pairs]
            rows.append([_title(metric), *(_joined(c) for c in cells)])
    return render(headers, rows, format)


def _joined(cells: Sequence[str]) -> str:
    number, word = cells
    return number if word == "-" else f"{number} {word}"


def _title(metric: Metric) -> str:
    return metric.name if metric.batch is None else f"{metric.name} b{metric.batch}"


def _value_cell(value: Value | None, factor: float, notes: _Notes) -> str:
    if value is None:
        value = Value.none("not measured for this operand")
    x, low, high = value.median, value.low, value.high
    if x is None:
        reason = value.missing or "no number"
        head = reason.split(":")[0]
        if len(head) > 16:
            head = "none"
        return head if head == reason else head + notes.mark(reason)
    if value.samples == 1 and value.confidence != 1:
        return fixed(x / factor, None, None) + notes.mark("a single sample, so no interval")
    if low is None or high is None:
        return fixed(x / factor, None, None) + notes.mark("too few samples for an interval")
    doubt = None
    if value.confidence is not None and value.confidence < _NOMINAL:
        doubt = f"{value.samples} samples: their range, {_percent(value.confidence)} confidence"
    half = max(x - low, high - x)
    if half <= 0 or x == 0:
        text = str(x) if isinstance(x, int) and factor == 1.0 else fixed(x / factor, x / factor, x / factor)
        return text + notes.mark(doubt)
    text = fixed(x / factor, (x - half) / factor, (x + half) / factor)
    return f"{text} ±{_percent(half / abs(x)).replace(' ', '')}{notes.mark(doubt)}"


def _ratio_cells(metric: Metric, ratio: Ratio | None, colour: bool, notes: _Notes) -> list[str]:
    if ratio is None or ratio.estimate is None:
        return ["-", "-"]
    word = _word(metric, ratio)
    return [ratio_text(ratio) + notes.mark(_caveat(ratio)), paint(word, _TONES.get(word), colour)]


def _word(metric: Metric, ratio: Ratio) -> str:
    """The record's own verdict for the ratio that it is about, the rule's for any other."""
    if metric.verdict and metric.comparisons[0] == ratio:
        return metric.verdict
    return compare_verdict(ratio, metric.better, margin_of(metric.name))


def _caveat(ratio: Ratio) -> str | None:
    """What a reader must know of this ratio's interval; None for a 95 % one over blocks, or a count."""
    if ratio.counted:
        return None
    texts: list[str] = []
    count = _plural(ratio.pairs, "pair") if ratio.within_process else f"{ratio.blocks} pairs of processes"
    if ratio.unpaired:
        texts.append("separate runs, nothing paired, process-to-process variation not included")
        count = "separate runs"
    elif ratio.within_process:
        texts.append("one pair of processes, process-to-process variation not included")
    if ratio.low is None or ratio.high is None:
        texts.append(f"{count}, too few for an interval")
    elif ratio.confidence is not None and ratio.confidence < _NOMINAL:
        texts.append(f"the range of {count}, {_percent(ratio.confidence)} confidence")
    return "; ".join(texts) or None


_COMPARE_COLUMNS = (
    *(
        "metric",
        "unit",
        "better",
        "batch",
        "operand",
        "median",
        "low",
        "high",
        "samples",
        "missing",
        "workload",
    ),
    *("ratio_to", "ratio", "ratio_low", "ratio_high", "ratio_confidence", "blocks", "pairs", "verdict"),
)


def _compare_csv(record: Record) -> str:
    rows: list[list[Cell]] = []
    for m in record.metrics:
        for operand in record.operands:
            v = m.values.get(operand, Value.none("not measured for this operand"))
            row: list[Cell] = [m.name, m.unit, m.better, m.batch, operand, v.median, v.low, v.high, v.samples]
            row += [v.missing, m.workloads.get(operand)]
            r = next((r for r in m.comparisons if r.of == operand), None)
            if r is None:
                row += [None] * 8
            else:
                row += [r.to, r.estimate, r.low, r.high, r.confidence, r.blocks, r.pairs, _word(m, r)]
            rows.append(row)
    return render(_COMPARE_COLUMNS, rows, "csv")


def _rounded(x: float, decimals: int) -> str:
    if not math.isfinite(x):
        return str(x)
    return f"{round(x, decimals):.{max(decimals, 0)}f}"


def _percent(x: float) -> str:
    """A share or relative error, two digits where the first is 1 or 2 and from 10 % up, else one."""
    percent = 100 * x
    if percent >= 10:
        return f"{percent:.0f} %" if percent < 99 else f"{percent:.1f} %"
    return f"{percent:.{2 if f'{percent:e}'[0] in '12' else 1}g} %"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _cell(c: Cell) -> str:
    if c is None:
        return "-"
    if isinstance(c, bool) or not isinstance(c, float):
        return str(c)
    return fixed(c, None, None) if c == 0 or 1e-4 <= abs(c) < 1e15 else f"{c:.3g}"


def _numeric(c: Cell) -> bool:
    if c is None or (isinstance(c, (int, float)) and not isinstance(c, bool)):
        return True
    return c == "-" or bool(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?( \S{1,9})?", str(c)))


def _width(cell: str) -> int:
    return max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", cell).split("\n"))


def _header(name: str, format: str) -> str:
    """A long operand breaks at its joints, so that two of them fit beside each other."""
    if format != "text" or len(name) <= _HEADER_WIDTH:
        return name
    lines = [""]
    for piece in re.findall(r"[^@/\-_ ]*[@/\-_ ]|[^@/\-_ ]+", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > _HEADER_WIDTH:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def _folded(text: str, fold: bool = True) -> str:
    if not fold:
        return text
    # A number and its sign of percent stay on one line.
    kept = text.replace(" %", "\u00a0%")
    lines = textwrap.fill(kept, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines.replace("\u00a0%", " %")
