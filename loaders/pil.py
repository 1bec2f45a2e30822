"""What a first script does: Pillow, torchvision's v1 transforms, one image at a time in DataLoader workers.

This is the reference other engines are compared with, so it is left as tutorials write it. Order of the images,
shards and position follow `Epochs`. The random windows come from torch's own generators: in the workers, which are
seeded from the loader's seed, or with 0 workers the caller's, which torch.manual_seed sets. After a resume the order
goes on exactly, the windows are new ones.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from loaders import geometry
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs
from loaders.errors import DataError, without_traceback
from loaders.options import LoaderOptions
from loaders.policies import LARGEST_CIFAR, PAINTING, Operation, parse


def missing(device: str) -> str | None:
    """Why this engine cannot run here, or None."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


class _Images(TorchDataset[tuple[torch.Tensor, int]]):
    """torchvision's ImageFolder for a list of files, or its CIFAR10 for arrays."""

    def __init__(self, dataset: Dataset, options: LoaderOptions) -> None:
        self._pixels = dataset.pixels
        self._files = dataset.files if dataset.pixels is not None else dataset.need_files("pil")
        self._labels = dataset.labels
        self._alternating = _AlternatingFlip()
        self._transform = _transform(options, self._alternating)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: tuple[int, bool]) -> tuple[torch.Tensor, int]:
        index, self._alternating.mirror = key
        return self._transform(self._image(index)), self._labels[index]

    def _image(self, index: int) -> Image.Image:
        if self._pixels is not None:
            return Image.fromarray(self._pixels[index])
        path = self._files[index]
        try:
            with open(path, "rb") as file:
                return Image.open(file).convert("RGB")
        except Exception as error:
            # Carried through the worker's queue as text: some of Pillow's errors do not survive pickling.
            raise DataError(f"cannot decode {path}: {error}; find all with: bench data check") from None


class _AlternatingFlip:
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
        # No channel of bytes that varies at all varies less.
        least = 0.5 / 255 / image[0].numel() ** 0.5
        deviation, mean = torch.std_mean(image, (1, 2), correction=0, keepdim=True)
        return (image - mean) / deviation.clamp(min=least)


def _transform(options: LoaderOptions, alternating: _AlternatingFlip) -> Callable[[Any], torch.Tensor]:
    operations = parse(options.augment) if options.augmented else ()
    names = [operation.name for operation in operations]
    steps: list[Any] = []
    if "resized_crop" not in names:
        margin = 1.0 if "crop" in names or "crop_reflect" in names else options.eval_margin
        steps += [transforms.Resize(round(options.size * margin)), transforms.CenterCrop(options.size)]
    steps += [_random(operation, options, alternating) for operation in operations if operation.name not in PAINTING]
    steps.append(transforms.ToTensor())
    steps += [_random(operation, options, alternating) for operation in operations if operation.name in PAINTING]
    if options.normalization == "per_image":
        steps.append(_Standardize())
    else:
        steps.append(transforms.Normalize(options.mean, options.std))
    composed: Callable[[Any], torch.Tensor] = transforms.Compose(steps)
    return composed


def transform_one(options: LoaderOptions) -> Callable[[Image.Image], torch.Tensor]:
    """What turns one opened RGB image into [3, size, size] float32, as an evaluation of these options would."""
    return _transform(options, _AlternatingFlip())


def _random(operation: Operation, options: LoaderOptions, alternating: _AlternatingFlip) -> Any:
    """torchvision's transform for an operation."""
    name, value, size = operation.name, operation.value or 0.0, options.size
    if name in ("crop", "crop_reflect"):
        border = options.padding if operation.value is None else int(value)
        return transforms.RandomCrop(size, border, padding_mode="constant" if name == "crop" else "reflect")
    made: dict[str, Callable[[], Any]] = {
        "resized_crop": lambda: transforms.RandomResizedCrop(size, (value, 1.0)),
        "flip": transforms.RandomHorizontalFlip,
        "alternating_flip": lambda: alternating,
        "rotate": lambda: transforms.RandomRotation(value),
        "affine": lambda: transforms.RandomAffine(
            value, (geometry.MOVED, geometry.MOVED), (1 - geometry.SCALED, 1 + geometry.SCALED), value
        ),
        "perspective": lambda: transforms.RandomPerspective(value, interpolation=transforms.InterpolationMode.NEAREST),
        "jitter": lambda: transforms.ColorJitter(value, value, value, value / 2),
        "blur": lambda: transforms.GaussianBlur(int(value), (0.1, 2.0)),
        "erasing": lambda: transforms.RandomErasing(value, value=list(options.mean)),
        "cutout": lambda: _Cutout(int(value), options.mean),
        "autoaugment": lambda: transforms.AutoAugment(
            transforms.AutoAugmentPolicy.CIFAR10 if size <= LARGEST_CIFAR else transforms.AutoAugmentPolicy.IMAGENET
        ),
        "randaugment": lambda: transforms.RandAugment(2, int(value)),
        "trivialaugment": transforms.TrivialAugmentWide,
    }
    return made[name]()


class _Order:
    """Batches of keys of the epoch that was last set: a batch sampler that workers can outlive."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self.start = (0, 0)

    def __len__(self) -> int:
        return self._epochs.batches

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        epoch, first = self.start
        for number in range(first, self._epochs.batches):
            mirrors = self._epochs.mirrors(epoch, number).tolist()
            yield list(zip(self._epochs.indices(epoch, number).tolist(), mirrors, strict=True))


class Pil:
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._options = options
        self.ahead = options.threads * options.prefetch
        self._order = _Order(epochs)
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] | None = DataLoader(
            _Images(dataset, options),
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
        try:
            for images, labels in self._loader:
                yield self._place(images), labels.to(self._options.device, non_blocking=True)
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
    return Pil(dataset, options, epochs)
