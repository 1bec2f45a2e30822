"""The kernels by name, for listings and operands; imports no torch until an example is asked for."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A kernel.

    Attributes:
        module: where it lives; its `example(implementation, batch, size, dtype, device)` is what gets timed.
        implementations: the twin first; then the twin compiled by torch, and Triton's, which has to beat both.
        line: what it does.
    """

    module: str
    implementations: tuple[str, ...]
    line: str


KERNELS: dict[str, Entry] = {
    "augment": Entry(
        "kernels.augment",
        ("torch", "compiled", "triton"),
        "resident uint8 images to a batch of windows, mirrored, cut out and normalised, in one pass",
    ),
    "depthwise": Entry(
        "kernels.depthwise",
        ("torch", "compiled", "triton"),
        "EfficientNet's depthwise convolution, bias, activation and the squeeze-and-excitation sum, in one pass",
    ),
    "depthwise_backward": Entry(
        "kernels.depthwise_backward",
        ("torch", "compiled", "triton"),
        "both gradients of EfficientNet's depthwise convolution",
    ),
    "normalize": Entry(
        "kernels.normalize",
        ("torch", "compiled", "triton"),
        "uint8 images to (x / 255 - mean) / std in the network's own precision and layout, in one pass",
    ),
    "pointwise": Entry(
        "kernels.pointwise",
        ("torch", "compiled", "triton"),
        "EfficientNet's 1 x 1 projection of channels scaled image by image, with bias and residual",
    ),
}


def names() -> tuple[str, ...]:
    """Every kernel's name, sorted."""
    return tuple(sorted(KERNELS))


def describe(name: str) -> str:
    """One line on what the kernel does.

    Raises:
        ValueError: no kernel has that name; the message lists the nearest, or all.
    """
    return _entry(name).line


def implementations(name: str) -> tuple[str, ...]:
    """The ways in which a kernel is written, PyTorch's own first.

    Raises:
        ValueError: as `describe`.
    """
    return _entry(name).implementations


def example(name: str, implementation: str, batch: int, size: int, dtype: str, device: Any) -> Callable[[], object]:
    """A call that runs the kernel once on random input, made here and not timed.

    Args:
        batch, size: images, and their height and width.
        dtype: torch's name of the output's element type, such as "bfloat16".
        device: a torch.device or its name.

    Raises:
        ValueError: as `describe`, or the kernel has no such implementation or dtype on this device.
    """
    entry = _entry(name)
    if implementation not in entry.implementations:
        raise ValueError(
            f"kernel {name} has no implementation {implementation!r}; it has {', '.join(entry.implementations)}"
        )
    call: Callable[[], object] = importlib.import_module(entry.module).example(
        implementation, batch, size, dtype, device
    )
    return call


def _entry(name: str) -> Entry:
    if name not in KERNELS:
        near = difflib.get_close_matches(name, KERNELS) or list(names())
        raise ValueError(f"no kernel is called {name!r}; there is: {', '.join(near)}")
    return KERNELS[name]
