"""A depthwise convolution for training: forward pass, gradients of input and weights.

Libraries have fast depthwise convolutions for some shapes only (pytorch issues 18631 and 22302) and compute the rest,
above all the gradient of their few weights, by algorithms made for dense ones. There is little to compute, so each pass
is written as what it is: a weighted sum of neighbouring pixels, read where they lie with channels last.

The gradient of the weights is a sum over all pixels of the batch. Each program computes one part of it for a row of the
kernel and a block of channels; parts have places of their own and are added up afterwards, so that the result does not
depend on the order in which programs finish.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from kernels.depthwise import by_position, channel_block, check_depthwise, depthwise_triton
from kernels.runtime import (
    FUSED,
    HAS_TRITON,
    Operation,
    channels_last,
    choose_implementation,
    empty_channels_last,
    on_device_of,
)

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
        KERNEL: tl.constexpr,
        STRIDE: tl.constexpr,
        BLOCK_X: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        PAD: tl.constexpr = KERNEL // 2
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
            # The output row, if any, that reached this pixel with its i-th row of weights.
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
    def _seen(  # type: ignore[no-untyped-def]
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
        KERNEL: tl.constexpr,
        STRIDE: tl.constexpr,
        BLOCK_P: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        PAD: tl.constexpr = KERNEL // 2
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
            tap0 += _seen(x_ptr, grads, base, x, wide_in, row, c, known, channels)
            if KERNEL > 1:
                tap1 += _seen(x_ptr, grads, base, x + 1, wide_in, row, c, known, channels)
                tap2 += _seen(x_ptr, grads, base, x + 2, wide_in, row, c, known, channels)
            if KERNEL > 3:
                tap3 += _seen(x_ptr, grads, base, x + 3, wide_in, row, c, known, channels)
                tap4 += _seen(x_ptr, grads, base, x + 4, wide_in, row, c, known, channels)
            if KERNEL > 5:
                tap5 += _seen(x_ptr, grads, base, x + 5, wide_in, row, c, known, channels)
                tap6 += _seen(x_ptr, grads, base, x + 6, wide_in, row, c, known, channels)
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
        implementation: "torch", "compiled" or "triton"; None takes the default one of the device.

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)] with channels last in memory.

    Raises:
        ValueError: another shape, dtype, device, stride or implementation than these.
    """
    implementation = choose_implementation(implementation, x.device)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    check_depthwise(x, weight, stride)
    if weight.shape[3] > LARGEST:
        raise ValueError(f"the kernel's side must be at most {LARGEST}, not {weight.shape[3]}")
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device}, weight on {weight.device}")
    # The operator also outside of compiled graphs: it is what knows the gradients.
    result: torch.Tensor = FORWARD.overload(x, weight, stride, implementation)
    return result


def _forward_torch(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    return channels_last(
        functional.conv2d(channels_last(x), weight, None, stride, weight.shape[2] // 2, groups=x.shape[1])
    )


def _forward_triton(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The kernel that inference uses, without bias and activation."""
    return depthwise_triton(x, weight, weight.new_zeros(x.shape[1]), stride, "none")[0]


def _backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, wanted: int) -> torch.Tensor:
    """PyTorch's own gradient of the input (0) or of the weight (1)."""
    padding = [weight.shape[2] // 2] * 2
    mask = [wanted == 0, wanted == 1, False]
    gradients: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], x.shape[1], mask
    )
    return gradients[wanted]


def _grad_input_torch(grad: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """[B, C, height, width]."""
    x = empty_channels_last((*grad.shape[:2], height, width), grad.dtype, grad.device)
    return channels_last(_backward(channels_last(grad), x, weight, stride, 0))


def _grad_input_triton(grad: torch.Tensor, weight: torch.Tensor, stride: int, height: int, width: int) -> torch.Tensor:
    """[B, C, height, width] in the dtype of `grad`."""
    grad = channels_last(grad)
    B, C, tall, wide = grad.shape
    out = empty_channels_last((B, C, height, width), grad.dtype, grad.device)
    if out.numel():
        block_x, block_c = 8, channel_block(C)
        tiles_x = triton.cdiv(width, block_x)
        with on_device_of(grad):
            _grad_input_kernel[(B * height * tiles_x, triton.cdiv(C, block_c))](
                grad, by_position(weight), out, C, height, width, tall, wide, tiles_x,
                KERNEL=weight.shape[2], STRIDE=stride, BLOCK_X=block_x, BLOCK_C=block_c, num_warps=4, **FUSED,
            )  # fmt: skip
    return out


def _grad_weight_torch(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """[C, 1, side, side]."""
    weight = x.new_empty(x.shape[1], 1, side, side)
    return _backward(channels_last(grad), channels_last(x), weight, stride, 1).contiguous()


def _grad_weight_triton(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """[C, 1, side, side] in the dtype of `x`; summed in float32."""
    grad, x = channels_last(grad), channels_last(x)
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
            KERNEL=side, STRIDE=stride, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4, **FUSED,
        )  # fmt: skip
    return sums.sum(0).t().reshape(C, 1, side, side).to(x.dtype)


def steps_of(pixels: int, block: int) -> int:
    """Blocks of pixels that a program sums up: a few hundred programs for each block of channels, 64 blocks at most."""
    return max(1, min(64, pixels // (block * 256)))


FORWARD = Operation("depthwise_convolution", _forward_torch, _forward_triton)
GRAD_INPUT = Operation("depthwise_grad_input", _grad_input_torch, _grad_input_triton)
GRAD_WEIGHT = Operation("depthwise_grad_weight", _grad_weight_torch, _grad_weight_triton)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, ctx.stride, ctx.implementation = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
    x, weight = ctx.saved_tensors
    of_x = of_weight = None
    if ctx.needs_input_grad[0]:
        of_x = GRAD_INPUT.overload(grad, weight, ctx.stride, *x.shape[2:], ctx.implementation)
    if ctx.needs_input_grad[1]:
        of_weight = GRAD_WEIGHT.overload(grad, x, ctx.stride, weight.shape[2], ctx.implementation)
    return of_x, of_weight, None, None


FORWARD.operator.register_autograd(_gradients, setup_context=_save_inputs)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """What is timed: both gradients of what `kernels.depthwise.example` times."""
    side = max(1, size // 8)
    x, grad = (channels_last(torch.randn(batch, 240, side, side).to(device, dtype)) for _ in range(2))
    weight = (0.2 * torch.randn(240, 1, 5, 5)).to(device, dtype)

    def both() -> torch.Tensor:
        GRAD_INPUT(implementation, grad, weight, 1, side, side)
        return GRAD_WEIGHT(implementation, grad, x, 1, 5)

    return both
