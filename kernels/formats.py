"""Names of element types and implementations, and ImageNet's channel statistics; imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

# How every kernel is written: plain PyTorch, the same compiled by torch, and Triton, which has to beat both.
IMPLEMENTATIONS = ("torch", "compiled", "triton")

# The statistics of ImageNet's training set that torchvision's weights were made with: red, green, blue, in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def dtype_of(name: str) -> "torch.dtype":
    """torch's element type of this name.

    Raises:
        ValueError: a name that is none of DTYPES.
    """
    import torch

    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
