"""A batch taken from a resident data set, augmented and normalised in one pass over memory.

For small images (CIFAR), a window with a border, a mirror, a painted rectangle and the normalisation, done one by one,
read and write the batch five times in a dozen launches that take longer than their work. All of them only say where an
output pixel comes from and what it is multiplied by, so each pixel can be fetched from the whole set once and written
as the network wants it.
"""

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

BORDERS = ("black", "reflect")

COLUMNS = ("index", "row", "sign", "column", "top", "left", "height", "width")
"""Of the table that describes a batch, a row for each of its images.

    index           which image of the set
    row             output row y shows the image's row y + row
    sign, column    output column x shows the image's column x * sign + column; sign is 1 or -1
    top, left, height, width    the rectangle of the output that is painted; a height of 0 paints none
"""

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _augment_kernel(  # type: ignore[no-untyped-def]
        images_ptr,
        table_ptr,
        out_ptr,
        side,
        scale_r,
        scale_g,
        scale_b,
        bias_r,
        bias_g,
        bias_b,
        paint_r,
        paint_g,
        paint_b,
        REFLECT: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # Neighbouring lanes write neighbouring numbers and, except at edges, read neighbouring bytes.
        image = tl.program_id(0).to(tl.int64)
        count = side * side * 3
        lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = lane < count
        pixel = lane // 3
        channel = lane - pixel * 3
        y = pixel // side
        x = pixel - y * side

        entry = table_ptr + image * 8
        index = tl.load(entry).to(tl.int64)
        row = y + tl.load(entry + 1)
        column = x * tl.load(entry + 2) + tl.load(entry + 3)
        if REFLECT:
            last = side - 1
            row = last - tl.abs(last - tl.abs(row))
            column = last - tl.abs(last - tl.abs(column))
            visible = inside
        else:
            visible = inside & (row >= 0) & (row < side) & (column >= 0) & (column < side)
        place = index * count + (row * side + column) * 3 + channel
        value = tl.load(images_ptr + place, mask=visible, other=0).to(tl.float32)

        top, left = tl.load(entry + 4), tl.load(entry + 5)
        painted = (y >= top) & (y < top + tl.load(entry + 6)) & (x >= left) & (x < left + tl.load(entry + 7))
        paint = tl.where(channel == 0, paint_r, tl.where(channel == 1, paint_g, paint_b))
        value = tl.where(painted, paint, value)
        scale = tl.where(channel == 0, scale_r, tl.where(channel == 1, scale_g, scale_b))
        bias = tl.where(channel == 0, bias_r, tl.where(channel == 1, bias_g, bias_b))
        result = value * scale + bias
        tl.store(out_ptr + image * count + lane, result.to(out_ptr.dtype.element_ty), mask=inside)


def augment(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    border: str = "black",
    implementation: str | None = None,
) -> torch.Tensor:
    """A normalised batch of windows, mirrored and painted as a table says.

    Args:
        images: the set, uint8 [N, S, S, 3].
        table: int32 [B, 8], a row for each image of the batch; see COLUMNS. All random numbers are drawn when it is
            made: the same table gives the same batch.
        mean, std: red, green and blue in units of 0..1, std above zero. The painted rectangle has the mean's colour.
        dtype: of the result: float32, bfloat16 or float16. Computed in float32 and rounded once.
        border: what lies outside an image: "black" or "reflect", at the outermost pixel and up to S - 1 beyond it.
        implementation: "torch", "compiled" or "triton"; None takes the default one of the device.

    Returns:
        [B, 3, S, S] with channels last in memory, on the device of `images`.

    Raises:
        ValueError: another shape, dtype, border, implementation or device than these. The table's values are not
            checked, because that would wait for the device: an index beyond the set reads beyond it.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be uint8 [N, S, S, 3], not {images.dtype} {list(images.shape)}")
    if table.dtype != torch.int32 or table.dim() != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"table must be int32 [B, {len(COLUMNS)}], not {table.dtype} {list(table.shape)}")
    if table.device != images.device:
        raise ValueError(f"table is on {table.device}, images are on {images.device}")
    scale_and_bias(mean, std)
    check_output_dtype(dtype)
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, not {border!r}")
    return AUGMENT(choose_implementation(implementation, images.device), images, table, mean, std, dtype, border)


def _colour(mean: Sequence[float]) -> list[float]:
    """The mean as the byte it is painted with elsewhere, so that both ways of painting give the same bits."""
    return [float(round(255 * level)) for level in mean]


def reflect(places: torch.Tensor, side: int) -> torch.Tensor:
    """Rows or columns up to side - 1 beyond an edge, reflected at the outermost pixel."""
    return (side - 1) - ((side - 1) - places.abs()).abs()


def clamp(rows: torch.Tensor, columns: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows and columns moved to the nearest pixel of the image, and a mask of those that were inside it."""
    nearest_rows, nearest_columns = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
    return nearest_rows, nearest_columns, (nearest_rows == rows) & (nearest_columns == columns)


def take_pixels(
    images: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, inside: torch.Tensor | None
) -> torch.Tensor:
    """Pixels of images [N, S, S, 3], fetched into [B, S, S, 3]; black where `inside` is False.

    Args:
        index: which image, int64 [B, 1, 1].
        rows, columns, inside: of every pixel, [B or 1, S or 1, S or 1]; None means that all are inside.
    """
    side = images.shape[1]
    # Whole pixels by their number: cheaper on a CPU than indexing three dimensions at once.
    numbers = (index * side + rows) * side + columns
    pixels = images.reshape(-1, 3).index_select(0, numbers.flatten()).view(-1, side, side, 3)
    return pixels if inside is None else pixels.mul_(inside.unsqueeze(-1))


def _augment_torch(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    border: str,
) -> torch.Tensor:
    """The twin: the same numbers from PyTorch's own operators; arguments as for `augment`."""
    side = images.shape[1]
    index, row, sign, column, top, left, height, width = table.view(-1, 8, 1, 1).unbind(1)
    steps = torch.arange(side, device=images.device, dtype=torch.int32)
    y, x = steps.view(1, -1, 1), steps.view(1, 1, -1)
    rows, columns = y + row, x * sign + column
    inside = None
    if border == "reflect":
        rows, columns = reflect(rows, side), reflect(columns, side)
    else:
        rows, columns, inside = clamp(rows, columns, side)
    pixels = take_pixels(images, index.to(torch.int64), rows, columns, inside)
    painted = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    scale, bias = (torch.tensor(values, device=images.device) for values in scale_and_bias(mean, std))
    colour = torch.tensor(_colour(mean), device=images.device)
    values = torch.where(painted.unsqueeze(-1), colour, pixels.to(torch.float32))
    return values.mul_(scale).add_(bias).to(dtype).permute(0, 3, 1, 2)


def _augment_triton(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    border: str,
) -> torch.Tensor:
    images, table = images.contiguous(), table.contiguous()
    side, batch = images.shape[1], len(table)
    out = empty_channels_last((batch, 3, side, side), dtype, images.device)
    if out.numel():
        block = 1024
        scale, bias = scale_and_bias(mean, std)
        grid = (batch, triton.cdiv(side * side * 3, block))
        arguments = (images, table, out, side, *scale, *bias, *_colour(mean))
        launch(_augment_kernel, grid, arguments, {"REFLECT": border == "reflect", "BLOCK": block})
    return out


AUGMENT = Operation("augment", _augment_torch, _augment_triton)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """What is timed: a batch of a set 4 times as large, moved by up to 4 pixels, half mirrored, a square painted."""
    images = torch.randint(0, 256, (4 * batch, size, size, 3), dtype=torch.uint8)
    mirror = torch.randint(0, 2, (batch,))
    shift = torch.randint(-4, 5, (2, batch))
    corner = torch.randint(0, size, (2, batch))
    square = torch.full((batch,), size // 4)
    index = torch.randint(0, 4 * batch, (batch,))
    columns = [index, shift[0], 1 - 2 * mirror, shift[1] + (size - 1) * mirror, *corner, square, square]
    table = torch.stack(columns, dim=1).to(device, torch.int32)
    return partial(augment, images.to(device), table, dtype=dtype, implementation=implementation)
