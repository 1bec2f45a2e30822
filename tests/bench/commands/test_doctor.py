"""`bench doctor` as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fabricated_machine import FabricatedNvml, Gpu, quiet_machine, roots

from bench.commands import doctor
from bench.errors import OutOfMemoryError
from bench.machine import diagnosis
from bench.machine.diagnosis import Facts, examine, gather
from bench.machine.gpu import gpu_facts
from bench.machine.noise import Noise
from bench.sides import noise


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Facts:
    gpus = gpu_facts(FabricatedNvml(Gpu(limit=400_000)), {}, roots(tmp_path))
    made = Facts(quiet_machine(gpus=gpus), busy=2.0, cuda=True)
    monkeypatch.setattr(diagnosis, "gather", lambda: made)
    monkeypatch.setattr(noise, "measure", lambda device, threads, say: Noise(device, 0.05, 0.03, 0.01, 6, 600))
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
    assert document["machine"]["noise"]["workload"] == "cuda"
    assert set(document["machine"]["noise"]["visible_in_minutes"]) == {"1", "3", "10"}
    assert ("problem", "other load") in [(finding["level"], finding["subject"]) for finding in document["findings"]]
    assert all(set(finding) == {"level", "subject", "finding", "remedy"} for finding in document["findings"])


@pytest.mark.parametrize(
    ("torch_error", "words"), [("ImportError: no", "torch cannot be imported"), (None, "out of memory")]
)
def test_noise_that_cannot_be_measured_has_its_reason(
    facts: Facts, monkeypatch: pytest.MonkeyPatch, torch_error: str | None, words: str
) -> None:
    def fail(device: str, threads: int, say: object) -> Noise:
        raise OutOfMemoryError("out of memory")

    monkeypatch.setattr(noise, "measure", fail)
    told = doctor.with_noise(replace(facts, torch_error=torch_error))
    assert told.noise is None
    assert words in told.noise_missing


def test_this_machine_has_a_report() -> None:
    facts = gather(seconds=0.05)
    json.dumps(doctor.document(facts.machine, examine(facts)), allow_nan=False)
    assert "This machine" in doctor.report(facts.machine, examine(facts))
