"""The Triton kernel, its twin and the definition agree, whatever the shape, the dtype and the strides."""

import pytest
import torch
from interpreted import DEVICE, ROUNDING, runs_kernels

from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from kernels.normalize import normalize

# One pixel, a prime width, more than one block of the kernel, an empty batch.
SHAPES = [(1, 1, 1), (2, 5, 7), (3, 41, 37), (0, 8, 8)]
# Half a unit in the last place at the largest value, 2.64, and a little for the float32 arithmetic before it.
TOLERANCE = {
    torch.float32: 1e-6,
    torch.bfloat16: ROUNDING * 2.0**-6 + 1e-5,
    torch.float16: ROUNDING * 2.0**-9 + 1e-6,
}


def pixels(shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def check(images: torch.Tensor, implementation: str, device: str) -> None:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (images.permute(0, 3, 1, 2).double() / 255 - mean) / std
    for dtype, tolerance in TOLERANCE.items():
        result = normalize(images.to(device), dtype=dtype, implementation=implementation)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, int, int]) -> None:
    check(pixels(shape), "torch", "cpu")


@runs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_definition(shape: tuple[int, int, int]) -> None:
    check(pixels(shape), "triton", DEVICE)


def strided(images: torch.Tensor) -> list[torch.Tensor]:
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    every_other = images.repeat_interleave(2, 0)[::2]
    assert not planar.is_contiguous()
    assert not every_other.is_contiguous()
    return [planar, every_other]


@pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=runs_kernels)])
def test_strided_input_is_read_by_position_and_left_alone(implementation: str) -> None:
    images = pixels((2, 5, 7))
    for view in strided(images):
        check(view, implementation, "cpu" if implementation == "torch" else DEVICE)
        assert torch.equal(view, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"\[B, H, W, 3\]"),
        ({"images": torch.zeros(2, 8, 8, 3)}, "uint8"),
        ({"std": (0.2, 0.0, 0.2)}, "above zero"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"dtype": torch.float64}, "float32"),
    ],
)
def test_wrong_input_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize(**({"images": pixels((1, 2, 2))} | arguments))
