"""A `bench check` as JUnit XML, the form that GitHub's and GitLab's test reports and Jenkins read.

A workload's counted facts are one test case, its time another, the self-test a third. What fails the check is a
failure, what gave no answer an error, and doubt passes with a text: readers of this form know nothing in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from results.gate import CHANGED, ERROR, VANISHED, VOID, CheckReport, Fact, Row
from results.gate_words import diff_lines, fact_sentence, one_line, row_sentence, self_test_sentence, verdict_line
from results.verdict import CLEAN, IMPROVED, REGRESSED, Decision

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
        failing = [fact for fact in facts if not fact.same and fact.name not in report.allow]
        lines = diff_lines(facts, report.allow)
        if failing:
            message = "; ".join(fact_sentence(fact) for fact in failing)
            cases.append(_Case("facts", workload, 0.0, "failure", CHANGED, message, lines))
        else:
            cases.append(_Case("facts", workload, body=lines))
    return cases


def _rows(report: CheckReport) -> list[_Case]:
    void = report.self_test is not None and bool(report.self_test.faults)
    return [_row(row, void, row.verdict in report.allow) for row in report.rows]


def _row(row: Row, void: bool, allowed: bool) -> _Case:
    said = row_sentence(row)
    seconds = (row.seconds_per_block or 0.0) * (len(row.blocks) + len(row.again_blocks))
    body = [said]
    if row.again is not None or row.verdict == REGRESSED:
        body += [decision.sentence(run) for run, decision in _runs(row)]
    if allowed:
        return _Case("time", row.workload, seconds, body=[*body, f"{row.verdict} is allowed"])
    if row.verdict in (ERROR, VOID):
        return _Case("time", row.workload, seconds, "error", row.verdict, said, body)
    if row.verdict == VANISHED:
        return _Case("time", row.workload, seconds, "failure", row.verdict, said, body)
    if void:
        # Neither a pass nor a failure may come from an instrument that failed its own test.
        return _Case("time", row.workload, seconds, "skipped", VOID, "the self-test failed: no time counts", body)
    if row.verdict == REGRESSED:
        return _Case("time", row.workload, seconds, "failure", row.verdict, said, body)
    return _Case(
        "time", row.workload, seconds, body=[] if row.verdict in (CLEAN, IMPROVED) and not row.reason else body
    )


def _runs(row: Row) -> list[tuple[str, Decision]]:
    runs = [("in the first run", row.decision), ("in the second run", row.again)]
    return [(name, decision) for name, decision in runs if decision is not None]


def _self_test(report: CheckReport) -> list[_Case]:
    test = report.self_test
    if test is None:
        return []
    said = self_test_sentence(test)
    if test.faults:
        return [_Case("self-test", test.workload, 0.0, "error", VOID, said, [one_line(fault) for fault in test.faults])]
    return [_Case("self-test", test.workload, body=[said])]


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
