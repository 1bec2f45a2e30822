"""What reads a packed folder: some of its images, and in one line what is wrong with it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from loaders import packing
from loaders.contents import examine
from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError
from loaders.identity import identify
from loaders.images import check
from loaders.packed_images import DESCRIPTION, INDEX, PIXELS, PackedImages
from loaders.soundness import doubts


@pytest.fixture
def out(dataset: Dataset, tmp_path: Path) -> Path:
    packing.pack([(dataset, ("all",))], tmp_path / "out", 64)
    return tmp_path / "out"


def test_some_of_the_images_are_those_images(out: Path) -> None:
    images = PackedImages(str(out))
    some = images[np.array([7, 3, 7])]
    assert len(some) == 3
    assert all(np.array_equal(some[i], images[j]) for i, j in enumerate((7, 3, 7)))
    again = pickle.loads(pickle.dumps(some))
    assert all(np.array_equal(some[i], again[i]) for i in range(3))
    assert len(pickle.dumps(images)) < 2000
    rows = np.empty((5, int(images.widths[3]), 3), np.uint8)
    images.read_rows(3, 11, rows)
    assert np.array_equal(rows, images[3][11:16])


def test_the_shape_is_that_of_an_array_where_sizes_agree(dataset: Dataset, arrays: Dataset, tmp_path: Path) -> None:
    packing.pack([(arrays, ("all",))], tmp_path / "out")
    alike = PackedImages(str(tmp_path / "out"))
    assert alike.shape == (24, 32, 32, 3)
    packing.pack([(dataset, ("all",))], tmp_path / "other")
    images = PackedImages(str(tmp_path / "other"))
    assert images.shape == (46, 0, 0, 3)
    with pytest.raises(DataError, match="are of different sizes"):
        np.asarray(images)


def test_the_images_are_known_as_those_of_the_files(dataset: Dataset, arrays: Dataset, out: Path) -> None:
    """A training goes on with either, and an evaluation finds the images it was trained on."""
    packed, files = identify(open_dataset(out)), identify(dataset)
    assert packed.fingerprint(dataset.classes) == files.fingerprint(dataset.classes)
    assert (packed.kind, packed.every) == (files.kind, files.every)
    few = identify(open_dataset(out), 3)
    assert few.ids.tolist() == identify(dataset, 3).ids.tolist()
    packing.pack([(arrays, ("all",))], out.parent / "arrays")
    again = identify(open_dataset(out.parent / "arrays"))
    assert again.fingerprint(arrays.classes) == identify(arrays).fingerprint(arrays.classes)


def test_it_is_described_as_files_are(out: Path) -> None:
    contents = examine(open_dataset(out))
    assert (contents.images, contents.examined, contents.unreadable) == (46, 46, 0)
    assert contents.height[0] >= 60
    assert 0.2 < min(contents.mean) < max(contents.mean) < 0.8
    assert doubts(open_dataset(out)) == []


def test_changed_pixels_are_found_by_their_checksum(out: Path) -> None:
    assert check(open_dataset(out)) == []
    row = np.load(out / INDEX)[9]
    with (out / PIXELS).open("r+b") as file:
        file.seek(128 + int(row["offset"]))
        before = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([before[0] ^ 1]))
    assert [image.path for image in check(open_dataset(out))] == [f"{out / PIXELS}, image 9"]


def cut(out: Path) -> None:
    with (out / PIXELS).open("r+b") as file:
        file.truncate(10_000)


def longer(out: Path) -> None:
    with (out / PIXELS).open("ab") as file:
        file.write(b"more")


def other_version(out: Path) -> None:
    description = json.loads((out / DESCRIPTION).read_text())
    (out / DESCRIPTION).write_text(json.dumps(description | {"version": 2}))


def no_text(out: Path) -> None:
    (out / DESCRIPTION).write_bytes(b"\xff\xfe{")


def no_object(out: Path) -> None:
    (out / DESCRIPTION).write_text("[1]")


def cut_index(out: Path) -> None:
    (out / INDEX).write_bytes((out / INDEX).read_bytes()[:1000])


def other_index(out: Path) -> None:
    np.save(out / INDEX, np.load(out / INDEX)[:-1])


def wild_index(out: Path) -> None:
    index = np.load(out / INDEX)
    index["offset"][3] = 2**62
    np.save(out / INDEX, index)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, r"pixels\.npy is cut short: it has 10,000 of [\d,]+ bytes; pack the data set again"),
        (longer, r"pixels\.npy does not belong to the packed\.json beside it"),
        (other_version, r"packed\.json is of version 2, and this pixbench reads version 1: pack the data set again"),
        (no_text, r"packed\.json is damaged"),
        (no_object, r"packed\.json is damaged"),
        (cut_index, r"index\.npy is damaged"),
        (other_index, r"index\.npy does not belong to the packed\.json beside it"),
        (wild_index, r"index\.npy is damaged"),
        (lambda out: (out / INDEX).unlink(), r"cannot read .*index\.npy: there is no such file"),
        (lambda out: (out / PIXELS).unlink(), r"cannot open .*pixels\.npy: No such file"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(out: Path, harm: object, words: str) -> None:
    harm(out)  # type: ignore[operator]
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(out)
    assert "\n" not in str(caught.value)
