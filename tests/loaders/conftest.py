"""Small generated data shared by the tests of all engines."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import packed, sample
from loaders.datasets import Dataset, open_dataset


@pytest.fixture(scope="session", autouse=True)
def _packed_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the engine packed keeps of these images goes to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(packed, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Images this small gain nothing from a team of threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(number: int, width: int, height: int) -> Image.Image:
    """Smooth colours with noise: neither flat nor white."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 small JPEGs of many sizes (one of them grayscale) in 5 classes."""
    folder = tmp_path_factory.mktemp("data") / "small"
    for number in range(46):
        path = folder / f"class_{number % 5}" / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(number, 70 + number * 17 % 61, 60 + number * 23 % 53)
        image.convert("L" if number == 44 else "RGB").save(path, quality=92)
    return folder


@pytest.fixture(scope="session")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder)


@pytest.fixture(scope="session")
def costly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 images as `bench data make` writes them, one of them grayscale, in 5 classes."""
    return sample.make(tmp_path_factory.mktemp("data") / "sample", images=46, classes=5, threads=2)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 JPEGs of 32 pixels in 4 classes."""
    folder = tmp_path_factory.mktemp("data")
    paths = [str(folder / f"{number:02d}.jpg") for number in range(24)]
    for number, path in enumerate(paths):
        picture(number, 32, 32).save(path, quality=95)
    return Dataset("jpeg", str(folder), "all", tuple(paths), tuple(i % 4 for i in range(24)), tuple("abcd"))


@pytest.fixture(scope="session")
def arrays() -> Dataset:
    """24 images of 32 pixels in 4 classes, as arrays."""
    pixels = np.stack([np.asarray(picture(number, 32, 32)) for number in range(24)])
    return Dataset("cifar10/train", "", "train", (), tuple(i % 4 for i in range(24)), tuple("abcd"), pixels)
