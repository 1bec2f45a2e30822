"""Forward and both gradients are those of a convolution in double precision, over odd shapes and dtypes."""

import pytest
import torch
from interpreted import interpreted
from torch.nn import functional

from kernels import catalogue
from kernels.depthwise_backward import DTYPES, depthwise_convolution, steps_of
from kernels.runtime import HAS_TRITON

# Batch, channels, height, width, side of the kernel, stride.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 4, 9, 3, 2),
    (1, 17, 3, 5, 5, 1),
    (1, 5, 4, 10, 5, 2),
    (1, 3, 2, 2, 7, 1),
    (0, 8, 4, 4, 3, 1),
]
# Of each result relative to its largest number.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def made(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and the gradient of the result."""
    B, C, H, W, side, stride = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = ((B, C, H, W), (C, 1, side, side), (B, C, (H - 1) // stride + 1, (W - 1) // stride + 1))
    x, weight, grad = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return x, weight, grad


def definition(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: int) -> tuple[torch.Tensor, ...]:
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = functional.conv2d(x, weight, None, stride, weight.shape[2] // 2, groups=x.shape[1])
    return (y.detach(), *torch.autograd.grad(y, (x, weight), grad.double()))


def check(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if one.numel():
            largest = float(other.abs().max())
            torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * max(largest, 1e-3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, grad = made(shape, dtype)
    leaf, leaf_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = depthwise_convolution(leaf, leaf_weight, shape[5], "torch")
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, (leaf, leaf_weight), grad)
    check((y.detach(), *gradients), definition(x, weight, grad, shape[5]), TOLERANCE[dtype])


INTERPRETED = """
import json
import torch
from torch.nn import functional
from kernels import depthwise_backward as module
from kernels.depthwise_backward import DTYPES, depthwise_convolution

worst = {}
for number, (B, C, H, W, side, stride) in enumerate(json.loads(input())):
    generator = torch.Generator().manual_seed(number)
    sizes = ((B, C, H, W), (C, 1, side, side), (B, C, (H - 1) // stride + 1, (W - 1) // stride + 1))
    parts = [torch.randn(size, generator=generator) for size in sizes]
    # Few and many blocks of pixels for each program.
    for steps, dtype in ((1, DTYPES[0]), (2, DTYPES[1]), (3, DTYPES[2])):
        module.steps_of = lambda pixels, block: steps
        x, weight, grad = (part.to(dtype) for part in parts)
        exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
        exact = functional.conv2d(exact_x, exact_weight, None, stride, side // 2, groups=C)
        expected = (exact.detach(), *torch.autograd.grad(exact, (exact_x, exact_weight), grad.double()))
        x.requires_grad_(), weight.requires_grad_()
        y = depthwise_convolution(x, weight, stride, "triton")
        found = (y.detach(), *torch.autograd.grad(y, (x, weight), grad))
        for name, one, other in zip(("y", "x", "weight"), found, expected):
            assert one.dtype == dtype and one.shape == other.shape, name
            if one.numel():
                size = max(other.abs().max().item(), 1e-3) * torch.finfo(dtype).eps
                key = f"{dtype} {name}"
                worst[key] = max(worst.get(key, 0.0), (one.double() - other).abs().max().item() / size)
print(json.dumps(worst))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_equal_their_twins_under_the_interpreter() -> None:
    worst = interpreted(INTERPRETED, SHAPES)
    assert len(worst) == 9
    # Rounded once, by the interpreter not always to the nearest; in float32 a few units for the order of the sum.
    assert max(error for name, error in worst.items() if "float32" not in name) <= 1.01
    assert max(worst.values()) <= 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 240, 28, 28, 5, 1), (3, 96, 112, 112, 3, 2)], ids=str)
def test_kernels_equal_the_definition_on_the_device(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, grad = made(shape, dtype)
    leaf, leaf_weight = x.cuda().requires_grad_(), weight.cuda().requires_grad_()
    y = depthwise_convolution(leaf, leaf_weight, shape[5], "triton")
    gradients = torch.autograd.grad(y, (leaf, leaf_weight), grad.cuda())
    found = tuple(one.cpu() for one in (y.detach(), *gradients))
    check(found, definition(x, weight, grad, shape[5]), TOLERANCE[dtype])


def test_autocast_casts_both_and_gradients_come_back_as_they_were() -> None:
    x, weight, grad = made((2, 3, 5, 9, 3, 2), torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_convolution(x, weight, 2)
    assert y.dtype == torch.bfloat16
    y.backward(grad.bfloat16())
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's input has no gradient, and frozen weights have none."""
    from kernels import depthwise_backward as module

    x, weight, _ = made((2, 3, 5, 9, 3, 2), torch.float32)
    asked: list[str] = []
    for table, name in ((module.GRAD_INPUT, "input"), (module.GRAD_WEIGHT, "weight")):
        plain = table["torch"]
        monkeypatch.setitem(table, "torch", lambda *words, n=name, p=plain: asked.append(n) or p(*words))
    depthwise_convolution(x, weight.clone().requires_grad_(), 2).sum().backward()
    assert asked == ["weight"]
    depthwise_convolution(x.clone().requires_grad_(), weight, 2).sum().backward()
    assert asked == ["weight", "input"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of opcheck's own
def test_operators_are_well_formed() -> None:
    x, weight, grad = made((2, 3, 5, 9, 3, 2), torch.float32)
    operators = torch.ops.pixbench
    torch.library.opcheck(
        operators.depthwise_convolution.default, (x.requires_grad_(), weight.requires_grad_(), 2, "torch")
    )
    torch.library.opcheck(operators.depthwise_grad_input.default, (grad, weight.detach(), 2, 5, 9, "torch"))
    torch.library.opcheck(operators.depthwise_grad_weight.default, (grad, x.detach(), 2, 3, "torch"))


def test_compiled_training_step_stays_whole() -> None:
    x, weight, _ = made((2, 3, 5, 9, 3, 2), torch.float32)
    weight.requires_grad_()

    def loss(images: torch.Tensor) -> torch.Tensor:
        return depthwise_convolution(images, weight, 2).square().sum()

    torch.compile(loss, fullgraph=True, backend="aot_eager")(x).backward()
    found = weight.grad
    weight.grad = None
    loss(x).backward()
    assert found is not None
    assert weight.grad is not None
    torch.testing.assert_close(found, weight.grad)


def test_large_batches_are_many_steps_for_a_few_hundred_programs() -> None:
    assert steps_of(10, 16) == 1
    assert steps_of(16 * 256 * 5, 16) == 5
    assert steps_of(10**9, 16) == 64


X, WEIGHT, _ = made((2, 3, 5, 9, 3, 2), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"\[B, C, H, W\]"),
        ({"x": X.double()}, "float64"),
        ({"weight": WEIGHT[:2]}, r"\[3, 1, k, k\]"),
        ({"weight": WEIGHT[..., :2, :2]}, "odd side up to 7, not 2"),
        ({"weight": torch.zeros(3, 1, 9, 9)}, "odd side up to 7, not 9"),
        ({"weight": WEIGHT.to("meta")}, "weight on meta"),
        ({"stride": 3}, "1 or 2"),
        ({"implementation": "cuda"}, "torch, compiled, triton"),
        ({"implementation": "triton"}, "CUDA device|Triton"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise_convolution(**{"x": X, "weight": WEIGHT, **arguments})  # type: ignore[arg-type]


def test_example_runs() -> None:
    made = catalogue.example("depthwise_backward", "torch", 2, 16, "bfloat16", "cpu")()
    assert isinstance(made, torch.Tensor)
    assert made.shape == (240, 1, 5, 5)
