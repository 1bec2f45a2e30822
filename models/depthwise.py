"""Depthwise convolutions whose bfloat16 gradient is slow on a CPU, computed in fp32 within autocast."""

import torch
from torch import Tensor, nn


class SingleDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that trains in fp32 where autocast asks for bfloat16.

    oneDNN has fast bfloat16 gradients for windows of 3 x 3 that move by one pixel. Those of larger windows and longer
    strides take up to four times as long as in fp32, which is far more than turning images into fp32 and back takes.
    Depthwise convolutions are few of a network's operations, so that fp32 costs little else.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        # Without gradients bfloat16 is as fast, and nothing needs to be turned.
        if not (torch.is_autocast_enabled(kind) and torch.is_grad_enabled()):
            return super().forward(input)
        with torch.autocast(kind, enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype(kind))


def suits(layer: nn.Module) -> bool:
    """Whether a layer is a depthwise convolution with a large window or a long stride."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels > 1
        and (max(layer.kernel_size) > 3 or max(layer.stride) > 1)
    )


def adapt_depthwise(model: nn.Module) -> nn.Module:
    """Turn every convolution that `suits` into a SingleDepthwiseConv2d, in place; parameters and their names stay."""
    for module in model.modules():
        if suits(module):
            module.__class__ = SingleDepthwiseConv2d
    return model
