"""Layers that our own kernels compute, put in the place of a network's: the lever `kernels`.

For inference EfficientNet's bottleneck (Tan and Le 2019) becomes two kernels and a small squeeze-and-excitation instead
of a depthwise convolution, a mean, a product and a projection, each over the widest tensor of the block. For training
depthwise convolutions get gradients of their own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kernels.depthwise import depthwise
from kernels.depthwise_backward import LARGEST, depthwise_convolution
from kernels.pointwise import scaled_pointwise
from models.errors import ModelError


class Bottleneck(nn.Module):
    """torchvision's MBConv with batch norms folded, [B, C, H, W] -> [B, N, ceil(H / stride), ceil(W / stride)].

    Args:
        block: a torchvision MBConv that `suits_inference`, in evaluation mode. Its weights are copied.
        implementation: of the kernels; None takes what is best on the input's device.
    """

    def __init__(self, block: Any, implementation: str | None = None) -> None:
        super().__init__()
        *expand, spatial, squeeze, project = block.block
        self.implementation = implementation
        self.residual = bool(block.use_res_connect)
        self.stride = int(spatial[0].stride[0])
        self.expand = nn.Sequential(_folded(expand[0]), nn.SiLU()) if expand else None
        # In fp32, where folding is exact; whoever prepares the network casts and places them with all the others.
        for name, layer in (("spatial", _folded(spatial)), ("project", _folded(project))):
            assert layer.bias is not None
            self.register_buffer(f"{name}_weight", layer.weight.detach())
            self.register_buffer(f"{name}_bias", layer.bias.detach())
        for name, layer in (("reduce", squeeze.fc1), ("excite", squeeze.fc2)):
            self.register_buffer(f"{name}_weight", layer.weight.detach().flatten(1))
            self.register_buffer(f"{name}_bias", layer.bias.detach())

    spatial_weight: Tensor
    spatial_bias: Tensor
    project_weight: Tensor
    project_bias: Tensor
    reduce_weight: Tensor
    reduce_bias: Tensor
    excite_weight: Tensor
    excite_bias: Tensor

    def forward(self, input: Tensor) -> Tensor:
        made = input if self.expand is None else self.expand(input)
        made, sums = depthwise(
            made, self.spatial_weight, self.spatial_bias, self.stride, "silu", implementation=self.implementation
        )
        pooled = (sums / (made.shape[2] * made.shape[3])).to(made.dtype)
        hidden = functional.silu(functional.linear(pooled, self.reduce_weight, self.reduce_bias))
        scale = torch.sigmoid(functional.linear(hidden, self.excite_weight, self.excite_bias))
        # Under autocast the weights are fp32 and the pixels are not.
        return scaled_pointwise(
            made,
            scale.to(made.dtype),
            self.project_weight.to(made.dtype),
            self.project_bias.to(made.dtype),
            input.to(made.dtype) if self.residual else None,
            implementation=self.implementation,
        )


def _folded(layers: Any) -> nn.Conv2d:
    """A convolution and the batch norm after it as one convolution."""
    folded: nn.Conv2d = fuse_conv_bn_eval(layers[0], layers[1])
    return folded


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution whose forward pass and gradients are ours."""

    implementation: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_convolution(input, self.weight, self.stride[0], implementation=self.implementation)


def suits_inference(module: nn.Module) -> bool:
    """Whether a module is a bottleneck that `Bottleneck` computes."""
    from torchvision.models.efficientnet import MBConv
    from torchvision.ops.misc import SqueezeExcitation

    if not isinstance(module, MBConv):
        return False
    *expand, spatial, squeeze, project = module.block
    return (
        len(expand) <= 1
        and all(isinstance(part[2], nn.SiLU) for part in (*expand, spatial))
        and _plain_depthwise(spatial[0])
        and type(squeeze) is SqueezeExcitation
        and isinstance(squeeze.activation, nn.SiLU)
        and isinstance(squeeze.scale_activation, nn.Sigmoid)
        and len(project) == 2
    )


def suits_training(module: nn.Module) -> bool:
    """Whether a module is a depthwise convolution that `DepthwiseConv2d` computes."""
    return type(module) is nn.Conv2d and module.bias is None and _plain_depthwise(module)


def _plain_depthwise(layer: nn.Conv2d) -> bool:
    """One filter a channel, square, of odd side, with half a side of zeros around."""
    side = layer.kernel_size[0]
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.kernel_size == (side, side)
        and side % 2 == 1
        and side <= LARGEST
        and layer.padding == (side // 2, side // 2)
        and layer.padding_mode == "zeros"
        and layer.stride in ((1, 1), (2, 2))
        and set(layer.dilation) == {1}
    )


def use_kernels(model: nn.Module, training: bool, implementation: str | None = None) -> nn.Module:
    """Replace in place what our kernels compute; for inference the model must be in evaluation mode.

    A training network keeps its parameters and their names. One for inference has other, folded ones.

    Raises:
        ModelError: there is nothing to replace.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if training and suits_training(child):
                child.__class__ = DepthwiseConv2d
                child.implementation = implementation  # type: ignore[assignment]
                count += 1
            elif not training and suits_inference(child):
                setattr(parent, name, Bottleneck(child, implementation))
                count += 1
    if not count:
        what = "no depthwise convolution" if training else "no bottleneck of EfficientNet"
        raise ModelError(f"the lever kernels finds {what} in this network; leave it out")
    return model
