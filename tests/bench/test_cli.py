"""The promised interface of `bench`, one real comparison included, and every bad input as one clear line."""

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
from command_line import ROOT, Ended, bench, bench_here, start_bench
from PIL import Image

from bench.cli import COMMANDS
from bench.sides.process import Worker
from results import store
from results.record import METRICS

# What keeps a real comparison to seconds: tiny networks that compile nothing, and two turns.
QUICK = [
    *("--rounds", "2", "--budget", "0", "--loader", "pil"),
    *("--threads", "1", "--batch", "4", "--training-batch", "2"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images and two files that are none."""
    folder = tmp_path_factory.mktemp("images")
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
        for i in range(4):
            Image.effect_noise((60 + i, 50), 80).convert("RGB").save(folder / kind / f"{i}.jpg")
    whole = (folder / "cat" / "0.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "text.jpg").write_text("not a picture")
    return folder


class Compared:
    """A real comparison that was interrupted once and then resumed, and what it left in its folder."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder = folder
        words = ["compare", "lenet@naive", "lenet@nhwc", "--data", images, "--on-bad-image", "skip", *QUICK]
        words += ["--format", "json"]
        process = start_bench(*words, cwd=folder)
        assert process.stderr is not None
        rows = []
        for row in process.stderr:
            rows.append(row)
            if row.startswith("inference_latency_p50"):
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=180)
        self.interrupted = Ended(process.returncode, stdout, "".join(rows) + stderr)
        self.pid = process.pid
        self.kept = json.loads(self.file.read_text())
        self.done = bench_here(*words, "--resume", cwd=folder)

    @property
    def file(self) -> Path:
        (path,) = (self.folder / ".benchmarks" / "pixbench").glob("*.json")
        return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Compared:
    return Compared(tmp_path_factory.mktemp("compared"), images)


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("--budget", value, *rest)
            for value in ("-1", "nan", "soon")
            for rest in (("compare", "lenet"), ("tune", "lenet"))
        ),
        ("--budget", "nan", "check", "--base", "main"),
        ("--holdout", "nan", "data", "split", "."),
        ("--max-mib", "nan", "serve", "lenet"),
    ],
    ids=" ".join,
)
def test_what_is_no_number_limits_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    option, value, *command = words
    done = bench_here(*command, option, value, cwd=tmp_path)
    assert done.returncode == 2
    assert f"Invalid value for '{option}': " in done.stderr
    assert value in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_answers_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom bench.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, tmp_path: Path) -> None:
    done = bench_here(name, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: bench " + name in done.stdout


# ---- a real comparison ----


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


def test_interrupted_it_keeps_its_rows_and_leaves_nobody_behind(compared: Compared) -> None:
    done = compared.interrupted
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    deadline = time.monotonic() + 60
    while left_behind(compared.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind(compared.pid) == []
    assert not compared.kept["complete"]
    names = {metric["name"] for metric in compared.kept["metrics"]}
    assert "inference_latency_p50" in names
    assert "training_throughput" not in names


def test_resumed_it_goes_on_to_its_end(compared: Compared) -> None:
    assert compared.done.returncode == 0, compared.done.stderr
    assert "going on with" in compared.done.stderr
    whole = json.loads(compared.file.read_text())
    assert whole["complete"]
    assert whole["created"] == compared.kept["created"]
    assert "state" not in whole["settings"]
    assert whole["settings"]["reference"]["seconds"] > 0
    metrics = [{metric["name"]: metric for metric in record["metrics"]} for record in (compared.kept, whole)]
    assert metrics[1]["inference_latency_p50"] == metrics[0]["inference_latency_p50"]


def test_compare_json_is_as_promised(compared: Compared) -> None:
    data = json.loads(compared.done.stdout)
    assert {"schema", "machine", "operands", "metrics"} <= set(data)
    assert data["operands"] == ["lenet@naive", "lenet@nhwc"]
    assert {m["name"] for m in data["metrics"]} == {
        name for name in METRICS if not name.startswith(("kernel_", "step_"))
    }
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
    assert "Traceback" not in compared.done.stderr


def test_unreadable_images_can_be_passed_over(compared: Compared) -> None:
    assert "2 of 10 images cannot be read" in compared.done.stderr
    assert "cut.jpg" in compared.done.stderr


def test_what_was_printed_is_what_was_stored(compared: Compared) -> None:
    folder, file = compared.folder, compared.file
    assert store.load(file).to_json() == json.loads(compared.done.stdout)
    # ... and reads back as an operand, in every format.
    for format, start in (("text", ""), ("markdown", "- "), ("csv", "metric,unit"), ("json", "{")):
        again = bench_here("compare", file, "--format", format, cwd=folder)
        assert again.returncode == 0, again.stderr
        assert again.stdout.startswith(start)
    written = bench_here("compare", file, "-o", "table.txt", cwd=folder)
    assert (written.returncode, written.stdout) == (0, "")
    assert "params" in (folder / "table.txt").read_text()


def test_other_schemas_and_machines_are_refused(compared: Compared, tmp_path: Path) -> None:
    data = json.loads(compared.done.stdout)
    (tmp_path / "schema.json").write_text(json.dumps({**data, "schema": 99}))
    bench_here("compare", "schema.json", cwd=tmp_path).refused("schema.json", "99")
    (tmp_path / "here.json").write_text(json.dumps(data))
    data["machine"]["fingerprint"]["device"] = "another"
    (tmp_path / "there.json").write_text(json.dumps(data))
    refused = bench_here("compare", "here.json", "there.json", cwd=tmp_path)
    refused.refused("different machines", "device", "--across")
    assert bench_here("compare", "here.json", "there.json", "--across", cwd=tmp_path).returncode == 0


def test_an_interrupt_while_processes_start_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def receive(worker: Worker, timeout: float) -> dict[str, Any]:
        started.append(worker.pid)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the interrupt was lost")

    monkeypatch.setattr(Worker, "receive", receive)
    done = bench_here("compare", "lenet@naive", "--tasks", "inference", *QUICK, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (130, "", "bench: interrupted")
    assert len(started) == 1
    assert not Path(f"/proc/{started[0]}").exists()


# ---- what cannot be measured ----


def test_where_the_memory_ends_is_a_row_without_a_number(tmp_path: Path) -> None:
    """No smaller batch is tried."""
    done = bench_here("compare", "normalize@torch-float32", *QUICK, "--batch", 2_000_000_000, cwd=tmp_path)
    assert done.returncode == 2
    assert "no number for kernel of normalize@torch-float32" in done.stderr
    assert "kernel_throughput" in done.stdout
    assert "out of memory" in done.stdout


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "resnet43", "lenet"], ["resnet43", "resnet34"]),
        (["compare", "lenet@graphs"], ["graphs replays CUDA graphs"]),
        (["compare", "lenet@bf61"], ["bf61", "bf16"]),
        (["compare", "lenet", "--device", "cuda"], ["no GPU is visible"]),
        (["compare", "lenet", "pil"], ["one kind"]),
        (["compare", "lenet", "--data", "nowhere"], ["nowhere"]),
        (["compare", "lenet@naive", "--data", "empty"], ["empty"]),
        (["compare", "lenet", "--loader", "dalli"], ["dalli", "dali"]),
        (["compare", "lenet", "--tasks", "fly"], ["'fly'", "training"]),
        (["compare", "pil", "--tasks", "loading"], ["pil is a loader"]),
        (["compare", "lenet", "--batch", "0"], ["--batch", "0"]),
        (["compare", "lenet", "--images", "-1"], ["--images", "-1"]),
        (["profile", "lenet", "--images", "-1"], ["--images", "-1"]),
        (["compare", "lenet", "-o", "no/such/folder.txt"], ["no/such"]),
        (["compare", "gone.json"], ["gone.json"]),
        (["compare"], ["bench compare resnet34 efficientnet_b0"]),
        (["compere"], ["compere", "compare"]),
        (["list", "modles"], ["modles", "models"]),
        (["compare", "lenet", "--bugdet", "9"], ["--bugdet", "--budget"]),
    ],
)
def test_bad_words_are_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bench_here(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="").refused(*words)


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    bench_here("compare", "lenet", cwd=tmp_path, BENCH_COMPARE_BATCH="many").refused("many")


def test_unreadable_images_are_listed_and_stop_the_run(images: Path, tmp_path: Path) -> None:
    done = bench_here("compare", "pil", "--data", images, *QUICK, cwd=tmp_path)
    done.refused("2 of 10 images cannot be read", "cut.jpg", "text.jpg", "--on-bad-image skip", lines=4)


def test_a_missing_dali_is_named(images: Path, tmp_path: Path) -> None:
    """DALI is missing in the measuring process, which reads PYTHONPATH when it starts."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['nvidia.dali'] = None\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'nvidia.dali' else find(name, package)\n"
    )
    places = f"{tmp_path}{os.pathsep}{ROOT}"
    done = bench_here("compare", "dali", "--data", images, *QUICK, cwd=tmp_path, PYTHONPATH=places)
    done.refused("DALI is not installed")


def test_code_that_ends_the_program_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import sys\nfrom torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 4)\n"
        "    def forward(self, x):\n"
        "        sys.exit(0)\n"
    )
    bench_here("cost", "net.py:Net", cwd=tmp_path).refused("called exit(0)")


def test_settings_of_a_repository_are_defaults_of_options(tmp_path: Path) -> None:
    settings = tmp_path / "pixbench.toml"
    settings.write_text("[options.cost]\nsize = 48\n")
    sizes = []
    for words in ((), ("--size", "32")):
        done = bench_here("cost", "cifar_resnet18", "--format", "json", *words, cwd=tmp_path)
        sizes.append(json.loads(done.stdout)["models"][0]["size"])
    assert sizes == [48, 32]
    for text, said in (
        ("[options.cost]\nsise = 48\n", "bench cost has no --sise"),
        ("[options.cots]\n", "no command cots"),
        ("[models]\nresnet18 = 'mynet.py:Net'\n", "resnet18 in"),
        ("[loaders]\ndali = 'mydata.py:load'\n", "dali in"),
    ):
        settings.write_text(text)
        bench_here("cost", "cifar_resnet18", cwd=tmp_path).refused(said)
