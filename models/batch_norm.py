"""Batch normalisation at the speed of memory, for training on a CPU, with sum and ReLU behind it.

torch's own reads and writes bfloat16 in channels-last order at about half of what memory gives, and ReLU and addition
read and write everything once more, in the backward pass too. Here a pass over the input gives the sums, a second one
the finished output; the backward pass is two as well. batch_norm.cpp does it, compiled when a training begins.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("batch_norm.cpp")
FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    # None of them lets what is no number vanish.
    *("-fno-math-errno", "-fno-trapping-math"),
)
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where no g++ is there, whose OpenMP is the one that torch brings."""
    compiler = os.environ.get("CXX", "g++")
    if "g++" not in Path(compiler).name or shutil.which(compiler) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pixbench-") as folder:
        output = Path(folder, "batch_norm.so")
        # A second to compile: less than keeping it for later could go wrong.
        done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(output)], capture_output=True, check=False)
        try:
            return ctypes.CDLL(str(output)) if done.returncode == 0 else None
        except OSError:
            return None


def _call(name: str, dtype: torch.dtype, tensors: list[Tensor | None], numbers: list[float | int]) -> None:
    """Call a function of the library with the addresses of tensors, then with numbers."""
    addresses = [ctypes.c_void_p(None if one is None else one.data_ptr()) for one in tensors]
    values = [ctypes.c_double(one) if isinstance(one, float) else ctypes.c_int64(one) for one in numbers]
    getattr(library(), f"{name}_{NAMES[dtype]}")(*addresses, *values)


class _BatchNorm(torch.autograd.Function):
    """Training batch normalisation of channels-last images, then + other, then ReLU."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, other: Tensor | None, weight: Tensor | None, bias: Tensor | None, rest: "_Rest"
    ) -> Tensor:
        result = torch.empty_like(images)
        channels = images.shape[1]
        mean, inverse = torch.empty(2, channels)
        running = [rest.running_mean, rest.running_var]
        tensors = [images, other, result, weight, bias, mean, inverse, *running]
        numbers = [rest.eps, rest.share, images.numel() // channels, channels, int(rest.rectify)]
        _call("forward", images.dtype, tensors, numbers)
        ctx.save_for_backward(images, result if rest.rectify else None, weight, mean, inverse)
        ctx.has_bias = bias is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *coming: Tensor) -> tuple[Tensor | None, ...]:
        images, result, weight, mean, inverse = ctx.saved_tensors
        gradient = coming[0].to(images.dtype).contiguous(memory_format=torch.channels_last)
        of_images = torch.empty_like(images)
        of_other = None
        if ctx.needs_input_grad[1]:
            of_other = gradient if result is None else torch.empty_like(images)
        masked = None if result is None else of_other
        of_weight = None if weight is None else torch.empty_like(weight)
        of_bias = torch.empty_like(mean) if ctx.has_bias else None
        tensors = [gradient, result, images, of_images, masked, weight, mean, inverse, of_weight, of_bias]
        channels = images.shape[1]
        _call("backward", images.dtype, tensors, [images.numel() // channels, channels])
        return of_images, of_other, of_weight, of_bias, None


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

    def forward(self, input: Tensor) -> Tensor:
        return self.followed(input)

    def followed(self, input: Tensor, other: Tensor | None = None, rectify: bool = False) -> Tensor:
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
        return norm.followed(images, other, True)
    result: Tensor = norm(images)
    if other is not None:
        result += other
    return activation(result)  # type: ignore[no-any-return]


def _watched(module: nn.Module) -> bool:
    """Whether somebody wants to see what goes into a module or comes out of it."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


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


def quicken_batch_norm(model: nn.Module) -> nn.Module:
    """Make the batch normalisations of a network quick, in place; parameters, buffers and their names stay.

    A ReLU is joined with the normalisation before it where nothing else can see what is between them: in an
    nn.Sequential and in torchvision's ResNets.
    """
    if library() is None:
        return model
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
    return model
