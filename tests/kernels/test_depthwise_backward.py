"""Forward and both gradients are those of a convolution in double precision, over odd shapes and dtypes."""

import pytest
import torch
from interpreted import DEVICE, runs_kernels
from torch.nn import functional

from kernels import depthwise_backward as module
from kernels.depthwise_backward import PROGRAMS, depthwise_convolution, steps_of
from kernels.runtime import DTYPES, INTERPRETED

# Batch, channels, height, width, side of the kernel, stride.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 4, 9, 3, 2),
    (1, 17, 3, 5, 5, 1),
    (1, 5, 4, 10, 5, 2),
    (1, 3, 2, 2, 7, 1),
    (0, 8, 4, 4, 3, 1),
]
LARGE = [(4, 240, 28, 28, 5, 1), (3, 96, 112, 112, 3, 2)]
# Shapes with a number of groups of tiles that a program sums up; few pixels, because the interpreter is slow.
SMALL: list[tuple[tuple[int, ...], int, torch.dtype]] = [
    ((1, 1, 1, 1, 1, 1), 1, torch.float32),
    ((2, 3, 3, 4, 3, 2), 2, torch.bfloat16),
    ((1, 17, 2, 9, 3, 1), 1, torch.float16),
    ((1, 2, 3, 4, 5, 2), 3, torch.float32),
    ((1, 2, 1, 2, 7, 1), 2, torch.bfloat16),
    ((1, 16, 8, 8, 3, 2), 1, torch.bfloat16),
    ((1, 3, 5, 7, 7, 2), 1, torch.float32),
    ((1, 2, 3, 2, 1, 2), 1, torch.float32),
    ((0, 8, 4, 4, 3, 1), 1, torch.float16),
]
# Of each result relative to its largest number.
TOLERANCE = {torch.float32: 1e-6 if INTERPRETED else 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


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


def check(shape: tuple[int, ...], dtype: torch.dtype, implementation: str, device: str) -> None:
    """Forward and both gradients, as autograd asks for them."""
    x, weight, grad = made(shape, dtype)
    leaf, leaf_weight = x.to(device).clone().requires_grad_(), weight.to(device).clone().requires_grad_()
    y = depthwise_convolution(leaf, leaf_weight, shape[5], implementation)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, (leaf, leaf_weight), grad.to(device))
    compare((y.detach(), *gradients), definition(x, weight, grad, shape[5]), dtype)


def compare(results: tuple[torch.Tensor, ...], definitions: tuple[torch.Tensor, ...], dtype: torch.dtype) -> None:
    for result, expected in zip(results, definitions, strict=True):
        assert (result.shape, result.dtype) == (expected.shape, dtype)
        if result.numel():
            tolerance = TOLERANCE[dtype] * max(float(expected.abs().max()), 1e-3)
            torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        check(shape, dtype, "torch", "cpu")


@runs_kernels
@pytest.mark.parametrize(("shape", "steps", "dtype"), SMALL, ids=str)
def test_gradients_equal_the_definition_with_any_number_of_steps(
    shape: tuple[int, ...], steps: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "steps_of", lambda tiles, blocks: steps)
    x, weight, grad = (tensor.to(DEVICE) for tensor in made(shape, dtype))
    of_x = module.GRAD_INPUT("triton", grad, weight, shape[5], *x.shape[2:])
    of_weight = module.GRAD_WEIGHT("triton", grad, x, shape[5], shape[4])
    compare((of_x, of_weight), definition(x.cpu(), weight.cpu(), grad.cpu(), shape[5])[1:], dtype)


@runs_kernels
@pytest.mark.parametrize("shape", [(1, 2, 2, 2, 3, 2)] if INTERPRETED else [*SHAPES, *LARGE], ids=str)
def test_kernels_equal_the_definition(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        check(shape, dtype, "triton", DEVICE)


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
    x, weight, _ = made((2, 3, 5, 9, 3, 2), torch.float32)
    asked: list[str] = []
    for operation, name in ((module.GRAD_INPUT, "input"), (module.GRAD_WEIGHT, "weight")):
        twin = operation.implementations["torch"]
        monkeypatch.setitem(
            operation.implementations, "torch", lambda *words, n=name, twin=twin: asked.append(n) or twin(*words)
        )
    depthwise_convolution(x, weight.clone().requires_grad_(), 2).sum().backward()
    assert asked == ["weight"]
    depthwise_convolution(x.clone().requires_grad_(), weight, 2).sum().backward()
    assert asked == ["weight", "input"]


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


def test_large_batches_are_many_steps_for_a_few_thousand_programs() -> None:
    assert steps_of(10, 16) == 1
    assert steps_of(PROGRAMS * 5, 1) == steps_of(PROGRAMS, 5) == 5


X, WEIGHT, _ = made((2, 3, 5, 9, 3, 2), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"\[B, C, H, W\]"),
        ({"x": X.double()}, "float64"),
        ({"weight": WEIGHT[:2]}, r"\[3, 1, k, k\]"),
        ({"weight": WEIGHT[..., :2, :2]}, "odd side, not 2"),
        ({"weight": torch.zeros(3, 1, 9, 9)}, "at most 7, not 9"),
        ({"weight": WEIGHT.to("meta")}, "weight on meta"),
        ({"stride": 3}, "1 or 2"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise_convolution(**{"x": X, "weight": WEIGHT, **arguments})  # type: ignore[arg-type]
