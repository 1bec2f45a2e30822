"""Parts that share images are found, whatever the layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from loaders import separable, splits
from loaders.datasets import Dataset
from loaders.errors import DataError


def found(parts: list[Dataset]) -> list[int]:
    return [check.found for check in splits.check(parts)]


@pytest.mark.parametrize("like", ["cifar10", "folder", "tinyimagenet"])
@pytest.mark.parametrize("share", [None, 0.2, 10])
def test_parts_of_generated_sets_are_apart(like: str, share: float | None, tmp_path: Path) -> None:
    separable.make(tmp_path / "set", like, 60, classes=None if like == "cifar10" else 5)
    parts = splits.parts_of(tmp_path / "set", share)
    assert len(parts) == (2 if share is None else 3)
    assert found(parts) == [0, 0, 0]


def test_a_folder_without_validation_images_is_parted(folder: Path) -> None:
    train, val = splits.parts_of(folder)
    assert (len(train), len(val)) == (37, 9)
    assert found([train, val]) == [0, 0, 0]
    with pytest.raises(DataError, match="has only one part"):
        splits.check(splits.parts_of(folder, 0.0))


def test_a_copied_file_and_a_listed_one_are_found(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "folder", 60, classes=5)
    train, val = splits.parts_of(tmp_path / "set")
    shutil.copy(train.files[3], val.files[0])
    listed, copied, evaluated = splits.check([train, val])
    assert (listed.found, copied.found, evaluated.found) == (0, 1, 0)
    assert copied.examples == (f"{train.files[3]} = {val.files[0]}",)
    both = Dataset("both", "", "val", (*val.files, train.files[7]), (*val.labels, 0), val.classes)
    assert found([train, both]) == [1, 2, 0]


def test_a_copied_array_is_found() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    whole = Dataset("arrays", "", "train", (), (0,) * 10, ("a",), pixels)
    assert found([whole.select(range(6)), whole.select(range(6, 10))]) == [0, 0, 0]
    assert found([whole.select(range(6)), whole.select(range(4, 10))])[1] == 2
