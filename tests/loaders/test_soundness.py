"""What makes a task meaningless is said before anything is trained, in one line each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.datasets import Dataset, open_dataset, open_splits
from loaders.errors import DataError
from loaders.soundness import refuse_one_class, remarks


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def pets(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    seed = 0
    for split in splits:
        for name in ("cat", "dog"):
            for number in range(4):
                noise(root / split / name / f"{number}.png", seed := seed + 1)
    return root


def test_sound_data_gets_no_remark(tmp_path: Path) -> None:
    assert remarks(open_splits(pets(tmp_path))) == []


def plain(root: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "train" / "cat" / "0.png")
    Image.new("L", (8, 8), 200).save(root / "train" / "dog" / "0.png")
    # A photo whose brightest and darkest points are apart is no plain one, whatever its first pixels are.
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / "train" / "dog" / "1.png")


def one_image(root: Path) -> None:
    noise(root / "train" / "owl" / "0.png", 90)
    noise(root / "val" / "owl" / "0.png", 91)
    noise(root / "val" / "owl" / "1.png", 92)


def copied(root: Path) -> None:
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")


def contradicting(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "dog" / "again.png")


def mostly_one(root: Path) -> None:
    for number in range(50):
        noise(root / "train" / "cat" / f"more-{number}.png", 100 + number)


def few_images(root: Path) -> None:
    for number in range(10):
        for split in ("train", "val"):
            noise(root / split / f"class{number}" / "0.png", 200 + 10 * number + (split == "val"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (plain, "2 of 8 images of pets/train are of one colour (such as "),
        (one_image, "1 of 3 classes (such as owl) of pets/train have one image"),
        (copied, "all 8 validation images are training images too"),
        (contradicting, "2 images of pets/train have a copy in another class (such as "),
        (mostly_one, "93% of the images of pets/train are of the class cat"),
        (few_images, "10 of 12 classes (such as class0) of pets/train have one image"),
    ],
)
def test_what_looks_wrong_is_named(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    change(pets(tmp_path / "pets"))
    (line,) = remarks(open_splits(tmp_path / "pets"))
    assert line.startswith(f"warning: {said}")


def test_copies_of_few_images_are_no_data_set(tmp_path: Path) -> None:
    for number in range(6):
        noise(tmp_path / "cat" / f"{number}.png", 1)
        noise(tmp_path / "dog" / f"{number}.png", 2)
    assert f"warning: 10 of the 12 images of {tmp_path.name} are copies of others" in remarks(open_splits(tmp_path))


def test_more_classes_than_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    dataset = Dataset("few", "", "train", (), (0, 1, 2), tuple("abcde"), pixels)
    assert "warning: few has 3 images for 5 classes" in remarks([dataset])
    dataset = Dataset("few", "", "train", (), (0, 1, 1) * 2, tuple("abc"), np.concatenate([pixels, 255 - pixels]))
    assert remarks([dataset]) == ["warning: 1 of 3 classes (such as c) of few have no image"]


def test_arrays_of_one_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    pixels[2] = (1, 2, 3)
    dataset = Dataset("arrays", "", "train", (), (0, 1, 0, 1), ("a", "b"), pixels)
    assert remarks([dataset]) == ["warning: 1 of 4 images of arrays are of one colour"]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("Train/cat", "Train/dog", "Val/cat", "Val/dog"), "are named like splits (Train, Val)"),
        (("test/cat", "val/cat"), "are named like splits (test, val)"),
        (("cifar10/a", "tiny-imagenet-200/b"), "are named like data sets (cifar10, tiny-imagenet-200)"),
        (("cat", "Cat", "dog"), "differ in case or blanks alone (Cat, cat)"),
        (("pets/train/cat", "birds/train/owl"), "hold train, whose images are not told apart"),
        (("pets/cat", "pets/dog", "birds/owl", "birds/tit"), "hold folders (birds: owl, tit), whose images count as"),
    ],
)
def test_a_folder_one_too_high_is_noticed_by_its_names(folders: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for number, folder in enumerate(folders):
        for image in range(3):
            noise(tmp_path / folder / f"{image}.png", 10 * number + image)
    found = [line for line in remarks(open_splits(tmp_path)) if said in line]
    assert len(found) == 1
    assert found[0].startswith("warning: class")


def test_tiny_imagenets_inner_folders_are_no_doubt(tmp_path: Path) -> None:
    for number in range(6):
        noise(tmp_path / "ab"[number % 2] / "images" / f"{number}.png", number)
    assert remarks(open_splits(tmp_path)) == []


def test_one_class_is_refused_with_what_lies_below(tmp_path: Path) -> None:
    inner = pets(tmp_path / "all" / "pets")
    with pytest.raises(DataError) as refused:
        refuse_one_class(open_dataset(tmp_path / "all"))
    assert str(refused.value) == (
        f"all has one class, pets: there is nothing to learn; {inner} holds the folders train, val; is the folder one "
        f"too high? {inner} has 2 classes"
    )
    for folder in (inner / "train" / "cat", inner / "train"):
        shutil.rmtree(inner / "train" / "dog", ignore_errors=True)
        with pytest.raises(DataError, match="cat: there is nothing to learn; name a folder that holds a folder for"):
            refuse_one_class(open_dataset(folder))
    refuse_one_class(open_dataset(pets(tmp_path / "two") / "train"))


def test_left_out_files_are_a_warning_where_they_are_images(tmp_path: Path) -> None:
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / "list.csv").write_text("0.png")
    assert remarks(open_splits(tmp_path / "pets")) == ["note: 1 file left out of pets/train: ending .csv: 1"]
    (tmp_path / "pets" / "train" / "cat" / "0.png").rename(tmp_path / "pets" / "train" / "cat" / "0.picture")
    (line,) = remarks(open_splits(tmp_path / "pets"))
    assert line == "warning: 2 files left out of pets/train: another ending or none: 1; ending .csv: 1"
    (tmp_path / "pets" / "train" / "cat" / "0.picture").rename(tmp_path / "pets" / "train" / "cat" / "0.xyz")
    (line,) = remarks(open_splits(tmp_path / "pets"))
    assert line == "warning: 2 files left out of pets/train: ending .csv: 1; ending .xyz: 1"
