"""Each finding from fabricated facts, and those of this machine."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated_machine import FabricatedNvml, Gpu, quiet_machine, roots

from bench.machine import cpu
from bench.machine.allocator import BY_LEVER, FOR_SCRIPTS
from bench.machine.diagnosis import Facts, Finding, examine, gather, other_work
from bench.machine.gpu import gpu_facts
from bench.machine.noise import Noise
from bench.machine.software import settings

SOME_NOISE = Noise("inference", 0.05, 0.03, 0.01, 6, 600, 0.0, 0.0)


def found(level: str, subject: str, facts: Facts) -> Finding:
    (finding,) = [f for f in examine(facts) if (f.level, f.subject) == (level, subject)]
    return finding


def test_a_quiet_machine_has_no_problems() -> None:
    findings = examine(Facts(quiet_machine(), busy=0.0, stolen=0.0, cuda=False))
    assert {finding.level for finding in findings} == {"note", "fine"}


@pytest.mark.parametrize(
    ("level", "subject", "words", "changes", "facts"),
    [
        ("problem", "other load", "1.7 of 4 cores", {}, {"busy": 1.7}),
        ("problem", "stolen time", "5.0%", {}, {"stolen": 0.05}),
        ("problem", "stolen time", "3.0%", {"load": {"stolen_since_boot": 0.03}}, {}),
        ("note", "virtual machine", "other guests", {"cpu": {"virtual": True}}, {}),
        ("note", "noise", "differences of about 1.7 % in 1 minute", {}, {"noise": SOME_NOISE}),
        ("note", "noise", "not measured: no torch", {}, {"noise_missing": "no torch"}),
        ("advice", "noise", "19 % in 1 minute", {}, {"noise": replace(SOME_NOISE, between=0.3)}),
        ("problem", "compiler", "no C++ compiler", {"compiler": None}, {}),
        ("problem", "compiler", "headers", {}, {"headers": False}),
        ("problem", "governor", "powersave", {"cpu": {"governor": "powersave", "boost": True}}, {}),
        ("advice", "governor", "schedutil", {"cpu": {"governor": "schedutil"}}, {}),
        ("advice", "quota", "1.5 of 4 cores", {"cpu": {"quota": 1.5, "usable": 2}}, {}),
        ("advice", "threads", "1 threads", {"settings": {"threads": 1}}, {}),
        ("advice", "threads", "=2)", {"settings": {"threads": 2, "environment": {"OMP_NUM_THREADS": "2"}}}, {}),
        ("note", "freed memory", "clears it for the next", {"settings": {"allocator": BY_LEVER}}, {}),
        ("note", "bf16 units", "no AMX", {"cpu": {"features": ["avx512_bf16"]}}, {}),
        ("note", "bf16 units", "none", {"cpu": {"features": ["avx2"]}}, {}),
        ("advice", "swap", "swapped out", {"memory": {"swap_used_bytes": 1 << 30}}, {}),
        ("problem", "memory", "free", {"memory": {"available_bytes": 1 << 30}}, {}),
        ("problem", "memory", "free", {"memory": {"limit_bytes": 1 << 30}}, {}),
        ("problem", "disk", "/cache", {}, {"cache": "/cache", "cache_free_bytes": 1 << 20}),
        ("advice", "shared memory", "/dev/shm", {}, {"shared_free_bytes": 64 << 20}),
        ("problem", "name kernels", "kernels also installs", {}, {"owners": {"kernels": ["pixbench", "kernels"]}}),
        ("problem", "name bench", "frappe", {}, {"owners": {"bench": ["frappe-bench"]}}),
        ("problem", "name results", "/other", {}, {"elsewhere": {"results": "/other"}}),
        ("problem", "name pynvml", "deprecated", {}, {"owners": {"pynvml": ["pynvml", "nvidia-ml-py"]}}),
        ("problem", "torch", "ImportError: no", {}, {"torch_error": "ImportError: no"}),
        ("problem", "DALI", "overwrites", {}, {"dali_builds": ("nvidia-dali-cuda120", "nvidia-dali-cuda130")}),
        ("problem", "DALI", "not installed", {}, {"missing_loaders": {"dali": "DALI is not installed"}}),
        ("note", "loader spdl", "FFmpeg", {}, {"missing_loaders": {"spdl": "FFmpeg is missing"}}),
    ],
)
def test_finding(level: str, subject: str, words: str, changes: dict[str, Any], facts: dict[str, Any]) -> None:
    finding = found(level, subject, Facts(quiet_machine(**changes), **facts))
    assert words in finding.finding
    assert finding.remedy or level == "note"


@pytest.mark.parametrize(
    ("foreign", "stolen", "words"),
    [
        (0.0, 0.0, "No other work was seen"),
        (None, None, "No other work was seen"),
        (0.12, 0.0, "Other programs had 12 % of this machine"),
        (0.12, 0.11, "Other guests of the host had 11 %"),
    ],
)
def test_what_to_do_about_noise(foreign: float | None, stolen: float | None, words: str) -> None:
    noise = replace(SOME_NOISE, between=0.3, foreign=foreign, stolen=stolen)
    assert words in found("advice", "noise", Facts(quiet_machine(), noise=noise)).remedy


@pytest.mark.parametrize(
    ("gpu", "level", "words"),
    [
        (Gpu(processes=(999999,)), "problem", "other processes (pid 999999)"),
        (Gpu(events=0x40), "problem", "hardware thermal slowdown"),
        (Gpu(mig=(1, 1)), "note", "MIG"),
        (Gpu(jpeg=None), "note", "no JPEG engine"),
        (Gpu(limit=400_000), "advice", "400 W, 700 W by default"),
        (Gpu(), "advice", "changes with temperature"),
    ],
)
def test_gpu_finding(gpu: Gpu, level: str, words: str, tmp_path: Path) -> None:
    gpus = gpu_facts(FabricatedNvml(gpu), {}, roots(tmp_path))
    findings = examine(Facts(quiet_machine(gpus=gpus), cuda=True))
    assert any(f.subject == "gpu 0" and f.level == level and words in f.finding for f in findings)
    assert sum("JPEG" in f.finding for f in findings) == (gpu.jpeg is None)


def test_gpu_in_good_order(tmp_path: Path) -> None:
    gpus = gpu_facts(FabricatedNvml(Gpu(events=0x2)), {}, roots(tmp_path))
    assert found("fine", "gpu 0", Facts(quiet_machine(gpus=gpus), cuda=True))


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("550.54", "13.2", "too old for torch's CUDA 13.2, which needs 580"),
        ("580.65", None, "no CUDA"),
        ("580.65", "13.2", "cannot use it"),
    ],
)
def test_gpu_that_torch_cannot_use(driver: str, cuda: str | None, words: str, tmp_path: Path) -> None:
    (card,) = gpu_facts(FabricatedNvml(Gpu()), {}, roots(tmp_path))
    facts = Facts(quiet_machine(gpus=[card | {"driver": driver}], versions={"cuda": cuda}), cuda=False)
    assert words in found("problem", "gpu", facts).finding


def test_nobody_is_told_to_keep_memory_who_does_or_computes_on_a_gpu(tmp_path: Path) -> None:
    told = settings(False, {})["allocator"]
    by_user = settings(False, dict(setting.split("=", 1) for setting in FOR_SCRIPTS.split()))["allocator"]
    gpus = gpu_facts(FabricatedNvml(Gpu()), {}, roots(tmp_path))
    for allocator, more in ((by_user, {}), (told, {"gpus": gpus})):
        findings = examine(Facts(quiet_machine(settings={"allocator": allocator}, **more), cuda=True))
        assert "freed memory" not in {finding.subject for finding in findings}


def test_other_work_is_what_the_kernel_counted(tmp_path: Path) -> None:
    tree = roots(tmp_path)
    cores = os.cpu_count() or 1

    def sleep(seconds: float) -> None:
        # 200 ticks: 100 idle, 20 stolen, so 80 of work.
        (tree.proc / "stat").write_text("cpu  180 0 50 900 20 0 10 40 0 0\n")

    busy, stolen = other_work(0.5, tree, sleep)
    assert busy == pytest.approx(0.4 * cores)
    assert stolen == pytest.approx(0.1)
    assert other_work(0.5, cpu.Roots(tmp_path / "none", tmp_path / "none"), sleep) == (None, None)


def test_this_machine_can_be_examined() -> None:
    facts = gather(seconds=0.05)
    assert facts.torch_error is None
    assert facts.elsewhere == {}
    findings = examine(facts)
    assert not [finding for finding in findings if finding.subject.startswith("name ")]
