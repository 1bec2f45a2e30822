"""What a run reads, at which size and with which engine, before anything is trained."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.errors import UsageError
from bench.runs import sources
from bench.runs.folder import DataFolders, named_folders
from loaders import device_images
from loaders.datasets import Dataset, open_splits
from loaders.errors import DataError
from loaders.options import LoaderOptions
from loaders.separable import make
from loaders.splits import parts_of
from models.errors import ModelError
from models.training.distributed import World
from models.training.recipe import Recipe

CLASSES = ("a", "b")


def arrays(images: int = 40, split: str = "train") -> Dataset:
    labels = tuple(i % 2 for i in range(images))
    return Dataset(f"cifar10/{split}", "", split, (), labels, CLASSES, np.zeros((images, 32, 32, 3), np.uint8))


def files(name: str, images: int = 40) -> Dataset:
    return Dataset(name, "", "train", ("x.png",) * images, tuple(i % 2 for i in range(images)), CLASSES)


def resolved(recipe: Recipe, train: Dataset, named: bool = False) -> tuple[Recipe, list[str]]:
    said: list[str] = []
    splits = sources.Splits(train, train, train, True)
    return sources.resolved(replace(recipe, batch=8), splits, named, "cpu", said.append), said


def folder(root: Path, *splits: str) -> Path:
    for split in splits:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{number}.png")
    return root


def test_the_automatic_loader_reads_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.engines, "missing", lambda name, device: None)
    large = Recipe(model="resnet18", size=224)
    assert resolved(large, arrays())[0].loader == "torchvision"
    assert resolved(replace(large, size=32), arrays())[0].loader == "resident"
    assert resolved(large, files("pets/train"))[0].loader == "dali"
    assert resolved(replace(large, augment="cifar_tilt"), files("pets/train"))[0].loader == "torchvision"


def test_a_recipe_may_ask_for_resident_where_the_images_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.engines, "missing", lambda name, device: None)
    train = open_splits(folder(tmp_path / "set", "train", "val"))[0]  # 10 images of 8 x 8 pixels
    recipe = Recipe(model="resnet18", size=224, loader="auto-resident")
    for there, loader, words in (
        (10 * 8 * 8 * 3 * 2, "resident", "loader: resident: the training images take about 0.0 GB of the 0 GB of cpu"),
        (10 * 8 * 8 * 3 * 2 - 1, "dali", "loader: dali, not resident: the training images would take about 0.0 GB"),
    ):
        monkeypatch.setattr(sources, "all_bytes", lambda device, there=there: there)
        decided, said = resolved(recipe, train)
        assert decided.loader == loader
        assert any(line.startswith(words) for line in said)
        assert resolved(replace(recipe, loader="pil"), train)[0].loader == "pil"


@pytest.mark.parametrize(
    ("name", "size", "loader", "words"),
    [
        ("x.bmp", 32, "resident", "Pillow decodes 40 BMP files: loader resident has no decoder of its own for these"),
        ("x.bmp", 224, "torchvision", "Pillow decodes 40 BMP files: loader torchvision"),
        ("x.png", 224, "dali", None),
        ("x.GIF", 224, "torchvision", "Pillow decodes 40 GIF files: loader torchvision"),
        ("x.png", 32, "resident", None),
    ],
)
def test_formats_that_a_loader_hands_to_pillow_are_named(
    name: str, size: int, loader: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.engines, "missing", lambda name, device: None)
    train = replace(files("pets/train"), files=(name,) * 40)
    recipe, said = resolved(Recipe(model="resnet18", size=size), train)
    assert recipe.loader == loader
    assert [text for text in said if "Pillow" in text] == [text for text in said if words and text.startswith(words)]
    assert (words is not None) == any("Pillow" in text for text in said)


def test_small_images_are_trained_at_their_own_size() -> None:
    for train, size in ((arrays(), 32), (files("tiny-imagenet/train"), 64)):
        recipe, said = resolved(Recipe(model="resnet18"), train)
        assert recipe.size == size
        assert f"size: {size} px, that of the images of {train.name}" in said[0]
        assert resolved(Recipe(model="resnet18"), train, named=True)[0].size == 224
        assert resolved(Recipe(model="resnet18", size=48), train)[0].size == 48
    recipe, said = resolved(Recipe(model="vit_b_16"), arrays())
    assert recipe.size == 224
    assert "vit_b_16 does not take the 32 px" in said[0]
    assert resolved(Recipe(model="resnet18"), files("pets/train"))[0].size == 224


@pytest.mark.parametrize("changes", [{"size": 5}, {"sizes": ((1, 5), (2, 32))}])
def test_a_size_that_the_network_does_not_take_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"lenet takes no image of 5 x 5 .* its usual size is 32"):
        resolved(Recipe(model="lenet").replaced(changes), arrays())


def test_a_batch_is_no_larger_than_the_training_images() -> None:
    with pytest.raises(UsageError, match=r"batch 8 is more than the 6 training images of cifar10/train"):
        resolved(Recipe(model="lenet"), arrays(6))
    with pytest.raises(UsageError, match=r"batch 8 accumulated 6 times is more than the 40 .* give --batch 6"):
        resolved(Recipe(model="lenet", accumulate=6), arrays())


def test_held_out_training_images_are_no_independent_test() -> None:
    said: list[str] = []
    splits = sources.split([arrays()], Recipe(model="lenet"), said.append)
    assert said[0].startswith("warning: cifar10/train has no validation or test images: 20% of its training images")
    assert (splits.independent, splits.evaluated) == (False, "held-out")
    assert len(said) == 1
    splits = sources.split([arrays(), arrays(8, "val")], Recipe(model="lenet"), said.append)
    assert (splits.independent, splits.evaluated) == (True, "test")
    splits = sources.split([arrays(), arrays(8, "val")], Recipe(model="lenet", holdout=0.5), said.append)
    assert (splits.independent, splits.evaluated) == (True, "val")


def test_classes_of_which_nothing_is_held_out_are_counted() -> None:
    few = replace(arrays(), classes=tuple(f"class {number}" for number in range(13)))
    said: list[str] = []
    sources.split([few], Recipe(model="lenet"), said.append)
    assert re.fullmatch(
        r"warning: \d+ of 13 classes \(such as class \d+\) have no image among the 8 held out: they are never tested",
        said[-1],
    )
    sources.split([few, arrays(8, "val")], Recipe(model="lenet", holdout=0.2), said.append)
    assert said[-1].endswith("held out: they are never validated")


def test_cifar_without_its_test_batch_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "c", "cifar10", 60, 0, None)
    next((tmp_path / "c").rglob("test_batch")).unlink()
    with pytest.raises(DataError, match="lacks test_batch; unpack the cifar10 archive again"):
        open_splits(tmp_path / "c")


def test_a_test_falls_back_to_the_validation_images(tmp_path: Path) -> None:
    said: list[str] = []
    both = folder(tmp_path / "both", "train", "val")
    assert sources.open_split(both, None, said.append).split == "val"
    assert "has no test images: its validation images are used" in said[0]
    with pytest.raises(UsageError, match="it has --split train, --split val"):
        sources.open_split(both, "test", said.append)
    with pytest.raises(UsageError, match="it has --split train"):
        sources.open_split(folder(tmp_path / "one", "train"), None, said.append)
    assert len(said) == 1


def test_a_data_sets_name_alone_decides_no_size(tmp_path: Path) -> None:
    train = open_splits(folder(tmp_path / "tinyimagenet", "train", "val"))[0]
    assert resolved(Recipe(model="resnet18"), train)[0].size == 224


def test_one_class_is_refused_with_what_lies_below(tmp_path: Path) -> None:
    folder(tmp_path / "pets", "train", "val")
    for data in (DataFolders(str(tmp_path)), DataFolders("", (str(tmp_path),))):
        with pytest.raises(DataError, match="one class, pets: .* holds the folders train, val; .* has 2 classes"):
            sources.open_folders(data)


def test_a_part_shown_is_the_part_trained_on(tmp_path: Path) -> None:
    root = folder(tmp_path / "one", "train")
    used = sources.split(open_splits(root), Recipe(model="lenet"), lambda text: None)
    shown = parts_of(root)
    assert [part.files for part in shown] == [used.train.files, used.test.files]


def test_a_channel_that_never_varies_can_be_trained_on(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(6):
            noise = Image.effect_noise((8, 8), 60 + number)
            # 37 / 255 is no number that a float holds exactly.
            constant = Image.new("L", (8, 8), 37)
            Image.merge("RGB", (noise, constant, constant)).save(tmp_path / "train" / name / f"{number}.png")
    said: list[str] = []
    mean, std = sources.statistics(Recipe(model="lenet"), open_splits(tmp_path)[0], said.append)
    assert std[0] > 0.1
    assert std[1:] == (1.0, 1.0)
    assert mean[1] == pytest.approx(37 / 255)
    assert said == [
        "note: green and blue never vary in the training images: nothing can be learnt from that, "
        "and 1 is taken for the deviation"
    ]


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "cats,dogs", "x,y,z", "c"):
        folder(tmp_path / name, "train")
    assert named_folders("cats,dogs") == ["cats,dogs"]
    assert named_folders("a,cats,dogs,b") == ["a", "cats,dogs", "b"]
    assert named_folders("a,b") == ["a", "b"]
    assert named_folders("x,y,z,c,nowhere,") == ["x,y,z", "c", "nowhere"]
    folders = DataFolders.from_options(None, ["cats,dogs/train"], "x,y,z/train,c/train")
    train, val = sources.open_folders(folders)
    assert (len(train), len(val)) == (10, 20)
    assert folders.train == (str(tmp_path / "cats,dogs" / "train"),)
    # As a study hands them on.
    words = folders.options()
    assert DataFolders.from_options(None, words[1:2], words[3]) == folders


def test_images_kept_on_a_device_are_decoded_once_for_all_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_splits(folder(tmp_path / "set", "train", "val"))
    recipe = Recipe(model="resnet18", size=80, loader="resident", batch=4, stored_size=70)
    seen = sources.Splits(splits[0], splits[1], splits[1], True)
    calls: list[str] = []
    decode = device_images.decode
    monkeypatch.setattr(device_images, "decode", lambda path, exif: calls.append(path) or decode(path, exif))
    feed = sources.Feed(recipe, seen, LoaderOptions(batch=4, size=80, train=False, threads=1), World())
    assert sorted(calls) == sorted((*splits[0].files, *splits[1].files))
    assert {batch.shape[-1] for size in (66, 64, 80) for batch, _ in feed.train(size)} == {66, 64, 80}
    assert [len(labels) for _, labels in feed.validation()] == [4, 4, 2]
    assert [len(labels) for _, labels in feed.all_of(feed.splits.train.select([3, 5]))] == [2]
    assert len(calls) == 20
    feed.close()
