"""A depthwise convolution for training: forward pass, gradients of input and weights.

Libraries have fast depthwise convolutions for some shapes only (pytorch issues 18631 and 22302) and compute the rest,
above all the gradient of their few weights, by algorithms made for dense ones. There is little to compute, so each pass
is written as what it is: a weighted sum of neighbouring pixels, read where they lie with channels last.

The gradient of the input is itself such a convolution, with the weights in reverse order; where the stride is 2, each
pixel of the input meets a quarter of the weights, which ones is known when the kernel is compiled.

The gradient of the weights is a sum over all pixels of the batch. Each program holds the sums of all weights of its
channels, so that both tensors are read once, and goes through one part of the pixels; parts have places of their own
and are added up afterwards, so that the result does not depend on the order in which programs finish.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from kernels.depthwise import BLOCK, TILES, blocks, by_position, check_depthwise, convolve, strided, tile
from kernels.runtime import (
    HAS_TRITON,
    Operation,
    channels_last,
    choose_implementation,
    empty_channels_last,
    launch,
)

LARGEST = 7
"""Side of a kernel: so many sums are held in registers."""

if HAS_TRITON:
    import triton
    import triton.language as tl

    from kernels.depthwise import loaded_line

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _grad_input_kernel(  # type: ignore[no-untyped-def]
        grad_ptr,
        weight_ptr,
        out_ptr,
        CHANNELS: tl.constexpr,
        TALL_IN: tl.constexpr,
        WIDE_IN: tl.constexpr,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
        KERNEL: tl.constexpr,
        COLUMNS: tl.constexpr,
        TILES: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Of a stride of 2: a lane makes two rows of the input from one row of gradients and its neighbours."""
        PAD: tl.constexpr = KERNEL // 2
        # Gradients that reach an even and the odd pixel beside it: from LOW to HIGH places further on.
        LOW: tl.constexpr = -(PAD // 2)
        HIGH: tl.constexpr = (PAD + 1) // 2
        ACROSS: tl.constexpr = (WIDE + COLUMNS - 1) // COLUMNS
        GROUPS: tl.constexpr = (ACROSS * TALL + TILES - 1) // TILES
        BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
        END: tl.constexpr = COLUMNS if WIDE % COLUMNS == 0 else 0
        program = tl.program_id(0)
        c = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        known = c < CHANNELS
        image = program // (BLOCKS * GROUPS)
        tile = program // BLOCKS % GROUPS * TILES + tl.arange(0, TILES)
        y = tile // ACROSS
        x = tile % ACROSS * COLUMNS

        place = image.to(tl.int64) * (TALL * WIDE) + (y * WIDE + x)
        grads = grad_ptr + (place * CHANNELS)[:, None] + c[None, :]
        totals = (tl.zeros((TILES, BLOCK), tl.float32),) * (4 * COLUMNS)
        for d in tl.static_range(LOW, HIGH + 1):
            line = loaded_line(
                grads + d * (WIDE * CHANNELS), (y + d >= 0) & (y + d < TALL), x, known,
                CHANNELS, WIDE, LOW, COLUMNS + HIGH - LOW, END, CHANNELS % BLOCK == 0,
            )  # fmt: skip
            for e in tl.static_range(2):
                if e + PAD - 2 * d >= 0 and e + PAD - 2 * d < KERNEL:
                    for j in tl.static_range(KERNEL):
                        taps = weight_ptr + ((e + PAD - 2 * d) * KERNEL + j) * CHANNELS + c
                        tap = tl.load(taps, mask=known, other=0.0)[None, :]
                        changed = totals[: e * 2 * COLUMNS]
                        for q in tl.static_range(2 * COLUMNS):
                            total = totals[e * 2 * COLUMNS + q]
                            if (q + PAD + j) % 2 == 0:
                                total += line[(q + PAD - j) // 2 - LOW] * tap
                            changed += (total,)
                        totals = changed + totals[(e + 1) * 2 * COLUMNS :]

        place = image.to(tl.int64) * (TALL_IN * WIDE_IN) + (y * WIDE_IN + x) * 2
        out = out_ptr + (place * CHANNELS)[:, None] + c[None, :]
        for e in tl.static_range(2):
            for q in tl.static_range(2 * COLUMNS):
                inside = 2 * y + e < TALL_IN
                if WIDE_IN != 2 * COLUMNS * ACROSS:
                    inside = inside & (2 * x + q < WIDE_IN)
                value = totals[e * 2 * COLUMNS + q].to(out_ptr.dtype.element_ty)
                tl.store(out + (e * WIDE_IN + q) * CHANNELS, value, mask=inside[:, None] & known[None, :])

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _grad_weight_kernel(  # type: ignore[no-untyped-def]
        grad_ptr,
        x_ptr,
        sums_ptr,
        images,
        STEPS: tl.constexpr,
        CHANNELS: tl.constexpr,
        TALL_IN: tl.constexpr,
        WIDE_IN: tl.constexpr,
        TALL: tl.constexpr,
        WIDE: tl.constexpr,
        KERNEL: tl.constexpr,
        STRIDE: tl.constexpr,
        COLUMNS: tl.constexpr,
        TILES: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        PAD: tl.constexpr = KERNEL // 2
        ACROSS: tl.constexpr = (WIDE + COLUMNS - 1) // COLUMNS
        BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
        END: tl.constexpr = STRIDE * COLUMNS if WIDE % COLUMNS == 0 and WIDE_IN == WIDE * STRIDE else 0
        WHOLE: tl.constexpr = CHANNELS % BLOCK == 0
        part = tl.program_id(0) // BLOCKS
        c = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        known = c < CHANNELS
        sums = (tl.zeros((TILES, BLOCK), tl.float32),) * (KERNEL * KERNEL)
        for step in range(STEPS):
            tile = (part * STEPS + step) * TILES + tl.arange(0, TILES)
            image = tile // (ACROSS * TALL)
            y = tile // ACROSS % TALL
            x = tile % ACROSS * COLUMNS
            real = image < images
            place = (image.to(tl.int64) * TALL + y) * WIDE + x
            grads = loaded_line(
                grad_ptr + (place * CHANNELS)[:, None] + c[None, :], real, x, known,
                CHANNELS, WIDE, 0, COLUMNS, COLUMNS if WIDE % COLUMNS == 0 else 0, WHOLE,
            )  # fmt: skip
            place = (image.to(tl.int64) * TALL_IN + (y * STRIDE - PAD)) * WIDE_IN + x * STRIDE
            pixels = x_ptr + (place * CHANNELS)[:, None] + c[None, :]
            for i in tl.static_range(KERNEL):
                y_in = y * STRIDE - PAD + i
                line = loaded_line(
                    pixels + i * (WIDE_IN * CHANNELS), real & (y_in >= 0) & (y_in < TALL_IN), x * STRIDE, known,
                    CHANNELS, WIDE_IN, -PAD, (COLUMNS - 1) * STRIDE + KERNEL, END, WHOLE,
                )  # fmt: skip
                changed = sums[: i * KERNEL]
                for j in tl.static_range(KERNEL):
                    total = sums[i * KERNEL + j]
                    for q in tl.static_range(COLUMNS):
                        total += grads[q] * line[q * STRIDE + j]
                    changed += (total,)
                sums = changed + sums[(i + 1) * KERNEL :]
        places = sums_ptr + part.to(tl.int64) * (KERNEL * KERNEL * CHANNELS) + c
        for tap in tl.static_range(KERNEL * KERNEL):
            tl.store(places + tap * CHANNELS, tl.sum(sums[tap], 0), mask=known)


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
    """The kernel that inference uses, without bias, activation and sums."""
    x = channels_last(x)
    B, C, H, W = x.shape
    out = empty_channels_last((B, C, *strided(H, W, stride)), x.dtype, x.device)
    if out.numel():
        convolve(x, by_position(weight), out, stride)
    return out


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
    if not out.numel():
        return out
    taps = by_position(weight)
    if stride == 1:
        convolve(grad, taps.flip(0), out, 1)
        return out
    # The outputs of a lane are four times its columns.
    columns = tile(tall, wide, stride, 4)[1]
    programs = B * triton.cdiv(tall * triton.cdiv(wide, columns), TILES) * blocks(C)
    constants = {"CHANNELS": C, "TALL_IN": height, "WIDE_IN": width, "TALL": tall, "WIDE": wide}
    shape = {"KERNEL": weight.shape[2], "COLUMNS": columns, "TILES": TILES, "BLOCK": BLOCK}
    launch(_grad_input_kernel, (programs,), (grad, taps, out), constants | shape, warps=1)
    return out


def _grad_weight_torch(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """[C, 1, side, side]."""
    weight = x.new_empty(x.shape[1], 1, side, side)
    return _backward(channels_last(grad), channels_last(x), weight, stride, 1).contiguous()


def _grad_weight_triton(grad: torch.Tensor, x: torch.Tensor, stride: int, side: int) -> torch.Tensor:
    """[C, 1, side, side] in the dtype of `x`; summed in float32."""
    grad, x = channels_last(grad), channels_last(x)
    B, C, tall, wide = grad.shape
    if not grad.numel():
        return x.new_zeros(C, 1, side, side)
    # At a stride of 2 the pixels that a row of outputs sees take more registers.
    columns = tile(tall, wide, stride, 8 if stride == 1 else 4)[1]
    # All sums of a kernel are in registers: of 7 x 7 weights for two channels a lane instead of four.
    together = TILES if side <= 5 else TILES // 2
    tiles = triton.cdiv(B * tall * triton.cdiv(wide, columns), together)
    steps = steps_of(tiles, blocks(C))
    parts = triton.cdiv(tiles, steps)
    sums = torch.empty((parts, side * side, C), dtype=torch.float32, device=x.device)
    constants = {
        "STEPS": steps,
        "CHANNELS": C,
        "TALL_IN": x.shape[2],
        "WIDE_IN": x.shape[3],
        "TALL": tall,
        "WIDE": wide,
    }
    shape = {"KERNEL": side, "STRIDE": stride, "COLUMNS": columns, "TILES": together, "BLOCK": BLOCK}
    # The loads of a step are under way at the same time; those of the next would take registers that are not there.
    grid, arguments = (parts * blocks(C),), (grad, x, sums, B)
    launch(_grad_weight_kernel, grid, arguments, constants | shape, warps=1, stages=1, passes=steps)
    return sums.sum(0).t().reshape(C, 1, side, side).to(x.dtype)


def steps_of(tiles: int, blocks: int) -> int:
    """Groups of tiles that a program sums up: as many as leave a few programs for each place that a GPU has for them.

    Args:
        tiles: groups of tiles of the batch.
        blocks: of channels, each with programs of its own.
    """
    return max(1, tiles * blocks // PROGRAMS)


PROGRAMS = 4096
"""132 multiprocessors run about 10 programs of so many registers each at a time."""

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
