"""Engine names, whether they can run here, and how to build them."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from loaders import policies
from loaders.errors import DataError

if TYPE_CHECKING:
    from loaders.datasets import Dataset
    from loaders.epochs import Loader
    from loaders.options import LoaderOptions

# name -> (module that holds missing() and open(), one line)
ENGINES: dict[str, tuple[str, str]] = {
    "dali": ("loaders.dali", "NVIDIA DALI: decodes only the random crop, on CPU threads or on the GPU"),
    "pil": ("loaders.pil", "what a first script does: Pillow and torchvision transforms in DataLoader workers"),
    "resident": ("loaders.resident", "a small data set decoded once, kept on the device as uint8, cropped there"),
    "spdl": ("loaders.spdl", "SPDL: threads that decode with FFmpeg's libraries"),
    "synthetic": ("loaders.synthetic", "one constant batch: the upper bound of any loader"),
    "torchvision": (
        "loaders.torchvision",
        "torchvision's decode_image and transforms.v2 on uint8 in DataLoader workers",
    ),
}

# Operations of loaders.policies that an engine does not have.
LACKING: dict[str, tuple[str, ...]] = {
    "dali": ("perspective",),
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
    return ENGINES[name][1]


def check(name: str) -> None:
    """Raise DataError, with near names, when there is no engine of this name."""
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise DataError(f"unknown loader {name}{hint} Known: {', '.join(names())}")


def missing(name: str, device: str = "cpu") -> str | None:
    """Why an engine cannot run here for `device`, or None when it can."""
    check(name)
    reason = importlib.import_module(ENGINES[name][0]).missing(device)
    assert reason is None or isinstance(reason, str)
    return reason


def operations(name: str, augment: str) -> tuple[policies.Operation, ...]:
    """What an engine does with the images under an augmentation policy, in order.

    Raises:
        DataError: unknown engine or policy, or an operation that the engine does not have.
    """
    check(name)
    standard = policies.STANDARD_RESIDENT if name == "resident" else policies.STANDARD_FILES
    found = policies.parse(augment, standard)
    for operation in found:
        if operation.name in LACKING[name]:
            able = [other for other in names() if operation.name not in LACKING[other] and other != "synthetic"]
            raise DataError(f"loader {name} has no augmentation {operation.name}; these have: {', '.join(able)}")
    return found


def build(name: str, dataset: Dataset, options: LoaderOptions) -> Loader:
    """Open an engine on a data set.

    Raises:
        DataError: unknown engine, engine that cannot run here, a data set it cannot read, or an augmentation it
            does not have.
    """
    from loaders.epochs import Loader

    reason = missing(name, options.device)
    if reason is not None:
        raise DataError(f"loader {name} cannot run here: {reason}")
    if options.augmented:
        operations(name, options.augment)
    module = importlib.import_module(ENGINES[name][0])
    return Loader(name, len(dataset), options, lambda epochs: module.open_engine(dataset, options, epochs))
