"""Decoding JPEGs on a GPU: settings remembered for each GPU, and a check that the pixels are right.

The share of images that the JPEG engine takes (the rest is decoded by CUDA cores) has no best value for all GPUs, image
sizes and versions of DALI: bench.inspecting.jpeg_share measures it, and it is remembered for a GPU and a version.

Batched decoding on the engine of Hopper GPUs has given wrong pixels without an error (meta-pytorch/torchcodec issue
1634), so every run compares what it decodes with what the CPU decodes. Decoding only windows has crashed processes on
other GPUs (NVIDIA/nvImageCodec issue 55), so the way of decoding that works is tried once, in a process of its own, and
remembered too.
"""

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from loaders import engines
from loaders.cache import cache_folder, updating
from loaders.datasets import Dataset
from loaders.errors import DataError
from loaders.images import opened
from loaders.options import LoaderOptions

DEFAULT_LOAD = 0.65
HEADERS = 512  # files that are opened to find the largest image
CHECKED = 4  # batches that are compared
PROBE_SECONDS = 30.0
# Of decoding on the GPU. Whole images first: decoding windows is what crashes (NVIDIA/nvImageCodec issue 55), and a
# probe that hangs takes its time from whoever has a GPU for minutes.
WAYS = ("mixed-whole", "mixed")
TILES = 8  # along each side of an image
# In grey levels, of a tile's mean. Two decoders differ in their inverse DCT and in how they enlarge the colour planes,
# by one or two; a block that is missing, shifted, or another image's, by dozens.
MOST_DIFFERENCE = 16.0
FILE = "hw_decoder_load.json"


class WrongPixelsError(DataError):
    """What a GPU decodes is not what the file holds."""


def key_of(device: torch.device) -> str:
    """The GPU's name and DALI's version: what a remembered setting holds for."""
    installed = "no DALI"
    for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        with contextlib.suppress(PackageNotFoundError):
            installed = f"DALI {version(name)}"
    return f"{torch.cuda.get_device_name(device)}, {installed}"


def remembered(key: str) -> float | None:
    """The measured share, None if there is none or the file cannot be read."""
    load = _read().get(key)
    return float(load) if isinstance(load, int | float) and 0 <= load <= 1 else None


def remembered_way(key: str) -> str | None:
    """The way of decoding that works on this GPU, "cpu" if none does; None if that was never tried."""
    way = _read().get(f"{key}: way")
    return way if way in ("cpu", *WAYS) else None


def _read() -> dict[str, float | str]:
    try:
        settings = json.loads((cache_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def remember(key: str, setting: float | str) -> None:
    """Write a setting beside those of other GPUs.

    Raises:
        DataError: the file cannot be written.
    """
    path = cache_folder() / FILE
    with updating(path):
        settings = {**_read(), key: setting}
        try:
            # Complete or not at all: other processes read it at any moment.
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error


def largest_image(dataset: Dataset, most: int = HEADERS) -> tuple[int, int]:
    """Width and height that hold every one of up to `most` evenly spread files, from their headers; 0 without files."""
    step = max(1, len(dataset) // most)
    sizes = [image.size for _, image in _opened(dataset.files[::step][:most])]
    return max((width for width, _ in sizes), default=0), max((height for _, height in sizes), default=0)


def _opened(files: Sequence[str]) -> Iterator[tuple[int, Image.Image]]:
    """Number and header of every file that Pillow can open."""
    for number, path in enumerate(files):
        with contextlib.suppress(OSError, ValueError), opened(path) as image:
            yield number, image


def on_gpu(options: LoaderOptions, dataset: Dataset, load: float | None, way: str = WAYS[0]) -> LoaderOptions:
    """DALI's options for decoding on the GPU, with buffers for the largest image of the set."""
    width, height = largest_image(dataset)
    return replace(
        options,
        decoder=way,
        hw_decoder_load=DEFAULT_LOAD if load is None else load,
        preallocate_width=width,
        preallocate_height=height,
    )


def decoding_there(engine: str, options: LoaderOptions, dataset: Dataset) -> LoaderOptions:
    """The options with which an engine reads a set fastest: dali and nvjpeg decode on a GPU, after a comparison.

    The CPU decodes for a GPU on which no way of decoding works, or gives other pixels than the CPU; that is said.
    """
    if engine not in ("dali", "nvjpeg") or not options.device.startswith("cuda"):
        return options
    if engine == "nvjpeg":
        tried = [replace(options, decoder="mixed-whole")]
    else:
        key = key_of(torch.device(options.device))
        way = way_of(key, dataset, options)
        usable = WAYS[WAYS.index(way) :] if way in WAYS else ()
        tried = [on_gpu(options, dataset, remembered(key), each) for each in usable]
    for there in tried:
        try:
            # Before anything is timed or trained: fast and wrong is not fast.
            check(dataset, there, engine)
        except WrongPixelsError as error:
            print(f"note: {error}", file=sys.stderr)
            continue
        return there
    return options


def way_of(key: str, dataset: Dataset, options: LoaderOptions) -> str:
    """The way of decoding on the GPU that works here, or "cpu": as remembered, otherwise tried now."""
    way = remembered_way(key)
    if way is None:
        few = _repeated(dataset, range(len(dataset)), 2 * options.batch)
        way = next((way for way in WAYS if survives(few, on_gpu(options, few, None, way))), "cpu")
        with contextlib.suppress(DataError):
            remember(f"{key}: way", way)
    return way


def _repeated(dataset: Dataset, indices: Sequence[int], count: int) -> Dataset:
    """`count` images: those at `indices`, again and again."""
    return dataset.select(list(islice(cycle(indices), count)), dataset.name)


def survives(dataset: Dataset, options: LoaderOptions, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a process that decodes two batches ends well: a decoder that crashes takes its process with it."""
    process = multiprocessing.get_context("spawn").Process(target=_decode, args=(dataset, options))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _decode(dataset: Dataset, options: LoaderOptions) -> None:
    loader = engines.build("dali", dataset, options)
    for images, _ in islice(loader, 2):
        images.float().sum().item()
    loader.close()


def tile_differences(images: Tensor, expected: Tensor, std: tuple[float, float, float]) -> Tensor:
    """The largest difference of two batches of normalised images, image by image.

    Args:
        images, expected: [B, 3, S, S] of any dtype.
        std: with which they were normalised.

    Returns:
        float32 [B], in grey levels: for each image the mean absolute difference of the tile where that is largest. NaN
        counts as infinite.
    """
    scale = 255 * torch.tensor(std, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    difference = (images.float() - expected.to(images.device).float()).abs() * scale
    tiles = functional.adaptive_avg_pool2d(difference.mean(1, keepdim=True), TILES)
    largest = tiles.flatten(1).amax(1)
    return torch.where(largest.isfinite(), largest, torch.inf)


def check(dataset: Dataset, options: LoaderOptions, engine: str = "dali") -> float:
    """Decode some batches on the GPU and on the CPU, and compare.

    CMYK files are left out: decoders do not agree on their red, green and blue.

    Returns:
        the largest difference of a tile, in grey levels.

    Raises:
        WrongPixelsError: an image differs by more than decoders may; with its number.
        DataError: no file can be compared.
    """
    count = CHECKED * options.batch
    comparable = (number for number, image in _opened(dataset.files) if image.mode in ("L", "RGB"))
    chosen = list(islice(comparable, count))
    if not chosen:
        raise DataError(f"{dataset.name} holds no file in which a GPU's decoding can be compared; bench data check")
    dataset = _repeated(dataset, chosen, count)
    batches = []
    # Windows and mirrors only: automatic augmentations draw their own numbers, each pipeline others.
    plain = replace(options, augment="standard")
    for decoder in (options.decoder, "cpu"):
        loader = engines.build(engine, dataset, replace(plain, decoder=decoder))
        try:
            # A copy of each: the loader uses its buffers again.
            batches.append(torch.cat([images.float().cpu() for images, _ in islice(loader, CHECKED)]))
        finally:
            loader.close()
    differences = tile_differences(batches[0], batches[1], options.std)
    worst = int(differences.argmax())
    if differences[worst] > MOST_DIFFERENCE:
        wrong = int((differences > MOST_DIFFERENCE).sum())
        raise WrongPixelsError(
            f"{wrong} of {len(differences)} images decoded by the GPU differ from the CPU's, number {worst} by "
            f"{differences[worst]:.0f} grey levels: decoder {options.decoder} (hw_decoder_load "
            f"{options.hw_decoder_load:g}) is not used here"
        )
    return float(differences[worst])
