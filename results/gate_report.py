"""A `bench check` for readers: text, markdown, JSON, and the lines by which GitHub marks a failed step.

Takes a CheckReport and returns text. The verdict comes first, in one line; what was timed is one table that looks like
`bench compare`'s; then what differs of the counted facts. `python -m results.gate_report check.json --format junit`
shows a stored report again in another form.
"""

import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results.errors import RecordError
from results.gate import CHANGED, ERROR, GRAVITY, NEW, VANISHED, VOID, CheckReport, Fact, Row, SelfTest, Side
from results.record import Record
from results.tables import WIDTH, Cell, fixed, machine_line, paint, render, to_json, unit_for
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE, Decision

FORMATS = ("text", "markdown", "json", "junit")
DETAIL_LINES = 40
"""Lines of one fact's difference in the forms that people read; JSON holds all."""
DIFF_LINES = 400
"""The same of all facts together: GitHub refuses a summary of more than 1 MiB."""
ANNOTATIONS = 10
"""As many of a kind as GitHub shows for a step; it drops the rest without a word."""

_HEADERS = ("workload", "unit", "base", "head", "change", "verdict", "blocks", "could see", "to see less")
_TONES = {
    **dict.fromkeys((CLEAN, IMPROVED), "good"),
    **dict.fromkeys((REGRESSED, CHANGED, VANISHED, ERROR, VOID), "bad"),
    **dict.fromkeys((UNSURE, NEW), "doubt"),
}
_LEGEND = (
    "change: time of the head against the base's, [a, b] encloses it with 98 % confidence; could see: the smallest "
    "change that this many blocks would have reported."
)


@dataclass(frozen=True)
class Markup:
    """How a form writes what it did not word itself: `name` an id, `text` a reason, `strong` the verdict."""

    name: Callable[[str], str]
    text: Callable[[str], str]
    strong: Callable[[str], str] = str


def one_line(text: str) -> str:
    """Without line ends and control characters, which a table, an annotation or a terminal would obey."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]", "\ufffd", " ".join(text.split()))


def _code(text: str) -> str:
    text = one_line(text)
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>&#|~])", r"\\\1", one_line(text))


PLAIN = Markup(one_line, one_line)
MARKDOWN = Markup(_code, _escaped, lambda word: f"**{word}**")


# ---- sentences ----


def verdict_line(report: CheckReport, markup: Markup = PLAIN) -> str:
    """What came out, in one line: the gravest finding in full, all others counted."""
    verdict = report.verdict
    grave = [row for row in report.rows if row.verdict == verdict and verdict not in report.allow]
    if verdict == VOID:
        lead = f"{_void(report.self_test, markup)}, so no time here counts; check again on a quieter machine"
    elif verdict == CHANGED:
        lead = _first([fact_sentence(fact, markup) for fact in report.changed], "fact")
    elif verdict == UNSURE and not grave and report.self_test is not None:
        lead = self_test_sentence(report.self_test, markup)
    elif (
        verdict == UNSURE and len(grave) > 2 and all(row.reason is None and _visible(row) is not None for row in grave)
    ):
        lead = _unsure(grave, len(report.rows))
    elif grave and verdict != CLEAN:
        # The whole of a long reason stands below the table.
        brief = [replace(row, reason=row.reason and textwrap.shorten(row.reason, 160)) for row in grave]
        lead = _first([row_sentence(row, markup) for row in brief], "workload")
    else:
        lead = _nothing_wrong(report)
    # A sentence of Decision's begins with its verdict.
    lead = lead.removeprefix(f"{verdict} ")
    return "; ".join([f"{markup.strong(verdict)}: {lead}", *_others(report)])


def _unsure(rows: Sequence[Row], of: int) -> str:
    """What several workloads could have seen; each has its line in the table."""
    seen = [visible for row in rows if (visible := _visible(row)) is not None]
    return (
        f"no change shown and none ruled out in {len(rows)} of {of} workloads; "
        f"a change of {_percent(min(seen))} (in one) to {_percent(max(seen))} (in all) could have been seen"
    )


def _visible(row: Row) -> float | None:
    return None if row.decision is None else row.decision.visible


def row_sentence(row: Row, markup: Markup = PLAIN) -> str:
    """One timed workload in words; an UNSURE says what could have been seen and what seeing less would cost."""
    name = markup.name(row.workload)
    why = "" if row.reason is None else f"; {markup.text(row.reason)}"
    if row.verdict == VANISHED:
        return f"{name} is in the base and no longer in the head{why}"
    if row.verdict == NEW:
        return f"{name} is new, so there is no base to compare it with{why}"
    decision = row.decision
    if row.verdict == ERROR or decision is None:
        return f"{name} gave no number{why.replace('; ', ': ', 1) or ', and no reason'}"
    if row.verdict in (REGRESSED, IMPROVED):
        return f"{name} takes {_change_in_words(decision)}{_confirmation(row)}{why}"
    # Where two runs disagree the first still says REGRESSED, and the row does not.
    return replace(decision, verdict=row.verdict).sentence(name, row.seconds_per_block) + why


def fact_sentence(fact: Fact, markup: Markup = PLAIN) -> str:
    """One counted fact in words."""
    name = f"{markup.text(fact.name)} of {markup.name(fact.workload)}"
    if fact.same:
        return f"{name} agrees"
    if fact.base != fact.head:
        return f"{name}: {markup.text(shown(fact.base))} in the base, {markup.text(shown(fact.head))} in the head"
    return f"{name} differs" + (f": {markup.text(fact.detail[0].strip())}" if fact.detail else "")


def self_test_sentence(test: SelfTest, markup: Markup = PLAIN) -> str:
    """What the instrument answered to the two questions whose answers are known."""
    name = markup.name(test.workload)
    if test.faults:
        return f"self-test FAILED on {name}: {'; '.join(markup.text(fault) for fault in test.faults)}"
    asked: list[str] = []
    if test.same is not None:
        asked.append(f"base against base is {test.same.verdict} ({_signed(test.same)}, {_blocks(test.same)} blocks)")
    if test.slowed is not None:
        asked.append(
            f"base slowed by 5 % on purpose is {test.slowed.verdict} ({_signed(test.slowed)}, "
            f"{_blocks(test.slowed)} blocks)"
        )
    doubt = any(answer is not None and answer.verdict == UNSURE for answer in (test.same, test.slowed))
    answers = ", ".join(asked) or "nothing was asked"
    if doubt:
        return f"self-test in doubt on {name}: {answers}; this machine shows too little"
    return f"self-test passed on {name}: {answers}"


def facts_sentence(report: CheckReport) -> str:
    """How many facts of how many workloads agree, or how many do not."""
    facts, differ = report.facts, sum(not fact.same for fact in report.facts)
    if not facts:
        return "nothing was counted"
    count = f"{_plural(len(facts), 'fact')} of {_plural(len({fact.workload for fact in facts}), 'workload')}"
    if differ:
        allowed = differ - len(report.changed)
        return f"{differ} of {count} {'differs' if differ == 1 else 'differ'}" + (
            f" ({allowed} allowed)" * bool(allowed)
        )
    # An output within its tolerance agrees, but not to the bit.
    exact = all(fact.base == fact.head for fact in facts)
    agree = "agrees" if len(facts) == 1 else "agree"
    return f"{count} {agree} {'exactly' if exact else '(outputs within their tolerance)'}"


def shown(value: int | float | str | None) -> str:
    """One side of a fact."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value


def side_sentence(side: Side, markup: Markup = PLAIN) -> str:
    """ "base main, commit 0123456789", dirty trees marked."""
    parts = [f"{side.name} {markup.name(side.ref)}" if side.ref else f"{side.name} working tree"]
    if side.commit and not side.commit.startswith(side.ref or " "):
        parts.append(f"commit {one_line(side.commit)[:10]}")
    return ", ".join(parts) + (" with uncommitted changes" if side.dirty else "")


def _first(sentences: Sequence[str], noun: str, most: int = 2) -> str:
    more = len(sentences) - most
    return "; ".join(sentences[:most]) + (f"; and {more} more {noun}{'s' * (more > 1)} likewise" if more > 0 else "")


def _void(test: SelfTest | None, markup: Markup) -> str:
    wrong: list[str] = []
    if test is None:
        return "the self-test failed"
    if test.same is not None and test.same.verdict not in (CLEAN, UNSURE):
        wrong.append(f"base against itself came out {test.same.verdict}")
    if test.slowed is not None and test.slowed.verdict not in (REGRESSED, UNSURE):
        wrong.append(f"a slowdown of 5 % on purpose came out {test.slowed.verdict}")
    return f"the self-test failed ({' and '.join(wrong) or '; '.join(markup.text(fault) for fault in test.faults)})"


def _nothing_wrong(report: CheckReport) -> str:
    margins = sorted({row.decision.margin for row in report.rows if row.verdict == CLEAN and row.decision is not None})
    clean = sum(row.verdict == CLEAN for row in report.rows)
    said: list[str] = []
    if margins:
        between = " to ".join(f"{100 * margin:.2g}" for margin in dict.fromkeys((margins[0], margins[-1])))
        said.append(f"no change beyond {between} % in the time of {_plural(clean, 'workload')}")
    if not report.rows:
        said.append(facts_sentence(report) if report.facts else "nothing was counted and nothing was timed")
        return "; ".join([*said, "nothing was timed"] if report.facts else said)
    return "; ".join(said) or "nothing that fails"


def _others(report: CheckReport) -> Iterator[str]:
    """What the lead of the verdict's line leaves out."""
    verdict = report.verdict
    if verdict != VOID and report.rows:
        allowed = [row for row in report.rows if row.verdict in report.allow]
        rest = [row for row in report.rows if row.verdict != verdict and row not in allowed]
        counts = {v: sum(row.verdict == v for row in rest) for v in GRAVITY}
        parts = [f"{count} {said.lower()}" for said, count in counts.items() if count]
        if parts:
            first, *others = parts
            number, word = first.split(" ", 1)
            other = "workload" if verdict == CHANGED or len(rest) == len(report.rows) else "other workload"
            yield ", ".join([f"{_plural(int(number), other)} {word}", *others])
        if allowed:
            said = ", ".join(f"{sum(r.verdict == v for r in allowed)} {v}" for v in GRAVITY if v in report.allow)
            yield f"allowed: {said}"
    if report.facts and (report.rows or verdict != CLEAN) and verdict != CHANGED:
        yield facts_sentence(report)


def _change_in_words(decision: Decision) -> str:
    slower = decision.estimate >= 1
    sign, word = (1, "longer") if slower else (-1, "less time")
    text = f"{100 * sign * (decision.estimate - 1):.1f} % {word}"
    if decision.clean_low is None or decision.clean_high is None:
        return text
    low, high = sorted(100 * sign * (bound - 1) for bound in (decision.clean_low, decision.clean_high))
    return f"{text} ({low:.1f} to {high:.1f} %)"


def _confirmation(row: Row) -> str:
    if row.verdict != REGRESSED:
        return ""
    return ", not measured again" if row.again is None else ", confirmed by a second run"


def _signed(decision: Decision) -> str:
    return f"{100 * (decision.estimate - 1):+.1f} %"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ---- the table of what was timed ----


def _rows_table(report: CheckReport, format: str, width: int, colour: bool) -> tuple[str, list[str]]:
    """The table and its footnotes."""
    notes: list[str] = []
    markup = MARKDOWN if format == "markdown" else PLAIN

    def cells(row: Row, folded: bool, name_width: int) -> list[Cell]:
        joint = "\n" if folded else " "
        factor, unit = unit_for([row.base_seconds, row.head_seconds], "s")
        times: list[Cell] = [
            None if x is None else fixed(x / factor, x / factor, x / factor)
            for x in (row.base_seconds, row.head_seconds)
        ]
        mark = ""
        if row.reason is not None:
            if row.reason not in notes:
                notes.append(row.reason)
            mark = f" ({notes.index(row.reason) + 1})"
        allowed = " allowed" if row.verdict in report.allow else ""
        verdict = VOID if report.verdict == VOID and row.decision is not None else row.verdict
        name = _broken(one_line(row.workload), name_width) if folded else _in_cell(markup.name(row.workload))
        return [
            name,
            unit if any(times) else None,
            *times,
            _change_cell(row.decision, joint),
            paint(verdict, _TONES.get(verdict), colour) + allowed + mark,
            _blocks(row.decision, row.again),
            None if (visible := _visible(row)) is None else _percent(visible),
            _cost_cell(row, joint),
        ]

    text = render(_HEADERS, [cells(row, False, 0) for row in report.rows], format)
    if format == "text" and max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()) > width:
        headers = [name.replace(" ", "\n", 1) for name in _HEADERS]
        # What the numbers leave is the ids'.
        numbers = [cells(row, True, 0)[1:] for row in report.rows]
        taken = max(len(re.sub(r"\x1b\[[0-9;]*m", "", s)) for s in render(headers[1:], numbers).splitlines()) + 2
        text = render(headers, [cells(row, True, max(width - taken, 16)) for row in report.rows])
    return text, notes


def _change_cell(decision: Decision | None, joint: str) -> str | None:
    if decision is None:
        return None
    if decision.clean_low is None or decision.clean_high is None:
        return _signed(decision)
    low, high = (f"{100 * (bound - 1):+.1f}" for bound in (decision.clean_low, decision.clean_high))
    return f"{_signed(decision)}{joint}[{low}, {high}]"


def _blocks(first: Decision | None, again: Decision | None = None) -> str | None:
    if first is None:
        return None
    return str(first.blocks) if again is None else f"{first.blocks}+{again.blocks}"


def _cost_cell(row: Row, joint: str) -> str | None:
    decision = row.decision
    if decision is None or decision.visible is None:
        return None
    needed = decision.blocks_needed(decision.aim)
    if needed is None:
        return None
    time = "" if row.seconds_per_block is None else f",{joint}{_duration(needed * row.seconds_per_block)}"
    return f"{_percent(decision.aim)} in {_plural(needed, 'block')}{time}"


def _percent(x: float) -> str:
    return f"{100 * x:.2g} %"


def _in_cell(text: str) -> str:
    # render escapes the bars of a cell itself.
    return text.replace("\\|", "|")


def _broken(id: str, width: int) -> str:
    """An id in lines of at most `width`, broken at its joints."""
    lines = [""]
    for piece in re.findall(r"[^-/@]*[-/@]|[^-/@]+", id):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


# ---- what differs ----


def diff_lines(facts: Iterable[Fact], allow: Sequence[str] = ()) -> list[str]:
    """The facts that differ in the notation of a diff: a line @@ for each, then -, + and what its table holds."""
    lines: list[str] = []
    for fact in facts:
        if fact.same:
            continue
        allowed = " (allowed)" if fact.name in allow else ""
        lines.append(f"@@ {one_line(fact.workload)} {one_line(fact.name)} @@{allowed}")
        if fact.base != fact.head:
            lines += [f"-{one_line(shown(fact.base))}", f"+{one_line(shown(fact.head))}"]
        said = f"{shown(fact.base)} -> {shown(fact.head)}"
        details = [line for text in fact.detail for line in text.splitlines() if line.strip() != said]
        lines += [_detail(line) for line in details[:DETAIL_LINES]]
        if len(details) > DETAIL_LINES:
            lines.append(f"  ... and {_plural(len(details) - DETAIL_LINES, 'line')} more; JSON holds all")
    if len(lines) > DIFF_LINES:
        lines = [*lines[:DIFF_LINES], f"  ... and {len(lines) - DIFF_LINES:,} lines more; JSON holds all"]
    return lines


def _detail(line: str) -> str:
    body = one_line(line)
    return f"{body[0]} {body[1:].strip()}" if body[:1] in ("+", "-") else f"  {body}"


# ---- forms ----


def as_text(report: CheckReport, format: str, colour: bool = False, width: int = WIDTH) -> str:
    """The report in one of FORMATS. Raises RecordError for another format."""
    if format == "text":
        return table(report, colour, width)
    if format == "markdown":
        return markdown(report)
    if format == "json":
        return to_json_text(report)
    if format == "junit":
        from results.junit import junit

        return junit(report)
    raise RecordError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")


def table(report: CheckReport, colour: bool = False, width: int = WIDTH) -> str:
    """The report for a terminal of `width` columns, ending in a line end."""

    def folded(line: str) -> str:
        # A number and its sign of percent stay on one line.
        kept = line.replace(" %", "\u00a0%")
        lines = textwrap.fill(kept, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        return lines.replace("\u00a0%", " %")

    tone = _TONES.get(report.verdict)
    # Never folded: whoever searches a log for it finds the whole of it.
    verdict = verdict_line(report)
    pieces = [paint(report.verdict, tone, colour) + verdict.removeprefix(report.verdict)]
    if report.rows:
        text, notes = _rows_table(report, "text", width, colour)
        below = [f"({i + 1}) {one_line(note)}" for i, note in enumerate(notes)]
        pieces += [text, "\n".join(folded(line) for line in [*below, _LEGEND])]
    lines = diff_lines(report.facts, report.allow)
    if lines:
        pieces.append("\n".join([f"{facts_sentence(report)} (- base, + head):", *lines]))
    pieces.append("\n".join(folded(line) for line in _closing(report, PLAIN)))
    return "\n\n".join(piece.rstrip("\n") for piece in pieces) + "\n"


def markdown(report: CheckReport) -> str:
    """The report for a pull request's page, ending in a line end."""
    pieces = [verdict_line(report, MARKDOWN)]
    if report.rows:
        text, notes = _rows_table(report, "markdown", 0, False)
        below = [f"({i + 1}) {_escaped(note)}" for i, note in enumerate(notes)]
        pieces += [text, "\n".join(f"- {line}" for line in [*below, _LEGEND])]
    lines = diff_lines(report.facts, report.allow)
    if lines:
        body = "\n".join(lines)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
        pieces += [f"{facts_sentence(report)} (- base, + head):", f"{fence}diff\n{body}\n{fence}"]
    pieces.append("\n".join(f"- {line}" for line in _closing(report, MARKDOWN)))
    return "\n\n".join(piece.rstrip("\n") for piece in pieces) + "\n"


def _closing(report: CheckReport, markup: Markup) -> Iterator[str]:
    if all(fact.same for fact in report.facts):
        yield facts_sentence(report)
    if report.self_test is not None:
        yield self_test_sentence(report.self_test, markup)
    elif report.rows:
        yield "no self-test was made in this run"
    yield from (markup.text(note) for note in report.notes)
    yield markup.text(_machine(report))
    yield f"{side_sentence(report.base, markup)}; {side_sentence(report.head, markup)}"
    yield f"took {_duration(report.seconds)}"


def _machine(report: CheckReport) -> str:
    # The line of every other table, without the time, which a check has in its file's name.
    record = Record("check", "1970-01-01T00:00:00+00:00", "", None, report.machine, (), ())
    return machine_line(record).rpartition(", measured ")[0]


def to_json_text(report: CheckReport) -> str:
    """The report as JSON, whole and unrounded; NaN and infinity of a fact as text, any other as null."""
    return to_json(_finite(report.to_json()))


def _finite(data: Any, text: bool = False) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value, text or key == "facts") for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value, text) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data) if text else None
    return data


# ---- GitHub ----


def annotations(report: CheckReport) -> list[str]:
    """Workflow commands: ::error for what fails, ::warning for UNSURE, NEW and what was allowed.

    At most ten of a kind, which is what GitHub shows of a step; the tenth then says how many are left out.
    """
    found: dict[str, list[tuple[str, str]]] = {"error": [], "warning": []}
    test = report.self_test
    void = test is not None and bool(test.faults)
    if test is not None and test.faults:
        found["error"].append((VOID, self_test_sentence(test)))
    elif test is not None and UNSURE in {answer.verdict for answer in (test.same, test.slowed) if answer is not None}:
        found["warning"].append((f"{UNSURE} self-test", self_test_sentence(test)))
    for verdict in (ERROR, REGRESSED, VANISHED, UNSURE, NEW):
        # Times of an instrument that failed its test are no findings; a side that crashed is.
        for row in report.rows if not void or verdict in (ERROR, VANISHED, NEW) else ():
            if row.verdict == verdict:
                allowed = " (allowed)" if verdict in report.allow else ""
                level = "warning" if allowed or verdict in (UNSURE, NEW) else "error"
                found[level].append((f"{verdict} {one_line(row.workload)}", row_sentence(row) + allowed))
    for fact in report.facts:
        if not fact.same:
            allowed = " (allowed)" if fact.name in report.allow else ""
            title = f"{CHANGED} {one_line(fact.name)} of {one_line(fact.workload)}"
            found["warning" if allowed else "error"].append((title, fact_sentence(fact) + allowed))
    lines: list[str] = []
    for level, messages in found.items():
        if len(messages) > ANNOTATIONS:
            left = len(messages) - ANNOTATIONS + 1
            messages = [*messages[: ANNOTATIONS - 1], (f"and {left} more", "the summary of this job lists them all")]
        lines += [f"::{level} title={_property(title)}::{_data(message)}" for title, message in messages]
    return lines


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary_file(report: CheckReport, environ: Mapping[str, str]) -> str | None:
    """Append the markdown to the file that $GITHUB_STEP_SUMMARY names.

    Returns:
        None, or why it could not be written: a warning, since the verdict stands without it.
    """
    path = environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return None
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(("\n" if file.tell() else "") + markdown(report))
    except OSError as error:
        return f"the summary was not written to {path}, which $GITHUB_STEP_SUMMARY names: {error.strerror}"
    return None


def _main(arguments: Sequence[str]) -> int:
    """Show a stored report: FILE [--format FORMAT] [-o FILE]."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m results.gate_report", description="Show a stored `bench check`.")
    parser.add_argument("file", type=Path, help="what `bench check --format json -o FILE` wrote")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("-o", "--output", default="-", help="write here; - is stdout")
    asked = parser.parse_args(arguments)
    try:
        report = CheckReport.from_json(json.loads(asked.file.read_text(encoding="utf-8")), str(asked.file))
        text = as_text(report, asked.format, width=shutil.get_terminal_size((WIDTH, 24)).columns)
        if asked.output == "-":
            sys.stdout.write(text)
        else:
            Path(asked.output).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {asked.file}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
