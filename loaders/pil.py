"""What a first script does: Pillow, torchvision's v1 transforms, one image at a time in DataLoader workers.

This is the reference other engines are compared with, so it is left as tutorials write it. Order of the images,
shards and position follow `Epochs`. The random windows come from torch's own generators: in the workers, which are
seeded from the loader's seed, or with 0 workers the caller's, which torch.manual_seed sets. After a resume the order
goes on exactly, the windows are new ones.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs
from loaders.errors import DataError
from loaders.options import LoaderOptions


def missing(device: str) -> str | None:
    """Why this engine cannot run here, or None."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


class _Files(TorchDataset[tuple[torch.Tensor, int]]):
    """torchvision's ImageFolder for a list of files."""

    def __init__(self, files: Sequence[str], labels: Sequence[int], transform: Callable[[Any], torch.Tensor]) -> None:
        self._files, self._labels, self._transform = files, labels, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self._files[index]
        try:
            with open(path, "rb") as file:
                image = Image.open(file).convert("RGB")
        except Exception as error:
            # Carried through the worker's queue as text: some of Pillow's errors do not survive pickling.
            raise DataError(f"cannot decode {path}: {error}; find all with: bench data check") from None
        return self._transform(image), self._labels[index]


def _transform(options: LoaderOptions) -> Callable[[Any], torch.Tensor]:
    size = options.size
    if options.train:
        geometry = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    else:
        geometry = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    composed: Callable[[Any], torch.Tensor] = transforms.Compose(
        [*geometry, transforms.ToTensor(), transforms.Normalize(options.mean, options.std)]
    )
    return composed


class _Order:
    """Batches of indices of the epoch that was last set: a batch sampler that workers can outlive."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self.start = (0, 0)

    def __len__(self) -> int:
        return self._epochs.batches

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = self.start
        for number in range(first, self._epochs.batches):
            yield self._epochs.indices(epoch, number).tolist()


class Pil:
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        files = dataset.need_files("pil")
        self._options = options
        self.ahead = options.threads * options.prefetch
        self._order = _Order(epochs)
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] | None = DataLoader(
            _Files(files, dataset.labels, _transform(options)),
            batch_sampler=self._order,
            num_workers=options.threads,
            prefetch_factor=options.prefetch if options.threads else None,
            # Workers that start anew every epoch would put their start-up into every measurement of a small set.
            persistent_workers=options.threads > 0,
            pin_memory=options.device != "cpu",
            generator=self._generator,
        )
        order = torch.channels_last if options.layout == "nhwc" else torch.contiguous_format
        self._place = functools.partial(
            torch.Tensor.to,
            device=torch.device(options.device),
            dtype=getattr(torch, options.dtype),
            memory_format=order,
            non_blocking=True,
        )

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        if self._loader is None:
            raise DataError("loader pil is closed")
        self._order.start = (epoch, first)
        # Workers take their seeds from this generator when they start.
        self._generator.manual_seed(self._options.seed)
        for images, labels in self._loader:
            yield self._place(images), labels.to(self._options.device, non_blocking=True)

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None


def open_engine(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Engine:
    """Open the engine.

    Raises:
        DataError: the data set has no files.
    """
    return Pil(dataset, options, epochs)
