"""bench profile, tune, report, serve and export as a user runs them, and each bad input as one clear line."""

import json
from pathlib import Path

import pytest
from command_line import bench_here

from bench.comparing import profiling


def test_a_profile_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "ROUNDS", 2)
    monkeypatch.setattr(profiling, "BLOCKS", 2)
    monkeypatch.setattr(profiling, "ALONE_SECONDS", 0.1)
    done = bench_here("profile", "lenet@naive", "--batch", "4", "--threads", "1", "--steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training lenet@naive ")
    assert "conv1" in done.stdout
    assert "aten::convolution_backward" in done.stdout
    folder = tmp_path / ".benchmarks" / "profiles" / "lenet@naive-training"
    assert {path.name for path in folder.iterdir()} == {
        "profile.json", "trace.json.gz", "flame.svg", "roofline.svg",
    }  # fmt: skip
    told = json.loads((folder / "profile.json").read_text())
    assert told["command"].startswith("bench profile lenet@naive")
    assert told["profiled_seconds"] > 0
    assert (told["processes"], len(told["ceilings"])) == (2, 2)
    assert told["low"] <= told["seconds"] <= told["high"]
    assert told["roof_interval"][0] <= told["roof_fraction"] <= told["roof_interval"][1]
    page = bench_here("report", str(folder), "-o", "page.html", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert "Profile of lenet@naive, training" in (tmp_path / "page.html").read_text()


def test_a_model_that_was_not_tuned_says_how_to(tmp_path: Path) -> None:
    done = bench_here("compare", "lenet@tuned", "--tasks", "inference", "--budget", "0", cwd=tmp_path)
    done.refused("lenet has not been tuned on this machine; run: bench tune lenet")


@pytest.mark.night
def test_a_tuned_model_is_measured_as_it_was_tuned(tmp_path: Path) -> None:
    done = bench_here(
        "tune", "lenet", "--tasks", "train", "--budget", "20", "--threads", "1", "--format", "json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    [told] = json.loads(done.stdout)["tasks"]
    levers = told["winner"]["configuration"]
    options = ["--budget", "0", "--rounds", "2", "--threads", "1", "--tasks", "training", "--format", "json"]
    after = bench_here("compare", "lenet@tuned", *options, cwd=tmp_path)
    assert after.returncode == 0, after.stderr
    [metric] = [m for m in json.loads(after.stdout)["metrics"] if m["name"] == "training_throughput"]
    assert metric["workloads"]["lenet@tuned"].startswith(f"training/lenet@{levers}/")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profile", "lenett"], "did you mean lenet"),
        (["profile", "dali"], "is a loader"),
        (["profile", "lenet", "--nvtx", "--device", "cpu"], "Nsight"),
        (["profile", "lenet", "--data", "x"], "--task end_to_end"),
        (["profile", "lenet", "--task", "endtoend", "--data", "nowhere"], "does not exist"),
        (["profile", "lenet@bf17"], "unknown lever"),
        (["tune", "lenet@naive"], "bench tune lenet"),
        (["tune", "lenet", "--tasks", "fly"], "there are inference"),
        (["tune", "nonet"], "unknown model"),
        (["report", "nowhere.json"], "does not exist"),
        (["report", "."], "holds no result"),
        (["serve", "a", "b", "c"], "one network or two"),
        (["serve", "runs/none"], "does not exist"),
        (["serve", "resnet18", "--config", "openvino"], "images come in any number here"),
        (["export", "nonet"], "unknown model"),
        (["export", "lenet", "-o", "lenet.pt2"], "ends in .onnx"),
        (["export", "lenet", "-o", "no/where.onnx"], "there is no folder"),
        (["compare", "dali@w2-p0"], "wWORKERS-pAHEAD"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    bench_here(*arguments, cwd=tmp_path).refused(words)


def test_an_exported_network_is_checked(tmp_path: Path) -> None:
    done = bench_here("export", "lenet", "--to", "torch-export", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checked by torch" in done.stdout
    assert (tmp_path / "lenet.pt2").stat().st_size > 100_000
