"""The rules of the gate: which verdict wins, what may be allowed, what the process exits with."""

import json
from dataclasses import replace

import fabricated_check as made
import pytest

from results import gate
from results.gate import Fact, Row, row_verdict
from results.verdict import instrument_faults


def rows(*verdicts: str) -> tuple[Row, ...]:
    return tuple(Row(f"training/m{i}@naive/b1/s8/c2/cpu", verdict) for i, verdict in enumerate(verdicts))


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        *(("VOID", 2), ("ERROR", 2), ("REGRESSED", 1), ("CHANGED", 1), ("VANISHED", 1)),
        *(("UNSURE", 0), ("NEW", 0), ("IMPROVED", 0), ("CLEAN", 0)),
    ],
)
def test_exit_codes(verdict: str, code: int) -> None:
    facts = made.CHANGED_FACTS if verdict == "CHANGED" else made.SAME_FACTS
    self_test = made.FAILED if verdict == "VOID" else made.PASSED
    found = made.report(facts=facts, rows=() if verdict in ("CHANGED", "VOID") else rows(verdict), self_test=self_test)
    assert (found.verdict, found.exit_code) == (verdict, code)


def test_every_verdict_has_a_place_and_an_exit_code() -> None:
    assert set(gate.GRAVITY) == set(gate.EXIT_CODES)
    # The graver, the higher is the code that it may exit with.
    assert [gate.EXIT_CODES[verdict] for verdict in gate.GRAVITY] == [2, 2, 1, 1, 1, 0, 0, 0, 0]


def test_the_gravest_verdict_is_the_whole_s() -> None:
    order = [verdict for verdict in gate.GRAVITY if verdict not in ("VOID", "CHANGED")]
    for i, verdict in enumerate(order):
        among = rows(*order[: i - 1 if i else None : -1])
        assert made.report(rows=among).verdict == verdict


def test_a_changed_fact_lies_between_a_regression_and_a_loss() -> None:
    assert made.report(facts=made.CHANGED_FACTS, rows=rows("REGRESSED")).verdict == "REGRESSED"
    assert made.report(facts=made.CHANGED_FACTS, rows=rows("VANISHED")).verdict == "CHANGED"


def test_a_wrong_instrument_voids_everything() -> None:
    assert made.report(self_test=made.FAILED, rows=rows("ERROR", "REGRESSED"), facts=made.CHANGED_FACTS).exit_code == 2
    assert made.report(self_test=made.FAILED).verdict == "VOID"


def test_an_instrument_in_doubt_is_no_clean_answer() -> None:
    assert made.report(self_test=made.IN_DOUBT).verdict == "UNSURE"
    assert made.report(self_test=made.IN_DOUBT, rows=rows("REGRESSED")).verdict == "REGRESSED"


def test_instrument_faults() -> None:
    assert instrument_faults(made.CLEAN, made.SLOWER) == []
    assert instrument_faults(made.DOUBT, made.DOUBT) == []
    wrong = instrument_faults(made.SLOWER, made.CLEAN)
    assert len(wrong) == 2
    assert "expected CLEAN" in wrong[0]
    assert "expected REGRESSED" in wrong[1]


def test_allowed_facts_and_losses_do_not_fail() -> None:
    every = ("parameters", "state_dict", "operators")
    found = made.report(facts=made.CHANGED_FACTS, allow=every[:2])
    assert [fact.name for fact in found.changed] == ["operators"]
    assert found.exit_code == 1
    assert made.report(facts=made.CHANGED_FACTS, allow=every).verdict == "CLEAN"
    assert made.report(rows=rows("VANISHED")).exit_code == 1
    assert made.report(rows=rows("VANISHED"), allow=("VANISHED",)).exit_code == 0


def test_allowing_one_thing_allows_no_other() -> None:
    found = made.report(facts=made.CHANGED_FACTS, rows=rows("REGRESSED", "VANISHED"), allow=("VANISHED", "output"))
    assert found.verdict == "REGRESSED"
    assert len(found.changed) == 3


def test_nothing_that_was_timed_is_fine_when_facts_agree() -> None:
    found = made.report(rows=(), self_test=None)
    assert (found.verdict, found.exit_code) == ("CLEAN", 0)
    assert made.report(rows=(), self_test=None, facts=made.CHANGED_FACTS).exit_code == 1


def test_a_regression_takes_two_runs() -> None:
    assert row_verdict(made.SLOWER, made.decision(0.05, seed=2)) == ("REGRESSED", None)
    assert row_verdict(made.SLOWER, made.CLEAN) == ("UNSURE", "the first run said REGRESSED, the second CLEAN")
    assert row_verdict(made.SLOWER, made.FASTER) == ("UNSURE", "the first run said REGRESSED, the second IMPROVED")
    assert row_verdict(made.SLOWER, None) == ("REGRESSED", None)


def test_an_improvement_takes_two_runs_as_well() -> None:
    assert row_verdict(made.FASTER, made.decision(-0.05, seed=2)) == ("IMPROVED", None)
    assert row_verdict(made.FASTER, made.SLOWER) == ("UNSURE", "the first run said IMPROVED, the second REGRESSED")
    assert row_verdict(made.FASTER, None) == ("IMPROVED", None)


@pytest.mark.parametrize("first", [made.CLEAN, made.DOUBT, made.TOO_FEW])
def test_what_shows_no_change_is_not_confirmed(first: object) -> None:
    assert row_verdict(first, made.SLOWER) == (first.verdict, None)


def test_json_holds_verdict_exit_code_and_every_field() -> None:
    found = made.report(rows=made.ALL_ROWS, facts=made.CHANGED_FACTS)
    data = json.loads(json.dumps(found.to_json()))
    assert (data["verdict"], data["exit_code"]) == ("ERROR", 2)
    assert data["rows"][0]["decision"]["estimate"] == made.SLOWER.estimate
    assert data["head"]["dirty"] is True
    assert set(data) == {"verdict", "exit_code", "only_noise", *(name for name in vars(found))}


def test_facts_are_frozen() -> None:
    fact = Fact(made.TRAINING, "parameters", 1, 1, True)
    with pytest.raises(AttributeError):
        fact.same = False
    assert replace(fact, same=False).same is False
