"""The engine resident: a data set decoded once and kept on the device as bytes.

Augmentation runs there too, on the whole batch at once. Which images are kept depends on the size that is asked for:

- Up to 64 pixels, as for CIFAR: squares of that size (or of stored_size). Images of another size are resized on the
  shorter side and cropped in the centre, once, while loading; an evaluation shows them as they are, whatever
  eval_margin says. The policy "standard" is cifar: a window out of the image with a reflected border, and mirrors.
- Above: images in their own aspect, of which shorter sides above size * eval_margin (or stored_size) are resized to
  that, once (loaders.device_images). Windows, evaluation and the policy "standard", imagenet, are those of the engines
  that read files: on images that were not made smaller, the windows of engine torchvision. On a GPU one kernel cuts,
  resizes, mirrors and normalises a batch (kernels.resized_crop). Of several processes each holds every Nth image
  alone and draws its batches from these: the others' it never sees in training, and images of one batch differ with
  the number of processes. Numbers of images and batches do not, nor does what a resumed run goes on with.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as transform

from kernels import runtime
from kernels.augment import augment
from kernels.formats import dtype_of
from kernels.resized_crop import resized_crop, taps
from loaders.augment import Augmentation
from loaders.datasets import Dataset
from loaders.device_images import DeviceImages, check_memory, keep
from loaders.epochs import AREA, Batch, Engine, Epochs, evaluation_shape, windows
from loaders.images import decode
from loaders.normalization import normalized
from loaders.options import LoaderOptions
from loaders.policies import FLIPS, LARGEST_CIFAR, standard
from loaders.threads import in_threads


def resident(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Engine:
    """Decode a data set and keep it on the device; a set that lies there already (`on_device`) is used as it is.

    Raises:
        DataError: it does not fit into the memory that is free, or a file cannot be decoded.
    """
    return (Squares if keeps_squares(options) else OwnAspect)(dataset, options, epochs)


def keeps_squares(options: LoaderOptions) -> bool:
    """Whether images are kept as squares, otherwise in their own aspect."""
    return (options.stored_size or options.size) <= LARGEST_CIFAR


def _square(image: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [3, h, w] to [size, size, 3]."""
    tall, wide = image.shape[1:]
    if (tall, wide) != (size, size):
        shape = (size, size * wide // tall) if tall <= wide else (size * tall // wide, size)
        image = transform.center_crop(transform.resize(image, list(shape), antialias=True), [size, size])
    return image.permute(1, 2, 0)


def decoded(dataset: Dataset, size: int, threads: int = 2, exif: str = "ignore") -> Dataset:
    """The data set with its images in memory, uint8 [images, size, size, 3]: loaders opened on it decode nothing.

    Raises:
        DataError: a file cannot be decoded, or the set does not fit into the memory that is free.
    """
    if dataset.pixels is not None and dataset.pixels.shape[1:3] == (size, size):
        return dataset
    check_memory(dataset.name, len(dataset) * size**2 * 3, torch.device("cpu"))
    return replace(dataset, pixels=_decode(dataset, size, threads, exif).numpy())


def _decode(dataset: Dataset, size: int, threads: int, exif: str) -> torch.Tensor:
    """All images as uint8 [images, size, size, 3] on the CPU."""
    pixels = dataset.pixels
    if pixels is not None and pixels.shape[1:3] == (size, size):
        return torch.from_numpy(np.ascontiguousarray(pixels))
    images = torch.empty(len(dataset), size, size, 3, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = decode(dataset.files[i], exif) if pixels is None else torch.from_numpy(pixels[i]).permute(2, 0, 1)
        images[i] = _square(image, size)

    in_threads(fill, range(len(dataset)), max(1, threads))
    return images


class Squares(Engine):
    """Images that were made squares of one size."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        device = torch.device(options.device)
        side = options.stored_size or options.size
        self._augmentation = Augmentation(options, epochs, side) if options.augmented else None
        check_memory(dataset.name, len(dataset) * side**2 * 3, device)
        # The kernel is for GPUs; a CPU would get its twin, which fetches pixel by pixel.
        self._border = (
            self._augmentation.fused_border
            if self._augmentation
            and runtime.default_implementation(device) == "triton"
            and side == options.size
            and options.normalization == "fixed"
            else None
        )
        self._images = _decode(dataset, side, options.threads, options.exif).to(device)
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64, device=device)
        self._options = options
        self._epochs = epochs

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        options = self._options
        for number in range(first, self._epochs.batches):
            indices = self._epochs.indices(epoch, number)
            if self._augmentation is not None and self._border is not None:
                table = torch.from_numpy(self._augmentation.table(indices, epoch, number))
                yield self._fused(table.to(self._images.device, non_blocking=True), self._border)
                continue
            chosen = torch.from_numpy(indices).to(self._images.device, non_blocking=True)
            if self._augmentation is None:
                pixels = self._images.index_select(0, chosen)
            else:
                pixels = self._augmentation(self._images, indices, epoch, number)
            if pixels.shape[1] != options.size:
                planes = transform.resize(pixels.permute(0, 3, 1, 2), [options.size] * 2, antialias=True)
                pixels = planes.permute(0, 2, 3, 1).contiguous()
            yield normalized(pixels, options), self._labels.index_select(0, chosen)

    def _fused(self, table: torch.Tensor, border: str) -> Batch:
        """The same batch in one pass over memory."""
        options = self._options
        images = augment(self._images, table, options.mean, options.std, dtype_of(options.dtype), border=border)
        labels = self._labels.index_select(0, table[:, 0])
        return images.contiguous() if options.layout == "nchw" else images, labels

    def close(self) -> None:
        """See loaders.epochs.Engine; there is nothing to stop."""


class Windows:
    """Makes a finished batch of images of many sizes that lie in one buffer on a device.

    Args:
        options, epochs: of the loader.
        standard_policy: what the policy "standard" stands for.
    """

    def __init__(self, options: LoaderOptions, epochs: Epochs, standard_policy: str) -> None:
        self._options, self._epochs = options, epochs
        # torchvision resizes an image on a CPU in 0.3 ms; the kernel's twin, which does batches, takes 29.
        self._one_by_one = torch.device(options.device).type == "cpu"
        operations = options.operations(standard_policy)
        self._area = operations[0].value if operations and operations[0].name == "resized_crop" else None
        rest = [operation.name for operation in operations if operation.name != "resized_crop"]
        # A mirrored window costs nothing more; what else a policy does is done to the bytes of the windows.
        self._flip = rest[0] if len(rest) == 1 and rest[0] in FLIPS else None
        self._augmentation = (
            Augmentation(options, epochs, options.size, cropped=True) if rest and self._flip is None else None
        )

    def __call__(self, images: DeviceImages, epoch: int, batch: int) -> torch.Tensor:
        """[batch, 3, size, size] of the images of a batch, in its order."""
        options = self._options
        table = self._table(images, epoch, batch)
        if self._one_by_one or self._augmentation is not None or options.normalization != "fixed":
            return self._changed(self._bytes(images.pixels, table), epoch, batch)
        cut = self._cut(images.pixels, table, dtype_of(options.dtype))
        return cut.contiguous() if options.layout == "nchw" else cut

    def _table(self, images: DeviceImages, epoch: int, batch: int) -> NDArray[np.int64]:
        """What kernels.resized_crop makes a batch of, [batch, 9], see its COLUMNS."""
        size, margin = self._options.size, self._options.margin
        heights, widths = images.heights, images.widths
        if self._area is not None:
            placed = windows(self._epochs.draws(epoch, batch), heights, widths, (self._area, AREA[1]))
            shown = np.broadcast_to(np.array([size, size, 0, 0]), (len(images), 4))
        else:
            none = np.zeros_like(heights)
            placed = np.stack([none, none, heights, widths], axis=1)
            sides = zip(heights.tolist(), widths.tolist(), strict=True)
            shown = np.array([evaluation_shape(tall, wide, size, margin) for tall, wide in sides])
        start = images.offsets + (placed[:, 0] * widths + placed[:, 1]) * 3
        mirror = np.zeros(len(images), np.bool_)
        if self._flip is not None:
            mirror = self._epochs.mirrored(self._flip, epoch, batch)
        return np.column_stack([start, widths * 3, placed[:, 2:], shown, mirror]).astype(np.int64)

    def _cut(self, pixels: torch.Tensor, table: NDArray[np.int64], dtype: torch.dtype) -> torch.Tensor:
        """The windows in a dtype of kernels.resized_crop, [batch, 3, size, size]."""
        options = self._options
        scale = (table[:, 2:4] / table[:, 4:6]).max()
        on_device = torch.from_numpy(table).to(pixels.device, non_blocking=True)
        return resized_crop(pixels, on_device, options.size, taps(scale), options.mean, options.std, dtype)

    def _bytes(self, pixels: torch.Tensor, table: NDArray[np.int64]) -> torch.Tensor:
        """The windows as uint8 [batch, size, size, 3]."""
        if not self._one_by_one:
            return self._cut(pixels, table, torch.uint8).permute(0, 2, 3, 1)
        size = self._options.size
        result = torch.empty((len(table), size, size, 3), dtype=torch.uint8)

        def cut(number: int) -> None:
            start, stride, height, width, tall, wide, row, column, mirror = table[number].tolist()
            window = pixels.as_strided((3, height, width), (1, stride, 3), start)
            image = transform.resize(window, [tall, wide], antialias=True)[:, row : row + size, column : column + size]
            result[number] = (image.flip(-1) if mirror else image).permute(1, 2, 0)

        in_threads(cut, range(len(table)), max(1, self._options.threads))
        return result

    def _changed(self, pixels: torch.Tensor, epoch: int, batch: int) -> torch.Tensor:
        """What else the policy does to the windows, and their normalisation."""
        if self._augmentation is not None:
            pixels = self._augmentation(pixels, np.arange(len(pixels)), epoch, batch)
        return normalized(pixels, self._options)


class OwnAspect(Engine):
    """Images of many sizes, in one buffer."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        if options.shards > 1:
            epochs.draw_from_part()
        self._images = replace(_kept(dataset, options), source=None)
        self._labels = np.asarray(dataset.labels, np.int64)
        self._epochs = epochs
        self._windows = Windows(options, epochs, standard("resident", options.stored_size or options.size))

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        for number in range(first, self._epochs.batches):
            indices = self._epochs.indices(epoch, number)
            labels = torch.from_numpy(self._labels[indices]).to(self._images.pixels.device, non_blocking=True)
            yield self._windows(self._images[indices], epoch, number), labels

    def close(self) -> None:
        """See loaders.epochs.Engine; there is nothing to stop."""


def _kept(dataset: Dataset, options: LoaderOptions) -> DeviceImages:
    """The images of this process's part, on its device."""
    indices = np.arange(options.shard, len(dataset), options.shards)
    images: Any = dataset.pixels
    device = torch.empty(0, device=options.device).device
    if isinstance(images, DeviceImages) and images.holds(indices) and images.pixels.device == device:
        return images
    return keep(dataset, options, indices)
