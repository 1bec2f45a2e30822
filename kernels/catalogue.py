"""The kernels by name, for listings and operands; imports no torch until an example is asked for."""

import difflib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels import formats

if TYPE_CHECKING:
    import torch

# Each is a module of this package; its `example(implementation, batch, size, dtype, device)` is what gets timed.
KERNELS = {
    "augment": "resident uint8 images to a batch of windows, mirrored, cut out and normalised, in one pass",
    "depthwise": (
        "EfficientNet's depthwise convolution, bias, activation and the squeeze-and-excitation sum, in one pass"
    ),
    "depthwise_backward": "both gradients of EfficientNet's depthwise convolution",
    "normalize": "uint8 images to (x / 255 - mean) / std in the network's own precision and layout, in one pass",
    "pointwise": "EfficientNet's 1 x 1 projection of channels scaled image by image, with bias and residual",
    "resized_crop": "random windows of resident images of many sizes, resized, mirrored and normalised, in one pass",
}


def names() -> tuple[str, ...]:
    """Every kernel's name, sorted."""
    return tuple(sorted(KERNELS))


def describe(name: str) -> str:
    """One line on what the kernel does.

    Raises:
        ValueError: no kernel has that name; the message lists the nearest, or all.
    """
    if name not in KERNELS:
        near = difflib.get_close_matches(name, KERNELS) or list(names())
        raise ValueError(f"no kernel is called {name!r}; there is: {', '.join(near)}")
    return KERNELS[name]


def implementations(name: str) -> tuple[str, ...]:
    """The ways in which a kernel is written, PyTorch's own first.

    Raises:
        ValueError: as `describe`.
    """
    describe(name)
    return formats.IMPLEMENTATIONS


def example(
    name: str, implementation: str, batch: int, size: int, dtype: str, device: "torch.device | str"
) -> Callable[[], object]:
    """A call that runs the kernel once on random input, made here and not timed.

    Args:
        batch, size: images, and their height and width.
        dtype: torch's name of the output's element type, such as "bfloat16".
        device: a torch.device or its name.

    Raises:
        ValueError: as `describe`, or the kernel has no such implementation or dtype on this device.
    """
    import torch

    from kernels.runtime import choose_implementation

    known = implementations(name)
    if implementation not in known:
        raise ValueError(f"kernel {name} has no implementation {implementation!r}; it has {', '.join(known)}")
    device = torch.device(device)
    choose_implementation(implementation, device)
    make: Callable[..., Callable[[], object]] = importlib.import_module(f"kernels.{name}").example
    return make(implementation, batch, size, formats.dtype_of(dtype), device)
