"""Images of many sizes in one buffer: their sizes known before they are decoded, and their pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transform

from loaders import device_images, packing
from loaders.datasets import Dataset, open_dataset
from loaders.device_images import DeviceImages, kept_bytes, on_device
from loaders.errors import DataError
from loaders.images import decode
from loaders.options import EXIF, LoaderOptions

OPTIONS = LoaderOptions(size=70, threads=2)  # kept with a shorter side of at most 80
SIDE = 80


def images_of(dataset: Dataset) -> DeviceImages:
    images: Any = dataset.pixels
    assert isinstance(images, DeviceImages)
    return images


def test_images_are_made_smaller_and_never_larger(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "_TOGETHER", 5)
    images = images_of(on_device(dataset, OPTIONS))
    assert len(images) == len(dataset)
    assert images.shape == (46, 0, 0, 3)
    shorter = set()
    for number, path in enumerate(dataset.files):
        whole = decode(path)
        short = min(whole.shape[1:])
        shorter.add(short > SIDE)
        expected = transform.resize(whole, [SIDE], antialias=True) if short > SIDE else whole
        assert np.array_equal(images[number], expected.permute(1, 2, 0).numpy())
    assert shorter == {True, False}


def test_a_selection_shares_the_buffer(dataset: Dataset) -> None:
    images = images_of(on_device(dataset, OPTIONS))
    some = images[np.array([7, 2])]
    assert some.pixels is images.pixels
    assert [np.array_equal(some[i], images[j]) for i, j in ((0, 7), (1, 2))] == [True, True]
    copy = images[7]
    copy[:] = 0
    assert some[0].any()


def test_the_memory_needed_is_counted_to_the_byte(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = images_of(on_device(dataset, OPTIONS)).pixels.numel()
    assert kept_bytes(dataset, OPTIONS) == needed
    assert abs(kept_bytes(dataset, OPTIONS, looked_at=12) / needed - 1) < 0.1
    monkeypatch.setattr(device_images, "free_bytes", lambda device: 2 * needed)
    on_device(dataset, OPTIONS)
    monkeypatch.setattr(device_images, "free_bytes", lambda device: 2 * needed - 2)
    monkeypatch.setattr(device_images, "decode", lambda *arguments: pytest.fail("decoded before it is known to fit"))
    with pytest.raises(DataError, match=rf"needs {needed:,} bytes \(0\.0 GiB\) on cpu.* at most 50% are taken"):
        on_device(dataset, OPTIONS)
    # A third of the images takes a third of the memory.
    monkeypatch.setattr(device_images, "decode", decode)
    part = images_of(on_device(dataset, replace(OPTIONS, shard=2, shards=3)))
    assert part.pixels.numel() < 0.4 * needed
    with pytest.raises(DataError, match="image 3 is not held by this process"):
        part[3]


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Every format that images are written in here, stored upright, sideways and upside down."""
    folder = tmp_path_factory.mktemp("turned") / "a"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for ending in ("jpg", "png", "webp", "tif"):
            Image.fromarray(noise).save(folder / f"{orientation}.{ending}", exif=exif)
        for ending in ("bmp", "gif", "ppm"):
            Image.fromarray(noise).save(folder / f"{orientation}.{ending}")
    return open_dataset(folder.parent)


@pytest.mark.parametrize("exif", EXIF)
def test_sizes_before_decoding_are_those_after(turned: Dataset, exif: str) -> None:
    images = images_of(on_device(turned, replace(OPTIONS, exif=exif)))
    assert len(images) == 21
    for number, path in enumerate(turned.files):
        assert np.array_equal(images[number], decode(path, exif).permute(1, 2, 0).numpy()), path
    assert (images.heights > images.widths).any() == (exif == "apply")


def test_a_header_that_promises_another_size_is_named(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "decode", lambda *arguments: torch.zeros(3, 9, 11, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"\.jpg decodes to 11 x 9 pixels, which is not what its header says"):
        on_device(dataset, OPTIONS)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_loading_that_takes_long_says_how_far_it_is(
    dataset: Dataset, shard: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_images, "_SAID", -1.0)
    monkeypatch.setattr(device_images, "_TOGETHER", 10)
    on_device(dataset, replace(OPTIONS, shard=shard, shards=2, threads=1))
    lines = [f"note: {done} of 23 images of {dataset.name} are decoded and on cpu" for done in (10, 20, 23)]
    assert capsys.readouterr().err.splitlines() == (lines if shard == 0 else [])


def test_an_unreadable_file_is_named(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    broken = Dataset("broken", "", "all", (dataset.files[0], str(tmp_path / "bad.jpg")), (0, 0), ("a",))
    with pytest.raises(DataError, match=r"cannot decode .*bad\.jpg"):
        on_device(broken, OPTIONS)


def test_an_image_that_is_named_twice_is_kept_once(dataset: Dataset, tmp_path: Path) -> None:
    once = images_of(on_device(dataset, OPTIONS))
    packing.pack([(dataset, ("all",))], tmp_path / "out", SIDE)
    for images in (dataset, open_dataset(tmp_path / "out")):
        again = images_of(on_device(images.select([*range(46), 45, *range(46)]), OPTIONS))
        assert again.pixels.numel() == once.pixels.numel()
        for number in (0, 45, 46, 92):
            assert np.array_equal(again[number], once[[*range(46), 45, *range(46)][number]])


def test_a_packed_set_must_be_the_same_way_up(turned: Dataset, tmp_path: Path) -> None:
    packing.pack([(turned, ("all",))], tmp_path / "out", 0)
    packed = open_dataset(tmp_path / "out")
    assert len(images_of(on_device(packed, OPTIONS))) == 21
    with pytest.raises(DataError, match="pack it again with --exif apply"):
        on_device(packed, replace(OPTIONS, exif="apply"))
