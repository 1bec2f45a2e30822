"""One pass over a resident set: the same pixels as a loop takes, in the kernel and in its twin."""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, ROUNDING, runs_kernels

from kernels.augment import BORDERS, COLUMNS, augment
from kernels.formats import IMAGENET_MEAN, IMAGENET_STD

# Images in the set, batch, side: one pixel, a prime side, an empty batch, more than one block of the kernel.
SHAPES = [(1, 1, 1), (5, 3, 7), (2, 0, 8), (3, 2, 19)]
TOLERANCE = {
    torch.float32: 1e-6,
    torch.bfloat16: ROUNDING * 2.0**-6 + 1e-5,
    torch.float16: ROUNDING * 2.0**-9 + 1e-6,
}


def made(images: int, batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A set and a table with windows, mirrors and rectangles, some of them beyond the image."""
    rng = np.random.default_rng(images + batch + side)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8))
    border = min(4, side - 1)
    mirror = rng.integers(0, 2, batch)
    shift = rng.integers(-border, border + 1, (2, batch))
    table = np.column_stack(
        [
            rng.integers(0, images, batch),
            shift[0],
            1 - 2 * mirror,
            shift[1] + (side - 1) * mirror,
            rng.integers(-2, side, (batch, 2)),
            rng.integers(0, side + 2, (batch, 2)),
        ]
    )
    return pixels, torch.from_numpy(table.astype(np.int32))


def definition(pixels: torch.Tensor, table: torch.Tensor, border: str) -> torch.Tensor:
    """Pixel by pixel, in double precision."""
    side = pixels.shape[1]
    result = torch.zeros(len(table), side, side, 3, dtype=torch.float64)
    colour = torch.tensor([round(255 * level) for level in IMAGENET_MEAN])

    def reflected(place: int) -> int:
        if place < 0:
            place = -place
        return 2 * (side - 1) - place if place >= side else place

    for number, (index, row, sign, column, top, left, height, width) in enumerate(table.tolist()):
        for y in range(side):
            for x in range(side):
                r, c = y + row, x * sign + column
                if border == "reflect":
                    r, c = reflected(r), reflected(c)
                if top <= y < top + height and left <= x < left + width:
                    result[number, y, x] = colour
                elif 0 <= r < side and 0 <= c < side:
                    result[number, y, x] = pixels[index, r, c]
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((result / 255 - mean) / std).permute(0, 3, 1, 2)


def check(shape: tuple[int, int, int], border: str, implementation: str, device: str) -> None:
    pixels, table = made(*shape)
    expected = definition(pixels, table, border)
    # The second is a set whose rows are not next to each other in memory.
    for images in (pixels, pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        for dtype, tolerance in TOLERANCE.items():
            result = augment(
                images.to(device), table.to(device), dtype=dtype, border=border, implementation=implementation
            )
            assert result.dtype == dtype
            assert result.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, int, int], border: str) -> None:
    check(shape, border, "torch", "cpu")


@runs_kernels
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_definition(shape: tuple[int, int, int], border: str) -> None:
    check(shape, border, "triton", DEVICE)


PIXELS, TABLE = made(5, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": PIXELS[:, :, :5]}, r"\[N, S, S, 3\]"),
        ({"images": PIXELS.float()}, "uint8"),
        ({"table": TABLE.long()}, "int32"),
        ({"table": TABLE[:, :7]}, r"\[B, 8\]"),
        ({"table": TABLE.to("meta")}, "table is on meta"),
        ({"std": (0.2, 0.0, 0.2)}, "above zero"),
        ({"dtype": torch.float64}, "float32"),
        ({"border": "white"}, "black, reflect"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    words = {"images": PIXELS, "table": TABLE, **arguments}
    with pytest.raises(ValueError, match=message):
        augment(**words)  # type: ignore[arg-type]


def test_the_table_has_a_column_for_each_name() -> None:
    assert len(COLUMNS) == TABLE.shape[1]
