"""Generated data sets open like the real ones, and their classes can be distinguished."""

from pathlib import Path

import numpy as np
import pytest

from loaders import separable
from loaders.datasets import GENERATED, holdout, open_dataset, open_parts, open_splits
from loaders.errors import DataError


@pytest.mark.parametrize("like", separable.FORMS)
def test_every_layout_opens_with_its_classes(like: str, tmp_path: Path) -> None:
    form = separable.FORMS[like]
    classes = None if like.startswith("cifar") else 7
    images = 2 * form.classes + 10 if classes is None else 30
    counts = separable.make(tmp_path / "set", like, images, classes=classes)
    train, val = open_splits(tmp_path / "set")
    assert (len(train), len(val)) == counts
    assert sum(counts) == images
    assert len(train.classes) == (classes or form.classes)
    assert set(train.labels) == set(val.labels) == set(range(len(train.classes)))
    # It is known for what it is, whatever its layout or its folder is called; ids of workloads keep its name.
    assert (train.generated, train.title, train.left_out) == (True, f"generated {train.name}", ())
    assert (val.generated, val.whole_title) == (True, train.whole_title)
    if like == "imagenet100":
        assert len({Path(path).parts[-3] for path in train.files}) == 4, "spread over four folders"
    with pytest.raises(DataError, match="not empty"):
        separable.make(tmp_path / "set", like, images, classes=classes)


def test_parts_of_a_generated_set_are_generated_and_a_set_without_the_mark_is_not(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "folder", 24, classes=3)
    folders = [str(tmp_path / "set" / split) for split in ("train", "val")]
    assert [part.generated for part in open_parts(folders[:1], folders[1:])] == [True, True]
    first, second = holdout(open_dataset(tmp_path / "set"), 0.2)
    assert first.generated
    assert second.generated
    (tmp_path / "set" / GENERATED).unlink()
    assert open_dataset(tmp_path / "set").title == "set/train"


def test_the_same_seed_gives_the_same_pictures_and_parts_are_drawn_apart() -> None:
    labels = np.arange(300) % 10
    first = separable.pictures(labels, 32, 32)
    np.testing.assert_array_equal(first, separable.pictures(labels, 32, 32))
    assert not (first == separable.pictures(labels, 32, 32, seed=1)).all((1, 2, 3)).any()
    assert not (first == separable.pictures(labels, 32, 32, part=separable.TEST)).all((1, 2, 3)).any()


def features(pixels: np.ndarray) -> np.ndarray:
    """Colour and spectrum: what a small network would look at, without its training."""
    values = pixels.astype(np.float32) / 255
    gray = values.mean(-1)
    spectrum = np.abs(np.fft.rfft2(gray - gray.mean((1, 2), keepdims=True)))[:, :, :12]
    # A direction and its mirror image are one class.
    folded = (spectrum + np.roll(spectrum[:, ::-1], 1, axis=1))[:, :12]
    colour = values.mean((1, 2))
    hue = colour - colour.mean(1, keepdims=True)
    parts = [folded.reshape(len(pixels), -1), hue / np.linalg.norm(hue, axis=1, keepdims=True)]
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], 1)


@pytest.mark.parametrize("classes", [10, 100])
def test_the_nearest_class_mean_is_the_right_one(classes: int) -> None:
    labels, asked = np.arange(10 * classes) % classes, np.arange(3 * classes) % classes
    known = features(separable.pictures(labels, 32, 32))
    seen = features(separable.pictures(asked, 32, 32, part=separable.TEST))
    means = np.stack([known[labels == label].mean(0) for label in range(classes)])
    guessed = ((seen[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guessed == asked).mean() > 0.9


def test_impossible_sets_are_refused(tmp_path: Path) -> None:
    for arguments, message in (
        (("mnist", 10), "unknown layout 'mnist'; known: cifar10"),
        (("cifar10", 15), "too few for 10 classes; use at least 20"),
        (("cifar10", 100, 0, 5), "has 10 classes, not 5"),
        (("folder", 5000, 0, 2000), "too many to be distinguishable; the most is 1080"),
        (("folder", 100, -1), "seed is -1"),
    ):
        with pytest.raises(DataError, match=message):
            separable.make(tmp_path / "set", *arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()


def test_cifar_batches_have_the_fields_of_the_real_ones(tmp_path: Path) -> None:
    from loaders.datasets import read_batch

    separable.make(tmp_path / "set", "cifar10", 120)
    batch = read_batch(tmp_path / "set" / "data_batch_2")
    assert set(batch) == {"batch_label", "data", "filenames", "labels"}
    assert batch["data"].shape == (20, 3072)
    assert open_dataset(tmp_path / "set").classes == separable.CIFAR10_CLASSES
