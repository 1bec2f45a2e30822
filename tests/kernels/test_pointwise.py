"""The projection kernel and its twin compute what a product in double precision does, over odd shapes and dtypes."""

import pytest
import torch
from interpreted import DEVICE, runs_kernels

from kernels.pointwise import blocks, scaled_pointwise
from kernels.runtime import DTYPES, INTERPRETED

# Batch, input channels, output channels, height, width.
SHAPES = [(1, 1, 1, 1, 1), (2, 33, 5, 3, 7), (3, 16, 17, 5, 9), (1, 70, 130, 4, 4), (0, 4, 4, 2, 2)]
LARGE = [(4, 240, 40, 28, 28), (2, 1152, 320, 7, 7)]
TOLERANCE = {torch.float32: 1e-6 if INTERPRETED else 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def made(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, scale, weight, bias, residual."""
    B, C, N, H, W = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = ((B, C, H, W), (B, C), (N, C, 1, 1), (N,), (B, N, H, W))
    return tuple(torch.randn(size, generator=generator).to(dtype) for size in sizes)


def definition(
    x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    y = torch.einsum("bchw,bc,nc->bnhw", x.double(), scale.double(), weight[:, :, 0, 0].double())
    y = y + bias.double().view(1, -1, 1, 1)
    return y if residual is None else y + residual.double()


def check(shape: tuple[int, ...], implementation: str, device: str) -> None:
    for dtype in DTYPES:
        *parts, residual = made(shape, dtype)
        for added in (None, residual):
            arguments = [None if part is None else part.to(device) for part in (*parts, added)]
            result = scaled_pointwise(*arguments, implementation=implementation)  # type: ignore[arg-type]
            expected = definition(*parts, added)
            assert (result.shape, result.dtype) == (expected.shape, dtype)
            assert result.is_contiguous(memory_format=torch.channels_last)
            if result.numel():
                tolerance = TOLERANCE[dtype]
                torch.testing.assert_close(
                    result.cpu().double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
                )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, ...]) -> None:
    check(shape, "torch", "cpu")


@runs_kernels
@pytest.mark.parametrize("shape", [*SHAPES, *([] if INTERPRETED else LARGE)], ids=str)
def test_kernel_equals_the_definition(shape: tuple[int, ...]) -> None:
    check(shape, "triton", DEVICE)


def test_few_output_channels_are_one_block() -> None:
    assert blocks(240, 40) == (128, 64, 32)
    assert blocks(8, 16) == (128, 16, 16)
    assert blocks(1152, 320) == (128, 128, 32)


X, SCALE, WEIGHT, BIAS, RESIDUAL = made((2, 33, 5, 3, 7), torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"\[B, C, H, W\]"),
        ({"x": X.double()}, "float64"),
        ({"scale": SCALE[:1]}, r"scale must be \[2, 33\]"),
        ({"weight": WEIGHT[:, :4]}, r"\[N, 33, 1, 1\]"),
        ({"bias": BIAS[:2]}, r"bias must be \[5\]"),
        ({"residual": X}, r"residual must be \[2, 5, 3, 7\]"),
        ({"bias": BIAS.half()}, "float16 on cpu, torch.float32 on cpu"),
        ({"bias": BIAS.to("meta")}, "float32 on meta"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    words = {"x": X, "scale": SCALE, "weight": WEIGHT, "bias": BIAS, **arguments}
    with pytest.raises(ValueError, match=message):
        scaled_pointwise(**words)  # type: ignore[arg-type]
