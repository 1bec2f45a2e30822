"""Stages of a loader: which there are, that they take time, and that they add up to the loader's own time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.inspecting import stages
from loaders import engines
from loaders.datasets import open_dataset
from loaders.options import LoaderOptions

OPTIONS = LoaderOptions(batch=4, size=32, threads=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 255, (80, 96, 3), np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("dali", ["read", "decode", "resize, mirror and normalise"]),
        ("torchvision", ["read and decode", "resize", "mirror and normalise"]),
        (
            "pil",
            ["read and decode", "random resized crop", "random horizontal flip", "to tensor", "normalize"],
        ),
        ("synthetic", ["whole loader"]),
    ],
)
def test_stages_of_each_engine(engine: str, expected: list[str], images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := engines.missing(engine)) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(stages, "TURNS", 2)
    threads = torch.get_num_threads()
    found, note = stages.stages(engine, open_dataset(images, "train"), OPTIONS)
    assert [name for name, _ in found] == expected
    assert all(seconds >= 0 for _, seconds in found)
    assert sum(seconds for _, seconds in found) > 0
    assert note
    assert torch.get_num_threads() == threads


def test_workers_share_the_work(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_one_by_one", lambda count, steps, options: [("decode", 0.8)])
    dataset = open_dataset(images, "train")
    found, _ = stages.stages("pil", dataset, LoaderOptions(batch=4, size=32, threads=4))
    assert found == [("decode", pytest.approx(0.2))]
