"""Convolutions whose output has few pixels, computed pixel by pixel as matrix products.

Networks with a stem made for large images reduce a CIFAR image to 2 x 2 pixels in their last stage. More than half of
a padded 3x3 window lies outside such a map, and a convolution multiplies all those zeros. A product for each output
pixel, over the part of its window inside the map, needs 4/9 of the multiplications at 2 x 2, and oneDNN's gradients of
convolutions are far slower than its matrix products at these shapes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 4  # output pixels; with more, windows overlap so much that gathering them costs more than the zeros


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


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Pixels along one side of a convolution's output."""
    return (size + 2 * padding - kernel) // stride + 1


def _window(place: int, size: int, kernel: int, stride: int, padding: int) -> tuple[range, range]:
    """The input pixels inside the window of an output pixel along one side, and their positions in the window."""
    first = place * stride - padding
    inside = range(max(first, 0), min(first + kernel, size))
    return inside, range(inside.start - first, inside.stop - first)


class SmallMapConv2d(nn.Conv2d):
    """A convolution that uses `pixelwise` if its output has few pixels."""

    def forward(self, input: Tensor) -> Tensor:
        stride, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        assert isinstance(padding, int)
        height = output_size(input.shape[2], kernel, stride, padding)
        width = output_size(input.shape[3], kernel, stride, padding)
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
