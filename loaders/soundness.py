"""What looks wrong with a data set before anything is trained or tested on it, each doubt in one line."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders import identity
from loaders.datasets import KNOWN, Dataset, LeftOut, describe_left_out, open_dataset, printable
from loaders.errors import DataError
from loaders.images import opened
from loaders.packed_images import PackedImages
from loaders.threads import in_threads

OPENED = 500  # images of a part that are looked at for their colours
MOSTLY = 0.9  # share of a class from which on guessing it looks like learning

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
_USES = {"train": "training", "val": "validation"}


def remarks(parts: Sequence[Dataset], compare: bool = True) -> list[str]:
    """All that is to be said about the parts of a data set, training images first; a line each.

    Args:
        compare: look for images that are in two parts or in two classes; a training does this when it has chosen its
            parts.
    """
    lines = []
    for part in parts:
        lines += left_out(part)
        lines += doubts(part, part is parts[0])
    if compare:
        first = identity.identify(parts[0])
        others = [identity.identify(part, first.every) for part in parts[1:]]
        known = list(zip(parts, [first, *others], strict=True))
        lines += [line for part, known_images in known for line in doubtful_labels(part, known_images)]
        named = [(_USES.get(part.split, part.split), part, each) for part, each in known]
        lines += identity.shared(named)
    return lines


def left_out(dataset: Dataset) -> list[str]:
    """What the listing passed over; a warning where images, or files that cannot be told, are among it."""
    passed = dataset.left_out
    if not passed:
        return []
    files = sum(each.files for each in passed)
    kind = "warning" if any(map(_may_hold_images, passed)) else "note"
    return [f"{kind}: {files:,} file{'s' * (files > 1)} left out of {dataset.name}: {describe_left_out(passed)}"]


def _may_hold_images(passed: LeftOut) -> bool:
    if passed.reason == "hidden" or passed.reason.startswith(("folder beside", "folder that is", "link to")):
        return False
    return "ending" not in passed.reason or any(map(_is_image, passed.examples))


def _is_image(path: str) -> bool:
    """Whether Pillow takes a file for an image, whatever its name says."""
    try:
        with Image.open(path):
            return True
    except Exception:
        return False


def refuse_one_class(dataset: Dataset) -> None:
    """Raise DataError if there is one class, which needs no learning; the message names what lies below the folder."""
    if len(dataset.classes) != 1:
        return
    (label,) = dataset.classes
    home = _folder_of(dataset, label)
    below = _folders_in(home) if home else []
    message = f"{dataset.name} has one class, {label}: there is nothing to learn"
    if not home or not below:
        raise DataError(f"{message}; name a folder that holds a folder for each class")
    try:
        inner = open_dataset(home)
        hint = f"; is the folder one too high? {home} has {len(inner.classes)} classes" * (len(inner.classes) > 1)
    except DataError:
        hint = ""
    raise DataError(f"{message}; {home} holds the folders {_few(below)}{hint}")


def doubts(dataset: Dataset, training: bool = True) -> list[str]:
    """Why a high accuracy on this data may mean nothing, or why a training on it may fail.

    Args:
        training: the images are there to learn from; a class of one image is no fault of others.
    """
    name, classes, images = dataset.name, dataset.classes, len(dataset)
    counts = np.bincount(np.asarray(dataset.labels, np.int64), minlength=len(classes))
    found = []
    if len(classes) == 1:
        found.append(f"{name} has one class, {classes[0]}: every answer is right")
    if len(classes) > images:
        found.append(f"{name} has {images:,} images for {len(classes):,} classes")
    elif training and not counts.all():
        found.append(f"{_of_classes(counts == 0, classes)} of {name} have no image")
    if training:
        found += _doubtful_names(dataset)
        if (counts == 1).any():
            found.append(f"{_of_classes(counts == 1, classes)} of {name} have one image")
    if len(classes) > 1 and counts.max() >= MOSTLY * images:
        share, largest = counts.max() / images, classes[int(counts.argmax())]
        found.append(f"{share:.0%} of the images of {name} are of the class {largest}: always answering it is as good")
    found += _of_one_colour(dataset)
    return [f"warning: {text}" for text in found]


def untested(held_out: Dataset, use: str) -> list[str]:
    """A warning if a part that was held out to be "tested" or "validated" lacks classes."""
    counts = np.bincount(np.asarray(held_out.labels, np.int64), minlength=len(held_out.classes))
    if counts.all():
        return []
    which = _of_classes(counts == 0, held_out.classes)
    return [f"warning: {which} have no image among the {len(held_out):,} held out: they are never {use}"]


def doubtful_labels(dataset: Dataset, images: identity.Identity) -> list[str]:
    """Warnings about the same image in two classes, and about sets that are mostly copies of few images."""
    lines = []
    twice = images.in_two_classes()
    if twice.any():
        example = f" (such as {dataset.files[images.positions[twice][0]]})" if dataset.files else ""
        number = images.counted(int(twice.sum()))
        lines.append(f"warning: {number} images of {dataset.name} have a copy in another class{example}")
    if len(images) > 1 and images.copies() >= len(images) / 2:
        number = images.counted(images.copies())
        lines.append(f"warning: {number} of the {images.images:,} images of {dataset.name} are copies of others")
    return lines


def _doubtful_names(dataset: Dataset) -> list[str]:
    """Signs that the folder is one too high, or that a split has an unusual name."""
    name, classes = dataset.name, dataset.classes
    found = []
    splits = [label for label in classes if label.casefold().partition(".")[0] in _SPLIT_NAMES]
    if splits:
        found.append(
            f"classes of {name} are named like splits ({_few(splits)}): is the folder one too high, or a split not "
            "called train, val or test?"
        )
    sets = [label for label in classes if _plain(label).startswith(tuple(KNOWN))]
    if sets:
        found.append(f"classes of {name} are named like data sets ({_few(sets)}): is the folder one too high?")
    alike = Counter(label.casefold().strip() for label in classes)
    twins = [label for label in classes if alike[label.casefold().strip()] > 1]
    if twins:
        found.append(f"classes of {name} differ in case or blanks alone ({_few(twins)}): are they the same?")
    inner = _inner_folders(dataset)
    splits = sorted(folder for folders in inner.values() for folder in folders if folder.casefold() in _SPLIT_NAMES)
    several = [label for label, folders in inner.items() if len(folders) > 1]
    if splits:
        found.append(
            f"class folders of {name} hold {_few(sorted(set(splits)))}, whose images are not told apart: "
            "is the folder one too high?"
        )
    elif several:
        label = several[0]
        found.append(
            f"class folders of {name} hold folders ({label}: {_few(sorted(inner[label]))}), whose images count as "
            f"{label}: is the folder one too high?"
        )
    return found


def _plain(label: str) -> str:
    return "".join(letter for letter in label.casefold() if letter.isalnum())


def _inner_folders(dataset: Dataset) -> dict[str, set[str]]:
    """The folders in each class folder that some of the images are in."""
    found: dict[str, set[str]] = {}
    for i in _spread(len(dataset.files)):
        label, path = dataset.classes[dataset.labels[i]], printable(dataset.files[i]).split(os.sep)
        if label in path:
            # The last one of the name: a folder further up may be called so too.
            at = len(path) - 1 - path[::-1].index(label)
            if at + 2 < len(path):
                found.setdefault(label, set()).add(path[at + 1])
    return found


def _of_one_colour(dataset: Dataset) -> list[str]:
    """Images all of whose pixels are alike, among those that are opened."""
    chosen = _spread(len(dataset))
    if isinstance(dataset.pixels, PackedImages):
        plain = [i for i in chosen if (dataset.pixels[i] == dataset.pixels[i][:1, :1]).all()]
    elif dataset.pixels is not None:
        pixels = dataset.pixels[chosen]
        plain = [chosen[i] for i in np.flatnonzero((pixels == pixels[:, :1, :1]).all((1, 2, 3)))]
    else:
        paths = [dataset.files[i] for i in chosen] if dataset.files else []
        plain = [i for i, constant in zip(chosen, in_threads(_is_constant, paths), strict=False) if constant]
    if not plain:
        return []
    example = f" (such as {dataset.files[plain[0]]})" if dataset.files else ""
    number = f"{len(plain):,} of {len(chosen):,} images of {dataset.name}"
    return [f"{number}{' that were opened' * (len(chosen) < len(dataset))} are of one colour{example}"]


def _is_constant(path: str) -> bool:
    try:
        with opened(path) as image:
            # An eighth of the size takes a fraction of the time, and hardly any image is plain even so.
            image.draft("RGB", (1, 1))
            if not _plain_colour(image):
                return False
        with opened(path) as image:
            return _plain_colour(image)
    except Exception:
        return False  # whoever reads the images says that this one cannot be decoded


def _plain_colour(image: Image.Image) -> bool:
    extremes: Any = image.getextrema()
    return all(low == high for low, high in (extremes if isinstance(extremes[0], tuple) else (extremes,)))


def _spread(images: int) -> list[int]:
    """Up to OPENED places, evenly spread."""
    return list(map(int, np.unique(np.linspace(0, images - 1, min(OPENED, images)).round()))) if images else []


def _of_classes(which: NDArray[np.bool_], classes: Sequence[str]) -> str:
    return f"{int(which.sum()):,} of {len(classes):,} classes (such as {classes[int(which.argmax())]})"


def _folder_of(dataset: Dataset, label: str) -> str:
    """The folder of the one class of a set; "" for a set of arrays."""
    if not dataset.files:
        return ""
    path = os.path.abspath(dataset.files[0]).split(os.sep)
    names = list(map(printable, path))
    if label not in names[:-1]:
        return ""
    return os.sep.join(path[: len(path) - names[::-1].index(label)])


def _folders_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
