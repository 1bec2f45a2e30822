"""Max pooling for training on a CPU that remembers each maximum in one byte, where torch takes eight.

Its backward pass writes each pixel once, where torch's clears all of them and then adds.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.native import NAMES, call, library, operator
from models.small_maps import output_size

# Measured on 2 cores with AMX, at 16 to 528 channels: with fewer than 64 both passes together take longer than torch's.
FEW_CHANNELS = 64

Sides = tuple[int, int, int]
"""Kernel, stride and padding in pixels, the same along both sides."""


@operator("max_pool(Tensor images, int kernel, int stride, int padding) -> (Tensor, Tensor)")
def _max_pool(images: Tensor, *sides: int) -> tuple[Tensor, Tensor]:
    """The result, and the place of each maximum in its window, counted in rows: uint8, of the result's shape."""
    B, C, H, W = images.shape
    shape = (B, C, output_size(H, *sides), output_size(W, *sides))
    result = torch.empty(shape, dtype=images.dtype, memory_format=torch.channels_last)
    taps = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    call("pool", images.dtype, [images, result, taps], [B, C, H, W, *shape[2:], *sides])
    return result, taps


@operator(
    "max_pool_backward(Tensor coming, Tensor taps, int height, int width, int kernel, int stride, int padding) "
    "-> Tensor"
)
def _max_pool_backward(coming: Tensor, taps: Tensor, height: int, width: int, *sides: int) -> Tensor:
    """The gradient of the images [B, C, height, width]."""
    B, C, rows, columns = coming.shape
    of_images = torch.empty((B, C, height, width), dtype=coming.dtype, memory_format=torch.channels_last)
    call("pool_gradient", coming.dtype, [coming, taps, of_images], [B, C, height, width, rows, columns, *sides])
    return of_images


class _MaxPool(torch.autograd.Function):
    """Max pooling of channels-last images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, sides: Sides) -> Tensor:
        result: Tensor
        result, taps = _max_pool(images, *sides)
        ctx.save_for_backward(taps)
        ctx.sides = (*images.shape[2:], *sides)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *coming: Tensor) -> tuple[Tensor | None, ...]:
        (taps,) = ctx.saved_tensors
        return _max_pool_backward(coming[0].contiguous(memory_format=torch.channels_last), taps, *ctx.sides), None


class QuickMaxPool2d(nn.MaxPool2d):
    """Max pooling whose training passes are those above, for channels-last images in bfloat16 or fp32.

    Images of fewer than 64 channels go torch's way, which is faster there.
    """

    def forward(self, input: Tensor) -> Any:
        sides = self._sides()
        quick = (
            sides is not None
            and self.training
            and torch.is_grad_enabled()
            and input.requires_grad
            and input.device.type == "cpu"
            and input.dim() == 4
            and input.numel() > 0
            and input.shape[1] >= FEW_CHANNELS
            and input.dtype in NAMES
            and min(input.shape[2:]) + 2 * sides[2] >= sides[0]
            and input.is_contiguous(memory_format=torch.channels_last)
            and not torch.compiler.is_compiling()
        )
        return _MaxPool.apply(input, sides) if quick else super().forward(input)

    def _sides(self) -> Sides | None:
        """None where it is no plain square window, or one whose places no byte can tell."""
        sides = []
        for side in (self.kernel_size, self.stride, self.padding, self.dilation):
            pair = (side, side) if isinstance(side, int) else tuple(side)
            if pair[0] != pair[1]:
                return None
            sides.append(pair[0])
        kernel, stride, padding, dilation = sides
        fits = kernel * kernel <= 256 and 2 * padding <= kernel
        plain = dilation == 1 and not self.ceil_mode and not self.return_indices
        return (kernel, stride, padding) if fits and plain else None


def quicken_max_pool(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Make the max poolings of a network quick, in place.

    Returns:
        the network, and a note if it stays as it was because nothing can be compiled here.
    """
    found = [module for module in model.modules() if type(module) is nn.MaxPool2d]
    compiled = library() if found else ""
    if found and isinstance(compiled, str):
        return model, (f"max pooling is torch's own, which is slower: {compiled}",)
    for module in found:
        module.__class__ = QuickMaxPool2d
    return model, ()
