"""The engine spdl: threads of one process decode with FFmpeg's libraries and share memory with torch.

Windows and flips are those of `Epochs`. Cutting, scaling and mirroring are FFmpeg filters, so the pixels differ from
those of libjpeg and Pillow: by 0.5 grey levels on average over 100 ImageNet files, by 2.3 in the worst. Needs the
packages spdl_core and spdl_io and FFmpeg's shared libraries.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, evaluation_shape, flips, windows
from loaders.errors import DataError, undecodable
from loaders.images import as_pnm, is_plain
from loaders.normalization import normalized
from loaders.options import LoaderOptions


def missing() -> str | None:
    """Why this engine cannot run here, or None."""
    if importlib.util.find_spec("spdl") is None or importlib.util.find_spec("spdl.io") is None:
        return "SPDL is not installed; pip install spdl"
    import spdl.io.lib

    try:
        # The names are proxies: the first access loads the library that fits the installed FFmpeg.
        _ = spdl.io.lib._libspdl.ImagePackets
    except (RuntimeError, ImportError, AttributeError):
        return "SPDL cannot load FFmpeg's shared libraries (libavutil and others, FFmpeg 4 to 9); install ffmpeg"
    return None


class _Work:
    """Decodes one image into an FFmpeg frame of the final size, in several threads at once."""

    def __init__(self, files: tuple[str, ...], options: LoaderOptions) -> None:
        self._files, self._size, self._margin, self._exif = files, options.size, options.eval_margin, options.exif
        self._operations = {operation.name: operation.value for operation in options.operations()}

    def __call__(self, key: tuple[int, Any]) -> Any:
        index, draws = key
        path = self._files[index]
        try:
            content = Path(path).read_bytes()
            if is_plain(content, self._exif):
                # FFmpeg refuses what its first bytes do not tell, such as two JPEGs in one file.
                with suppress(Exception):
                    return self._frame(content, draws), index
            return self._frame(as_pnm(content, self._exif), draws), index
        except Exception as error:
            # SPDL drops an item whose work raises, and a batch would silently lose an image.
            return undecodable(path, error)

    def _frame(self, content: bytes, draws: Any) -> Any:
        import spdl.io

        size = self._size
        packets = spdl.io.demux_image(content)
        tall, wide = packets.height, packets.width
        least = self._operations.get("resized_crop")
        if draws is None or least is None:
            resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, size, self._margin)
            steps = [
                f"scale={resized_wide}:{resized_tall}:flags=bilinear",
                f"format=rgb24,crop={size}:{size}:{left}:{top}",
            ]
        else:
            placed = windows(draws[None], np.array([tall]), np.array([wide]), (least, 1.0))
            top, left, height, width = placed[0].tolist()
            # Cutting first leaves only the window's colours to convert. `exact` lets a window begin at any pixel;
            # without it FFmpeg moves it to an even one where the colour planes have half the size.
            steps = [f"crop={width}:{height}:{left}:{top}:exact=1", f"scale={size}:{size}:flags=bilinear"]
        if draws is not None and "flip" in self._operations and flips(draws[None])[0]:
            steps.append("hflip")
        return spdl.io.decode_packets(packets, filter_desc=",".join([*steps, "format=rgb24"]))


def _join(items: list[Any]) -> Any:
    """Frames to one uint8 tensor [batch, size, size, 3] and the images' numbers, or the first error."""
    import spdl.io

    for item in items:
        if isinstance(item, DataError):
            return item
    frames, numbers = zip(*items, strict=True)
    return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), torch.tensor(numbers)


class Spdl(Engine):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._work = _Work(dataset.need_files("spdl"), options)
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64)
        self._options = options
        self._epochs = epochs
        # In the sink, waiting to enter it, and half collected. An epoch's threads end with its iteration.
        self.ahead = options.prefetch + 2

    def _keys(self, epoch: int, first: int) -> Iterator[tuple[int, Any]]:
        for number in range(first, self._epochs.batches):
            indices = self._epochs.indices(epoch, number).tolist()
            draws = self._epochs.draws(epoch, number) if self._options.augmented else [None] * len(indices)
            yield from zip(indices, draws, strict=True)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        from spdl.pipeline import PipelineBuilder

        options, threads = self._options, max(1, self._options.threads)
        builder: Any = PipelineBuilder()
        pipeline = (
            builder.add_source(self._keys(epoch, first))
            .pipe(self._work, concurrency=threads, output_order="input")
            .aggregate(options.batch)
            .pipe(_join)
            .add_sink(options.prefetch)
            .build(num_threads=threads)
        )
        with pipeline.auto_stop():
            for item in pipeline:
                if isinstance(item, DataError):
                    raise item
                pixels, numbers = item
                pixels = pixels.to(options.device, non_blocking=True)
                labels = self._labels[numbers].to(options.device, non_blocking=True)
                yield normalized(pixels, options), labels
