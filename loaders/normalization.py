"""Bytes to network input: by the data set's statistics, or each image by its own."""

import torch

from kernels.formats import dtype_of
from kernels.normalize import normalize
from loaders.options import LoaderOptions


def normalized(pixels: torch.Tensor, options: LoaderOptions) -> torch.Tensor:
    """uint8 [B, H, W, 3] as the options ask for it: [B, 3, H, W] in their dtype and memory order."""
    dtype = dtype_of(options.dtype)
    if options.normalization == "per_image":
        images = standardize(pixels, dtype)
    else:
        images = normalize(pixels, options.mean, options.std, dtype)
    return images.contiguous() if options.layout == "nchw" else images


def standardize(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each channel of each image to mean 0 and deviation 1.

    Args:
        pixels: uint8 [B, H, W, 3].
        dtype: of the result; computed in float32 and rounded once.

    Returns:
        [B, 3, H, W] with channels last in memory. A channel of one value becomes 0.
    """
    count, tall, wide, channels = pixels.shape
    values = pixels.to(torch.float32).reshape(count, tall * wide, channels)
    variance, mean = torch.var_mean(values, dim=1, correction=0, keepdim=True)
    # The smallest deviation of a channel of bytes that is not constant: one pixel off by one level.
    least = 0.5 / (tall * wide) ** 0.5
    scale = variance.sqrt_().clamp_(min=least).reciprocal_()
    result = values.sub_(mean).mul_(scale).to(dtype)
    return result.view(count, tall, wide, channels).permute(0, 3, 1, 2)
