"""uint8 images to normalised network input in one pass over memory.

A decoder delivers rows of pixels, [B, H, W, 3]; a network wants [B, 3, H, W] in its own precision with channels last in
memory. Those are the same order of bytes, so nothing has to be transposed: each byte becomes one number,
x * 1 / (255 std) - mean / std. A first script does it in four passes (to float, / 255, - mean, / std) and a
transposition.
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

if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _normalize_kernel(  # type: ignore[no-untyped-def]
        images_ptr,
        out_ptr,
        count,
        scale_r,
        scale_g,
        scale_b,
        bias_r,
        bias_g,
        bias_b,
        BLOCK: tl.constexpr,
    ):
        # 64 bits for the position only: 15,000 images of 224 pixels pass 2**31 bytes, but taking a remainder in 64 bits
        # for every element would cost more than the rest of the kernel.
        start = tl.program_id(0).to(tl.int64) * BLOCK
        lane = tl.arange(0, BLOCK)
        channel = ((start % 3).to(tl.int32) + lane) % 3
        inside = start + lane < count
        value = tl.load(images_ptr + start + lane, mask=inside, other=0).to(tl.float32)
        scale = tl.where(channel == 0, scale_r, tl.where(channel == 1, scale_g, scale_b))
        bias = tl.where(channel == 0, bias_r, tl.where(channel == 1, bias_g, bias_b))
        result = value * scale + bias
        tl.store(out_ptr + start + lane, result.to(out_ptr.dtype.element_ty), mask=inside)


def normalize(
    images: torch.Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    implementation: str | None = None,
) -> torch.Tensor:
    """(images / 255 - mean) / std.

    Args:
        images: uint8, [B, H, W, 3].
        mean: red, green and blue in units of 0..1.
        std: likewise, above zero.
        dtype: of the result: float32, bfloat16 or float16. Computed in float32 and rounded once.
        implementation: "torch", "compiled" or "triton"; None takes the default one of the device. "triton" needs a
            CUDA tensor, or TRITON_INTERPRET=1 in the environment before this module is imported.

    Returns:
        [B, 3, H, W] with channels last in memory (torch.channels_last), on the device of `images`.

    Raises:
        ValueError: another shape, dtype or implementation than these.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    scale_and_bias(mean, std)
    check_output_dtype(dtype)
    return NORMALIZE(choose_implementation(implementation, images.device), images, mean, std, dtype)


def normalize_torch(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """The twin: the same numbers from PyTorch's own operators; arguments as for `normalize`."""
    B, H, W, _ = images.shape
    # Repeating the three constants along a row gives the inner loop 3 W contiguous elements instead of 3, which is what
    # lets it use whole vectors on a CPU.
    scale, bias = (torch.tensor(values, device=images.device).repeat(W) for values in scale_and_bias(mean, std))
    # Always a new tensor: the caller keeps its bytes.
    rows = images.reshape(B, H, W * 3).to(torch.float32)
    return rows.mul_(scale).add_(bias).to(dtype).view(B, H, W, 3).permute(0, 3, 1, 2)


def _normalize_triton(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    images = images.contiguous()
    B, H, W, _ = images.shape
    out = empty_channels_last((B, 3, H, W), dtype, images.device)
    count = images.numel()
    if count:
        block = 4096
        scale, bias = scale_and_bias(mean, std)
        grid = (triton.cdiv(count, block),)
        launch(_normalize_kernel, grid, (images, out, count, *scale, *bias), {"BLOCK": block}, warps=8)
    return out


NORMALIZE = Operation("normalize", normalize_torch, _normalize_triton)


def example(
    implementation: str, batch: int, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """What is timed: one call on `batch` random images of `size` x `size` pixels."""
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    return partial(normalize, images, dtype=dtype, implementation=implementation)
