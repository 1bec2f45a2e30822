"""How many calls the times of a single image are the median of, and what is said of the weights."""

import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UsageError
from bench.runs import predicting
from bench.runs.folder import DataFolders, RunRecord
from bench.runs.predicting import FEWEST, SETTLE, WARM, Predictor, read_classes, timed, weights_used
from bench.runs.provenance import RunImages
from loaders.datasets import Dataset
from loaders.options import EVAL_MARGIN
from models import zoo
from models.configuration import has_glibc
from models.errors import ModelError
from models.training.checkpoint import BEST, LAST, Card, save_weights, weights_of
from models.training.recipe import Recipe, to_toml
from results.runs import RunSummary


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, WARM), (0.05, 40), (60.0, FEWEST)])
def test_calls_are_repeated_as_long_as_they_are_worth_it(seconds: float, calls: int) -> None:
    made = count(1)
    now = 0.0

    def read() -> int:
        nonlocal now
        now += seconds / 4
        return next(made)

    def answer(number: int) -> None:
        nonlocal now
        now += 3 * seconds / 4 + number * seconds / 1000

    found, answering = timed(read, answer, lambda: now)
    assert next(made) - 1 == len(found) + SETTLE
    assert abs(len(found) - calls) <= 3
    assert found == pytest.approx([seconds * (1 + (SETTLE + n) / 1000) for n in range(1, len(found) + 1)])
    # Of the same calls, so that a part is never longer than the whole.
    assert answering == pytest.approx([whole - seconds / 4 for whole in found])


def test_a_network_of_one_s_own_has_the_weights_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes=1000):\n"
        "        pooled = nn.AdaptiveAvgPool2d(4), nn.Flatten()\n"
        "        super().__init__(*pooled, nn.Linear(48, num_classes))\n"
    )
    model = zoo.build("nets.py:Net", 2)
    torch.save(model.state_dict(), "net.pth")
    image = torch.rand(1, 3, 224, 224)
    predictor = Predictor.open("nets.py:Net", "cpu", "naive", weights="net.pth")
    assert predictor.classifier.card.classes == ("0", "1")
    torch.testing.assert_close(predictor.classifier.forward(image), model(image))
    assert predictor.said.startswith("those of net.pth; images of 224 px")
    named = Predictor.open("nets.py:Net", "cpu", "naive", weights="net.pth", classes=("cat", "dog"))
    assert {name for name, _ in named.classifier.top(image)[0]} == {"cat", "dog"}
    small = Predictor.open("nets.py:Net", "cpu", "naive", weights="net.pth", size=32)
    assert small.prepare(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert (small.options.eval_margin, predictor.options.eval_margin) == (1, EVAL_MARGIN)
    assert "classes by number" in predictor.said
    assert "classes by number" not in named.said
    assert "if these are random" in Predictor.open("nets.py:Net", "cpu", "naive").said
    with pytest.raises(ModelError, match="has 2 logits, not one for each of 3 classes"):
        Predictor.open("nets.py:Net", "cpu", "naive", weights="net.pth", classes=("a", "b", "c"))
    with pytest.raises(ModelError, match="there is no such file"):
        Predictor.open("nets.py:Net", "cpu", "naive", weights="none.pth")
    save_weights(Path(LAST), weights_of(model), Card("nets.py:Net", ("a", "b"), 224))
    with pytest.raises(UsageError, match="knows its weights"):
        Predictor.open(LAST, "cpu", "naive", weights="net.pth")


def test_class_names_are_a_text_with_a_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    assert read_classes(None) == ()
    for content, message in ((b"", "names no class"), (b"\xff\xfe", "no text"), (None, "cannot be read")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_classes(path)
    path.write_text("cat\n\n dog \n")
    assert read_classes(path) == ("cat", "dog")


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


def pixels(split: str, first: int, last: int) -> Dataset:
    rows = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)[first:last]
    return Dataset("d", "d", split, (), (0,) * len(rows), ("a", "b"), rows)


def test_which_weights_and_whether_these_images_chose_them(tmp_path: Path) -> None:
    data, recipe = tmp_path / "D", Recipe(model="lenet")
    train, val, test, new = (
        pixels("train", 0, 20),
        pixels("val", 20, 25),
        pixels("test", 25, 30),
        pixels("test", 30, 40),
    )

    def used(path: Path, dataset: Dataset, folder: Path = data) -> str:
        return weights_used(path, folder, dataset).text

    run = finished(tmp_path / "run", data, recipe.replaced({"select": "best"}), "test")
    RunImages.of(train, test, test).save(run)
    best = "best.safetensors, epoch 4, the best on the run's validation images; "
    for folder in (data, tmp_path / "elsewhere"):
        assert used(run, test, folder) == best + "chosen by looking at these images, so a little too good"
        assert used(run, train, folder) == best + "trained on these images, so too good"
        assert used(run, new, folder) == best + "chosen by other images than these"
        assert used(run / LAST, test, folder) == "last.safetensors, epoch 9; not chosen by accuracy"
    assert used(run, pixels("test", 18, 28)) == best + "trained on 2 of these 10 images, so too good"
    assert weights_used(run, data, pixels("test", 18, 28)).trained_on == 2
    assert weights_used(run, data, new).trained_on == 0
    apart = finished(tmp_path / "apart", data, recipe.replaced({"select": "best"}), "val")
    RunImages.of(train, val, test).save(apart)
    assert used(apart, test) == best + "chosen by other images than these"
    assert used(apart, val).endswith("chosen by looking at these images, so a little too good")
    alone = Path(shutil.copy(run / BEST, tmp_path / "alone.safetensors"))
    assert "unknown whether it was trained on these images: no run beside it" in used(alone, test)


def test_a_run_of_an_earlier_version_is_known_by_its_folder_alone(tmp_path: Path) -> None:
    data = tmp_path / "D"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    run = finished(tmp_path / "run", data, Recipe(model="lenet"), "test")
    for folder in (data, tmp_path / "link"):
        assert weights_used(run / LAST, folder, pixels("train", 0, 9)).text.endswith(
            "; trained on these images, so too good"
        )
    for split, folder in (("test", data), ("train", tmp_path)):
        used = weights_used(run / LAST, folder, pixels(split, 0, 9))
        assert used.trained_on is None
        assert "unknown whether it was trained on these images" in used.text
