"""The fixture `pixbench` in a user's own folder: rows, budgets, duels, and one line for each mistake.

Runs are separate processes: a benchmark session inside this one would share its options and its clock.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bench.processes import SOURCE
from results.record import Metric, Ratio, Value
from results.verdict import BETTER, DOUBT, WORSE, at_least, speed_up

NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
        )

    def forward(self, images):
        return self.layers(images)

class Broken(Net):
    def forward(self, images):
        if images.sum() > 1e9:
            images = images * 2
        return self.layers(images)
"""
PASSING = """
import pytest
from beside import Net

SMALL = {"configuration": "naive", "size": 32, "batch": 2, "threads": 1}

@pytest.mark.benchmark(group="mine")
def test_row(pixbench):
    pixbench("nets.py:Net", **SMALL)

def test_training_of_a_class(pixbench):
    pixbench(Net, "training", **SMALL)

def test_file_beside_the_test(pixbench):
    pixbench("beside.py:Net[width=4]", "latency", "naive", size=32)

def test_budget(pixbench):
    assert pixbench.cost("nets.py:Net", params=1e3, macs=1e5, size=32).params == 314

def test_plain():
    pass
"""
FAILING = """
import pytest

def test_dear(pixbench):
    pixbench.cost("nets.py:Net", params=300, macs=float("nan"), size=32)

def test_breaks(pixbench):
    pixbench.graph_breaks("nets.py:Broken", at_most=1, size=32)
    pixbench.graph_breaks("nets.py:Broken", size=32)

def test_duel(pixbench):
    pixbench.faster("nets.py:Net", than="lenet")

@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("nats.py:Net", {}),
        ("nets.py:Nat", {}),
        ("lenet@naive", {}),
        ("lenet", {"task": "loading"}),
        ("lenet", {"configuration": "fasst"}),
        ("lenet", {"device": "tpu"}),
        ("lenet", {"batch": 0}),
        ("lenet", {"task": "latency", "batch": 2}),
        ("lenet", {"size": 1}),
    ],
)
def test_mistake(pixbench, network, options):
    pixbench(network, **{"configuration": "naive", **options})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    (made / "tests").mkdir()
    for name, text in [
        ("nets.py", NETS),
        ("tests/beside.py", NETS),
        ("tests/test_passing.py", PASSING),
        ("tests/test_failing.py", FAILING),
        ("pytest.ini", "[pytest]\nfilterwarnings = error\n"),
    ]:
        (made / name).write_text(text)
    return made


def own_tests(folder: Path, *words: str) -> str:
    """What pytest prints of a user's tests, where pixbench may be installed or only be on the path."""
    plugin = [] if entry_points(group="pytest11", name="pixbench") else ["-p", "bench.plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "--no-header", "-p", "no:cacheprovider", *plugin, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "XDG_CACHE_HOME": str(folder), "COLUMNS": "300"},
    )
    assert "INTERNALERROR" not in done.stdout
    return done.stdout


def test_rows_are_those_of_pytest_benchmark(folder: Path) -> None:
    words = ["--benchmark-json=out.json", "--benchmark-max-time=0.05", "--benchmark-min-rounds=2", "--benchmark-only"]
    printed = own_tests(folder, *words, "tests/test_passing.py")
    assert "4 passed, 1 skipped" in printed
    assert re.search(r"tests/test_passing.py::test_row +\S+ \w+ +\S+ images/s", printed)
    rows = {row["name"]: row for row in json.loads((folder / "out.json").read_text())["benchmarks"]}
    assert {name: row["group"] for name, row in rows.items()} == {
        "test_row": "mine",
        "test_training_of_a_class": "training",
        "test_file_beside_the_test": "latency",
    }
    row = rows["test_row"]
    assert row["fullname"] == "tests/test_passing.py::test_row"
    assert row["options"]["timer"] == "cpu_clock"
    extra = row["extra_info"]
    assert (extra["workload"]["subject"], extra["images"], extra["params"]) == ("nets.py:Net", 2, 314)
    assert extra["inference_throughput"] == pytest.approx(2 / row["stats"]["median"])
    assert rows["test_file_beside_the_test"]["extra_info"]["workload"]["subject"] == "tests/beside.py:Net[width=4]"


def test_rows_that_are_disabled_run_once_from_anywhere(folder: Path) -> None:
    printed = own_tests(folder / "tests", "--benchmark-disable", "test_passing.py")
    assert "5 passed" in printed
    assert "images/s" not in printed


def test_what_fails_says_so_in_one_line(folder: Path) -> None:
    printed = own_tests(folder, "--benchmark-disable", "tests/test_failing.py")
    assert "11 failed, 1 skipped" in printed
    assert "Traceback" not in printed
    assert "another exception" not in printed
    assert "DEBUG" not in printed
    for words in [
        "nets.py:Net has 314 params, at most 300 allowed; 13,904 macs, at most nan allowed",
        "nets.py:Broken has 1 graph break, at most 0 allowed: nets.py:16: ",
        "benchmarks are disabled, and a duel is nothing else",
        "nats.py does not exist; this folder has nets.py",
        "unknown name in nets.py: 'Nat'; ",
        "lenet@naive: name the network alone",
        "task is 'loading'; it is latency, inference or training",
        "did you mean fast?",
        "device is 'tpu'; it is auto, cpu or cuda",
        "batch is 0; it is a whole number above 0",
        "latency is that of one image, and batch is 2",
        "lenet takes no image of 1 x 1 pixels",
    ]:
        assert words in printed


def metric(better: str, low: float, high: float, blocks: int = 6) -> Metric:
    values = {"a": Value.counted(1.0), "b": Value.counted(1.0)}
    ratio = Ratio("b", "a", (low + high) / 2, low, high, 0.95, blocks, 10 * blocks)
    return Metric("inference_throughput", "images/s", better, 8, values, ratio)


@pytest.mark.parametrize(
    ("better", "low", "high", "times", "verdict"),
    [
        ("higher", 1.3, 1.5, 1.2, BETTER),
        ("higher", 1.1, 1.3, 1.2, DOUBT),
        ("higher", 1.0, 1.1, 1.2, WORSE),
        ("higher", 0.97, 0.99, 0.95, BETTER),
        # Of times the smaller is the faster.
        ("lower", 0.6, 0.7, 1.2, BETTER),
        ("lower", 0.9, 1.1, 1.2, WORSE),
    ],
)
def test_a_duel_is_decided_by_its_interval(better: str, low: float, high: float, times: float, verdict: str) -> None:
    ratio = speed_up(metric(better, low, high))
    assert ratio is not None
    assert (ratio.of, ratio.to) == ("b", "a")
    assert at_least(ratio, times) == verdict


def test_one_pair_of_processes_decides_only_what_is_clear() -> None:
    ratio = speed_up(metric("higher", 1.22, 1.24, blocks=1))
    assert ratio is not None
    assert at_least(ratio, 1.2) == DOUBT
    assert at_least(ratio, 1.1) == BETTER
