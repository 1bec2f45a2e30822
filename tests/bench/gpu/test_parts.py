"""Which commands `make gpu` consists of: words that the commands themselves understand."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from bench.commands.compare import command as compare
from bench.commands.train import command as train
from bench.comparing.operands import parse_operands
from bench.errors import UsageError
from bench.gpu import parts
from bench.gpu.__main__ import app
from bench.gpu.parts import COMPILING, FILE, HEADLINE, NETWORKS, PARTS, REHEARSAL, Scale, batch_for, jobs, parts_named
from bench.gpu.running import PATIENCE

TESTS = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("device", "scale"), [("cuda", Scale()), ("cpu", REHEARSAL)])
def test_every_command_is_understood(device: str, scale: Scale, tmp_path: Path) -> None:
    made = jobs(tuple(PARTS), device, replace(scale, cifar=tmp_path), TESTS)
    assert {job.part for job in made} == set(PARTS)
    assert len({job.name for job in made}) == len(made)
    for job in made:
        assert sum(FILE in word for word in job.command) == 1, job.name
        assert job.seconds <= PARTS[job.part]
        words = list(job.command[4:])
        if job.command[3] == "bench" and words[0] == "compare":
            parsed = compare.make_context("compare", words[1:], resilient_parsing=False).params
            assert parsed["format"] == "json"
            # Configurations that this device cannot run are refused here.
            parse_operands(parsed["operands"], device)
        elif job.command[3] == "bench":
            parsed = train.make_context("train", words[1:]).params
            assert (parsed["recipe"], parsed["data"]) == ("cifar10-record", tmp_path)
        elif job.command[3] == "bench.gpu":
            app.commands[words[0]].make_context(words[0], words[1:])


def test_the_main_parts_end_in_12_minutes_and_each_in_4() -> None:
    assert parts_named("") == tuple(HEADLINE) == ("training", "inference", "cifar", "loaders", "end_to_end")
    assert sum(HEADLINE.values()) < 12 * 60
    # A job that does not end when it is asked to is killed some seconds later.
    assert max(PARTS.values()) + PATIENCE < 4 * 60
    # Two calls of a lent host: each under 200 s.
    assert HEADLINE["inference"] + HEADLINE["cifar"] <= 180
    assert HEADLINE["loaders"] + HEADLINE["end_to_end"] <= 200
    assert parts_named("loaders,training") == ("training", "loaders")
    assert parts_named("all") == tuple(PARTS)


def test_a_part_compiles_first_what_it_measures() -> None:
    for part in ("training", "inference", "latency"):
        first, *others = jobs([part], "cuda", Scale(), TESTS)
        assert first.name == f"{part}{COMPILING}"
        assert not first.timed
        assert [job.name for job in others] == [f"{part}-{name}" for name in NETWORKS]
        # Default torch.compile is what everything is compared with.
        assert others[0].command[5] == "resnet50@amp-nhwc-compile"
        assert all(job.timed for job in others)


def test_networks_with_bottlenecks_are_measured_with_our_kernels_and_without() -> None:
    made = {job.name: job.command for job in jobs(["kernels"], "cuda", Scale(), TESTS)}
    assert made["kernels-training"][5:7] == (
        "efficientnet_b0@amp-nhwc-graphs",
        "efficientnet_b0@amp-nhwc-graphs-kernels",
    )
    assert "efficientnet_b0@amp-nhwc-graphs-freeze-kernels" in made["kernels-inference"]
    beside = ["resnet50@bf16-nhwc-graphs-freeze" + lever for lever in ("", "-fused", "-mm")]
    assert list(made["kernels-convolutions"][5:8]) == beside


@pytest.mark.parametrize("there", [True, False])
def test_without_dali_the_other_loaders_are_measured(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModuleSpec("nvidia.dali", None) if there else None
    monkeypatch.setattr(parts, "find_spec", lambda name: found)
    [loaders] = jobs(["loaders"], "cuda", Scale(), TESTS)
    assert ("dali" in loaders.command) is there
    assert {"nvjpeg", "torchvision", "pil"} <= {*loaders.command}
    fed = jobs(["end_to_end"], "cuda", Scale(), TESTS)
    assert {job.command[job.command.index("--loader") + 1] for job in fed} == {"dali" if there else "nvjpeg"}


def test_without_cifar10_its_part_is_empty() -> None:
    assert jobs(["cifar"], "cuda", Scale(), TESTS) == []


def test_the_tests_are_those_that_need_the_device() -> None:
    on_gpu, on_cpu = (jobs(["tests"], device, Scale(), TESTS) for device in ("cuda", "cpu"))
    assert [job.name for job in on_gpu] == ["tests-models", "tests-loaders", "tests-kernels"]
    for job in on_gpu:
        assert job.command[:4] == (sys.executable, "-P", "-m", "pytest")
        assert job.command[job.command.index("-q") + 1 :][:2] == ("-m", "gpu")
    assert not any("gpu" in job.command for job in on_cpu)


def test_a_batch_is_one_of_which_several_trainings_fit() -> None:
    assert [batch_for(gib << 30) for gib in (24, 40, 80, 141)] == [64, 64, 128, 256]


def test_a_part_that_is_none_is_named() -> None:
    with pytest.raises(UsageError, match="no part 'loader'; there are training, inference"):
        parts_named("training,loader")
