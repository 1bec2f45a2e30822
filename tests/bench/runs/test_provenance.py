"""A run knows its images again, and notices when they are others."""

from pathlib import Path

import numpy as np
import pytest

from bench.runs.folder import IMAGES, RunError
from bench.runs.provenance import RunImages, trained_on
from loaders.datasets import Dataset
from loaders.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)


def images(chosen: range, shift: int = 0) -> Dataset:
    labels = tuple((i + shift) % 2 for i in chosen)
    return Dataset("arrays", "", "train", (), labels, ("a", "b"), PIXELS[chosen.start : chosen.stop])


def run(train: Dataset, test: Dataset | None = None) -> RunImages:
    test = test or images(range(40, 50))
    return RunImages.of(train, test, test)


def resumed(now: RunImages, before: RunImages | None, named: bool = False, **counts: int) -> RunImages:
    return now.after(before, counts, Path("runs/r"), named)


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    assert RunImages.load(tmp_path) is None
    validation = images(range(50, 60))
    for kept in (run(images(range(40))), RunImages.of(images(range(40)), validation, images(range(40, 50)))):
        kept.save(tmp_path)
        back = RunImages.load(tmp_path)
        assert back is not None
        assert back.differences(kept, {}) == []
        assert (back.test is back.validation) == (kept.test is kept.validation)
        assert back.whole
    (tmp_path / IMAGES).write_bytes(b"damaged")
    with pytest.raises(DataError, match="images.npz is damaged"):
        RunImages.load(tmp_path)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (images(range(40)), ""),
        (images(range(30)), "train: 10 gone"),
        (images(range(1, 40), shift=1), "train: 1 gone, 39 in another class"),
        (images(range(2, 40)).select([*range(38), 0, 1]), "train: 2 gone"),
        (images(range(40)).select([*range(40), 0]), "train: 41 images in place of 40"),
    ],
)
def test_a_run_goes_on_with_its_own_images_alone(now: Dataset, said: str) -> None:
    before = run(images(range(40)))
    if not said:
        assert len(resumed(run(now), before).earlier) == 0
        return
    with pytest.raises(RunError) as refused:
        resumed(run(now), before)
    assert str(refused.value).startswith(f"run runs/r began with other images than there are now ({said}); ")
    assert "--data DIR" in str(refused.value)
    resumed(run(now), before, named=True)


def test_other_test_images_are_noticed_too() -> None:
    with pytest.raises(RunError, match=r"\(validation: 10 new, 10 gone\)"):
        resumed(run(images(range(40)), images(range(50, 60))), run(images(range(40))))


def test_images_that_are_gone_were_trained_on_all_the_same() -> None:
    first = run(images(range(40)))
    second = resumed(run(images(range(20, 40))), first, named=True)
    assert trained_on(second, images(range(10))) == (10, "trained on these images, so too good")
    third = resumed(run(images(range(20, 40))), second)
    assert trained_on(third, images(range(10)))[0] == 10


def test_how_many_images_a_run_was_trained_on() -> None:
    known = run(images(range(40)))
    assert trained_on(known, images(range(40, 50))) == (0, "")
    assert trained_on(known, images(range(40))) == (40, "trained on these images, so too good")
    assert trained_on(known, images(range(35, 50))) == (5, "trained on 5 of these 15 images, so too good")


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    count, words = trained_on(None, images(range(10)))
    assert count is None
    assert words.startswith("unknown whether it was trained on these images")
    (tmp_path / "1.png").write_bytes(b"1")
    files = Dataset("files", "", "test", (str(tmp_path / "1.png"),), (0,), ("a", "b"))
    assert "files and arrays cannot be compared" in trained_on(run(images(range(40))), files)[1]
    # An earlier version began the run: only the number of its images can tell it apart.
    same = resumed(run(images(range(40))), None, train=40, validation=10, test=10)
    assert "unknown whether it was trained on these images" in trained_on(same, images(range(50, 60)))[1]
    assert trained_on(same, images(range(5)))[0] == 5
    with pytest.raises(RunError, match="train: 40 images in place of 39"):
        resumed(run(images(range(40))), None, train=39)
