"""Generates data sets that a network can learn, in the layouts of the real ones.

They are for trying recipes and for tests.

A class is a tint, the direction and the width of stripes, and for large numbers of classes the stripes' colour. Phase,
strength, brightness and noise are drawn for every image, separately for training and test images. A direction and its
mirror image belong to one class, so that flips do no harm. The images of `loaders.sample` cost as much to decode as
photographs; these are small and quickly made.
"""

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.errors import DataError
from loaders.sample import new_folder
from loaders.threads import in_threads

TRAIN, TEST = 0, 1
TEST_SHARE = 6  # one image in six, as in CIFAR

_TINTS, _DIRECTIONS = 10, 3
_STRIPES = (2.0, 3.2, 5.0, 8.0)  # across the picture
_COLOURS = 9
MOST_CLASSES = _TINTS * _DIRECTIONS * len(_STRIPES) * _COLOURS
_TOGETHER = 256

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, slots=True)
class Form:
    """A layout: its classes and the sides of its images in pixels."""

    classes: int
    height: int
    width: int


FORMS: dict[str, Form] = {
    # Python batches data_batch_1 to 5, test_batch and batches.meta.
    "cifar10": Form(10, 32, 32),
    # Python batches train, test and meta.
    "cifar100": Form(100, 32, 32),
    # train/CLASS/images, val/images and val_annotations.txt.
    "tinyimagenet": Form(200, 64, 64),
    # train.X1 to train.X4 and val.X, to be merged.
    "imagenet100": Form(100, 96, 128),
    # train/CLASS and val/CLASS.
    "imagenet": Form(1000, 96, 128),
    # train/CLASS and val/CLASS, of any number of classes.
    "folder": Form(10, 64, 64),
}


def pictures(
    labels: Sequence[int] | NDArray[np.int64], height: int, width: int, seed: int = 0, part: int = TRAIN
) -> NDArray[np.uint8]:
    """One picture for each label, uint8 [n, height, width, 3]. The same arguments give the same pictures.

    Args:
        labels: below MOST_CLASSES.
        height, width: pixels.
        seed: of everything random.
        part: TRAIN or TEST, whose pictures are drawn separately.
    """
    result = np.empty((len(labels), height, width, 3), np.uint8)
    for first, block in _blocks(np.asarray(labels), height, width, seed, part):
        result[first : first + len(block)] = block
    return result


def _blocks(
    labels: NDArray[np.int64], height: int, width: int, seed: int, part: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for number, first in enumerate(range(0, len(labels), _TOGETHER)):
        generator = np.random.Generator(np.random.Philox(key=[seed, 0x73657061 + part], counter=[0, number, 0, 0]))
        yield first, _draw(labels[first : first + _TOGETHER], height, width, generator)


def _draw(labels: NDArray[np.int64], height: int, width: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    count = len(labels)
    tint, rest = labels % _TINTS, labels // _TINTS
    direction = np.pi / 4 * ((tint + rest) % _DIRECTIONS)
    stripes = np.take(_STRIPES, (tint + rest // _DIRECTIONS) % len(_STRIPES)) * generator.uniform(0.93, 1.07, count)
    colour = rest // (_DIRECTIONS * len(_STRIPES))
    # A diagonal and its mirror image belong to one class.
    mirrored = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    phase = generator.uniform(0, 2 * np.pi, count)
    across = (2 * np.pi * stripes * np.cos(direction) * mirrored)[:, None] * np.linspace(0, 1, width) + phase[:, None]
    down = (2 * np.pi * stripes * np.sin(direction))[:, None] * np.linspace(0, 1, height)
    # sin(a + b) out of sines of rows and columns: no sine of a whole picture.
    wave = np.sin(across)[:, None, :] * np.cos(down)[:, :, None] + np.cos(across)[:, None, :] * np.sin(down)[:, :, None]
    paint = np.where((colour > 0)[:, None], 0.4 + _hues(colour, _COLOURS), 1.0) * generator.uniform(14, 34, (count, 1))
    flat = generator.uniform(100, 155, (count, 1)) + _hues(tint, _TINTS) * generator.uniform(14, 34, (count, 1))
    pixels = generator.standard_normal((count, height, width, 3), np.float32)
    pixels *= np.float32(22)
    pixels += flat.astype(np.float32)[:, None, None, :]
    pixels += wave.astype(np.float32)[..., None] * paint.astype(np.float32)[:, None, None, :]
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _hues(numbers: NDArray[np.int64], of: int) -> NDArray[np.float64]:
    """Directions around the colour circle that leave the brightness as it is, [n, 3]."""
    turn = 2 * math.pi * numbers / of
    return np.stack([np.cos(turn), np.cos(turn - 2 * math.pi / 3), np.cos(turn + 2 * math.pi / 3)], 1)


def make(
    dest: str | Path, like: str, images: int | None = None, seed: int = 0, classes: int | None = None
) -> tuple[int, int]:
    """Write a data set in the layout `like`; `dest` appears complete or not at all.

    Args:
        dest: a folder that does not exist yet or is empty.
        like: one of FORMS.
        images: the total, one in six of them for validation or test; by default six a class, at least 1,200.
        seed: of everything random.
        classes: by default those of the real set; fixed for the python batches.

    Returns:
        Number of training and of test images.

    Raises:
        DataError: an unknown layout, too few images for the classes, or `dest` cannot be written.
    """
    if like not in FORMS:
        raise DataError(f"unknown layout {like!r}; known: {', '.join(FORMS)}")
    form = FORMS[like]
    if like.startswith("cifar") and classes not in (None, form.classes):
        raise DataError(f"the layout {like} has {form.classes} classes, not {classes}")
    classes = classes or form.classes
    if classes > MOST_CLASSES:
        raise DataError(f"{classes} classes are too many to be distinguishable; the most is {MOST_CLASSES}")
    images = max(1200, 6 * classes) if images is None else images
    test = max(images // TEST_SHARE, classes)
    train = images - test
    if train < max(classes, 5):
        raise DataError(f"{images} images are too few for {classes} classes; use at least {2 * max(classes, 5)}")
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more")
    sides = [np.arange(count) % classes for count in (train, test)]
    with new_folder(Path(dest)) as folder:
        if like.startswith("cifar"):
            _write_batches(folder, like, sides, seed)
        else:
            _write_files(folder, like, sides, classes, seed)
    return train, test


def _write_batches(folder: Path, like: str, sides: Sequence[NDArray[np.int64]], seed: int) -> None:
    form = FORMS[like]
    for part, labels in enumerate(sides):
        rows = pictures(labels, form.height, form.width, seed, part).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        if like == "cifar100":
            names = [("train", "test")[part]]
        else:
            names = [f"data_batch_{i}" for i in range(1, 6)] if part == TRAIN else ["test_batch"]
        for name, chosen in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            numbers = labels[chosen].tolist()
            batch: dict[bytes, Any] = {b"batch_label": name.encode(), b"data": np.ascontiguousarray(rows[chosen])}
            batch[b"filenames"] = [f"{name}_{i:05d}.png".encode() for i in chosen.tolist()]
            if like == "cifar100":
                batch |= {b"fine_labels": numbers, b"coarse_labels": [label // 5 for label in numbers]}
            else:
                batch[b"labels"] = numbers
            # Protocol 2 is what the real batches are written in.
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    if like == "cifar100":
        fine = [f"fine_{label:02d}".encode() for label in range(100)]
        meta: dict[bytes, Any] = {
            b"fine_label_names": fine,
            b"coarse_label_names": [f"coarse_{i:02d}".encode() for i in range(20)],
        }
        (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    else:
        meta = {b"label_names": [name.encode() for name in CIFAR10_CLASSES], b"num_vis": 3072}
        (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def _write_files(folder: Path, like: str, sides: Sequence[NDArray[np.int64]], classes: int, seed: int) -> None:
    form = FORMS[like]
    names = [f"class_{label:04d}" if like == "folder" else f"n{label:08d}" for label in range(classes)]
    if like == "tinyimagenet":
        (folder / "wnids.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        lines = [f"val_{i}.JPEG\t{names[label]}\t0\t0\t62\t62\n" for i, label in enumerate(sides[TEST])]
        (folder / "val").mkdir()
        (folder / "val" / "val_annotations.txt").write_text("".join(lines), encoding="utf-8")

    def place(number: int, label: int, part: int) -> Path:
        name = names[label]
        if like == "tinyimagenet":
            inner = f"val/images/val_{number}" if part == TEST else f"train/{name}/images/{name}_{number}"
        elif like == "imagenet100":
            # Each class is in one of four parts, as in the published set.
            inner = f"{'val.X' if part == TEST else f'train.X{1 + label * 4 // classes}'}/{name}/{name}_{number}"
        else:
            inner = f"{('train', 'val')[part]}/{name}/{name}_{number}"
        return folder / f"{inner}.JPEG"

    def save(file: tuple[Path, NDArray[np.uint8]]) -> None:
        path, picture = file
        Image.fromarray(picture).save(path, "JPEG", quality=90)

    for part, labels in enumerate(sides):
        paths = [place(number, label, part) for number, label in enumerate(labels.tolist())]
        for parent in sorted({path.parent for path in paths}):
            parent.mkdir(parents=True, exist_ok=True)
        for first, block in _blocks(labels, form.height, form.width, seed, part):
            in_threads(save, zip(paths[first : first + len(block)], block, strict=True))
