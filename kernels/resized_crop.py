"""Windows out of images of many sizes, resized, mirrored and normalised in one pass over memory.

For a data set that lies on the device as bytes, each image in its own height and width (loaders.stored). Done one by
one, crop, resize, mirror, normalisation and change of memory order are five passes, and images of different sizes need
a launch each; here each output number is a weighted sum of bytes that lie close together, and is written once.

The filter is torchvision's antialiased bilinear one: a triangle that is as wide as two pixels of the coarser of both
grids, and a window is an image of its own, so that pixels beside it have no weight. torchvision rounds to bytes between
rows and columns and at the end. Here nothing is rounded before the result is, which is therefore up to about one level
of 255 away from torchvision's.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from kernels.runtime import (
    HAS_TRITON,
    Operation,
    check_output_dtype,
    choose_implementation,
    empty_channels_last,
    launch,
    scale_and_bias,
)

COLUMNS = ("start", "stride", "height", "width", "tall", "wide", "row", "column", "mirror")
"""Of the table that describes a batch, a row for each of its images.

    start           number of the byte with the red of the window's first pixel
    stride          bytes from a row of the image to the next
    height, width   of the window
    tall, wide      pixels that it is resized to, of which the output may be a part
    row, column     of the resized window's pixel that becomes the first of the output
    mirror          1: the output's columns are in reverse order; otherwise 0
"""

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _weight(place, centre, reach, length):  # type: ignore[no-untyped-def]
        weight = tl.maximum(1 - tl.abs(place + 0.5 - centre) / reach, 0.0)
        return tl.where((place >= 0) & (place < length), weight, 0.0)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _resized_crop_kernel(  # type: ignore[no-untyped-def]
        pixels_ptr,
        table_ptr,
        out_ptr,
        size,
        scale_r,
        scale_g,
        scale_b,
        bias_r,
        bias_g,
        bias_b,
        BYTES: tl.constexpr,
        ROWS: tl.constexpr,
        LANES: tl.constexpr,
    ):
        # A lane is one number of an output row: neighbours write next to each other, and read next to each other but
        # for the scale. A weight belongs to a whole row or column of the tile.
        image = tl.program_id(0).to(tl.int64)
        y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        lane = tl.program_id(2) * LANES + tl.arange(0, LANES)
        x = lane // 3
        channel = lane - x * 3

        entry = table_ptr + image * 9
        window_ptr = pixels_ptr + tl.load(entry)
        # An image has less than 2**31 bytes; the set has more.
        stride = tl.load(entry + 1).to(tl.int32)
        height, width = tl.load(entry + 2).to(tl.int32), tl.load(entry + 3).to(tl.int32)
        down = height.to(tl.float32) / tl.load(entry + 4).to(tl.float32)
        across = width.to(tl.float32) / tl.load(entry + 5).to(tl.float32)
        row, column = tl.load(entry + 6).to(tl.int32), tl.load(entry + 7).to(tl.int32)
        x = tl.where(tl.load(entry + 8) != 0, size - 1 - x, x)

        reach_y, reach_x = tl.maximum(down, 1.0), tl.maximum(across, 1.0)
        centre_y, centre_x = (y + row + 0.5) * down, (x + column + 0.5) * across
        first_y = tl.floor(centre_y - reach_y + 0.5).to(tl.int32)
        first_x = tl.floor(centre_x - reach_x + 0.5).to(tl.int32)
        # So many pixels at most lie less than the reach away from a centre: two where nothing is made smaller.
        taps_y, taps_x = tl.ceil(2 * reach_y).to(tl.int32), tl.ceil(2 * reach_x).to(tl.int32)

        sum_y = tl.zeros((ROWS,), tl.float32)
        sum_x = tl.zeros((LANES,), tl.float32)
        for tap in range(taps_x):
            sum_x += _weight(first_x + tap, centre_x, reach_x, width)
        value = tl.zeros((ROWS, LANES), tl.float32)
        inside = (y < size)[:, None] & (lane < size * 3)[None, :]
        for tap_y in range(taps_y):
            place_y = first_y + tap_y
            weight_y = _weight(place_y, centre_y, reach_y, height)
            line_ptr = window_ptr + (place_y * stride)[:, None]
            line = tl.zeros((ROWS, LANES), tl.float32)
            for tap_x in range(taps_x):
                place_x = first_x + tap_x
                weight_x = _weight(place_x, centre_x, reach_x, width)
                counts = inside & (weight_y > 0)[:, None] & (weight_x > 0)[None, :]
                byte = tl.load(line_ptr + (place_x * 3 + channel)[None, :], mask=counts, other=0)
                line += byte.to(tl.float32) * weight_x[None, :]
            value += line * weight_y[:, None]
            sum_y += weight_y
        # Rows and lanes beyond the output may have no weight at all.
        value = value / tl.where(inside, sum_y[:, None] * sum_x[None, :], 1.0)

        if BYTES:
            value = tl.minimum(tl.floor(value + 0.5), 255.0)
        else:
            scale = tl.where(channel == 0, scale_r, tl.where(channel == 1, scale_g, scale_b))
            bias = tl.where(channel == 0, bias_r, tl.where(channel == 1, bias_g, bias_b))
            value = value * scale[None, :] + bias[None, :]
        number = (image * size + y[:, None]) * size * 3 + lane[None, :]
        tl.store(out_ptr + number, value.to(out_ptr.dtype.element_ty), mask=inside)


def taps(scale: float) -> int:
    """How many pixels of a line have a weight in one of the output at most.

    Args:
        scale: pixels of the window over pixels that it is resized to.
    """
    return math.ceil(2 * max(scale, 1.0))


def resized_crop(
    pixels: torch.Tensor,
    table: torch.Tensor,
    size: int,
    most: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    implementation: str | None = None,
) -> torch.Tensor:
    """A batch of windows, resized with an antialiased bilinear filter and mirrored as a table says, and normalised.

    Args:
        pixels: the set, uint8 [bytes]: images one after the other, each [height, width, 3].
        table: int64 [B, 9], a row for each image of the batch; see COLUMNS.
        size: height and width of the output, pixels.
        most: `taps` of the largest scale in the table, for the twin; the kernel finds each image's own.
        mean, std: red, green and blue in units of 0..1, std above zero.
        dtype: of the result: float32, bfloat16 or float16, computed in float32 and rounded once; or uint8, which is not
            normalised.
        implementation: "torch", "compiled" or "triton"; None takes the default one of the device.

    Returns:
        [B, 3, size, size] with channels last in memory, on the device of `pixels`.

    Raises:
        ValueError: another shape, dtype, implementation or device than these. The table's values are not checked,
            because that would wait for the device: a window beyond the set reads beyond it.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 1 or not pixels.is_contiguous():
        raise ValueError(f"pixels must be uint8 [bytes] without gaps, not {pixels.dtype} {list(pixels.shape)}")
    if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"table must be int64 [B, {len(COLUMNS)}], not {table.dtype} {list(table.shape)}")
    if table.device != pixels.device:
        raise ValueError(f"table is on {table.device}, pixels are on {pixels.device}")
    if size < 1 or most < 1:
        raise ValueError(f"size and most must be 1 or more, not {size} and {most}")
    scale_and_bias(mean, std)
    if dtype != torch.uint8:
        check_output_dtype(dtype)
    chosen = choose_implementation(implementation, pixels.device)
    return RESIZED_CROP(chosen, pixels, table, size, most, mean, std, dtype)


def _weights(
    places: torch.Tensor, length: torch.Tensor, resized: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels of a line [B, size, most] make those at `places` [B, size] of the resized one, and their weights."""
    step = (length / resized).view(-1, 1)
    reach = step.clamp(min=1)
    centre = (places + 0.5) * step
    first = torch.floor(centre - reach + 0.5).to(torch.int64)
    numbers = first.unsqueeze(-1) + torch.arange(most, device=places.device)
    weights = (1 - (numbers + 0.5 - centre.unsqueeze(-1)).abs() / reach.unsqueeze(-1)).clamp(min=0)
    last = length.view(-1, 1, 1) - 1
    weights = weights * ((numbers >= 0) & (numbers <= last))
    return numbers.clamp(min=0).minimum(last), weights / weights.sum(-1, keepdim=True)


def _resized_crop_torch(
    pixels: torch.Tensor,
    table: torch.Tensor,
    size: int,
    most: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The twin: the same numbers from PyTorch's own operators; arguments as for `resized_crop`."""
    start, stride, height, width, tall, wide, row, column, mirror = table.unbind(1)
    steps = torch.arange(size, device=pixels.device).view(1, -1)
    reversed_steps = torch.where(mirror.view(-1, 1) != 0, size - 1 - steps, steps)
    rows, down = _weights(steps + row.view(-1, 1), height, tall, most)
    columns, across = _weights(reversed_steps + column.view(-1, 1), width, wide, most)
    lines = start.view(-1, 1, 1) + rows * stride.view(-1, 1, 1)
    numbers = (columns * 3).unsqueeze(-1) + torch.arange(3, device=pixels.device)
    values = torch.zeros((len(table), size, size, 3), device=pixels.device)
    for tap_y in range(most):
        line = torch.zeros_like(values)
        for tap_x in range(most):
            places = lines[:, :, tap_y].view(-1, size, 1, 1) + numbers[:, None, :, tap_x]
            line = line + pixels[places].to(torch.float32) * across[:, None, :, tap_x, None]
        values = values + line * down[:, :, tap_y, None, None]
    if dtype == torch.uint8:
        return (values + 0.5).floor().clamp(max=255).to(dtype).permute(0, 3, 1, 2)
    scale, bias = (torch.tensor(numbers, device=pixels.device) for numbers in scale_and_bias(mean, std))
    return (values * scale + bias).to(dtype).permute(0, 3, 1, 2)


def _resized_crop_triton(
    pixels: torch.Tensor,
    table: torch.Tensor,
    size: int,
    most: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    table = table.contiguous()
    out = empty_channels_last((len(table), 3, size, size), dtype, pixels.device)
    if out.numel():
        rows, lanes = TILE
        scale, bias = scale_and_bias(mean, std)
        grid = (len(table), triton.cdiv(size, rows), triton.cdiv(size * 3, lanes))
        constants = {"BYTES": dtype == torch.uint8, "ROWS": rows, "LANES": lanes}
        launch(_resized_crop_kernel, grid, (pixels, table, out, size, *scale, *bias), constants)
    return out


TILE = (4, 128)
"""Rows, and numbers of a row, that one program writes: larger tiles need so many registers that some are spilled."""

RESIZED_CROP = Operation("resized_crop", _resized_crop_torch, _resized_crop_triton)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """What is timed: windows of 20 to 100 % of each side, out of a set of 4 batches of images in the aspect 4 : 3."""
    tall, wide = round(size * 8 / 7), round(size * 32 / 21)
    height = (tall * (0.2 + 0.8 * torch.rand(batch))).to(torch.int64)
    width = (wide * (0.2 + 0.8 * torch.rand(batch))).to(torch.int64)
    top, left = (torch.rand(batch) * (tall - height)).long(), (torch.rand(batch) * (wide - width)).long()
    index = torch.randint(0, 4 * batch, (batch,))
    start = ((index * tall + top) * wide + left) * 3
    sizes, none = torch.full((batch,), size), torch.zeros(batch, dtype=torch.int64)
    columns = [start, none + wide * 3, height, width, sizes, sizes, none, none, torch.randint(0, 2, (batch,))]
    table = torch.stack(columns, dim=1).to(device)
    pixels = torch.randint(0, 256, (4 * batch * tall * wide * 3,), dtype=torch.uint8, device=device)
    return partial(
        resized_crop, pixels, table, size, taps(max(1.0, wide / size)), dtype=dtype, implementation=implementation
    )
