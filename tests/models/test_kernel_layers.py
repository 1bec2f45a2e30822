"""Networks whose layers our kernels compute give what they gave before; the kernels' twins stand in on a CPU."""

import copy

import pytest
import torch
from interpreted import interpreted
from torch import nn
from torch.nn import functional

from kernels.runtime import HAS_TRITON
from models import zoo
from models.configuration import Configuration, Device, parse
from models.errors import ModelError
from models.kernel_layers import Bottleneck, DepthwiseConv2d, use_kernels
from models.prepare import prepare


def shaken(name: str = "efficientnet_b0") -> nn.Module:
    """A network whose batch norms are not the identity, and whose last layer is not nearly zero."""
    torch.manual_seed(0)
    model = zoo.build(name, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return shaken().eval()


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_folded_bottlenecks_give_the_same_logits(network: nn.Module) -> None:
    fused = use_kernels(copy.deepcopy(network), training=False, implementation="torch")
    assert sum(isinstance(module, Bottleneck) for module in fused.modules()) == 16
    with torch.no_grad():
        expected, found = network(IMAGES), fused(IMAGES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("cast", [False, True], ids=["bf16", "amp"])
def test_folded_bottlenecks_in_bfloat16_are_as_near_to_fp32_as_plain_ones(network: nn.Module, cast: bool) -> None:
    with torch.no_grad():
        exact = network(IMAGES)
    distance = []
    for model in (copy.deepcopy(network), use_kernels(copy.deepcopy(network), training=False, implementation="torch")):
        model = model.to(memory_format=torch.channels_last)
        images = IMAGES.to(torch.bfloat16)
        if not cast:
            model = model.to(torch.bfloat16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            logits = model(images)
        assert logits.dtype == torch.bfloat16
        distance.append(float((logits.float() - exact).pow(2).mean().sqrt() / exact.std()))
    assert distance[1] < 2 * distance[0]
    assert distance[1] < 0.1


def test_compiled_graph_of_a_fused_network_stays_whole(network: nn.Module) -> None:
    stage = copy.deepcopy(network.get_submodule("features.2"))
    block = use_kernels(nn.Sequential(stage), training=False, implementation="torch")
    images = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        found = torch.compile(block, fullgraph=True, backend="aot_eager")(images)
        torch.testing.assert_close(found, block(images))


def test_a_training_network_keeps_its_parameters_and_gets_the_same_gradients() -> None:
    plain = shaken("mobilenet_v2").train()
    ours = use_kernels(copy.deepcopy(plain), training=True, implementation="torch")
    assert sum(isinstance(module, DepthwiseConv2d) for module in ours.modules()) == 17
    assert list(ours.state_dict()) == list(plain.state_dict())
    labels = torch.tensor([3, 7])
    for model in (plain, ours):
        # Batch statistics of so few pixels would magnify every rounding on its way to the first layer.
        model.eval()
        functional.cross_entropy(model(IMAGES), labels).backward()
    for (name, expected), found in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None, name
        assert found.grad is not None, name
        assert float((found.grad - expected.grad).norm()) <= 1e-3 * float(expected.grad.norm()), name


@pytest.mark.parametrize(
    ("name", "training", "message"),
    [("resnet18", True, "no depthwise convolution"), ("mobilenet_v2", False, "no bottleneck of EfficientNet")],
)
def test_a_network_without_such_layers_is_refused(name: str, training: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        use_kernels(zoo.build(name, 10).train(training), training)


def test_layers_that_only_look_alike_are_left_alone() -> None:
    alike = nn.ModuleList(
        [
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
            nn.Conv2d(8, 8, 3, padding=0, groups=8, bias=False),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
            nn.Conv2d(8, 8, 9, padding=4, groups=8, bias=False),
            nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8, bias=False),
            nn.Conv2d(8, 8, 3, stride=(1, 2), padding=1, groups=8, bias=False),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, padding_mode="reflect"),
        ]
    )
    with pytest.raises(ModelError):
        use_kernels(alike, training=True)


def test_the_lever_is_for_cuda_and_no_part_of_a_peer() -> None:
    gpu = Device("cuda", bf16=True, compiler=True)
    found = parse("fast-kernels", gpu, training=False)
    assert found.text == "amp-nhwc-graphs-freeze-kernels"
    assert parse(found.text, gpu, training=False) == found
    with pytest.raises(ModelError, match="CUDA devices; leave out kernels"):
        parse("fast-kernels", Device("cpu", bf16=True, compiler=True), training=False)
    with pytest.raises(ModelError, match="tensorrt decides kernels itself"):
        parse("tensorrt-kernels", gpu, training=False)


def test_prepare_puts_them_in(network: nn.Module) -> None:
    prepared = prepare(
        copy.deepcopy(network), Configuration(layout="nhwc", kernels=True), torch.device("cpu"), False, (2, 3, 64, 64)
    )
    assert any(isinstance(module, Bottleneck) for module in prepared.module.modules())
    found = prepared.forward(IMAGES.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        expected = network(IMAGES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


INTERPRETED = """
import json
import torch
from torchvision.models.efficientnet import MBConv, MBConvConfig
from models.kernel_layers import Bottleneck, DepthwiseConv2d

torch.manual_seed(0)
worst = []
for kernel, stride, given, made, ratio in ((3, 1, 16, 16, 1), (5, 2, 16, 24, 6)):
    block = MBConv(MBConvConfig(ratio, kernel, stride, given, made, 1), 0.0, torch.nn.BatchNorm2d).eval()
    x = torch.randn(2, given, 6, 7)
    with torch.no_grad():
        expected, found = block(x), Bottleneck(block, "triton")(x)
    worst.append(float((found - expected).abs().max() / expected.abs().max()))
layer = torch.nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False)
x = torch.randn(2, 5, 4, 4)
layer(x).square().sum().backward()
expected, layer.weight.grad = layer.weight.grad, None
layer.__class__, layer.implementation = DepthwiseConv2d, "triton"
layer(x).square().sum().backward()
worst.append(float((layer.weight.grad - expected).abs().max() / expected.abs().max()))
print(json.dumps(worst))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_layers_with_the_kernels_themselves_under_the_interpreter() -> None:
    assert max(interpreted(INTERPRETED)) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("text", ["fp32-nhwc-eager-kernels", "amp-nhwc-compile-kernels"])
def test_the_kernels_in_the_network_on_the_device(network: nn.Module, text: str) -> None:
    device = torch.device("cuda")
    gpu = Device("cuda", bf16=True, compiler=True)
    with torch.no_grad():
        exact = network(IMAGES)
    logits = {}
    for words in (text, text.removesuffix("-kernels")):
        prepared = prepare(copy.deepcopy(network), parse(words, gpu, False), device, False, (2, 3, 64, 64))
        images = IMAGES.to(device, prepared.dtype).contiguous(memory_format=torch.channels_last)
        logits[words] = prepared.forward(images).float().cpu()
    distance = [float((found - exact).pow(2).mean().sqrt() / exact.std()) for found in logits.values()]
    assert distance[0] < max(2 * distance[1], 1e-3)
