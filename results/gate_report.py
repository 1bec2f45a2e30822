"""A `bench check` for readers: text, markdown, JSON, and GitHub's annotations.

The verdict comes first, in one line; then one table of what was timed, then the counted facts that differ.
`python -m results.gate_report check.json --format junit` shows a stored report in another form.
"""

import io
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from results.errors import RecordError, first_line, keep_traceback
from results.gate import CHANGED, ERROR, NEW, VANISHED, VOID, CheckReport, Row
from results.gate_words import (
    MARKDOWN,
    PLAIN,
    diff_lines,
    fact_sentence,
    facts_sentence,
    one_line,
    row_sentence,
    self_test_sentence,
    side_sentence,
    verdict_line,
)
from results.junit import junit
from results.store import read_json, write_whole
from results.tables import (
    WIDTH,
    Cell,
    Footnotes,
    broken,
    duration,
    fixed,
    machine_text,
    notes,
    page,
    paint_verdict,
    percent,
    plural,
    render,
    signed_percent,
    to_json,
    unit_for,
    width_of,
)
from results.verdict import CLEAN, REGRESSED, UNSURE, Decision

FORMATS = ("text", "markdown", "json", "junit")
ANNOTATIONS = 10
"""As many of a kind as GitHub shows for a step; it drops the rest without a word."""

_HEADERS = ("workload", "unit", "base", "head", "change", "verdict", "blocks", "detects", "to detect less")
_LEGEND = (
    "change: time of the head relative to the base, [a, b] is its 98 % confidence interval; detects: the smallest "
    "change that this many blocks could have shown."
)


def as_text(report: CheckReport, format: str, colour: bool = False, width: int = WIDTH) -> str:
    """The report in one of FORMATS, ending in a line end. Raises RecordError for another format.

    Args:
        width: columns of the terminal that shows the text.
    """
    if format == "json":
        return to_json_text(report)
    if format == "junit":
        return junit(report)
    if format not in FORMATS:
        raise RecordError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    markup = MARKDOWN if format == "markdown" else PLAIN
    # Never folded: whoever searches a log for it finds the whole of it.
    pieces = [verdict_line(report, markup)]
    if format == "text":
        pieces[0] = paint_verdict(report.verdict, colour) + pieces[0].removeprefix(report.verdict)
    if report.rows:
        table, footnotes = _rows_table(report, format, width, colour)
        pieces += [table, notes([*map(markup.text, footnotes.lines()), _LEGEND], format, width)]
    lines = diff_lines(report.facts, report.allow)
    if lines:
        body, title = "\n".join(lines), f"{facts_sentence(report)} (- base, + head):"
        if format == "markdown":
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
            body, title = f"{fence}diff\n{body}\n{fence}", f"{title}\n"
        pieces.append(f"{title}\n{body}")
    return page(*pieces, notes(_closing(report, format), format, width))


def _closing(report: CheckReport, format: str) -> Iterator[str]:
    markup = MARKDOWN if format == "markdown" else PLAIN
    # Of a check that is clean and timed nothing, the verdict says it.
    if (report.rows or report.verdict != CLEAN) and all(fact.same for fact in report.facts):
        yield facts_sentence(report)
    if report.self_test is not None:
        yield self_test_sentence(report.self_test, markup)
    elif report.rows:
        yield "this run made no self-test"
    yield from map(markup.text, report.notes)
    yield markup.text(machine_text(report.machine))
    yield f"{side_sentence(report.base, markup)}; {side_sentence(report.head, markup)}"
    yield f"took {duration(report.seconds)}"


def _rows_table(report: CheckReport, format: str, width: int, colour: bool) -> tuple[str, Footnotes]:
    """The table of what was timed, and its footnotes."""
    footnotes, markup = Footnotes(), MARKDOWN if format == "markdown" else PLAIN

    def cells(row: Row, folded: bool, name_width: int) -> list[Cell]:
        joint = "\n" if folded else " "
        factor, unit = unit_for([row.base_seconds, row.head_seconds], "s")
        times: list[Cell] = [
            None if x is None else fixed(x / factor, x / factor, x / factor)
            for x in (row.base_seconds, row.head_seconds)
        ]
        allowed = " allowed" if row.verdict in report.allow else ""
        verdict = VOID if report.verdict == VOID and row.decision is not None else row.verdict
        # Never broken at a space: no line may begin with what the runner takes for a command.
        name = broken(one_line(row.workload), name_width, "-/@") if folded else markup.name(row.workload)
        decision = row.decision
        return [
            name,
            unit if any(times) else None,
            *times,
            _change_cell(decision, joint),
            paint_verdict(verdict, colour) + allowed + footnotes.mark(row.reason),
            None if decision is None else f"{decision.blocks}+{row.again.blocks}" if row.again else decision.blocks,
            None if decision is None or decision.visible is None else percent(decision.visible),
            _cost_cell(row, joint),
        ]

    text = render(_HEADERS, [cells(row, False, 0) for row in report.rows], format)
    if format == "text" and width_of(text) > width:
        headers = [name.replace(" ", "\n", 1) for name in _HEADERS]
        # What the numbers leave is the ids'.
        numbers = [cells(row, True, 0)[1:] for row in report.rows]
        taken = width_of(render(headers[1:], numbers)) + 2
        text = render(headers, [cells(row, True, max(width - taken, 16)) for row in report.rows])
    return text, footnotes


def _change_cell(decision: Decision | None, joint: str) -> str | None:
    if decision is None:
        return None
    change = signed_percent(decision.estimate - 1)
    if decision.clean_low is None or decision.clean_high is None:
        return change
    low, high = (f"{100 * (bound - 1):+.1f}" for bound in (decision.clean_low, decision.clean_high))
    return f"{change}{joint}[{low}, {high}]"


def _cost_cell(row: Row, joint: str) -> str | None:
    decision = row.decision
    needed = None if decision is None else decision.blocks_needed(decision.aim)
    if decision is None or needed is None:
        return None
    time = "" if row.seconds_per_block is None else f",{joint}{duration(needed * row.seconds_per_block)}"
    return f"{percent(decision.aim)} in {plural(needed, 'block')}{time}"


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


def annotations(report: CheckReport) -> list[str]:
    """Workflow commands: ::error for what fails, ::warning for UNSURE, NEW and what was allowed.

    At most ten of a kind, which is what GitHub shows of a step; the tenth then says how many are left out.
    """
    levels: dict[str, list[tuple[str, str]]] = {"error": [], "warning": []}
    test = report.self_test
    void = test is not None and bool(test.faults)
    if test is not None and void:
        levels["error"].append((VOID, self_test_sentence(test)))
    elif test is not None and UNSURE in {answer.verdict for answer in (test.same, test.slowed) if answer is not None}:
        levels["warning"].append((f"{UNSURE} self-test", self_test_sentence(test)))
    for verdict in (ERROR, REGRESSED, VANISHED, UNSURE, NEW):
        # Times of an instrument that failed its test are no findings; a side that crashed is.
        for row in report.rows if not void or verdict in (ERROR, VANISHED, NEW) else ():
            if row.verdict == verdict:
                allowed = " (allowed)" if verdict in report.allow else ""
                level = "warning" if allowed or verdict in (UNSURE, NEW) else "error"
                levels[level].append((f"{verdict} {one_line(row.workload)}", row_sentence(row) + allowed))
    for fact in report.facts:
        if not fact.same:
            allowed = " (allowed)" if fact.name in report.allow else ""
            title = f"{CHANGED} {one_line(fact.name)} of {one_line(fact.workload)}"
            levels["warning" if allowed else "error"].append((title, fact_sentence(fact) + allowed))
    lines: list[str] = []
    for level, messages in levels.items():
        if len(messages) > ANNOTATIONS:
            more = len(messages) - ANNOTATIONS + 1
            messages = [*messages[: ANNOTATIONS - 1], (f"and {more} more", "the summary of this job lists them all")]
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
            file.write(("\n" if file.tell() else "") + as_text(report, "markdown"))
    except OSError as error:
        return f"cannot write the summary to {path} (from $GITHUB_STEP_SUMMARY): {error.strerror}"
    return None


def _main(arguments: Sequence[str]) -> int:
    """Show a stored report: FILE [--format FORMAT] [-o FILE]."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m results.gate_report", description="Show a stored `bench check`.")
    parser.add_argument("file", type=Path, help="what `bench check --format json -o FILE` wrote")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("-o", "--output", default="-", help="write here; - is stdout")
    asked = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whatever its encoding is.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        report = CheckReport.from_json(read_json(asked.file), str(asked.file))
        text = as_text(report, asked.format, width=shutil.get_terminal_size((WIDTH, 24)).columns)
        if asked.output == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            write_whole(Path(asked.output), text.encode())
    except (OSError, RecordError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        where = keep_traceback(error, shlex.join(sys.argv))
        print(f"{parser.prog}: unexpected {type(error).__name__}: {first_line(error)} ({where})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
