"""JUnit XML as GitHub, GitLab and Jenkins read it: structure, counts, and what passes."""

import re
from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import fabricated_check as made
import pytest

from results.gate import CheckReport, Fact, Row
from results.junit import junit

HOSTILE = "inference/<a>&\"b'\x00\x1b[31m\ud800\ufffe]]>\n/cpu"

# Element -> (attributes it must have, attributes it may have, children): the schema that Jenkins' plugin checks by,
# and the readers of others take more.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": ({"name", "classname"}, {"time"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "skipped": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "failure": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def parsed(report: CheckReport) -> Element:
    """The XML, checked against the schema and against its own counts."""
    text = junit(report)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = ElementTree.fromstring(text.encode("utf-8"))
    for element in root.iter():
        must, may, children = SCHEMA[element.tag]
        assert must <= set(element.attrib) <= must | may
        assert {child.tag for child in element} <= children
        if "time" in element.attrib:
            assert re.fullmatch(r"\d+\.\d{3}", element.attrib["time"])
    for holder in root.iter():
        if holder.tag in ("testsuites", "testsuite"):
            for count, found in (("tests", ".//testcase"), ("failures", ".//failure"), ("errors", ".//error")):
                assert int(holder.attrib[count]) == len(holder.findall(found))
    names = [(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")]
    assert len(set(names)) == len(names)
    return root


def case(report: CheckReport, suite: str, name: str) -> Element:
    found = parsed(report).find(f"testsuite[@name='{suite}']/testcase[@name='{name}']")
    assert found is not None
    return found


def outcome(element: Element) -> tuple[str, str]:
    for tag in ("failure", "error", "skipped"):
        found = element.find(tag)
        if found is not None:
            return tag, found.attrib["type"]
    return "pass", element.findtext("system-out", "")[:6]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (made.REGRESSED_ROW, ("failure", "REGRESSED")),
        (made.VANISHED_ROW, ("failure", "VANISHED")),
        (made.ERROR_ROW, ("error", "ERROR")),
        (made.UNSURE_ROW, ("pass", "UNSURE")),
        (made.DISAGREED_ROW, ("pass", "UNSURE")),
        (made.TOO_FEW_ROW, ("pass", "UNSURE")),
        (made.CLEAN_ROW, ("pass", "")),
        (made.IMPROVED_ROW, ("pass", "")),
        (made.NEW_ROW, ("pass", made.LOADING[:6])),
    ],
)
def test_rows(row: Row, expected: tuple[str, str]) -> None:
    assert outcome(case(made.report(rows=(row,)), "time", row.workload)) == expected


def test_a_failure_holds_both_runs() -> None:
    failure = case(made.report(rows=(made.REGRESSED_ROW,)), "time", made.TRAINING).find("failure")
    assert failure is not None
    assert "confirmed by a second run" in failure.attrib["message"]
    assert "in the first run" in (failure.text or "")
    assert "in the second run" in (failure.text or "")


def test_doubt_says_what_could_be_seen_and_what_less_costs() -> None:
    text = case(made.report(rows=(made.UNSURE_ROW,)), "time", made.LOADING).findtext("system-out", "")
    assert "could have shown" in text
    assert re.search(r"takes about \d+ blocks, \d+ min \d+ s in all", text)


def test_one_case_for_the_facts_of_a_workload() -> None:
    found = made.report(facts=made.CHANGED_FACTS, rows=(), self_test=None)
    root = parsed(found)
    assert [suite.attrib["name"] for suite in root] == ["facts"]
    assert [c.attrib["name"] for c in root.iter("testcase")] == [made.TRAINING, made.INFERENCE]
    failure = case(found, "facts", made.TRAINING).find("failure")
    assert failure is not None
    assert "parameters of" in failure.attrib["message"]
    assert "state_dict of" in failure.attrib["message"]
    assert "+ conv1.bias float32[64]" in (failure.text or "")


def test_what_is_allowed_passes_with_a_text() -> None:
    found = made.report(
        facts=made.CHANGED_FACTS, rows=(made.VANISHED_ROW,), allow=("VANISHED", "operators", "parameters", "state_dict")
    )
    assert parsed(found).attrib["failures"] == "0"
    assert "(allowed)" in case(found, "facts", made.INFERENCE).findtext("system-out", "")
    assert "VANISHED is allowed" in case(found, "time", made.LOADING).findtext("system-out", "")


def test_agreeing_facts_pass() -> None:
    assert outcome(case(made.report(), "facts", made.TRAINING)) == ("pass", "")


def test_a_void_run_passes_and_fails_no_time() -> None:
    root = parsed(made.report(rows=(made.REGRESSED_ROW, made.CLEAN_ROW, made.ERROR_ROW), self_test=made.FAILED))
    found = {c.attrib["classname"] + c.attrib["name"]: outcome(c) for c in root.iter("testcase")}
    assert found["bench check.time" + made.TRAINING] == ("skipped", "VOID")
    assert found["bench check.time" + made.INFERENCE] == ("skipped", "VOID")
    assert found["bench check.time" + made.LOADING] == ("error", "ERROR")
    assert found["bench check.self-test" + made.INFERENCE] == ("error", "VOID")
    time = root.find("testsuite[@name='time']")
    assert time is not None
    assert time.attrib["skipped"] == "2"


def test_facts_of_a_void_run_still_count() -> None:
    found = made.report(facts=made.CHANGED_FACTS, self_test=made.FAILED)
    assert outcome(case(found, "facts", made.TRAINING)) == ("failure", "CHANGED")


def test_only_errors() -> None:
    rows = (made.ERROR_ROW, replace(made.ERROR_ROW, workload=made.TRAINING, reason=None))
    root = parsed(made.report(facts=(), rows=rows, self_test=None))
    assert (root.attrib["tests"], root.attrib["errors"], root.attrib["failures"]) == ("2", "2", "0")


def test_nothing_at_all_is_valid() -> None:
    assert len(parsed(made.report(facts=(), rows=(), self_test=None))) == 0


def test_hostile_names_and_texts() -> None:
    fact = Fact(HOSTILE, "output", HOSTILE, "nan", False, (HOSTILE,))
    root = parsed(made.report(facts=(fact,), rows=(Row(HOSTILE, "ERROR", reason=HOSTILE),), notes=(HOSTILE,)))
    name = next(root.iter("testcase")).attrib["name"]
    assert name.startswith("inference/<a>&\"b'")
    assert "]]>" in name


def test_properties_say_which_commits() -> None:
    found = {p.attrib["name"]: p.attrib["value"] for p in parsed(made.report(notes=("busy",))).iter("property")}
    assert found["verdict"] == "CLEAN"
    assert found["base.ref"] == "main"
    assert found["head.dirty"] == "true"
    assert found["note.0"] == "busy"


def test_time_is_what_the_blocks_cost() -> None:
    blocks = (({"base": 0.1, "head": 0.1},),) * 10
    row = replace(made.REGRESSED_ROW, blocks=blocks, again_blocks=blocks)
    assert case(made.report(rows=(row,)), "time", made.TRAINING).attrib["time"] == "460.000"
