"""Batch normalisation for training on a CPU, in two passes each way, with sum and ReLU behind it.

What it costs is reading and writing, and an addition and a ReLU behind torch's own read and write everything once more,
in the backward pass too. Here one pass over the input gives the sums and a second one the finished output; the backward
pass is two as well, and where nothing was added, which values the ReLU let through is computed from the input again.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.native import NAMES, call, library, operator

MARK = "only_marks"
"""Attribute of a hook that looks at no tensor: what it is hooked to may be joined with what follows."""


@operator(
    "batch_norm(Tensor images, Tensor? other, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float eps, float share, bool rectify) -> (Tensor, Tensor, Tensor)"
)
def _batch_norm(
    images: Tensor,
    other: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    share: float,
    rectify: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the mean and 1 / deviation of each channel; running statistics are moved by `share`."""
    result, channels = torch.empty_like(images), images.shape[1]
    mean, inverse = torch.empty(channels), torch.empty(channels)
    tensors = [images, other, result, weight, bias, mean, inverse, running_mean, running_var]
    call("forward", images.dtype, tensors, [eps, share, images.numel() // channels, channels, int(rectify)])
    return result, mean, inverse


@operator(
    "batch_norm_backward(Tensor coming, Tensor? result, Tensor images, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor inverse, bool rectify, bool masks) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _batch_norm_backward(
    coming: Tensor,
    result: Tensor | None,
    images: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    rectify: bool,
    masks: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of images, of what was added (empty unless `masks`), of weight and of bias.

    Args:
        result: what was rectified, where something was added before; without it the images say what was.
    """
    of_images, channels = torch.empty_like(images), images.shape[1]
    of_other = torch.empty_like(images) if masks else torch.empty(0)
    of_weight, of_bias = torch.empty(channels), torch.empty(channels)
    tensors = [coming, result, images, of_images, of_other if masks else None, weight, bias, mean, inverse]
    rows = images.numel() // channels
    call("backward", images.dtype, [*tensors, of_weight, of_bias], [rows, channels, int(rectify)])
    return of_images, of_other, of_weight, of_bias


class _BatchNorm(torch.autograd.Function):
    """Training batch normalisation of channels-last images, then + other, then ReLU."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, other: Tensor | None, weight: Tensor | None, bias: Tensor | None, rest: "_Rest"
    ) -> Tensor:
        running = (rest.running_mean, rest.running_var)
        computed = _batch_norm(images, other, weight, bias, *running, rest.eps, rest.share, rest.rectify)
        result: Tensor = computed[0]
        kept = result if rest.rectify and other is not None else None
        ctx.save_for_backward(images, kept, weight, bias, *computed[1:])
        ctx.rectify = rest.rectify
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *coming: Tensor) -> tuple[Tensor | None, ...]:
        images, result, weight, bias, mean, inverse = ctx.saved_tensors
        gradient = coming[0].to(images.dtype).contiguous(memory_format=torch.channels_last)
        adds = ctx.needs_input_grad[1]
        masks = adds and result is not None
        of_images, of_other, of_weight, of_bias = _batch_norm_backward(
            gradient, result, images, weight, bias, mean, inverse, ctx.rectify, masks
        )
        return (
            of_images,
            (of_other if masks else gradient) if adds else None,
            None if weight is None else of_weight,
            None if bias is None else of_bias,
            None,
        )


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a normalisation needs besides what has gradients; the running statistics are updated by `share`."""

    eps: float
    share: float
    running_mean: Tensor | None
    running_var: Tensor | None
    rectify: bool


class QuickBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose training passes are those above, for channels-last images in bfloat16 or fp32."""

    def forward(self, input: Tensor, other: Tensor | None = None, rectify: bool = False) -> Tensor:
        """Normalised, plus `other`, ReLU of it: [N, C, H, W], each only if asked for."""
        if not self._quick(input, other):
            result = super().forward(input)
            result = result if other is None else result + other
            return nn.functional.relu(result) if rectify else result
        records = self.track_running_stats and self.running_mean is not None and self.running_var is not None
        kept = (self.running_mean, self.running_var) if records else (None, None)
        rest = _Rest(self.eps, self._share() if records else 0.0, *kept, rectify)
        normal: Tensor = _BatchNorm.apply(input, other, self.weight, self.bias, rest)
        return normal

    def _share(self) -> float:
        """Of this batch in the running statistics, as nn.BatchNorm2d counts: all batches alike without momentum."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return float(self.momentum or 0.0)

    def _quick(self, input: Tensor, other: Tensor | None) -> bool:
        return (
            self.training
            and torch.is_grad_enabled()
            and input.device.type == "cpu"
            and input.dim() == 4
            and input.dtype in NAMES
            and input.numel() > self.num_features == input.shape[1]
            and input.is_contiguous(memory_format=torch.channels_last)
            and all(one is None or one.dtype is torch.float32 for one in (self.weight, self.bias, self.running_mean))
            and (
                other is None
                or (
                    other.shape == input.shape
                    and other.dtype is input.dtype
                    and other.is_contiguous(memory_format=torch.channels_last)
                )
            )
            and not torch.compiler.is_compiling()
        )


def normalized(norm: nn.Module, images: Tensor, activation: nn.Module, other: Tensor | None = None) -> Tensor:
    """activation(norm(images) + other), in one pass where that can be."""
    if (
        type(norm) is QuickBatchNorm2d
        and type(activation) is nn.ReLU
        and not _watched(norm)
        and not _watched(activation)
    ):
        return norm(images, other, True)  # type: ignore[no-any-return]
    result: Tensor = norm(images)
    if other is not None:
        result += other
    return activation(result)  # type: ignore[no-any-return]


def _watched(module: nn.Module) -> bool:
    """Whether somebody wants to see what goes into a module or comes out of it; see MARK."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not hasattr(hook, MARK) for kind in hooks for hook in kind.values())


def _sequence(self: nn.Sequential, input: Any) -> Any:
    """nn.Sequential's forward pass, with a ReLU behind a normalisation as part of that."""
    layers = list(self)
    while layers:
        layer = layers.pop(0)
        if type(layer) is QuickBatchNorm2d and layers and type(layers[0]) is nn.ReLU:
            input = normalized(layer, input, layers.pop(0))
        else:
            input = layer(input)
    return input


def _basic_block(self: Any, x: Tensor) -> Tensor:
    """The forward pass of torchvision's BasicBlock, its sum and its ReLUs as parts of the normalisations."""
    y = normalized(self.bn1, self.conv1(x), self.relu)
    shortcut = x if self.downsample is None else self.downsample(x)
    return normalized(self.bn2, self.conv2(y), self.relu, shortcut)


def _bottleneck(self: Any, x: Tensor) -> Tensor:
    """The same of its Bottleneck."""
    y = normalized(self.bn1, self.conv1(x), self.relu)
    y = normalized(self.bn2, self.conv2(y), self.relu)
    shortcut = x if self.downsample is None else self.downsample(x)
    return normalized(self.bn3, self.conv3(y), self.relu, shortcut)


def _resnet(self: Any, x: Tensor) -> Tensor:
    """The same of its ResNet."""
    x = self.maxpool(normalized(self.bn1, self.conv1(x), self.relu))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _forward_of(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """The forward pass above that computes what this class does; None if there is none."""
    if issubclass(kind, nn.Sequential) and kind.forward is nn.Sequential.forward:
        return _sequence
    resnet = sys.modules.get("torchvision.models.resnet")
    known = {"BasicBlock": _basic_block, "Bottleneck": _bottleneck, "ResNet": _resnet}
    return next((forward for name, forward in known.items() if kind is getattr(resnet, name, None)), None)


def quicken_batch_norm(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Make the batch normalisations of a network quick, in place; parameters, buffers and their names stay.

    A ReLU is joined with the normalisation before it where nothing else can see what is between them: in an
    nn.Sequential and in torchvision's ResNets.

    Returns:
        the network, and a note if it stays as it was because nothing can be compiled here.
    """
    if not any(type(module) is nn.BatchNorm2d for module in model.modules()):
        return model, ()
    compiled = library()
    if isinstance(compiled, str):
        return model, (f"batch normalisation is torch's own, which is slower: {compiled}",)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = QuickBatchNorm2d
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    for module in model.modules():
        kind = type(module)
        forward = _forward_of(kind)
        if forward is not None:
            # Called as before, so that nothing that asks for a class or its name sees another.
            attributes = {"forward": forward, "__module__": kind.__module__}
            module.__class__ = kinds.setdefault(kind, type(kind.__name__, (kind,), attributes))
    return model, ()
