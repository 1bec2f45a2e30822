"""The images of a data set in one buffer on a device, each in its own aspect, decoded once."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as transform

from loaders.datasets import Dataset
from loaders.errors import DataError, undecodable
from loaders.images import decode, opened, orientation
from loaders.options import LoaderOptions
from loaders.packed_images import PackedImages, side_of_all
from loaders.packing import small_shape
from loaders.threads import in_threads

# Of the memory that is free. A GPU serves one process, which says so when the network does not fit beside the images;
# a machine that runs out of its own memory ends processes without a message.
MOST = {"cpu": 0.5, "cuda": 0.95}
_TOGETHER = 64  # images that a thread decodes before they are copied: some MB
_NOT_HERE = -1
_SAID = 20.0  # seconds between two lines about a loading that takes long
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations of images whose height is stored as their width


@dataclass(frozen=True, slots=True, eq=False)
class DeviceImages:
    """Images in one buffer: what an array of images would be if they were of one size.

    `images[3]` is a copy of one on the host, uint8 [height, width, 3]; `images[indices]` shares the buffer.

    Attributes:
        pixels: uint8 [bytes] on the device, one image after the other.
        offsets: where each image begins, int64 [n]; below 0 for one that is not in this buffer.
        heights, widths: pixels, int64 [n].
        source: the arrays that the images were taken from; None for files.
    """

    pixels: torch.Tensor
    offsets: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    source: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[n, height, width, 3], 0 in place of a height or width that differs from image to image."""
        return len(self), side_of_all(self.heights), side_of_all(self.widths), 3

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: NDArray[np.int64]) -> "DeviceImages": ...
    def __getitem__(self, index: int | NDArray[np.int64]) -> "NDArray[np.uint8] | DeviceImages":
        if isinstance(index, np.ndarray):
            return DeviceImages(
                self.pixels,
                self.offsets[index],
                self.heights[index],
                self.widths[index],
                None if self.source is None else self.source[index],
            )
        return self.image(index).cpu().numpy().copy()

    def image(self, index: int) -> torch.Tensor:
        """One image in the buffer, uint8 [height, width, 3]."""
        start, tall, wide = int(self.offsets[index]), int(self.heights[index]), int(self.widths[index])
        if start < 0:
            raise DataError(f"image {index} is not held by this process")
        return self.pixels[start : start + tall * wide * 3].view(tall, wide, 3)

    def holds(self, indices: NDArray[np.int64]) -> bool:
        """Whether all of these images are in the buffer."""
        return bool((self.offsets[indices] >= 0).all())


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nobody uses."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def all_bytes(device: torch.device) -> int:
    """Memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(name: str, needed: int, device: torch.device) -> None:
    """Raise DataError if a data set takes more of a device's memory than it may.

    Args:
        name: of the data set.
        needed: bytes.
    """
    free, share = free_bytes(device), MOST[device.type]
    if needed > share * free:
        raise DataError(
            f"{name} needs {needed:,} bytes ({needed / 2**30:.1f} GiB) on {device}, of which "
            f"{free / 2**30:.1f} GiB are free and at most {share:.0%} are taken; use dali, or a smaller size"
        )


def kept_side(options: LoaderOptions) -> int:
    """Pixels of a kept image's shorter side at most: what an evaluation resizes it to, if nothing else is asked for."""
    return options.stored_size or round(options.size * options.eval_margin)


def kept_bytes(dataset: Dataset, options: LoaderOptions, looked_at: int = 500) -> int:
    """About how many bytes the images take, from the sizes of some that are evenly spread over the set.

    Raises:
        DataError: one of these cannot be opened.
    """
    some = np.unique(np.linspace(0, len(dataset) - 1, min(looked_at, len(dataset))).round().astype(np.int64))
    shapes = _kept_shapes(_shapes(dataset, some, options), kept_side(options))
    return round(float(shapes.prod(axis=1).mean()) * 3 * len(dataset))


def on_device(dataset: Dataset, options: LoaderOptions) -> Dataset:
    """The data set with its images on the options' device: loaders opened on it decode nothing.

    Images are made smaller, never larger, to a shorter side of `kept_side`. Of several shards each holds every Nth
    image, as an evaluation deals them out.

    Raises:
        DataError: the images do not fit into the memory that is free, or one cannot be decoded.
    """
    images = keep(dataset, options, np.arange(options.shard, len(dataset), options.shards))
    pixels: Any = images
    return replace(dataset, pixels=pixels)


def keep(dataset: Dataset, options: LoaderOptions, indices: NDArray[np.int64]) -> DeviceImages:
    """The images at `indices`, ascending, on the options' device. Raises DataError as `on_device`."""
    source: Any = dataset.pixels
    if isinstance(source, DeviceImages):
        source = source.source
        dataset = replace(dataset, pixels=source)
    if isinstance(source, PackedImages):
        source.need_exif(dataset.name, options.exif)
    wanted, (indices, inverse) = indices, _distinct(dataset, indices)
    device = torch.empty(0, device=options.device).device
    shapes = _kept_shapes(_shapes(dataset, indices, options), kept_side(options))
    ends = np.cumsum(shapes.prod(axis=1) * 3)
    starts = ends - shapes.prod(axis=1) * 3
    needed = int(ends[-1]) if len(ends) else 0
    check_memory(dataset.name, needed, device)
    buffer = torch.empty(needed, dtype=torch.uint8, device=device)
    said = _Said(dataset.name, len(indices), device, options.shard == 0)

    def fill(first: int) -> None:
        last = min(first + _TOGETHER, len(indices)) - 1
        part = buffer[int(starts[first]) : int(ends[last])]
        # Images next to each other are copied to a GPU at once.
        host = part if device.type == "cpu" else torch.empty(part.shape, dtype=torch.uint8)
        for number in range(first, last + 1):
            tall, wide = shapes[number].tolist()
            image = _image(dataset, int(indices[number]), options.exif)
            _check_shape(dataset, int(indices[number]), image, kept_side(options), (tall, wide))
            resized = transform.resize(image, [tall, wide], antialias=True).permute(1, 2, 0)
            place = int(starts[number] - starts[first])
            host[place : place + tall * wide * 3].view(tall, wide, 3).copy_(resized)
        if host is not part:
            part.copy_(host)
        said.more(last + 1 - first)

    in_threads(fill, range(0, len(indices), _TOGETHER), max(1, options.threads))
    offsets = np.full(len(dataset), _NOT_HERE, np.int64)
    heights, widths = np.zeros(len(dataset), np.int64), np.zeros(len(dataset), np.int64)
    offsets[wanted], heights[wanted], widths[wanted] = starts[inverse], shapes[inverse, 0], shapes[inverse, 1]
    return DeviceImages(buffer, offsets, heights, widths, source)


class _Said:
    """Says on stderr how far it is where that takes long; one of several processes does."""

    def __init__(self, name: str, images: int, device: torch.device, aloud: bool) -> None:
        self._name, self._images, self._device, self._aloud = name, images, device, aloud
        self._done, self._last, self._lock = 0, time.monotonic(), threading.Lock()

    def more(self, images: int) -> None:
        with self._lock:
            self._done += images
            now = time.monotonic()
            if self._aloud and now - self._last > _SAID:
                self._last = now
                where = f"of {self._name} are decoded and on {self._device}"
                print(f"note: {self._done:,} of {self._images:,} images {where}", file=sys.stderr)


def _distinct(dataset: Dataset, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of `indices` those of different images, and for each of `indices` which of these it is.

    A measurement repeats a short set to fill its epochs.
    """
    pixels: Any = dataset.pixels
    if pixels is None:
        images: list[Any] = [dataset.files[i] for i in indices.tolist()]
    elif isinstance(pixels, PackedImages):
        images = pixels.positions[indices].tolist()
    else:
        return indices, np.arange(len(indices))
    _, first, inverse = np.unique(np.array(images), return_index=True, return_inverse=True)
    return indices[first], inverse


def _image(dataset: Dataset, index: int, exif: str) -> torch.Tensor:
    """One image decoded, uint8 [3, height, width]."""
    pixels: Any = dataset.pixels
    if pixels is None:
        return decode(dataset.files[index], exif)
    return torch.from_numpy(np.ascontiguousarray(pixels[index])).permute(2, 0, 1)


def _check_shape(dataset: Dataset, index: int, image: torch.Tensor, side: int, expected: Sequence[int]) -> None:
    tall, wide = image.shape[1:]
    if tuple(_kept_shapes(np.array([[tall, wide]]), side)[0].tolist()) != tuple(expected):
        path = dataset.files[index] if dataset.files else f"image {index} of {dataset.name}"
        raise DataError(f"{path} decodes to {wide} x {tall} pixels, which is not what its header says")


def _kept_shapes(shapes: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Heights and widths [n, 2] with a shorter side of at most `side`."""
    return np.array([small_shape(tall, wide, side) for tall, wide in shapes.tolist()], np.int64).reshape(-1, 2)


def _shapes(dataset: Dataset, indices: NDArray[np.int64], options: LoaderOptions) -> NDArray[np.int64]:
    """Heights and widths of images before anything is decoded, [n, 2]."""
    pixels: Any = dataset.pixels
    if pixels is None:
        files = [dataset.files[i] for i in indices.tolist()]
        blocks = [files[start : start + 1024] for start in range(0, len(files), 1024)]
        found = in_threads(
            lambda block: [_shape(path, options.exif) for path in block], blocks, max(1, options.threads)
        )
        return np.array([shape for block in found for shape in block], np.int64).reshape(-1, 2)
    if hasattr(pixels, "heights"):
        return np.stack([pixels.heights[indices], pixels.widths[indices]], axis=1).astype(np.int64)
    return np.broadcast_to(np.array(pixels.shape[1:3], np.int64), (len(indices), 2))


def _shape(path: str, exif: str) -> tuple[int, int]:
    """Height and width of a file as it will be decoded.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with opened(path) as image:
            # Pillow turns a TIFF itself; a PNG may have its orientation behind its pixels.
            if image.format != "TIFF" and not (image.format == "PNG" and exif == "apply"):
                wide, tall = image.size
                turned = exif == "apply" and orientation(image) in _SIDEWAYS
                return (wide, tall) if turned else (tall, wide)
    except Exception as error:
        raise undecodable(path, error) from None
    tall, wide = decode(path, exif).shape[1:]
    return tall, wide
