"""Convolutions whose output has few pixels, as matrix products: in training on a CPU.

Networks with a stem made for large images reduce a CIFAR image to 2 x 2 pixels in their last stage. More than half of
a padded 3x3 window lies outside such a map, and a convolution multiplies all those zeros. A product for each output
pixel, over the part of its window inside the map, needs 4/9 of the multiplications at 2 x 2, and oneDNN's gradients of
convolutions are far slower than its matrix products at these shapes.

On 7 x 7 pixels, the last stage of a network for large images, that is so of the weights' gradient alone, in bfloat16
on a CPU with AMX and between many channels: one product of the gradient with all windows is faster.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 4  # output pixels; with more, windows overlap so much that gathering them costs more than the zeros
# Output pixels and channels, in and out, at which a gradient of weights is a product: with more pixels gathering the
# windows takes longer than the product saves, with fewer channels oneDNN's gradient is as fast.
FEW_PIXELS, MANY_CHANNELS = 49, 256


def pixelwise(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """conv2d(images, weight, bias, stride, padding) for small outputs.

    Args:
        images: [B, I, H, W].
        weight: [O, I, k, k], of the images' dtype.

    Returns:
        [B, O, height, width], channels last in memory.
    """
    B, _, H, W = images.shape
    outputs, _, k, _ = weight.shape
    height, width = output_size(H, k, stride, padding), output_size(W, k, stride, padding)
    pixels, taps = images.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    products = []
    for y in range(height):
        top, rows = _window(y, H, k, stride, padding)
        for x in range(width):
            left, columns = _window(x, W, k, stride, padding)
            # Both are channels last in memory, so that a whole row of the window is read at once.
            seen = pixels[:, top.start : top.stop, left.start : left.stop].reshape(B, -1)
            wanted = taps[:, rows.start : rows.stop, columns.start : columns.stop].reshape(outputs, -1)
            products.append(functional.linear(seen, wanted, bias))
    return torch.stack(products, 1).view(B, height, width, outputs).permute(0, 3, 1, 2)


def windows(images: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What each output pixel of a convolution sees, [B, C, H, W] -> [B * height * width, kernel * kernel * C]."""
    B, C, H, W = images.shape
    height, width = output_size(H, kernel, stride, padding), output_size(W, kernel, stride, padding)
    pixels = functional.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    down, right = stride * (height - 1) + 1, stride * (width - 1) + 1
    seen = [pixels[:, y : y + down : stride, x : x + right : stride] for y in range(kernel) for x in range(kernel)]
    return torch.cat(seen, -1).view(B * height * width, kernel * kernel * C)


class _ProductForWeights(torch.autograd.Function):
    """A convolution in a short dtype whose weights' gradient is one matrix product."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        short = weight.to(images.dtype)
        ctx.save_for_backward(images, short)
        ctx.layer = layer
        added = None if bias is None else bias.to(images.dtype)
        assert not isinstance(layer.padding, str)
        return functional.conv2d(images, short, added, layer.stride, layer.padding)

    @staticmethod
    def backward(ctx: Any, *coming: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        layer, of_images, of_weight, of_bias = ctx.layer, None, None, None
        gradient = coming[0].contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            sides = (layer.stride, layer.padding, layer.dilation, False, (0, 0), 1)
            only = (True, False, False)
            of_images = torch.ops.aten.convolution_backward(gradient, images, weight, None, *sides, only)[0]
        outputs, inputs, kernel, _ = weight.shape
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
        if ctx.needs_input_grad[1]:
            product = rows.t() @ windows(images, kernel, layer.stride[0], layer.padding[0])
            of_weight = product.float().view(outputs, kernel, kernel, inputs).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0, dtype=torch.float32)
        return of_images, of_weight, of_bias, None


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Pixels along one side of a convolution's output."""
    return (size + 2 * padding - kernel) // stride + 1


def _window(place: int, size: int, kernel: int, stride: int, padding: int) -> tuple[range, range]:
    """The input pixels inside the window of an output pixel along one side, and their positions in the window."""
    first = place * stride - padding
    inside = range(max(first, 0), min(first + kernel, size))
    return inside, range(inside.start - first, inside.stop - first)


@functools.cache
def has_amx() -> bool:
    """Whether torch multiplies bfloat16 with AMX here."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and bool(capabilities().get("amx_bf16"))


def in_bfloat16(images: Tensor) -> bool:
    """Whether what is done with these images is trained in bfloat16 under autocast, on a CPU with AMX."""
    return (
        images.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and has_amx()
    )


class SmallMapConv2d(nn.Conv2d):
    """A convolution as matrix products, all of it or its weights' gradient, if its output has few pixels."""

    def forward(self, input: Tensor) -> Tensor:
        stride, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        assert isinstance(padding, int)
        height = output_size(input.shape[2], kernel, stride, padding)
        width = output_size(input.shape[3], kernel, stride, padding)
        if (
            kernel == 3
            and LARGEST < height * width <= FEW_PIXELS
            and min(self.weight.shape[:2]) >= MANY_CHANNELS
            and in_bfloat16(input)
        ):
            found: Tensor = _ProductForWeights.apply(input.to(torch.bfloat16), self.weight, self.bias, self)
            return found
        if not 0 < height * width <= LARGEST:
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled(input.device.type):
            # Cast once as a whole; autocast would cast the parts of each pixel again.
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
        return pixelwise(input, weight, self.bias, stride, padding)


def suits(layer: nn.Module) -> bool:
    """Whether a layer is a plain square convolution, the only kind that `pixelwise` can compute."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and all(len(set(sides)) == 1 for sides in (layer.kernel_size, layer.stride, layer.padding))
        and set(layer.dilation) == {1}
        # A 1x1 convolution already is a matrix product.
        and layer.kernel_size[0] > 1
    )


def adapt_small_maps(model: nn.Module) -> nn.Module:
    """Turn every convolution that `suits` into a SmallMapConv2d, in place; parameters and their names stay."""
    for module in model.modules():
        if suits(module):
            module.__class__ = SmallMapConv2d
    return model
