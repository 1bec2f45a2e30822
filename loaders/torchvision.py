"""The best that torch's own parts do: decode_image and transforms.v2 on uint8 tensors in DataLoader workers.

Order, windows, flips and rotations are those of `Epochs`, so this engine cuts the same pieces as the DALI engine.
What else a policy asks for torchvision draws itself, from a generator that is seeded from `Epochs` for every image.
Workers send bytes, a quarter of the traffic of floats; normalising happens once a batch on the device.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as transform

from loaders import geometry
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, evaluation_shape, flips, windows
from loaders.errors import DataError, reason, without_traceback
from loaders.normalization import normalized
from loaders.options import LoaderOptions
from loaders.policies import LARGEST_CIFAR, Operation, parse


def missing(device: str) -> str | None:
    """Why this engine cannot run here, or None."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


@dataclass(frozen=True, slots=True)
class _Key:
    """An image and its random numbers; None for an evaluation.

    Attributes:
        index: of the image.
        draws: a row of `Epochs.draws`.
        mirror: whether flip or alternating_flip turns it over.
        extras: rows of `Epochs.extras`, by the operation's number.
        seed: for operations of torchvision that draw themselves.
    """

    index: int
    draws: NDArray[np.float64] | None
    mirror: bool
    extras: Mapping[int, NDArray[np.float64]]
    seed: int


class _Images(TorchDataset[tuple[torch.Tensor, int]]):
    """One image for a key: uint8 [size, size, 3]."""

    def __init__(self, dataset: Dataset, options: LoaderOptions) -> None:
        self._pixels = dataset.pixels
        self._files = dataset.files if dataset.pixels is not None else dataset.need_files("torchvision")
        self._labels, self._size, self._margin = dataset.labels, options.size, options.eval_margin
        self._padding = options.padding
        self._mean = options.mean
        self._operations = parse(options.augment) if options.augmented else ()
        if any(operation.name in ("crop", "crop_reflect") for operation in self._operations):
            self._margin = 1.0
        self._random = {
            number: _random(operation, options)
            for number, operation in enumerate(self._operations)
            if operation.name in _RANDOM
        }

    def __getitem__(self, key: _Key) -> tuple[torch.Tensor, int]:
        image, size, operations = self._image(key.index), self._size, self._operations
        tall, wide = image.shape[1:]
        first = 0
        if key.draws is not None and operations and operations[0].name == "resized_crop":
            place = windows(key.draws[None], np.array([tall]), np.array([wide]), (operations[0].value or 0.0, 1.0))
            image = transform.resized_crop(image, *place[0].tolist(), [size, size], antialias=True)
            first = 1
        else:
            resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, size, self._margin)
            image = transform.resize(image, [resized_tall, resized_wide], antialias=True)
            image = image[:, top : top + size, left : left + size]
        for number in range(first, len(operations)):
            image = self._changed(image, number, operations[number], key)
        return image.permute(1, 2, 0).contiguous(), self._labels[key.index]

    def _image(self, index: int) -> torch.Tensor:
        """uint8 [3, height, width]."""
        if self._pixels is not None:
            return torch.from_numpy(self._pixels[index]).permute(2, 0, 1)
        path = self._files[index]
        try:
            image: torch.Tensor = decode_image(path, ImageReadMode.RGB)
        except Exception as error:
            raise DataError(f"cannot decode {path}: {reason(error)}; find all with: bench data check") from None
        return image

    def _changed(self, image: torch.Tensor, number: int, operation: Operation, key: _Key) -> torch.Tensor:
        name, size = operation.name, self._size
        made: torch.Tensor
        assert key.draws is not None
        if name in ("flip", "alternating_flip"):
            made = transform.horizontal_flip(image) if key.mirror else image
        elif name in ("crop", "crop_reflect"):
            border = self._padding if operation.value is None else int(operation.value)
            framed = transform.pad(image, [border] * 4, padding_mode="constant" if name == "crop" else "reflect")
            top, left = np.floor(key.draws[-3:-1] * (2 * border + 1)).astype(int).tolist()
            made = framed[:, top : top + size, left : left + size]
        elif name == "rotate":
            angle = geometry.angles(key.extras[number], operation.value or 0.0).item()
            made = transform.rotate(image, angle, InterpolationMode.NEAREST)
        elif name == "cutout":
            top, left, height, width = geometry.painted(operation, key.extras[number][None], size)[0].tolist()
            colour = torch.tensor([round(255 * level) for level in self._mean], dtype=torch.uint8).view(3, 1, 1)
            made = transform.erase(image, top, left, height, width, colour)
        else:
            # These draw from torch's generator, which belongs to the caller where there are no workers.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(key.seed)
                made = self._random[number](image)
        return made


_RANDOM = ("affine", "perspective", "jitter", "blur", "erasing", "autoaugment", "randaugment", "trivialaugment")
_EXTRAS = ("rotate", "cutout")


def _random(operation: Operation, options: LoaderOptions) -> Callable[[torch.Tensor], torch.Tensor]:
    """torchvision's own module for an operation."""
    value = operation.value or 0.0
    nearest = InterpolationMode.NEAREST
    made: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
        "affine": lambda: v2.RandomAffine(
            value, (geometry.MOVED, geometry.MOVED), (1 - geometry.SCALED, 1 + geometry.SCALED), value, nearest
        ),
        "perspective": lambda: v2.RandomPerspective(value, interpolation=nearest),
        "jitter": lambda: v2.ColorJitter(value, value, value, value / 2),
        "blur": lambda: v2.GaussianBlur(int(value), (0.1, 2.0)),
        "erasing": lambda: v2.RandomErasing(value, value=[round(255 * level) for level in options.mean]),
        "autoaugment": lambda: v2.AutoAugment(
            v2.AutoAugmentPolicy.CIFAR10 if options.size <= LARGEST_CIFAR else v2.AutoAugmentPolicy.IMAGENET
        ),
        "randaugment": lambda: v2.RandAugment(2, int(value)),
        "trivialaugment": v2.TrivialAugmentWide,
    }
    return made[operation.name]()


class _Keys:
    """Batches of keys of the epoch that was last set; workers outlive it."""

    def __init__(self, epochs: Epochs, options: LoaderOptions) -> None:
        self._epochs, self._augmented = epochs, options.augmented
        self._operations = parse(options.augment)
        self.start = (0, 0)

    def __len__(self) -> int:
        return self._epochs.batches

    def __iter__(self) -> Iterator[list[_Key]]:
        epoch, first = self.start
        for number in range(first, self._epochs.batches):
            yield self._keys(epoch, number)

    def _keys(self, epoch: int, number: int) -> list[_Key]:
        indices = self._epochs.indices(epoch, number).tolist()
        if not self._augmented:
            return [_Key(index, None, False, {}, 0) for index in indices]
        draws = self._epochs.draws(epoch, number)
        names = [operation.name for operation in self._operations]
        mirrors = self._epochs.mirrors(epoch, number) if "alternating_flip" in names else flips(draws)
        extras = {
            place: self._epochs.extras(epoch, number, geometry.COLUMNS[name], place)
            for place, name in enumerate(names)
            if name in _EXTRAS
        }
        seeds = self._epochs.extras(epoch, number, 1, len(names))[:, 0] * 2**53
        return [
            _Key(index, row, bool(mirror), {place: rows[i] for place, rows in extras.items()}, int(seed))
            for i, (index, row, mirror, seed) in enumerate(zip(indices, draws, mirrors, seeds, strict=True))
        ]


class Torchvision:
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._options = options
        self.ahead = options.threads * options.prefetch
        self._keys = _Keys(epochs, options)
        self._loader: DataLoader[Any] | None = DataLoader(
            _Images(dataset, options),
            batch_sampler=self._keys,
            num_workers=options.threads,
            prefetch_factor=options.prefetch if options.threads else None,
            persistent_workers=options.threads > 0,
            pin_memory=options.device != "cpu",
            collate_fn=default_collate,
        )

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        if self._loader is None:
            raise DataError("loader torchvision is closed")
        self._keys.start = (epoch, first)
        try:
            for pixels, labels in self._loader:
                images = normalized(pixels.to(self._options.device, non_blocking=True), self._options)
                yield images, labels.to(self._options.device, non_blocking=True)
        except DataError as error:
            raise without_traceback(error) from None

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None


def open_engine(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Engine:
    """Open the engine.

    Raises:
        DataError: the data set has neither files nor arrays.
    """
    return Torchvision(dataset, options, epochs)
