"""How many calls the times of a single image are the median of, and what is said of the weights."""

import shutil
from itertools import count
from pathlib import Path

import pytest

from bench.runs import predicting
from bench.runs.folder import DataFolders, RunRecord
from bench.runs.predicting import FEWEST, SETTLE, WARM, Predictor, timed, weights_used
from loaders.datasets import Dataset
from models import zoo
from models.configuration import has_glibc
from models.training.checkpoint import BEST, LAST, Card, save_weights, weights_of
from models.training.recipe import Recipe, to_toml
from results.runs import RunSummary


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, WARM), (0.05, 40), (60.0, FEWEST)])
def test_calls_are_repeated_as_long_as_they_are_worth_it(seconds: float, calls: int) -> None:
    made = count(1)
    now = 0.0

    def call() -> None:
        nonlocal now
        now += seconds
        next(made)

    found = timed(call, lambda: now)
    assert next(made) - 1 == len(found) + SETTLE
    assert abs(len(found) - calls) <= 1
    assert found == pytest.approx([seconds] * len(found))


def finished(folder: Path, data: Path, recipe: Recipe, evaluated: str) -> Path:
    folder.mkdir()
    tensors = weights_of(zoo.build("lenet", 2))
    for name, epoch in ((LAST, 9), (BEST, 4)):
        save_weights(folder / name, tensors, Card("lenet", ("a", "b"), 32, epoch=epoch))
    (folder / "recipe.toml").write_text(to_toml(recipe, []))
    RunRecord("bench train", "", DataFolders(str(data)), {}, True, "cpu", 1, 1, "naive", {}).save(folder)
    RunSummary("r", "lenet", "d", "options", evaluated, "finished", 9).save(folder)
    return folder


@pytest.mark.skipif(not has_glibc(), reason="needs glibc")
def test_memory_is_kept_where_the_configuration_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / LAST, weights_of(zoo.build("lenet", 2)), Card("lenet", ("a", "b"), 32))
    kept: list[str] = []
    for configuration in ("naive", "naive-keep", "fast"):
        monkeypatch.setattr(predicting, "keep_memory", lambda text=configuration: kept.append(text))
        Predictor.open(tmp_path / LAST, "cpu", configuration)
    assert kept == ["naive-keep", "fast"]


def images(split: str) -> Dataset:
    return Dataset("d", "d", split, ("a.png",), (0,), ("a", "b"))


def test_which_weights_and_whether_these_images_chose_them(tmp_path: Path) -> None:
    data, recipe = tmp_path / "D", Recipe(model="lenet")
    run = finished(tmp_path / "run", data, recipe.replaced({"select": "best"}), "test")
    best = "best.safetensors, epoch 4, the best on the run's validation images; "
    assert weights_used(run, data, images("test")) == best + "chosen by looking at these images, so a little too good"
    assert weights_used(run, data, images("train")) == best + "trained on these images, so too good"
    assert weights_used(run, tmp_path, images("test")) == best + "the run's images came from another folder"
    assert weights_used(run / LAST, data, images("test")) == "last.safetensors, epoch 9; not chosen by accuracy"
    apart = finished(tmp_path / "apart", data, recipe.replaced({"select": "best"}), "val")
    assert weights_used(apart, data, images("test")) == best + "chosen by other images than these"
    assert weights_used(apart, data, images("val")).endswith("chosen by looking at these images, so a little too good")
    held = finished(tmp_path / "held", data, recipe.replaced({"select": "best", "holdout": 0.1}), "val")
    assert weights_used(held, data, images("val")) == best + "chosen by other images than these"
    alone = shutil.copy(run / BEST, tmp_path / "alone.safetensors")
    assert "no finished run beside it" in weights_used(Path(alone), data, images("test"))
