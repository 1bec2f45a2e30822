"""What a reader of a check sees in every form, and that nothing it holds can break out of its place."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabricated_check as made
import pytest

from results import gate_report, gate_words
from results.errors import RecordError
from results.gate import CheckReport, Fact, Row, Side
from results.gate_report import FORMATS, annotations, as_text, to_json_text
from results.gate_words import verdict_line
from results.tables import duration, percent

HOSTILE = "inference/a|b`c*<d>&_e@f,g:h%i/b1\r\n::error::x\x1b[31m\x00/cpu"
ANSI = re.compile(r"\x1b\[[0-9;]*m")

REPORTS: dict[str, CheckReport] = {
    "clean": made.report(),
    "exact": made.report(rows=(), self_test=None),
    "exact changed": made.report(rows=(), self_test=None, facts=made.CHANGED_FACTS),
    "nothing": made.report(rows=(), facts=(), self_test=None),
    "regressed": made.report(rows=(made.REGRESSED_ROW, made.CLEAN_ROW, made.UNSURE_ROW)),
    "improved": made.report(rows=(made.IMPROVED_ROW, made.CLEAN_ROW)),
    "changed": made.report(facts=made.CHANGED_FACTS),
    "unsure": made.report(rows=(made.UNSURE_ROW, made.TOO_FEW_ROW, made.DISAGREED_ROW)),
    "vanished": made.report(rows=(made.VANISHED_ROW, made.CLEAN_ROW)),
    "allowed": made.report(
        rows=(made.VANISHED_ROW, made.CLEAN_ROW),
        facts=made.CHANGED_FACTS,
        allow=("VANISHED", "parameters", "state_dict", "operators"),
    ),
    "new": made.report(rows=(made.NEW_ROW, made.CLEAN_ROW)),
    "errors": made.report(rows=(made.ERROR_ROW, replace(made.ERROR_ROW, workload=made.TRAINING)), self_test=None),
    "void": made.report(rows=made.ALL_ROWS, self_test=made.FAILED),
    "in doubt": made.report(self_test=made.IN_DOUBT),
    "hostile": CheckReport(
        Side("base", "br`an|ch", None),
        Side("head", "", None),
        (Fact(HOSTILE, "output", HOSTILE, "nan", False, ("```", HOSTILE)),),
        (replace(made.REGRESSED_ROW, workload=HOSTILE), Row(HOSTILE, "ERROR", reason=HOSTILE)),
        notes=(HOSTILE,),
    ),
    "everything": made.report(
        rows=made.ALL_ROWS, facts=made.CHANGED_FACTS + made.SAME_FACTS, notes=("another process took 30 % of a core",)
    ),
}
VERDICTS = {
    **{"clean": "CLEAN", "exact": "CLEAN", "exact changed": "CHANGED", "nothing": "CLEAN", "regressed": "REGRESSED"},
    **{"improved": "IMPROVED", "changed": "CHANGED", "unsure": "UNSURE", "vanished": "VANISHED", "allowed": "CLEAN"},
    **{"new": "NEW", "errors": "ERROR", "void": "VOID", "in doubt": "UNSURE", "hostile": "ERROR"},
    **{"everything": "ERROR"},
}


def rows_of(text: str) -> list[list[str]]:
    """The cells of a markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# ---- the verdict's line ----


@pytest.mark.parametrize("name", REPORTS)
def test_the_verdict_comes_first_in_one_line(name: str) -> None:
    found = REPORTS[name]
    assert found.verdict == VERDICTS[name]
    line = verdict_line(found)
    assert line.startswith(f"{found.verdict}: ")
    assert len(line.splitlines()) == 1
    assert as_text(found, "text").splitlines()[0] == line
    assert as_text(found, "markdown").startswith(f"**{found.verdict}**: ")


def test_a_regression_is_told_to_a_hurried_reader() -> None:
    found = made.report(rows=(made.REGRESSED_ROW, *(replace(made.CLEAN_ROW, workload=f"w{i}") for i in range(5))))
    line = verdict_line(found)
    change = (
        re.escape(f"REGRESSED: {made.TRAINING} takes ") + r"\d\.\d % longer \(\d\.\d to \d\.\d %\), confirmed by a "
    )
    assert re.match(change + "second run; 5 other workloads clean; 3 facts of 2 workloads agree exactly$", line)


def test_a_regression_that_was_not_measured_again_says_so() -> None:
    assert "not measured again" in verdict_line(made.report(rows=(replace(made.REGRESSED_ROW, again=None),)))


def test_an_improvement_is_less_time() -> None:
    assert re.search(
        r"takes \d\.\d % less time \(4\.\d to 5\.\d %\), confirmed by a second run;", verdict_line(REPORTS["improved"])
    )


def test_graver_findings_are_counted_before_lighter_ones() -> None:
    assert "1 other workload regressed, 3 unsure, 1 improved, 1 clean" in verdict_line(REPORTS["everything"])


def test_many_of_a_kind_are_counted() -> None:
    many = tuple(replace(made.REGRESSED_ROW, workload=f"w{i}") for i in range(5))
    line = verdict_line(made.report(rows=many))
    assert line.count("takes") == 2
    assert "and 3 more workloads" in line


def test_clean_says_beyond_what() -> None:
    assert "1 workload takes the same time, within 2 %" in verdict_line(REPORTS["clean"])
    wider = replace(made.CLEAN_ROW, workload="w", decision=replace(made.CLEAN, margin=0.03))
    assert "2 workloads take the same time, within 2 to 3 %" in verdict_line(made.report(rows=(made.CLEAN_ROW, wider)))


def test_nothing_is_not_sold_as_something() -> None:
    assert verdict_line(REPORTS["nothing"]) == "CLEAN: nothing was counted, nothing was timed"
    assert verdict_line(REPORTS["exact"]) == "CLEAN: 3 facts of 2 workloads agree exactly; nothing was timed"
    assert as_text(REPORTS["exact"], "text").count("3 facts of 2 workloads agree") == 1


def test_outputs_within_a_tolerance_do_not_agree_exactly() -> None:
    near = (*made.SAME_FACTS, Fact(made.INFERENCE, "output", "0.002", "0.0021", True))
    assert "4 facts of 2 workloads agree (outputs within their tolerance)" in verdict_line(made.report(facts=near))


def test_void_says_what_went_wrong_and_counts_no_time() -> None:
    line = verdict_line(REPORTS["void"])
    assert "base against itself was judged REGRESSED" in line
    assert "other workload" not in line
    fault = replace(made.FAILED, same=None, faults=("no worker came up",))
    assert "no worker came up" in verdict_line(made.report(self_test=fault))


def test_many_unsure_are_said_together() -> None:
    decisions = [made.decision(0.01, blocks=24, spread=spread) for spread in (0.02, 0.04, 0.08)]
    rows = [replace(made.UNSURE_ROW, workload=f"w{i}", decision=found) for i, found in enumerate(decisions)]
    line = verdict_line(made.report(rows=(*rows, made.CLEAN_ROW)))
    least, most = decisions[0].visible, decisions[2].visible
    assert least is not None
    assert most is not None
    assert "too close to call for 3 of 4 workloads; " in line
    assert f"only changes of {percent(least)} (at best) to {percent(most)} (at worst) or more could have shown" in line


def test_an_instrument_in_doubt_is_named_when_no_row_is() -> None:
    assert verdict_line(REPORTS["in doubt"]).startswith(f"UNSURE: self-test inconclusive on {made.INFERENCE}")


def test_what_was_allowed_is_said() -> None:
    line = verdict_line(REPORTS["allowed"])
    assert "allowed: 1 VANISHED" in line
    assert "3 of 3 facts of 2 workloads differ (3 allowed)" in line


def test_a_long_reason_does_not_bury_the_line() -> None:
    long = replace(made.ERROR_ROW, reason="the process died " * 100)
    found = made.report(rows=(long,))
    assert len(verdict_line(found)) < 400
    assert "the process died " * 50 in as_text(found, "text").replace("\n  ", " ")


def test_an_output_that_could_not_be_compared_says_why() -> None:
    lost = Fact(made.TRAINING, "output", None, None, False, ("Missing key(s): conv1.bias",))
    assert f"output of {made.TRAINING} differs: Missing key(s): conv1.bias" in verdict_line(made.report(facts=(lost,)))


# ---- the table ----


def test_every_unsure_row_says_what_could_be_seen_and_what_less_costs() -> None:
    header, _, unsure, few, disagreed = rows_of(as_text(REPORTS["unsure"], "markdown"))
    assert header[-2:] == ["detects", "to detect less"]
    assert made.DOUBT.visible is not None
    needed = made.DOUBT.blocks_needed()
    assert needed is not None
    assert unsure[-2] == f"{100 * made.DOUBT.visible:.2g} %"
    assert unsure[-1] == f"2 % in {needed} blocks, {duration(needed * 12)}"
    assert few[-2:] == ["-", "-"]
    assert disagreed[-2] == "2 %"
    assert disagreed[-1].startswith("1 % in 40 blocks")
    for row in REPORTS["unsure"].rows:
        assert (
            "could have shown" in (said := gate_words.row_sentence(row)) or "too few blocks to show any change" in said
        )
    assert "the first run said REGRESSED, the second CLEAN" in as_text(REPORTS["unsure"], "text")


def test_a_cost_without_seconds_is_blocks_only() -> None:
    row = replace(made.UNSURE_ROW, seconds_per_block=None)
    assert (
        rows_of(as_text(made.report(rows=(row,)), "markdown"))[2][-1] == f"2 % in {made.DOUBT.blocks_needed()} blocks"
    )


def test_cells() -> None:
    header, _, slower, clean, _ = rows_of(as_text(REPORTS["regressed"], "markdown"))
    assert header[:7] == ["workload", "unit", "base", "head", "change", "verdict", "blocks"]
    assert slower[:4] == [f"`{made.TRAINING}`", "ms", "102.1", "107.4"]
    assert re.fullmatch(r"\+\d\.\d % \[\+\d\.\d, \+\d\.\d\]", slower[4])
    assert slower[5:7] == ["REGRESSED", "10+10"]
    assert clean[5:7] == ["CLEAN", "10"]


def test_rows_without_a_number_keep_their_reason() -> None:
    text = as_text(REPORTS["errors"], "text")
    assert "ERROR (1)" in text
    assert f"(1) {made.ERROR_ROW.reason}" in text
    assert "(2)" not in text


def test_a_void_run_gives_no_row_a_verdict() -> None:
    cells = rows_of(as_text(REPORTS["void"], "markdown"))[2:]
    assert {row[5].split()[0] for row in cells} == {"VOID", "ERROR"}


def test_the_table_keeps_to_its_width_without_losing_an_id() -> None:
    first, *lines = as_text(REPORTS["everything"], "text", width=100).splitlines()
    head = lines.index(next(line for line in lines if line.startswith("workload")))
    body = lines[head : lines.index("", head)]
    assert max(map(len, body)) <= 104
    ids = re.sub(r"\n", "", "\n".join(line[:20].split("  ")[0].strip() for line in body))
    assert made.TRAINING in ids
    wide = as_text(REPORTS["everything"], "text", width=300)
    assert any(line.startswith(made.TRAINING) and "REGRESSED" in line for line in wide.splitlines())
    assert first.startswith("ERROR: ")


def test_colour_only_when_asked_for() -> None:
    found = REPORTS["everything"]
    assert not ANSI.search(as_text(found, "text"))
    assert ANSI.sub("", as_text(found, "text", colour=True)) == as_text(found, "text")
    assert as_text(found, "text", colour=True).startswith("\x1b[31mERROR\x1b[0m: ")


# ---- facts ----


def test_differing_facts_are_a_diff() -> None:
    text = as_text(REPORTS["changed"], "text")
    assert "3 of 3 facts of 2 workloads differ (- base, + head):" in text
    lines = text.splitlines()
    at = lines.index(f"@@ {made.TRAINING} parameters @@")
    # The detail that only repeats the two numbers is left out.
    assert lines[at + 1 : at + 4] == ["-11,689,512", "+11,689,640", f"@@ {made.TRAINING} state_dict @@"]
    assert lines[at + 4 : at + 8] == ["-122", "+123", "+ conv1.bias float32[64]", "  fc.weight a -> b"]
    assert "```diff\n@@ " in as_text(REPORTS["changed"], "markdown")


def test_allowed_facts_are_shown_and_marked() -> None:
    assert f"@@ {made.INFERENCE} operators @@ (allowed)" in as_text(REPORTS["allowed"], "text")


def test_one_line_when_nothing_differs() -> None:
    text = as_text(REPORTS["clean"], "text")
    assert "@@" not in text
    assert "\n3 facts of 2 workloads agree exactly\n" in text


def test_a_long_difference_is_cut_and_says_so() -> None:
    many = tuple(f"+ entry{i} float32[1]" for i in range(1000))
    facts = tuple(Fact(f"w{i}", "state_dict", 0, 1000, False, many) for i in range(40))
    found = made.report(facts=facts)
    lines = gate_words.diff_lines(facts[:1])
    assert len(lines) == 3 + gate_words.DETAIL_LINES + 1
    assert "960 more lines" in lines[-1]
    assert len(gate_words.diff_lines(facts)) == gate_words.DIFF_LINES + 1
    assert len(as_text(found, "markdown").encode()) < 100_000
    assert len(json.loads(to_json_text(found))["facts"][0]["detail"]) == 1000


# ---- below the table ----


def test_the_rest_is_there() -> None:
    text = as_text(REPORTS["everything"], "text", width=300)
    assert f"self-test passed on {made.INFERENCE}: base against base is CLEAN" in text
    assert "base slowed by 5 % on purpose is REGRESSED" in text
    assert "another process took 30 % of a core" in text
    assert "machine: cpu, Fabricated Xeon, 2 cores, torch 2.15.0" in text
    assert "base main, commit 0123456789; head working tree, commit fedcba9876 with uncommitted changes" in text
    assert "took 7 min 11 s" in text


def test_a_missing_self_test_is_said() -> None:
    assert "this run made no self-test" in as_text(REPORTS["errors"], "text")
    assert "self-test" not in as_text(REPORTS["exact"], "text")


@pytest.mark.parametrize(
    ("side", "text"),
    [
        (Side("base", "main", None), "base main"),
        (Side("base", "0123456", "0123456789abcdef"), "base 0123456"),
        (Side("base", "v1", "0123456789abcdef", dirty=True), "base v1, commit 0123456789 with uncommitted changes"),
        (Side("head", "", None), "head working tree"),
    ],
)
def test_sides(side: Side, text: str) -> None:
    assert gate_words.side_sentence(side) == text


# ---- what may not break out ----


def test_hostile_names_in_text() -> None:
    text = as_text(REPORTS["hostile"], "text")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    assert not any(line.startswith("::") for line in text.splitlines())


def test_hostile_names_in_markdown() -> None:
    text = as_text(REPORTS["hostile"], "markdown")
    assert not any(line.startswith("::") for line in text.splitlines())
    cells = rows_of(text)
    assert {len(row) for row in cells} == {9}
    # The name is code between runs of ticks longer than its own.
    assert cells[2][0].startswith("``inference/a\\|b`c")
    fence = next(line for line in text.splitlines() if line.endswith("diff"))
    assert fence == "````diff"
    assert text.count("\n````\n") == 1
    outside = re.sub(r"(?<![\\`])(`+)(?!`).+?(?<!`)\1(?!`)", "", text.replace("\n", " "))
    assert not re.search(r"(?<!\\)<d>", outside)


def test_annotations_are_escaped() -> None:
    lines = annotations(REPORTS["hostile"])
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(r"::error title=[^,:\r\n]*::[^\r\n]*", line)
        assert not re.search(r"%(?!25|0D|0A|3A|2C)", line)


def test_escapes() -> None:
    assert gate_report._data("a%b\r\nc:d,e") == "a%25b%0D%0Ac:d,e"
    assert gate_report._property("a%b\nc:d,e") == "a%25b%0Ac%3Ad%2Ce"


# ---- GitHub ----


def levels(found: CheckReport) -> list[str]:
    return [re.sub(r"^::(\w+) title=(\S+).*", r"\1 \2", line) for line in annotations(found)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clean", []),
        ("improved", []),
        ("regressed", ["error REGRESSED", "warning UNSURE"]),
        ("changed", ["error CHANGED"] * 3),
        ("unsure", ["warning UNSURE"] * 3),
        ("vanished", ["error VANISHED"]),
        ("allowed", ["warning VANISHED", *["warning CHANGED"] * 3]),
        ("new", ["warning NEW"]),
        ("errors", ["error ERROR"] * 2),
        ("void", ["error VOID::self-test", "error ERROR"]),
        ("in doubt", ["warning UNSURE"]),
    ],
)
def test_annotation_levels(name: str, expected: list[str]) -> None:
    assert levels(REPORTS[name]) == expected


def test_no_more_annotations_than_are_shown() -> None:
    many = tuple(replace(made.REGRESSED_ROW, workload=f"w{i}") for i in range(30))
    lines = annotations(made.report(rows=many))
    assert len(lines) == gate_report.ANNOTATIONS
    assert lines[-1] == "::error title=and 21 more::the summary of this job lists them all"


def test_the_summary_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("# before\n", encoding="utf-8")
    assert gate_report.summary_file(REPORTS["clean"], {"GITHUB_STEP_SUMMARY": str(path)}) is None
    assert gate_report.summary_file(REPORTS["new"], {"GITHUB_STEP_SUMMARY": str(path)}) is None
    assert path.read_text(encoding="utf-8") == "\n".join(
        ["# before\n", as_text(REPORTS["clean"], "markdown"), as_text(REPORTS["new"], "markdown")]
    )


def test_without_a_summary_file_nothing_happens(tmp_path: Path) -> None:
    assert gate_report.summary_file(REPORTS["clean"], {}) is None
    assert gate_report.summary_file(REPORTS["clean"], {"GITHUB_STEP_SUMMARY": ""}) is None


def test_an_unwritable_summary_is_a_warning(tmp_path: Path) -> None:
    said = gate_report.summary_file(REPORTS["clean"], {"GITHUB_STEP_SUMMARY": str(tmp_path / "no" / "such")})
    assert said is not None
    assert len(said.splitlines()) == 1
    assert "No such file or directory" in said


# ---- JSON ----


@pytest.mark.parametrize("name", REPORTS)
def test_json_comes_back_whole(name: str) -> None:
    found = REPORTS[name]
    again = CheckReport.from_json(json.loads(to_json_text(found)))
    assert again == found
    for format in FORMATS:
        assert as_text(again, format) == as_text(found, format)


def test_raw_blocks_come_back() -> None:
    blocks = (({"base": 0.1, "head": 0.2}, {"base": 0.3, "head": 0.4}),)
    found = made.report(rows=(replace(made.REGRESSED_ROW, blocks=blocks, again_blocks=blocks * 2),))
    assert CheckReport.from_json(json.loads(to_json_text(found))) == found


def test_not_a_number_is_no_invalid_json() -> None:
    fact = Fact(made.TRAINING, "output", 0.1, float("nan"), False)
    row = replace(made.CLEAN_ROW, head_seconds=float("inf"))
    data = json.loads(to_json_text(made.report(facts=(fact,), rows=(row,))))
    assert data["facts"][0]["head"] == "nan"
    assert data["rows"][0]["head_seconds"] is None
    assert ": 0.1 in the base, nan in the head" in verdict_line(made.report(facts=(fact,), rows=()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'; known: base"),
        ({"rows": {}}, "check: rows: expected a list"),
        ({"rows": [{"workload": "w"}]}, r"check: rows\[0\]: missing 'verdict'"),
        ({"base": None}, "check: base: expected an object"),
    ],
)
def test_other_json_is_refused(change: dict[str, Any], message: str) -> None:
    data = json.loads(to_json_text(REPORTS["clean"])) | change
    with pytest.raises(RecordError, match=message):
        CheckReport.from_json(data)


def test_unknown_format() -> None:
    with pytest.raises(RecordError, match="unknown format 'csv'; known: text, markdown, json, junit"):
        as_text(REPORTS["clean"], "csv")


# ---- a stored report, shown again ----


def shown_again(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-P", "-m", "results.gate_report", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "100"},
    )


def test_a_stored_report_is_shown_again(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    path.write_text(to_json_text(REPORTS["everything"]), encoding="utf-8")
    done = shown_again(str(path), "--format", "markdown", "-o", str(tmp_path / "check.md"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "check.md").read_text(encoding="utf-8") == as_text(REPORTS["everything"], "markdown")


def test_what_is_no_report_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    path.write_text("[]", encoding="utf-8")
    done = shown_again(str(path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "expected an object" in done.stderr
