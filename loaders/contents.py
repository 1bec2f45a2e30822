"""What a data set contains: counts, sizes, bytes, formats, channel statistics."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageStat

from loaders.datasets import Dataset
from loaders.errors import DataError
from loaders.images import opened, orientation, rgb
from loaders.packed_images import PackedImages
from loaders.threads import in_threads

EXAMINED = 2000


@dataclass(frozen=True, slots=True)
class Contents:
    """Figures of one split; sizes in pixels, bytes in bytes, mean and std in units of 0..1.

    Attributes:
        examined: images that were opened for the figures below: all, or evenly spread ones.
        width, height: 5 %, 50 % and 95 % quantiles.
        pixels: mean of width x height.
        bytes: mean file size; None for sets that come as arrays.
        bytes_per_pixel: mean over files.
        formats: share of each "format mode", such as "JPEG RGB".
        unreadable: examined files that could not be opened.
        turned: examined files whose EXIF orientation is not that of their pixels; see `exif` of a recipe.
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
    turned: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Image:
    """One image, or all of an array: pixels of a side, bytes, "format mode", each channel's sums, EXIF orientation."""

    width: int
    height: int
    bytes: int
    kind: str
    sums: Sequence[float]
    squares: Sequence[float]
    turned: bool = False


def examine(dataset: Dataset, most: int = EXAMINED, threads: int | None = None) -> Contents:
    """Open up to `most` evenly spread images and describe the set; arrays of one size are examined as a whole.

    Raises:
        DataError: none of them can be opened.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)).tolist()
    if isinstance(dataset.pixels, PackedImages):
        packed = dataset.pixels
        images = in_threads(lambda index: _of_arrays(packed[index][None], "packed RGB"), chosen, threads)
        examined, unreadable, pixels = len(chosen), 0, float(sum(image.width * image.height for image in images))
    elif dataset.pixels is not None:
        images = [_of_arrays(dataset.pixels)]
        examined, unreadable, pixels = len(dataset), 0, float(np.prod(dataset.pixels.shape[:3]))
    else:
        opened = in_threads(_of_file, [dataset.files[i] for i in chosen], threads)
        images = [image for image in opened if image is not None]
        examined, unreadable = len(chosen), len(chosen) - len(images)
        if not images:
            raise DataError(f"none of {len(chosen)} images of {dataset.name} can be opened; see: bench data check")
        pixels = float(sum(image.width * image.height for image in images))
    widths, heights = np.array([image.width for image in images]), np.array([image.height for image in images])
    sizes, area = np.array([image.bytes for image in images]), widths.astype(np.float64) * heights
    kinds = Counter(image.kind for image in images)
    mean = np.sum([image.sums for image in images], axis=0) / pixels / 255
    square = np.sum([image.squares for image in images], axis=0) / pixels / 255**2
    per_class = Counter(dataset.labels)
    return Contents(
        name=dataset.title,
        split=dataset.split,
        images=len(dataset),
        classes=len(dataset.classes),
        smallest_class=min(per_class[i] for i in range(len(dataset.classes))),
        largest_class=max(per_class.values()),
        examined=examined,
        width=_quantiles(widths),
        height=_quantiles(heights),
        pixels=float(area.mean()),
        bytes=None if dataset.pixels is not None else float(sizes.mean()),
        bytes_per_pixel=None if dataset.pixels is not None else float((sizes / area).mean()),
        formats={kind: count / len(images) for kind, count in kinds.most_common()},
        unreadable=unreadable,
        turned=sum(image.turned for image in images),
        mean=_three(mean),
        # Rounding may leave a channel that never varies a little below 0.
        std=_three(np.sqrt(np.maximum(square - mean**2, 0))),
    )


def _quantiles(values: NDArray[np.int64]) -> tuple[float, float, float]:
    return _three(np.quantile(values, (0.05, 0.5, 0.95)))


def _three(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _of_arrays(pixels: NDArray[np.uint8], kind: str = "array RGB") -> _Image:
    rows = pixels.reshape(-1, 3)
    # Counting levels reads bytes once; squares of 150 million pixels as floats would take a gigabyte.
    levels = [count for channel in range(3) for count in np.bincount(rows[:, channel], minlength=256).tolist()]
    statistics = ImageStat.Stat(levels)
    return _Image(pixels.shape[2], pixels.shape[1], 0, kind, statistics.sum, statistics.sum2)


def _of_file(path: str) -> _Image | None:
    try:
        with opened(path) as image:
            kind, turned = f"{image.format} {image.mode}", orientation(image) != 1
            statistics = ImageStat.Stat(rgb(image))
            size = os.stat(path).st_size
            return _Image(image.width, image.height, size, kind, statistics.sum, statistics.sum2, turned)
    except Exception:
        return None  # counted by the caller; Pillow raises whatever its plugins do
