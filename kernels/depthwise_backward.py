"""A depthwise convolution that can be trained: forward, gradient of the input and gradient of the weights.

Libraries have fast depthwise convolutions for some shapes only (pytorch issues 18631 and 22302) and compute the rest,
and above all the gradient of their few weights, by algorithms made for dense ones. There is hardly anything to compute
in them, so each pass is written as what it is, a weighted sum of neighbouring pixels, read where they lie with channels
last.

The gradient of the weights is a sum over all pixels of the batch. Each program makes one part of it for a row of the
kernel and a block of channels; parts have places of their own and are added up afterwards, so that the result does not
depend on who came first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from kernels.depthwise import channel_block, depthwise_triton
from kernels.runtime import HAS_TRITON, Implementations, check_implementation, chosen, compiled, dtype_of, on_device_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 7
"""Side of a kernel: so many sums are held in registers."""

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _grad_input_kernel(  # type: ignore[no-untyped-def]
        grad_ptr,
        weight_ptr,
        out_ptr,
        channels,
        tall_in,
        wide_in,
        tall,
        wide,
        tiles_x,
        KERNEL: tl.constexpr,  # noqa: N803
        STRIDE: tl.constexpr,  # noqa: N803
        BLOCK_X: tl.constexpr,  # noqa: N803
        BLOCK_C: tl.constexpr,  # noqa: N803
    ):
        PAD: tl.constexpr = KERNEL // 2  # noqa: N806
        tile = tl.program_id(0)
        image = (tile // (tall_in * tiles_x)).to(tl.int64)
        within = tile % (tall_in * tiles_x)
        y = within // tiles_x
        x = (within % tiles_x) * BLOCK_X + tl.arange(0, BLOCK_X)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        known = c < channels
        grad_ptr += image * tall * wide * channels
        total = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
        for i in tl.static_range(KERNEL):
            # An output row that reached this pixel with its i-th row of weights, if there is one.
            reach = y + PAD - i
            y_out = reach // STRIDE
            end = tl.where((reach >= 0) & (reach % STRIDE == 0) & (y_out < tall), wide, 0)
            for j in tl.static_range(KERNEL):
                along = x + PAD - j
                x_out = along // STRIDE
                there = (along >= 0) & (along % STRIDE == 0) & (x_out < end)
                grads = tl.load(
                    grad_ptr + ((y_out * wide + x_out) * channels)[:, None] + c[None, :],
                    mask=there[:, None] & known[None, :],
                    other=0.0,
                ).to(tl.float32)
                taps = tl.load(weight_ptr + (i * KERNEL + j) * channels + c, mask=known, other=0.0)
                total += grads * taps.to(tl.float32)[None, :]
        places = image * tall_in * wide_in * channels + ((y * wide_in + x) * channels)[:, None] + c[None, :]
        tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=(x < wide_in)[:, None] & known[None, :])

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _met(  # type: ignore[no-untyped-def]
        x_ptr, grads, base, x_in, wide_in, row, c, known, channels
    ):
        """Gradients times the pixels that one tap saw."""
        there = row & (x_in >= 0) & (x_in < wide_in)
        pixels = tl.load(
            x_ptr + ((base + x_in) * channels)[:, None] + c[None, :], mask=there[:, None] & known[None, :], other=0.0
        )
        return grads * pixels.to(tl.float32)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _grad_weight_kernel(  # type: ignore[no-untyped-def]
        grad_ptr,
        x_ptr,
        out_ptr,
        pixels,
        channels,
        tall_in,
        wide_in,
        tall,
        wide,
        steps,
        KERNEL: tl.constexpr,  # noqa: N803
        STRIDE: tl.constexpr,  # noqa: N803
        BLOCK_P: tl.constexpr,  # noqa: N803
        BLOCK_C: tl.constexpr,  # noqa: N803
    ):
        PAD: tl.constexpr = KERNEL // 2  # noqa: N806
        part = tl.program_id(0)
        i = tl.program_id(1)
        c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
        known = c < channels
        tap0 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        tap1 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        tap2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        tap3 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        tap4 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        tap5 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        tap6 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for step in range(steps):
            p = (part.to(tl.int64) * steps + step) * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = p < pixels
            x = (p % wide) * STRIDE - PAD
            y_in = (p // wide % tall) * STRIDE - PAD + i
            row = inside & (y_in >= 0) & (y_in < tall_in)
            base = (p // (wide * tall) * tall_in + y_in) * wide_in
            grads = tl.load(
                grad_ptr + (p * channels)[:, None] + c[None, :], mask=row[:, None] & known[None, :], other=0.0
            ).to(tl.float32)
            tap0 += _met(x_ptr, grads, base, x, wide_in, row, c, known, channels)
            if KERNEL > 1:
                tap1 += _met(x_ptr, grads, base, x + 1, wide_in, row, c, known, channels)
                tap2 += _met(x_ptr, grads, base, x + 2, wide_in, row, c, known, channels)
            if KERNEL > 3:
                tap3 += _met(x_ptr, grads, base, x + 3, wide_in, row, c, known, channels)
                tap4 += _met(x_ptr, grads, base, x + 4, wide_in, row, c, known, channels)
            if KERNEL > 5:
                tap5 += _met(x_ptr, grads, base, x + 5, wide_in, row, c, known, channels)
                tap6 += _met(x_ptr, grads, base, x + 6, wide_in, row, c, known, channels)
        places = out_ptr + ((part * KERNEL + i) * KERNEL).to(tl.int64) * channels + c
        tl.store(places, tl.sum(tap0, 0), mask=known)
        if KERNEL > 1:
            tl.store(places + channels, tl.sum(tap1, 0), mask=known)
            tl.store(places + 2 * channels, tl.sum(tap2, 0), mask=known)
        if KERNEL > 3:
            tl.store(places + 3 * channels, tl.sum(tap3, 0), mask=known)
            tl.store(places + 4 * channels, tl.sum(tap4, 0), mask=known)
        if KERNEL > 5:
            tl.store(places + 5 * channels, tl.sum(tap5, 0), mask=known)
            tl.store(places + 6 * channels, tl.sum(tap6, 0), mask=known)


def depthwise_convolution(
    x: torch.Tensor, weight: torch.Tensor, stride: int = 1, implementation: str | None = None
) -> torch.Tensor:
    """A depthwise convolution without bias; gradients go to `x` and `weight`.

    Args:
        x: [B, C, H, W]; read as channels_last, and copied into it if it is not. Under autocast both are cast.
        weight: [C, 1, k, k], k odd and at most 7; the border is k // 2 wide and zero.
        stride: 1 or 2.
        implementation: "torch", "compiled" (by torch) or "triton"; None takes `chosen(x.device)`.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)] with channels last in memory.

    Raises:
        ValueError: another shape, dtype, device, stride or implementation than these.
    """
    implementation = chosen(x.device) if implementation is None else implementation
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    _check(x, weight, stride, implementation)
    result: torch.Tensor = torch.ops.pixbench.depthwise_convolution(x, weight, stride, implementation)
    return result


def _check(x: torch.Tensor, weight: torch.Tensor, stride: int, implementation: str) -> None:
    if x.dim() != 4 or x.dtype not in DTYPES:
        raise ValueError(f"x must be [B, C, H, W] of {', '.join(map(str, DTYPES))}, not {x.dtype} {list(x.shape)}")
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1) or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [{channels}, 1, k, k], not {list(weight.shape)}")
    if weight.shape[3] % 2 == 0 or weight.shape[3] > LARGEST:
        raise ValueError(f"the kernel must have an odd side up to {LARGEST}, not {weight.shape[3]}")
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device}, weight on {weight.device}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, not {stride}")
    check_implementation(implementation, x.device)


def _last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def forward_torch(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The twin of the forward pass."""
    return _last(functional.conv2d(_last(x), weight, None, stride, weight.shape[2] // 2, groups=x.shape[1]))


def forward_triton(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The forward pass: the kernel that inference uses, without bias and activation."""
    return depthwise_triton(x, weight, weight.new_zeros(x.shape[1]), stride, "none")[0]


def _backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, wanted: int) -> torch.Tensor:
    """PyTorch's own gradient of the input (0) or of the weight (1)."""
    half = [weight.shape[2] // 2] * 2
    mask = [wanted == 0, wanted == 1, False]
    found: Any = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, half, [1, 1], False, [0, 0], x.shape[1], mask
    )
    result: torch.Tensor = found[wanted]
    return result


def grad_input_torch(grad: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """The twin of the gradient of the input, [B, C, height, width]."""
    shape = (grad.shape[0], grad.shape[1], height, width)
    x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    return _last(_backward(_last(grad), x, weight, stride, 0))


def grad_weight_torch(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """The twin of the gradient of the weight, [C, 1, side, side]."""
    weight = x.new_empty(x.shape[1], 1, side, side)
    return _backward(_last(grad), _last(x), weight, stride, 1).contiguous()


def grad_input_triton(grad: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """The gradient of the input, [B, C, height, width] in the dtype of `grad`."""
    grad = _last(grad)
    B, C, tall, wide = grad.shape
    side = weight.shape[2]
    out = torch.empty((B, C, height, width), dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    if out.numel():
        block_x, block_c = 8, channel_block(C)
        tiles_x = triton.cdiv(width, block_x)
        taps = weight.reshape(C, side * side).t().contiguous()
        with on_device_of(grad):
            _grad_input_kernel[(B * height * tiles_x, triton.cdiv(C, block_c))](
                grad, taps, out, C, height, width, tall, wide, tiles_x,
                KERNEL=side, STRIDE=stride, BLOCK_X=block_x, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
    return out


def grad_weight_triton(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """The gradient of the weight, [C, 1, side, side] in the dtype of `x`; summed in float32."""
    grad, x = _last(grad), _last(x)
    B, C, tall, wide = grad.shape
    pixels = B * tall * wide
    if not grad.numel():
        return x.new_zeros(C, 1, side, side)
    block_p, block_c = 16, min(64, channel_block(C))
    steps = steps_of(pixels, block_p)
    parts = triton.cdiv(pixels, block_p * steps)
    sums = torch.empty((parts, side * side, C), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _grad_weight_kernel[(parts, side, triton.cdiv(C, block_c))](
            grad, x, sums, pixels, C, x.shape[2], x.shape[3], tall, wide, steps,
            KERNEL=side, STRIDE=stride, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return sums.sum(0).t().reshape(C, 1, side, side).to(x.dtype)


def steps_of(pixels: int, block: int) -> int:
    """Blocks of pixels that a program sums up: a few hundred programs for each block of channels, 64 blocks at most."""
    return max(1, min(64, pixels // (block * 256)))


def example(
    implementation: str, batch: int, size: int, dtype: str, device: torch.device | str
) -> Callable[[], torch.Tensor]:
    """What is timed: both gradients of EfficientNet-B0's third stage, 5 x 5 over 240 channels at an eighth of the side.

    Raises:
        ValueError: a dtype that is none of DTYPES, or an implementation that cannot run on `device`.
    """
    made = dtype_of(dtype, DTYPES, "depthwise_backward")
    check_implementation(implementation, torch.device(device))
    side = max(1, size // 8)
    x, grad = (
        torch.randn(batch, 240, side, side).to(device, made, memory_format=torch.channels_last) for _ in range(2)
    )
    return partial(_both, grad, x, (0.2 * torch.randn(240, 1, 5, 5)).to(device, made), implementation)


def _both(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, implementation: str) -> torch.Tensor:
    GRAD_INPUT[implementation](grad, weight, 1, *x.shape[2:])
    return GRAD_WEIGHT[implementation](grad, x, 1, weight.shape[2])


# Before the operators' registration, which has to find their implementations.
FORWARD: Implementations = {
    "torch": forward_torch,
    "compiled": compiled(forward_torch),
    "triton": forward_triton,
}
GRAD_INPUT: Implementations = {
    "torch": grad_input_torch,
    "compiled": compiled(grad_input_torch),
    "triton": grad_input_triton,
}
GRAD_WEIGHT: Implementations = {
    "torch": grad_weight_torch,
    "compiled": compiled(grad_weight_torch),
    "triton": grad_weight_triton,
}


@torch.library.custom_op("pixbench::depthwise_convolution", mutates_args=())
def _forward(x: torch.Tensor, weight: torch.Tensor, stride: int, implementation: str) -> torch.Tensor:
    return FORWARD[implementation](x, weight, stride)


@_forward.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, stride: int, implementation: str) -> torch.Tensor:
    B, C, H, W = x.shape
    shape = (B, C, (H - 1) // stride + 1, (W - 1) // stride + 1)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("pixbench::depthwise_grad_input", mutates_args=())
def _grad_input(
    grad: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int, implementation: str
) -> torch.Tensor:
    return GRAD_INPUT[implementation](grad, weight, stride, height, width)


@_grad_input.register_fake
def _(
    grad: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int, implementation: str
) -> torch.Tensor:
    shape = (grad.shape[0], grad.shape[1], height, width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


@torch.library.custom_op("pixbench::depthwise_grad_weight", mutates_args=())
def _grad_weight(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int, implementation: str) -> torch.Tensor:
    return GRAD_WEIGHT[implementation](grad, x, stride, side)


@_grad_weight.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int, implementation: str) -> torch.Tensor:
    return x.new_empty(x.shape[1], 1, side, side)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, ctx.stride, ctx.implementation = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
    x, weight = ctx.saved_tensors
    height, width = x.shape[2:]
    of_x = of_weight = None
    if ctx.needs_input_grad[0]:
        of_x = _grad_input(grad, weight, ctx.stride, height, width, ctx.implementation)
    if ctx.needs_input_grad[1]:
        of_weight = _grad_weight(grad, x, ctx.stride, weight.shape[2], ctx.implementation)
    return of_x, of_weight, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
