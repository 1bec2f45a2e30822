import json

import pytest

from bench.selfcheck import simulated
from bench.selfcheck.simulated import NOISES, SCATTERS, simulate


def test_few_false_changes_and_the_step_where_noise_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(simulate(8, 0, "json"))
    assert len(rows) == len(NOISES) * len(SCATTERS)
    assert all(row["false changes in"] <= 1 for row in rows)
    quiet = [float(row["step of 5 % found"].rstrip("%")) for row in rows if row["scatter"] == "2%"]
    assert min(quiet) > 60
    # What shows a change everywhere is counted as wrong everywhere.
    monkeypatch.setattr(simulated, "change_places", lambda times, margin: [10])
    worst = json.loads(simulate(2, 0, "json"))
    assert {row["false changes in"] for row in worst} == {2}
    assert {row["step of 5 % found"] for row in worst} == {"0.0%"}
