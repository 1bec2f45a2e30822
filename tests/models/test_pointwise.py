"""Convolutions of 1 x 1 as matrix products: which, what they compute, and when that is tried."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from workloads import workload_of

from bench.comparing.tuning import Tuner
from bench.inspecting.exact import OperatorCounter
from bench.timing.workload import Conditions
from models import small_maps, zoo
from models.configuration import Choice, Configuration, Device, parse
from models.errors import ModelError
from models.lively import enliven
from models.pointwise import Pointwise, TrainedPointwise, adapt_pointwise, suits, use_products
from models.prepare import fold_batch_norm, prepare

CPU = Device("cpu", bf16=True, compiler=True)


def test_networks_compute_the_same() -> None:
    torch.manual_seed(0)
    network = zoo.build("efficientnet_b0", 10).eval()
    images = torch.randn(2, 3, 64, 64)
    enliven(network, torch.randn(8, 3, 64, 64))
    with torch.no_grad():
        wanted = network(images)
        found = use_products(fold_batch_norm(network))
        assert sum(isinstance(layer, Pointwise) for layer in found.modules()) == 64
        torch.testing.assert_close(found(images), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"padding": "same"}, True),
        ({"bias": False}, True),
        ({"kernel_size": 3}, False),
        ({"padding": 1}, False),
        ({"groups": 2}, False),
    ],
    ids=str,
)
def test_only_convolutions_of_1_x_1_are_replaced(options: dict[str, Any], expected: bool) -> None:
    layer = nn.Conv2d(4, 6, **{"kernel_size": 1, **options})
    assert suits(layer) is expected
    images = torch.randn(2, 4, 5, 7).to(memory_format=torch.channels_last)
    if not expected:
        with pytest.raises(ModelError, match="finds no convolution of 1 x 1"):
            use_products(nn.Sequential(layer))
        return
    wanted = layer(images)
    found = use_products(nn.Sequential(layer))(images)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_trained_in_bfloat16_gradients_are_those_of_the_convolution(
    stride: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_maps, "has_amx", lambda: True)
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 96, 1, stride, bias=bias)
    images = torch.randn(2, 64, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    inputs = (images, *layer.parameters())
    wanted = layer(images)
    coming = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, inputs, coming)
    [adapted] = adapt_pointwise(nn.Sequential(layer))
    assert isinstance(adapted, TrainedPointwise)
    assert torch.equal(adapted(images), wanted), "fp32 stays a convolution"
    with torch.autocast("cpu", torch.bfloat16):
        found = adapted(images)
        with OperatorCounter() as counter:
            adapted(images)
    assert not any("convolution" in name for name in counter.counts)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(found, inputs, coming.bfloat16())
    for one, right in zip((found, *gradients), (wanted, *expected), strict=True):
        assert (one - right).norm() <= 2**-7 * right.norm()


def test_layers_of_few_channels_and_other_windows_are_trained_as_before() -> None:
    layers = [nn.Conv2d(32, 96, 1), nn.Conv2d(96, 32, 1), nn.Conv2d(96, 96, 1, groups=2), nn.Conv2d(96, 96, 3)]
    assert all(type(layer) is nn.Conv2d for layer in adapt_pointwise(nn.Sequential(*layers)))


@pytest.mark.slow
def test_compiled_it_is_the_compilers_own_code() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    images = torch.randn(1, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = network(images)
    prepared = prepare(network, parse("compile-nhwc-freeze-mm", CPU, False), torch.device("cpu"), False, (1, 3, 32, 32))
    torch.testing.assert_close(prepared.forward(images), wanted, atol=1e-4, rtol=1e-4)


def test_it_is_for_frozen_networks_that_are_compiled() -> None:
    assert parse("bf16-nhwc-compile-freeze-mm", CPU, False).mm
    for text, training in (("compile-mm", False), ("autotune-freeze-mm", False), ("compile-mm", True)):
        with pytest.raises(ModelError, match="compile-freeze-mm"):
            parse(text, CPU, training)
    with pytest.raises(ModelError, match="compile-mm"):
        parse("freeze-mm", Device("cuda", bf16=True, compiler=True), False)


def test_of_what_was_tuned_it_goes_with_the_compiler() -> None:
    tuned = parse("bf16-nhwc-compile-freeze-mm", CPU, False)
    assert Choice.from_text("tuned").on(CPU, False, tuned).mm
    assert not Choice.from_text("tuned-eager").on(CPU, False, tuned).mm
    with pytest.raises(ModelError, match="compile-freeze-mm"):
        Choice.from_text("tuned-eager-mm").on(CPU, False, tuned)


@pytest.mark.parametrize("after_inference", [False, True])
def test_tuning_tries_it_for_a_single_image(after_inference: bool) -> None:
    fast = Configuration("bf16", "nhwc", "compile", freeze=True, keep=True)
    engine = Configuration("fp32", peer="openvino")
    base = {
        task: replace(workload_of("inference", "lenet", fast.text, batch, 32, 10), task=task)
        for task, batch in (("inference", 32), ("latency", 1))
    }
    tuner = Tuner(base, CPU, Conditions(threads=1), {}, lambda text: None, None, ["openvino"])  # type: ignore[arg-type]
    if after_inference:
        tuner.near = [engine, replace(fast, precision="amp")]
    single = [one.configuration for one in tuner.pool("latency", base["latency"])]
    place = single.index(replace(fast, mm=True))
    assert all(one.peer for one in single[:place])
    assert not any(one.peer for one in single[place:])
    assert not any(one.configuration.mm for one in tuner.pool("inference", base["inference"]))
