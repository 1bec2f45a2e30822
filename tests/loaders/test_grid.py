"""A sheet of pictures, and the way back from network input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.errors import DataError
from loaders.grid import GAP, denormalized, write_grid


def test_pictures_lie_in_rows(tmp_path: Path) -> None:
    images = np.linspace(0, 1, 10, dtype=np.float32)[:, None, None, None] * np.ones((1, 64, 64, 3), np.float32)
    path = write_grid(images, tmp_path / "sheet.png", columns=4)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (3 * (64 + GAP) + GAP, 4 * (64 + GAP) + GAP, 3)
    assert sheet[GAP + 64 + GAP, GAP].tolist() == [round(255 * 4 / 9)] * 3
    assert sheet[-1, -1].tolist() == [255] * 3


def test_small_pictures_are_enlarged(tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(write_grid(np.zeros((1, 8, 8, 3), np.float32), tmp_path / "sheet.png")))
    assert sheet.shape == (64 + 2 * GAP, 64 + 2 * GAP, 3)


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan")])
def test_values_out_of_range_are_refused(tmp_path: Path, level: float) -> None:
    with pytest.raises(DataError, match="0 to 1 is expected"):
        write_grid(np.full((1, 8, 8, 3), level, np.float32), tmp_path / "sheet.png")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    images = np.zeros((1, 8, 8, 3), np.float32)
    with pytest.raises(DataError, match=r"ends in \.png"):
        write_grid(images, tmp_path / "sheet.jpg")
    with pytest.raises(DataError, match="cannot write"):
        write_grid(images, tmp_path / "nothing" / "sheet.png")
    with pytest.raises(DataError, match="no images"):
        write_grid(images[:0], tmp_path / "sheet.png")


def test_denormalized_undoes_the_normalisation() -> None:
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    pictures = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    images = ((pictures - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    assert np.allclose(denormalized(images, mean, std), pictures, atol=1e-6)
