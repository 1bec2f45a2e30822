"""A loader of the user's as a training reads it."""

from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.errors import UsageError, WorkloadError
from bench.timing.own import OwnLoader
from loaders.options import LoaderOptions
from models.prepare import memory_format


class OwnBatches:
    """Training batches of a loader of the user's: `Batches` of models.training.loop.

    An epoch has as many batches as its iterable has, or the images of the data folder where it does not say.

    Args:
        name: FILE.py:NAME or package.module:NAME; see bench.timing.own.
        classes: labels are below this.
        usual: images of an epoch where the loader does not say.
        options: batch, size, device, dtype and layout.

    Attributes:
        images: of an epoch.

    Raises:
        WorkloadError, ModelError: it is no loader, or has not one whole batch.
    """

    def __init__(self, name: str, classes: int, usual: int, options: LoaderOptions) -> None:
        self._loader = OwnLoader(name, options.batch, options.size, options.device)
        self._classes, self._options, self._first = classes, options, 0
        source = self._loader.source
        if isinstance(source, DataLoader) and not source.drop_last and source.batch_size == options.batch:
            # It would be found when the first epoch ends, which may be hours later.
            rest = len(source.dataset) % options.batch if isinstance(source.dataset, Sized) else 0
            if rest:
                raise WorkloadError(f"the last batch of {name} has {rest} images only: give it drop_last=True")
        batches = len(source) if isinstance(source, Sized) else usual // options.batch
        if not batches:
            raise WorkloadError(f"{name} has no whole batch of {options.batch} images")
        self._batches = batches
        self.images = batches * options.batch

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of an epoch, from a pass of the loader's own that begins now. Raises WorkloadError: bad batches."""
        first, self._first = self._first, 0
        options, batches = self._options, iter(self._loader)
        place, dtype = torch.device(options.device), getattr(torch, options.dtype)
        for _ in range(first, self._batches):
            images, labels = next(batches)
            # Labels that lie on a GPU are not waited for: the network's own check there would end the process.
            if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
                raise WorkloadError(
                    f"{self._loader.name} gives labels from {int(labels.min())} to {int(labels.max())}, and the data "
                    f"has {self._classes} classes"
                )
            yield (
                self._loader.taken(images, options.size, place, dtype, memory_format(options.layout)),
                labels.to(place, non_blocking=True).long(),
            )

    def state(self) -> dict[str, int]:
        """Nothing: a loader of the user's cannot be told where to go on."""
        return {}

    def restore(self, state: dict[str, int]) -> None:
        """Give only what is left of an epoch, from a new pass."""
        self._first = state["batch"]

    def close(self) -> None:
        """Let go of the loader."""
        self._loader.close()


def refuse_parts(name: str, held_out: bool, processes: int) -> None:
    """Raise UsageError where a loader of the user's cannot train: see the message."""
    if processes > 1:
        raise UsageError(f"{name} would give all processes the same images; a loader of your own trains in one process")
    if held_out:
        raise UsageError(
            f"which images {name} gives is not known, so none of the data's can be held out to validate on; "
            "--data needs validation or test images"
        )
