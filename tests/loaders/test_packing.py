"""A packed data set: the same pixels, the same bytes every time, and nothing lost when it is interrupted."""

import errno
import filecmp
import os
import shutil
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders import packing
from loaders.datasets import Dataset, open_dataset, open_splits
from loaders.errors import DataError, NoSplitError
from loaders.images import decode
from loaders.packed_images import INDEX, PIXELS, PackedImages

FILES = ("index.npy", "packed.json", "pixels.npy")


def packed(dataset: Dataset, out: Path, **options: object) -> Path:
    packing.pack([(dataset, ("all",))], out, **{"short": 40, "threads": 2} | options)  # type: ignore[arg-type]
    return out


def same(one: Path, other: Path) -> bool:
    assert sorted(entry.name for entry in other.iterdir()) == list(FILES)
    return filecmp.cmpfiles(one, other, FILES, shallow=False)[0] == list(FILES)


def test_numpy_reads_the_images_that_the_decoder_gives(dataset: Dataset, tmp_path: Path) -> None:
    out = packed(dataset, tmp_path / "out", short=0)
    pixels, index = np.load(out / PIXELS), np.load(out / INDEX)
    assert index["label"].tolist() == list(dataset.labels)
    for path, row in zip(dataset.files, index, strict=True):
        begin, tall, wide = (int(row[name]) for name in ("offset", "height", "width"))
        image = pixels[begin : begin + 3 * tall * wide].reshape(tall, wide, 3)
        assert np.array_equal(image, decode(path).permute(1, 2, 0).numpy())
        assert zlib.crc32(image.tobytes()) == row["crc32"]


def test_larger_images_are_made_smaller_and_no_image_larger(dataset: Dataset, tmp_path: Path) -> None:
    images = PackedImages(str(packed(dataset, tmp_path / "out", short=80)))
    for path, tall, wide in zip(dataset.files, images.heights, images.widths, strict=True):
        with Image.open(path) as image:
            shorter = min(image.size)
            assert min(tall, wide) == min(shorter, 80)
            assert (tall, wide) == (image.height, image.width) or shorter > 80
            assert wide / tall == pytest.approx(image.width / image.height, rel=0.03)


def test_the_same_images_give_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    assert same(packed(dataset, tmp_path / "a", threads=1), packed(dataset, tmp_path / "b", threads=3))


def test_a_packed_folder_opens_as_its_source(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    again = open_dataset(packed(dataset, tmp_path / "out"))
    assert (again.name, again.split, again.labels, again.classes) == (
        dataset.name,
        dataset.split,
        dataset.labels,
        dataset.classes,
    )
    with pytest.raises(DataError, match="is packed already"):
        packing.parts_of(tmp_path / "out")


def test_splits_stay_apart_and_what_serves_as_two_still_does(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source / "train")
    shutil.copytree(folder, source / "test")
    parts = packing.parts_of(source)
    assert [splits for _, splits in parts] == [("train",), ("val", "test")]
    packing.pack(parts, tmp_path / "out", 40)
    assert [(part.name, len(part)) for part in open_splits(tmp_path / "out")] == [
        (part.name, len(part)) for part in open_splits(source)
    ]
    assert open_dataset(tmp_path / "out", "test").name == "source/test"
    assert open_dataset(tmp_path / "out" / "train").split == "train"
    with pytest.raises(NoSplitError, match="without a split val: it has train"):
        open_dataset(tmp_path / "out" / "train", "val")


def test_what_cannot_be_decoded_is_left_out_and_listed(dataset: Dataset, tmp_path: Path) -> None:
    bad = tmp_path / "set" / "bad.jpg"
    bad.parent.mkdir()
    content = Path(dataset.files[0]).read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    broken = Dataset(
        "broken", str(bad.parent), "all", (dataset.files[0], str(bad), dataset.files[1]), (0, 0, 0), ("a",)
    )
    (result,) = packing.pack([(broken, ("all",))], tmp_path / "out", 40)
    assert result.images == 2
    assert [path for path, _ in result.undecodable] == [str(bad)]
    images = PackedImages(str(tmp_path / "out"))
    assert [path for path, _ in images.description.undecodable] == ["bad.jpg"]
    alone = PackedImages(str(packed(dataset.select([0, 1]), tmp_path / "alone")))
    assert [np.array_equal(images[i], alone[i]) for i in range(2)] == [True, True]


def test_there_must_be_room(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 50_000))
    with pytest.raises(DataError, match=r"takes \d+\.\d KiB in .*out, where 48\.8 KiB are free"):
        packed(dataset, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_loses_nothing(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, calls = os.pwrite, iter(range(10**6))

    def full(*arguments: object) -> int:
        if next(calls) > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_TOGETHER", 8)
    monkeypatch.setattr(packing, "_EVERY", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DataError, match=r"cannot write .*: No space left on device; free some space and go on"):
            packed(dataset, tmp_path / "out", threads=1)
    with pytest.raises(DataError, match="was left by a packing that did not finish: go on with --resume"):
        packed(dataset, tmp_path / "out")
    decoded: list[str] = []
    read = packing.read
    monkeypatch.setattr(packing, "read", lambda path: decoded.append(path) or read(path))
    packed(dataset, tmp_path / "out", resume=True)
    assert 0 < len(decoded) < len(dataset), "what was written is not decoded again"
    monkeypatch.setattr(packing, "read", read)
    assert same(packed(dataset, tmp_path / "whole"), tmp_path / "out")


def test_what_was_begun_with_other_images_is_not_gone_on_with(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(dataset, tmp_path / "out", progress=stop)
    with pytest.raises(DataError, match="was begun with other images of small, or with other options"):
        packed(dataset, tmp_path / "out", resume=True, short=41)
    with pytest.raises(DataError, match="was begun with other images of small, or with other options"):
        packed(dataset.select(range(45)), tmp_path / "out", resume=True)


def test_a_folder_that_holds_something_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    out = packed(dataset, tmp_path / "out")
    with pytest.raises(DataError, match="is a packed data set already"):
        packed(dataset, out, resume=True)
    (tmp_path / "other").mkdir()
    packed(dataset, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is there already and is no packed data set"):
        packed(dataset, tmp_path / "file")
    with pytest.raises(DataError, match="where it would look like a class: name a folder beside it"):
        packed(dataset, Path(dataset.root) / "out")


def test_arrays_are_packed_too(arrays: Dataset, tmp_path: Path) -> None:
    again = open_dataset(packed(arrays, tmp_path / "out"))
    assert again.pixels is not None
    assert arrays.pixels is not None
    assert again.pixels.shape == arrays.pixels.shape
    assert np.array_equal(np.asarray(again.pixels), arrays.pixels)
