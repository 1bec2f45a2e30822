"""The range test on generated images: what it writes, and that the network is as it was."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from bench.commands.lr_find import command
from bench.output import PICTURES
from bench.screen import Screen
from loaders import separable


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cifar10"
    separable.make(folder, "cifar10", 240, 0, None)
    return folder


def find(*words: str) -> Result:
    every = [*words, "--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(command, every, catch_exceptions=False, standalone_mode=False)


def test_rates_losses_and_a_suggestion_are_written_and_the_weights_put_back(data: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    words = ["--model", "lenet", "--batch", "32", "--steps", "12", "--low", "0.001", "--high", "1"]
    result = find(*words, "--data", str(data), "-o", str(picture), "--format", "json")
    assert result.return_value == 0
    said = json.loads(result.stdout)
    assert said["weights_restored"] is True
    assert said["lr"][0] == pytest.approx(0.001)
    assert len(said["lr"]) == len(said["loss"]) == len(said["smoothed"]) <= 12
    assert said["files"] == [str(picture), str(tmp_path / "curve.csv")]
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == said["loss"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("last", [1, 7])
def test_a_test_says_where_it_is_and_an_interrupt_keeps_the_curve_so_far(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    words = ["--model", "lenet", "--batch", "16", "--steps", "20", "--data", str(data)]
    if last == 7:
        whole = find(*words, "-o", str(tmp_path / "whole.png"))
        assert "range test: 20 steps of lenet" in whole.stderr
        assert "step 2 of 20, about" in whole.stderr
        assert whole.stderr.count(" left\n") == 9
    before = Screen.steps

    def press(self: Screen, what: str, done: int, total: int, tenths: bool = False) -> None:
        before(self, what, done, total, tenths)
        if done == last:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Screen, "steps", press)
    result = find(*words, "-o", str(tmp_path / "part.png"), "--format", "json")
    assert result.return_value == 130
    assert f"stopped by SIGINT after {last} of 20 rates; the curve so far is kept" in result.stderr
    said = json.loads(result.stdout)
    assert said["interrupted"] == "stopped by SIGINT"
    assert said["weights_restored"] is True
    assert len((tmp_path / "part.csv").read_text().splitlines()) == 1 + last


def test_what_may_be_noise_is_a_caution_and_no_rate(data: Path, tmp_path: Path) -> None:
    words = ["--model", "lenet", "--batch", "8", "--steps", "20", "--data", str(data), "-o", str(tmp_path / "x.svg")]
    # At rates that change nothing the loss is that of one batch or another.
    words += ["--low", "1e-12", "--high", "1e-10"]
    assert "suggested learning rate: none; caution: the loss" in find(*words).stdout
    said = json.loads(find(*words, "--format", "json").stdout)
    assert said["suggestion"] is said["minimum_tenth"] is None
    assert said["caution"].startswith("the loss")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("settings", [[], ["--set", "sam_rho=0.05", "--set", "mixup=0.2", "--set", "ema=0.9"]])
def test_every_way_to_step_is_put_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, settings: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "cifar_resnet18", "--set", "model.stem_width=8", "--set", "model.widths=[8,8,8,8]"]
    result = find(
        *words, *settings, "--optimizer", optimizer, "--steps", "3", "--batch", "8", "--data", str(data)
    )  # fmt: skip
    assert "weights restored: yes" in result.stdout
    # A repository in which it is called stays clean: .gitignore has .benchmarks.
    assert [path.name for path in tmp_path.iterdir()] == [".benchmarks"]
    assert {path.name for path in (tmp_path / PICTURES).iterdir()} == {"lr-find.png", "lr-find.csv"}
    assert f"wrote {PICTURES}/lr-find.png and {PICTURES}/lr-find.csv" in result.stderr


def test_a_recipe_s_network_and_keys_are_used_and_a_table_may_go_to_a_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = find("four-families-lenet", "--steps", "5", "--data", str(data), "-o", "found.txt")
    assert result.stdout == ""
    said = Path("found.txt").read_text()
    assert "lenet, sgd, batch 24" in said
    assert "suggested learning rate" in said


def test_a_schedule_is_drawn_without_training_or_data(tmp_path: Path) -> None:
    picture = tmp_path / "rates.svg"
    result = find("four-families-resnet18-fast", "--schedule", "-o", str(picture), "--format", "json")
    said = json.loads(result.stdout)
    assert said["schedule"] == "onecycle"
    assert len(said["epochs"]) == said["steps"] / said["steps_per_epoch"]
    assert max(epoch["highest"] for epoch in said["epochs"]) == pytest.approx(said["lr"])
    rows = list(csv.DictReader((tmp_path / "rates.csv").read_text().splitlines()))
    assert len(rows) == said["steps"]
    assert float(rows[0]["lr"]) == said["epochs"][0]["first"]
    assert picture.read_text().startswith("<?xml")


def test_a_schedule_s_steps_follow_from_the_images(data: Path, tmp_path: Path) -> None:
    words = ["--model", "lenet", "--batch", "20", "--set", "divide=2", "--data", str(data), "--schedule"]
    result = find(*words, "-o", str(tmp_path / "s.png"), "--format", "json")
    assert json.loads(result.stdout)["steps_per_epoch"] == 200 // 20 // 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a recipe"),
        (["four-families-lenet"], "no data"),
        (["--model", "lenet", "--schedule"], "no data"),
        (["nothing", "--schedule"], "unknown recipe"),
        (["four-families-lenet", "--schedule", "-o", "nowhere/x.png"], "no folder nowhere"),
    ],
)
def test_mistakes_are_one_clear_error(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, words)
    assert said in str(result.exception)


def test_a_range_that_does_not_rise_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "lenet", "--data", str(data), "--low", "1", "--high", "0.1", "--threads", "1"]
    result = CliRunner().invoke(command, words)
    assert "lower first" in str(result.exception)


def test_the_schedule_of_a_folder_without_validation_images_has_the_steps_of_its_training(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / f"{number}.png")
    words = ["--model", "lenet", "--batch", "4", "--schedule", "--data", str(tmp_path / "images")]
    result = find(*words, "--format", "json", "-o", str(tmp_path / "x.png"))
    # A fifth is held out.
    assert json.loads(result.stdout)["steps_per_epoch"] == 8
