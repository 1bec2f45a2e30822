"""What decoding on a GPU needs to know and to prove: its share of the JPEG engine, image sizes, and right pixels.

The share of images that the JPEG engine takes (the rest is decoded by CUDA cores) has no best value for all GPUs, image
sizes and versions of DALI: it is measured once (bench.decoder_load) and remembered for a GPU and a version.

Batched decoding on the engine of Hopper GPUs has given wrong pixels without an error (meta-pytorch/torchcodec issue
1634), so that what it decodes is compared with what the CPU decodes, in every run.
"""

import contextlib
import json
import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
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
    try:
        found = json.loads(remembered_loads().read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None


def remember(key: str, load: float) -> None:
    """Keep a measured share beside those of other GPUs. Raises DataError where it cannot be written."""
    path = remembered_loads()
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        known = read if isinstance(read, dict) else {}
    known[key] = load
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


def on_gpu(options: LoaderOptions, dataset: Dataset, load: float | None) -> LoaderOptions:
    """DALI's options for decoding on the GPU: its buffers allocated ahead for the set's largest image."""
    width, height = largest_image(dataset)
    return replace(
        options,
        decoder="mixed",
        hw_decoder_load=DEFAULT_LOAD if load is None else load,
        preallocate_width=width,
        preallocate_height=height,
    )


def decoding_there(engine: str, options: LoaderOptions, dataset: Dataset) -> LoaderOptions:
    """The options with which an engine reads a set fastest: DALI on a GPU decodes there, after a comparison.

    Raises:
        DataError: the GPU decodes otherwise than the CPU.
    """
    if engine != "dali" or not options.device.startswith("cuda"):
        return options
    options = on_gpu(options, dataset, remembered(key_of(torch.device(options.device))))
    # Before anything is timed or trained: fast and wrong is not fast.
    check(dataset, options)
    return options


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
    """Decode the first batch of an epoch on the GPU and on the CPU, and compare.

    Returns:
        the largest difference of a tile, in grey levels.

    Raises:
        DataError: an image differs by more than decoders may; with its number.
    """
    from loaders import engines

    batches = []
    # Windows and mirrors only: automatic augmentations draw for themselves, each pipeline its own numbers.
    plain = replace(options, augment="standard", prefetch=1)
    for decoder in (options.decoder, "cpu"):
        loader = engines.build("dali", dataset, replace(plain, decoder=decoder))
        try:
            batches.append(next(iter(loader))[0].float().cpu())
        finally:
            loader.close()
    differences = tile_differences(batches[0], batches[1], options.std)
    worst = int(differences.argmax())
    if differences[worst] > MOST_DIFFERENCE:
        count = int((differences > MOST_DIFFERENCE).sum())
        raise DataError(
            f"the GPU decodes {count} of {len(differences)} images otherwise than the CPU, number {worst} of the first "
            f"batch by {differences[worst]:.0f} grey levels: do not use decoder mixed (hw_decoder_load "
            f"{options.hw_decoder_load:g}) here"
        )
    return float(differences[worst])
