"""Depthwise convolutions with gradients in fp32 within autocast: those in bfloat16 are slow on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Fp32Gradients(torch.autograd.Function):
    """A depthwise convolution in a short dtype whose gradients are computed in fp32."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        # The images are kept as they came, half as large as in fp32.
        ctx.save_for_backward(images, weight)
        ctx.layer, ctx.bias = layer, bias
        short = None if bias is None else bias.to(images.dtype)
        assert not isinstance(layer.padding, str)
        return functional.conv2d(
            images, weight.to(images.dtype), short, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    @staticmethod
    def backward(ctx: Any, *coming: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        layer, bias = ctx.layer, ctx.bias
        wanted = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
        shape = None if bias is None else list(bias.shape)
        sides = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            coming[0].float(), images.float(), weight.float(), shape, *sides, wanted
        )
        return None if of_images is None else of_images.to(images.dtype), of_weight, of_bias, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with fp32 gradients where autocast asks for another dtype.

    oneDNN has fast bfloat16 gradients for windows of 3 x 3 that move by one pixel. Those of larger windows and longer
    strides take up to four times as long as in fp32, which is far more than turning images into fp32 takes. Depthwise
    convolutions are few of a network's operations, so that fp32 costs little else.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if not (torch.is_autocast_enabled(kind) and torch.is_grad_enabled()):
            return super().forward(input)
        found: Tensor = _Fp32Gradients.apply(input.to(torch.get_autocast_dtype(kind)), self.weight, self.bias, self)
        return found


def suits(layer: nn.Module) -> bool:
    """Whether a layer is a depthwise convolution with a large window or a long stride."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels > 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and (max(layer.kernel_size) > 3 or max(layer.stride) > 1)
    )


def adapt_depthwise(model: nn.Module) -> nn.Module:
    """Turn every convolution that `suits` into a DepthwiseConv2d, in place; parameters and their names stay."""
    for module in model.modules():
        if suits(module):
            module.__class__ = DepthwiseConv2d
    return model
