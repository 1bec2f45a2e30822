"""A 1 x 1 convolution of channels that are first scaled, image by image: the end of EfficientNet's bottleneck.

Squeeze-and-excitation multiplies every channel of an image by one number (Hu et al. 2018) before the projection mixes
the channels. Multiplying while the projection reads them spares a read and a write of the widest tensor of the block;
bias and the residual are added before the result is written.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from kernels.runtime import (
    HAS_TRITON,
    INTERPRETED,
    Implementations,
    check_implementation,
    chosen,
    compiled,
    dtype_of,
    on_device_of,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

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
        pixels_an_image,
        channels_in,
        channels_out,
        RESIDUAL: tl.constexpr,  # noqa: N803
        EXACT: tl.constexpr,  # noqa: N803
        BLOCK_M: tl.constexpr,  # noqa: N803
        BLOCK_N: tl.constexpr,  # noqa: N803
        BLOCK_K: tl.constexpr,  # noqa: N803
    ):
        # All blocks of output channels of the same pixels run next to each other: the pixels come from the cache.
        blocks_n = tl.cdiv(channels_out, BLOCK_N)
        m = (tl.program_id(0) // blocks_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        n = (tl.program_id(0) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
        real_m, real_n = m < pixels, n < channels_out
        image = m // pixels_an_image
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, channels_in, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            real_k = k < channels_in
            mask = real_m[:, None] & real_k[None, :]
            x = tl.load(x_ptr + m[:, None] * channels_in + k[None, :], mask=mask, other=0.0)
            scale = tl.load(scale_ptr + image[:, None] * channels_in + k[None, :], mask=mask, other=0.0)
            scaled = (x.to(tl.float32) * scale.to(tl.float32)).to(x_ptr.dtype.element_ty)
            # Its rows are output channels: read across, so that no transposed copy is needed.
            weight = tl.load(
                weight_ptr + n[None, :] * channels_in + k[:, None], mask=real_k[:, None] & real_n[None, :], other=0.0
            )
            if EXACT:
                total = tl.dot(scaled.to(tl.float32), weight.to(tl.float32), total, input_precision="ieee")
            else:
                total = tl.dot(scaled, weight, total)
        total += tl.load(bias_ptr + n, mask=real_n, other=0.0).to(tl.float32)[None, :]
        places = m[:, None] * channels_out + n[None, :]
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
        implementation: "torch", "compiled" (by torch) or "triton"; None takes `chosen(x.device)`.

    Returns:
        [B, N, H, W] in x's dtype with channels last in memory. Sums are in float32; float32 is multiplied as such, not
        as TF32.

    Raises:
        ValueError: another shape, dtype, device or implementation than these.
    """
    implementation = chosen(x.device) if implementation is None else implementation
    _check(x, scale, weight, bias, residual, implementation)
    if torch.compiler.is_compiling():
        result: torch.Tensor = torch.ops.pixbench.scaled_pointwise(x, scale, weight, bias, residual, implementation)
        return result
    return IMPLEMENTED[implementation](x, scale, weight, bias, residual)


def _check(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    implementation: str,
) -> None:
    if x.dim() != 4 or x.dtype not in DTYPES:
        raise ValueError(f"x must be [B, C, H, W] of {', '.join(map(str, DTYPES))}, not {x.dtype} {list(x.shape)}")
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
    given = [x, scale, weight, bias, *([] if residual is None else [residual])]
    if len({tensor.device for tensor in given}) > 1 or len({tensor.dtype for tensor in given}) > 1:
        found = ", ".join(sorted({f"{tensor.dtype} on {tensor.device}" for tensor in given}))
        raise ValueError(f"all must be of one dtype and on one device, not {found}")
    check_implementation(implementation, x.device)


def pointwise_torch(
    x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """The twin: the same from PyTorch's own operators; arguments as for `scaled_pointwise`."""
    made = functional.conv2d(x * scale[:, :, None, None], weight, bias)
    if residual is not None:
        made = made + residual
    return made.contiguous(memory_format=torch.channels_last)


def pointwise_triton(
    x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """The kernel; arguments as for `scaled_pointwise`."""
    x = x.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    N = len(weight)
    out = torch.empty((B, N, H, W), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if not out.numel():
        return out
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    block_m, block_n, block_k = blocks(C, N)
    pixels = B * H * W
    with on_device_of(x):
        _pointwise_kernel[(triton.cdiv(pixels, block_m) * triton.cdiv(N, block_n),)](
            x,
            scale.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            out if residual is None else residual,
            out,
            pixels,
            H * W,
            C,
            N,
            RESIDUAL=residual is not None,
            # The interpreter multiplies the bits of bfloat16 as whole numbers.
            EXACT=x.dtype == torch.float32 or INTERPRETED,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4,
            num_stages=3,
        )
    return out


def blocks(channels_in: int, channels_out: int) -> tuple[int, int, int]:
    """Pixels, output channels and input channels of a step of a program; each a power of two from 16."""
    block_n = 16
    # A projection's channels are few: in one block where they fit, so that every pixel is read once.
    while block_n < min(channels_out, 128):
        block_n *= 2
    return 128, block_n, 32 if channels_in > 16 else 16


def example(
    implementation: str, batch: int, size: int, dtype: str, device: torch.device | str
) -> Callable[[], torch.Tensor]:
    """What is timed: EfficientNet-B0's third stage, 240 to 40 channels at an eighth of the image's side.

    Raises:
        ValueError: a dtype that is none of DTYPES, or an implementation that cannot run on `device`.
    """
    made = dtype_of(dtype, DTYPES, "scaled_pointwise")
    check_implementation(implementation, torch.device(device))
    side = max(1, size // 8)
    x = torch.randn(batch, 240, side, side).to(device, made, memory_format=torch.channels_last)
    residual = torch.randn(batch, 40, side, side).to(device, made, memory_format=torch.channels_last)
    scale, weight, bias = torch.rand(batch, 240), 0.1 * torch.randn(40, 240, 1, 1), torch.randn(40)
    scale, weight, bias = (part.to(device, made) for part in (scale, weight, bias))
    return partial(scaled_pointwise, x, scale, weight, bias, residual, implementation=implementation)


# Before the operator's registration, which has to find its implementations.
IMPLEMENTED: Implementations = {
    "torch": pointwise_torch,
    "compiled": compiled(pointwise_torch),
    "triton": pointwise_triton,
}


@torch.library.custom_op("pixbench::scaled_pointwise", mutates_args=())
def _operator(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    implementation: str,
) -> torch.Tensor:
    return IMPLEMENTED[implementation](x, scale, weight, bias, residual)


@_operator.register_fake
def _shape(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    implementation: str,
) -> torch.Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
