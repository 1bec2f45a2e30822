"""A depthwise convolution, its bias, activation and squeeze-and-excitation's sums in one pass.

This is the inner part of EfficientNet's bottleneck (Tan and Le 2019) with batch norm folded into the weights. Written
out it is a convolution, an activation and a mean, each of which reads or writes the widest tensor of the block and
computes next to nothing. Here that tensor is read once and written once, and the sums are made on the way.

Channels are last in memory, so neighbouring lanes hold neighbouring channels. A program makes up to four rows of a few
columns: each loaded row of pixels serves every output row that its window reaches. Of a 5 x 5 kernel two rows of output
load 6 rows instead of 10, four load 8 instead of 20.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from kernels.runtime import (
    FUSED,
    HAS_TRITON,
    Operation,
    channels_last,
    check_feature_maps,
    choose_implementation,
    empty_channels_last,
    on_device_of,
)

ACTIVATIONS = ("none", "relu", "silu")

Result = tuple[torch.Tensor, torch.Tensor]

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _weighted(pixels, weight_ptr, tap, channels, c, known):  # type: ignore[no-untyped-def]
        """Pixels times their channel's weight at position `tap` of the window."""
        weights = tl.load(weight_ptr + tap * channels + c, mask=known, other=0.0)
        return pixels * weights.to(tl.float32)[None, :]

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _stored(  # type: ignore[no-untyped-def]
        total, bias, out_ptr, x, y, tall, wide, channels, c, known, ACTIVATION: tl.constexpr
    ):
        """Adds the bias, activates and writes a row of output; returns its sum over the row."""
        value = total + bias[None, :]
        if ACTIVATION == "silu":
            value = value / (1 + tl.exp(-value))
        elif ACTIVATION == "relu":
            value = tl.maximum(value, 0.0)
        inside = (x < tl.where(y < tall, wide, 0))[:, None]
        # Beyond the image 0, which adds nothing to the sum.
        value = tl.where(inside, value, 0.0)
        places = out_ptr + (x * channels)[:, None] + c[None, :] + y * (wide * channels)
        tl.store(places, value.to(out_ptr.dtype.element_ty), mask=inside & known[None, :])
        return tl.sum(value, 0)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _depthwise_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        weight_ptr,
        bias_ptr,
        out_ptr,
        sums_ptr,
        channels,
        tall_in,
        wide_in,
        tall,
        wide,
        tiles_y,
        tiles_x,
        KERNEL: tl.constexpr,
        STRIDE: tl.constexpr,
        ACTIVATION: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK_X: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        PAD: tl.constexpr = KERNEL // 2
        STEP: tl.constexpr = STRIDE * KERNEL
        tile = tl.program_id(0)
        image = (tile // (tiles_y * tiles_x)).to(tl.int64)
        within = tile % (tiles_y * tiles_x)
        y = (within // tiles_x) * ROWS
        x = (within % tiles_x) * BLOCK_X + tl.arange(0, BLOCK_X)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        known = c < channels

        x_ptr += image * tall_in * wide_in * channels
        row0 = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
        row1 = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
        row2 = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
        row3 = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
        for i in tl.static_range((ROWS - 1) * STRIDE + KERNEL):
            y_in = y * STRIDE - PAD + i
            # Beyond the image a row has no pixels.
            end_in = tl.where((y_in >= 0) & (y_in < tall_in), wide_in, 0)
            for j in tl.static_range(KERNEL):
                x_in = x * STRIDE - PAD + j
                there = (x_in >= 0) & (x_in < end_in)
                pixels = tl.load(
                    x_ptr + ((y_in * wide_in + x_in) * channels)[:, None] + c[None, :],
                    mask=there[:, None] & known[None, :],
                    other=0.0,
                ).to(tl.float32)
                # Which weight this pixel meets in each row of output is known when the kernel is compiled.
                if i < KERNEL:
                    row0 += _weighted(pixels, weight_ptr, i * KERNEL + j, channels, c, known)
                if ROWS > 1 and i >= STRIDE and i < STRIDE + KERNEL:
                    row1 += _weighted(pixels, weight_ptr, i * KERNEL + j - STEP, channels, c, known)
                if ROWS > 2 and i >= 2 * STRIDE and i < 2 * STRIDE + KERNEL:
                    row2 += _weighted(pixels, weight_ptr, i * KERNEL + j - 2 * STEP, channels, c, known)
                if ROWS > 3 and i >= 3 * STRIDE and i < 3 * STRIDE + KERNEL:
                    row3 += _weighted(pixels, weight_ptr, i * KERNEL + j - 3 * STEP, channels, c, known)

        bias = tl.load(bias_ptr + c, mask=known, other=0.0).to(tl.float32)
        out_ptr += image * tall * wide * channels
        total = _stored(row0, bias, out_ptr, x, y, tall, wide, channels, c, known, ACTIVATION)
        if ROWS > 1:
            total += _stored(row1, bias, out_ptr, x, y + 1, tall, wide, channels, c, known, ACTIVATION)
        if ROWS > 2:
            total += _stored(row2, bias, out_ptr, x, y + 2, tall, wide, channels, c, known, ACTIVATION)
        if ROWS > 3:
            total += _stored(row3, bias, out_ptr, x, y + 3, tall, wide, channels, c, known, ACTIVATION)
        # Each program has a place of its own: atomic additions would sum in a different order each time.
        tl.store(sums_ptr + tile.to(tl.int64) * channels + c, total, mask=known)


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


def depthwise_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str) -> Result:
    """The kernel; arguments as for `depthwise`."""
    x = channels_last(x)
    B, C, H, W = x.shape
    # Of an odd kernel with a border of half its side.
    tall, wide = (H - 1) // stride + 1, (W - 1) // stride + 1
    out = empty_channels_last((B, C, tall, wide), x.dtype, x.device)
    if not out.numel():
        return out, torch.zeros((B, C), dtype=torch.float32, device=x.device)
    rows, block_x, block_c = blocks(C, tall, wide)
    tiles_y, tiles_x = triton.cdiv(tall, rows), triton.cdiv(wide, block_x)
    sums = torch.empty((B, tiles_y * tiles_x, C), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _depthwise_kernel[(B * tiles_y * tiles_x, triton.cdiv(C, block_c))](
            x, by_position(weight), bias.contiguous(), out, sums, C, H, W, tall, wide, tiles_y, tiles_x,
            KERNEL=weight.shape[2], STRIDE=stride, ACTIVATION=activation,
            ROWS=rows, BLOCK_X=block_x, BLOCK_C=block_c, num_warps=4, **FUSED,
        )  # fmt: skip
    return out, sums.sum(1)


def by_position(weight: torch.Tensor) -> torch.Tensor:
    """Weights [C, 1, k, k] as [k * k, C]: all channels of a position side by side, as the pixels are."""
    return weight.flatten(1).t().contiguous()


def blocks(channels: int, tall: int, wide: int) -> tuple[int, int, int]:
    """Rows, columns and channels of a program: (1, 2 or 4, 8, 16 to 128).

    Sides of 7, 14, 28, 56 and 112 pixels waste an eighth of the columns at most with 8 of them.
    """
    return (1 if tall < 2 else 2 if tall < 16 else 4), 8, channel_block(channels)


def channel_block(channels: int) -> int:
    """The widest block, 16 to 128, that leaves an eighth of the channels idle at most."""
    return next((width for width in (128, 64, 32) if -channels % width <= channels / 8), 16)


DEPTHWISE = Operation("depthwise", _depthwise_torch, depthwise_triton)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Result]:
    """What is timed: EfficientNet-B0's third stage, 5 x 5 over 240 channels at an eighth of the image's side."""
    side = max(1, size // 8)
    x = channels_last(torch.randn(batch, 240, side, side).to(device, dtype))
    weight, bias = (0.2 * torch.randn(240, 1, 5, 5)).to(device, dtype), torch.randn(240).to(device, dtype)
    return partial(depthwise, x, weight, bias, implementation=implementation)
