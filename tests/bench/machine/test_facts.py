"""The fingerprint, read from fabricated machines and from this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fabricated_machine import FabricatedNvml, Gpu, roots

from bench.machine import cpu, gpu, software
from bench.machine import facts as machine
from results.store import same_machine


def test_processor(tmp_path: Path) -> None:
    facts = cpu.cpu_facts(roots(tmp_path))
    assert facts["model"] == "Fabricated Xeon (6/143/8)"
    assert facts["features"] == ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
    assert (facts["logical"], facts["physical"]) == (2, 2)
    assert facts["quota"] == 1.5
    assert facts["usable"] == min(2, len(os.sched_getaffinity(0)))
    assert facts["governor"] == "powersave"
    assert facts["boost"] is True
    assert facts["virtual"] is True
    assert facts["clock_maximum_hertz"] == 3.5e9
    assert facts["clock_hertz"] == 2.05e9


def test_clock_prefers_cpufreq(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    tree = roots(tmp_path)
    (tree.sys / f"devices/system/cpu/cpu{core}/cpufreq").mkdir(parents=True, exist_ok=True)
    (tree.sys / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq").write_text("3100000\n")
    assert cpu.cpu_clock(tree) == 3.1e9


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        ("4:cpu,cpuacct:/box\n", {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000"}, 0.5),
        ("4:cpu,cpuacct:/box\n", {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1"}, None),
        ("", {}, None),
    ],
    ids=["version 2 at the root", "version 1", "version 1 without a limit", "none"],
)
def test_quota(tmp_path: Path, group: str, files: dict[str, str], quota: float | None) -> None:
    changes: dict[str, str | None] = {"proc/self/cgroup": group, "sys/fs/cgroup/app/cpu.max": None, **files}
    if group.startswith("4"):
        changes["sys/fs/cgroup/cpu/box/cpu.cfs_period_us"] = "100000"
    tree = roots(tmp_path, **{name.replace("/", "__"): text for name, text in changes.items()})
    assert cpu.cpu_quota(tree) == quota
    assert 1 <= cpu.usable_cores(tree) <= len(os.sched_getaffinity(0))


def test_memory_and_load(tmp_path: Path) -> None:
    tree = roots(tmp_path)
    assert cpu.memory_facts(tree) == {
        "total_bytes": 1000 * 1024,
        "available_bytes": 600 * 1024,
        "limit_bytes": 409600,
        "swap_bytes": 200 * 1024,
        "swap_used_bytes": 50 * 1024,
        "huge_pages": "madvise",
    }
    assert cpu.load_facts(tree) == {"average": [0.5, 0.25, 0.1], "stolen_since_boot": 0.02}


def test_a_machine_without_proc_is_described_all_the_same(tmp_path: Path) -> None:
    empty = cpu.Roots(proc=tmp_path / "proc", sys=tmp_path / "sys")
    found = machine.describe(with_torch=False, roots=empty, nvml=FabricatedNvml(), environ={})
    assert found["cpu"]["clock_hertz"] is None
    assert found["memory"]["total_bytes"] is None
    assert found["load"] == {"average": None, "stolen_since_boot": None}
    json.dumps(found, allow_nan=False)


def test_gpu(tmp_path: Path) -> None:
    nvml = FabricatedNvml(Gpu(events=0x1 | 0x40, processes=(1,)))
    (card,) = gpu.gpu_facts(nvml, {}, roots(tmp_path))
    assert card["name"] == "Fabricated H200"
    assert card["driver"] == "580.65.06"
    assert (card["power_watts"], card["power_limit_watts"]) == (250, 700)
    assert (card["clock_hertz"], card["clock_maximum_hertz"]) == (1.5e9, 1.98e9)
    assert card["clock_events"] == ["idle", "hardware thermal slowdown"]
    assert card["throttled"] is True
    assert card["other_processes"] == [{"pid": 1, "memory_bytes": 1024}]
    # Not answered by this NVML at all.
    assert card["pcie_width"] is None


def test_a_power_limit_is_no_throttling(tmp_path: Path) -> None:
    (card,) = gpu.gpu_facts(FabricatedNvml(Gpu(events=0x4)), {}, roots(tmp_path))
    assert (card["clock_events"], card["throttled"]) == (["power limit"], False)


def test_gpu_that_answers_nothing(tmp_path: Path) -> None:
    silent = Gpu(megahertz=None, milliwatts=None, limit=None, celsius=None, events=None, mig=None, memory=None)
    (card,) = gpu.gpu_facts(FabricatedNvml(silent), {}, roots(tmp_path))
    assert card["name"] == "Fabricated H200"
    assert {card[key] for key in ("clock_hertz", "power_watts", "throttled", "mig", "memory_bytes")} == {None}


def test_old_driver_is_asked_by_the_old_name() -> None:
    assert gpu.clock_events(FabricatedNvml(old_driver=True), Gpu(events=0x80)) == 0x80


def test_unknown_clock_event_is_shown_as_its_bits() -> None:
    assert gpu.event_names(0x4 | 0x4000) == ["power limit", "0x4000"]


def test_own_process_is_not_another(tmp_path: Path) -> None:
    tree = roots(tmp_path, proc__77__status=f"Name: child\nPPid:\t{os.getpid()}\n")
    nvml = FabricatedNvml(Gpu(processes=(os.getpid(), 77, 78)))
    (card,) = gpu.gpu_facts(nvml, {}, tree)
    assert [process["pid"] for process in card["other_processes"]] == [78]


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb"]),
        ("", []),
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("0,7,1", ["GPU-aaaa"]),
        ("-1", []),
    ],
)
def test_visible_devices(visible: str | None, uuids: list[str]) -> None:
    nvml = FabricatedNvml(Gpu("GPU-aaaa"), Gpu("GPU-bbbb"))
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [handle.uuid for handle in gpu.visible_handles(nvml, environ)] == uuids


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["MIG-a0", "GPU-bbbb"]),
        ("0", ["MIG-a0"]),
        ("1", ["GPU-bbbb"]),
        ("MIG-a1", ["MIG-a1"]),
        ("MIG-zz,1", []),
    ],
)
def test_of_a_partitioned_gpu_a_slice_is_visible(visible: str | None, uuids: list[str]) -> None:
    slices = tuple(Gpu(f"MIG-a{number}", "Fabricated H200 MIG 1g.18gb", mig=None) for number in range(2))
    nvml = FabricatedNvml(Gpu("GPU-aaaa", mig=(1, 1), slices=slices), Gpu("GPU-bbbb"))
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [handle.uuid for handle in gpu.visible_handles(nvml, environ)] == uuids


def test_fingerprint_follows_the_measured_device(tmp_path: Path) -> None:
    tree, nvml = roots(tmp_path), FabricatedNvml(Gpu())
    found = {device: machine.describe(False, device, tree, nvml, {})["fingerprint"] for device in (None, "cuda", "cpu")}
    assert found[None] == found["cuda"]
    assert (found["cuda"]["device"], found["cuda"]["driver"]) == ("Fabricated H200", "580.65.06")
    assert (found["cpu"]["device"], found["cpu"]["driver"]) == ("Fabricated Xeon (6/143/8)", None)
    assert found["cpu"]["cores"] == cpu.usable_cores(tree)


def test_fingerprints_are_compared_by_the_store(tmp_path: Path) -> None:
    tree = roots(tmp_path)
    one = machine.describe(False, None, tree, FabricatedNvml(Gpu()), {})
    other = machine.describe(False, None, tree, FabricatedNvml(Gpu(limit=500_000, celsius=80)), {})
    assert same_machine(one, one) == []
    (difference,) = same_machine(one, other)
    assert "power_limit_watts" in difference


def test_settings_are_those_in_force() -> None:
    import torch

    found = software.settings(True, {"OMP_NUM_THREADS": "3", "HOME": "/"})
    assert found["threads"] == torch.get_num_threads()
    assert found["deterministic"] is False
    assert found["environment"] == {"OMP_NUM_THREADS": "3"}
    previous = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert "matmul tf32" in software.settings(True, {})["tf32"]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = previous


def test_versions_equal_what_the_packages_say() -> None:
    import torch

    found = software.versions()
    assert found["torch"] == torch.__version__
    assert found["cuda"] == torch.version.cuda
    assert found["python"] == sys.version.split()[0]


def test_the_commit_is_that_of_this_checkout() -> None:
    top = Path(__file__).resolve().parents[3]
    found = machine.describe(with_torch=False)["commit"]
    assert found == software.commit(top / "bench")
    assert (found is None) == (not (top / ".git").exists())


def test_description_needs_no_torch() -> None:
    code = """
import sys
from bench.machine.facts import describe

describe(with_torch=False)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_compiler_is_the_first_that_is_there() -> None:
    assert software.compiler({}, which=lambda name: None) is None
    shown = software.compiler({"CXX": f"{sys.executable} -E"}, which=lambda name: name)
    assert shown is not None
    assert shown.startswith("Python 3")


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_commit_of_this_checkout_only(tmp_path: Path) -> None:
    package = tmp_path / "bench"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    assert software.commit(package) is None
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = software.commit(package)
    assert clean is not None
    assert len(clean["sha"]) == 40
    assert clean["dirty"] is False
    (package / "a.py").write_text("2\n")
    assert software.commit(package) == clean | {"dirty": True}
    # A copy deeper inside somebody's repository is not theirs.
    deeper = tmp_path / "site-packages" / "bench"
    deeper.mkdir(parents=True)
    assert software.commit(deeper) is None
