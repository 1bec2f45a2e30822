"""Generates the default data set: JPEGs that cost as much to read as ImageNet's but show nobody.

Three things decide what a JPEG costs: its pixels, its entropy-coded bits, and whether its colour planes are stored at
full size. All three are drawn here as they are distributed in 900 ImageNet training files (one a class): long side
(70 % are 500 pixels), aspect ratio, quality (two thirds are saved near quality 96 with full colour planes, the rest at
70 to 92 with halved ones), and bits a pixel within each group. 2 % are grayscale; one in 500 carries an EXIF
rotation and one in 1,000 is CMYK, so that every engine meets them.

The pictures themselves are 1/f noise, the spectrum of photographs (Field 1987, "Relations between the statistics of
natural images and the response properties of cortical cells"), with smooth regions and sharp region borders. White
noise of the same size would spend its bits on other coefficients and decode at another speed. Each class has a colour
and a grain of its own, so that a network can learn them.

Measured with DALI on two cores, both sets taking turns: the generated files are decoded at 1.02 and loaded at 0.92
times the rate of those 900 real ones (results/published/amd-epyc-zen4-2-cores/sample-against-imagenet.json).
`bench data info GENERATED --against REAL` measures it again.
"""

import contextlib
import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.cache import cache_folder, updating
from loaders.datasets import GENERATED
from loaders.errors import DataError
from loaders.threads import in_threads

VERSION = 1  # of the pictures: a cached set made by another version is made again
CLASSES = 10

# Quantiles of the longer side, pixels.
_LONG = (
    (0.0, 0.01, 0.05, 0.10, 0.145, 0.85, 0.90, 0.95, 0.99, 0.998, 1.0),
    (75, 150, 250, 359, 500, 500, 590, 730, 1020, 1400, 2400),
)
# Long side over short side: share below, ratio.
_ASPECT = ((0.05, 1.0), (0.10, 1.18), (0.16, 1.25), (0.55, 4 / 3), (0.60, 1.40), (0.92, 1.5), (0.97, 1.62), (1.0, 1.9))
# Bits a pixel: quantiles of the files saved with full and with halved colour planes (bytes a pixel times eight).
_BITS_AT = (0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
_BITS_FULL = (1.6, 2.9, 4.3, 5.6, 6.9, 9.0, 11.0)
_BITS_HALF = (0.5, 0.9, 1.4, 2.0, 2.75, 4.2, 6.0)
_FULL_SHARE = 0.70
_QUALITIES_HALF = (70, 75, 75, 75, 80, 80, 85, 85, 90, 92)

FRESH = 5000  # pictures that are drawn; more images are these again, cropped differently
_MOST_CUT = 16  # pixels at a border

_FIELD = 1024  # pixels across a noise field; larger pictures are enlarged, as large photographs are softer
_FIELDS = 6


@dataclass(frozen=True, slots=True)
class _Plan:
    """The properties of one file."""

    number: int
    label: int
    width: int
    height: int
    quality: int
    full_colour: bool
    bits: float
    mode: str
    rotated: bool


def make(dest: str | Path, images: int, seed: int = 0, classes: int = CLASSES, threads: int | None = None) -> Path:
    """Write `images` JPEGs into `classes` class folders below `dest`.

    The same arguments give the same files. `dest` appears complete or not at all. Beyond FRESH images a picture of the
    class is used again without up to 16 pixels at each border: another file of nearly the same cost that does not have
    to be drawn.

    Args:
        dest: a folder that does not exist yet or is empty.
        images: number of files, at least 1.
        seed: of everything random.
        classes: number of class folders; not more than images.
        threads: by default one for each core this process may use.

    Returns:
        `dest`.

    Raises:
        DataError: `dest` holds something, cannot be written, or the disk is full.
    """
    dest = Path(dest)
    if images < 1 or classes < 1:
        raise DataError(f"cannot make {images} images in {classes} classes; both must be at least 1")
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more")
    classes = min(classes, images)
    fresh = images if images <= FRESH else max(1, FRESH // classes) * classes
    plans = [_plan(i, i % classes, seed) for i in range(fresh)]
    with new_folder(dest) as folder:
        for label in range(classes):
            (folder / _class_name(label)).mkdir()
        fields = _noise_fields(seed)
        in_threads(lambda plan: _write(folder, plan, fields, seed), plans, threads)
        in_threads(lambda i: _write_again(folder, i, plans[i % fresh], seed), range(fresh, images), threads)
    return dest


@contextlib.contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """A folder to be filled that becomes `dest`, marked as generated, when the block succeeds; removed when it fails.

    Raises:
        DataError: `dest` holds something, cannot be written, or the disk is full.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise DataError(f"{dest} {'exists and is not empty' if dest.is_dir() else 'is a file'}; name a new folder")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    except OSError as error:
        raise DataError(f"cannot write below {dest.parent}: {error.strerror}") from error
    try:
        yield folder
        (folder / GENERATED).write_text("These images were made by bench data make.\n", encoding="utf-8")
        folder.chmod(0o755)
        folder.rename(dest)
    except OSError as error:
        raise DataError(f"cannot write {dest}: {error.strerror}; nothing was left behind") from error
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def default_sample(images: int, begin: Callable[[], object] = lambda: None) -> Path:
    """The generated set of `images` files with seed 0, made on first use and kept in the cache folder.

    Args:
        begin: called before the set is made.

    Raises:
        DataError: the cache cannot be written.
    """
    dest = cache_folder() / f"sample-{VERSION}-{images}"
    if dest.is_dir():
        return dest
    with updating(dest) as alone:
        if dest.is_dir():
            # Another process made it while this one waited.
            return dest
        for left in dest.parent.glob(f".{dest.name}.*") if alone else ():
            # Of a process that was killed while it made them.
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        begin()
        try:
            return make(dest, images)
        except DataError:
            # Without locks another process may have finished the same set in the meantime.
            if dest.is_dir() and any(dest.iterdir()):
                return dest
            raise


def _class_name(label: int) -> str:
    return f"class_{label:04d}"


def _spread(number: int, dimension: int) -> float:
    """Number `number` of an evenly spread sequence in 0..1 (additive recurrence on the square roots of primes).

    This gives even a small set its share of large files: with independent draws the mean cost of its files would vary
    much more.
    """
    step = math.sqrt((2, 3, 5, 7, 11, 13)[dimension]) % 1
    return (0.5 + (number + 1) * step) % 1


def _plan(number: int, label: int, seed: int) -> _Plan:
    # Each seed starts at another place in the same sequence.
    at = number + 7919 * seed
    long = float(np.interp(_spread(at, 0), *_LONG))
    share = _spread(at, 1)
    aspect = next(ratio for below, ratio in _ASPECT if share <= below)
    short = max(56, round(long / aspect))
    sides = (round(long), short) if _spread(at, 2) < 0.72 else (short, round(long))
    full = _spread(at, 3) < _FULL_SHARE
    quantile = _spread(at, 4)
    bits = float(np.interp(quantile, _BITS_AT, _BITS_FULL if full else _BITS_HALF))
    # Large photographs carry fewer bits a pixel.
    bits *= min(1.0, 500 / long) ** 0.25
    quality = 96 if full else _QUALITIES_HALF[int(_spread(at, 5) * len(_QUALITIES_HALF))]
    mode = "L" if number % 45 == 44 else "CMYK" if number % 1000 == 499 else "RGB"
    return _Plan(number, label, *sides, quality, full, bits, mode, rotated=number % 500 == 249)


def _noise_fields(seed: int) -> list[NDArray[np.float32]]:
    """Periodic fields of 1/f noise, mean 0, deviation 1, [_FIELD, _FIELD]."""
    rows = np.fft.fftfreq(_FIELD)[:, None]
    columns = np.fft.rfftfreq(_FIELD)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    fields = []
    for number in range(_FIELDS):
        generator = np.random.Generator(np.random.Philox(key=[seed, number]))
        phases = np.exp(2j * np.pi * generator.random(frequency.shape))
        field = np.fft.irfft2(phases / frequency, s=(_FIELD, _FIELD))
        fields.append((field / field.std()).astype(np.float32))
    return fields


def _patch(field: NDArray[np.float32], height: int, width: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """A randomly placed piece of a periodic field, [height, width]."""
    top, left = generator.integers(0, _FIELD, 2)
    rows = np.arange(top, top + height) % _FIELD
    columns = np.arange(left, left + width) % _FIELD
    patch: NDArray[np.float32] = field[rows[:, None], columns]
    return patch


def _coarse(
    field: NDArray[np.float32], step: int, height: int, width: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """A smooth field: a small piece of noise enlarged `step` times, [height, width]."""
    small = _patch(field, height // step + 3, width // step + 3, generator)
    grown = Image.fromarray(small).resize((small.shape[1] * step, small.shape[0] * step), Image.Resampling.BICUBIC)
    return np.asarray(grown, dtype=np.float32)[step : step + height, step : step + width]


def _parts(
    plan: _Plan, fields: list[NDArray[np.float32]], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours without detail, [h, w, 3], and detail, of which more costs more bits, [h, w, 1]."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 1000 + plan.number]))
    height, width = plan.height, plan.width
    which = generator.permutation(_FIELDS)
    light = _coarse(fields[which[0]], 24, height, width, generator)
    tint = _coarse(fields[which[1]], 32, height, width, generator)
    # Regions: where the field is above a level, detail is strong; elsewhere the picture is smooth, like sky.
    regions = _coarse(fields[which[2]], 8, height, width, generator)
    edges = np.where(regions > 0.3, np.float32(0.9), np.float32(-0.5)) + np.where(light > 0.8, np.float32(0.5), 0)
    grain = _patch(fields[which[3]], height, width, generator)
    if plan.label % 2:
        grain = grain - np.roll(grain, 1 + plan.label // 2 % 3, axis=plan.label // 2 % 2) * np.float32(0.5)
    strength = np.clip(regions * np.float32(0.5) + np.float32(0.6), 0.12, 1.2)
    detail = (grain * strength + edges * np.float32(0.6))[..., None]
    angle = 2 * math.pi * plan.label / CLASSES
    hue = np.array([math.cos(angle), math.cos(angle - 2.1), math.cos(angle + 2.1)], dtype=np.float32)
    base = 118 + 34 * light[..., None] + (22 + 16 * tint[..., None]) * hue
    return base.astype(np.float32), detail.astype(np.float32)


def _compressed(plan: _Plan, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    settings: dict[str, object] = {"quality": plan.quality}
    if plan.mode == "RGB":
        settings["subsampling"] = 0 if plan.full_colour else 2
    if plan.rotated:
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: turn clockwise to view
        settings["exif"] = exif
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def _write(folder: Path, plan: _Plan, fields: list[NDArray[np.float32]], seed: int) -> None:
    """Render, and turn the detail up or down until the file has the bits it should have."""
    base, detail = _parts(plan, fields, seed)
    wanted = plan.bits * plan.width * plan.height / 8
    strength = 6.0 * plan.bits if plan.full_colour else 14.0 * plan.bits
    tried: list[tuple[float, float]] = []
    content = b""
    for _ in range(4):
        pixels = np.clip(base + np.float32(strength) * detail, 0, 255).astype(np.uint8)
        content = _compressed(plan, Image.fromarray(pixels).convert(plan.mode))
        if abs(len(content) / wanted - 1) < 0.06:
            break
        tried.append((math.log(strength), math.log(len(content) / wanted)))
        slope = 0.5
        if len(tried) > 1 and abs(tried[-1][0] - tried[-2][0]) > 1e-3:
            slope = max(0.2, (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]))
        strength = math.exp(min(max(tried[-1][0] - tried[-1][1] / slope, math.log(0.3)), math.log(160)))
    _path(folder, plan.label, plan.number).write_bytes(content)


def _path(folder: Path, label: int, number: int) -> Path:
    return folder / _class_name(label) / f"{number:07d}.JPEG"


def _write_again(folder: Path, number: int, plan: _Plan, seed: int) -> None:
    """Image `number` from the picture that `plan` describes."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 1000 + number]))
    with Image.open(_path(folder, plan.label, plan.number)) as image:
        most = min(_MOST_CUT, min(image.size) // 8)
        left, top, right, bottom = generator.integers(0, most + 1, 4).tolist()
        cropped = image.crop((left, top, image.width - right, image.height - bottom))
    _path(folder, plan.label, number).write_bytes(_compressed(plan, cropped))
