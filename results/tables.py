"""Numbers, tables and notes as text: the only place that scales units, rounds, or knows a colour.

Stored and machine-read forms (JSON, CSV) pass through unrounded.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TextIO, TypeAlias

from tabulate import tabulate

from results.errors import RecordError
from results.record import Number, Ratio
from results.stats import supported_decimals

FORMATS = ("text", "markdown", "csv", "json")
WIDTH = 100
"""Columns that a table of two operands keeps to."""

Cell: TypeAlias = str | int | float | None

_GREEN, _RED, _YELLOW = "32", "31", "33"
_COLOURS = {
    **dict.fromkeys(("better", "IMPROVED", "CLEAN"), _GREEN),
    **dict.fromkeys(("worse", "REGRESSED", "CHANGED", "VANISHED", "ERROR", "VOID"), _RED),
    **dict.fromkeys(("unsure", "UNSURE", "NEW"), _YELLOW),
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


def width_of(text: str) -> int:
    """Columns that the longest line takes on a screen; colours take none."""
    return max((len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")), default=0)


def paint_verdict(word: str, colour: bool) -> str:
    """A verdict in its colour: the one place that emits colour."""
    code = _COLOURS.get(word)
    return f"\x1b[{code}m{word}\x1b[0m" if colour and code else word


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


def time_unit(seconds: Sequence[Number | None]) -> tuple[float, str]:
    """Divisor and name of the one unit for these times: hours and minutes for long ones, else as `unit_for`."""
    longest = max((abs(x) for x in seconds if x is not None), default=0.0)
    if longest >= 600:
        return (3600.0, "h") if longest >= 36000 else (60.0, "min")
    return unit_for(seconds, "s")


def quantity(x: Number | None, unit: str, low: Number | None = None, high: Number | None = None) -> str:
    """One number with its unit, to the digits its interval supports: quantity(0.01234, "s") -> "12.3 ms"."""
    if x is None:
        return "-"
    factor, name = unit_for([x], unit)
    counted = isinstance(x, int) and factor == 1.0 and low is None
    digits = str(x) if counted else fixed(x / factor, *(None if b is None else b / factor for b in (low, high)))
    return f"{digits} {name}".rstrip()


def bounded(x: float, unit: str, low: float, high: float) -> str:
    """ "12.3 ms [12.1, 12.6]": a number and the interval around it, all to the digits that the interval supports."""
    factor, name = unit_for([x], unit)
    x, low, high = x / factor, low / factor, high / factor
    decimals = supported_decimals(x, low, high)
    return f"{_rounded(x, decimals)} {name} {_bounds(low, high, decimals)}"


def fixed(x: float, low: float | None = None, high: float | None = None) -> str:
    """A number in plain digits, rounded where its interval stops supporting them."""
    return _rounded(x, supported_decimals(x, low, high))


def percent(share: float) -> str:
    """ "38 %", "3.4 %": two digits, or whole percents from 10 % up."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.2g} %"


def signed_percent(change: float) -> str:
    """ "+3.4 %": a relative change."""
    return f"{100 * change:+.1f} %"


def duration(seconds: float) -> str:
    """Seconds for reading: "850 ms", "9.5 s", "31 min 46 s", "4 h 23 min"."""
    if not math.isfinite(seconds) or abs(seconds) < 1:
        factor, unit = unit_for([seconds] if math.isfinite(seconds) else [], "s")
        return f"{seconds / factor:.3g} {unit}"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    """ "1 block", "1,024 blocks"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def commit_text(sha: str | None, dirty: bool = False) -> str:
    """A commit as tables show it: ten digits, "+" where files differ from it, "-" for none."""
    return "-" if sha is None else sha[:10] + "+" * dirty


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
    return f"{_rounded(x, decimals)} {_bounds(low, high, decimals)}"


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
        return _printable(out.getvalue())
    if format == "json":
        return to_json([dict(zip(headers, row, strict=True)) for row in rows])
    if format not in FORMATS:
        raise RecordError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    shown = [[_printable(_cell(c)) for c in row] for row in rows]
    headers = [_printable(header) for header in headers]
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
        widths = [max(width_of(row[i]) for row in [headers, *shown]) for i in range(len(headers))]
        lines = [list(headers), ["-" * w for w in widths], *shown]
        table = tabulate(lines, tablefmt="plain", colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines()) + "\n"


def html(markdown: str) -> str:
    """Markdown of ours as HTML; raw HTML in a name or a note stays text."""
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")
    return str(renderer.render(markdown))


def to_json(data: Any) -> str:
    """JSON as every command prints it: indented, numbers whole; ValueError for NaN and infinity."""
    return _printable(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)) + "\n"


def _printable(text: str) -> str:
    r"""Text that can be written: bytes of a path that are not UTF-8 as \udcXX, which stands for the same in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def broken(name: str, width: int, joints: str = "@/-_ ") -> str:
    """A name in lines of at most `width`, as far as its joints allow: the characters that may end a line."""
    inside = re.escape(joints)
    lines = [""]
    for piece in re.findall(f"[^{inside}]*[{inside}]|[^{inside}]+", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def folded(line: str, width: int = WIDTH) -> str:
    """A note in lines of at most `width`, all but the first indented; a number keeps its percent sign."""
    kept = line.replace(" %", "\u00a0%")
    lines = textwrap.fill(kept, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines.replace("\u00a0%", " %")


def notes(lines: Iterable[str], format: str, width: int = WIDTH) -> str:
    """Lines below a table: a list in markdown, folded in text."""
    return "\n".join(f"- {line}" if format == "markdown" else folded(line, width) for line in lines)


def page(*pieces: str) -> str:
    """Pieces below one another with a blank line between them, empty ones left out; ends in a line end."""
    return "\n\n".join(text for piece in pieces if (text := piece.rstrip("\n"))) + "\n"


class Footnotes:
    """Numbered notes of a table; a text that comes again keeps its number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str | None) -> str:
        """ " (2)", which follows what the note is about; "" for None."""
        if text is None:
            return ""
        if text not in self._texts:
            self._texts.append(text)
        return f" ({self._texts.index(text) + 1})"

    def lines(self) -> list[str]:
        """The notes, each after its number."""
        return [f"({i + 1}) {text}" for i, text in enumerate(self._texts)]


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
"""The facts of a fingerprint that are worth a line; the record holds all of them."""


def machine_text(machine: Mapping[str, Any]) -> str:
    """Where numbers come from, in one line: the main facts of a record's machine."""
    fingerprint = machine.get("fingerprint")
    known: Mapping[str, Any] = fingerprint if isinstance(fingerprint, Mapping) else {}
    facts = [form.format(known[key]) for key, form in _MACHINE.items() if known.get(key) not in (None, "")]
    return "machine: " + (", ".join(dict.fromkeys(facts)) or "not recorded")


class Measured(Protocol):
    """What says where its numbers come from; a Record and a Profile do."""

    @property
    def machine(self) -> Mapping[str, Any]: ...
    @property
    def commit(self) -> Mapping[str, Any] | None: ...
    @property
    def created(self) -> str: ...


def machine_line(measured: Measured) -> str:
    """`machine_text` with the commit and the time of the measurement."""
    parts = [machine_text(measured.machine)]
    commit = measured.commit or {}
    if commit.get("sha"):
        parts.append(f"commit {str(commit['sha'])[:10]}{' with uncommitted changes' if commit.get('dirty') else ''}")
    return ", ".join([*parts, f"measured {measured.created}"])


def _bounds(low: float, high: float, decimals: int) -> str:
    return f"[{_rounded(low, decimals)}, {_rounded(high, decimals)}]"


def _rounded(x: float, decimals: int) -> str:
    if not math.isfinite(x):
        return str(x)
    return f"{round(x, decimals):.{max(decimals, 0)}f}"


def _cell(c: Cell) -> str:
    if c is None:
        return "-"
    if isinstance(c, bool) or not isinstance(c, float):
        return str(c)
    return fixed(c) if c == 0 or 1e-4 <= abs(c) < 1e15 else f"{c:.3g}"


def _numeric(c: Cell) -> bool:
    if c is None or (isinstance(c, (int, float)) and not isinstance(c, bool)):
        return True
    return c == "-" or bool(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?( \S{1,9})?", str(c)))
