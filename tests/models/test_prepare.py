"""Each fast path against its slow twin."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import zoo
from models.configuration import Configuration, Device, parse
from models.errors import ModelError
from models.prepare import Prepared, fold_batch_norm, prepare, set_switches

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ANY = Device("cpu", bf16=True, compiler=True)
# Largest error as a share of the largest logit: bfloat16 keeps 8 bits, so one rounding is 0.4 %.
TOLERANCE = {"fp32": 1e-4, "amp": 0.05, "bf16": 0.05, "fp16": 0.01}


def network(name: str = "cifar_resnet18") -> nn.Module:
    """A network whose batch norms are not the identity, so that folding them wrongly shows."""
    torch.manual_seed(0)
    model = zoo.build(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def fed(prepared: Prepared, x: Tensor) -> Tensor:
    return prepared.forward(x.to(prepared.dtype).contiguous(memory_format=prepared.memory_format)).float()


def prepared_as(model: nn.Module, text: str, training: bool = False, batch: int = 2) -> Prepared:
    return prepare(copy.deepcopy(model), parse(text, ANY, training), CPU, training, (batch, 3, 32, 32))


@pytest.mark.parametrize(
    "text",
    [
        "nhwc",
        "amp",
        "amp-nhwc",
        "bf16-nhwc",
        "nhwc-freeze",
        "bf16-nhwc-freeze",
        "compile-nhwc",
        "bf16-nhwc-compile-freeze",
    ],
)
def test_logits_agree_with_naive(text: str) -> None:
    torch.compiler.reset()
    model = network("narrow_resnet34_se" if "compile" not in text else "lenet")
    x = images()
    expected = fed(prepared_as(model, "naive"), x)
    found = fed(prepared_as(model, text), x)
    precision = parse(text, ANY, False).precision
    assert (found - expected).abs().max() <= TOLERANCE[precision] * expected.abs().max()


def test_freezing_compiled_code_still_folds_batch_norm_right() -> None:
    torch.compiler.reset()

    class Small(nn.Sequential):
        pass

    torch.manual_seed(0)
    model = Small(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 10)
    )
    bn = model[1]
    nn.init.uniform_(bn.running_mean, -0.2, 0.2)
    nn.init.uniform_(bn.running_var, 0.5, 1.5)
    expected = fed(prepared_as(model, "naive"), images())
    found = fed(prepared_as(model, "fp32-nhwc-compile-freeze"), images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_folding_removes_every_batch_norm_after_a_convolution() -> None:
    folded = fold_batch_norm(network().eval())
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("text", ["nhwc", "amp-nhwc", "fast"])
def test_a_training_step_agrees_with_naive(text: str) -> None:
    """Same loss and, in the same direction, the same gradients; bfloat16's error is that of 8 bits."""
    model = network()
    x, y = images(8), torch.arange(8)

    def gradients(configuration: str) -> tuple[float, Tensor]:
        ready = prepared_as(model, configuration, training=True, batch=8)
        loss = nn.functional.cross_entropy(fed(ready, x), y)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in ready.module.parameters() if p.grad is not None])

    expected_loss, expected = gradients("naive")
    loss, found = gradients(text)
    tight = parse(text, ANY, True).precision == "fp32"
    assert loss == pytest.approx(expected_loss, rel=1e-4 if tight else 0.03)
    # Random weights and batch norm over 8 images amplify rounding on the way back; a wrong gradient is near 0 here.
    assert nn.functional.cosine_similarity(found, expected, dim=0).item() > (0.9999 if tight else 0.9)
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3 if tight else 0.1)


def test_images_arrive_as_the_first_convolution_wants_them() -> None:
    ready = prepared_as(network("lenet"), "amp-nhwc", training=True)
    assert ready.dtype is torch.bfloat16
    assert ready.memory_format is torch.channels_last
    assert next(ready.module.parameters()).dtype is torch.float32


def test_weights_of_convolutions_are_channels_last() -> None:
    ready = prepared_as(network(), "nhwc")
    weights = [m.weight for m in ready.module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_inference_keeps_no_graph_and_training_does() -> None:
    assert not fed(prepared_as(network("lenet"), "naive"), images()).requires_grad
    assert fed(prepared_as(network("lenet"), "naive", training=True), images()).requires_grad


def test_what_cannot_be_traced_cannot_be_folded() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="cannot be traced"):
        fold_batch_norm(Branching().eval())


@pytest.mark.parametrize(("peer", "package"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime")])
def test_a_peer_agrees_with_naive_or_says_what_is_missing(peer: str, package: str) -> None:
    import importlib.util

    build: Callable[[], Prepared] = lambda: prepared_as(network("lenet"), f"{peer}-fp32")  # noqa: E731
    if importlib.util.find_spec(package) is None or (
        peer == "onnxruntime" and importlib.util.find_spec("onnxscript") is None
    ):
        with pytest.raises(ModelError, match=r"pip install 'pixbench\[peers\]'"):
            build()
        return
    expected = fed(prepared_as(network("lenet"), "naive"), images())
    torch.testing.assert_close(fed(build(), images()), expected, rtol=1e-3, atol=1e-3)


def test_tensorrt_is_named_when_it_is_missing() -> None:
    with pytest.raises(ModelError, match="torch-tensorrt; it is not installed"):
        prepare(network("lenet"), Configuration(peer="tensorrt"), CPU, False, (1, 3, 32, 32))


def switches() -> tuple[bool, bool, bool, int]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.benchmark_limit


def test_the_plain_configuration_has_torchs_own_switches_and_others_set_them() -> None:
    # The last one puts back what torch begins with.
    seen = {}
    for configuration in (Configuration("tf32", "nhwc"), Configuration("amp", "nhwc"), Configuration()):
        set_switches(configuration)
        seen[configuration.precision] = switches()
    assert seen == {"tf32": (True, True, True, 0), "amp": (False, False, True, 0), "fp32": (False, True, False, 10)}


@pytest.mark.parametrize(
    ("text", "training", "captured", "mode"),
    [
        ("amp-nhwc-graphs", False, False, "reduce-overhead"),
        ("amp-nhwc-autotune", False, False, "max-autotune"),
        ("amp-nhwc-graphs", False, True, "default"),
        ("amp-nhwc-autotune", False, True, "max-autotune-no-cudagraphs"),
        ("amp-nhwc-graphs", True, False, "default"),
        ("amp-nhwc-autotune", True, False, "max-autotune"),
        ("amp-nhwc-compile", True, False, "default"),
    ],
)
def test_no_graph_is_made_within_a_graph(
    text: str, training: bool, captured: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the caller captures must not replay graphs of its own."""
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, mode: asked.append(mode) or model)
    gpu = Device("cuda", bf16=True, compiler=True)
    prepare(network("lenet"), parse(text, gpu, training), CPU, training, (2, 3, 32, 32), captured)
    assert asked == [mode]


class Scaled(nn.Module):
    """A network of one weight, whose class several networks share."""

    def __init__(self, weight: float, breaks: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.breaks = breaks
        nn.init.constant_(self.linear.weight, weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        if self.breaks:
            torch._dynamo.graph_break()
        return self.linear(means)


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [False, True])
def test_frozen_networks_of_a_class_and_images_of_other_sizes_are_told_apart(breaks: bool) -> None:
    """Only the images are looked at when compiled code is entered: nothing else may decide what it answers."""
    networks = [Scaled(weight, breaks) for weight in (1.0, 2.0)]
    frozen = Configuration("fp32", "nhwc", "compile", freeze=True)
    prepared = [prepare(copy.deepcopy(one), frozen, CPU, False, (2, 3, 8, 8)) for one in networks]
    for shape in ((2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 6, 6)):
        images = torch.randn(shape)
        for one, network in zip(prepared, networks, strict=True):
            torch.testing.assert_close(one.forward(images), network(images))


FIRST_STEP = """
import torch
from torch import nn
from models.configuration import Configuration
from models.prepare import prepare
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 2))
compiled = Configuration("fp32", "nhwc", "compile", freeze=True)
print(prepare(network, compiled, torch.device("cpu"), False, (2, 3, 8, 8)).forward(torch.zeros(2, 3, 8, 8)).shape)
"""


@pytest.mark.night
def test_what_a_killed_compilation_left_is_compiled_again(tmp_path: Path) -> None:
    def first_step() -> str:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-P", "-c", FIRST_STEP]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    first_step()
    libraries = list(tmp_path.rglob("*.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(b"")
    assert first_step() == "torch.Size([2, 2])\n"
