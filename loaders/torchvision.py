"""The engine torchvision: decode_image and transforms.v2 on uint8 tensors in DataLoader workers.

Order, windows, flips and rotations are those of `Epochs`, so this engine cuts the same pieces as the DALI engine.
torchvision draws the random numbers of the other operations, from a generator that is seeded from `Epochs` for every
image. Workers send bytes, a quarter of the traffic of floats; the device normalises each batch once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as transform

from loaders import geometry
from loaders.datasets import Dataset
from loaders.epochs import Epochs, evaluation_shape, flips, shifts, windows
from loaders.images import decode
from loaders.normalization import normalized
from loaders.options import LoaderOptions
from loaders.policies import BORDERED, FLIPS, WINDOWS, Operation
from loaders.transforms import random_transform
from loaders.workers import WorkerEngine

# Operations besides windows and flips whose random numbers `Epochs` draws.
_FROM_EPOCHS = ("rotate", "cutout")


@dataclass(frozen=True, slots=True)
class Key:
    """An image and its random numbers, of which an evaluation has none.

    Attributes:
        index: of the image.
        draws: a row of `Epochs.draws`, [1, columns].
        mirror: whether flip or alternating_flip mirrors it.
        extras: rows of `Epochs.extras`, [1, columns], by the operation's number.
        seed: for operations whose random numbers torchvision draws.
    """

    index: int
    draws: NDArray[np.float64] | None = None
    mirror: bool = False
    extras: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    seed: int = 0


class Images(TorchDataset[tuple[torch.Tensor, int]]):
    """One image for a key: uint8 [size, size, 3].

    Attributes:
        random: the operations whose random numbers torchvision draws, by their number in the policy; these change
            torch's generator while they run, so that one thread of a process at a time may use them.
    """

    def __init__(self, dataset: Dataset, options: LoaderOptions) -> None:
        self._pixels = dataset.pixels
        self._files = dataset.files if dataset.pixels is not None else dataset.need_files("torchvision")
        self._labels = dataset.labels
        self._options, self._margin = options, options.margin
        self._operations = options.operations()
        self._colour = [round(255 * level) for level in options.mean]
        self.random = {
            number: random_transform(v2, operation, options.size, self._colour)
            for number, operation in enumerate(self._operations)
            if operation.name not in (*WINDOWS, *FLIPS, *_FROM_EPOCHS)
        }

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        image, size, operations = self.image(key.index), self._options.size, self._operations
        tall, wide = image.shape[1:]
        if key.draws is not None and operations and operations[0].name == "resized_crop":
            place = windows(key.draws, np.array([tall]), np.array([wide]), (operations[0].value, 1.0))
            image = transform.resized_crop(image, *place[0].tolist(), [size, size], antialias=True)
        else:
            resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, size, self._margin)
            image = transform.resize(image, [resized_tall, resized_wide], antialias=True)
            image = image[:, top : top + size, left : left + size]
        for number, operation in enumerate(operations):
            image = self._augmented(image, number, operation, key)
        return image.permute(1, 2, 0).contiguous(), self._labels[key.index]

    def image(self, index: int) -> torch.Tensor:
        """Read and decode one image, uint8 [3, height, width]."""
        return (
            decode(self._files[index], self._options.exif)
            if self._pixels is None
            else torch.from_numpy(self._pixels[index]).permute(2, 0, 1)
        )

    def _augmented(self, image: torch.Tensor, number: int, operation: Operation, key: Key) -> torch.Tensor:
        name, size = operation.name, self._options.size
        assert key.draws is not None
        result = image
        if name in FLIPS and key.mirror:
            result = transform.horizontal_flip(image)
        elif name in BORDERED:
            mode = "constant" if name == "crop" else "reflect"
            framed = transform.pad(image, [operation.pixels] * 4, padding_mode=mode)
            top, left = shifts(key.draws, operation.pixels)[0].tolist()
            result = framed[:, top : top + size, left : left + size]
        elif name == "rotate":
            angle = geometry.angles(key.extras[number], operation.value).item()
            result = transform.rotate(image, angle, InterpolationMode.NEAREST)
        elif name == "cutout":
            rectangle = geometry.rectangles(operation, key.extras[number], size)[0].tolist()
            colour = torch.tensor(self._colour, dtype=torch.uint8).view(3, 1, 1)
            result = transform.erase(image, *rectangle, colour)
        elif number in self.random:
            # These draw from torch's generator, which without workers belongs to the caller.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(key.seed)
                result = self.random[number](image)
        return result


class Keys:
    """The keys of the images of a batch, for an epoch and the batch's number."""

    def __init__(self, options: LoaderOptions, epochs: Epochs) -> None:
        self._epochs, self._augmented = epochs, options.augmented
        self._names = [operation.name for operation in options.operations()]

    def __call__(self, epoch: int, number: int) -> list[Key]:
        epochs, names = self._epochs, self._names
        indices = epochs.indices(epoch, number).tolist()
        if not self._augmented:
            return [Key(index) for index in indices]
        draws = epochs.draws(epoch, number)
        mirrors = epochs.mirrors(epoch, number) if "alternating_flip" in names else flips(draws)
        extras = {
            place: epochs.extras(epoch, number, geometry.COLUMNS[name], place)
            for place, name in enumerate(names)
            if name in _FROM_EPOCHS
        }
        seeds = epochs.extras(epoch, number, 1, len(names))[:, 0] * 2**53
        return [
            Key(
                index,
                draws[i : i + 1],
                bool(mirrors[i]),
                {place: rows[i : i + 1] for place, rows in extras.items()},
                int(seeds[i]),
            )
            for i, index in enumerate(indices)
        ]


class Torchvision(WorkerEngine[Key]):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        def finish(pixels: torch.Tensor) -> torch.Tensor:
            return normalized(pixels.to(options.device, non_blocking=True), options)

        images = Images(dataset, options)
        super().__init__("torchvision", images, Keys(options, epochs), epochs.batches, finish, options)
