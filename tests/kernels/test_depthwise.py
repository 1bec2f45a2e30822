"""The depthwise kernel and its twin compute what a convolution in double precision does, over odd shapes and dtypes."""

from itertools import product

import pytest
import torch
from interpreted import DEVICE, runs_kernels
from torch.nn import functional

from kernels import depthwise as module
from kernels.depthwise import ACTIVATIONS, depthwise, tile
from kernels.runtime import DTYPES, INTERPRETED

# Batch, channels, height, width, side of the kernel, stride.
SHAPES = [
    (1, 1, 1, 1, 3, 1),
    (2, 3, 5, 9, 3, 2),
    (1, 20, 5, 7, 5, 1),
    (2, 17, 7, 10, 5, 2),
    (1, 33, 2, 2, 7, 1),
    (0, 8, 4, 4, 3, 1),
]
LARGE = [(4, 240, 28, 28, 5, 1), (3, 96, 112, 112, 3, 2)]
# Shapes with the rows and columns that a lane makes: each of 1 and 2 rows, at each stride, rows, columns and channels
# that fill no tile, and each activation and dtype; few pixels, because the interpreter is slow.
SMALL: list[tuple[tuple[int, ...], tuple[int, int], str, torch.dtype]] = [
    ((1, 1, 1, 1, 3, 1), (1, 1), "none", torch.float32),
    ((2, 1, 3, 3, 3, 2), (1, 2), "silu", torch.float16),
    ((2, 3, 5, 9, 3, 2), (2, 3), "silu", torch.bfloat16),
    ((1, 17, 5, 2, 3, 1), (2, 2), "relu", torch.float16),
    ((1, 3, 9, 4, 5, 2), (3, 2), "silu", torch.float32),
    ((1, 2, 2, 2, 7, 1), (2, 1), "none", torch.bfloat16),
    ((1, 16, 6, 8, 5, 1), (2, 4), "silu", torch.bfloat16),
    ((0, 8, 4, 4, 3, 1), (1, 4), "relu", torch.float32),
]
# Of the result relative to its largest number: half a unit in the last place, and for the twin also of what is in
# between, since PyTorch rounds before it activates.
TOLERANCE = {torch.float32: 1e-6 if INTERPRETED else 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def made(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, C, H, W, side, _ = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    return numbers(B, C, H, W), numbers(C, 1, side, side) / side, numbers(C)


def definition(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    y = functional.conv2d(x.double(), weight.double(), bias.double(), stride, weight.shape[2] // 2, groups=x.shape[1])
    y = {"silu": functional.silu, "relu": functional.relu, "none": lambda value: value}[activation](y)
    return y, y.sum((2, 3))


def check(result: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    out, sums = result
    tolerance = TOLERANCE[out.dtype]
    assert sums.dtype == torch.float32
    assert out.shape == expected[0].shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    if out.numel():
        least = tolerance * float(expected[0].abs().max())
        torch.testing.assert_close(out.double(), expected[0], rtol=tolerance, atol=least)
        pixels = out.shape[2] * out.shape[3]
        torch.testing.assert_close(sums.double(), expected[1], rtol=0, atol=least * pixels)
    else:
        assert not sums.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, ...]) -> None:
    for activation, dtype in product(ACTIVATIONS, DTYPES):
        x, weight, bias = made(shape, dtype)
        expected = definition(x, weight, bias, shape[5], activation)
        for view in (x, x.contiguous(memory_format=torch.channels_last)):
            check(depthwise(view, weight, bias, shape[5], activation, "torch"), expected)


def check_kernel(shape: tuple[int, ...], activation: str, dtype: torch.dtype) -> None:
    x, weight, bias = made(shape, dtype)
    out, sums = depthwise(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), shape[5], activation, "triton")
    assert out.dtype == dtype
    check((out.cpu(), sums.cpu()), definition(x, weight, bias, shape[5], activation))


@runs_kernels
@pytest.mark.parametrize(("shape", "tile", "activation", "dtype"), SMALL, ids=str)
def test_kernel_equals_the_definition_with_any_tile(
    shape: tuple[int, ...],
    tile: tuple[int, int],
    activation: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "tile", lambda *_: tile)
    check_kernel(shape, activation, dtype)


@runs_kernels
@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 3, 2)] if INTERPRETED else [*SHAPES, *LARGE], ids=str)
def test_kernel_equals_the_definition(shape: tuple[int, ...]) -> None:
    for activation, dtype in product(ACTIVATIONS, DTYPES):
        check_kernel(shape, activation, dtype)


@pytest.mark.parametrize(
    ("side", "stride", "expected"),
    [
        (112, 1, (2, 8)),
        (28, 1, (2, 7)),
        (14, 2, (1, 7)),
        (7, 1, (1, 7)),
        (17, 1, (2, 6)),
        (3, 1, (1, 3)),
        (1, 2, (1, 1)),
    ],
)
def test_tiles_leave_little_idle(side: int, stride: int, expected: tuple[int, int]) -> None:
    assert tile(side, side, stride) == expected


X, WEIGHT, BIAS = made((2, 3, 5, 9, 3, 2), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"\[B, C, H, W\]"),
        ({"x": X.double()}, "float64"),
        ({"weight": WEIGHT[:2]}, r"\[3, 1, k, k\]"),
        ({"weight": WEIGHT[..., :2]}, r"\[3, 1, k, k\]"),
        ({"weight": WEIGHT[..., :2, :2]}, "odd side, not 2"),
        ({"bias": BIAS[:2]}, r"bias must be \[3\]"),
        ({"bias": BIAS.to("meta")}, "cpu, cpu and meta"),
        ({"stride": 3}, "1 or 2"),
        ({"activation": "gelu"}, "none, relu, silu"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise(**{"x": X, "weight": WEIGHT, "bias": BIAS, **arguments})  # type: ignore[arg-type]
