"""`pytest bench` end to end on small workloads, its JSON, and what it refuses before measuring.

Runs are separate processes: a benchmark session inside this one would share its options and its clock.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import plugin, rows
from bench.commands import run
from bench.errors import REPORTED
from bench.matrix import Matrix
from bench.timing.workload import METRIC
from results.series import collect

ROOT = Path(plugin.__file__).resolve().parent.parent
SMALL = ["--models", "lenet", "--configurations", "naive", "--batch", "2", "--loaders", "synthetic", "-q"]
QUICK = ["--benchmark-max-time", "0.05", "--benchmark-min-rounds", "2"]


def bench_run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "run", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)},
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with one stored run, written to no path in particular, and what that run printed."""
    folder = tmp_path_factory.mktemp("measured")
    only = ["-k", "normalize or test_inference"]
    return folder, bench_run(folder, *SMALL, *QUICK, *only, "--size", "32", "--benchmark-json")


def stored(folder: Path) -> Path:
    (path,) = (folder / ".benchmarks").glob("*.json")
    return path


def test_json_without_a_path_says_where(measured: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = measured
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(stored(folder).relative_to(folder)) in done.stdout + done.stderr


def test_json_holds_schema_machine_and_derived_numbers(
    measured: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = measured
    document = json.loads(stored(folder).read_text())
    assert document["schema"] == 1
    assert document["machine"]["fingerprint"] == document["machine_info"]["pixbench"]
    found = {benchmark["fullname"]: benchmark for benchmark in document["benchmarks"]}
    assert set(found) == {
        "inference/lenet@fp32-nchw-eager/b2/s32/c10/cpu",
        "kernel/normalize@torch-bfloat16/b2/s32/cpu",
    }
    for name, benchmark in found.items():
        assert benchmark["name"] == benchmark["param"] == benchmark["params"]["workload"] == name
        assert benchmark["group"] == name.split("/")[0]
        assert benchmark["options"]["timer"] == "cpu_clock"
        assert benchmark["options"]["max_time"] == 0.05
        # A dashboard's value is "ops": steps a second.
        assert benchmark["stats"]["ops"] == pytest.approx(1 / benchmark["stats"]["mean"])
    extra = found["inference/lenet@fp32-nchw-eager/b2/s32/c10/cpu"]["extra_info"]
    assert extra["params"] == 62006
    assert extra["flops"] == 2 * extra["macs"]
    assert extra["images"] == 2
    seconds = found["inference/lenet@fp32-nchw-eager/b2/s32/c10/cpu"]["stats"]["median"]
    assert extra["inference_throughput"] == pytest.approx(2 / seconds)
    assert "weights" in extra["memory"] or "missing" in extra["memory"]


def test_json_is_read_by_pytest_benchmark(
    measured: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = measured
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(stored(folder)), "--columns=median,ops"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "kernel/normalize@torch-bfloat16/b2/s32/cpu" in done.stdout


def test_the_result_joins_the_history(measured: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = measured
    (path,) = (folder / ".benchmarks" / "pixbench").glob("*-run-*.json")
    assert f"stored in {path.relative_to(folder)}" in done.stdout + done.stderr
    series, skipped = collect(path.parent)
    assert not skipped
    (point,) = series["inference/lenet@fp32-nchw-eager/b2/s32/c10/cpu"]
    assert point.images == 2
    assert point.reference == "matmul-512-fp32-v1"
    assert point.reference_seconds


def test_table_of_throughput(measured: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = measured
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("inference/lenet@") and "images/s" in line]
    assert "images/s" in row


@pytest.mark.slow
def test_json_with_a_path(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = bench_run(
        tmp_path, *SMALL, *QUICK, "-k", "normalize", "--size", "16", "--store", "", "--benchmark-json", str(path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / ".benchmarks" / "pixbench").exists()
    (benchmark,) = json.loads(path.read_text())["benchmarks"]
    assert benchmark["fullname"] == "kernel/normalize@torch-bfloat16/b2/s16/cpu"


def test_disabled_bodies_run_once(tmp_path: Path) -> None:
    done = bench_run(tmp_path, *SMALL, "--benchmark-disable", "--size", "32", "-k", "latency or training")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


DEFAULTS = {name: int(default) if name in plugin.NUMBERS else default for name, (default, *_) in plugin.OPTIONS.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": "resnet35"}, "resnet34"),
        ({"configurations": "fasst"}, "fast"),
        ({"loaders": "dally"}, "dali"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_found_before_measuring(change: dict[str, str], message: str) -> None:
    with pytest.raises(REPORTED, match=message):
        Matrix.from_options({**DEFAULTS, "device": "cpu", **change}, smoke=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "resnet35"], "resnet34"),
        (["--batch", "-1"], "argument --batch: '-1' is not a whole number of 0 or more"),
        (["--bogus"], "bench run: error: unrecognized arguments: --bogus"),
        (["--benchmark-json", "."], "put the option last"),
        (["--benchmark-json", "none/out.json"], "no folder none"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    done = bench_run(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_help_is_ours(tmp_path: Path) -> None:
    done = bench_run(tmp_path, "--help")
    assert done.returncode == 0
    assert "benchmark matrix" in done.stdout
    assert bench_run(tmp_path, "-k", "lenet", "--help").stdout.startswith("usage: bench run [options]")


@pytest.mark.parametrize("words", [[], ["--benchmark-json"]])
def test_nothing_selected_is_one_line(words: list[str], tmp_path: Path) -> None:
    done = bench_run(tmp_path, "-k", "nothing_like_it", *words)
    assert done.returncode == 2
    assert done.stderr == "bench: no benchmark was selected; bench run --collect-only -q lists the ids of all, for -k\n"
    assert "Traceback" not in done.stdout
    assert not list(tmp_path.rglob("*.json"))


def test_pytest_itself_says_that_nothing_was_selected(tmp_path: Path) -> None:
    words = ["bench", "-k", "nothing_like_it", f"--benchmark-json={tmp_path / 'out.json'}"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 5
    assert "Not saving anything, no benchmarks have been run!" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def latency(count: int, iterations: int = 1) -> dict[str, Any]:
    seconds = [1.0 + i / 1000 for i in range(count)]
    return rows.derived({"workload": {"task": "latency"}, "images": 1}, seconds, iterations)


def test_percentiles_need_their_samples() -> None:
    few, some, many = latency(43), latency(44), latency(459)
    assert few["inference_latency_p50"] == 1.021
    assert few["inference_latency_p90"] is None
    assert few["missing"]["inference_latency_p90"] == "needs 44 samples, has 43"
    assert some["inference_latency_p90"] is not None
    assert set(some["missing"]) == {"inference_latency_p99"}
    assert many["missing"] == {}
    assert many["inference_latency_p50"] < many["inference_latency_p90"] < many["inference_latency_p99"]


def test_means_have_no_percentiles() -> None:
    assert "mean of 10 calls" in latency(500, iterations=10)["missing"]["inference_latency_p99"]


def test_a_step_has_the_time_of_its_calls() -> None:
    assert rows.derived({"workload": {"task": "step"}, "images": 1}, [2.0, 4.0, 100.0], 1) == {"step_time": 4.0}


@pytest.mark.parametrize("task", sorted(set(METRIC) - {"latency", "step"}))
def test_throughput_is_images_over_the_median_step(task: str) -> None:
    found = rows.derived({"workload": {"task": task}, "images": 32}, [2.0, 4.0, 100.0], 1)
    assert found == {METRIC[task]: 8.0}


@pytest.mark.parametrize(
    ("pytests", "interrupted", "ours"),
    [
        (0, False, 0),
        (1, False, 1),
        (2, False, 2),
        (2, True, 130),
        (3, False, 2),
        (4, False, 2),
        (5, False, 2),
    ],
)
def test_exit_codes(pytests: int, interrupted: bool, ours: int) -> None:
    assert run.exit_code(pytests, interrupted) == ours


def test_named_files_are_not_joined_by_the_whole_folder() -> None:
    folder = str(ROOT / "bench")
    assert folder in run.selection(("-k", "resnet18"))
    assert folder not in run.selection((f"{folder}/bench_kernels.py::test_kernel",))
