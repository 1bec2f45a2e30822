"""Whether the parts of a data set are kept apart: no image twice, no copy of an image, one evaluation like another."""

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


@dataclass(frozen=True, slots=True)
class Check:
    """One property of the parts; it holds when nothing was found.

    Attributes:
        name: what was looked for.
        found: how many.
        examples: a few of them.
    """

    name: str
    found: int
    examples: tuple[str, ...] = ()


def parts_of(path: str | os.PathLike[str], share: float | None = None, seed: int = 0) -> list[Dataset]:
    """Train, val and test of a folder, a part of the training images being held out for val where that is asked for.

    Args:
        path: see loaders.datasets.open_dataset.
        share: what to hold out, see loaders.datasets.holdout; None holds out a tenth where the folder has no
            validation images, and nothing where it has.
        seed: which images.
    """
    train, *others = open_splits(os.fspath(path))
    if share is None:
        share = 0.0 if others else 0.1
    if share:
        return [*holdout(train, share, seed), *others]
    return [train, *others]


def check(parts: Sequence[Dataset]) -> list[Check]:
    """Look for images that are in two parts, for copies of images, and for an evaluation that is not repeated."""
    if len(parts) < 2:
        raise DataError(f"{parts[0].name} has one part only; hold out images for another")
    return [_shared(parts), _copies(parts), _evaluation(parts[1])]


def _shared(parts: Sequence[Dataset]) -> Check:
    """Files that two parts list; for arrays, which have no names, the content says it."""
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
        # Only files of one length can be equal: most of a large set is never read.
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
    """Images that come out differently when the evaluation is made again."""
    from loaders import engines
    from loaders.options import LoaderOptions

    some = part.select(np.unique(np.linspace(0, len(part) - 1, min(COMPARED, len(part))).astype(int)).tolist())
    size = part.pixels.shape[1] if part.pixels is not None else 64
    options = LoaderOptions(batch=len(some), size=size, threads=0, train=False)
    loader = engines.build("torchvision", some, options)
    try:
        ((first, labels),), ((second, again),) = list(loader), list(loader)
    finally:
        loader.close()
    changed = (first != second).flatten(1).any(1) | (labels != again)
    return Check("images evaluated differently the second time", int(changed.sum()))
