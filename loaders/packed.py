"""The engine packed: images that were decoded once are read from a file, cut and resized in threads.

What is left of an image's cost when nothing is decoded (`bench data pack` writes the file, loaders.packed_images reads
it): the rows of its window are read, and torch's vectorised resize of bytes, the mirror and the normalisation run
while the image is in the cache, straight into the finished batch. Windows, flips and order are those of `Epochs`, and
the resize is the one that torchvision calls, so the images equal those of the engine torchvision on the same pixels.

- Rows of the next batches are announced to the system, which fetches them from the disk in the meantime: a set larger
  than memory comes at the disk's own speed.
- Other operations with random numbers of `Epochs` (borders, rotations, cutout) are those of the engine torchvision, in
  the same threads. Those that draw from torch's generator, which threads share, go through its worker processes.
- A set of files is packed into the cache folder first, once for all trainings with the same files.
"""

import collections
import functools
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from kernels.formats import dtype_of
from loaders.buffers import Buffers
from loaders.cache import cache_folder, updating
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, evaluation_shape, flips, windows
from loaders.errors import DataError
from loaders.normalization import OneImage, Scratch, normalized
from loaders.options import LoaderOptions
from loaders.packed_images import PackedImages, is_packed
from loaders.packing import SHORT, UNFINISHED, pack, source_of
from loaders.policies import FLIPS
from loaders.threads import lone_threads
from loaders.torchvision import Images, Key, Keys, Torchvision

# Images that a thread resizes before it writes the first: a finished one is larger than all memory that resizing
# takes, and drives that out of the cache.
_BLOCK = 8
_SAID = 20.0  # seconds between two lines about a packing that takes long

Pixels = NDArray[np.uint8] | PackedImages


def shorter_side(options: LoaderOptions) -> int:
    """Pixels that images keep: the same for every size up to 224, also for a training whose sizes grow."""
    return max(SHORT, round(options.size * options.eval_margin))


def cached_at(dataset: Dataset, options: LoaderOptions) -> Path:
    """The folder that holds the data set's images packed, if they have been."""
    return cache_folder() / "packed" / source_of(_each_once(dataset), shorter_side(options), options.exif)


def _each_once(dataset: Dataset) -> Dataset:
    """Its files, without those that a measurement repeats to fill its epochs."""
    files = tuple(dict.fromkeys(dataset.need_files("packed")))
    return Dataset(dataset.name, dataset.root, "all", files, (0,) * len(files), ("",))


def _cached(dataset: Dataset, options: LoaderOptions) -> Dataset:
    """The files as packed images from the cache folder, where they are put if they are not there yet."""
    plain, short, folder = _each_once(dataset), shorter_side(options), cached_at(dataset, options)
    if not is_packed(folder):
        with updating(folder):
            if not is_packed(folder):
                resume = folder.with_name(folder.name + UNFINISHED).exists()
                threads = max(1, options.threads)
                said = _Said()
                parts = [(plain, ("all",))]
                pack(parts, folder, short, options.exif, threads, resume, True, said.line, said.progress)
    images = PackedImages(str(folder))
    if plain.files != dataset.files:
        places = {path: place for place, path in enumerate(plain.files)}
        images = images[np.array([places[path] for path in dataset.files], np.int64)]
    return replace(dataset, files=(), pixels=images)


class _Said:
    """Says on stderr what is packed, and how far it is where that takes long."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        print(f"note: loader packed decodes each image once: {text}", file=sys.stderr)

    def progress(self, done: int, everything: int) -> None:
        now = time.monotonic()
        if now - self._last > _SAID:
            self._last = now
            print(f"note: {done:,} of {everything:,} images are packed", file=sys.stderr)


@dataclass(slots=True)
class _Pending:
    """A batch on its way: where its images go, its class numbers, and the threads' work on it."""

    rows: torch.Tensor
    labels: torch.Tensor
    work: list[Future[None]]


class _Memory(threading.local):
    """What a thread needs for one image; memory of this size would be asked from the system every time."""

    def __init__(self, size: int) -> None:
        self.scratch = Scratch(size)
        self._bytes: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, height: int, width: int) -> NDArray[np.uint8]:
        """Uninitialised uint8 [height, 3 * width], in the same memory for the same name."""
        count = height * width * 3
        memory = self._bytes.get(name)
        if memory is None or len(memory) < count:
            memory = self._bytes[name] = np.empty(count, np.uint8)
        return memory[:count].reshape(height, 3 * width)


class _Cutter:
    """Makes images of the final size, in several threads at once.

    Args:
        pixels: of the data set.
        images: what makes an image where the policy has more than a window and mirrors, otherwise None.
    """

    def __init__(self, pixels: Pixels, images: Images | None, options: LoaderOptions) -> None:
        self._pixels, self._images = pixels, images
        self._size, self._nchw = options.size, options.layout == "nchw"
        self._memory = _Memory(options.size)
        # The device normalises what is sent to it: bytes are a quarter of the traffic of floats.
        self._normalize = OneImage(options) if options.device == "cpu" else None

    def cut(
        self,
        rows: Sequence[torch.Tensor],
        indices: list[int],
        places: list[list[int]],
        mirrored: list[bool],
        part: range,
    ) -> None:
        """The images of `part` by their windows (see `_Stream._places`)."""
        for start in range(0, len(part), _BLOCK):
            block = part[start : start + _BLOCK]
            resized = [self._window(indices[i], mirrored[i], *places[i]) for i in block]
            for i, image in zip(block, resized, strict=True):
                self._finish(image, rows[i])

    def make(self, rows: Sequence[torch.Tensor], keys: list[Key], part: range) -> None:
        """The images of `part` by the keys of the engine torchvision."""
        assert self._images is not None
        for i in part:
            pixels, _ = self._images[keys[i]]
            self._finish(pixels.unsqueeze(0).permute(0, 3, 1, 2), rows[i])

    def _window(
        self, index: int, mirror: bool, top: int, left: int, height: int, width: int, tall: int, wide: int
    ) -> torch.Tensor:
        """A window resized to tall x wide, of which the centre is kept: uint8 [1, 3, size, size], channels last."""
        # The strides of four dimensions say channels-last, without which the resize takes a slower path and answers in
        # planes.
        window = self._read(index, top, left, height, width).reshape(1, height, width, 3).transpose(0, 3, 1, 2)
        image = torch.from_numpy(window)
        resize = (tall, wide) != (height, width)
        # What is not resized still lies in the memory that the next image is read into.
        image = interpolate(image, (tall, wide), mode="bilinear", antialias=True) if resize else image.clone()
        size = self._size
        if (tall, wide) != (size, size):
            top, left = round((tall - size) / 2), round((wide - size) / 2)
            image = image[:, :, top : top + size, left : left + size]
        return image.flip(-1) if mirror else image

    def _read(self, index: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """A window as it is stored, uint8 of height x width x 3 without gaps."""
        if not isinstance(self._pixels, PackedImages):
            return np.ascontiguousarray(self._pixels[index, top : top + height, left : left + width])
        full = int(self._pixels.widths[index])
        rows = self._memory.take("rows", height, full)
        self._pixels.read_rows(index, top, rows)
        if width == full:
            return rows
        window = self._memory.take("window", height, width)
        # Whole rows of bytes: in three dimensions every pixel would be copied by itself.
        np.copyto(window, rows[:, 3 * left : 3 * (left + width)])
        return window

    def _finish(self, image: torch.Tensor, rows: torch.Tensor) -> None:
        """Normalise uint8 [1, 3, size, size], channels last, into its place in the batch (see `_Stream._images`)."""
        if self._normalize is None:
            rows.copy_(image)
        elif self._nchw:
            finished = torch.empty(self._size, 3 * self._size, dtype=rows.dtype)
            self._normalize(image, finished, self._memory.scratch)
            rows.copy_(finished.view(self._size, self._size, 3).permute(2, 0, 1))
        else:
            self._normalize(image, rows, self._memory.scratch)


class _Stream:
    """Batches one after the other, made ahead by threads."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        assert dataset.pixels is not None
        self._pixels = dataset.pixels
        self._options, self._epochs = options, epochs
        self._device = torch.device(options.device)
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64)
        operations = options.operations()
        self._least = next((each.value for each in operations if each.name == "resized_crop"), None)
        self._flip = next((each.name for each in operations if each.name in FLIPS), None)
        simple = all(operation.name in ("resized_crop", *FLIPS) for operation in operations)
        self._keys = None if simple else Keys(options, epochs)
        self._cutter = _Cutter(dataset.pixels, None if simple else Images(dataset, options), options)
        if isinstance(dataset.pixels, PackedImages):
            self._heights, self._widths = dataset.pixels.heights, dataset.pixels.widths
        else:
            self._heights, self._widths = (np.full(len(dataset), side) for side in dataset.pixels.shape[1:3])
        self._threads = options.threads
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: collections.deque[_Pending] = collections.deque()
        self._upcoming = self._cursor = (0, 0)
        self._buffers = Buffers(dtype_of(options.dtype), options.batch * options.size**2 * 3)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Batches of one epoch; those made ahead are used if they are the ones asked for."""
        if self._upcoming != (epoch, first):
            self._drop()
            self._upcoming = self._cursor = (epoch, first)
        if self._threads and self._pool is None:
            self._pool = lone_threads(self._threads, "packed-images")
        for _ in range(first, self._epochs.batches):
            try:
                while len(self._ahead) < (self._options.prefetch if self._threads else 1):
                    self._begin()
                pending = self._ahead.popleft()
                for work in pending.work:
                    work.result()
                # Before the batch is handed out: the threads have work while it is used.
                if self._threads:
                    self._begin()
            except BaseException:
                self._drop()
                self._upcoming = (-1, -1)
                raise
            self._upcoming = self._epochs.after(*self._upcoming)
            yield self._finished(pending)

    def stop(self) -> None:
        """End the threads; what they made ahead is dropped."""
        self._drop()
        self._upcoming = (-1, -1)
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None

    def _drop(self) -> None:
        """Forget the batches on their way, when no thread writes to them any more."""
        waiting = [work for pending in self._ahead for work in pending.work if not work.cancel()]
        for work in waiting:
            work.exception()
        self._ahead.clear()

    def _begin(self) -> None:
        """Give the threads the next batch; it continues into the next epoch, so that they do not rest in between."""
        place = self._cursor
        indices = self._epochs.indices(*place)
        count, size = len(indices), self._options.size
        if self._device.type != "cpu":
            # torch keeps page-locked memory for itself and knows when the device has read it.
            rows = torch.empty(count, size, size, 3, dtype=torch.uint8, pin_memory=True)
        else:
            shape = (count, 3, size, size) if self._options.layout == "nchw" else (count, size, size, 3)
            rows = self._buffers.take(shape)
        if isinstance(self._pixels, PackedImages):
            self._pixels.check_unchanged()
        images = self._images(rows)
        if self._keys is not None:
            work = functools.partial(self._cutter.make, images, self._keys(*place))
        else:
            draws = self._epochs.draws(*place) if self._options.augmented else None
            places = self._places(indices, draws).tolist()
            mirrored = [False] * count
            if draws is not None and self._flip is not None:
                drawn = flips(draws) if self._flip == "flip" else self._epochs.mirrors(*place)
                mirrored = drawn.tolist()
            if isinstance(self._pixels, PackedImages):
                for index, (top, _, height, *_rest) in zip(indices.tolist(), places, strict=True):
                    self._pixels.expect(index, top, height)
            work = functools.partial(self._cutter.cut, images, indices.tolist(), places, mirrored)
        futures: list[Future[None]] = []
        if self._pool is None:
            work(range(count))
        else:
            futures = [self._pool.submit(work, range(part, count, self._threads)) for part in range(self._threads)]
        self._ahead.append(_Pending(rows, self._labels[torch.from_numpy(indices)], futures))
        self._cursor = self._epochs.after(*place)

    def _images(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """The images of a batch one by one: rows of pixels [size, 3 * size], or what the memory order asks for."""
        if self._device.type != "cpu":
            return rows.permute(0, 3, 1, 2).unsqueeze(1).unbind()
        return (rows if self._options.layout == "nchw" else rows.flatten(2)).unbind()

    def _places(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> NDArray[np.int64]:
        """Of each image the window that is read and the size it is resized to, [n, 6]: see `_Cutter._window`."""
        size = self._options.size
        heights, widths = self._heights[indices], self._widths[indices]
        if self._least is not None and draws is not None:
            cut = windows(draws, heights, widths, (self._least, 1.0))
            return np.concatenate([cut, np.full((len(cut), 2), size)], 1)
        sides = zip(heights.tolist(), widths.tolist(), strict=True)
        return np.array([_whole(tall, wide, size, self._options.margin) for tall, wide in sides], np.int64)

    def _finished(self, pending: _Pending) -> Batch:
        if self._device.type != "cpu":
            images = normalized(pending.rows.to(self._device, non_blocking=True), self._options)
            return images, pending.labels.to(self._device, non_blocking=True)
        images = pending.rows if self._options.layout == "nchw" else pending.rows.permute(0, 3, 1, 2)
        return images, pending.labels


def _whole(tall: int, wide: int, size: int, margin: float) -> tuple[int, int, int, int, int, int]:
    """The window and the size of an evaluation; only the centre is read where nothing has to be resized."""
    resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, size, margin)
    if (resized_tall, resized_wide) == (tall, wide):
        return top, left, size, size, size, size
    return 0, 0, tall, wide, resized_tall, resized_wide


class Packed(Engine):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        """Open a packed set or arrays; pack a set of files unless that was done before.

        Raises:
            DataError: there is no room, or a file cannot be decoded.
        """
        if dataset.pixels is None:
            dataset = _cached(dataset, options)
        self._drawn: Torchvision | None = None
        self._stream: _Stream | None = None
        if Images(dataset, options).random:
            self._drawn = Torchvision(dataset, options, epochs)
            self.ahead = self._drawn.ahead
        else:
            self._stream = _Stream(dataset, options, epochs)
            self.ahead = options.prefetch if options.threads else 0
            # Also runs at exit, before the interpreter tears down what the threads still use.
            self._finalizer = weakref.finalize(self, self._stream.stop)
        self._pixels = dataset.pixels

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        if self._drawn is not None:
            if isinstance(self._pixels, PackedImages):
                self._pixels.check_unchanged()
            return self._drawn.batches(epoch, first)
        if self._stream is None:
            raise DataError("loader packed is closed")
        return self._stream.batches(epoch, first)

    def close(self) -> None:
        """Stop the threads or worker processes."""
        if self._drawn is not None:
            self._drawn.close()
        if self._stream is not None:
            self._finalizer()
        self._stream = None
