"""Decodes a data set once: writes what loaders.packed_images reads.

Where each image goes is known before the first is decoded, since headers tell sizes. So the room is known too, threads
write in any order, and the files are the same bytes every time. A journal of what is done lies beside them until the
end, and becomes the index; pixels reach the disk before the journal says so.
"""

import errno
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as transform

from loaders.datasets import GENERATED, SPLITS, Dataset, open_dataset, open_splits
from loaders.errors import DataError, NoSplitError, check_of, reason
from loaders.identity import id_of
from loaders.images import decoded, opened, orientation, read
from loaders.packed_images import DESCRIPTION, INDEX, PIXELS, ROW, VERSION, Description, is_packed, pixels_header
from loaders.threads import in_threads, lone_threads

SHORT = 256  # pixels of the shorter side, unless another number is given: what evaluations at 224 pixels cut from
UNFINISHED = ".unfinished"  # ending of the folder while it is written
_JOURNAL, _SOURCE = "journal.npy", "journal.txt"
_ENTRY = np.dtype([*[(name, ROW[name].str) for name in ROW.names or ()], ("turned", "u1"), ("done", "u1")])
_TOGETHER = 256  # images between two looks at the clock
_MANY = 20_000  # images whose headers take a while to read
_EVERY = 5.0  # seconds between two entries in the journal

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of a part of a data set.

    Attributes:
        images: that were packed.
        undecodable: paths of those that could not be decoded, and why.
    """

    name: str
    images: int
    undecodable: tuple[tuple[str, str], ...]


def _nothing(*what: object) -> None:
    """The default for progress and sentences."""


def parts_of(folder: str | Path) -> list[tuple[Dataset, tuple[str, ...]]]:
    """The parts of a data set, and which splits each serves as, its own first.

    Raises:
        DataError: as loaders.datasets.open_splits, or the folder is packed already.
    """
    parts = open_splits(folder)
    if not parts[0].files and not isinstance(parts[0].pixels, np.ndarray):
        raise DataError(f"{folder} is packed already")
    found = [(part, [part.split]) for part in parts]
    for split in SPLITS if parts[0].split != "all" else ():
        if split in [part.split for part in parts]:
            continue
        try:
            other = open_dataset(folder, split)
        except NoSplitError:
            continue
        for part, splits in found:
            if (part.files, part.labels) == (other.files, other.labels):
                splits.append(split)
    return [(part, tuple(splits)) for part, splits in found]


def pack(
    parts: Sequence[tuple[Dataset, tuple[str, ...]]],
    out: Path,
    short: int = SHORT,
    exif: str = "ignore",
    threads: int | None = None,
    resume: bool = False,
    strict: bool = False,
    say: Say = _nothing,
    progress: Progress = _nothing,
) -> list[Packed]:
    """Decode every image, make those smaller whose shorter side is longer than `short`, and write them all.

    Args:
        parts: of the data set, and the splits each serves as: see `parts_of`.
        out: folder to make; each part gets one in it, or all of it where there are no splits.
        short: pixels; 0 keeps every size. No image is made larger.
        exif: "ignore" or "apply" the orientation that files store.
        threads: that decode; by default one for each core this process may use.
        resume: go on with what an earlier call left.
        strict: an image that cannot be decoded ends it; otherwise it is left out and listed.
        say: gets one line about the size before anything is written.
        progress: called with the images that are done and all.

    Raises:
        DataError: `out` holds something, an earlier call did not finish it (and `resume` is not given) or began it with
            other images, there is no room, or the folder cannot be written. What is done is kept for `resume`.
    """
    draft = out.with_name(f"{out.name}{UNFINISHED}")
    _check_free(out, draft, resume)
    for part, _ in parts:
        if not strict and part.root and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(part.root)):
            raise DataError(f"{out} is in {part.root}, where it would look like a class: name a folder beside it")
    works = [
        _Work(part, splits, draft if splits[0] == "all" else draft / splits[0], short, exif) for part, splits in parts
    ]
    everything = sum(len(work.entries) for work in works)
    if everything >= _MANY:
        say(f"reading the sizes of {everything:,} images")
    for work in works:
        work.plan(threads, resume)
    needed = sum(work.bytes for work in works)
    free = _free(out)
    smaller = f"shorter sides of at most {short} pixels" if short else "in their own sizes"
    say(
        f"packing {everything:,} images of {' and '.join(work.dataset.title for work in works)}, {smaller}: "
        f"{size_text(needed)} into {out}, where {size_text(free)} are free"
    )
    left = sum(work.bytes_left() for work in works)
    if left > free:
        more = " more" if any(work.entries["done"].any() for work in works) else ""
        raise DataError(
            f"packing {parts[0][0].title} takes {size_text(left)}{more} in {out}, where {size_text(free)} are free; "
            "free some space, name a folder on another disk, or take a smaller --short"
        )
    try:
        before = 0
        for work in works:
            work.begin()
            work.run(threads, strict, lambda done, before=before: progress(before + done, everything))  # type: ignore[misc]
            before += len(work.entries)
        results = [work.finish() for work in works]
        os.rename(draft, out)
        for work in works:
            work.clear(out)
        _sync_folder(out.parent)
    except DataError:
        # An image that cannot be decoded: whoever repairs or removes it asks for other images than these.
        shutil.rmtree(draft, ignore_errors=True)
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "free some space and go on with --resume" if full else "what is done is kept for --resume"
        raise DataError(f"cannot write {error.filename or draft}: {error.strerror or error}; {what}") from None
    return results


def size_text(count: int) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 2**10:.1f} KiB"


def _check_free(out: Path, draft: Path, resume: bool) -> None:
    """Raise DataError unless the folder can be made."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        kept = any(map(is_packed, (out, *(out / name for name in SPLITS))))
        what = "is a packed data set already" if kept else "is there already and is no packed data set"
        raise DataError(f"{out} {what}: name another folder, or remove it")
    if draft.exists() and not resume:
        raise DataError(f"{draft} was left by a packing that did not finish: go on with --resume, or remove it")


def _free(out: Path) -> int:
    """Bytes that can be written where `out` will be."""
    there = out.absolute()
    while not there.is_dir():
        there = there.parent
    try:
        return shutil.disk_usage(there).free
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from None


def source_of(dataset: Dataset, short: int, exif: str) -> str:
    """16 hexadecimal digits that change with the files (names, sizes, times), their labels and how they are packed."""
    digest = hashlib.sha256(f"{VERSION} {short} {exif}\0".encode())
    digest.update("\0".join(dataset.classes).encode())
    digest.update(np.asarray(dataset.labels, "<i8").tobytes())
    if dataset.files:
        for path in dataset.files:
            try:
                state = os.stat(path)
            except OSError:
                digest.update(os.fsencode(os.path.abspath(path)))
                continue
            digest.update(os.fsencode(f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}\0"))
    else:
        digest.update(np.ascontiguousarray(dataset.pixels).data)
    return digest.hexdigest()[:16]


def small_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width after the shorter side was made `short`, as torchvision's Resize computes them."""
    if not short or min(height, width) <= short:
        return height, width
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


class _Work:
    """The packing of one part into its folder.

    Attributes:
        entries: the journal, a row for each image of the data set.
        bytes: of all pixels.
    """

    def __init__(self, dataset: Dataset, splits: tuple[str, ...], folder: Path, short: int, exif: str) -> None:
        self.dataset, self._splits, self._folder = dataset, splits, folder
        self._short, self._exif = short, exif
        self._kind: Any = "files" if dataset.files else "arrays"
        self._source = source_of(dataset, short, exif)
        self._wrong: dict[int, str] = {}
        self._pixels = self._journal = -1
        self.entries = np.zeros(len(dataset), _ENTRY)
        self.bytes = 0

    def plan(self, threads: int | None, resume: bool) -> None:
        """Read every header, or the journal of an earlier call."""
        if not (resume and self._restore()):
            # A thread is given many at once: a million of single ones would take gigabytes to hand over.
            starts = range(0, len(self.dataset), _TOGETHER)
            blocks = [range(start, min(start + _TOGETHER, len(self.dataset))) for start in starts]
            headers = in_threads(lambda block: list(map(self._header, block)), blocks, threads)
            shapes = list(chain.from_iterable(headers))
            sides = np.array([small_shape(tall, wide, self._short) for tall, wide, _ in shapes], np.int64)
            lengths = sides.prod(1) * 3
            self.entries["offset"] = np.cumsum(lengths) - lengths
            self.entries["height"], self.entries["width"] = sides.T
            self.entries["label"] = self.dataset.labels
            self.entries["turned"] = [turned for _, _, turned in shapes]
        self.bytes = int(self._lengths().sum())
        if self.bytes == 0:
            wrong = self._one(0)
            raise self._none_decoded(0, wrong or "it has no pixels")

    def _lengths(self) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = self.entries["height"].astype(np.int64) * self.entries["width"] * 3
        return lengths

    def bytes_left(self) -> int:
        """What this part will still take on the disk, its index included."""
        missing = int(self._lengths()[self.entries["done"] == 0].sum())
        return missing + self.entries.nbytes if self.entries["done"].any() else missing + 2 * self.entries.nbytes

    def _header(self, index: int) -> tuple[int, int, bool]:
        """Height, width and whether it is turned, of the image as it is stored; no pixels if that cannot be told."""
        if self._kind == "arrays":
            assert self.dataset.pixels is not None
            tall, wide = self.dataset.pixels.shape[1:3]
            return tall, wide, False
        try:
            with opened(self.dataset.files[index]) as image:
                return image.height, image.width, orientation(image) != 1
        except Exception:
            return 0, 0, False  # `run` decodes it and says why it cannot

    def _restore(self) -> bool:
        """Read the journal; False if there is none yet."""
        try:
            source = (self._folder / _SOURCE).read_text()
            entries = np.load(self._folder / _JOURNAL, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        if source != self._source or entries.dtype != _ENTRY or len(entries) != len(self.dataset):
            raise DataError(
                f"{self._folder} was begun with other images of {self.dataset.name}, or with other options: remove it, "
                "or take the same ones"
            )
        self.entries = entries
        return True

    def begin(self) -> None:
        """Open the files. The journal takes its room on the disk now, so that it can always be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / _JOURNAL
        if not self.entries["done"].any():
            np.save(path, self.entries, allow_pickle=False)
            (self._folder / _SOURCE).write_text(self._source)
        self._journal = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._rows = path.stat().st_size - self.entries.nbytes
        self._pixels = os.open(self._folder / PIXELS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        header = pixels_header(self.bytes)
        self._start = len(header)
        os.pwrite(self._pixels, header, 0)
        os.ftruncate(self._pixels, self._start + self.bytes)

    def run(self, threads: int | None, strict: bool, progress: Callable[[int], None]) -> None:
        """Decode and write what is not done.

        Raises:
            DataError: a file cannot be decoded, and `strict`.
            OSError: the disk is full, for example.
        """
        waiting = np.flatnonzero(self.entries["done"] == 0)
        before = len(self.entries) - len(waiting)
        written: list[int] = []
        noted = time.monotonic()
        pool = lone_threads(threads or len(os.sched_getaffinity(0)), "packing")
        try:
            for start in range(0, len(waiting), _TOGETHER):
                block = waiting[start : start + _TOGETHER].tolist()
                for index, wrong in zip(block, pool.map(self._one, block), strict=True):
                    if wrong is None:
                        written.append(index)
                        continue
                    if strict:
                        path = self.dataset.files[index]
                        raise DataError(f"cannot decode {path}: {wrong}; find all with: {check_of(path)}")
                    self._wrong[index] = wrong
                progress(before + start + len(block))
                if time.monotonic() - noted > _EVERY:
                    self._note(written)
                    noted = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            self._note(written)

    def _note(self, written: list[int]) -> None:
        """Enter images in the journal; their pixels are on the disk before."""
        if not written:
            return
        os.fdatasync(self._pixels)
        self.entries["done"][written] = 1
        first, last = min(written), max(written) + 1
        _write(self._journal, self.entries[first:last].tobytes(), self._rows + first * _ENTRY.itemsize)
        written.clear()

    def _one(self, index: int) -> str | None:
        """Decode and write one image; why it cannot be decoded, or None."""
        entry = self.entries[index]
        if self._kind == "arrays":
            assert self.dataset.pixels is not None
            array = self.dataset.pixels[index]
            image = torch.from_numpy(array).permute(2, 0, 1)
            entry["source_id"], entry["source_bytes"] = id_of(array.tobytes(), "arrays"), array.nbytes
        else:
            try:
                content = read(self.dataset.files[index])
                image = decoded(content, self._exif)
            except OSError as error:
                return error.strerror or str(error)
            except Exception as error:
                return reason(error)
            entry["source_id"], entry["source_bytes"] = id_of(content, "files"), len(content)
        tall, wide = small_shape(image.shape[1], image.shape[2], self._short)
        if tall * wide != int(entry["height"]) * int(entry["width"]):
            return f"its header says another size than it decodes to, {image.shape[2]} x {image.shape[1]} pixels"
        if (tall, wide) != tuple(image.shape[1:]):
            image = transform.resize(image, [tall, wide], antialias=True)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        # An orientation that was applied exchanges the two, which takes no other room.
        entry["height"], entry["width"] = tall, wide
        entry["crc32"] = zlib.crc32(pixels.data)
        _write(self._pixels, pixels.data.cast("B"), self._start + int(entry["offset"]))
        return None

    def finish(self) -> Packed:
        """Write the index of what was decoded, and what else belongs to it."""
        done = self.entries[self.entries["done"] == 1]
        if not len(done):
            raise self._none_decoded(*next(iter(self._wrong.items())))
        index = np.zeros(len(done), ROW)
        for name in ROW.names or ():
            index[name] = done[name]
        dataset = self.dataset
        undecodable = tuple((dataset.files[i], why) for i, why in sorted(self._wrong.items()))
        description = Description(
            dataset.name,
            self._splits,
            dataset.classes,
            len(done),
            self.bytes,
            self._short,
            self._exif,
            int(done["turned"].sum()),
            self._kind,
            tuple((os.path.relpath(path, dataset.root or "."), why) for path, why in undecodable),
        )
        np.save(self._folder / INDEX, index, allow_pickle=False)
        (self._folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")
        if dataset.generated:
            (self._folder / GENERATED).write_text("")
        os.fsync(self._pixels)
        self._close()
        for name in (INDEX, DESCRIPTION):
            _sync_folder(self._folder / name)
        _sync_folder(self._folder)
        return Packed(dataset.name, len(done), undecodable)

    def _none_decoded(self, index: int, wrong: str) -> DataError:
        """What is raised where not one image can be packed, one of them named."""
        dataset = self.dataset
        return DataError(
            f"not one image of {dataset.name} can be decoded ({dataset.files[index]}: {wrong}, for example); "
            f"find all with: {check_of(str(dataset.files[index]))}"
        )

    def clear(self, out: Path) -> None:
        """Remove the journal: the folder, now `out`, is whole."""
        folder = out if self._splits[0] == "all" else out / self._splits[0]
        for name in (_JOURNAL, _SOURCE):
            (folder / name).unlink(missing_ok=True)

    def _close(self) -> None:
        for handle in (self._pixels, self._journal):
            if handle >= 0:
                os.close(handle)
        self._pixels = self._journal = -1

    def __del__(self) -> None:
        self._close()


def _write(handle: int, data: bytes | memoryview, place: int) -> None:
    """Write all of `data`. Raises OSError."""
    view = memoryview(data)
    while len(view):
        count = os.pwrite(handle, view, place)
        view, place = view[count:], place + count


def _sync_folder(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
