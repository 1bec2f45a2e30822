"""One pass over a resident set: the same pixels as a loop takes, in the kernel and in its twin."""

import numpy as np
import pytest
import torch
from interpreted import interpreted

from kernels import catalogue
from kernels.augment import BORDERS, COLUMNS, augment
from kernels.runtime import HAS_TRITON, IMAGENET_MEAN, IMAGENET_STD

# Images in the set, batch, side: one pixel, a prime side, more than one block of the kernel, an empty batch.
SHAPES = [(1, 1, 1), (5, 3, 7), (4, 6, 32), (2, 0, 8), (2, 2, 41)]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7 + 1e-5, torch.float16: 2.0**-10 + 1e-6}


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


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, int, int], border: str) -> None:
    pixels, table = made(*shape)
    for dtype, tolerance in TOLERANCE.items():
        result = augment(pixels, table, dtype=dtype, border=border)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result.double(), definition(pixels, table, border), rtol=0, atol=tolerance)


INTERPRETED = """
import json
import torch
from kernels.augment import BORDERS, DTYPES, augment

worst = {}
for pixels, table in json.loads(input()):
    side = len(pixels[0]) if pixels else 0
    pixels = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, side, side, 3)
    table = torch.tensor(table, dtype=torch.int32).reshape(-1, 8)
    # Also a set whose rows are not next to each other in memory.
    for view in (pixels, pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        for border in BORDERS:
            for dtype in DTYPES:
                kernel = augment(view, table, dtype=dtype, border=border, implementation="triton")
                twin = augment(view, table, dtype=dtype, border=border, implementation="torch")
                assert kernel.dtype == dtype and kernel.shape == twin.shape
                assert kernel.is_contiguous(memory_format=torch.channels_last)
                # In units in the last place of 2.64: a multiplication and an addition may be rounded once or twice.
                error = (kernel.double() - twin.double()).abs().max().item() if kernel.numel() else 0.0
                worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error / (2 * torch.finfo(dtype).eps))
print(json.dumps(worst))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernel_equals_its_twin_under_the_interpreter() -> None:
    given = [[tensor.tolist() for tensor in made(*shape)] for shape in SHAPES]
    worst = interpreted(INTERPRETED, given)
    assert set(worst) == {"torch.float32", "torch.bfloat16", "torch.float16"}
    assert max(worst.values()) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_definition_on_the_device(shape: tuple[int, int, int], border: str) -> None:
    pixels, table = made(*shape)
    for dtype, tolerance in TOLERANCE.items():
        result = augment(pixels.cuda(), table.cuda(), dtype=dtype, border=border, implementation="triton")
        expected = definition(pixels, table, border)
        torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=tolerance)


def test_operator_is_well_formed() -> None:
    arguments = (*made(5, 3, 7), list(IMAGENET_MEAN), list(IMAGENET_STD), torch.bfloat16, "reflect", "torch")
    torch.library.opcheck(torch.ops.pixbench.augment.default, arguments)


def test_compiled_graph_stays_whole() -> None:
    pixels, table = made(5, 3, 7)
    compiled = torch.compile(lambda a, b: augment(a, b) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pixels, table), augment(pixels, table) + 1)


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
        ({"implementation": "cuda"}, "torch, compiled, triton"),
        ({"implementation": "triton"}, "CUDA device|Triton"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    words = {"images": PIXELS, "table": TABLE, **arguments}
    with pytest.raises(ValueError, match=message):
        augment(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_example_makes_a_batch(dtype: str) -> None:
    assert len(COLUMNS) == TABLE.shape[1]
    result = catalogue.example("augment", "torch", 3, 8, dtype, "cpu")()
    assert isinstance(result, torch.Tensor)
    assert (result.shape, str(result.dtype)) == ((3, 3, 8, 8), f"torch.{dtype}")
