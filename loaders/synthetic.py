"""The engine synthetic: one constant batch, which shows what a step could do if loading were free."""

from collections.abc import Iterator

import torch

from kernels.formats import dtype_of
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs
from loaders.options import LoaderOptions


class Synthetic(Engine):
    """Returns one batch of normal deviates (mean 0, deviation 1, as normalised images have) every time.

    Only the number of images and classes of the data set counts.
    """

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        generator = torch.Generator().manual_seed(options.seed)
        images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
        order = torch.channels_last if options.layout == "nhwc" else torch.contiguous_format
        self._images = images.to(options.device, dtype_of(options.dtype)).contiguous(memory_format=order)
        labels = torch.randint(len(dataset.classes), (options.batch,), generator=generator)
        self._labels = labels.to(options.device)
        self._options = options
        self._epochs = epochs

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The same tensors each time; an evaluation's last batch is a shorter view of them."""
        for number in range(first, self._epochs.batches):
            left = self._epochs.images - number * self._options.batch
            if self._options.train or left >= self._options.batch:
                yield self._images, self._labels
            else:
                yield self._images[:left], self._labels[:left]
