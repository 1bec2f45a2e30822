"""Many small images in one PNG."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.errors import DataError

GAP = 2  # pixels between two images
TILE = 64  # smaller images are enlarged by a whole factor to about this many pixels


def write_grid(images: NDArray[np.float32], path: str | Path, columns: int = 8) -> Path:
    """Write images row by row.

    Args:
        images: [n, height, width, 3] in 0..1.
        path: a file ending in .png; its folder exists.
        columns: images in a row.

    Raises:
        DataError: there are no images, values outside 0..1, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"cannot write images to {path}: name a file that ends in .png")
    if len(images) == 0:
        raise DataError("there are no images to write")
    if not (images.min() >= 0 and images.max() <= 1):
        raise DataError(f"images range from {images.min():.3g} to {images.max():.3g}; 0 to 1 is expected")
    times = max(1, TILE // images.shape[1])
    tiles = np.rint(images * 255).astype(np.uint8).repeat(times, 1).repeat(times, 2)
    count, tall, wide, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (tall + GAP) + GAP, columns * (wide + GAP) + GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = GAP + number // columns * (tall + GAP), GAP + number % columns * (wide + GAP)
        sheet[top : top + tall, left : left + wide] = tile
    draft = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        try:
            Image.fromarray(sheet).save(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def denormalized(
    images: NDArray[np.float32], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Network input [n, 3, h, w] back to images [n, h, w, 3] in 0..1."""
    levels = images.transpose(0, 2, 3, 1) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    # Rounding can leave the range by a few millionths.
    return np.clip(levels, np.float32(0), np.float32(1))
