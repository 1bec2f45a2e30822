"""The best that torch's own parts do: decode_image and transforms.v2 on uint8 tensors in DataLoader workers.

Order, windows and flips are those of `Epochs`, so this engine cuts the same pieces as the DALI engine. Workers send
bytes, a quarter of the traffic of floats; normalising happens once a batch on the device.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transform

from kernels.normalize import normalize
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, evaluation_shape, flips, windows
from loaders.errors import DataError
from loaders.options import LoaderOptions


def missing(device: str) -> str | None:
    """Why this engine cannot run here, or None."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


Key = tuple[int, NDArray[np.float64] | None]


class _Files(TorchDataset[tuple[torch.Tensor, int]]):
    """One image for (index, random numbers): uint8 [size, size, 3]."""

    def __init__(self, files: Sequence[str], labels: Sequence[int], size: int) -> None:
        self._files, self._labels, self._size = files, labels, size

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        index, draws = key
        path, size = self._files[index], self._size
        try:
            image = decode_image(path, ImageReadMode.RGB)
        except Exception as error:
            raise DataError(f"cannot decode {path}: {error}; find all with: bench data check") from None
        tall, wide = image.shape[1:]
        if draws is None:
            resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, size)
            image = transform.resize(image, [resized_tall, resized_wide], antialias=True)
            image = image[:, top : top + size, left : left + size]
        else:
            row = draws[None]
            place = windows(row, np.array([tall]), np.array([wide]))[0].tolist()
            image = transform.resized_crop(image, *place, [size, size], antialias=True)
            if flips(row)[0]:
                image = transform.horizontal_flip(image)
        return image.permute(1, 2, 0).contiguous(), self._labels[index]


class _Keys:
    """Batches of (index, random numbers) of the epoch that was last set; workers outlive it."""

    def __init__(self, epochs: Epochs, train: bool) -> None:
        self._epochs, self._train = epochs, train
        self.start = (0, 0)

    def __len__(self) -> int:
        return self._epochs.batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.start
        for number in range(first, self._epochs.batches):
            indices = self._epochs.indices(epoch, number).tolist()
            draws = self._epochs.draws(epoch, number) if self._train else [None] * len(indices)
            yield list(zip(indices, draws, strict=True))


class Torchvision:
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        files = dataset.need_files("torchvision")
        self._options = options
        self.ahead = options.threads * options.prefetch
        self._keys = _Keys(epochs, options.train)
        self._loader: DataLoader[Any] | None = DataLoader(
            _Files(files, dataset.labels, options.size),
            batch_sampler=self._keys,
            num_workers=options.threads,
            prefetch_factor=options.prefetch if options.threads else None,
            persistent_workers=options.threads > 0,
            pin_memory=options.device != "cpu",
            collate_fn=default_collate,
        )
        self._normalize = functools.partial(
            normalize, mean=options.mean, std=options.std, dtype=getattr(torch, options.dtype)
        )

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        if self._loader is None:
            raise DataError("loader torchvision is closed")
        self._keys.start = (epoch, first)
        for pixels, labels in self._loader:
            images = self._normalize(pixels.to(self._options.device, non_blocking=True))
            if self._options.layout == "nchw":
                images = images.contiguous()
            yield images, labels.to(self._options.device, non_blocking=True)

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None


def open_engine(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Engine:
    """Open the engine.

    Raises:
        DataError: the data set has no files.
    """
    return Torchvision(dataset, options, epochs)
