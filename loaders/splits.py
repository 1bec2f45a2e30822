"""Checks that the parts of a data set are separate, and that an evaluation can be repeated."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from loaders.datasets import Dataset, holdout, open_splits
from loaders.errors import DataError

COMPARED = 64  # images whose evaluation is made twice
UNDIVIDED_HOLDOUT = 0.2  # of the training images, where a folder has no others to validate on


@dataclass(frozen=True, slots=True)
class Check:
    """One property of the parts, which holds if nothing was found.

    Attributes:
        name: what was looked for.
        found: the number of violations.
        examples: a few of them.
    """

    name: str
    found: int
    examples: tuple[str, ...] = ()


def parts_of(path: str | os.PathLike[str], share: float | None = None, seed: int = 0) -> list[Dataset]:
    """Train, val and test of a folder; a part of the training images can be held out for val.

    Args:
        path: see loaders.datasets.open_dataset.
        share: to be held out, see loaders.datasets.holdout; None holds out what a training does: UNDIVIDED_HOLDOUT if
            the folder has no validation images, otherwise nothing.
        seed: of the choice.
    """
    train, *others = open_splits(os.fspath(path))
    if share is None:
        share = 0.0 if others else UNDIVIDED_HOLDOUT
    if share:
        return [*holdout(train, share, seed), *others]
    return [train, *others]


def check(parts: Sequence[Dataset]) -> list[Check]:
    """Look for images listed in two parts, for copies of images, and for an evaluation that changes when repeated."""
    if len(parts) < 2:
        raise DataError(f"{parts[0].name} has only one part; hold out images for another")
    return [_shared(parts), _copies(parts), _evaluation(parts[1])]


def _shared(parts: Sequence[Dataset]) -> Check:
    """Files that two parts list; arrays have no names and are compared by `_copies`."""
    seen: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for path in part.files:
            seen[os.path.realpath(path)].add(part.name)
    both = sorted(path for path, names in seen.items() if len(names) > 1)
    return Check("images listed in two parts", len(both), tuple(both[:3]))


def _copies(parts: Sequence[Dataset]) -> Check:
    """Images of one part whose bytes are also in another."""
    found = 0
    examples: list[str] = []
    for first, second in combinations(parts, 2):
        ours, theirs = _by_size(first), _by_size(second)
        # Only files of the same length can be equal: most of a large set is never read.
        for size in sorted(ours.keys() & theirs.keys()):
            known = {_content(second, index): index for index in theirs[size]}
            for index in ours[size]:
                other = known.get(_content(first, index))
                if other is not None:
                    found += 1
                    examples.append(f"{_called(first, index)} = {_called(second, other)}")
    return Check("copies of an image in another part", found, tuple(examples[:3]))


def _by_size(part: Dataset) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(part)):
        groups[os.stat(part.files[index]).st_size if part.files else 0].append(index)
    return groups


def _content(part: Dataset, index: int) -> bytes:
    if not part.files:
        assert part.pixels is not None
        return hashlib.sha256(np.ascontiguousarray(part.pixels[index]).tobytes()).digest()
    with open(part.files[index], "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _called(part: Dataset, index: int) -> str:
    return part.files[index] if part.files else f"{part.name}[{index}]"


def _evaluation(part: Dataset) -> Check:
    """Images whose evaluation differs when it is repeated."""
    from loaders import engines
    from loaders.options import LoaderOptions

    sample = part.select(np.unique(np.linspace(0, len(part) - 1, min(COMPARED, len(part))).astype(int)).tolist())
    size = (part.pixels.shape[1] if part.pixels is not None else 0) or 64
    options = LoaderOptions(batch=len(sample), size=size, threads=0, train=False)
    loader = engines.build("torchvision", sample, options)
    try:
        ((first, labels),), ((second, again),) = list(loader), list(loader)
    finally:
        loader.close()
    changed = (first != second).flatten(1).any(1) | (labels != again)
    return Check("images evaluated differently the second time", int(changed.sum()))
