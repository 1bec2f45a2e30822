"""The engine resident: a small data set such as CIFAR, decoded once and kept on the device as bytes.

Augmentation runs there too, on the whole batch at once (loaders.augment); "standard" is the CIFAR augmentation, a
window out of the image with a reflected border and mirrors, not the resized_crop of the other engines. Images of
another size than requested are resized on the shorter side and cropped in the centre, once, while loading; an
evaluation shows them as they are, whatever eval_margin says.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transform

from kernels import runtime
from kernels.augment import augment
from kernels.formats import dtype_of
from loaders.augment import Augmentation
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs
from loaders.errors import DataError
from loaders.images import decode
from loaders.normalization import normalized
from loaders.options import LoaderOptions
from loaders.threads import in_threads

MEMORY_SHARE = 0.5  # of what is free: the network needs the rest


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
        DataError: a file cannot be decoded, or the set does not fit into half of the free memory.
    """
    if dataset.pixels is not None and dataset.pixels.shape[1:3] == (size, size):
        return dataset
    _check_memory(dataset, size, torch.device("cpu"))
    return replace(dataset, pixels=_decode(dataset, size, threads, exif).numpy())


def _check_memory(dataset: Dataset, size: int, device: torch.device) -> None:
    needed, free = len(dataset) * size**2 * 3, _free_bytes(device)
    if needed > MEMORY_SHARE * free:
        raise DataError(
            f"{dataset.name} needs {needed / 2**30:.1f} GiB on {device}, of which {free / 2**30:.1f} are free; "
            "use dali, or a smaller size"
        )


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


class Resident(Engine):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        """Decode everything.

        Raises:
            DataError: the set does not fit into half of the free memory, or a file cannot be decoded.
        """
        device = torch.device(options.device)
        side = options.stored_size or options.size
        self._augmentation = Augmentation(options, epochs, side) if options.augmented else None
        _check_memory(dataset, side, device)
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
