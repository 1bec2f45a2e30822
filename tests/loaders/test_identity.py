"""An image is the same wherever it lies, and another as soon as its bytes are others."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loaders import identity
from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError
from loaders.identity import Identity, from_bytes, identify, shared, to_bytes


def noise(path: Path, seed: int, size: int = 500) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for number in range(12):
        noise(tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number:02d}.png", number, 500 + 37 * number)
    return tmp_path / "pets"


def ids(path: Path) -> set[int]:
    return set(identify(open_dataset(path)).ids.tolist())


def test_the_folder_the_names_and_the_order_play_no_part(pets: Path, tmp_path: Path) -> None:
    shutil.copytree(pets, tmp_path / "copy")
    for number, path in enumerate(sorted((tmp_path / "copy").rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed-{number}.png"))
    (tmp_path / "link").symlink_to(pets)
    assert ids(pets) == ids(tmp_path / "copy") == ids(tmp_path / "link")
    assert len(ids(pets)) == 12


@pytest.mark.parametrize("size", [10, identity.WHOLE, identity.WHOLE + 1, 1_000_000])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_other_bytes_are_another_image(tmp_path: Path, size: int, place: float) -> None:
    path = noise(tmp_path / "a" / "1.png", 0, size)
    before = ids(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(place * size) if place >= 0 else -1] ^= 1
    path.write_bytes(content)
    assert ids(tmp_path).isdisjoint(before)
    noise(path, 0, size)
    assert ids(tmp_path) == before


def test_what_cannot_be_read_is_left_out(pets: Path) -> None:
    dataset = open_dataset(pets)
    Path(dataset.files[3]).write_bytes(b"")
    os.unlink(dataset.files[5])
    images = identify(dataset)
    assert (images.images, len(images)) == (12, 10)
    assert images.positions.tolist() == [0, 1, 2, 4, *range(6, 12)]
    assert images.labels.tolist() == [dataset.labels[i] for i in images.positions]


def test_of_many_images_the_same_part_is_looked_at_everywhere(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(400):
        noise(pets / "cat" / f"more-{number}.png", number, 1000 + number)
    whole = identify(open_dataset(pets))
    monkeypatch.setattr(identity, "MOST", 100)
    part = identify(open_dataset(pets))
    assert part.every == 5
    assert 40 < len(part) < 170
    assert part.among(whole.ids).all()
    assert part.counted(len(part)) == "about 412"
    shutil.copytree(pets / "cat", tmp_path / "half" / "cat")
    half = identify(open_dataset(tmp_path / "half"), part.every)
    assert half.among(part.ids).all()
    # Files of one size would all be chosen, or none.
    for number in range(400):
        noise(tmp_path / "even" / "cat" / f"{number}.bmp", number)
    assert len(identify(open_dataset(tmp_path / "even"))) == 400


def test_ids_are_remembered_until_a_file_changes(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "REMEMBERED", 1)
    read: list[str] = []
    contents = identity._contents
    monkeypatch.setattr(identity, "_contents", lambda files: read.extend(files) or contents(files))
    dataset = open_dataset(pets)
    first = identify(dataset)
    assert sorted(read) == sorted(dataset.files)
    read.clear()
    assert (identify(dataset).ids == first.ids).all()
    assert read == []
    changed = dataset.files[7]
    noise(Path(changed), 99, os.path.getsize(changed))
    os.utime(changed, (1, 1))
    again = identify(dataset)
    assert read == [changed]
    assert (again.ids != first.ids).nonzero()[0].tolist() == [7]
    for path in (tmp_path / "cache").rglob("*.npy"):
        path.write_bytes(b"damaged")
    assert (identify(dataset).ids == again.ids).all()


def arrays(pixels: np.ndarray, labels: tuple[int, ...]) -> Dataset:
    return Dataset("arrays", "", "train", (), labels, ("a", "b"), pixels)


def test_arrays_are_known_by_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    whole = arrays(pixels, (0, 1) * 10)
    assert identify(whole.select(range(5, 15))).among(identify(whole).ids).all()
    other = pixels.copy()
    other[3, 0, 0, 0] ^= 1
    assert identify(arrays(other, (0, 1) * 10)).among(identify(whole).ids).tolist() == [i != 3 for i in range(20)]


def test_images_of_two_parts_are_counted_and_one_is_named(pets: Path, tmp_path: Path) -> None:
    train = open_dataset(pets)
    noise(tmp_path / "val" / "cat" / "new.png", 50)
    copied = tmp_path / "val" / "cat" / "old.png"
    shutil.copy(train.files[0], copied)
    val = open_dataset(tmp_path / "val")
    parts = [("training", train, identify(train)), ("validation", val, identify(val))]
    assert shared(parts) == [
        f"warning: 1 of the 2 validation images are training images too (such as {copied}): accuracy on them says "
        "nothing about new images"
    ]
    parts.append(("test", train, identify(train)))
    assert shared(parts)[1].startswith("warning: all 12 test images are training images too")
    assert shared(parts[1:2]) == []


def test_copies_and_labels_that_contradict_each_other_are_found(pets: Path) -> None:
    assert not identify(open_dataset(pets)).in_two_classes().any()
    shutil.copy(pets / "cat" / "00.png", pets / "cat" / "again.png")
    images = identify(open_dataset(pets))
    assert (images.copies(), images.in_two_classes().sum()) == (1, 0)
    shutil.copy(pets / "cat" / "00.png", pets / "dog" / "again.png")
    dataset = open_dataset(pets)
    twice = identify(dataset).in_two_classes()
    assert [os.path.basename(dataset.files[i]) for i in twice.nonzero()[0]] == ["00.png", "again.png", "again.png"]


def test_what_is_stored_comes_back(pets: Path) -> None:
    images = replace(identify(open_dataset(pets)), every=3)
    back = from_bytes(to_bytes({"train": images, "earlier": images.ids[:2]}), "file")
    stored = back["train"]
    assert isinstance(stored, Identity)
    assert (stored.kind, stored.every, stored.images) == (images.kind, 3, 12)
    for name in ("ids", "labels", "positions"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(images, name))
    np.testing.assert_array_equal(back["earlier"], images.ids[:2])
    with pytest.raises(DataError, match="images.npz is damaged"):
        from_bytes(b"no archive", "images.npz")


def test_a_fingerprint_is_of_images_and_labels_alone(pets: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path) -> str:
        dataset = open_dataset(path)
        return identify(dataset).fingerprint(dataset.classes)

    before = fingerprint(pets)
    assert len(before) == 16
    shutil.copytree(pets, tmp_path / "copy")
    (tmp_path / "copy" / "cat" / "00.png").rename(tmp_path / "copy" / "cat" / "zz.png")
    assert fingerprint(tmp_path / "copy") == before
    (tmp_path / "copy" / "cat" / "zz.png").rename(tmp_path / "copy" / "dog" / "zz.png")
    assert fingerprint(tmp_path / "copy") != before
    (tmp_path / "copy" / "dog" / "zz.png").unlink()
    assert fingerprint(tmp_path / "copy") != before
