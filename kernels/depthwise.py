"""A depthwise convolution, its bias, activation and squeeze-and-excitation's sums in one pass.

This is the inner part of EfficientNet's bottleneck (Tan and Le 2019) with batch norm folded into the weights. Written
out it is a convolution, an activation and a mean, each of which reads or writes the widest tensor of the block and
computes next to nothing. Here that tensor is read once and written once, and the sums are made on the way.

Channels are last in memory, so neighbouring lanes hold neighbouring channels, four each. A lane makes a tile of a few
rows and columns: a pixel that it has loaded and converted serves every output of the tile whose window holds it, and a
weight serves all columns. All sizes are constants of the compiled kernel, so that an address is a base and a fixed
distance, and what lies beyond an edge is known where it cannot happen.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from kernels.runtime import (
    HAS_TRITON,
    Operation,
    channels_last,
    check_feature_maps,
    choose_implementation,
    empty_channels_last,
    launch,
)

ACTIVATIONS = ("none", "relu", "silu")

Result = tuple[torch.Tensor, torch.Tensor]

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _activated(value, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
        if ACTIVATION == "silu":
            # The sigmoid as the square of a root: a division looks at denormal numbers first, which cannot come here.
            root = tl.rsqrt(1 + tl.exp2(value * -1.4426950408889634))
            value = value * root * root
        elif ACTIVATION == "relu":
            value = tl.maximum(value, 0.0)
        return value

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def loaded_line(  # type: ignore[no-untyped-def]
        pixels_ptr,
        row,
        x,
        known,
        CHANNELS: tl.constexpr,
        WIDE: tl.constexpr,
        FIRST: tl.constexpr,
        COUNT: tl.constexpr,
        # Columns from `x` to this many beyond it are inside every image.
        END: tl.constexpr,
        WHOLE: tl.constexpr,
    ):
        """COUNT neighbouring pixels of a row as float32, from the FIRST beside `x` on; 0 beyond the image."""
        line: tl.tuple = ()
        for j in tl.static_range(COUNT):
            there = row
            if FIRST + j < 0 or FIRST + j >= END:
                there = row & (x + (FIRST + j) >= 0) & (x + (FIRST + j) < WIDE)
            mask = there[:, None]
            if not WHOLE:
                mask = mask & known[None, :]
            line += (tl.load(pixels_ptr + (FIRST + j) * CHANNELS, mask=mask, other=0.0).to(tl.float32),)
        return line

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _depthwise_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        weight_ptr,
        bias_ptr,
        out_ptr,
        sums_ptr,
        CHANNELS: tl.constexpr,
        TALL_IN: tl.constexpr,
        WIDE_IN: tl.constexpr,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
        KERNEL: tl.constexpr,
        STRIDE: tl.constexpr,
        ACTIVATION: tl.constexpr,
        BIAS: tl.constexpr,
        SUMS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        TILES: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        PAD: tl.constexpr = KERNEL // 2
        ACROSS: tl.constexpr = (WIDE + COLUMNS - 1) // COLUMNS
        DOWN: tl.constexpr = (TALL + ROWS - 1) // ROWS
        GROUPS: tl.constexpr = (ACROSS * DOWN + TILES - 1) // TILES
        BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
        # Where a tile's own pixels are all inside, only those of its border have to be looked at.
        END: tl.constexpr = STRIDE * COLUMNS if WIDE % COLUMNS == 0 and WIDE_IN == WIDE * STRIDE else 0
        WHOLE: tl.constexpr = CHANNELS % BLOCK == 0
        program = tl.program_id(0)
        # Programs that follow each other read the same lines of memory.
        c = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        known = c < CHANNELS
        image = program // (BLOCKS * GROUPS)
        group = program // BLOCKS % GROUPS
        tile = group * TILES + tl.arange(0, TILES)
        y = tile // ACROSS * ROWS
        x = tile % ACROSS * COLUMNS

        place = image.to(tl.int64) * (TALL_IN * WIDE_IN) + ((y * STRIDE - PAD) * WIDE_IN + x * STRIDE)
        pixels = x_ptr + (place * CHANNELS)[:, None] + c[None, :]
        totals = (tl.zeros((TILES, BLOCK), tl.float32),) * (ROWS * COLUMNS)
        for i in tl.static_range((ROWS - 1) * STRIDE + KERNEL):
            y_in = y * STRIDE - PAD + i
            line = loaded_line(
                pixels + i * (WIDE_IN * CHANNELS), (y_in >= 0) & (y_in < TALL_IN), x * STRIDE, known,
                CHANNELS, WIDE_IN, -PAD, (COLUMNS - 1) * STRIDE + KERNEL, END, WHOLE,
            )  # fmt: skip
            # Which weight this row meets in each row of output is known when the kernel is compiled.
            for r in tl.static_range(ROWS):
                if i >= r * STRIDE and i < r * STRIDE + KERNEL:
                    for j in tl.static_range(KERNEL):
                        taps = weight_ptr + ((i - r * STRIDE) * KERNEL + j) * CHANNELS + c
                        tap = tl.load(taps, mask=known, other=0.0)[None, :]
                        changed = totals[: r * COLUMNS]
                        for q in tl.static_range(COLUMNS):
                            changed += (totals[r * COLUMNS + q] + line[q * STRIDE + j] * tap,)
                        totals = changed + totals[(r + 1) * COLUMNS :]

        bias = tl.zeros((BLOCK,), tl.float32)
        if BIAS:
            bias += tl.load(bias_ptr + c, mask=known, other=0.0).to(tl.float32)
        place = image.to(tl.int64) * (TALL * WIDE) + (y * WIDE + x)
        out = out_ptr + (place * CHANNELS)[:, None] + c[None, :]
        total = tl.zeros((TILES, BLOCK), tl.float32)
        for r in tl.static_range(ROWS):
            for q in tl.static_range(COLUMNS):
                inside = y + r < TALL
                if WIDE % COLUMNS != 0:
                    inside = inside & (x + q < WIDE)
                value = _activated(totals[r * COLUMNS + q] + bias[None, :], ACTIVATION)
                if SUMS:
                    total += tl.where(inside[:, None], value, 0.0)
                value = value.to(out_ptr.dtype.element_ty)
                tl.store(out + (r * WIDE + q) * CHANNELS, value, mask=inside[:, None] & known[None, :])
        if SUMS:
            # Each program has a place of its own: atomic additions would sum in a different order each time.
            part = (image * GROUPS + group).to(tl.int64)
            tl.store(sums_ptr + part * CHANNELS + c, tl.sum(total, 0), mask=known)


def depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int = 1,
    activation: str = "silu",
    implementation: str | None = None,
) -> Result:
    """activation(depthwise convolution of x + bias), and its sum over each image.

    Args:
        x: [B, C, H, W]; read as channels_last, and copied into it if it is not.
        weight: [C, 1, k, k], k odd; the border is k // 2 wide and zero.
        bias: [C].
        stride: 1 or 2.
        activation: "silu", "relu" or "none".
        implementation: "torch", "compiled" or "triton"; None takes the default one of the device.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)] in x's dtype with channels last in memory, computed in float32 (by
        the kernel; the twin as PyTorch does); and float32 [B, C], the sums of it before it was rounded.

    Raises:
        ValueError: another shape, dtype, device, stride, activation or implementation than these.
    """
    check_depthwise(x, weight, stride)
    channels = x.shape[1]
    if bias.shape != (channels,):
        raise ValueError(f"bias must be [{channels}], not {list(bias.shape)}")
    if not x.device == weight.device == bias.device:
        raise ValueError(f"x, weight and bias are on {x.device}, {weight.device} and {bias.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    return DEPTHWISE(choose_implementation(implementation, x.device), x, weight, bias, stride, activation)


def check_depthwise(x: torch.Tensor, weight: torch.Tensor, stride: int) -> None:
    """Raise ValueError unless these are the arguments of a depthwise convolution that keeps or halves the image."""
    check_feature_maps(x)
    if weight.dim() != 4 or weight.shape[:2] != (x.shape[1], 1) or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [{x.shape[1]}, 1, k, k], not {list(weight.shape)}")
    if weight.shape[3] % 2 == 0:
        raise ValueError(f"the kernel must have an odd side, not {weight.shape[3]}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, not {stride}")


def _depthwise_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str) -> Result:
    """The twin: the same from PyTorch's own operators; arguments as for `depthwise`."""
    side = weight.shape[2]
    out = functional.conv2d(
        channels_last(x), weight.to(x.dtype), bias.to(x.dtype), stride, side // 2, groups=x.shape[1]
    )
    if activation == "silu":
        out = functional.silu(out)
    elif activation == "relu":
        out = functional.relu(out)
    return channels_last(out), out.sum((2, 3), dtype=torch.float32)


def _depthwise_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str
) -> Result:
    x = channels_last(x)
    B, C, H, W = x.shape
    out = empty_channels_last((B, C, *strided(H, W, stride)), x.dtype, x.device)
    if not out.numel():
        return out, torch.zeros((B, C), dtype=torch.float32, device=x.device)
    sums = torch.empty((B, groups(out, stride), C), dtype=torch.float32, device=x.device)
    convolve(x, by_position(weight), out, stride, bias.contiguous(), activation, sums)
    return out, sums.sum(1)


def convolve(
    x: torch.Tensor,
    taps: torch.Tensor,
    out: torch.Tensor,
    stride: int,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    sums: torch.Tensor | None = None,
) -> None:
    """Launch the kernel.

    Args:
        x, out: [B, C, H, W] with channels last in memory; `out` is written.
        taps: float32 [k * k, C], see `by_position`.
        sums: float32 [B, groups(out, stride), C], written: the sums over parts of each image.
    """
    B, C, H, W = x.shape
    tall, wide = out.shape[2:]
    rows, columns = tile(tall, wide, stride)
    constants = {
        **{"CHANNELS": C, "TALL_IN": H, "WIDE_IN": W, "TALL": tall, "WIDE": wide},
        **{"KERNEL": math.isqrt(len(taps)), "STRIDE": stride, "ACTIVATION": activation},
        **{"BIAS": bias is not None, "SUMS": sums is not None, "ROWS": rows, "COLUMNS": columns},
        **{"TILES": TILES, "BLOCK": BLOCK},
    }
    # Where there is no bias and no place for sums, any tensor: it is not looked at.
    arguments = (x, taps, taps if bias is None else bias, out, taps if sums is None else sums)
    launch(_depthwise_kernel, (B * groups(out, stride) * blocks(C),), arguments, constants, warps=1)


# A warp of 32 lanes with four channels each: of bfloat16 8 bytes a load, and registers enough for a tile of outputs.
TILES, BLOCK = 8, 16


def strided(height: int, width: int, stride: int) -> tuple[int, int]:
    """Height and width of the output of an odd kernel with a border of half its side."""
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def tile(tall: int, wide: int, stride: int, most: int = 8) -> tuple[int, int]:
    """Rows and columns of output that a lane makes, for an output of this height and width.

    Two rows share the lines between them, of which a stride of 2 leaves few. Of up to `most` columns those that leave
    the least of the last tile idle: 7 for sides of 7, 14 and 28 pixels, 8 for 56 and 112.
    """
    rows = 2 if stride == 1 and (tall % 2 == 0 or tall >= 16) else 1
    columns = min(range(min(wide, most), min(wide, most // 2) - 1, -1), key=lambda count: -wide % count)
    return rows, columns


def groups(out: torch.Tensor, stride: int) -> int:
    """How many programs share the pixels of an image."""
    tall, wide = out.shape[2:]
    rows, columns = tile(tall, wide, stride)
    return int(triton.cdiv(triton.cdiv(tall, rows) * triton.cdiv(wide, columns), TILES))


def blocks(channels: int) -> int:
    """How many programs share the channels of a pixel."""
    return int(triton.cdiv(channels, BLOCK))


def by_position(weight: torch.Tensor) -> torch.Tensor:
    """Weights [C, 1, k, k] as float32 [k * k, C]: all channels of a position side by side, as the pixels are."""
    flat = weight.flatten(1).t()
    return torch.empty_like(flat, dtype=torch.float32, memory_format=torch.contiguous_format).copy_(flat)


DEPTHWISE = Operation("depthwise", _depthwise_torch, _depthwise_triton)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Result]:
    """What is timed: EfficientNet-B0's third stage, 5 x 5 over 240 channels at an eighth of the image's side."""
    side = max(1, size // 8)
    x = channels_last(torch.randn(batch, 240, side, side).to(device, dtype))
    weight, bias = (0.2 * torch.randn(240, 1, 5, 5)).to(device, dtype), torch.randn(240).to(device, dtype)
    return partial(depthwise, x, weight, bias, implementation=implementation)
