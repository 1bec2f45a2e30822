"""Kernels compiled without a GPU: nothing is spilled, and starting instructions takes little longer than the memory."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench.commands.list import command
from kernels import ahead, catalogue
from kernels.depthwise_backward import GRAD_WEIGHT
from kernels.runtime import HAS_TRITON, INTERPRETED, noting

compiles = pytest.mark.skipif(INTERPRETED or not HAS_TRITON, reason="in a process that interprets, or without Triton")


# Kernels with a launch for each layer of the network, which take minutes: by day, each of their forms is enough.
MANY = ("depthwise", "depthwise_backward")


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.night if name in MANY else ()) for name in catalogue.names()]
)
def test_kernels_fit_into_registers_and_keep_up_with_the_memory(name: str) -> None:
    found = ahead.compiled(name, 90)
    assert found
    assert [each.what for each in found if each.spilled] == []
    assert all(0 < each.registers < 255 for each in found)
    # How long the loops of resized_crop are depends on the windows.
    assert [each.what for each in found if each.seconds is None] == (
        ["3 x 224 x 224"] if name == "resized_crop" else []
    )
    # augment reads a few bytes of a set that counts as a whole here.
    if name not in ("augment", "resized_crop"):
        starting = {each.what: (each.seconds or 0.0) / each.floor for each in found}
        assert {what: ratio for what, ratio in starting.items() if ratio > 2} == {}
        seconds = sum(each.count * (each.seconds or 0.0) for each in found)
        assert seconds < 1.2 * sum(each.count * each.floor for each in found)


# Constants that change numbers in the code and nothing else of it.
SIZES = {"CHANNELS", "TALL_IN", "WIDE_IN", "TALL", "WIDE", "STEPS", "CHANNELS_IN", "CHANNELS_OUT", "PIXELS_AN_IMAGE"}


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"), [*((name, 80) for name in catalogue.names()), *((name, 90) for name in MANY)]
)
def test_each_form_of_a_kernel_fits_into_the_registers(name: str, architecture: int) -> None:
    forms = {
        (
            launch.kernel.__name__,
            *(f"{key}={value}" for key, value in launch.constants.items() if key not in SIZES),
        ): launch
        for _, launch, _ in ahead.launches(name)
    }
    for form, launch in forms.items():
        used, _, _ = ahead.read(ahead.binary(launch, architecture))
        assert 0 < used["REG"] < 255, form
        assert used["STACK"] == used["LOCAL"] == 0, form
    assert forms


@compiles
def test_a_loop_counts_as_often_as_it_is_passed() -> None:
    grad, x = (torch.empty(65536, 16, 8, 8, dtype=torch.bfloat16, device="meta") for _ in range(2))
    with noting() as launches:
        GRAD_WEIGHT.implementations["triton"](grad, x, 1, 3)
    [launch] = launches
    resources, once, repeated = ahead.read(ahead.binary(launch, 90))
    assert resources["REG"] > 0
    # 9 weights of 4 channels over the 8 columns of a tile, and what loads them.
    assert repeated > 9 * 4 * 8
    assert once > 0


def test_the_network_has_the_layers_of_the_paper() -> None:
    layers = list(ahead.bottlenecks())
    assert len(layers) == 16
    assert layers[0] == (32, 112, 3, 1, 16, False)
    assert layers[-1] == (1152, 7, 3, 1, 320, False)
    assert sum(stride == 2 for _, _, _, stride, _, _ in layers) == 4


def test_an_unknown_kernel_or_gpu_is_named() -> None:
    with pytest.raises(ValueError, match="no kernel is called 'nothing'"):
        ahead.compiled("nothing", 90)
    with pytest.raises(ValueError, match="one of 80, 90, not 70"):
        ahead.compiled("normalize", 70)


@compiles
@pytest.mark.parametrize("format", ["text", "json", "csv", "markdown"])
def test_bench_lists_what_a_gpu_would_run(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "names", lambda: ("normalize",))
    done = CliRunner().invoke(command, ["kernels", "--compiled", "--format", format], catch_exceptions=False)
    assert done.exit_code == 0
    if format == "json":
        found = json.loads(done.output)
        assert [each["architecture"] for each in found] == [80, 90]
        assert {each["kernel"] for each in found} == {"normalize_kernel"}
    else:
        assert done.output.count("normalize_kernel") == 2
        assert "H200" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models", "--compiled"], "--compiled is of kernels, not of models"),
        (["--speed", "--compiled"], "choose one"),
    ],
)
def test_compiled_is_of_kernels(words: list[str], message: str) -> None:
    done = CliRunner().invoke(command, words)
    assert message in f"{done.exception} {done.output}"


def test_where_kernels_are_interpreted_none_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "INTERPRETED", True)
    monkeypatch.setattr(ahead, "HAS_TRITON", True)
    with pytest.raises(ValueError, match="unset it"):
        ahead.compiled("normalize", 90)
