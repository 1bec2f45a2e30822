"""Small generated data shared by the tests of all engines."""

from pathlib import Path

import pytest

from loaders import sample
from loaders.datasets import Dataset, open_dataset


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """46 generated images (one of them grayscale) in 5 classes."""
    return sample.make(tmp_path_factory.mktemp("data") / "sample", images=46, classes=5, threads=2)


@pytest.fixture(scope="session")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder)
