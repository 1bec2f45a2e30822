"""NVIDIA DALI: only the random window of a JPEG is decoded, by native threads or by the GPU.

What makes the CPU path fast (`bench compare pil dali` shows by how much; records lie in results/published):

- Windows are drawn before decoding, from the header, so that rows below a window are not decoded and pixels beside it
  not converted.
- The resize is torch's, not DALI's: for uint8 in channels-last order it has vectorised fixed-point code with Pillow's
  antialiasing, where DALI's resize costs as much as its decoding. The result equals torchvision's bit for bit.
  `resize="dali"` keeps everything inside DALI.
- Convert, scale and shift run image by image while it is in the cache, straight into the batch that is handed over.
- That batch lies in memory that is used again (see loaders.buffers): the kernel need not clear it again.
- File names come from `Epochs`, not from DALI's reader, whose shuffle is local (a buffer of 1,024) and cannot go on in
  the middle of an epoch. `fn.io.file.read` still reads in DALI's threads.

Decoding at half or quarter scale is not offered: DALI does not expose it, and it would seldom apply, because windows
of ImageNet files are rarely twice the size of the output.

Stored EXIF orientation is ignored, as by torchvision's ImageFolder, so that all engines see the same pixels.

Buffers. On the CPU images are copied out of DALI's buffers (the resize writes the batch). On the GPU they are handed
over through DLPack without a copy: under the default (dynamic) executor an output lives as long as a tensor refers to
it, so nothing is overwritten, and `run` ties it to the caller's current stream.
"""

import collections
import contextlib
import functools
import importlib
import importlib.util
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from loaders.buffers import Buffers
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, evaluation_shape, flips, windows
from loaders.errors import DataError
from loaders.options import LoaderOptions


def missing(device: str) -> str | None:
    """Why this engine cannot run here, or None."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed; pip install nvidia-dali-cuda130"
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None


class _Feed:
    """Tells DALI what to read next. Holds no reference to the pipeline, which would otherwise never be freed."""

    def __init__(self, files: Sequence[str], options: LoaderOptions, epochs: Epochs, mirrors: bool) -> None:
        self._files = files
        self._options = options
        self._epochs = epochs
        self._mirrors = mirrors
        self.cursor = (0, 0)
        self.flight: collections.deque[tuple[int, int]] = collections.deque()

    def next(self) -> tuple[int, int]:
        """Epoch and number of the batch that comes out of the pipeline next."""
        return self.flight[0] if self.flight else self.cursor

    def __call__(self) -> list[Any]:
        epoch, batch = self.cursor
        self.flight.append(self.cursor)
        # Runs on into the next epoch: the pipeline never empties between two epochs.
        self.cursor = (epoch, batch + 1) if batch + 1 < self._epochs.batches else (epoch + 1, 0)
        indices = self._epochs.indices(epoch, batch)
        inputs: list[Any] = [[np.frombuffer(self._files[i].encode(), np.uint8) for i in indices]]
        if self._options.train:
            draws = self._epochs.draws(epoch, batch)
            inputs.append(draws)
            if self._mirrors:
                inputs.append(flips(draws).astype(np.int32))
        return inputs


def _place(shapes: list[NDArray[np.int64]], draws: list[NDArray[np.float64]]) -> tuple[list[Any], list[Any]]:
    """Window starts and sizes (rows, columns) for a batch of header shapes (height, width, channels)."""
    sizes = np.stack(shapes)
    places = windows(np.stack(draws), sizes[:, 0], sizes[:, 1]).astype(np.int32)
    return list(places[:, :2]), list(places[:, 2:])


def _centre(size: int, shapes: list[NDArray[np.int64]]) -> tuple[list[Any], list[Any]]:
    """Where the evaluation crop lies in the undecoded image: corners (row, column), in fractions of a pixel."""
    starts, ends = [], []
    for tall, wide, _ in shapes:
        resized_tall, resized_wide, top, left = evaluation_shape(int(tall), int(wide), size)
        step = np.array([tall / resized_tall, wide / resized_wide], np.float32)
        corner = np.array([top, left], np.float32)
        starts.append(corner * step)
        ends.append((corner + size) * step)
    return starts, ends


def _decoded(fn: Any, encoded: Any, shapes: Any, draws: Any, options: LoaderOptions) -> Any:
    """The graph from JPEG bytes to a uint8 window (training) or image (evaluation), rows x columns x RGB."""
    decoding: dict[str, Any] = {"adjust_orientation": False, "use_fast_idct": options.fast_idct}
    if options.device != "cpu" and options.decoder == "mixed":
        decoding |= {
            "device": "mixed",
            "hw_decoder_load": options.hw_decoder_load,
            "preallocate_width_hint": options.preallocate_width,
            "preallocate_height_hint": options.preallocate_height,
            "device_memory_padding": options.device_memory_padding,
            "host_memory_padding": options.host_memory_padding,
        }
    if draws is None:
        return fn.decoders.image(encoded, **decoding)
    start, size = fn.python_function(shapes, draws, function=_place, batch_processing=True, num_outputs=2)
    return fn.decoders.image_slice(encoded, start=start, shape=size, axes=[0, 1], **decoding)


def _build(feed: _Feed, options: LoaderOptions, device_id: int | None, inside: bool) -> Any:
    """The DALI pipeline: uint8 windows of any size, or (`inside`) finished images of one size."""
    # Untyped, and not to be imported with this module: missing() is asked where it is not installed.
    dali: Any = importlib.import_module("nvidia.dali")
    fn: Any = importlib.import_module("nvidia.dali.fn")
    types: Any = importlib.import_module("nvidia.dali.types")
    pipeline = dali.Pipeline(
        batch_size=options.batch,
        num_threads=max(1, options.threads),
        device_id=device_id,
        prefetch_queue_depth=options.prefetch,
        set_affinity=options.set_affinity,
        seed=options.seed,
        exec_dynamic=True,
    )
    with pipeline:
        inputs = fn.external_source(source=feed, num_outputs=1 + options.train + (options.train and inside), batch=True)
        encoded = fn.io.file.read(inputs[0])
        shapes = fn.peek_image_shape(encoded, adjust_orientation=False)
        images = _decoded(fn, encoded, shapes, inputs[1] if options.train else None, options)
        if inside:
            images = _finished(fn, types, images, shapes, inputs[2] if options.train else 0, options)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def _finished(fn: Any, types: Any, images: Any, shapes: Any, mirror: Any, options: LoaderOptions) -> Any:
    """Resize, then mirror, normalise, convert and order in one operator."""
    size, on_gpu = options.size, options.device != "cpu"
    if on_gpu and options.decoder == "cpu":
        images = images.gpu()
    place: dict[str, Any] = {}
    if not options.train:
        # One operator resizes and crops: pixels outside the crop are never computed.
        centre = functools.partial(_centre, size)
        start, end = fn.python_function(shapes, function=centre, batch_processing=True, num_outputs=2)
        place = {"roi_start": start, "roi_end": end}
    images = fn.resize(images, size=[size, size], antialias=options.antialias, **place)
    scaled: dict[str, Any] = {"mean": [255 * m for m in options.mean], "std": [255 * s for s in options.std]}
    dtype = {"float32": types.FLOAT, "float16": types.FLOAT16}.get(options.dtype)
    if dtype is None:
        # DALI has no bfloat16: it hands over bytes, a quarter of the float traffic, and one kernel normalises them.
        dtype, scaled = types.UINT8, {"mean": [0.0], "std": [1.0]}
    layout = "HWC" if options.layout == "nhwc" or dtype == types.UINT8 else "CHW"
    return fn.crop_mirror_normalize(images, mirror=mirror, dtype=dtype, output_layout=layout, **scaled)


def _work_alone() -> None:
    """Keep the calling thread's torch operators on this thread.

    An image is too small to share; the team of threads would fight with the decoders for the cores.
    """
    torch.set_num_threads(1)
    # A thread takes over the process-wide default when it first asks; asked now, it keeps the 1 for good.
    torch.get_num_threads()


class _Stream:
    """The pipeline and, on the CPU, the thread that turns its windows into batches ahead of the caller."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._files = dataset.need_files("dali")
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64)
        self._options = options
        self._epochs = epochs
        self._device = torch.device(options.device)
        self.inside = self._device.type != "cpu" or options.resize == "dali"
        self._feed = _Feed(self._files, options, epochs, self.inside)
        device_id = None
        if self._device.type != "cpu":
            device_id = torch.cuda.current_device() if self._device.index is None else self._device.index
        self._pipeline = _build(self._feed, options, device_id, self.inside)
        self._stale = 0
        self._failed: DataError | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(options.prefetch)
        self._upcoming = (0, 0)
        # Seven parts of the work are decoding, one is resizing: a quarter of the threads is enough and never idle.
        self._fillers = max(1, options.threads // 4)
        scale = [1 / (255 * s) for s in options.std]
        shift = [-m / s for m, s in zip(options.mean, options.std, strict=True)]
        # One row of the image: long enough for vector code, which a broadcast over three channels is not.
        self._buffers = Buffers(getattr(torch, options.dtype), options.batch * options.size**2 * 3)
        self._scale = torch.tensor(scale, dtype=torch.float32).repeat(options.size)
        self._shift = torch.tensor(shift, dtype=torch.float32).repeat(options.size)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Batches of one epoch, going on with what was made ahead when that is what is asked for."""
        wanted = (epoch, first)
        if self._failed is not None:
            raise self._failed
        if self._device.type != "cpu" or self.inside:
            self._seek(wanted)
            for _ in range(first, self._epochs.batches):
                yield self._run()
            return
        if self._thread is None or self._upcoming != wanted:
            self.stop()
            self._seek(wanted)
            self._start()
        for number in range(first, self._epochs.batches):
            made = self._ready.get()
            if isinstance(made, BaseException):
                self.stop()
                raise made
            self._upcoming = (epoch, number + 1) if number + 1 < self._epochs.batches else (epoch + 1, 0)
            yield made

    def stop(self) -> None:
        """End the thread; what it had made ahead is dropped."""
        if self._thread is None:
            return
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()
        self._thread = None
        while not self._ready.empty():
            self._ready.get_nowait()

    def _start(self) -> None:
        self._stop.clear()
        started = threading.Event()
        threads = torch.get_num_threads()
        self._upcoming = self._feed.cursor if not self._feed.flight or self._stale else self._feed.next()
        self._thread = threading.Thread(target=self._produce, args=(started,), name="dali-batches", daemon=True)
        self._thread.start()
        started.wait()
        # OpenMP's thread count belongs to each thread, torch's default for new threads to the process: the producer
        # lowered both for itself, the default goes back here.
        torch.set_num_threads(threads)

    def _produce(self, started: threading.Event) -> None:
        try:
            _work_alone()
            with ThreadPoolExecutor(self._fillers, initializer=_work_alone) as pool:
                # Starts the pool's threads before the process-wide default goes back to what it was.
                for _ in pool.map(lambda _: None, range(self._fillers)):
                    pass
                started.set()
                while not self._stop.is_set():
                    self._offer(self._assemble(pool))
        except BaseException as error:
            self._offer(error)  # raised again where the caller waits
        finally:
            started.set()

    def _offer(self, made: Batch | BaseException) -> None:
        """Put into the queue, but never wait for a caller who has gone."""
        while not self._stop.is_set():
            try:
                self._ready.put(made, timeout=0.1)
                return
            except queue.Full:
                continue

    def _seek(self, wanted: tuple[int, int]) -> None:
        """Make `wanted` the next batch; batches already under way are dropped when they come out."""
        upcoming = self._feed.cursor if self._stale else self._feed.next()
        if upcoming != wanted:
            self._stale = len(self._feed.flight)
            self._feed.cursor = wanted

    def _outputs(self) -> tuple[Any, tuple[int, int]]:
        stream = None if self._device.type == "cpu" else torch.cuda.current_stream(self._device)
        try:
            while self._stale:
                self._pipeline.run(stream)
                self._feed.flight.popleft()
                self._stale -= 1
            (images,) = self._pipeline.run(stream)
        except RuntimeError as error:
            self._failed = self._explain(error)
            raise self._failed from error
        return images, self._feed.flight.popleft()

    def _explain(self, error: RuntimeError) -> DataError:
        """Name the file DALI failed on: its message does not."""
        from loaders.images import check

        files = [self._files[i] for token in self._feed.flight for i in self._epochs.indices(*token)]
        bad = check(files, max(1, self._options.threads))
        if bad:
            return DataError(f"cannot decode {bad[0].path}: {bad[0].reason}; find all with: bench data check")
        return DataError(f"DALI stopped: {str(error).strip().splitlines()[-1]}")

    def _run(self) -> Batch:
        """One batch whose images DALI finished itself; torch owns a reference to the buffer, nothing is copied."""
        output, token = self._outputs()
        with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
            images = from_dlpack(output.as_tensor())
        labels = self._labels[torch.from_numpy(self._epochs.indices(*token))].to(self._device, non_blocking=True)
        if images.dtype == torch.uint8:
            from kernels.normalize import normalize

            options = self._options
            images = normalize(images, options.mean, options.std, getattr(torch, options.dtype))
        elif self._options.layout == "nhwc":
            images = images.permute(0, 3, 1, 2)
        if self._options.layout == "nchw":
            images = images.contiguous()
        return images, labels

    def _assemble(self, pool: ThreadPoolExecutor) -> Batch:
        """One batch resized, mirrored and normalised here."""
        output, (epoch, batch) = self._outputs()
        count, size = len(output), self._options.size
        indices = torch.from_numpy(self._epochs.indices(epoch, batch))
        mirror = flips(self._epochs.draws(epoch, batch)).tolist() if self._options.train else [False] * count
        rows = self._buffers.take((count, size, size, 3))
        if self._fillers == 1:
            self._fill(output, mirror, rows, range(count))
        else:
            parts = [range(part, count, self._fillers) for part in range(self._fillers)]
            for _ in pool.map(lambda part: self._fill(output, mirror, rows, part), parts):
                pass
        images = rows.permute(0, 3, 1, 2)
        if self._options.layout == "nchw":
            images = images.contiguous()
        return images, self._labels[indices]

    def _fill(self, windows: Any, mirror: list[bool], rows: torch.Tensor, part: range) -> None:
        """Resize, mirror and normalise the windows of `part` into their rows of the batch."""
        size, antialias = self._options.size, self._options.antialias
        scratch = torch.empty(size, 3 * size)
        direct = rows.dtype == torch.float32
        flat = rows.view(len(rows), size, 3 * size)
        for i in part:
            # The batch dimension goes in before the transposition: only then do the strides say channels-last,
            # without which the resize takes a path six times slower.
            image = from_dlpack(windows[i]).unsqueeze(0).permute(0, 3, 1, 2)
            if self._options.train:
                image = interpolate(image, (size, size), mode="bilinear", antialias=antialias)
            else:
                tall, wide, top, left = evaluation_shape(image.shape[2], image.shape[3], size)
                image = interpolate(image, (tall, wide), mode="bilinear", antialias=antialias)
                image = image[:, :, top : top + size, left : left + size]
            if mirror[i]:
                image = image.flip(-1)
            scratch.view(size, size, 3).copy_(image[0].permute(1, 2, 0))
            if direct:
                torch.addcmul(self._shift, scratch, self._scale, out=flat[i])
            else:
                flat[i].copy_(torch.addcmul(self._shift, scratch, self._scale, out=scratch))


def decode_windows(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Iterator[int]:
    """Decode random windows and drop them, for ever: yields the number of images of each batch.

    The cost of reading JPEGs without resizing; CPU only.
    """
    feed = _Feed(dataset.need_files("dali"), options, epochs, mirrors=False)
    pipeline = _build(feed, options, device_id=None, inside=False)
    while True:
        (images,) = pipeline.run()
        feed.flight.popleft()
        yield len(images)


class Dali:
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._stream: _Stream | None = _Stream(dataset, options, epochs)
        # DALI's own queue; on the CPU also a queue of finished batches behind it and one at that queue's door.
        self.ahead = options.prefetch if self._stream.inside else 2 * options.prefetch + 1
        # Also runs at exit, before the interpreter tears down what the thread still uses.
        self._finalizer = weakref.finalize(self, self._stream.stop)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """See loaders.epochs.Engine."""
        if self._stream is None:
            raise DataError("loader dali is closed")
        return self._stream.batches(epoch, first)

    def close(self) -> None:
        """Stop the threads and give back the pipeline's memory."""
        self._finalizer()
        self._stream = None


def open_engine(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Engine:
    """Open the engine.

    Raises:
        DataError: the data set has no files.
    """
    return Dali(dataset, options, epochs)
