"""Each finding from facts that were made up, and the command as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fabricated_machine import FabricatedNvml, Gpu, roots

from bench.commands import doctor
from bench.machine import cpu, diagnosis, gpu
from bench.machine.diagnosis import Facts, Finding, examine, watch


def quiet(**changes: Any) -> dict[str, Any]:
    """A machine with nothing to complain about; `changes` are merged into its parts."""
    parts: dict[str, dict[str, Any]] = {
        "cpu": {
            "model": "Fabricated",
            "features": ["avx512_bf16", "amx_bf16"],
            "logical": 4,
            "physical": 4,
            "affinity": 4,
            "quota": None,
            "usable": 4,
            "governor": "performance",
            "boost": False,
            "virtual": False,
        },
        "memory": {
            "total_bytes": 64 << 30,
            "available_bytes": 60 << 30,
            "limit_bytes": None,
            "swap_bytes": 0,
            "swap_used_bytes": 0,
        },
        "load": {"average": [0.0, 0.0, 0.0], "stolen_since_boot": 0.0},
        "settings": {"threads": 4, "environment": {}},
        "versions": dict.fromkeys(("python", "torch", "torchvision", "cuda", "cudnn", "dali", "triton"), "1.0"),
        "host": {"system": "Linux", "release": "6.1", "machine": "x86_64"},
    }
    found = {name: part | changes.get(name, {}) for name, part in parts.items()}
    rest = {"gpus": [], "compiler": "g++ 12", "commit": None} | changes
    return rest | found


def found(level: str, subject: str, facts: Facts) -> Finding:
    (finding,) = [f for f in examine(facts) if (f.level, f.subject) == (level, subject)]
    return finding


def test_a_quiet_machine_has_no_problems() -> None:
    findings = examine(Facts(quiet(), busy=0.0, stolen=0.0, cuda=False))
    assert {finding.level for finding in findings} == {"note", "fine"}


@pytest.mark.parametrize(
    ("level", "subject", "words", "changes", "facts"),
    [
        ("problem", "other load", "1.7 of 4 cores", {}, {"busy": 1.7}),
        ("problem", "stolen time", "5.0%", {}, {"stolen": 0.05}),
        ("problem", "stolen time", "3.0%", {"load": {"stolen_since_boot": 0.03}}, {}),
        ("note", "virtual machine", "neighbours", {"cpu": {"virtual": True}}, {}),
        ("problem", "compiler", "no C++ compiler", {"compiler": None}, {}),
        ("problem", "compiler", "headers", {}, {"headers": False}),
        ("problem", "governor", "powersave", {"cpu": {"governor": "powersave", "boost": True}}, {}),
        ("advice", "governor", "schedutil", {"cpu": {"governor": "schedutil"}}, {}),
        ("advice", "quota", "1.5 of 4 cores", {"cpu": {"quota": 1.5, "usable": 2}}, {}),
        ("advice", "threads", "1 threads", {"settings": {"threads": 1}}, {}),
        (
            "advice",
            "threads",
            "OMP_NUM_THREADS=2",
            {"settings": {"threads": 2, "environment": {"OMP_NUM_THREADS": "2"}}},
            {},
        ),
        ("note", "bf16 units", "no AMX", {"cpu": {"features": ["avx512_bf16"]}}, {}),
        ("note", "bf16 units", "none", {"cpu": {"features": ["avx2"]}}, {}),
        ("advice", "swap", "swapped out", {"memory": {"swap_used_bytes": 1 << 30}}, {}),
        ("problem", "memory", "free", {"memory": {"available_bytes": 1 << 30}}, {}),
        ("problem", "memory", "free", {"memory": {"limit_bytes": 1 << 30}}, {}),
        ("problem", "disk", "/cache", {}, {"cache": "/cache", "cache_free_bytes": 1 << 20}),
        ("advice", "shared memory", "/dev/shm", {}, {"shared_free_bytes": 64 << 20}),
        (
            "problem",
            "name kernels",
            "installs a module",
            {},
            {"owners": {"kernels": ["pixbench", "kernels"]}},
        ),
        ("problem", "name bench", "frappe", {}, {"owners": {"bench": ["frappe-bench"]}}),
        ("problem", "name results", "/other", {}, {"elsewhere": {"results": "/other"}}),
        ("problem", "name pynvml", "deprecated", {}, {"owners": {"pynvml": ["pynvml", "nvidia-ml-py"]}}),
        ("problem", "torch", "ImportError: no", {}, {"torch_error": "ImportError: no"}),
        (
            "problem",
            "DALI",
            "same files",
            {},
            {"distributions": ("nvidia-dali-cuda120", "nvidia-dali-cuda130")},
        ),
        ("problem", "DALI", "not installed", {}, {"loaders": {"dali": "DALI is not installed"}}),
        ("note", "loader spdl", "FFmpeg", {}, {"loaders": {"spdl": "FFmpeg is missing"}}),
    ],
)
def test_finding(level: str, subject: str, words: str, changes: dict[str, Any], facts: dict[str, Any]) -> None:
    finding = found(level, subject, Facts(quiet(**changes), **facts))
    assert words in finding.finding
    assert finding.remedy or level == "note"


@pytest.mark.parametrize(
    ("gpu", "level", "words"),
    [
        (Gpu(processes=(999999,)), "problem", "1 other processes use it (pid 999999)"),
        (Gpu(events=0x40), "problem", "hardware thermal slowdown"),
        (Gpu(mig=(1, 1)), "note", "MIG"),
        (Gpu(jpeg=None), "note", "no JPEG engine"),
        (Gpu(limit=400_000), "advice", "400 W, 700 W by default"),
        (Gpu(), "advice", "free to move"),
    ],
)
def test_gpu_finding(gpu: Gpu, level: str, words: str, tmp_path: Path) -> None:
    gpus = gpu.gpu_facts(FabricatedNvml(gpu), {}, roots(tmp_path))
    findings = examine(Facts(quiet(gpus=gpus), cuda=True))
    assert any(f.subject == "gpu 0" and f.level == level and words in f.finding for f in findings)
    assert sum("JPEG" in f.finding for f in findings) == (gpu.jpeg is None)


def test_gpu_in_good_order(tmp_path: Path) -> None:
    gpus = gpu.gpu_facts(FabricatedNvml(Gpu(events=0x2)), {}, roots(tmp_path))
    assert found("fine", "gpu 0", Facts(quiet(gpus=gpus), cuda=True))


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("550.54", "13.2", "too old for torch's CUDA 13.2, which needs 580"),
        ("580.65", None, "no CUDA"),
        ("580.65", "13.2", "cannot use it"),
    ],
)
def test_gpu_that_torch_cannot_use(driver: str, cuda: str | None, words: str, tmp_path: Path) -> None:
    (card,) = gpu.gpu_facts(FabricatedNvml(Gpu()), {}, roots(tmp_path))
    facts = Facts(quiet(gpus=[card | {"driver": driver}], versions={"cuda": cuda}), cuda=False)
    assert words in found("problem", "gpu", facts).finding


def test_watch_counts_what_others_did(tmp_path: Path) -> None:
    tree = roots(tmp_path)
    cores = diagnosis.os.cpu_count() or 1

    def sleep(seconds: float) -> None:
        # 200 ticks: 100 idle, 20 stolen, so 80 of work.
        (tree.proc / "stat").write_text("cpu  180 0 50 900 20 0 10 40 0 0\n")

    busy, stolen = watch(0.5, tree, sleep)
    assert busy == pytest.approx(0.4 * cores)
    assert stolen == pytest.approx(0.1)
    assert watch(0.5, cpu.Roots(tmp_path / "none", tmp_path / "none"), sleep) == (None, None)


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Facts:
    gpus = gpu.gpu_facts(FabricatedNvml(Gpu(limit=400_000)), {}, roots(tmp_path))
    made = Facts(quiet(gpus=gpus), busy=2.0, cuda=True)
    monkeypatch.setattr(diagnosis, "gather", lambda: made)
    return made


def test_report_puts_the_worst_first(facts: Facts) -> None:
    done = CliRunner().invoke(doctor.command, [], standalone_mode=False)
    assert done.return_value == 0, done.exception
    text = done.stdout
    positions = [text.index(part) for part in ("This machine", "Spoils a measurement", "Would make it better", "Fine")]
    assert positions == sorted(positions)
    assert "Fabricated H200, 128 GiB, driver 580.65.06, limit 400 W, 1500 of 1980 MHz, 55 °C" in text
    assert "  ! other load: 2.0 of 4 cores are busy with other work\n      Stop other programs" in text
    assert max(map(len, text.splitlines())) <= 120


def test_json_holds_machine_and_findings(facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    done = CliRunner().invoke(doctor.command, ["--json", "-o", str(path)], standalone_mode=False)
    assert done.return_value == 0, done.exception
    document = json.loads(path.read_text())
    assert set(document) == {"schema", "machine", "findings"}
    assert document["machine"]["gpus"][0]["name"] == "Fabricated H200"
    assert {"level": "problem", "subject": "other load"}.items() <= document["findings"][1].items() or any(
        finding["subject"] == "other load" for finding in document["findings"]
    )
    assert all(set(finding) == {"level", "subject", "finding", "remedy"} for finding in document["findings"])


def test_this_machine_can_be_examined() -> None:
    facts = diagnosis.gather(seconds=0.05)
    assert facts.torch_error is None
    assert facts.elsewhere == {}
    json.dumps(doctor.document(facts.machine, examine(facts)), allow_nan=False)
    assert "This machine" in doctor.report(facts.machine, examine(facts))
