"""The engine pil, a first script: Pillow and torchvision's v1 transforms in DataLoader workers.

This is the reference that other engines are compared with, so it is left as tutorials write it, but for files that
convert("RGB") gets wrong without a word, such as grey of 16 bits (loaders.images). Order of the images,
shards and position follow `Epochs`. torchvision draws the windows and all else, from a generator that is seeded from
`Epochs` for every image: what an image becomes does not depend on the number of workers or on a resume.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from kernels.formats import dtype_of
from loaders.datasets import Dataset
from loaders.epochs import Epochs
from loaders.errors import undecodable
from loaders.images import open_rgb
from loaders.options import LoaderOptions
from loaders.policies import BORDERED, PAINTING, Operation
from loaders.transforms import random_transform
from loaders.workers import WorkerEngine

Key = tuple[int, bool, int]


class Images(TorchDataset[tuple[torch.Tensor, int]]):
    """torchvision's ImageFolder for a list of files, or its CIFAR10 for arrays.

    A key is the number of an image, whether alternating_flip mirrors it, and the seed of its random numbers.
    """

    def __init__(self, dataset: Dataset, options: LoaderOptions) -> None:
        self._pixels = dataset.pixels
        self._files = dataset.files if dataset.pixels is not None else dataset.need_files("pil")
        self._labels = dataset.labels
        self._exif = options.exif
        self._alternating = AlternatingFlip()
        self._transform = transforms.Compose(transform_steps(options, self._alternating))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        index, self._alternating.mirror, seed = key
        image = self.image(index)
        # Without workers torch's generator belongs to the caller.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._transform(image), self._labels[index]

    def image(self, index: int) -> Image.Image:
        """Read and decode one image."""
        if self._pixels is not None:
            return Image.fromarray(self._pixels[index])
        path = self._files[index]
        try:
            return open_rgb(path, self._exif)
        except Exception as error:
            # Carried through the worker's queue as text: some of Pillow's errors do not survive pickling.
            raise undecodable(path, error) from None


class AlternatingFlip:
    """Mirrors the image when the order of the epoch says so: torchvision has no such transform."""

    mirror = False

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirror else image


class _Cutout:
    """Paints a square around a random place of [3, h, w]: torchvision has no such transform."""

    def __init__(self, side: int, mean: tuple[float, float, float]) -> None:
        self._side, self._colour = side, torch.tensor(mean).view(3, 1, 1)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        corner = [int(torch.randint(length, ())) - self._side // 2 for length in image.shape[1:]]
        top, left = (max(0, start) for start in corner)
        image[:, top : corner[0] + self._side, left : corner[1] + self._side] = self._colour
        return image


class _Standardize:
    """Each channel to mean 0 and deviation 1."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        # The smallest deviation of a channel of bytes that is not constant.
        least = 0.5 / 255 / image[0].numel() ** 0.5
        deviation, mean = torch.std_mean(image, (1, 2), correction=0, keepdim=True)
        return (image - mean) / deviation.clamp(min=least)


def transform_steps(options: LoaderOptions, alternating: AlternatingFlip) -> list[Callable[[Any], Any]]:
    """From an opened RGB image to normalised [3, size, size], step by step."""
    operations, size = options.operations(), options.size
    steps: list[Callable[[Any], Any]] = []
    if not any(operation.name == "resized_crop" for operation in operations):
        steps += [transforms.Resize(round(size * options.margin)), transforms.CenterCrop(size)]
    steps += [_random(operation, options, alternating) for operation in operations if operation.name not in PAINTING]
    steps.append(transforms.ToTensor())
    steps += [_random(operation, options, alternating) for operation in operations if operation.name in PAINTING]
    if options.normalization == "per_image":
        return [*steps, _Standardize()]
    return [*steps, transforms.Normalize(options.mean, options.std)]


def transform_one(options: LoaderOptions) -> Callable[[Image.Image], torch.Tensor]:
    """What turns one opened RGB image into [3, size, size] float32, as an evaluation with these options would."""
    composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(transform_steps(options, AlternatingFlip()))
    return composed


def _random(operation: Operation, options: LoaderOptions, alternating: AlternatingFlip) -> Callable[[Any], Any]:
    name, value, size = operation.name, operation.value, options.size
    if name in BORDERED:
        padding = "constant" if name == "crop" else "reflect"
        crop: Callable[[Any], Any] = transforms.RandomCrop(size, operation.pixels, padding_mode=padding)
        return crop
    makers: dict[str, Callable[[], Callable[[Any], Any]]] = {
        "resized_crop": lambda: transforms.RandomResizedCrop(size, (value, 1.0)),
        "flip": transforms.RandomHorizontalFlip,
        "alternating_flip": lambda: alternating,
        "rotate": lambda: transforms.RandomRotation(value),
        "cutout": lambda: _Cutout(operation.pixels, options.mean),
    }
    return makers[name]() if name in makers else random_transform(transforms, operation, size, options.mean)


class Pil(WorkerEngine[Key]):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        def keys(epoch: int, number: int) -> list[Key]:
            seeds = epochs.extras(epoch, number, 1, 0)[:, 0] * 2**53
            columns = epochs.indices(epoch, number), epochs.mirrors(epoch, number), seeds.astype(int)
            return list(zip(*(column.tolist() for column in columns), strict=True))

        finish = functools.partial(
            torch.Tensor.to,
            device=torch.device(options.device),
            dtype=dtype_of(options.dtype),
            memory_format=torch.channels_last if options.layout == "nhwc" else torch.contiguous_format,
            non_blocking=True,
        )
        images = Images(dataset, options)
        super().__init__("pil", images, keys, epochs.batches, finish, options)
