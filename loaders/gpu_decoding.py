"""What decoding on a GPU needs to know and to prove: its share of the JPEG engine, image sizes, and right pixels.

The share of images that the JPEG engine takes (the rest is decoded by CUDA cores) has no best value for all GPUs, image
sizes and versions of DALI: it is measured once (bench.gpu.sweep) and remembered for a GPU and a version.

Batched decoding on the engine of Hopper GPUs has given wrong pixels without an error (meta-pytorch/torchcodec issue
1634), so that what it decodes is compared with what the CPU decodes, in every run. Decoding windows alone has brought
processes down on others (NVIDIA/nvImageCodec issue 55): which way of decoding a GPU survives is tried once, in a
process of its own, and remembered too.
"""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from loaders.datasets import Dataset
from loaders.errors import DataError
from loaders.options import LoaderOptions

DEFAULT_LOAD = 0.65
LOOKED_AT = 512  # files whose headers are read for the largest image
CHECKED = 4  # batches that are compared
PROBE_SECONDS = 180.0
WAYS = ("mixed", "mixed-whole")  # of decoding on the GPU, the faster one first
TILES = 8  # along each side of an image
# In grey levels, of a tile's mean. Two decoders differ in their inverse DCT and in how they enlarge the colour planes,
# by one or two; a block that is missing, shifted, or another image's, by dozens.
MOST_DIFFERENCE = 16.0


def remembered_loads() -> Path:
    """The file that holds measured shares."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixbench"
    return cache / "hw_decoder_load.json"


def key_of(device: torch.device) -> str:
    """The GPU's name and DALI's version: what a measured share holds for."""
    installed = "no DALI"
    for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        with contextlib.suppress(PackageNotFoundError):
            installed = f"DALI {version(name)}"
    return f"{torch.cuda.get_device_name(device)}, {installed}"


def remembered(key: str) -> float | None:
    """The measured share, None if there is none or the file cannot be read."""
    found = _known().get(key)
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None


def remembered_way(key: str) -> str | None:
    """The way of decoding that this GPU survived, "cpu" if none; None if it was not tried."""
    found = _known().get(_way(key))
    return found if found in ("cpu", *WAYS) else None


def _way(key: str) -> str:
    return f"{key}: way"


def _known() -> dict[str, float | str]:
    try:
        read = json.loads(remembered_loads().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def remember(key: str, load: float) -> None:
    """Keep a measured share beside those of other GPUs. Raises DataError where it cannot be written."""
    _keep(key, load)


def _keep(key: str, value: float | str) -> None:
    path = remembered_loads()
    known = {**_known(), key: value}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Complete or not at all: other processes read it at any moment.
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def largest_image(dataset: Dataset, most: int = LOOKED_AT) -> tuple[int, int]:
    """Width and height that hold every one of up to `most` evenly spread files, from their headers; 0 without files."""
    step = max(1, len(dataset) // most)
    width = height = 0
    for path in dataset.files[::step][:most]:
        with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(path) as image:
            width, height = max(width, image.width), max(height, image.height)
    return width, height


def on_gpu(options: LoaderOptions, dataset: Dataset, load: float | None, way: str = WAYS[0]) -> LoaderOptions:
    """DALI's options for decoding on the GPU: its buffers allocated ahead for the set's largest image."""
    width, height = largest_image(dataset)
    return replace(
        options,
        decoder=way,
        hw_decoder_load=DEFAULT_LOAD if load is None else load,
        preallocate_width=width,
        preallocate_height=height,
    )


def decoding_there(engine: str, options: LoaderOptions, dataset: Dataset) -> LoaderOptions:
    """The options with which an engine reads a set fastest: DALI on a GPU decodes there, after a comparison.

    A GPU that no way of decoding works on leaves it to the CPU.

    Raises:
        DataError: the GPU decodes otherwise than the CPU.
    """
    if engine != "dali" or not options.device.startswith("cuda"):
        return options
    key = key_of(torch.device(options.device))
    way = way_of(key, dataset, options)
    if way == "cpu":
        return options
    options = on_gpu(options, dataset, remembered(key), way)
    # Before anything is timed or trained: fast and wrong is not fast.
    check(dataset, options)
    return options


def way_of(key: str, dataset: Dataset, options: LoaderOptions) -> str:
    """The way of decoding on the GPU that works here, or "cpu": as remembered, else tried now."""
    found = remembered_way(key)
    if found is None:
        few = dataset.select(list(islice(cycle(range(len(dataset))), 2 * options.batch)), dataset.name)
        found = next((way for way in WAYS if survives(few, on_gpu(options, few, None, way))), "cpu")
        with contextlib.suppress(DataError):
            _keep(_way(key), found)
    return found


def survives(dataset: Dataset, options: LoaderOptions, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a process that decodes two batches ends well: a decoder that crashes takes its process along."""
    process = multiprocessing.get_context("spawn").Process(target=_decode, args=(dataset, options))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _decode(dataset: Dataset, options: LoaderOptions) -> None:
    from loaders import engines

    loader = engines.build("dali", dataset, options)
    for images, _ in islice(loader, 2):
        images.float().sum().item()
    loader.close()


def tile_differences(found: Tensor, expected: Tensor, std: tuple[float, float, float]) -> Tensor:
    """The largest difference of two batches of normalised images, image by image.

    Args:
        found, expected: [B, 3, S, S] of any dtype.
        std: with which they were normalised.

    Returns:
        float32 [B], in grey levels: of each image the tile whose mean absolute difference is the largest. A value that
        is no number makes it infinite.
    """
    scale = 255 * torch.tensor(std, dtype=torch.float32, device=found.device).view(1, 3, 1, 1)
    apart = (found.float() - expected.to(found.device).float()).abs() * scale
    tiles = functional.adaptive_avg_pool2d(apart.mean(1, keepdim=True), TILES)
    largest = tiles.flatten(1).amax(1)
    return torch.where(largest.isfinite(), largest, torch.inf)


def check(dataset: Dataset, options: LoaderOptions) -> float:
    """Decode some batches on the GPU and on the CPU, and compare.

    Colours of CMYK files are left out: what red, green and blue they are is each decoder's own choice.

    Returns:
        the largest difference of a tile, in grey levels.

    Raises:
        DataError: an image differs by more than decoders may; with its number.
    """
    from loaders import engines

    count = CHECKED * options.batch
    chosen = list(islice(_comparable(dataset), count))
    if not chosen:
        raise DataError(f"{dataset.name} holds no file in which a GPU's decoding can be compared; bench data check")
    dataset = dataset.select(list(islice(cycle(chosen), count)), dataset.name)
    batches = []
    # Windows and mirrors only: automatic augmentations draw for themselves, each pipeline its own numbers.
    plain = replace(options, augment="standard")
    for decoder in (options.decoder, "cpu"):
        loader = engines.build("dali", dataset, replace(plain, decoder=decoder))
        try:
            # A copy of each: the loader uses its buffers again.
            batches.append(torch.cat([images.float().cpu() for images, _ in islice(loader, CHECKED)]))
        finally:
            loader.close()
    differences = tile_differences(batches[0], batches[1], options.std)
    worst = int(differences.argmax())
    if differences[worst] > MOST_DIFFERENCE:
        wrong = int((differences > MOST_DIFFERENCE).sum())
        raise DataError(
            f"the GPU decodes {wrong} of {len(differences)} images otherwise than the CPU, number {worst} by "
            f"{differences[worst]:.0f} grey levels: do not use decoder {options.decoder} (hw_decoder_load "
            f"{options.hw_decoder_load:g}) here"
        )
    return float(differences[worst])


def _comparable(dataset: Dataset) -> Iterator[int]:
    """Indices of files that hold grey or colour images."""
    for index, path in enumerate(dataset.files):
        with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(path) as image:
            if image.mode in ("L", "RGB"):
                yield index
