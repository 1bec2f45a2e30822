"""Windows out of images of many sizes: the weighted sums that the filter says, close to torchvision's bytes."""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, ROUNDING, loops_end, runs_kernels
from torchvision.transforms.v2 import functional as transform

from kernels import ahead
from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from kernels.resized_crop import COLUMNS, resized_crop, taps
from kernels.runtime import DTYPES, HAS_TRITON, INTERPRETED, noting

SHAPES = ((20, 27), (23, 15), (5, 8), (1, 1))
# Image, top, left, height, width, mirror. Enlarged, made smaller, both at once, whole images, single pixels and lines.
WINDOWS = (
    (0, 3, 4, 15, 20, 0),
    (0, 0, 0, 20, 27, 1),
    (1, 10, 2, 5, 12, 1),
    (2, 1, 2, 3, 3, 0),
    (3, 0, 0, 1, 1, 1),
    (1, 0, 0, 23, 15, 0),
    (0, 19, 0, 1, 27, 1),
)
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: ROUNDING * 2.0**-6 + 1e-4,
    torch.float16: ROUNDING * 2.0**-9 + 1e-4,
}


def made() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images [height, width, 3], and the same in one buffer."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]
    return images, torch.cat([image.flatten() for image in images])


IMAGES, PIXELS = made()


def table(size: int) -> torch.Tensor:
    starts = np.cumsum([0] + [image.numel() for image in IMAGES])
    rows = [
        [starts[i] + (top * SHAPES[i][1] + left) * 3, SHAPES[i][1] * 3, height, width, size, size, 0, 0, mirror]
        for i, top, left, height, width, mirror in WINDOWS
    ]
    return torch.tensor(np.array(rows), dtype=torch.int64)


def most(rows: torch.Tensor) -> int:
    return taps(float((rows[:, 2:4] / rows[:, 4:6]).max()))


def weights(length: int, size: int) -> torch.Tensor:
    """Of every pixel of a line in every one of the resized line, [size, length], in double precision."""
    step = length / size
    result = torch.zeros(size, length, dtype=torch.float64)
    for number in range(size):
        for pixel in range(length):
            result[number, pixel] = max(0.0, 1 - abs(pixel + 0.5 - (number + 0.5) * step) / max(step, 1.0))
    return result / result.sum(1, keepdim=True)


def definition(size: int) -> torch.Tensor:
    """Levels of 0..255 as float64 [B, 3, size, size]."""
    result = []
    for i, top, left, height, width, mirror in WINDOWS:
        window = IMAGES[i][top : top + height, left : left + width].double()
        resized = torch.einsum("yh,hwc,xw->cyx", weights(height, size), window, weights(width, size))
        result.append(resized.flip(-1) if mirror else resized)
    return torch.stack(result)


def torchvisions(size: int) -> torch.Tensor:
    """uint8 [B, 3, size, size]."""
    result = []
    for i, top, left, height, width, mirror in WINDOWS:
        planes = IMAGES[i].permute(2, 0, 1)
        resized = transform.resized_crop(planes, top, left, height, width, [size, size], antialias=True)
        result.append(resized.flip(-1) if mirror else resized)
    return torch.stack(result)


def check(size: int, dtype: torch.dtype, implementation: str, device: str) -> None:
    rows, levels = table(size), definition(size)
    result = resized_crop(
        PIXELS.to(device), rows.to(device), size, most(rows), dtype=dtype, implementation=implementation
    ).cpu()
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    if dtype != torch.uint8:
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        torch.testing.assert_close(result.double(), (levels / 255 - mean) / std, rtol=0, atol=TOLERANCE[dtype])
        return
    assert (result.double() - levels).abs().max() < 0.501
    # torchvision rounds twice, and its weights to 8 bits or so; pixels of noise show the most of it.
    off = (result.int() - torchvisions(size).int()).abs()
    assert off.max() <= 1
    assert off.double().mean() < 0.2


# Sizes that are no multiple of a tile's rows; the larger one has more numbers in a row than a tile.
CASES = [(9, torch.uint8), (9, torch.float32), (9, torch.float16), (45, torch.bfloat16)]


@pytest.mark.parametrize(("size", "dtype"), [*CASES, (45, torch.uint8)], ids=str)
def test_twin_equals_the_definition(size: int, dtype: torch.dtype) -> None:
    check(size, dtype, "torch", "cpu")


@runs_kernels
@loops_end
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_kernel_equals_the_definition(size: int, dtype: torch.dtype) -> None:
    check(size, dtype, "triton", DEVICE)


def check_parts(implementation: str, device: str) -> None:
    """A part of the resized window is what is cut out of the whole of it."""
    rows = table(12)
    rows[:, 4], rows[:, 5], rows[:, 6], rows[:, 7], rows[:, 8] = 25, 31, 4, 9, 0
    pixels = PIXELS.to(device)
    part = resized_crop(pixels, rows.to(device), 12, most(rows), dtype=torch.uint8, implementation=implementation)
    for number, (i, top, left, height, width, _) in enumerate(WINDOWS):
        planes = IMAGES[i].permute(2, 0, 1)[:, top : top + height, left : left + width]
        expected = transform.resize(planes, [25, 31], antialias=True)[:, 4:16, 9:21]
        assert (part[number].cpu().int() - expected.int()).abs().max() <= 1


def test_twin_cuts_a_part_of_a_resized_window() -> None:
    check_parts("torch", "cpu")


@runs_kernels
@loops_end
def test_kernel_cuts_a_part_of_a_resized_window() -> None:
    check_parts("triton", DEVICE)


@runs_kernels
def test_an_empty_batch_is_empty() -> None:
    result = resized_crop(PIXELS.to(DEVICE), table(8)[:0].to(DEVICE), 8, 3, implementation="triton")
    assert result.shape == (0, 3, 8, 8)


@runs_kernels
@loops_end
def test_an_image_as_it_is_stays_as_it_is() -> None:
    rows = torch.tensor([[0, 27 * 3, 20, 27, 20, 27, 2, 11, 0]])
    image = resized_crop(PIXELS.to(DEVICE), rows.to(DEVICE), 14, 3, dtype=torch.uint8, implementation="triton").cpu()
    assert torch.equal(image[0].permute(1, 2, 0), IMAGES[0][2:16, 11:25])


@pytest.mark.skipif(INTERPRETED or not HAS_TRITON, reason="in a process that interprets, or without Triton")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("architecture", ahead.GPUS)
def test_compiled_for_a_gpu_it_spills_no_register(architecture: int, dtype: torch.dtype) -> None:
    with noting() as launches:
        resized_crop(PIXELS.to("meta"), table(8).to("meta"), 8, 3, dtype=dtype, implementation="triton")
    [launch] = launches
    used, _, _ = ahead.read(ahead.binary(launch, architecture))
    assert used["REG"] > 0
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixels": PIXELS.float()}, "uint8"),
        ({"pixels": PIXELS[::2]}, "without gaps"),
        ({"pixels": IMAGES[0]}, r"\[bytes\]"),
        ({"table": table(8).int()}, "int64"),
        ({"table": table(8)[:, :8]}, r"\[B, 9\]"),
        ({"table": table(8).to("meta")}, "table is on meta"),
        ({"size": 0}, "1 or more"),
        ({"std": (0.2, 0.0, 0.2)}, "above zero"),
        ({"dtype": torch.float64}, "float32"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    words: dict[str, object] = {"pixels": PIXELS, "table": table(8), "size": 8, "most": 40, **arguments}
    with pytest.raises(ValueError, match=message):
        resized_crop(**words)  # type: ignore[arg-type]


def test_the_table_has_a_column_for_each_name() -> None:
    assert len(COLUMNS) == table(8).shape[1]


def test_no_more_pixels_have_a_weight_than_is_said() -> None:
    for length, size in [(90, 19), (5, 19), (19, 19), (20, 19), (37, 36)]:
        assert int((weights(length, size) > 0).sum(1).max()) <= taps(length / size)
