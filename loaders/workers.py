"""An engine made of torch's DataLoader: worker processes that make one image at a time."""

import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from loaders.epochs import Batch, Engine
from loaders.errors import DataError, without_traceback
from loaders.options import LoaderOptions

Key = TypeVar("Key")


class _Batches(Generic[Key]):
    """Keys of the batches from `start` on: a batch sampler for workers that live longer than an epoch."""

    def __init__(self, keys: Callable[[int, int], list[Key]], count: int) -> None:
        self._keys, self._count = keys, count
        self.start = (0, 0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.start
        return (self._keys(epoch, number) for number in range(first, self._count))


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the caller, who may want to finish a step, ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class WorkerEngine(Engine, Generic[Key]):
    """Batches of what a data set answers to keys."""

    def __init__(
        self,
        name: str,
        images: TorchDataset[tuple[torch.Tensor, int]],
        keys: Callable[[int, int], list[Key]],
        count: int,
        finish: Callable[[torch.Tensor], torch.Tensor],
        options: LoaderOptions,
    ) -> None:
        """Open the engine; workers start with the first batch.

        Args:
            name: of the engine.
            images: one image and its label for a key.
            keys: of the batch of an epoch and a number.
            count: batches an epoch.
            finish: takes a batch of images to the device, dtype and memory order that the options ask for.
        """
        self.ahead = options.threads * options.prefetch
        self._name, self._finish, self._options = name, finish, options
        self._sampler, self._started = _Batches(keys, count), False
        self._loader: DataLoader[Any] | None = DataLoader(
            images,
            batch_sampler=self._sampler,
            num_workers=options.threads,
            prefetch_factor=options.prefetch if options.threads else None,
            # Workers that start anew every epoch would put their start-up into every measurement of a small set.
            persistent_workers=options.threads > 0,
            pin_memory=options.device != "cpu",
            worker_init_fn=_leave_interrupts,
            # DataLoader draws seeds for its workers. From torch's own generator, a resumed epoch, which opens a
            # loader where the undisturbed one did not, would go on with other numbers.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        if self._loader is None:
            raise DataError(f"loader {self._name} is closed")
        self._sampler.start = (epoch, first)
        if self._options.threads and not self._started:
            # A worker inherits this process's unreachable objects. Finalising some of them there never ends: a DALI
            # pipeline's waits for threads that a fork does not have.
            gc.collect()
            self._started = True
        try:
            for images, labels in self._loader:
                yield self._finish(images), labels.to(self._options.device, non_blocking=True)
        except DataError as error:
            raise without_traceback(error) from None

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None
