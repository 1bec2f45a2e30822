"""A 1 x 1 convolution of scaled channels with bias and residual: EfficientNet's projection.

Squeeze-and-excitation multiplies every channel of an image by one number (Hu et al. 2018) before the projection mixes
the channels. Multiplying while the projection reads them saves a read and a write of the widest tensor of the block;
bias and residual are added before the result is written.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from kernels.runtime import (
    HAS_TRITON,
    INTERPRETED,
    Operation,
    channels_last,
    check_feature_maps,
    choose_implementation,
    empty_channels_last,
    launch,
)

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _pointwise_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        scale_ptr,
        weight_ptr,
        bias_ptr,
        residual_ptr,
        out_ptr,
        pixels,
        PIXELS_AN_IMAGE: tl.constexpr,
        CHANNELS_IN: tl.constexpr,
        CHANNELS_OUT: tl.constexpr,
        RESIDUAL: tl.constexpr,
        EXACT: tl.constexpr,
        BLOCK_M: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        # All blocks of output channels of the same pixels run next to each other: the pixels come from the cache.
        BLOCKS: tl.constexpr = (CHANNELS_OUT + BLOCK_N - 1) // BLOCK_N
        m = tl.program_id(0) // BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
        real_m, real_n = m < pixels, n < CHANNELS_OUT
        image = m // PIXELS_AN_IMAGE
        ks = tl.arange(0, BLOCK_K)
        x_ptrs = x_ptr + (m.to(tl.int64) * CHANNELS_IN)[:, None] + ks[None, :]
        scale_ptrs = scale_ptr + (image * CHANNELS_IN)[:, None] + ks[None, :]
        # The weight's rows are output channels; reading across them needs no transposed copy.
        weight_ptrs = weight_ptr + (n * CHANNELS_IN)[None, :] + ks[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, CHANNELS_IN, BLOCK_K):
            real_k = ks < CHANNELS_IN - start
            mask = real_m[:, None] & real_k[None, :]
            x = tl.load(x_ptrs + start, mask=mask, other=0.0)
            scale = tl.load(scale_ptrs + start, mask=mask, other=0.0)
            scaled = (x.to(tl.float32) * scale.to(tl.float32)).to(x_ptr.dtype.element_ty)
            weight = tl.load(weight_ptrs + start, mask=real_k[:, None] & real_n[None, :], other=0.0)
            if EXACT:
                total = tl.dot(scaled.to(tl.float32), weight.to(tl.float32), total, input_precision="ieee")
            else:
                total = tl.dot(scaled, weight, total)
        total += tl.load(bias_ptr + n, mask=real_n, other=0.0).to(tl.float32)[None, :]
        places = (m.to(tl.int64) * CHANNELS_OUT)[:, None] + n[None, :]
        inside = real_m[:, None] & real_n[None, :]
        if RESIDUAL:
            total += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=inside)


def scaled_pointwise(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """A 1 x 1 convolution of x * scale, + bias, + residual.

    Args:
        x: [B, C, H, W]; read as channels_last, and copied into it if it is not.
        scale: [B, C].
        weight: [N, C, 1, 1].
        bias: [N].
        residual: [B, N, H, W], or None.
        implementation: "torch", "compiled" or "triton"; None takes the default one of the device.

    Returns:
        [B, N, H, W] in x's dtype with channels last in memory. Sums are in float32; float32 is multiplied as such, not
        as TF32.

    Raises:
        ValueError: another shape, dtype, device or implementation than these.
    """
    check_feature_maps(x)
    B, C, H, W = x.shape
    if scale.shape != (B, C):
        raise ValueError(f"scale must be [{B}, {C}], not {list(scale.shape)}")
    if weight.dim() != 4 or weight.shape[1:] != (C, 1, 1):
        raise ValueError(f"weight must be [N, {C}, 1, 1], not {list(weight.shape)}")
    N = len(weight)
    if bias.shape != (N,):
        raise ValueError(f"bias must be [{N}], not {list(bias.shape)}")
    if residual is not None and residual.shape != (B, N, H, W):
        raise ValueError(f"residual must be [{B}, {N}, {H}, {W}], not {list(residual.shape)}")
    tensors = [x, scale, weight, bias, *([] if residual is None else [residual])]
    if len({tensor.device for tensor in tensors}) > 1 or len({tensor.dtype for tensor in tensors}) > 1:
        kinds = ", ".join(sorted({f"{tensor.dtype} on {tensor.device}" for tensor in tensors}))
        raise ValueError(f"all must be of one dtype and on one device, not {kinds}")
    return SCALED_POINTWISE(choose_implementation(implementation, x.device), x, scale, weight, bias, residual)


def _pointwise_torch(
    x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """The twin: the same from PyTorch's own operators; arguments as for `scaled_pointwise`."""
    result = functional.conv2d(x * scale[:, :, None, None], weight, bias)
    if residual is not None:
        result = result + residual
    return channels_last(result)


def _pointwise_triton(
    x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    x = channels_last(x)
    B, C, H, W = x.shape
    N = len(weight)
    out = empty_channels_last((B, N, H, W), x.dtype, x.device)
    if not out.numel():
        return out
    block_m, block_n, block_k = blocks(C, N)
    pixels = B * H * W
    added = out if residual is None else channels_last(residual)
    # Triton's interpreter would multiply the bits of bfloat16 as integers.
    exact = x.dtype == torch.float32 or INTERPRETED
    constants = {
        **{"PIXELS_AN_IMAGE": H * W, "CHANNELS_IN": C, "CHANNELS_OUT": N, "RESIDUAL": residual is not None},
        **{"EXACT": exact, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k},
    }
    launch(
        _pointwise_kernel,
        (triton.cdiv(pixels, block_m) * triton.cdiv(N, block_n),),
        (x, scale.contiguous(), weight.contiguous(), bias.contiguous(), added, out, pixels),
        constants,
        warps=8 if block_n == 128 else 4,
        passes=triton.cdiv(C, block_k),
    )
    return out


def blocks(channels_in: int, channels_out: int) -> tuple[int, int, int]:
    """Pixels, output channels and input channels that a program multiplies at a time; powers of two from 16."""
    block_n = 16
    # A projection has few channels: one block where they fit, so that every pixel is read once.
    while block_n < min(channels_out, 128):
        block_n *= 2
    return 128, block_n, 32 if channels_in > 16 else 16


SCALED_POINTWISE = Operation("scaled_pointwise", _pointwise_torch, _pointwise_triton)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """What is timed: EfficientNet-B0's third stage, 240 to 40 channels at an eighth of the image's side."""
    side = max(1, size // 8)
    x = channels_last(torch.randn(batch, 240, side, side).to(device, dtype))
    residual = channels_last(torch.randn(batch, 40, side, side).to(device, dtype))
    scale, weight, bias = torch.rand(batch, 240), 0.1 * torch.randn(40, 240, 1, 1), torch.randn(40)
    scale, weight, bias = (part.to(device, dtype) for part in (scale, weight, bias))
    return partial(scaled_pointwise, x, scale, weight, bias, residual, implementation=implementation)
