"""Images that were decoded once, each in its own size, in a file that numpy reads too.

A folder holds three files (loaders.packing writes them; in the first, one image follows the other):

- `pixels.npy`: uint8 [bytes], the images' rows of red, green and blue;
- `index.npy`: a row of `ROW` for each image: where it begins in `pixels.npy`, its height, width, class number and
  CRC-32, and the size and id of the file that it was decoded from, as loaders.identity knows it;
- `packed.json`: a `Description`.

The pixels are read, not mapped: whoever cuts a mapped file short ends the processes that use it, without a message.
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from loaders.errors import DataError
from loaders.errors import reason as first_line
from loaders.threads import in_threads

VERSION = 1
DESCRIPTION, PIXELS, INDEX = "packed.json", "pixels.npy", "index.npy"
ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("source_id", "<u8"),
        ("source_bytes", "<i8"),
        ("label", "<i8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("crc32", "<u4"),
    ]
)
_AGAIN = "pack the data set again"


@dataclass(frozen=True, slots=True)
class Description:
    """What `packed.json` says of a part of a data set.

    Attributes:
        name: of the part, as of the data set that it was made from.
        splits: which splits it serves as, its own first; "all" where there are none.
        classes: names, in the order of the class numbers.
        images, bytes: how many images, and bytes of `pixels.npy` without its header.
        short: pixels of a shorter side at most; 0 where no image was made smaller.
        exif: whether orientations were applied or ignored.
        turned: images whose orientation is not that of their pixels: where there are none, `exif` makes no difference.
        kind: what the images were before: "files" or "arrays".
        undecodable: files that are missing because they could not be decoded, and why; paths below the folder.
        version: of this format.
    """

    name: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    images: int
    bytes: int
    short: int
    exif: str
    turned: int
    kind: str
    undecodable: tuple[tuple[str, str], ...] = ()
    version: int = VERSION

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def is_packed(folder: Path) -> bool:
    """Whether a folder is a part of a packed data set, by the names of its files."""
    return (folder / DESCRIPTION).is_file()


def describe(folder: Path) -> Description:
    """Read `packed.json`. Raises DataError: it is damaged, or of another version."""
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
        if version != VERSION:
            raise DataError(f"{path} is of version {version}, and this pixbench reads version {VERSION}: {_AGAIN}")
        description = Description(**{field.name: found[field.name] for field in fields(Description)})
        texts = [description.name, description.exif, description.kind, *description.splits, *description.classes]
        missing = tuple((str(file), str(reason)) for file, reason in description.undecodable)
        numbers = [description.images, description.bytes, description.short, description.turned]
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            raise ValueError("a value of another kind")
        if not 0 < 3 * description.images <= description.bytes < 2**62 or not description.splits or min(numbers) < 0:
            raise ValueError("a value out of range")
        splits, classes = tuple(description.splits), tuple(description.classes)
        return replace(description, splits=splits, classes=classes, undecodable=missing)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({type(error).__name__}: {first_line(error)}): {_AGAIN}") from None


def pixels_header(count: int) -> bytes:
    """What comes before the pixels in `pixels.npy`, for so many bytes of them."""
    import io

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
    return file.getvalue()


def side_of_all(sides: NDArray[np.int64]) -> int:
    """The height or width that all images have; 0 where they differ, or without any."""
    return int(sides[0]) if len(sides) and (sides == sides[0]).all() else 0


class _File:
    """`pixels.npy`, open for reading, which is to stay as it was when it was opened."""

    def __init__(self, path: str, count: int) -> None:
        self.path = path
        self.start = len(pixels_header(count))
        self.handle = -1
        try:
            # Without waiting: a pipe of that name would never answer.
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DataError(f"cannot open {path}: {error.strerror or error}") from None
        self._state = self._now()
        size, expected = self._state[0], self.start + count
        if size < expected:
            raise DataError(f"{path} is cut short: it has {size:,} of {expected:,} bytes; {_AGAIN}")
        if size > expected or os.pread(self.handle, self.start, 0) != pixels_header(count):
            raise DataError(f"{path} does not belong to the {DESCRIPTION} beside it: {_AGAIN}")
        # Places are drawn at random: what lies behind a window would be read for nothing.
        os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self.handle)
        return state.st_size, state.st_mtime_ns

    def check(self) -> None:
        """Raise DataError if the file is not as it was when it was opened."""
        if self._now() != self._state:
            raise DataError(
                f"{self.path} was changed while it was in use, by whoever wrote to it: {_AGAIN}, and start again"
            )

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`. Raises DataError: the file ends before."""
        done, place = 0, self.start + offset
        try:
            while done < len(into):
                count = os.preadv(self.handle, [into[done:] if done else into], place + done)
                if count == 0:
                    raise DataError(f"{self.path} was cut short while it was in use: {_AGAIN}, and start again")
                done += count
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from None


class PackedImages:
    """The images of a packed folder, or some of them: what an array of images would be if they were of one size.

    `images[3]` is uint8 [height, width, 3], `images[indices]` another PackedImages. Threads and forked processes may
    share one; pickled, it is the folder's name and the indices.

    Attributes:
        folder: where the files are.
        description: of the folder.
        heights, widths: pixels, int64 [n].
    """

    def __init__(self, folder: str, positions: NDArray[np.int64] | None = None) -> None:
        """Open a folder.

        Args:
            folder: a part of a packed data set.
            positions: of the images wanted, in the order wanted; None for all.

        Raises:
            DataError: a file is missing, damaged, cut short or of another version.
        """
        self.folder = folder
        self.description = describe(Path(folder))
        self._file = _File(os.path.join(folder, PIXELS), self.description.bytes)
        index = self._index()
        # In floats, where what is damaged does not come round to a small number again.
        lengths = index["height"].astype(np.float64) * index["width"] * 3
        inside = (lengths > 0) & (index["offset"] + lengths <= self.description.bytes)
        labelled = (index["label"] >= 0) & (index["label"] < len(self.description.classes))
        if not (inside & labelled).all():
            raise DataError(f"{os.path.join(folder, INDEX)} is damaged: {_AGAIN}")
        chosen: Any = slice(None) if positions is None else positions
        self._positions = np.arange(len(index)) if positions is None else positions
        self._offsets, self.heights, self.widths = (
            index[name][chosen].astype(np.int64) for name in ("offset", "height", "width")
        )

    def _index(self) -> NDArray[Any]:
        """The rows of all images. They are mapped: of a large index only what is asked for is read."""
        path = os.path.join(self.folder, INDEX)
        if not os.path.isfile(path):
            raise DataError(f"cannot read {path}: there is no such file")
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:
            # A damaged header fails in as many ways as it has parts.
            raise DataError(f"{path} is damaged ({first_line(error)}): {_AGAIN}") from None
        if index.dtype != ROW or index.shape != (self.description.images,):
            raise DataError(f"{path} does not belong to the {DESCRIPTION} beside it: {_AGAIN}")
        return np.asarray(index)

    def __reduce__(self) -> tuple[type["PackedImages"], tuple[str, NDArray[np.int64]]]:
        return PackedImages, (self.folder, self._positions)

    def __len__(self) -> int:
        return len(self._offsets)

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """[n, height, width, 3], 0 in place of a height or width that differs from image to image."""
        return len(self), side_of_all(self.heights), side_of_all(self.widths), 3

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: NDArray[np.int64]) -> "PackedImages": ...
    def __getitem__(self, index: int | NDArray[np.int64]) -> "NDArray[np.uint8] | PackedImages":
        if isinstance(index, np.ndarray):
            chosen = object.__new__(PackedImages)
            chosen.folder, chosen.description, chosen._file = self.folder, self.description, self._file
            chosen._positions, chosen._offsets = self._positions[index], self._offsets[index]
            chosen.heights, chosen.widths = self.heights[index], self.widths[index]
            return chosen
        tall, wide = int(self.heights[index]), int(self.widths[index])
        image = np.empty((tall, wide, 3), np.uint8)
        self.read_rows(index, 0, image)
        return image

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All images as uint8 [n, height, width, 3]. Raises DataError: their sizes differ."""
        if 0 in self.shape[1:]:
            raise DataError(f"the images in {self.folder} are of different sizes")
        images = np.empty(self.shape, np.uint8)
        for number in range(len(self)):
            self.read_rows(number, 0, images[number])
        return images if dtype is None else images.astype(dtype)

    def read_rows(self, index: int, top: int, rows: NDArray[np.uint8]) -> None:
        """Read the rows of an image from `top` on into `rows`, uint8 [height, width, 3] without gaps."""
        self._file.read(int(self._offsets[index]) + top * int(self.widths[index]) * 3, rows.data.cast("B"))

    def expect(self, index: int, top: int, height: int) -> None:
        """Tell the system which rows will be read soon: it fetches them from the disk meanwhile."""
        width = int(self.widths[index]) * 3
        start = self._file.start + int(self._offsets[index]) + top * width
        os.posix_fadvise(self._file.handle, start, height * width, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Raise DataError if the file of pixels was written to since it was opened."""
        self._file.check()

    def need_exif(self, name: str, exif: str) -> None:
        """Raise DataError if images of the data set `name` would be another way up with this `exif`."""
        packed = self.description
        if packed.turned and packed.exif != exif:
            raise DataError(
                f"{name} was packed with --exif {packed.exif}, and {packed.turned:,} of its images are stored "
                f"in another orientation; pack it again with --exif {exif}"
            )

    @property
    def positions(self) -> NDArray[np.int64]:
        """Which images of the folder these are, [n]."""
        return self._positions

    def labels(self) -> NDArray[np.int64]:
        """The class number of each image, int64 [n]."""
        return self._column("label").astype(np.int64)

    def sources(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Bytes and id of the file, or id of the array, that each image was decoded from, [n] each."""
        return self._column("source_bytes").astype(np.int64), self._column("source_id").astype(np.uint64)

    def _column(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self._index()[name][self._positions]
        return column

    def damaged(
        self, threads: int | None = None, progress: Callable[[int, int], None] = lambda done, all: None
    ) -> list[int]:
        """Numbers of the images whose checksum is not that of the index; reads everything."""
        sums = self._column("crc32")

        def differs(index: int) -> bool:
            return zlib.crc32(self[index].data) != int(sums[index])

        found: list[int] = []
        for start in range(0, len(self), 1024):
            block = range(start, min(start + 1024, len(self)))
            found += [index for index, wrong in zip(block, in_threads(differs, block, threads), strict=True) if wrong]
            progress(block.stop, len(self))
        return found
