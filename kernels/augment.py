"""A batch out of a resident data set, augmented and normalised, in one pass over memory.

Windows with a border, mirrors, one painted rectangle and the normalisation of small images (CIFAR) are, done one by
one, five reads and writes of the batch and a dozen launches that take longer than they work. All of them only say
from where an output pixel comes and what it is multiplied by, so a pixel can be fetched from the whole set, once, and
written as the network wants it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from kernels.runtime import (
    HAS_TRITON,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Implementations,
    check_implementation,
    chosen,
    compiled,
    dtype_of,
    on_device_of,
    scale_and_bias,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BORDERS = ("black", "reflect")

COLUMNS = ("index", "row", "sign", "column", "top", "left", "height", "width")
"""Of the table: what is done to an image of the batch.

    index           which image of the set
    row             added to an output row: the row of the image that it comes from
    sign, column    an output column times the first plus the second: the column that it comes from; sign is 1 or -1
    top, left, height, width    of the rectangle of the output that is painted; a height of 0 paints none
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
        REFLECT: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
    ):
        # Neighbouring lanes write neighbouring numbers and read, but for edges, neighbouring bytes.
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
            kept = inside
        else:
            kept = inside & (row >= 0) & (row < side) & (column >= 0) & (column < side)
        place = index * count + (row * side + column) * 3 + channel
        value = tl.load(images_ptr + place, mask=kept, other=0).to(tl.float32)

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
        table: int32 [B, 8], a row for each image of the batch; see COLUMNS. Whoever made it drew its
            random numbers: the same table gives the same batch.
        mean, std: red, green and blue in units of 0..1, std above zero. The painted rectangle has the mean's colour.
        dtype: of the result: float32, bfloat16 or float16. Computed in float32 and rounded once.
        border: what lies outside an image: "black" or "reflect", at the outermost pixel and up to S - 1 beyond it.
        implementation: "torch", "compiled" (by torch) or "triton"; None takes `chosen(images.device)`.

    Returns:
        [B, 3, S, S] with channels last in memory, on the device of `images`.

    Raises:
        ValueError: another shape, dtype, border, implementation or device than these. What stands in the table is not
            looked at, which would wait for the device: an index beyond the set reads beyond it.
    """
    implementation = chosen(images.device) if implementation is None else implementation
    _check(images, table, mean, std, dtype, border, implementation)
    if torch.compiler.is_compiling():
        result: torch.Tensor = torch.ops.pixbench.augment(
            images, table, list(mean), list(std), dtype, border, implementation
        )
        return result
    return IMPLEMENTED[implementation](images, table, mean, std, dtype, border)


def _check(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    border: str,
    implementation: str,
) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be uint8 [N, S, S, 3], not {images.dtype} {list(images.shape)}")
    if table.dtype != torch.int32 or table.dim() != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"table must be int32 [B, {len(COLUMNS)}], not {table.dtype} {list(table.shape)}")
    if table.device != images.device:
        raise ValueError(f"table is on {table.device}, images are on {images.device}")
    scale_and_bias(mean, std)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype}")
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, not {border!r}")
    check_implementation(implementation, images.device)


def _colour(mean: Sequence[float]) -> list[float]:
    """The mean as the byte it would be painted with, so that both ways of painting give the same bits."""
    return [float(round(255 * level)) for level in mean]


def augment_torch(
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
    last = side - 1
    if border == "reflect":
        rows, columns = (last - (last - places.abs()).abs() for places in (rows, columns))
        kept = None
    else:
        low_rows, low_columns = rows.clamp(0, last), columns.clamp(0, last)
        kept = (rows == low_rows) & (columns == low_columns)
        rows, columns = low_rows, low_columns
    # Whole pixels by their number: on a CPU five times as fast as indexing three dimensions at once.
    numbers = (index.to(torch.int64) * side + rows) * side + columns
    taken = images.reshape(-1, 3).index_select(0, numbers.flatten()).view(-1, side, side, 3)
    if kept is not None:
        taken.mul_(kept.unsqueeze(-1))
    painted = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    scale, bias = (torch.tensor(values, device=images.device) for values in scale_and_bias(mean, std))
    colour = torch.tensor(_colour(mean), device=images.device)
    values = torch.where(painted.unsqueeze(-1), colour, taken.to(torch.float32))
    return values.mul_(scale).add_(bias).to(dtype).permute(0, 3, 1, 2)


def augment_triton(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    border: str,
) -> torch.Tensor:
    """The kernel; arguments as for `augment`."""
    images, table = images.contiguous(), table.contiguous()
    side, batch = images.shape[1], len(table)
    out = torch.empty((batch, 3, side, side), dtype=dtype, device=images.device, memory_format=torch.channels_last)
    if out.numel():
        block = 1024
        scale, bias = scale_and_bias(mean, std)
        with on_device_of(images):
            _augment_kernel[(batch, triton.cdiv(side * side * 3, block))](
                images, table, out, side, *scale, *bias, *_colour(mean), REFLECT=border == "reflect", BLOCK=block
            )
    return out


def example(
    implementation: str, batch: int, size: int, dtype: str, device: torch.device | str
) -> Callable[[], torch.Tensor]:
    """What is timed: a batch out of 4 times as many images: border 4, half of them mirrored, a square cut out.

    Raises:
        ValueError: a dtype that is none of DTYPES, or an implementation that cannot run on `device`.
    """
    made = dtype_of(dtype, DTYPES, "augment")
    check_implementation(implementation, torch.device(device))
    images = torch.randint(0, 256, (4 * batch, size, size, 3), dtype=torch.uint8)
    mirror = torch.randint(0, 2, (batch,))
    shift = torch.randint(-4, 5, (2, batch))
    corner = torch.randint(0, size, (2, batch))
    square = torch.full((batch,), size // 4)
    table = torch.stack(
        [
            torch.randint(0, 4 * batch, (batch,)),
            shift[0],
            1 - 2 * mirror,
            shift[1] + (size - 1) * mirror,
            *corner,
            square,
            square,
        ],
        dim=1,
    )
    return partial(augment, images.to(device), table.to(device, torch.int32), dtype=made, implementation=implementation)


# Before the operator's registration, which has to find its implementations.
IMPLEMENTED: Implementations = {
    "torch": augment_torch,
    "compiled": compiled(augment_torch),
    "triton": augment_triton,
}


@torch.library.custom_op("pixbench::augment", mutates_args=())
def _operator(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    border: str,
    implementation: str,
) -> torch.Tensor:
    return IMPLEMENTED[implementation](images, table, mean, std, dtype, border)


@_operator.register_fake
def _shape(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    border: str,
    implementation: str,
) -> torch.Tensor:
    side = images.shape[1]
    return torch.empty(
        (table.shape[0], 3, side, side), dtype=dtype, device=images.device, memory_format=torch.channels_last
    )
