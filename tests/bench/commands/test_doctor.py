"""`bench doctor` as a user runs it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fabricated_machine import FabricatedNvml, Gpu, quiet_machine, roots

from bench.commands import doctor
from bench.machine import diagnosis
from bench.machine.diagnosis import Facts, examine, gather
from bench.machine.gpu import gpu_facts


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Facts:
    gpus = gpu_facts(FabricatedNvml(Gpu(limit=400_000)), {}, roots(tmp_path))
    made = Facts(quiet_machine(gpus=gpus), busy=2.0, cuda=True)
    monkeypatch.setattr(diagnosis, "gather", lambda: made)
    return made


def test_report_puts_the_worst_first(facts: Facts) -> None:
    done = CliRunner().invoke(doctor.command, [], standalone_mode=False)
    assert done.return_value == 0, done.exception
    text = done.stdout
    positions = [
        text.index(part) for part in ("This machine", "Spoils measurements", "Would improve measurements", "Fine")
    ]
    assert positions == sorted(positions)
    assert "Fabricated H200, 128 GiB, driver 580.65.06, limit 400 W, 1500 of 1980 MHz, 55 °C" in text
    assert "  ! other load: other programs keep 2.0 of 4 cores busy\n      Stop them" in text
    assert max(map(len, text.splitlines())) <= 120


def test_json_holds_machine_and_findings(facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    done = CliRunner().invoke(doctor.command, ["--json", "-o", str(path)], standalone_mode=False)
    assert done.return_value == 0, done.exception
    document = json.loads(path.read_text())
    assert set(document) == {"schema", "machine", "findings"}
    assert document["machine"]["gpus"][0]["name"] == "Fabricated H200"
    assert ("problem", "other load") in [(finding["level"], finding["subject"]) for finding in document["findings"]]
    assert all(set(finding) == {"level", "subject", "finding", "remedy"} for finding in document["findings"])


def test_this_machine_has_a_report() -> None:
    facts = gather(seconds=0.05)
    json.dumps(doctor.document(facts.machine, examine(facts)), allow_nan=False)
    assert "This machine" in doctor.report(facts.machine, examine(facts))
