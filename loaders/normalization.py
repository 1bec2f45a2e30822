"""Bytes to network input: by the data set's statistics, or each image by its own."""

import torch

from kernels.formats import dtype_of
from kernels.normalize import normalize
from kernels.runtime import scale_and_bias
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


class Scratch:
    """What a thread needs for one image of `size` pixels, made once: float32, as rows and as planes."""

    def __init__(self, size: int) -> None:
        self.rows = torch.empty(size, 3 * size)
        self.planes = self.rows.view(1, size, size, 3).permute(0, 3, 1, 2)


class OneImage:
    """`normalized` for one image at a time on the CPU, while it is in the cache, straight into the finished batch.

    Every call of torch gives up the interpreter's lock and takes it again, also those that only look at memory in
    another way. In several threads these are what to save.
    """

    def __init__(self, options: LoaderOptions) -> None:
        self._size, self._per_image = options.size, options.normalization == "per_image"
        # One row of the image: long enough for vector code, which a broadcast over three channels is not.
        self._scale, self._shift = (
            torch.tensor(values, dtype=torch.float32).repeat(options.size)
            for values in scale_and_bias(options.mean, options.std)
        )

    def __call__(self, image: torch.Tensor, rows: torch.Tensor, scratch: Scratch) -> None:
        """Normalise an image.

        Args:
            image: uint8 [1, 3, size, size] with channels last in memory.
            rows: get the result: [size, 3 * size], of a batch.
            scratch: of this thread, overwritten.
        """
        if self._per_image:
            rows.copy_(standardize(image.permute(0, 2, 3, 1), rows.dtype).permute(0, 2, 3, 1).reshape(rows.shape))
            return
        scratch.planes.copy_(image)
        if rows.dtype == torch.float32:
            torch.addcmul(self._shift, scratch.rows, self._scale, out=rows)
        else:
            rows.copy_(torch.addcmul(self._shift, scratch.rows, self._scale, out=scratch.rows))
