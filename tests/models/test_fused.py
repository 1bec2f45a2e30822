"""Convolutions with the addition and ReLU after them as one operator: what is replaced, and what it computes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional

from bench.comparing.tuning import challengers
from models import zoo
from models.configuration import Configuration, Device, check, parse
from models.errors import ModelError
from models.fused import ConvolutionReLU, by_cudnn, convolution_relu, fuse_convolutions, written_out
from models.lively import enliven
from models.prepare import apply_compile, compiler_settings, fold_batch_norm, prepare

GPU = Device("cuda", bf16=True, compiler=True)
SHAPE = (2, 3, 32, 32)


def fuse(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    return fuse_convolutions(fold_batch_norm(network.eval()), shape)


def count(network: nn.Module) -> int:
    return sum(isinstance(module, ConvolutionReLU) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "expected", "left"),
    # Of a ResNet all but the stem and what its shortcuts are made by.
    [("resnet18", 16, 4), ("resnet50", 48, 5), ("vgg11", 8, 0), ("squeezenet1_1", 26, 0)],
)
def test_networks_compute_the_same(name: str, expected: int, left: int) -> None:
    torch.manual_seed(0)
    network = zoo.build(name, 10).eval()
    images = torch.randn(2, 3, 64, 64)
    enliven(network, torch.randn(8, 3, 64, 64))
    found = fuse(network, (2, 3, 64, 64))
    assert count(found) == expected
    assert sum(isinstance(module, nn.Conv2d) for module in found.modules()) == left
    with torch.no_grad():
        torch.testing.assert_close(found(images), network(images), atol=1e-4, rtol=1e-4)


class Block(nn.Module):
    """Two convolutions of three channels; `join` says what becomes of them."""

    def __init__(self, join: Callable[[Tensor, Tensor, Tensor], Tensor], **of_second: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, **{"kernel_size": 3, "padding": 1, **of_second})
        self.join = join

    def forward(self, images: Tensor) -> Tensor:
        return self.join(images, self.first(images), self.second(images))


def in_place(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    first = first.add_(images)
    return functional.relu(first) + second


def into_what_is_read_again(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    kept = images * 2
    kept = kept.add_(first)
    return torch.relu(kept) + kept + second


class Changing(nn.Module):
    """Changes what a convolution has read, before ReLU, and before an addition if there is one."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        # A name that a replaced one might get.
        self.first_relu = nn.Conv2d(3, 3, 1)
        self.added = added

    def forward(self, images: Tensor) -> Tensor:
        made = images * 2
        found = self.first(made)
        made.add_(1)
        kept = self.first_relu(made)
        return torch.relu(found + made if self.added else found) + kept


@pytest.mark.parametrize("added", [False, True])
def test_what_changes_after_a_convolution_is_read_before(added: bool) -> None:
    torch.manual_seed(0)
    network, images = Changing(added).eval(), torch.randn(SHAPE)
    if added:
        with pytest.raises(ModelError, match="finds no convolution"):
            fuse(network)
        return
    found = fuse(network)
    assert count(found) == 1
    torch.testing.assert_close(found(images), network(images))


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda images, first, second: torch.relu(first) + second, 1),
        (lambda images, first, second: (first + second).relu(), 1),
        (lambda images, first, second: torch.relu(images + first) + torch.relu(second), 2),
        (in_place, 1),
        (into_what_is_read_again, 0),
        # Read by somebody else too, of another shape, with a factor, no ReLU.
        (lambda images, first, second: torch.relu(first) + first + second, 0),
        (lambda images, first, second: torch.relu(first + images.mean((2, 3), keepdim=True)) + second, 0),
        (lambda images, first, second: torch.relu(torch.add(first, images, alpha=2)) + second, 0),
        (lambda images, first, second: torch.relu(first + 1) + second, 0),
        (lambda images, first, second: torch.sigmoid(first) + second, 0),
    ],
)
def test_only_what_is_the_same_is_replaced(join: Callable[[Tensor, Tensor, Tensor], Tensor], expected: int) -> None:
    torch.manual_seed(0)
    network, images = Block(join).eval(), torch.randn(SHAPE)
    if not expected:
        with pytest.raises(ModelError, match="finds no convolution"):
            fuse(network)
        return
    found = fuse(network)
    assert count(found) == expected
    torch.testing.assert_close(found(images.clone()), network(images.clone()))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5, "padding": 2},
        {"groups": 3},
        {"padding": "same"},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_other_convolutions_stay(options: dict[str, Any]) -> None:
    found = fuse(Block(lambda images, first, second: torch.relu(first) + torch.relu(second), **options))
    assert count(found) == 1


@pytest.mark.parametrize("added", [False, True])
def test_cudnn_is_asked_for_what_is_written_out(added: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight, bias = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3), torch.randn(6)
    other = torch.randn(2, 6, 5, 5) if added else None
    given = (images, weight, bias, other, (2, 2), (1, 1), (1, 1))
    # The true operators take these arguments, and have no form for a CPU.
    with pytest.raises(NotImplementedError, match="cudnn_convolution"):
        by_cudnn(*given)

    def relu(self: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        return torch.relu(functional.conv2d(self, weight, bias, *rest))

    def add_relu(self: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *rest: Any) -> Tensor:
        return torch.relu(functional.conv2d(self, weight, bias, *rest) + alpha * z)

    for name, twin in (("cudnn_convolution_relu", relu), ("cudnn_convolution_add_relu", add_relu)):
        wanted = [argument.name for argument in getattr(torch.ops.aten, name).default._schema.arguments]
        assert wanted[: len(wanted) - 4] == list(twin.__annotations__)[: len(wanted) - 4]
        assert wanted[-4:] == ["stride", "padding", "dilation", "groups"]
        monkeypatch.setattr(torch, name, twin)
    torch.testing.assert_close(by_cudnn(*given), written_out(*given))
    torch.testing.assert_close(convolution_relu(*given), written_out(*given))


def test_a_compiler_keeps_the_operator() -> None:
    torch.manual_seed(0)
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    network = fuse(zoo.build("resnet18", 10)).to(memory_format=torch.channels_last)
    images = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(network, backend=look, fullgraph=True)(images)
        torch.testing.assert_close(found, network(images))
    assert sum("convolution_relu" in target for target in seen) == 16


def test_it_is_for_frozen_networks_on_a_gpu() -> None:
    found = parse("bf16-nhwc-graphs-freeze-fused", GPU, training=False)
    assert found == Configuration("bf16", "nhwc", "graphs", freeze=True, fused=True)
    assert Configuration.from_text(found.text) == found
    with pytest.raises(ModelError, match="freeze-fused"):
        check(Configuration(fused=True), GPU, training=False)
    with pytest.raises(ModelError, match="compile-mm"):
        parse("nhwc-mm", GPU, training=False)
    with pytest.raises(ModelError, match="on CUDA devices"):
        parse("freeze-fused", Device.from_cpu(), training=False)
    with pytest.raises(ModelError, match="cannot be trained"):
        parse("freeze-fused", GPU, training=True)


@pytest.mark.parametrize(("lever", "training"), [("fused", False), ("mm", False), ("mm", True)])
def test_tuning_tries_it_on_a_gpu_only(lever: str, training: bool) -> None:
    fast = parse("fast", GPU, training)
    assert replace(fast, **{lever: True}) in challengers(fast, GPU, training)
    plain = parse("fast", Device.from_cpu(), training)
    assert not any(getattr(one, lever) for one in challengers(plain, Device.from_cpu(), training))


@pytest.mark.slow
def test_matrix_products_take_the_place_of_convolutions_of_1_x_1() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1, stride=2))
    network = network.train().to(memory_format=torch.channels_last)
    images = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    seen: list[str] = []
    for mm in (False, True):
        torch._dynamo.reset()
        call = apply_compile(network, "default", compiler_settings(Configuration(compile="compile", mm=mm), "cuda"))
        found, code = run_and_get_code(call, images)
        seen.append("\n".join(code))
        torch.testing.assert_close(found, network(images), atol=1e-5, rtol=1e-5)
    products = [code.count("extern_kernels.addmm(") + code.count("extern_kernels.mm(") for code in seen]
    assert products == [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("text", ["fp32-nhwc-eager-freeze-fused", "bf16-nhwc-eager-freeze-fused"])
def test_cudnn_computes_the_same(text: str) -> None:
    torch.manual_seed(0)
    network = zoo.build("resnet50", 10).eval()
    images = torch.randn(4, 3, 64, 64)
    enliven(network, torch.randn(8, 3, 64, 64))
    with torch.no_grad():
        wanted = network(images)
    configuration = Configuration.from_text(text)
    prepared = prepare(network, configuration, torch.device("cuda"), False, (4, 3, 64, 64))
    there = images.to("cuda", prepared.dtype, memory_format=prepared.memory_format)
    found = prepared.forward(there).float().cpu()
    share = 1e-3 if configuration.precision == "fp32" else 0.05
    assert (found - wanted).abs().max() <= share * wanted.std() + share
