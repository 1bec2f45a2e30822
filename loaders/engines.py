"""The engines by name: what they are, whether they can run here, and how to open one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from loaders import policies
from loaders.errors import DataError, unknown

if TYPE_CHECKING:
    from loaders.datasets import Dataset
    from loaders.epochs import Engine, Epochs, Loader
    from loaders.options import LoaderOptions

# name -> (module, its class or function, one line); a module whose library may be missing has a function `missing`.
ENGINES: dict[str, tuple[str, str, str]] = {
    "dali": ("loaders.dali", "Dali", "NVIDIA DALI: decodes only the random crop, on CPU threads or on the GPU"),
    "nvjpeg": ("loaders.nvjpeg", "Nvjpeg", "torchvision's decode_jpeg, on a GPU NVIDIA's, and one kernel for the rest"),
    "packed": (
        "loaders.packed",
        "Packed",
        "images decoded once, by bench data pack or into the cache folder; threads read and resize their windows",
    ),
    "pil": ("loaders.pil", "Pil", "what a first script does: Pillow and torchvision transforms in DataLoader workers"),
    "resident": (
        "loaders.resident",
        "resident",
        "a data set decoded once, kept on the device as uint8, cropped and augmented there",
    ),
    "spdl": ("loaders.spdl", "Spdl", "SPDL: threads that decode with FFmpeg's libraries"),
    "synthetic": ("loaders.synthetic", "Synthetic", "one constant batch: the upper bound of any loader"),
    "torchvision": (
        "loaders.torchvision",
        "Torchvision",
        "torchvision's decode_image and transforms.v2 on uint8 in DataLoader workers",
    ),
}

# Operations of loaders.policies that an engine does not have.
LACKING: dict[str, tuple[str, ...]] = {
    "dali": ("perspective",),
    "nvjpeg": (),
    "packed": (),
    "pil": (),
    "resident": (),
    "spdl": tuple(name for name in policies.OPERATIONS if name not in ("resized_crop", "flip")),
    "synthetic": (),
    "torchvision": (),
}


def names() -> tuple[str, ...]:
    """Names of all engines, sorted."""
    return tuple(sorted(ENGINES))


def describe(name: str) -> str:
    """One line about an engine."""
    check(name)
    return ENGINES[name][2]


def check(name: str) -> None:
    """Raise DataError, with a similar name, when there is no engine of this name."""
    if name not in ENGINES:
        raise unknown("loader", name, names())


def missing(name: str, device: str = "cpu") -> str | None:
    """Why an engine cannot run here for `device`, or None when it can."""
    check(name)
    module = importlib.import_module(ENGINES[name][0])
    reason: str | None = module.missing() if hasattr(module, "missing") else None
    if reason is None and device.startswith("cuda"):
        import torch

        return None if torch.cuda.is_available() else "there is no CUDA device"
    return reason


def operations(name: str, augment: str, size: int) -> tuple[policies.Operation, ...]:
    """What an engine does with images of `size` pixels under an augmentation policy, in order.

    Raises:
        DataError: unknown engine or policy, or an operation that the engine does not have.
    """
    check(name)
    parsed = policies.parse(augment, policies.standard(name, size))
    for operation in parsed:
        if operation.name in LACKING[name]:
            others = [other for other in names() if operation.name not in LACKING[other] and other != "synthetic"]
            raise DataError(f"loader {name} has no augmentation {operation.name}; these have: {', '.join(others)}")
    return parsed


def build(name: str, dataset: Dataset, options: LoaderOptions) -> Loader:
    """Open an engine on a data set.

    Raises:
        DataError: unknown engine, engine that cannot run here, a data set it cannot read, or an augmentation it
            does not have.
    """
    from loaders.epochs import Loader
    from loaders.packed_images import PackedImages

    reason = missing(name, options.device)
    if reason is not None:
        raise DataError(f"loader {name} cannot run here: {reason}")
    if options.augmented:
        operations(name, options.augment, options.stored_size or options.size)
    if isinstance(dataset.pixels, PackedImages):
        dataset.pixels.need_exif(dataset.name, options.exif)
    module, engine, _ = ENGINES[name]
    make: Callable[[Dataset, LoaderOptions, Epochs], Engine] = getattr(importlib.import_module(module), engine)
    return Loader(name, len(dataset), options, lambda epochs: make(dataset, options, epochs))
