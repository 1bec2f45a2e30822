"""A `bench check` as JUnit XML, as test reports of GitHub, GitLab and Jenkins read it.

A workload's counted facts are one test case, its time another, the self-test a third. What fails the check is a
failure, what gave no answer an error, and doubt passes with a text: readers of this form know nothing in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from results.gate import CHANGED, CONFIRMED, ERROR, VANISHED, VOID, CheckReport, Fact, Row
from results.gate_words import diff_lines, fact_sentence, one_line, row_sentence, self_test_sentence, verdict_line
from results.verdict import CLEAN, IMPROVED, REGRESSED

SUITE = "bench check"


@dataclass(frozen=True)
class _Case:
    """One test case: `outcome` is failure, error, skipped or "" for a pass; `kind` its type."""

    suite: str
    name: str
    seconds: float = 0.0
    outcome: str = ""
    kind: str = ""
    message: str = ""
    body: Sequence[str] = ()


def junit(report: CheckReport) -> str:
    """The report as one <testsuites>, ending in a line end; times in seconds."""
    cases = [*_facts(report), *_rows(report), *_self_test(report)]
    root = ElementTree.Element("testsuites", {"name": SUITE, "time": _time(report.seconds), **_counts(cases)})
    for suite in dict.fromkeys(case.suite for case in cases):
        inside = [case for case in cases if case.suite == suite]
        skipped = str(sum(case.outcome == "skipped" for case in inside))
        seconds = _time(sum(case.seconds for case in inside))
        counts = {"name": suite, "time": seconds, "skipped": skipped, **_counts(inside)}
        element = ElementTree.SubElement(root, "testsuite", counts)
        if len(root) == 1:
            properties = ElementTree.SubElement(element, "properties")
            for name, value in _properties(report).items():
                ElementTree.SubElement(properties, "property", {"name": name, "value": one_line(value)})
        for case in inside:
            _append(element, case)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _facts(report: CheckReport) -> list[_Case]:
    groups: dict[str, list[Fact]] = {}
    for fact in report.facts:
        groups.setdefault(fact.workload, []).append(fact)
    cases: list[_Case] = []
    for workload, facts in groups.items():
        failing = [fact_sentence(fact) for fact in facts if not fact.same and fact.name not in report.allow]
        outcome, kind = ("failure", CHANGED) if failing else ("", "")
        lines = diff_lines(facts, report.allow)
        cases.append(_Case("facts", workload, 0.0, outcome, kind, "; ".join(failing), lines))
    return cases


def _rows(report: CheckReport) -> list[_Case]:
    void = report.self_test is not None and bool(report.self_test.faults)
    return [_row(row, void, row.verdict in report.allow) for row in report.rows]


def _row(row: Row, void: bool, allowed: bool) -> _Case:
    message = row_sentence(row)
    seconds = (row.seconds_per_block or 0.0) * (len(row.blocks) + len(row.again_blocks))
    body = [message]
    if row.again is not None or row.verdict in CONFIRMED:
        runs = {"in the first run": row.decision, "in the second run": row.again}
        body += [decision.sentence(run) for run, decision in runs.items() if decision is not None]
    outcome, kind = "", row.verdict
    if allowed:
        body.append(f"{row.verdict} is allowed")
    elif row.verdict in (ERROR, VOID):
        outcome = "error"
    elif row.verdict == VANISHED or (row.verdict == REGRESSED and not void):
        outcome = "failure"
    elif void:
        # Neither a pass nor a failure may come from an instrument that failed its own test.
        outcome, kind, message = "skipped", VOID, "the self-test failed: no time counts"
    elif row.verdict in (CLEAN, IMPROVED) and not row.reason:
        body = []
    return _Case("time", row.workload, seconds, outcome, kind, message, body)


def _self_test(report: CheckReport) -> list[_Case]:
    test = report.self_test
    if test is None:
        return []
    message = self_test_sentence(test)
    if test.faults:
        return [_Case("self-test", test.workload, 0.0, "error", VOID, message, [*map(one_line, test.faults)])]
    return [_Case("self-test", test.workload, body=[message])]


def _properties(report: CheckReport) -> dict[str, str]:
    """Of the first suite, since the schema has none for all of them."""
    found = {"verdict": report.verdict, "summary": verdict_line(report)}
    for side in (report.base, report.head):
        found[f"{side.name}.ref"] = side.ref
        found[f"{side.name}.commit"] = side.commit or ""
        found[f"{side.name}.dirty"] = str(side.dirty).lower()
    return found | {f"note.{i}": note for i, note in enumerate(report.notes)}


def _append(suite: ElementTree.Element, case: _Case) -> None:
    # GitLab tells cases apart by class and name together.
    element = ElementTree.SubElement(
        suite, "testcase", name=one_line(case.name), classname=f"{SUITE}.{case.suite}", time=_time(case.seconds)
    )
    text = "\n".join(case.body)
    if case.outcome:
        found = ElementTree.SubElement(element, case.outcome, type=case.kind, message=one_line(case.message))
        found.text = text
    elif text:
        ElementTree.SubElement(element, "system-out").text = text


def _counts(cases: Sequence[_Case]) -> dict[str, str]:
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.outcome == "failure" for case in cases)),
        "errors": str(sum(case.outcome == "error" for case in cases)),
    }


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"
