"""A small data set decoded once and kept on the device as bytes: CIFAR without a loader in the way.

Training draws a window out of each image with a reflected border (RandomCrop with padding) and mirrors half of them;
that is the CIFAR augmentation, not the RandomResizedCrop of the other engines. Both are one indexing operation for the
whole batch: a loop over images would launch a thousand tiny kernels. Images of another size than asked for are
resized on the shorter side and cropped in the centre, once, while loading.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn.functional import pad
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transform

from kernels.normalize import normalize
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, flips
from loaders.errors import DataError
from loaders.options import LoaderOptions

MEMORY_SHARE = 0.5  # of what is free: the network needs the rest


def missing(device: str) -> str | None:
    """Why this engine cannot run here, or None."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


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


def _decode(dataset: Dataset, options: LoaderOptions) -> torch.Tensor:
    """All images as uint8 [images, size, size, 3] on the CPU."""
    size = options.size
    if dataset.pixels is not None and dataset.pixels.shape[1:3] == (size, size):
        return torch.from_numpy(np.ascontiguousarray(dataset.pixels))
    images = torch.empty(len(dataset), size, size, 3, dtype=torch.uint8)

    def fill(i: int) -> None:
        if dataset.pixels is not None:
            image = torch.from_numpy(dataset.pixels[i]).permute(2, 0, 1)
        else:
            try:
                image = decode_image(dataset.files[i], ImageReadMode.RGB)
            except Exception as error:
                raise DataError(f"cannot decode {dataset.files[i]}: {error}; find all with: bench data check") from None
        images[i] = _square(image, size)

    with ThreadPoolExecutor(max(1, options.threads)) as pool:
        for _ in pool.map(fill, range(len(dataset))):
            pass
    return images


class Resident:
    """See the module's text."""

    ahead = 0

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        device = torch.device(options.device)
        border = options.padding if options.train else 0
        if border >= options.size:
            raise DataError(f"loader option padding is {border}; a border must be smaller than the image")
        needed, free = len(dataset) * (options.size + 2 * border) ** 2 * 3, _free_bytes(device)
        if needed > MEMORY_SHARE * free:
            raise DataError(
                f"{dataset.name} needs {needed / 2**30:.1f} GiB on {device}, of which {free / 2**30:.1f} are free; "
                "use dali, or a smaller size"
            )
        images = _decode(dataset, options)
        if border:
            # Reflected before, not after, the images are moved: once instead of every epoch.
            framed = [
                pad(part.permute(0, 3, 1, 2).float(), (border,) * 4, mode="reflect").to(torch.uint8)
                for part in torch.split(images, 4096)
            ]
            images = torch.cat(framed).permute(0, 2, 3, 1).contiguous()
        self._images = images.to(device)
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64, device=device)
        self._steps = torch.arange(options.size, device=device)
        self._options = options
        self._epochs = epochs
        self._border = border

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        options, device = self._options, self._images.device
        for number in range(first, self._epochs.batches):
            numbers = self._epochs.indices(epoch, number)
            chosen = torch.from_numpy(numbers).to(device, non_blocking=True)
            pixels = self._augment(chosen, epoch, number) if options.train else self._images[chosen]
            images = normalize(pixels, options.mean, options.std, getattr(torch, options.dtype))
            yield (images.contiguous() if options.layout == "nchw" else images), self._labels[chosen]

    def _augment(self, chosen: torch.Tensor, epoch: int, number: int) -> torch.Tensor:
        """Windows of the bordered images, half of them mirrored: uint8 [batch, size, size, 3]."""
        draws = self._epochs.draws(epoch, number)
        corners = np.floor(draws[:, -3:-1] * (2 * self._border + 1))
        moves = np.column_stack([corners, flips(draws)]).astype(np.int64)
        top, left, mirror = torch.from_numpy(moves).to(chosen.device, non_blocking=True).T
        rows = top[:, None] + self._steps
        size, side = self._options.size, self._images.shape[1]
        # A mirrored image is one whose columns are read backwards.
        columns = left[:, None] + torch.where(mirror[:, None].bool(), size - 1 - self._steps, self._steps)
        # Whole pixels by their number: on a CPU five times as fast as indexing three dimensions at once.
        pixels = ((chosen[:, None] * side + rows) * side)[:, :, None] + columns[:, None, :]
        return self._images.view(-1, 3).index_select(0, pixels.flatten()).view(-1, size, size, 3)

    def close(self) -> None:
        """Nothing to stop."""


def open_engine(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Engine:
    """Decode everything.

    Raises:
        DataError: the set does not fit into half of the free memory, or a file cannot be decoded.
    """
    return Resident(dataset, options, epochs)
