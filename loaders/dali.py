"""The engine dali: only the random window of a JPEG is decoded, by native threads or by the GPU.

What makes the CPU path fast (`bench compare pil dali` shows by how much; records are in results/published):

- Windows are drawn before decoding, from the header, so that rows below a window are not decoded and pixels beside it
  not converted.
- The resize is torch's, not DALI's: for uint8 in channels-last order it has vectorised fixed-point code with Pillow's
  antialiasing, where DALI's resize costs as much as its decoding. The result equals torchvision's bit for bit.
  `resize="dali"` keeps everything inside DALI.
- Convert, scale and shift run image by image while the image is in the cache, straight into the finished batch.
- That batch lies in memory that is used again (see loaders.buffers): the kernel does not have to clear it again.
- File names come from `Epochs`, not from DALI's reader, whose shuffle is local (a buffer of 1,024) and cannot continue
  in the middle of an epoch. `fn.io.file.read` still reads in DALI's threads.

Decoding at half or quarter scale is not offered: DALI does not expose it, and it would seldom apply, because windows
of ImageNet files are rarely twice the size of the output.

Policies of a window and mirrors take the path above; others run as DALI's own operators, on the CPU or the GPU. Their
random numbers come from `Epochs`, except those of autoaugment, randaugment and trivialaugment: DALI's module for them
draws its own, so they differ after a resume.

DALI's own decoders get plain files only (loaders.images); others go through Pillow. A set of JPEGs pays next to nothing
for that: first bytes and sizes are looked at, which DALI hands out. The pipeline gets a step that looks at all of every
file where names show other formats, otherwise after the first file that is no JPEG or that DALI refuses.

On the CPU images are copied out of DALI's buffers (the resize writes the batch). On the GPU they are passed on through
DLPack without a copy: under the default (dynamic) executor an output lives as long as a tensor refers to it, so nothing
is overwritten, and `run` ties it to the caller's current stream.
"""

import collections
import contextlib
import functools
import importlib
import importlib.util
import os
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from kernels.formats import dtype_of
from loaders import geometry
from loaders.buffers import Buffers
from loaders.datasets import Dataset
from loaders.epochs import Batch, Engine, Epochs, evaluation_shape, shifts, windows
from loaders.errors import DataError, undecodable
from loaders.file_formats import all_named_jpeg
from loaders.images import as_pnm, check, is_plain, is_plain_png, refuse_large
from loaders.normalization import OneImage, Scratch, normalized
from loaders.options import LoaderOptions
from loaders.policies import AUTOMATIC, BORDERED, FLIPS, PAINTING, Operation, autoaugment_images, parse
from loaders.threads import lone_threads

Place = tuple[int, int]
"""Epoch and number of a batch."""


def missing() -> str | None:
    """Why this engine cannot run here, or None."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed; pip install nvidia-dali-cuda130"
    return None


class _Feed:
    """Tells DALI what to read next. Holds no reference to the pipeline, which would otherwise never be freed."""

    def __init__(
        self, files: Sequence[str], options: LoaderOptions, epochs: Epochs, operations: Sequence[Operation]
    ) -> None:
        self._files = files
        self._options = options
        self._epochs = epochs
        self._operations = operations
        self.cursor: Place = (0, 0)
        self.flight: collections.deque[Place] = collections.deque()

    def next(self) -> Place:
        """The batch that comes out of the pipeline next."""
        return self.flight[0] if self.flight else self.cursor

    def __call__(self) -> list[Any]:
        place = self.cursor
        self.flight.append(place)
        # Continues into the next epoch: the pipeline never empties between two epochs.
        self.cursor = self._epochs.after(*place)
        inputs: list[Any] = [
            [np.frombuffer(os.fsencode(self._files[i]), np.uint8) for i in self._epochs.indices(*place)]
        ]
        for number, operation in enumerate(self._operations):
            inputs += map(np.ascontiguousarray, self._arrays(number, operation, place))
        return inputs

    def _arrays(self, number: int, operation: Operation, place: Place) -> list[NDArray[Any]]:
        """The arguments of an operation's operators, one row an image; _INPUTS has their number."""
        name, value, size = operation.name, operation.value, self._options.size
        if name == "resized_crop":
            return [self._epochs.draws(*place)]
        if name in FLIPS:
            return [self._epochs.mirrored(name, *place).astype(np.int32)]
        if name in BORDERED:
            starts = shifts(self._epochs.draws(*place), operation.pixels)
            return [(starts - operation.pixels if name == "crop" else starts).astype(np.int32)]
        if name not in _INPUTS:
            return []
        draws = self._epochs.extras(*place, geometry.COLUMNS[name], number)
        if name == "rotate":
            return [geometry.angles(draws[:, 0], value).astype(np.float32)]
        if name == "affine":
            return [geometry.maps(operation, draws, size)[:, :2].astype(np.float32)]
        if name in PAINTING:
            rectangles = geometry.rectangles(operation, draws, size).astype(np.float32)
            return [rectangles[:, :2], rectangles[:, 2:]]
        if name == "blur":
            return [(0.1 + 1.9 * draws[:, 0]).astype(np.float32)]
        changes = (2 * draws - 1) * value
        return [*(1 + changes[:, :3].T).astype(np.float32), (180 * changes[:, 3]).astype(np.float32)]


# Arrays that an operation gets from the feed; operations that are not listed draw their own random numbers.
_INPUTS = {
    **dict.fromkeys(("resized_crop", *FLIPS, *BORDERED, "rotate", "affine", "blur"), 1),
    **dict.fromkeys(PAINTING, 2),
    "jitter": 4,
}


def _windowed(operations: Sequence[Operation]) -> bool:
    """Whether only a random window of each image is decoded."""
    return bool(operations) and operations[0].name == "resized_crop"


def _simple(operations: Sequence[Operation]) -> bool:
    """Whether a policy is a window and mirrors, or nothing: what the fast path does."""
    return not operations or (_windowed(operations) and all(operation.name in FLIPS for operation in operations[1:]))


def _plain_files(exif: str, files: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """The bytes of files as they are, or written anew if a decoder of DALI might refuse or misread them."""
    return [
        file if is_plain(file.data) or is_plain_png(file.data) else np.frombuffer(as_pnm(file.data, exif), np.uint8)
        for file in files
    ]


def _of_jpegs(heads: list[NDArray[np.uint8]], shapes: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The header shapes (height, width, channels) of files that DALI reads as they are.

    Raises:
        DataError: one is no JPEG, of which the rest would have to be looked at, or too large.
    """
    if any(head.tobytes() != b"\xff\xd8\xff" for head in heads):
        raise DataError("some files are no JPEGs")
    for tall, wide, _ in shapes:
        refuse_large(int(wide), int(tall))
    return shapes


def _drawn_windows(
    least: float, shapes: list[NDArray[np.int64]], draws: list[NDArray[np.float64]]
) -> tuple[list[Any], list[Any]]:
    """Window starts and sizes (rows, columns) for a batch of header shapes (height, width, channels)."""
    sizes = np.stack(shapes)
    places = windows(np.stack(draws), sizes[:, 0], sizes[:, 1], (least, 1.0)).astype(np.int32)
    return list(places[:, :2]), list(places[:, 2:])


def _whole(shapes: list[NDArray[np.int64]]) -> tuple[list[Any], list[Any]]:
    """The window that is all of an image, for a batch of header shapes."""
    sizes = [shape[:2].astype(np.int32) for shape in shapes]
    return [np.zeros_like(size) for size in sizes], sizes


def _centre_crop(size: int, margin: float, shapes: list[NDArray[np.int64]]) -> tuple[list[Any], list[Any]]:
    """Corners (row, column) of the evaluation crop in the image as it is stored, in fractions of a pixel."""
    starts, ends = [], []
    for tall, wide, _ in shapes:
        resized_tall, resized_wide, top, left = evaluation_shape(int(tall), int(wide), size, margin)
        step = np.array([tall / resized_tall, wide / resized_wide], np.float32)
        corner = np.array([top, left], np.float32)
        starts.append(corner * step)
        ends.append((corner + size) * step)
    return starts, ends


class _Graph:
    """DALI's pipeline: uint8 windows of any size, or (`inside`) finished images of one size.

    With `through_pillow`, files that are not plain are decoded by Pillow first, and DALI reads them as PPM.
    """

    def __init__(
        self,
        feed: _Feed,
        options: LoaderOptions,
        operations: Sequence[Operation],
        inside: bool,
        through_pillow: bool = False,
    ) -> None:
        # Untyped, and not to be imported with this module: missing() has to answer where it is not installed.
        self._fn: Any = importlib.import_module("nvidia.dali.fn")
        self._types: Any = importlib.import_module("nvidia.dali.types")
        self._feed, self._options, self._operations, self._inside = feed, options, operations, inside
        self._through_pillow, self._upright = through_pillow, options.exif == "apply"
        self._automatic = {
            operation.name: self._automatic_operator(operation)
            for operation in operations
            if operation.name in AUTOMATIC
        }

    def build(self, device_id: int | None) -> Any:
        """The pipeline, started."""
        dali: Any = importlib.import_module("nvidia.dali")

        def graph() -> Any:
            return self._images()

        # Only DALI's automatic augmentations branch inside the graph, which changes how it is traced.
        make = dali.pipeline_def(graph, enable_conditionals=bool(self._automatic))
        # They call operators by names that DALI has deprecated, and DALI sets the filters itself.
        with warnings.catch_warnings(record=True) as caught:
            pipeline = make(
                batch_size=self._options.batch,
                num_threads=max(1, self._options.threads),
                device_id=device_id,
                prefetch_queue_depth=self._options.prefetch,
                seed=self._options.seed,
                exec_dynamic=True,
            )
            pipeline.build()
        for warning in caught:
            if not (self._automatic and issubclass(warning.category, DeprecationWarning)):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return pipeline

    def _images(self) -> Any:
        count = 1 + sum(_INPUTS.get(operation.name, 0) for operation in self._operations)
        files, *arrays = self._fn.external_source(source=self._feed, num_outputs=count, batch=True)
        encoded = self._fn.io.file.read(files)
        if self._through_pillow:
            replaced = functools.partial(_plain_files, self._options.exif)
            encoded = self._fn.python_function(encoded, function=replaced, batch_processing=True)
        shapes = self._fn.peek_image_shape(encoded, adjust_orientation=self._upright)
        if not self._through_pillow:
            heads = self._fn.slice(encoded, start=[0], shape=[3], axes=[0], out_of_bounds_policy="trim_to_shape")
            shapes = self._fn.python_function(heads, shapes, function=_of_jpegs, batch_processing=True)
        images = self._decoded(encoded, shapes, arrays)
        return self._finished(images, shapes, arrays) if self._inside else images

    def _decoded(self, encoded: Any, shapes: Any, arrays: list[Any]) -> Any:
        """JPEG bytes to uint8 windows or whole images, rows x columns x RGB."""
        fn, options = self._fn, self._options
        decoding: dict[str, Any] = {"adjust_orientation": self._upright}
        if options.device != "cpu" and options.decoder != "cpu":
            decoding |= {
                "device": "mixed",
                "hw_decoder_load": options.hw_decoder_load,
                "preallocate_width_hint": options.preallocate_width,
                "preallocate_height_hint": options.preallocate_height,
            }
        if _windowed(self._operations):
            place: Callable[..., Any] = functools.partial(_drawn_windows, self._operations[0].value)
            inputs = [shapes, arrays[0]]
        elif "device" in decoding:
            return fn.decoders.image(encoded, **decoding)
        else:
            # As fast as decoders.image, and nothing is decoded before the shapes have been looked at.
            place, inputs = _whole, [shapes]
        start, size = fn.python_function(*inputs, function=place, batch_processing=True, num_outputs=2)
        window: dict[str, Any] = {"start": start, "shape": size, "axes": [0, 1]}
        if options.decoder == "mixed-whole":
            return fn.slice(fn.decoders.image(encoded, **decoding), **window)
        return fn.decoders.image_slice(encoded, **window, **decoding)

    def _finished(self, images: Any, shapes: Any, arrays: list[Any]) -> Any:
        """Resize and augment, then mirror, normalise, convert and order in one operator."""
        fn, types, options, operations = self._fn, self._types, self._options, self._operations
        if options.device != "cpu" and options.decoder == "cpu":
            images = images.gpu()
        place: dict[str, Any] = {}
        if not _windowed(operations):
            # One operator resizes and crops: pixels outside the crop are never computed.
            centre = functools.partial(_centre_crop, options.size, options.margin)
            start, end = fn.python_function(shapes, function=centre, batch_processing=True, num_outputs=2)
            place = {"roi_start": start, "roi_end": end}
        images = fn.resize(images, size=[options.size] * 2, antialias=True, **place)
        mirror: Any = 0
        for operation in operations:
            count = _INPUTS.get(operation.name, 0)
            own, arrays = arrays[:count], arrays[count:]
            if operation is operations[-1] and operation.name in FLIPS:
                mirror = own[0]
            elif operation.name != "resized_crop":
                images = self._augmented(images, operation, own)
        scaled: dict[str, Any] = {"mean": [255 * m for m in options.mean], "std": [255 * s for s in options.std]}
        # DALI has no bfloat16: it returns bytes, a quarter of the float traffic, and one kernel normalises them.
        dtype = {"float32": types.FLOAT, "float16": types.FLOAT16, "bfloat16": types.UINT8}[options.dtype]
        if dtype == types.UINT8 or options.normalization == "per_image":
            dtype, scaled = types.UINT8, {"mean": [0.0], "std": [1.0]}
        layout = "HWC" if options.layout == "nhwc" or dtype == types.UINT8 else "CHW"
        return fn.crop_mirror_normalize(images, mirror=mirror, dtype=dtype, output_layout=layout, **scaled)

    def _augmented(self, images: Any, operation: Operation, arrays: list[Any]) -> Any:
        """One operation on uint8 [size, size, 3]; `arrays` as `_Feed` made them."""
        fn, name, size = self._fn, operation.name, self._options.size
        if name in self._automatic:
            return self._automatic[name](images)
        if name in FLIPS:
            return fn.flip(images, horizontal=arrays[0])
        if name in BORDERED:
            if name == "crop_reflect":
                images = self._framed(images, operation.pixels)
            window: dict[str, Any] = {"start": arrays[0], "shape": [size, size], "axes": (0, 1)}
            return fn.slice(images, **window, out_of_bounds_policy="pad", fill_values=0)
        nearest: dict[str, Any] = {"interp_type": self._types.INTERP_NN, "fill_value": 0}
        if name == "rotate":
            return fn.rotate(images, angle=arrays[0], keep_size=True, **nearest)
        if name == "affine":
            return fn.warp_affine(images, matrix=arrays[0], inverse_map=True, **nearest)
        if name == "jitter":
            light, contrast, saturation, hue = arrays
            return fn.color_twist(images, brightness=light, contrast=contrast, saturation=saturation, hue=hue)
        if name == "blur":
            return fn.gaussian_blur(images, sigma=arrays[0], window_size=operation.pixels)
        colour = [float(round(255 * level)) for level in self._options.mean]
        return fn.erase(images, anchor=arrays[0], shape=arrays[1], axes=(0, 1), fill_value=colour)

    def _automatic_operator(self, operation: Operation) -> Callable[[Any], Any]:
        """DALI's own AutoAugment, RandAugment or TrivialAugment; imported before DALI traces the graph."""
        size = self._options.size
        warping: dict[str, Any] = {"shape": (size, size), "fill_value": 0, "interp_type": self._types.INTERP_NN}
        # The largest translation as a share of a side, as in torchvision.
        limited = {**warping, "max_translate_rel": 150 / 331}
        if operation.name == "autoaugment":
            module: Any = importlib.import_module("nvidia.dali.auto_aug.auto_augment")
            policy = {"cifar10": "reduced_cifar10", "imagenet": "image_net"}[autoaugment_images(size)]
            return functools.partial(module.auto_augment, policy_name=policy, **limited)
        if operation.name == "randaugment":
            module = importlib.import_module("nvidia.dali.auto_aug.rand_augment")
            strength = int(operation.value)
            return functools.partial(module.rand_augment, n=2, m=strength, num_magnitude_bins=31, **limited)
        module = importlib.import_module("nvidia.dali.auto_aug.trivial_augment")
        return functools.partial(module.trivial_augment_wide, num_magnitude_bins=31, **warping)

    def _framed(self, images: Any, border: int) -> Any:
        """Square images with a reflected border: DALI has no operator for it, but it flips and joins."""
        if border == 0:
            return images
        fn = self._fn
        for axis in (1, 0):
            strips = [
                fn.flip(
                    fn.slice(images, start=[start], shape=[border], axes=[axis]), horizontal=axis, vertical=1 - axis
                )
                for start in (1, self._options.size - 1 - border)
            ]
            images = fn.cat(strips[0], images, strips[1], axis=axis)
        return images


class _Threads:
    """A thread that assembles batches and those that fill parts of them, none of which shares torch's work."""

    def __init__(self, fillers: int) -> None:
        self.assembler = lone_threads(1, "dali-batches")
        self.fillers = lone_threads(fillers, "dali-images")

    def end(self) -> None:
        """Drop the work that has not begun and wait for the rest."""
        self.assembler.shutdown(cancel_futures=True)
        self.fillers.shutdown()


class _Stream:
    """The pipeline and, on the CPU, the threads that turn its windows into batches ahead of the caller."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._files = dataset.need_files("dali")
        self._labels = torch.tensor(dataset.labels, dtype=torch.int64)
        self._options = options
        self._epochs = epochs
        self._device = torch.device(options.device)
        operations = options.operations()
        self._windowed = _windowed(operations)
        self.inside = self._device.type != "cpu" or options.resize == "dali" or not _simple(operations)
        # Outside DALI the mirrors are applied here, so its graph leaves them out.
        self._flip = next((operation.name for operation in operations if operation.name in FLIPS), None)
        self._in_graph = operations if self.inside else operations[:1]
        self._feed = _Feed(self._files, options, epochs, self._in_graph)
        self._device_id = None
        if self._device.type != "cpu":
            self._device_id = torch.cuda.current_device() if self._device.index is None else self._device.index
        # Other formats are known by their names, most of the time.
        self._through_pillow = not all_named_jpeg(self._files)
        self._pipeline = self._build()
        self._stale = 0
        self._failed: DataError | None = None
        self._threads: _Threads | None = None
        self._ahead: collections.deque[Future[Batch]] = collections.deque()
        self._upcoming: Place = (0, 0)
        # Seven eighths of the work is decoding, one is resizing: a quarter of the threads is enough and never idle.
        self._fillers = max(1, options.threads // 4)
        self._buffers = Buffers(dtype_of(options.dtype), options.batch * options.size**2 * 3)
        self._normalize = OneImage(options)

    def _build(self) -> Any:
        graph = _Graph(self._feed, self._options, self._in_graph, self.inside, self._through_pillow)
        return graph.build(self._device_id)

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Batches of one epoch; those made ahead are used if they are the ones asked for."""
        if self._failed is not None:
            raise self._failed
        wanted = (epoch, first)
        if self.inside:
            self._seek(wanted)
            for _ in range(first, self._epochs.batches):
                yield self._run()
            return
        if self._threads is None or self._upcoming != wanted:
            self.stop()
            self._seek(wanted)
            self._threads, self._upcoming = _Threads(self._fillers), wanted
            for _ in range(self._options.prefetch + 1):
                self._assemble_ahead(self._threads)
        for _ in range(first, self._epochs.batches):
            try:
                batch = self._ahead.popleft().result()
            except BaseException:
                self.stop()
                raise
            self._assemble_ahead(self._threads)
            self._upcoming = self._epochs.after(*self._upcoming)
            yield batch

    def stop(self) -> None:
        """End the threads; what they made ahead is dropped."""
        if self._threads is not None:
            self._threads.end()
        self._threads = None
        self._ahead.clear()

    def _assemble_ahead(self, threads: _Threads) -> None:
        self._ahead.append(threads.assembler.submit(self._assemble, threads.fillers))

    def _seek(self, wanted: Place) -> None:
        """Make `wanted` the next batch; batches already in the pipeline are dropped when they come out."""
        upcoming = self._feed.cursor if self._stale else self._feed.next()
        if upcoming != wanted:
            self._stale = len(self._feed.flight)
            self._feed.cursor = wanted

    def _outputs(self) -> tuple[Any, Place]:
        if self._failed is not None:
            raise self._failed
        stream = None if self._device.type == "cpu" else torch.cuda.current_stream(self._device)
        try:
            while self._stale:
                self._pipeline.run(stream)
                self._feed.flight.popleft()
                self._stale -= 1
            (images,) = self._pipeline.run(stream)
        # DALI's message may have the name of a file, which need not be UTF-8.
        except (RuntimeError, UnicodeDecodeError) as error:
            if not self._through_pillow:
                self._begin_again()
                return self._outputs()
            self._failed = self._explain(error)
            raise self._failed from error
        return images, self._feed.flight.popleft()

    def _begin_again(self) -> None:
        """Make the batch that failed anew, with Pillow for files that DALI does not read."""
        feed = self._feed
        feed.cursor = feed.flight[self._stale] if self._stale < len(feed.flight) else feed.cursor
        feed.flight.clear()
        self._stale, self._through_pillow = 0, True
        self._pipeline = self._build()

    def _explain(self, error: Exception) -> DataError:
        """Name the file that DALI failed on: its message has a number at most."""
        batches = [[self._files[i] for i in self._epochs.indices(*place)] for place in self._feed.flight]
        files = list(chain.from_iterable(batches))
        bad = check(files, max(1, self._options.threads))
        if bad:
            return undecodable(bad[0].path, DataError(bad[0].reason))
        # What else its message has is where the operator was called, and that the pipeline has ended.
        said = re.sub(r"(?s).*encountered:|Current pipeline object is no longer valid\.", "", str(error))
        said = " ".join(said.split()) or "it does not say why"
        number = re.search(r"sample #(\d+)", said)
        if number is not None and batches and int(number[1]) < len(batches[0]):
            return DataError(f"DALI refuses {batches[0][int(number[1])]}, which others read; use another --loader")
        return DataError(f"DALI stopped at one of {len(files)} files, of which {files[0]} is the first: {said}")

    def _run(self) -> Batch:
        """One batch whose images DALI finished itself; torch owns a reference to the buffer, nothing is copied."""
        output, place = self._outputs()
        with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
            images = from_dlpack(output.as_tensor())
        labels = self._labels[torch.from_numpy(self._epochs.indices(*place))].to(self._device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalized(images, self._options)
        elif self._options.layout == "nhwc":
            images = images.permute(0, 3, 1, 2)
        if self._options.layout == "nchw":
            images = images.contiguous()
        return images, labels

    def _assemble(self, fillers: ThreadPoolExecutor) -> Batch:
        """One batch resized, mirrored and normalised here."""
        output, place = self._outputs()
        count, size = len(output), self._options.size
        mirror = [False] * count if self._flip is None else self._epochs.mirrored(self._flip, *place).tolist()
        rows = self._buffers.take((count, size, size, 3))
        if self._fillers == 1:
            self._fill(output, mirror, rows, range(count))
        else:
            parts = [range(part, count, self._fillers) for part in range(self._fillers)]
            list(fillers.map(lambda part: self._fill(output, mirror, rows, part), parts))
        images = rows.permute(0, 3, 1, 2)
        if self._options.layout == "nchw":
            images = images.contiguous()
        return images, self._labels[torch.from_numpy(self._epochs.indices(*place))]

    def _fill(self, windows: Any, mirror: list[bool], rows: torch.Tensor, part: range) -> None:
        """Resize, mirror and normalise the windows of `part` into their rows of the batch."""
        size = self._options.size
        scratch, flat = Scratch(size), rows.view(len(rows), size, 3 * size)
        margin = self._options.eval_margin
        for i in part:
            # The batch dimension is added before the transposition: only then do the strides say channels-last, without
            # which the resize takes a slower path.
            image = from_dlpack(windows[i]).unsqueeze(0).permute(0, 3, 1, 2)
            if self._windowed:
                image = interpolate(image, (size, size), mode="bilinear", antialias=True)
            else:
                tall, wide, top, left = evaluation_shape(image.shape[2], image.shape[3], size, margin)
                image = interpolate(image, (tall, wide), mode="bilinear", antialias=True)
                image = image[:, :, top : top + size, left : left + size]
            if mirror[i]:
                image = image.flip(-1)
            self._normalize(image, flat[i], scratch)


def decode_windows(dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> Iterator[int]:
    """Decode random windows and drop them, endlessly: yields the number of images of each batch.

    The cost of reading JPEGs without resizing; CPU only.
    """
    operations = parse("resized_crop")
    files = dataset.need_files("dali")
    feed, through_pillow = _Feed(files, options, epochs, operations), not all_named_jpeg(files)
    pipeline = _Graph(feed, options, operations, False, through_pillow).build(device_id=None)
    while True:
        (images,) = pipeline.run()
        feed.flight.popleft()
        yield len(images)


class Dali(Engine):
    """See the module's text."""

    def __init__(self, dataset: Dataset, options: LoaderOptions, epochs: Epochs) -> None:
        self._stream: _Stream | None = _Stream(dataset, options, epochs)
        # DALI's own queue; on the CPU also the batches assembled behind it.
        self.ahead = options.prefetch if self._stream.inside else 2 * options.prefetch + 1
        # Also runs at exit, before the interpreter tears down what the threads still use.
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
