"""Which images a data set consists of: known again by their bytes, whatever their folders and names.

An image's id is a hash of its size and its bytes: of all of them up to 64 KiB, of three blocks of a larger file, and of
the pixels where a set comes as arrays. The same picture stored in another format or size is another image.

Of more than MOST images a part is looked at. Which ones is decided by a file's size, so that the same images are chosen
in every folder that holds them. Ids of large sets are kept in the cache folder, and an image is read again when its
path, its size or the time of its last change is another one.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from loaders.cache import cache_folder
from loaders.datasets import Dataset
from loaders.errors import DataError
from loaders.packed_images import PackedImages
from loaders.threads import in_threads

MOST = 200_000  # images that are read
WHOLE = 1 << 16  # bytes: a file up to this size is read whole
BLOCK = 1 << 12  # bytes of each of the three blocks of a larger one
REMEMBERED = 5_000  # files from which on ids are kept: fewer are read as fast as remembered
_TOGETHER = 512  # files a thread is given at once
_SPREAD = 0x9E3779B97F4A7C15  # odd: products with it are spread over all numbers of 64 bits

Ids = NDArray[np.uint64]
Kind = Literal["files", "arrays"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """The images of a data set that were looked at: all that can be read, or one in `every`.

    Attributes:
        kind: of the set; a file and an array are never the same image.
        every: 1 where all were looked at.
        images: in the data set.
        ids: uint64 [n].
        labels: int32 [n], the class number of each.
        positions: int64 [n], the place of each in the data set.
    """

    kind: Kind
    every: int
    images: int
    ids: Ids
    labels: NDArray[np.int32]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def among(self, others: Ids) -> NDArray[np.bool_]:
        """Which of the images are among `others`, bool [n]."""
        return np.isin(self.ids, others)

    def counted(self, found: int) -> str:
        """How many images of the set `found` of those that were looked at stand for: "12", or "about 1,200"."""
        if self.every == 1:
            return f"{found:,}"
        return f"about {round(found * self.images / max(1, len(self))):,}"

    def in_two_classes(self) -> NDArray[np.bool_]:
        """Which of the images have a copy in another class, bool [n]."""
        order = np.lexsort((self.labels, self.ids))
        ids, labels = self.ids[order], self.labels[order]
        first = np.searchsorted(ids, ids, "left")
        last = np.searchsorted(ids, ids, "right") - 1
        found = np.zeros(len(ids), np.bool_)
        found[order] = labels[first] != labels[last]
        return found

    def copies(self) -> int:
        """Images that are copies of another one of the set."""
        return len(self.ids) - len(np.unique(self.ids))

    def labelled(self) -> Ids:
        """One number for each image and its class together, uint64 [n]."""
        labels = self.labels.astype(np.uint64) + np.uint64(1)
        numbers: Ids = self.ids ^ (labels * np.uint64(_SPREAD))
        return numbers

    def fingerprint(self, classes: Sequence[str]) -> str:
        """16 hexadecimal digits that are the same for the same images with the same labels, in any order."""
        digest = hashlib.sha256("\0".join(classes).encode())
        digest.update(f"{self.every} {self.images}".encode())
        digest.update(np.sort(self.labelled()).tobytes())
        return digest.hexdigest()[:16]


def identify(dataset: Dataset, every: int | None = None) -> Identity:
    """Look at the images of a data set; those that cannot be read are left out.

    Args:
        every: as in the identity that this one is to be compared with; by default so that about MOST are read.
    """
    labels = np.asarray(dataset.labels, np.int32)
    if isinstance(dataset.pixels, PackedImages):
        return _of_packed(dataset.pixels, labels, every)
    if not dataset.files:
        pixels = np.empty((0,)) if dataset.pixels is None else dataset.pixels
        ids = np.array([id_of(np.ascontiguousarray(image).tobytes(), "arrays") for image in pixels], np.uint64)
        return Identity("arrays", 1, len(labels), ids, labels[: len(ids)], np.arange(len(ids)))
    files = dataset.files
    states = np.array(list(chain.from_iterable(_in_blocks(_states, files))), np.int64).reshape(-1, 2)
    sizes = states[:, 0]
    there = sizes > 0
    every = every or _one_in(sizes)
    positions = np.flatnonzero(there & _chosen(sizes, every))
    read = _read_remembered(dataset, positions, states[positions])
    known = read != 0
    positions = positions[known]
    return Identity("files", every, len(files), read[known], labels[positions], positions)


def id_of(content: bytes | bytearray, kind: Kind) -> int:
    """The id of an image: of the bytes of its file, or of its pixels where it comes in an array."""
    if kind == "arrays":
        return _hash(content)
    size = len(content)
    parts = [content] if size <= WHOLE else [content[at : at + BLOCK] for at in (0, size // 2, size - BLOCK)]
    return _hash(size.to_bytes(8, "little") + b"".join(parts)) if size else 0


def _of_packed(images: PackedImages, labels: NDArray[np.int32], every: int | None) -> Identity:
    """The identity of the images that were packed: the same images in another place."""
    sizes, ids = images.sources()
    if images.description.kind == "arrays":
        return Identity("arrays", 1, len(labels), ids, labels, np.arange(len(ids)))
    every = every or _one_in(sizes)
    positions = np.flatnonzero(_chosen(sizes, every))
    return Identity("files", every, len(labels), ids[positions], labels[positions], positions)


def _one_in(sizes: NDArray[np.int64]) -> int:
    """Of how many images one is looked at, by the sizes of their files in bytes."""
    every = -(-len(sizes) // MOST)
    # Where sizes are alike, as those of uncompressed images are, they choose all images or none.
    if every > 1 and not 0.5 < every * np.count_nonzero((sizes > 0) & _chosen(sizes, every)) / len(sizes) < 2:
        return 1
    return every


def shared(of: Sequence[tuple[str, Dataset, Identity]]) -> list[str]:
    """A warning for every later part some of whose images are also in the first.

    Args:
        of: what each part is used for, such as "training" and "validation", the part, and its identity.
    """
    lines = []
    use, _, first = of[0]
    for other, dataset, identity in of[1:]:
        among = identity.among(first.ids)
        if identity.kind == first.kind and among.any():
            count = int(among.sum())
            number = "all" if count == len(identity) else f"{identity.counted(count)} of the"
            example = f" (such as {dataset.files[identity.positions[among][0]]})" if dataset.files else ""
            lines.append(
                f"warning: {number} {identity.images:,} {other} images are {use} images too{example}: accuracy on them "
                "says nothing about new images"
            )
    return lines


def to_bytes(parts: Mapping[str, Identity | Ids]) -> bytes:
    """Identities and bare ids by name, as one file."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, part in parts.items():
        if isinstance(part, Identity):
            arrays[f"{name}.set"] = np.array([part.kind == "arrays", part.every, part.images], np.int64)
            arrays |= {f"{name}.ids": part.ids, f"{name}.labels": part.labels, f"{name}.positions": part.positions}
        else:
            arrays[name] = part
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def from_bytes(data: bytes, where: str) -> dict[str, Identity | Ids]:
    """What `to_bytes` made. Raises DataError: damaged; `where` names the file."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        parts: dict[str, Identity | Ids] = {name: ids for name, ids in arrays.items() if "." not in name}
        for name in (name.removesuffix(".set") for name in arrays if name.endswith(".set")):
            of_arrays, every, images = map(int, arrays[f"{name}.set"])
            fields = (arrays[f"{name}.{field}"] for field in ("ids", "labels", "positions"))
            parts[name] = Identity("arrays" if of_arrays else "files", every, images, *fields)
        return parts
    except Exception as error:
        # A damaged archive fails in as many ways as it has parts.
        raise DataError(f"{where} is damaged: {error}") from None


def _hash(content: bytes | bytearray) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _chosen(sizes: NDArray[np.int64], every: int) -> NDArray[np.bool_]:
    """Which files are looked at, by their sizes in bytes: one in `every`, spread over all sizes."""
    mixed = sizes.astype(np.uint64) * np.uint64(_SPREAD)
    chosen: NDArray[np.bool_] = (mixed >> np.uint64(40)) % np.uint64(every) == 0
    return chosen


def _in_blocks(work: Callable[[Sequence[str]], Result], files: Sequence[str]) -> list[Result]:
    """`work` on many files at once: handing them over one by one would take longer than the work."""
    return in_threads(work, [files[start : start + _TOGETHER] for start in range(0, len(files), _TOGETHER)])


def _states(files: Sequence[str]) -> list[tuple[int, int]]:
    """Bytes and time of the last change of each file, in nanoseconds; 0 and 0 of one that is not there."""
    states = []
    for path in files:
        try:
            state = os.stat(path)
        except OSError:
            states.append((0, 0))
            continue
        states.append((state.st_size, state.st_mtime_ns))
    return states


def _contents(files: Sequence[str]) -> list[int]:
    """The id of each file; 0 of one that cannot be read."""
    ids = []
    for path in files:
        # A file object would take as long as reading a small file does.
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            ids.append(0)
            continue
        try:
            size = os.fstat(handle).st_size
            places = [(size, 0)] if size <= WHOLE else [(BLOCK, at) for at in (0, size // 2, size - BLOCK)]
            content = b"".join(os.pread(handle, length, at) for length, at in places)
            ids.append(_hash(size.to_bytes(8, "little") + content) if size else 0)
        except OSError:
            ids.append(0)
        finally:
            os.close(handle)
    return ids


def _read_remembered(dataset: Dataset, positions: NDArray[np.int64], states: NDArray[np.int64]) -> Ids:
    """Ids of the files at `positions`, those of a large set from the cache where they have not changed."""
    files = [dataset.files[i] for i in positions]
    if len(files) < REMEMBERED:
        return np.array(list(chain.from_iterable(_in_blocks(_contents, files))), np.uint64)
    names = (f"{os.path.abspath(path)}\0{size}\0{time}" for path, (size, time) in zip(files, states, strict=True))
    keys = np.array([_hash(os.fsencode(name)) for name in names], np.uint64)
    place = cache_folder() / "identity" / f"{_hash(os.fsencode(os.path.abspath(files[0]))):016x}.npy"
    known = _remembered(place)
    at = np.minimum(np.searchsorted(known[0], keys), max(0, known.shape[1] - 1))
    found = known[0][at] == keys if known.size else np.zeros(len(keys), np.bool_)
    ids = np.where(found, known[1][at], np.uint64(0)) if known.size else np.zeros(len(keys), np.uint64)
    # One that could not be read may be readable now.
    found &= ids != 0
    new = np.flatnonzero(~found)
    if len(new):
        ids[new] = list(chain.from_iterable(_in_blocks(_contents, [files[i] for i in new])))
        order = np.argsort(keys)
        _remember(place, np.stack([keys[order], ids[order]]))
    return ids


def _remembered(place: Path) -> Ids:
    """Keys, sorted, and ids, uint64 [2, n]; nothing where there is no such file or a damaged one."""
    with suppress(OSError, ValueError, EOFError):
        known: Ids = np.load(place, allow_pickle=False)
        if known.dtype == np.uint64 and known.ndim == 2 and len(known) == 2:
            return known
    return np.empty((2, 0), np.uint64)


def _remember(place: Path, known: Ids) -> None:
    """Keep ids for the next command; where they cannot be kept they are read again."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, suffix=".npy")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, known, allow_pickle=False)
            os.replace(name, place)
        except OSError:
            os.unlink(name)
            raise
