"""The promised interface through a subprocess, and every bad input as one clear line."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli import COMMANDS
from results import store
from results.record import METRICS

# What keeps a real comparison to seconds: tiny networks that compile nothing, and two turns.
QUICK = [
    "--rounds",
    "2",
    "--budget",
    "0",
    "--loader",
    "pil",
    "--threads",
    "1",
    "--batch",
    "4",
    "--training-batch",
    "2",
]


def bench(*arguments: str, cwd: Path, timeout: float = 180, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "XDG_CACHE_HOME": str(cwd / "cache"),
        **options.pop("env", {}),
    }
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One clear line on stderr, exit code 2, nothing on stdout, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
        for i in range(4):
            Image.effect_noise((60 + i, 50), 80).convert("RGB").save(folder / kind / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("compared")
    done = bench(
        "compare",
        "lenet@naive",
        "lenet@nhwc",
        "--data",
        str(images),
        "--format",
        "json",
        *QUICK,
        cwd=folder,
    )
    return folder, done


def test_help_answers_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom bench.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, tmp_path: Path) -> None:
    done = bench(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: bench " + name in done.stdout


def test_compare_json_is_as_promised(compared: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = compared
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert {"schema", "machine", "operands", "metrics"} <= set(data)
    assert data["operands"] == ["lenet@naive", "lenet@nhwc"]
    assert {m["name"] for m in data["metrics"]} == set(METRICS) - {"kernel_throughput"}
    for metric in data["metrics"]:
        assert {"name", "unit", "better", "batch", "values", "ratio", "verdict"} <= set(metric)
        for value in metric["values"].values():
            assert {"median", "low", "high", "samples"} <= set(value)
            assert (value["median"] is None) == (value["missing"] is not None)
        if metric["ratio"]:
            assert {"of", "to", "estimate", "low", "high"} <= set(metric["ratio"])
    by_name = {m["name"]: m for m in data["metrics"]}
    assert by_name["params"]["values"]["lenet@naive"]["median"] == 62006
    assert by_name["training_throughput"]["batch"] == 2
    assert (
        by_name["inference_throughput"]["workloads"]["lenet@naive"] == "inference/lenet@fp32-nchw-eager/b4/s32/c10/cpu"
    )
    for line in done.stderr.splitlines():
        assert "Traceback" not in line


def test_what_was_printed_is_what_was_stored(compared: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = compared
    files = list((folder / ".benchmarks" / "pixbench").glob("*.json"))
    assert len(files) == 1
    assert store.load(files[0]).to_json() == json.loads(done.stdout)
    # ... and reads back as an operand, in every format.
    for format, start in (("text", ""), ("markdown", "- "), ("csv", "metric,unit"), ("json", "{")):
        again = bench("compare", str(files[0]), "--format", format, cwd=folder)
        assert again.returncode == 0, again.stderr
        assert again.stdout.startswith(start)
    written = bench("compare", str(files[0]), str(files[0]), "-o", "table.txt", cwd=folder)
    assert (written.returncode, written.stdout) == (0, "")
    assert "params" in (folder / "table.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "resnet43", "lenet"], ["resnet43", "resnet34"]),
        (["compare", "lenet@graphs"], ["graphs replays CUDA graphs"]),
        (["compare", "lenet@bf61"], ["bf61", "bf16"]),
        (["compare", "lenet", "--device", "cuda"], ["no GPU is visible"]),
        (["compare", "lenet", "pil"], ["one kind"]),
        (["compare", "lenet", "--data", "nowhere"], ["nowhere"]),
        (["compare", "lenet", "--loader", "dalli"], ["dalli", "dali"]),
        (["compare", "lenet", "--tasks", "train"], ["'train'", "training"]),
        (["compare", "pil", "--tasks", "loading"], ["pil is a loader"]),
        (["compare", "lenet", "--batch", "0"], ["--batch", "0"]),
        (["compare", "lenet", "--images", "-1"], ["--images", "-1"]),
        (["profile", "lenet", "--images", "-1"], ["--images", "-1"]),
        (["compare", "lenet", "-o", "no/such/folder.txt"], ["no/such"]),
        (["compare", "gone.json"], ["gone.json"]),
        (["compare"], ["Missing argument"]),
        (["compere"], ["compere"]),
        (["list", "modles"], ["modles"]),
    ],
)
def test_bad_words_are_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    refused(bench(*arguments, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}), *words)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(bench("compare", "lenet@naive", "--data", "empty", *QUICK, cwd=tmp_path), "empty")


def test_other_schemas_are_refused(compared: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    data = json.loads(compared[1].stdout)
    (tmp_path / "schema.json").write_text(json.dumps({**data, "schema": 99}))
    refused(bench("compare", "schema.json", cwd=tmp_path), "schema.json", "99")
    (tmp_path / "here.json").write_text(json.dumps(data))
    data["machine"]["fingerprint"]["device"] = "another"
    (tmp_path / "there.json").write_text(json.dumps(data))
    refused(bench("compare", "here.json", "there.json", cwd=tmp_path), "different machines", "device", "--across")
    assert bench("compare", "here.json", "there.json", "--across", cwd=tmp_path).returncode == 0


@pytest.fixture
def spoiled(images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "spoiled"
    (folder / "cat").mkdir(parents=True)
    for path in (images / "cat").iterdir():
        (folder / "cat" / path.name).write_bytes(path.read_bytes())
    whole = (images / "cat" / "0.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "text.jpg").write_text("not a picture")
    return folder


def test_unreadable_images_are_listed_and_stop_the_run(spoiled: Path, tmp_path: Path) -> None:
    refused(
        bench("compare", "pil", "--data", str(spoiled), *QUICK, cwd=tmp_path),
        "2 of 6 images cannot be read",
        "cut.jpg",
        "text.jpg",
        "--on-bad-image skip",
    )


def test_unreadable_images_can_be_passed_over(spoiled: Path, tmp_path: Path) -> None:
    done = bench("compare", "pil", "--data", str(spoiled), "--on-bad-image", "skip", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cut.jpg" in done.stderr
    assert "loader_throughput" in done.stdout


def test_a_missing_dali_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['nvidia.dali'] = None\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'nvidia.dali' else find(name, package)\n"
    )
    done = bench(
        "compare",
        "dali",
        "--data",
        str(images),
        *QUICK,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
    )
    refused(done, "DALI is not installed")


def test_a_full_disk_loses_the_file_and_not_the_table(tmp_path: Path) -> None:
    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = bench("compare", "normalize@torch-float32", *QUICK, "--size", "8", cwd=tmp_path, preexec_fn=small)
    assert done.returncode == 2
    assert "kernel_throughput" in done.stdout
    assert "Traceback" not in done.stderr
    assert ".benchmarks" in done.stderr
    assert list((tmp_path / ".benchmarks" / "pixbench").glob("*")) == []


def left_behind(pid: int) -> list[int]:
    """Measuring processes of the command `pid` that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"BENCH_WORKER_PARENT={pid}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_interrupted_it_keeps_its_rows_leaves_nobody_behind_and_goes_on_to_where_the_memory_ends(
    images: Path, tmp_path: Path
) -> None:
    words = ["compare", "lenet@naive", "--data", str(images), *QUICK, "--training-batch", "2000000000"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("inference_latency_p50"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "--resume" in said
    deadline = time.monotonic() + 30
    while left_behind(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind(process.pid) == []
    (path,) = (tmp_path / ".benchmarks" / "pixbench").glob("*.json")
    kept = json.loads(path.read_text())
    assert not kept["complete"]
    assert "inference_latency_p50" in {m["name"] for m in kept["metrics"]}

    done = bench(*words, "--resume", cwd=tmp_path)
    assert "going on with" in done.stderr
    whole = json.loads(path.read_text())
    assert whole["complete"]
    assert "state" not in whole["settings"]
    assert whole["settings"]["reference"]["seconds"] > 0
    assert {m["name"] for m in whole["metrics"]} == set(METRICS) - {"kernel_throughput"}
    # A row without a number is one all the same, and no smaller batch is tried.
    assert done.returncode == 2
    assert "no number for training of lenet@naive" in done.stderr
    assert "out of memory" in done.stdout
    assert "inference_throughput" in done.stdout


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    done = bench("compare", "lenet", cwd=tmp_path, env={"BENCH_COMPARE_BATCH": "many"})
    refused(done, "many")
