"""Convolutions of 1 x 1 as matrix products on a CPU: the lever `mm`, and training in bfloat16.

A matrix product is compiled as a whole, with what comes after it, where each convolution is a call of oneDNN's. For one
image such a call costs much beside what it computes.

In training it is oneDNN's own product, whose gradients are faster than those of its convolutions, the more so the fewer
pixels there are.
"""

from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.small_maps import in_bfloat16

MANY_CHANNELS = 64  # in and out, from which training gains: with fewer a product's gradient of weights is slower


class Pointwise(nn.Conv2d):
    """A convolution of 1 x 1 that is a matrix product of pixels: [B, C, H, W] -> [B, N, h, w], channels last."""

    def forward(self, input: Tensor) -> Tensor:
        seen = input.permute(0, 2, 3, 1)
        if self.stride != (1, 1):
            down, right = self.stride
            seen = seen[:, ::down, ::right]
        return functional.linear(seen, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class TrainedPointwise(Pointwise):
    """The same, where it is trained in bfloat16 on a CPU with AMX; elsewhere a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if in_bfloat16(input) else nn.Conv2d.forward(self, input)


def suits(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of 1 x 1 over all channels, without a margin."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
        and layer.groups == 1
    )


def adapt_pointwise(network: nn.Module) -> nn.Module:
    """Have what `suits` and has many channels trained as matrix products, in place; parameters and names stay."""
    for layer in network.modules():
        if suits(layer) and isinstance(layer, nn.Conv2d) and min(layer.weight.shape[:2]) >= MANY_CHANNELS:
            layer.__class__ = TrainedPointwise
    return network


def use_products(network: nn.Module) -> nn.Module:
    """Replace in place what `suits` and moves by one pixel. Raises ModelError: there is nothing to replace."""
    found = [layer for layer in network.modules() if suits(layer) and layer.stride == (1, 1)]
    for layer in found:
        layer.__class__ = Pointwise
    if not found:
        raise ModelError("the lever mm finds no convolution of 1 x 1 in this network; leave it out")
    return network
