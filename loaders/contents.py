"""What a data set is made of: counts, sizes, bytes, formats, channel statistics."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.datasets import Dataset
from loaders.errors import DataError

EXAMINED = 2000


@dataclass(frozen=True, slots=True)
class Contents:
    """Figures of one split; sizes in pixels, bytes in bytes, mean and std in units of 0..1.

    Attributes:
        examined: images that were opened for the figures after it: all, or evenly spread ones.
        width, height: 5 %, 50 % and 95 % quantiles.
        pixels: mean of width x height.
        bytes: mean file size; None for sets that come as arrays.
        bytes_per_pixel: mean over files.
        formats: share of each "format mode", such as "JPEG RGB".
        unreadable: examined files that could not be opened.
        mean, std: red, green, blue over all pixels of the examined images.
    """

    name: str
    split: str
    images: int
    classes: int
    smallest_class: int
    largest_class: int
    examined: int
    width: tuple[float, float, float]
    height: tuple[float, float, float]
    pixels: float
    bytes: float | None
    bytes_per_pixel: float | None
    formats: dict[str, float]
    unreadable: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Seen:
    width: int
    height: int
    bytes: int
    kind: str
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]


def examine(dataset: Dataset, most: int = EXAMINED, threads: int | None = None) -> Contents:
    """Open up to `most` evenly spread images and describe the set.

    Raises:
        DataError: none of them can be opened.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)).tolist()
    if dataset.pixels is not None:
        chosen = list(range(len(dataset)))
        seen = [_of_arrays(dataset.pixels)]
        widths = heights = np.array([dataset.pixels.shape[2]])
        heights = np.array([dataset.pixels.shape[1]])
        sizes = None
        formats = {"array RGB": 1.0}
    else:
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            seen = [one for one in pool.map(_of_file, [dataset.files[i] for i in chosen]) if one is not None]
        if not seen:
            raise DataError(f"none of {len(chosen)} images of {dataset.name} can be opened; see: bench data check")
        widths, heights = np.array([one.width for one in seen]), np.array([one.height for one in seen])
        sizes = np.array([one.bytes for one in seen])
        kinds = Counter(one.kind for one in seen)
        formats = {kind: count / len(seen) for kind, count in kinds.most_common()}
    area = widths.astype(np.float64) * heights
    total = area.sum() if dataset.pixels is None else float(np.prod(dataset.pixels.shape[:3]))
    mean = np.sum([one.sums for one in seen], axis=0) / total / 255
    square = np.sum([one.squares for one in seen], axis=0) / total / 255**2
    per_class = Counter(dataset.labels)
    return Contents(
        name=dataset.name,
        split=dataset.split,
        images=len(dataset),
        classes=len(dataset.classes),
        smallest_class=min(per_class[i] for i in range(len(dataset.classes))),
        largest_class=max(per_class.values()),
        examined=len(chosen),
        width=_quantiles(widths),
        height=_quantiles(heights),
        pixels=float(area.mean()),
        bytes=None if sizes is None else float(sizes.mean()),
        bytes_per_pixel=None if sizes is None else float((sizes / area).mean()),
        formats=formats,
        unreadable=len(chosen) - len(seen) if dataset.pixels is None else 0,
        mean=_three(mean),
        std=_three(np.sqrt(square - mean**2)),
    )


def _quantiles(values: NDArray[np.int64]) -> tuple[float, float, float]:
    return _three(np.quantile(values, (0.05, 0.5, 0.95)))


def _three(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _of_arrays(pixels: NDArray[np.uint8]) -> _Seen:
    rows = pixels.reshape(-1, 3)
    # Counting levels reads bytes once; squares of 150 million pixels as floats would take a gigabyte.
    levels = [np.bincount(rows[:, channel], minlength=256) for channel in range(3)]
    return _from_levels(pixels.shape[2], pixels.shape[1], 0, "array RGB", levels)


def _of_file(path: str) -> _Seen | None:
    try:
        with Image.open(path) as image:
            kind = f"{image.format} {image.mode}"
            histogram = image.convert("RGB").histogram()
            size = os.stat(path).st_size
            levels = [np.array(histogram[256 * channel : 256 * channel + 256]) for channel in range(3)]
            return _from_levels(image.width, image.height, size, kind, levels)
    except Exception:
        return None  # counted by the caller; Pillow raises whatever its plugins do


def _from_levels(width: int, height: int, size: int, kind: str, levels: Sequence[NDArray[np.int64]]) -> _Seen:
    value = np.arange(256, dtype=np.float64)
    sums = np.array([(value * level).sum() for level in levels])
    squares = np.array([(value**2 * level).sum() for level in levels])
    return _Seen(width, height, size, kind, sums, squares)
