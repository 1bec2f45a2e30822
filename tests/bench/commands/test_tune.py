"""What bench tune prints of a search, and a short one with another engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import bench_here

from bench.commands.tune import _text
from bench.comparing.tuning import Lever, Tuning
from bench.machine import tuned
from bench.machine.facts import describe
from bench.machine.tuned import Winner
from models.configuration import PEERS, Peer

WINNER = Winner("lenet", "inference", "fp32-nhwc-eager", 4, 1.0, None, None, None, {}, "2026-01-01T00:00:00+00:00")
NO_COMPILER = {"CXX": "no-such-compiler", "PATH": "/nowhere"}  # so that fast is eager, and quickly built
FOREIGN = replace(WINNER, configuration="openvino-fp32", alone="fp32-nhwc-eager")


@pytest.mark.parametrize("unsteady", [[], ["bf16-nhwc-compile"]])
def test_what_was_not_warm_is_named(unsteady: list[str]) -> None:
    text = _text(Tuning("inference", "lenet", "fp32-nhwc-eager", WINNER, unsteady=unsteady), "text")
    assert ("still getting faster when their warm-up ended: bf16-nhwc-compile" in text) == bool(unsteady)


def test_of_another_engine_the_best_without_it_is_named() -> None:
    lever = Lever("openvino", "fp32-nhwc-eager", 1.5, 1.4, 1.6)
    text = _text(Tuning("inference", "lenet", "fp32-nhwc-eager", FOREIGN, levers=[lever]), "text")
    assert "fastest without another engine: fp32-nhwc-eager; openvino-fp32 is 1.50 [1.40, 1.60] times as fast\n" in text


@pytest.mark.parametrize("threads", [0, 1])
def test_fewer_threads_are_named_where_they_are_faster(threads: int) -> None:
    found = Tuning("latency", "lenet", "fp32-nhwc-eager", replace(WINNER, threads=threads))
    found.threads = [(4, 0.9, 0.8, 1.0), (1, 1.5, 1.4, 1.6)]
    text = _text(found, "text")
    assert ("with --threads 1 it is 1.50 [1.40, 1.60] times as fast" in text) == bool(threads)
    assert "--threads 4" not in text


def test_an_engine_that_is_not_installed_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "installed", False)
    options = ["--device", "cpu", "--tasks", "inference", "--budget", "0", "--threads", "1"]
    done = bench_here("tune", "lenet", *options, cwd=tmp_path, **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("openvino is not installed, so it was not tried") == 1
    assert "tensorrt" not in done.stderr, "it cannot run on a CPU"
    assert "openvino-" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not PEERS["openvino"].installed, reason="needs openvino")
def test_a_short_search_measures_another_engine(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--tasks", "latency", "--budget", "60", "--threads", "1", "--format", "json"]
    done = bench_here("tune", "lenet", *options, cwd=tmp_path, **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    [told] = json.loads(done.stdout)["tasks"]
    assert told["reference"].split("-")[2] == "eager"
    [tried] = [one for one in told["results"] if one["configuration"] == "openvino-fp32"]
    assert tried["ratio"] > 0
    assert not tried["reason"]
    assert bool(told["winner"]["alone"]) == told["winner"]["configuration"].startswith(tuple(PEERS))


@pytest.mark.slow
@pytest.mark.skipif(not PEERS["openvino"].installed, reason="needs openvino")
def test_a_tuned_model_is_measured_in_the_engine_that_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuned.remember(replace(FOREIGN, machine=tuned.fields(describe(device="cpu"))))
    options = ["--device", "cpu", "--budget", "0", "--rounds", "2", "--threads", "1", "--format", "json"]
    done = bench_here("compare", "lenet@tuned", "--tasks", "inference", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = {m["name"]: m["workloads"].get("lenet@tuned", "") for m in json.loads(done.stdout)["metrics"]}
    assert measured["inference_throughput"].startswith("inference/lenet@openvino-fp32/")
