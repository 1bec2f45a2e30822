"""What every kernel asks before it runs: is Triton here, and on which device."""

import functools
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

IMPLEMENTATIONS = ("torch", "compiled", "triton")

HAS_TRITON = find_spec("triton") is not None
# Triton reads it when a kernel is defined, so it counts as it stood when this module was imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# The statistics of ImageNet's training set that torchvision's weights were made with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def chosen(device: torch.device | str) -> str:
    """The implementation that is used on `device` unless told otherwise: "triton" or "torch"."""
    return "triton" if torch.device(device).type == "cuda" and HAS_TRITON else "torch"


def compiled(twin: Callable[..., Any]) -> Callable[..., Any]:
    """The twin as torch.compile writes it, when it is first called: what a kernel has to beat."""

    @functools.cache
    def made() -> Callable[..., Any]:
        return torch.compile(twin, dynamic=False)

    return lambda *arguments: made()(*arguments)


def check_implementation(implementation: str, device: torch.device) -> None:
    """Raise ValueError unless a kernel written in this way can run on `device`."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    if implementation == "triton" and not HAS_TRITON:
        raise ValueError("implementation 'triton' needs Triton, which is not installed")
    if implementation == "triton" and device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"implementation 'triton' needs a CUDA device, not {device}; use 'torch' there")


def dtype_of(name: str, known: Sequence[torch.dtype], kernel: str) -> torch.dtype:
    """The dtype of a name such as "bfloat16". Raises ValueError for one that the kernel does not make."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in known}
    if name not in names:
        raise ValueError(f"{kernel} makes {', '.join(names)}, not {name}")
    return names[name]


def on_device_of(tensor: torch.Tensor) -> torch.cuda.device:
    """A context: Triton launches on the current device, which need not be the one the data is on."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


def scale_and_bias(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """(x / 255 - mean) / std as x * scale + bias, a number for each channel.

    Raises:
        ValueError: not three numbers each, or a deviation that is not above zero.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three numbers each, std above zero; got {mean} and {std}")
    return [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


Implementations = dict[str, Callable[..., torch.Tensor]]
