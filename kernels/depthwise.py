"""A depthwise convolution, its bias, its activation and the sum over the image that squeeze-and-excitation asks for.

The inner part of EfficientNet's bottleneck (Tan and Le 2019) with batch norm folded into weights. Written out it is a
convolution, an activation and a mean, each of which reads or writes the widest tensor of the block; there is hardly
anything to compute in between. Here that tensor is read once and written once, and the sums fall off on the way.

Channels are last in memory, so neighbouring lanes hold neighbouring channels. A program makes up to four rows of a few
columns: each loaded row of pixels serves every output row that its window reaches. Of a 5 x 5 kernel two rows of output
load 6 rows in place of 10, four load 8 in place of 20.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from kernels.runtime import HAS_TRITON, check_implementation, chosen, compiled, dtype_of, on_device_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu", "silu")

Result = tuple[torch.Tensor, torch.Tensor]

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _finished(value, bias, x, end, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
        """Bias and activation; 0 beyond the image, so that it adds nothing to the sums."""
        value += bias[None, :]
        if ACTIVATION == "silu":
            value = value / (1 + tl.exp(-value))
        elif ACTIVATION == "relu":
            value = tl.maximum(value, 0.0)
        return tl.where((x < end)[:, None], value, 0.0)

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
        KERNEL: tl.constexpr,  # noqa: N803
        STRIDE: tl.constexpr,  # noqa: N803
        ACTIVATION: tl.constexpr,  # noqa: N803
        ROWS: tl.constexpr,  # noqa: N803
        BLOCK_X: tl.constexpr,  # noqa: N803
        BLOCK_C: tl.constexpr,  # noqa: N803
    ):
        PAD: tl.constexpr = KERNEL // 2  # noqa: N806
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
                    taps = tl.load(weight_ptr + (i * KERNEL + j) * channels + c, mask=known, other=0.0)
                    row0 += pixels * taps.to(tl.float32)[None, :]
                if ROWS > 1 and i >= STRIDE and i < STRIDE + KERNEL:
                    taps = tl.load(weight_ptr + ((i - STRIDE) * KERNEL + j) * channels + c, mask=known, other=0.0)
                    row1 += pixels * taps.to(tl.float32)[None, :]
                if ROWS > 2 and i >= 2 * STRIDE and i < 2 * STRIDE + KERNEL:
                    taps = tl.load(weight_ptr + ((i - 2 * STRIDE) * KERNEL + j) * channels + c, mask=known, other=0.0)
                    row2 += pixels * taps.to(tl.float32)[None, :]
                if ROWS > 3 and i >= 3 * STRIDE and i < 3 * STRIDE + KERNEL:
                    taps = tl.load(weight_ptr + ((i - 3 * STRIDE) * KERNEL + j) * channels + c, mask=known, other=0.0)
                    row3 += pixels * taps.to(tl.float32)[None, :]

        bias = tl.load(bias_ptr + c, mask=known, other=0.0).to(tl.float32)
        out_ptr += image * tall * wide * channels
        places = out_ptr + (x * channels)[:, None] + c[None, :]
        step = wide * channels

        end = tl.where(y < tall, wide, 0)
        row0 = _finished(row0, bias, x, end, ACTIVATION)
        tl.store(places + y * step, row0.to(out_ptr.dtype.element_ty), mask=(x < end)[:, None] & known[None, :])
        total = tl.sum(row0, 0)
        if ROWS > 1:
            end = tl.where(y + 1 < tall, wide, 0)
            row1 = _finished(row1, bias, x, end, ACTIVATION)
            tl.store(
                places + (y + 1) * step, row1.to(out_ptr.dtype.element_ty), mask=(x < end)[:, None] & known[None, :]
            )
            total += tl.sum(row1, 0)
        if ROWS > 2:
            end = tl.where(y + 2 < tall, wide, 0)
            row2 = _finished(row2, bias, x, end, ACTIVATION)
            tl.store(
                places + (y + 2) * step, row2.to(out_ptr.dtype.element_ty), mask=(x < end)[:, None] & known[None, :]
            )
            total += tl.sum(row2, 0)
        if ROWS > 3:
            end = tl.where(y + 3 < tall, wide, 0)
            row3 = _finished(row3, bias, x, end, ACTIVATION)
            tl.store(
                places + (y + 3) * step, row3.to(out_ptr.dtype.element_ty), mask=(x < end)[:, None] & known[None, :]
            )
            total += tl.sum(row3, 0)
        # Each program has a place of its own: atomic additions would sum in another order each time.
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
        implementation: "torch", "compiled" (by torch) or "triton"; None takes `chosen(x.device)`.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)] in x's dtype with channels last in memory, computed in float32 (by
        the kernel; the twin as PyTorch does); and float32 [B, C], the sums of it before it was rounded.

    Raises:
        ValueError: another shape, dtype, device, stride, activation or implementation than these.
    """
    implementation = chosen(x.device) if implementation is None else implementation
    _check(x, weight, bias, stride, activation, implementation)
    if torch.compiler.is_compiling():
        result: Result = torch.ops.pixbench.depthwise(x, weight, bias, stride, activation, implementation)
        return result
    return IMPLEMENTED[implementation](x, weight, bias, stride, activation)


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str, implementation: str
) -> None:
    if x.dim() != 4 or x.dtype not in DTYPES:
        raise ValueError(f"x must be [B, C, H, W] of {', '.join(map(str, DTYPES))}, not {x.dtype} {list(x.shape)}")
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1) or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [{channels}, 1, k, k], not {list(weight.shape)}")
    if weight.shape[3] % 2 == 0:
        raise ValueError(f"the kernel must have an odd side, not {weight.shape[3]}")
    if bias.shape != (channels,):
        raise ValueError(f"bias must be [{channels}], not {list(bias.shape)}")
    if not x.device == weight.device == bias.device:
        raise ValueError(f"x, weight and bias are on {x.device}, {weight.device} and {bias.device}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, not {stride}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    check_implementation(implementation, x.device)


def depthwise_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str) -> Result:
    """The twin: the same from PyTorch's own operators; arguments as for `depthwise`."""
    x = x.contiguous(memory_format=torch.channels_last)
    side = weight.shape[2]
    made = functional.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), stride, side // 2, groups=x.shape[1])
    if activation == "silu":
        made = functional.silu(made)
    elif activation == "relu":
        made = functional.relu(made)
    return made.contiguous(memory_format=torch.channels_last), made.sum((2, 3), dtype=torch.float32)


def depthwise_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str) -> Result:
    """The kernel; arguments as for `depthwise`."""
    x = x.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    side = weight.shape[2]
    tall, wide = _out(H, stride), _out(W, stride)
    out = torch.empty((B, C, tall, wide), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not out.numel():
        return out, torch.zeros((B, C), dtype=torch.float32, device=x.device)
    rows, block_x, block_c = blocks(C, tall, wide)
    tiles_y, tiles_x = triton.cdiv(tall, rows), triton.cdiv(wide, block_x)
    sums = torch.empty((B, tiles_y * tiles_x, C), dtype=torch.float32, device=x.device)
    # A tap of all channels side by side, as the pixels are.
    taps = weight.reshape(C, side * side).t().contiguous()
    with on_device_of(x):
        _depthwise_kernel[(B * tiles_y * tiles_x, triton.cdiv(C, block_c))](
            x,
            taps,
            bias.contiguous(),
            out,
            sums,
            C,
            H,
            W,
            tall,
            wide,
            tiles_y,
            tiles_x,
            KERNEL=side,
            STRIDE=stride,
            ACTIVATION=activation,
            ROWS=rows,
            BLOCK_X=block_x,
            BLOCK_C=block_c,
            num_warps=4,
        )
    return out, sums.sum(1)


def _out(length: int, stride: int) -> int:
    """Length of the output of an odd kernel with a border of half its side."""
    return (length - 1) // stride + 1


def blocks(channels: int, tall: int, wide: int) -> tuple[int, int, int]:
    """Rows, columns and channels of a program: (1, 2 or 4, 8, 16 to 128).

    Sides of 7, 14, 28, 56 and 112 pixels waste an eighth of the columns at most with 8 of them.
    """
    return (1 if tall < 2 else 2 if tall < 16 else 4), 8, channel_block(channels)


def channel_block(channels: int) -> int:
    """The widest block, 16 to 128, that leaves an eighth of the channels idle at most."""
    return next((width for width in (128, 64, 32) if -channels % width <= channels / 8), 16)


def example(implementation: str, batch: int, size: int, dtype: str, device: torch.device | str) -> Callable[[], Result]:
    """What is timed: EfficientNet-B0's third stage, 5 x 5 over 240 channels at an eighth of the image's side.

    Raises:
        ValueError: a dtype that is none of DTYPES, or an implementation that cannot run on `device`.
    """
    made = dtype_of(dtype, DTYPES, "depthwise")
    check_implementation(implementation, torch.device(device))
    side = max(1, size // 8)
    x = torch.randn(batch, 240, side, side).to(device, made, memory_format=torch.channels_last)
    weight, bias = (0.2 * torch.randn(240, 1, 5, 5)).to(device, made), torch.randn(240).to(device, made)
    return partial(depthwise, x, weight, bias, implementation=implementation)


# Before the operator's registration, which has to find its implementations.
IMPLEMENTED: dict[str, Callable[..., Result]] = {
    "torch": depthwise_torch,
    "compiled": compiled(depthwise_torch),
    "triton": depthwise_triton,
}


@torch.library.custom_op("pixbench::depthwise", mutates_args=())
def _operator(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return IMPLEMENTED[implementation](x, weight, bias, stride, activation)


@_operator.register_fake
def _shape(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    B, C, H, W = x.shape
    shape = (B, C, _out(H, stride), _out(W, stride))
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return out, torch.empty((B, C), dtype=torch.float32, device=x.device)
