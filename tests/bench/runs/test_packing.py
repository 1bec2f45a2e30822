"""When a training packs its images: what is saved over all epochs against what packing costs, and room for it."""

from pathlib import Path

import pytest

from bench.runs import packing
from bench.runs.packing import Trial, measured, read_packed
from loaders import separable
from loaders.datasets import Dataset, open_dataset
from loaders.options import LoaderOptions
from loaders.packed import cached_at
from loaders.packing import pack


@pytest.fixture
def train(tmp_path: Path) -> Dataset:
    separable.make(tmp_path / "set", "imagenet", 40, classes=2)
    return open_dataset(tmp_path / "set")


@pytest.mark.parametrize(
    ("trial", "epochs", "free", "pays"),
    [
        (Trial(250, 1000, 250, 200_000), 100_000, 10**12, True),
        (Trial(250, 1000, 250, 200_000), 100, 10**12, False),  # too few images to look at
        (Trial(250, 240, 250, 200_000), 100_000, 10**12, False),  # decoding is faster
        (Trial(250, 1000, 0.001, 200_000), 10_000, 10**12, False),  # packing costs more than it saves
        (Trial(250, 1000, 250, 200_000), 100_000, 10**6, False),  # no room
    ],
)
def test_packing_must_pay(
    trial: Trial, epochs: int, free: int, pays: bool, train: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "measured", lambda engine, train, options: trial)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    said = read_packed("dali", train, 10, epochs, LoaderOptions())
    assert (said is not None) == pays
    if said is not None:
        assert "1,000 images/s here, dali 250" in said
        assert "from images of 256 px; --loader dali decodes the files anew" in said


def test_a_set_that_is_packed_already_costs_nothing(
    train: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "measured", lambda *words: Trial(250, 1000, 0.001, 10**12))
    options = LoaderOptions()
    assert read_packed("dali", train, 10, 10_000, options) is None
    place = cached_at(train, options)
    place.parent.mkdir(parents=True, exist_ok=True)
    pack([(train, ("all",))], place)
    said = read_packed("dali", train, 10, 10_000, options)
    assert said is not None
    assert "packed already" in said


def test_the_trial_measures_both(train: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SECONDS", 0.01)
    trial = measured("pil", train, LoaderOptions(threads=1, size=64))
    assert trial.packed > trial.decoding > 0, "the images are of the size of ImageNet's"
    assert trial.packing > 0
    assert 3 * 64 * 64 < trial.image_bytes < 3 * 500 * 500
