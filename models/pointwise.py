"""Convolutions of 1 x 1 as matrix products on a CPU: the lever `mm`.

A matrix product is compiled as a whole, with what comes after it, where each convolution is a call of oneDNN's. For one
image such a call costs much beside what it computes.
"""

from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError


class Pointwise(nn.Conv2d):
    """A convolution of 1 x 1 that is a matrix product of pixels: [B, C, H, W] -> [B, N, H, W], channels last."""

    def forward(self, input: Tensor) -> Tensor:
        pixels = functional.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return pixels.permute(0, 3, 1, 2)


def suits(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of 1 x 1 over all channels that moves by one pixel."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
        and layer.groups == 1
    )


def use_products(network: nn.Module) -> nn.Module:
    """Replace in place what `suits`. Raises ModelError: there is nothing to replace."""
    found = [layer for layer in network.modules() if suits(layer)]
    for layer in found:
        layer.__class__ = Pointwise
    if not found:
        raise ModelError("the lever mm finds no convolution of 1 x 1 in this network; leave it out")
    return network
