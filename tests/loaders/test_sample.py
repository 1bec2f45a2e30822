"""The generated set: same seed, same bytes; the sizes, bits and formats of ImageNet."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders import sample
from loaders.datasets import open_dataset
from loaders.errors import DataError
from loaders.images import check
from loaders.sample import _plan


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))}


def test_same_seed_same_files_whatever_the_threads(tmp_path: Path) -> None:
    one = contents(sample.make(tmp_path / "one", 4, seed=3, threads=1))
    two = contents(sample.make(tmp_path / "two", 4, seed=3, threads=2))
    other = contents(sample.make(tmp_path / "other", 4, seed=4, threads=2))
    assert one == two
    assert set(one.values()).isdisjoint(other.values())


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path, costly: Path) -> None:
    assert contents(sample.make(tmp_path / "small", 6, classes=5)).items() <= contents(costly).items()


def test_a_large_set_uses_its_pictures_again_as_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "FRESH", 7)
    files = {int(path.stem): path for path in sample.make(tmp_path / "large", 20, classes=3).rglob("*.JPEG")}
    assert sorted(files) == list(range(20))
    assert len({path.read_bytes() for path in files.values()}) == 20
    assert check([str(path) for path in files.values()], 1) == []
    for number in range(6, 20):
        # Two pictures a class, each followed by another crop of itself six images later.
        first = files[number % 6]
        assert files[number].parent == first.parent
        with Image.open(files[number]) as image, Image.open(first) as source:
            assert image.mode == source.mode
            assert all(0 <= whole - cut <= 32 for whole, cut in zip(source.size, image.size, strict=True))
            bits = [file.stat().st_size / (i.width * i.height) for file, i in ((files[number], image), (first, source))]
        assert bits[0] == pytest.approx(bits[1], rel=0.15)


def test_layout_and_readability(costly: Path) -> None:
    dataset = open_dataset(costly)
    assert len(dataset) == 46
    assert (dataset.generated, dataset.left_out) == (True, ())
    assert len(dataset.classes) == 5
    assert max(Counter(dataset.labels).values()) - min(Counter(dataset.labels).values()) <= 1
    assert check(dataset, 2) == []
    assert not [path for path in costly.parent.iterdir() if path.name.startswith(".")], "a temporary folder is left"


def test_files_have_the_bits_they_were_planned_to_have(costly: Path) -> None:
    shares = []
    for path in costly.rglob("*.JPEG"):
        plan = _plan(int(path.stem), 0, 0)
        shares.append(path.stat().st_size * 8 / (plan.width * plan.height) / plan.bits)
        with Image.open(path) as image:
            assert image.size == (plan.width, plan.height)
            assert image.mode == plan.mode
    assert np.median(shares) == pytest.approx(1, abs=0.05)
    assert np.mean(np.abs(np.array(shares) - 1) < 0.15) > 0.85


def test_plan_follows_imagenet() -> None:
    """Against 900 training files: 202,726 pixels and 110,343 bytes on average, 70 % with a long side of 500."""
    plans = [_plan(i, 0, 0) for i in range(1000)]
    pixels = np.array([plan.width * plan.height for plan in plans])
    size = np.array([plan.bits / 8 for plan in plans]) * pixels
    assert pixels.mean() == pytest.approx(202_726, rel=0.04)
    assert size.mean() == pytest.approx(110_343, rel=0.06)
    assert np.mean([max(plan.width, plan.height) == 500 for plan in plans]) == pytest.approx(0.705, abs=0.02)
    assert np.mean([plan.full_colour for plan in plans]) == pytest.approx(0.70, abs=0.02)
    assert Counter(plan.mode for plan in plans) == {"RGB": 977, "L": 22, "CMYK": 1}
    assert sum(plan.rotated for plan in plans) == 2


def test_even_a_small_set_has_its_share_of_large_files() -> None:
    means = [np.mean([p.width * p.height for p in (_plan(i, 0, seed) for i in range(100))]) for seed in range(8)]
    assert np.std(means) / np.mean(means) < 0.06


def test_existing_data_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        sample.make(tmp_path / "mine", 2)
    assert (tmp_path / "mine" / "x").read_text() == "keep"
    (tmp_path / "hollow").mkdir()
    assert len(contents(sample.make(tmp_path / "hollow", 1))) == 1


@pytest.mark.parametrize(("images", "classes", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_requests_are_refused(tmp_path: Path, images: int, classes: int, seed: int) -> None:
    with pytest.raises(DataError):
        sample.make(tmp_path / "x", images, seed, classes)
    assert not (tmp_path / "x").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_write", full)
    with pytest.raises(DataError, match="No space left on device; nothing was left behind"):
        sample.make(tmp_path / "x", 2)
    assert os.listdir(tmp_path) == []


def test_default_sample_is_made_once_below_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where another process is quicker."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make = sample.make

    def raced(dest: Path, images: int) -> Path:
        make(dest, images)  # the other process
        return make(dest, images)

    monkeypatch.setattr(sample, "make", raced)
    first = sample.default_sample(2)
    assert first.parent == tmp_path / "pixbench"
    assert len(contents(first)) == 2
    monkeypatch.setattr(sample, "make", lambda *arguments: pytest.fail("made twice"))
    assert sample.default_sample(2, lambda: pytest.fail("said twice")) == first


def test_processes_that_need_the_default_sample_at_once_make_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    left = tmp_path / "pixbench" / f".sample-{sample.VERSION}-2.killed"
    left.mkdir(parents=True)
    make, made = sample.make, list[Path]()

    def counted(dest: Path, images: int) -> Path:
        made.append(dest)
        return make(dest, images)

    monkeypatch.setattr(sample, "make", counted)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(sample.default_sample, [2, 2, 2]))
    assert made == list(folders)
    assert not left.exists()
