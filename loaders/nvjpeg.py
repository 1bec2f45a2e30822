"""The engine nvjpeg: a GPU decodes through torchvision, and one kernel does all that follows.

It needs no library of its own: on a GPU torchvision's decode_jpeg calls NVIDIA's. Threads read the files; of a batch
all plain JPEGs are decoded by one call into one buffer on the device, out of which kernels.resized_crop cuts, resizes,
mirrors and normalises every window in one pass. Other files (loaders.images) are decoded on the CPU and copied there.
Windows, flips and order are those of the engine torchvision.

With `decoder` "cpu", which is the default, threads decode on the CPU and the rest is the same.
"""

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from loaders.datasets import Dataset
from loaders.device_images import DeviceImages
from loaders.epochs import Batch, Engine, Epochs
from loaders.errors import undecodable
from loaders.images import decoded, is_plain, read
from loaders.options import LoaderOptions
from loaders.policies import standard
from loaders.resident import Windows
from loaders.threads import lone_threads


class Nvjpeg(Engine):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._files = dataset.need_files("nvjpeg")
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64)
        self._options, self._epochs = options, epochs
        self._device = torch.device(options.device)
        self._windows = Windows(options, epochs, standard("nvjpeg", options.size))
        self._readers = lone_threads(max(1, options.threads), "nvjpeg")
        # One thread makes the batches, so that work on the device is queued in their order.
        self._maker = ThreadPoolExecutor(1, "nvjpeg-batches")
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.ahead = options.prefetch

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        waiting: collections.deque[Future[tuple[Batch, torch.cuda.Event | None]]] = collections.deque()
        numbers = iter(range(first, self._epochs.batches))

        def more(count: int) -> None:
            for number in islice(numbers, count):
                waiting.append(self._maker.submit(self._made, epoch, number))

        try:
            more(self._options.prefetch)
            while waiting:
                batch, event = waiting.popleft().result()
                more(1)
                if event is not None:
                    current = torch.cuda.current_stream(self._device)
                    current.wait_event(event)
                    for tensor in batch:
                        # Made on another stream: its memory must not be given to others before this one has read it.
                        tensor.record_stream(current)
                yield batch
        finally:
            for future in waiting:
                future.cancel()

    def _made(self, epoch: int, number: int) -> tuple[Batch, torch.cuda.Event | None]:
        # All random numbers are drawn in this thread: their generator is one.
        if self._stream is None:
            return self._batch(epoch, number), None
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            batch = self._batch(epoch, number)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return batch, event

    def _batch(self, epoch: int, number: int) -> Batch:
        indices = self._epochs.indices(epoch, number).tolist()
        images = list(self._readers.map(self._read, indices))
        if self._options.decoder != "cpu":
            self._decode_there(indices, images)
        shapes = np.array([image.shape[1:] for image in images], np.int64)
        ends = np.cumsum(shapes.prod(axis=1) * 3)
        offsets = ends - shapes.prod(axis=1) * 3
        pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, device=self._device)
        for image, start, end in zip(images, offsets.tolist(), ends.tolist(), strict=True):
            tall, wide = image.shape[1:]
            pixels[start:end].view(tall, wide, 3).copy_(image.permute(1, 2, 0), non_blocking=True)
        buffer = DeviceImages(pixels, offsets, shapes[:, 0], shapes[:, 1])
        labels = self._labels[torch.tensor(indices)].to(self._device, non_blocking=True)
        return self._windows(buffer, epoch, number), labels

    def _read(self, index: int) -> torch.Tensor:
        """An image as uint8 [3, height, width], or as its bytes [n] if the device is to decode it."""
        path = self._files[index]
        try:
            content = read(path)
            if self._options.decoder != "cpu" and content[:2] == b"\xff\xd8" and is_plain(content, self._options.exif):
                return torch.frombuffer(content, dtype=torch.uint8)
            return decoded(content, self._options.exif)
        except Exception as error:
            raise undecodable(path, error) from None

    def _decode_there(self, indices: Sequence[int], images: list[torch.Tensor]) -> None:
        """Replace the bytes among `images` by what they decode to on the device."""
        places = [place for place, image in enumerate(images) if image.ndim == 1]
        if not places:
            return
        try:
            found = decode_jpeg([images[place] for place in places], ImageReadMode.RGB, device=self._device)
        except RuntimeError:
            # One that the decoder refuses fails all: the CPU says which, and whether it can be read at all.
            for place in places:
                try:
                    images[place] = decoded(bytearray(images[place].numpy().tobytes()), self._options.exif)
                except Exception as error:
                    raise undecodable(self._files[indices[place]], error) from None
            return
        for place, image in zip(places, found, strict=True):
            images[place] = image

    def close(self) -> None:
        """See loaders.epochs.Engine."""
        self._maker.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
