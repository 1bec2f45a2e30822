"""Counts, sizes and channel statistics are those of the images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.contents import examine
from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError


def test_arrays_are_measured_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 6, 3), dtype=np.uint8)
    figures = examine(Dataset("x", "", "train", (), (0, 1) * 25, ("a", "b"), pixels), most=10)
    flat = pixels.reshape(-1, 3) / 255
    assert figures.mean == pytest.approx(flat.mean(0))
    assert figures.std == pytest.approx(flat.std(0))
    assert (figures.images, figures.examined, figures.pixels) == (50, 50, 48)
    assert (figures.width[1], figures.height[1]) == (6, 8)
    assert figures.bytes is None


def test_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 10, 20, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    for i, rows in enumerate(pixels):
        Image.fromarray(rows).save(tmp_path / "a" / f"{i}.png")
    Image.new("L", (20, 10)).save(tmp_path / "a" / "2.jpg")
    (tmp_path / "a" / "3.jpg").write_bytes(b"x")
    figures = examine(open_dataset(tmp_path))
    flat = np.concatenate([pixels.reshape(-1, 3), np.zeros((200, 3))]) / 255
    assert figures.mean == pytest.approx(flat.mean(0))
    assert figures.std == pytest.approx(flat.std(0))
    assert figures.unreadable == 1
    assert figures.formats == {"PNG RGB": 2 / 3, "JPEG L": 1 / 3}
    sizes = [(tmp_path / "a" / name).stat().st_size for name in ("0.png", "1.png", "2.jpg")]
    assert figures.bytes == pytest.approx(np.mean(sizes))
    assert figures.bytes_per_pixel == pytest.approx(np.mean(sizes) / 200)


def test_a_large_set_is_examined_in_part(dataset: Dataset) -> None:
    figures = examine(dataset, most=7)
    assert (figures.images, figures.examined) == (46, 7)


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="none of 1 images"):
        examine(open_dataset(tmp_path))


def test_files_to_be_turned_are_counted_and_deep_ones_measured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.effect_noise((20, 10), 60).convert("RGB")
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.jpg")
    assert examine(open_dataset(tmp_path)).turned == 1
    for path in tmp_path.iterdir():
        path.unlink()
    Image.fromarray(np.full((4, 4), 100 * 256 + 7, np.uint16)).save(tmp_path / "deep.png")
    assert examine(open_dataset(tmp_path)).mean == pytest.approx((100 / 255,) * 3)
