"""Which commands `make gpu` consists of: words that the commands themselves understand."""

from pathlib import Path

import pytest

from bench.commands.compare import command as compare
from bench.comparing.operands import parse_operands
from bench.errors import UsageError
from bench.gpu.__main__ import app
from bench.gpu.parts import FILE, NETWORKS, PARTS, REHEARSAL, Scale, batch_for, jobs

TESTS = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("device", "scale"), [("cuda", Scale()), ("cpu", REHEARSAL)])
def test_every_command_is_understood(device: str, scale: Scale) -> None:
    made = jobs(PARTS, device, scale, TESTS)
    assert {job.part for job in made} == set(PARTS)
    assert len({job.name for job in made}) == len(made)
    for job in made:
        assert sum(FILE in word for word in job.command) == 1, job.name
        words = list(job.command[4:])
        if job.command[3] == "bench":
            assert words.pop(0) == "compare"
            parsed = compare.make_context("compare", words, resilient_parsing=False).params
            assert parsed["format"] == "json"
            # Configurations that this device cannot run are refused here.
            parse_operands(parsed["operands"], device)
        elif job.command[3] == "bench.gpu":
            app.commands[words[0]].make_context(words[0], words[1:])


def test_networks_with_bottlenecks_also_run_with_our_kernels() -> None:
    made = {job.name: job.command for job in jobs(["training", "inference"], "cuda", Scale(), TESTS)}
    assert set(made) == {f"{part}-{name}" for part in ("training", "inference") for name in NETWORKS}
    assert "efficientnet_b0@amp-nhwc-graphs-kernels" in made["training-efficientnet_b0"]
    assert "efficientnet_b0@amp-nhwc-compile-kernels" in made["inference-efficientnet_b0"]
    assert not any("kernels" in word for word in made["training-resnet50"])
    # Default torch.compile is what everything is compared with.
    assert made["training-resnet50"][5] == "resnet50@amp-nhwc-compile"


def test_the_tests_are_those_that_need_the_device() -> None:
    on_gpu, on_cpu = (jobs(["tests"], device, Scale(), TESTS) for device in ("cuda", "cpu"))
    assert [job.name for job in on_gpu] == ["tests-models", "tests-loaders", "tests-kernels"]
    for job in on_gpu:
        assert job.command[job.command.index("-q") + 1 :][:2] == ("-m", "gpu")
    assert not any("gpu" in job.command for job in on_cpu)


def test_a_batch_is_one_of_which_several_trainings_fit() -> None:
    assert [batch_for(gib << 30) for gib in (24, 40, 80, 141)] == [64, 64, 128, 256]


def test_a_part_that_is_none_is_named() -> None:
    with pytest.raises(UsageError, match="no part 'loader'; there are compile, tests"):
        jobs(["loader"], "cuda", Scale(), TESTS)
