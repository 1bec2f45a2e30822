"""`bench train`, `evaluate` and `predict` from the command line: what they leave, what they refuse."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from bench.cli import app
from bench.errors import REPORTED, UsageError
from bench.locks import hold
from bench.runs import request, training
from bench.runs.folder import DataFolders, RunRecord
from bench.runs.own_batches import refuse_parts
from bench.runs.sources import Feed
from bench.runs.training import TrainingLog, configured
from loaders import engines, separable
from loaders.errors import DataError
from models.configuration import Device
from models.training.checkpoint import digest, load_weights
from models.training.distributed import World
from models.training.recipe import Recipe, load
from results.history import History, load_steps

ROOT = Path(__file__).resolve().parents[3]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def bench(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 32 px PNGs a network can learn: 24 training and 8 test images each."""
    root = tmp_path_factory.mktemp("pets")
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label, name in enumerate(("ant", "bee", "cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (32, 32, 3))
                pixels[8 * label : 8 * label + 8, 8:24, label % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all its reports."""
    runs = tmp_path_factory.mktemp("runs")
    done = train(data, runs, "full", "--epochs", 6)
    assert done.exception is None, done.exception
    stages = ("testing on 32 images", "of the training images, for comparison", "timing one image", "drawing curves")
    places = [done.stderr.index(stage) for stage in stages]
    assert places == sorted(places)
    assert "top-5 - of 32 images" in done.stderr
    return runs / "full"


def train(data: Path, runs: Path, name: str, *words: object) -> Result:
    base = ("train", "--model", "lenet", "--data", data, "--runs", runs, "--name", name, "--batch", 16, "--lr", 0.05)
    return bench(*base, "--threads", 1, "--device", "cpu", *words)


def ok(*words: object) -> Result:
    done = bench(*words)
    assert done.exception is None, done.exception
    return done


def trained(data: Path, runs: Path, name: str, *words: object) -> Path:
    """The folder of a run that went well, without its reports."""
    done = train(data, runs, name, "--no-report", *words)
    assert done.exception is None, done.exception
    return runs / name


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_leaves_everything(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        *("recipe.toml", "run.json", "history.csv", "steps.csv", "log.md", "curves.png", "curves.svg", "summary.json"),
        *("report.txt", "evaluation.json", "confusion.csv", "confusion.txt", "confusion.png", "confusion_train.csv"),
        *("samples.png", "network.svg", "layers.txt", "last.safetensors", "best.safetensors"),
        *("train_loss_history.txt", "train_acc_history.txt", "test_loss_history.txt", "test_acc_history.txt"),
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    history = History.load(run / "history.csv")
    assert len(history.epochs) == 6
    assert len(load_steps(run / "steps.csv")) == 6 * 6
    accuracies = np.loadtxt(run / "test_acc_history.txt")
    assert accuracies.tolist() == [epoch.val_top1 for epoch in history.epochs]
    assert ((accuracies >= 0) & (accuracies <= 1)).all()
    said = read(run / "summary.json")
    assert said["top1"] == read(run / "evaluation.json")["top1"] == accuracies[-1] > 0.9
    assert said["train_seconds"] == pytest.approx(sum(epoch.seconds for epoch in history.epochs))
    assert said["params"] == 61_500 + 4 * 84 + 4 - 84 * 10 - 10 + 62_006 - 61_500
    assert said["inference_cold_seconds"] > 0
    low, high = said["inference_warm_low_seconds"], said["inference_warm_high_seconds"]
    assert 0 < low <= said["inference_warm_seconds"] <= high
    assert said["top5"] is None
    assert "five classes or fewer" in said["missing"]["top5"]
    assert (run / "log.md").read_text().count("\n|") >= 7
    assert "61,496" in (run / "layers.txt").read_text()
    for name in ("curves.png", "confusion.png", "samples.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200


def test_evaluate_gives_the_runs_own_figures(run: Path, data: Path, tmp_path: Path) -> None:
    done = bench(
        *("evaluate", run, "--data", data, "--format", "json", "--threads", 1),
        *("--predictions", tmp_path / "p.txt", "--confusion", tmp_path / "c.csv"),
    )
    said = json.loads(done.stdout)
    assert set(said) >= {"top1", "top5", "images", "classes", "confusion"}
    assert said["images"] == 32
    assert said["top1"] == read(run / "summary.json")["top1"]
    # Of four classes the right one is always among the first five.
    assert said["top5"] is None
    assert said["weights"] == "last.safetensors, epoch 6; not chosen by accuracy"
    assert f"weights: {said['weights']}\n" in done.stderr
    assert [entry["name"] for entry in said["classes"]] == ["ant", "bee", "cat", "dog"]
    assert len((tmp_path / "p.txt").read_text().splitlines()) == 32
    assert sum(map(sum, said["confusion"])) == 32
    text = bench("evaluate", run / "last.safetensors", "--data", data, "--split", "train", "--threads", 1).stdout
    assert "macro avg" in text
    assert "96" in text


def test_predict_names_classes_with_confidences(run: Path, data: Path) -> None:
    paths = [data / "test" / name / "0.png" for name in ("ant", "dog")]
    done = bench("predict", run, *paths, "--format", "json", "--threads", 1)
    said = json.loads(done.stdout)
    assert [entry["top"][0]["class"] for entry in said["predictions"]] == ["ant", "dog"]
    for entry in said["predictions"]:
        confidences = [place["probability"] for place in entry["top"]]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1, abs=1e-3)
        assert entry["seconds"] > 0
    assert 0 < said["forward_seconds"] < said["warm_seconds"]
    # Where the machine is so busy that calls take long, there are too few of them for a 95th percentile.
    assert said["warm_p95_seconds"] is None or said["warm_p95_seconds"] >= said["warm_seconds"]
    line = bench("predict", run, paths[0], "--threads", 1).stderr
    assert re.search(
        r"on the cpu: the first image [\d.]+ m?s \(cold: .*\), warm [\d.]+ [mu]?s \[[\d.]+, [\d.]+\] "
        r"\(median of \d+ calls and its 95 % interval(; 95th percentile [\d.]+ [mu]?s)?\), "
        r"of which the network takes [\d.]+ [mu]?s",
        line,
    )


def test_one_bad_image_leaves_the_answers_of_the_others(run: Path, data: Path, tmp_path: Path) -> None:
    good = [data / "test" / name / "0.png" for name in ("ant", "dog")]
    (tmp_path / "text.png").write_text("no image")
    done = bench("predict", run, tmp_path / "no.jpg", good[0], tmp_path / "text.png", good[1], tmp_path, "--threads", 1)
    assert done.return_value == 2
    assert all(str(path) in done.stdout for path in good)
    for said in ("no.jpg does not exist", "text.png as an image", f"{tmp_path} is a folder; name the images in it"):
        assert said in done.stderr
    said = json.loads(bench("predict", run, good[0], tmp_path / "no.jpg", "--format", "json", "--threads", 1).stdout)
    assert [entry["path"] for entry in said["predictions"]] == [str(good[0])]
    assert [entry["path"] for entry in said["refused"]] == [str(tmp_path / "no.jpg")]
    assert said["warm_low_seconds"] <= said["warm_seconds"] <= said["warm_high_seconds"]
    assert "no.jpg does not exist" in str(bench("predict", run, tmp_path / "no.jpg").exception)


def test_an_unlabelled_pickle_becomes_a_submission(run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    planar = pixels.transpose(0, 3, 1, 2).reshape(5, 3072)
    written = []
    for number, array in enumerate((pixels, planar)):
        (tmp_path / "u.pkl").write_bytes(pickle.dumps({b"data": array, b"ids": np.arange(10, 15)}))
        done = bench("predict", run, "--data", f"pickle:{tmp_path / 'u.pkl'}", "-o", tmp_path / f"{number}.csv")
        assert done.exception is None, done.exception
        written.append((tmp_path / f"{number}.csv").read_text())
    assert written[0] == written[1]
    lines = written[0].splitlines()
    assert lines[0] == "ID,Labels"
    assert [line.split(",")[0] for line in lines[1:]] == ["10", "11", "12", "13", "14"]


def test_a_stop_by_time_goes_on_to_the_same_weights(run: Path, data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, "short", "--epochs", 6, "--max-minutes", 1e-6, "--no-report")
    assert done.return_value == 0
    assert "stopped after" in done.stderr
    assert read(tmp_path / "short" / "summary.json")["status"] == "stopped"
    ok("train", "--resume", tmp_path / "short", "--no-report")
    expected, found = (load_weights(folder / "last.safetensors")[1] for folder in (run, tmp_path / "short"))
    assert digest(found) == digest(expected)
    assert (tmp_path / "short" / "test_acc_history.txt").read_text() == (run / "test_acc_history.txt").read_text()
    assert len(load_steps(tmp_path / "short" / "steps.csv")) == 36


def test_a_finished_run_that_is_stopped_before_another_epoch_keeps_its_result(data: Path, tmp_path: Path) -> None:
    folder = trained(data, tmp_path, "whole", "--epochs", 1)
    before = read(folder / "summary.json")
    assert before["status"] == "finished"
    done = ok("train", "--resume", folder, "--epochs", 2, "--no-report", "--max-minutes", 1e-6)
    assert "their result stays" in done.stderr
    assert read(folder / "summary.json") == before
    ok("train", "--resume", folder, "--no-report", "--max-minutes", 0)
    after = read(folder / "summary.json")
    assert (after["status"], after["epochs"]) == ("finished", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "name", "moment", "stored"),
    [
        (engines, "build", lambda *arguments: True, (0, 1)),
        (TrainingLog, "epoch", lambda log, row, *others: row.epoch == 2, (2, 12)),
    ],
    ids=["a loader starts", "an epoch ends"],
)
def test_an_interrupt_leaves_a_run_that_goes_on(
    place: Any, name: str, moment: Any, stored: Any, number: int, data: Path, tmp_path: Path
) -> None:
    original = getattr(place, name)

    def interrupted(*arguments: Any) -> Any:
        if moment(*arguments):
            os.kill(os.getpid(), number)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, interrupted)
        done = train(data, tmp_path, "cut", "--epochs", 400, "--no-report")
    assert done.return_value == 130, done.exception
    assert f"stopped by {signal.Signals(number).name}; resume with: bench train --resume" in done.stderr
    card = load_weights(tmp_path / "cut" / "last.safetensors")[0]
    assert (card.epoch, card.step) == stored
    ok("train", "--resume", tmp_path / "cut", "--epochs", card.epoch + 2, "--no-report")
    epochs = History.load(tmp_path / "cut" / "history.csv").epochs
    assert [epoch.epoch for epoch in epochs] == list(range(1, card.epoch + 3))


def test_an_interrupt_before_the_first_step_leaves_no_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_store_request", lambda run: os.kill(os.getpid(), signal.SIGINT))
    done = train(data, tmp_path / "runs", "cut", "--no-report")
    assert isinstance(done.exception, click.Abort), "bench.cli ends with 130 then"
    assert not (tmp_path / "runs").exists()


KILLED = """
import os, signal, sys
from bench.cli import main
from bench.runs.sources import Feed
from bench.runs.training import TrainingLog
epoch = TrainingLog.epoch
def killed(self, row, best):
    if row.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    epoch(self, row, best)
TrainingLog.epoch = killed
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on(data: Path, tmp_path: Path) -> None:
    words = ("train", "--model", "lenet", "--data", data, "--runs", tmp_path, "--name", "cut", "--epochs", 3)
    words += ("--batch", 16, "--threads", 1, "--no-report", "--device", "cpu")
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], env=ENVIRON, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    ok("train", "--resume", tmp_path / "cut", "--no-report")
    # The second epoch was stored, but its row was not yet written.
    assert [epoch.epoch for epoch in History.load(tmp_path / "cut" / "history.csv").epochs] == [1, 2, 3]
    assert [step.step for step in load_steps(tmp_path / "cut" / "steps.csv")] == [*range(1, 19)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "name a recipe"),
        (("train", "--model", "lenet"), "no data"),
        (("train", "--model", "lenett", "--data", "DATA"), "lenet"),
        (("train", "under-5m", "--data", "DATA"), "unknown recipe"),
        (("train", "--model", "lenet", "--data", "nowhere"), "does not exist"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "speed=1"), "unknown recipe key speed"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "augment=sharpen"), "sharpen"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "optimizer=sdg"), "sgd"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "model.depth=3"), "depth"),
        (("train", "--model", "lenet", "--data", "DATA", "--loader", "dalli"), "dali"),
        (("train", "--model", "lenet", "--data", "DATA", "--loader", "mydata.py:load"), "mydata.py does not exist"),
        (("train", "--model", "lenet", "--data", "DATA", "--config", "fats"), "fast"),
        (("train", "--model", "lenet", "--data", "DATA", "--name", "../up"), "folder name"),
        (("train", "--model", "lenet", "--data", "DATA", "--runs", "/proc/none"), "cannot write run folder"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "classes=2"), "2 classes"),
        (("train", "--model", "lenet", "--data", "DATA", "--size", "5"), "takes no image of 5 x 5"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "batch=1000"), "the 96 training images"),
        (("train", "--model", "lenet", "--data", "DATA", "--max-minutes", "-1"), "max_minutes is -1"),
        (("train", "--model", "lenet", "--data", "DATA", "--max-minutes", "nan"), "max_minutes is nan"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "max_minutes=long"), "max_minutes"),
        (("train", "--model", "lenet", "--data", "DATA", "--lr", "inf"), "lr is inf; it must be finite"),
        (("train", "--model", "lenet", "--data", "DATA", "--set", "augment=crop:99"), "use at most 31"),
        (("train", "--model", "lenet", "--data", "DATA", "--loader", "spdl", "--set", "augment=crop"), "spdl"),
        (("train", "--resume", "DATA"), "not a run that can be resumed"),
        (("evaluate", "none.safetensors", "--data", "DATA"), "does not exist"),
        (("predict", "none.safetensors"), "name images"),
        (("predict", "RUN", "none.png"), "does not exist"),
        (("predict", "RUN", "README"), "cannot read"),
        (("predict", "RUN", "--data", "DATA"), "pickle:FILE"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    words: tuple[str, ...], message: str, data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"DATA": data, "RUN": run, "README": ROOT / "README.md"}
    batch = ("--batch", 16) if "--model" in words else ()
    done = bench(*(places.get(word, word) for word in words), *batch)
    assert isinstance(done.exception, REPORTED), done.exception
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not Path("runs").exists()


OWN_LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset


def learnable(batch, size, images=96):
    labels = torch.arange(images) % 4
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    pixels[:, 0, 0, 0] = labels * 1.0
    return DataLoader(TensorDataset(pixels, labels), batch, shuffle=True)


def stream(batch, size):
    while True:
        yield torch.zeros(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)


def foreign(batch, size):
    yield torch.zeros(batch, 3, size, size), torch.full((batch,), 4)
"""


def test_a_loader_of_one_s_own_gives_the_training_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ownloaders.py").write_text(OWN_LOADER)
    words = ("--loader", "ownloaders.py:learnable", "--epochs", 3, "--config", "naive")
    done = train(data, tmp_path, "whole", *words)
    assert done.exception is None, done.exception
    assert "with its own augmentation and normalisation" in done.stderr
    steps = load_steps(tmp_path / "whole" / "steps.csv")
    assert len(steps) == 3 * 6, "as many as it gives"
    assert read(tmp_path / "whole" / "summary.json")["test_images_trained_on"] is None
    said = ok("evaluate", tmp_path / "whole", "--data", data, "--threads", 1).stderr
    assert "unknown whether it was trained on these images: ownloaders.py:learnable gave them" in said
    # Whole epochs come again after a stop, because torch's random numbers do; and what is left of one is trained.
    stopped = train(data, tmp_path, "cut", *words, "--max-minutes", 1e-6, "--no-report")
    assert "stopped" in stopped.stderr
    again = ok("train", "--resume", tmp_path / "cut", "--no-report", "--max-minutes", 0)
    assert "ownloaders.py:learnable begins a new pass" in again.stderr
    assert [step.step for step in load_steps(tmp_path / "cut" / "steps.csv")] == [*range(1, 19)]
    stream = trained(data, tmp_path, "stream", "--loader", "ownloaders.py:stream", "--epochs", 1, "--config", "naive")
    assert len(load_steps(stream / "steps.csv")) == 96 // 16, "as many as the images of the data are"


@pytest.mark.parametrize(
    ("loader", "words", "message"),
    [
        ("learnable[images=90]", (), "the last batch of ownloaders.py:learnable[images=90] has 10 images only"),
        ("foreign", (), "gives labels from 4 to 4, and the data has 4 classes"),
        ("lernable", (), "learnable"),
        ("learnable", ("--set", "holdout=0.2"), "--data needs validation or test images"),
    ],
)
def test_what_is_wrong_with_a_loader_of_one_s_own_is_said(
    loader: str, words: tuple[str, ...], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ownloaders.py").write_text(OWN_LOADER)
    done = train(data, tmp_path, "r", "--loader", f"ownloaders.py:{loader}", "--epochs", 1, "--config", "naive", *words)
    assert isinstance(done.exception, REPORTED), done.exception
    assert message in str(done.exception)


def test_processes_do_not_share_a_loader_of_one_s_own() -> None:
    with pytest.raises(UsageError, match="trains in one process"):
        refuse_parts("ownloaders.py:stream", False, 2)


def test_a_run_on_generated_images_says_so(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "cifar10", 120)
    words = ("four-families-lenet", "--data", tmp_path / "set", "--runs", tmp_path, "--name", "made", "--device", "cpu")
    done = ok("train", *words, "--threads", 1, "--epochs", 1, "--batch", 25)
    assert "parameters) on generated cifar10/train-rest: " in done.stderr
    assert "test on generated cifar10/val: " in done.stderr
    assert "top1 and top5 are on the test set of generated cifar10, " in " ".join(done.stdout.split())
    said = read(tmp_path / "made" / "summary.json")
    assert said["data"] == "generated cifar10"
    assert said["published"]
    page = ok("report", tmp_path / "made", "-o", tmp_path / "page.html")
    assert page.exit_code == 0
    assert "lenet on generated cifar10: top-1" in (tmp_path / "page.html").read_text()
    assert "the published figure" not in (tmp_path / "page.html").read_text()
    tested = ok("evaluate", tmp_path / "made", "--data", tmp_path / "set", "--device", "cpu", "--threads", 1)
    assert "generated cifar10/" in tested.stderr


def test_a_diverged_run_is_a_failed_row_and_gives_its_name_back(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, "wild", "--set", "lr=1e12", "--set", "schedule=constant")
    assert "at step" in str(done.exception)
    assert read(tmp_path / "wild" / "summary.json")["status"] == "failed"
    trained(data, tmp_path, "wild", "--epochs", 1)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_touched_without_more_epochs(run: Path, data: Path) -> None:
    before = contents(run)
    assert "has finished its 6 epochs; to continue, give more --epochs" in ok("train", "--resume", run).stderr
    resume = ("train", "--resume", run)
    # What is as it was changes nothing, and neither does how fast it would go.
    same = ("--epochs", 6, "--seed", 0, "--device", "cpu", "--threads", 1)
    assert "has finished its 6 epochs" in ok(*resume, *same).stderr
    for done, message in (
        (train(data, run.parent, "full"), "exists; choose another --name, or resume it"),
        (bench(*resume, "--epochs", 2), "has trained 6 epochs, more than 2"),
        (
            bench(*resume, "--lr", 0.5, "--set", "schedule=plateau"),
            "nothing is left to train with another lr, schedule;",
        ),
        (
            bench(*resume, "--epochs", 6, "--batch", 3),
            "nothing is left to train with another batch; give more --epochs",
        ),
        (bench(*resume, "--device", "cuda"), "is trained on cpu, not on cuda; leave out --device"),
        (bench(*resume, "--seed", 3), "has seed 0, not 3"),
        (bench(*resume, "--model", "airbench94"), "has model lenet, not airbench94"),
    ):
        assert isinstance(done.exception, REPORTED)
        assert message in str(done.exception)
    assert contents(run) == before


@pytest.mark.parametrize("loader", ["pil", "torchvision"])
def test_a_run_that_fails_at_once_leaves_no_folder(data: Path, tmp_path: Path, loader: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    bad = broken / "train" / "ant" / "0.png"
    bad.write_bytes(bad.read_bytes()[:100])
    done = train(broken, tmp_path / "runs", "x", "--loader", loader, "--epochs", 1, "--no-report")
    assert isinstance(done.exception, REPORTED)
    assert str(done.exception).startswith(f"cannot decode {bad}")
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "runs").exists()


KILLED_EARLY = """
import os, signal, sys
from bench.cli import main
from bench.locks import hold
from bench.runs import request, training
from bench.runs.folder import DataFolders, RunRecord
def killed(*unused):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "opening":
    training.sources.open_folders = killed
else:
    training.TrainingLog.step = killed
main(sys.argv[2:])
"""


@pytest.mark.parametrize("moment", ["opening", "training"])
def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(
    moment: str, run: Path, data: Path, tmp_path: Path
) -> None:
    words = ("train", "--model", "lenet", "--data", data, "--runs", tmp_path, "--name", "cut", "--batch", 16)
    words += ("--lr", 0.05, "--epochs", 6, "--threads", 1, "--no-report", "--device", "cpu")
    command = [sys.executable, "-c", KILLED_EARLY, moment, *map(str, words)]
    assert subprocess.run(command, env=ENVIRON, timeout=120, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "last.safetensors").exists()
    done = ok("train", "--resume", tmp_path / "cut", "--no-report")
    assert f"run {tmp_path / 'cut'} ended before its first checkpoint; starting it from the beginning" in done.stderr
    expected, found = (load_weights(folder / "last.safetensors")[1] for folder in (run, tmp_path / "cut"))
    assert digest(found) == digest(expected)
    assert len(load_steps(tmp_path / "cut" / "steps.csv")) == 36
    assert read(tmp_path / "cut" / "run.json")["images"]["train"] == 96


def test_an_evaluation_says_which_files_its_loader_hands_to_pillow(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "pets")
    image = next((tmp_path / "pets" / "test" / "ant").iterdir())
    Image.open(image).save(image.with_suffix(".bmp"))
    image.unlink()
    done = ok("evaluate", run, "--data", tmp_path / "pets", "--loader", "torchvision", "--threads", 1)
    assert "Pillow decodes 1 BMP" in done.stderr


def test_a_run_that_fails_again_at_its_beginning_can_still_be_started_again(
    run: Path, data: Path, tmp_path: Path
) -> None:
    for name in ("run.json", "recipe.toml"):
        shutil.copy(run / name, tmp_path)
    before = contents(tmp_path)
    assert "does not exist" in str(bench("train", "--resume", tmp_path, "--data", "nowhere").exception)
    (tmp_path / ".lock").unlink()
    assert contents(tmp_path) == before
    ok("train", "--resume", tmp_path, "--epochs", 1, "--no-report")
    assert read(tmp_path / "summary.json")["epochs"] == 1


def test_a_folder_that_holds_no_recipe_yet_says_so(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert "was ended before it stored anything" in str(bench("train", "--resume", tmp_path).exception)


def test_a_run_without_its_last_weights_is_not_trained_over(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "recipe.toml", "history.csv", "best.safetensors"):
        shutil.copy(run / name, tmp_path)
    before = contents(tmp_path)
    assert "has lost its last.safetensors" in str(bench("train", "--resume", tmp_path).exception)
    assert contents(tmp_path) == before


def test_a_living_run_is_neither_resumed_nor_begun_again(run: Path, data: Path) -> None:
    with hold(run / ".lock"):
        before = contents(run)
        for done in (bench("train", "--resume", run, "--epochs", 9), train(data, run.parent, "full")):
            assert isinstance(done.exception, REPORTED)
            assert f"run {run} is being trained by process {os.getpid()}" in str(done.exception)
        assert contents(run) == before


def test_runs_of_the_same_second_have_folders_of_their_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request.time, "strftime", lambda *unused: "20260101-000000")
    for lr in (0.1, 0.01):
        words = ("--lr", lr, "--epochs", 1, "--batch", 16, "--threads", 1, "--no-report")
        ok("train", "--model", "lenet", "--data", data, "--runs", tmp_path, *words)
    rates = {path.name: load(path / "recipe.toml").lr for path in tmp_path.iterdir()}
    assert rates == {"lenet-20260101-000000": 0.1, "lenet-20260101-000000-2": 0.01}


@pytest.mark.night
def test_of_runs_that_start_at_once_none_is_lost(data: Path, tmp_path: Path) -> None:
    base = [sys.executable, "-m", "bench", "train", "--model", "lenet", "--data", str(data), "--runs", str(tmp_path)]
    base += ["--batch", "16", "--threads", "1", "--no-report", "--epochs", "1"]

    def codes(*names: str) -> list[int]:
        commands = [[*base, *(("--name", name) if name else ())] for name in names]
        return [process.wait(120) for process in [subprocess.Popen(words, env=ENVIRON) for words in commands]]

    assert sorted(codes("", "", "mine", "mine")) == [0, 0, 0, 2]
    assert len(list(tmp_path.iterdir())) == 3


def test_an_epoch_whose_evaluation_fails_is_kept(data: Path, tmp_path: Path) -> None:
    def unreadable(self: Feed) -> None:
        raise DataError("cannot decode 3.png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "validation", unreadable)
        done = train(data, tmp_path, "kept", "--epochs", 2, "--no-report")
    assert str(done.exception) == "cannot decode 3.png"
    assert "epoch 1 is trained and stored" in done.stderr
    assert load_weights(tmp_path / "kept" / "last.safetensors")[0].step == 6
    ok("train", "--resume", tmp_path / "kept", "--no-report")
    both = tmp_path / "kept", trained(data, tmp_path, "whole", "--epochs", 2)
    histories = [History.load(folder / "history.csv").epochs for folder in both]
    assert [row.val_loss for row in histories[0]] == [row.val_loss for row in histories[1]]
    assert [row.train_loss for row in histories[0]] == [row.train_loss for row in histories[1]]
    assert load_steps(both[0] / "steps.csv") == load_steps(both[1] / "steps.csv")
    first, second = (digest(load_weights(folder / "last.safetensors")[1]) for folder in both)
    assert first == second


def test_fewer_epochs_shorten_the_warm_up_of_a_recipe(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('model = "lenet"\nepochs = 10\nbatch = 16\nwarmup_epochs = 2.5\nmilestones = [4.0, 8.0]\n')
    words = ("train", path, "--data", data, "--runs", tmp_path, "--epochs", 1, "--threads", 1, "--no-report")
    done = ok(*words, "--name", "a")
    assert "epochs 10 to 1, warmup_epochs 2.5 to 0.25, milestones [4, 8] to [0.4, 0.8]" in done.stderr
    assert load(tmp_path / "a" / "recipe.toml").warmup_epochs == 0.25
    done = bench(*words, "--name", "b", "--set", "warmup_epochs=0.5")
    assert load(tmp_path / "b" / "recipe.toml").warmup_epochs == 0.5


def test_evaluate_takes_what_the_run_was_trained_on(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copytree(data / "test", tmp_path / "val")
    done = ok("evaluate", run, "--data", tmp_path, "--threads", 1)
    assert "has no test images: its validation images are used" in done.stderr


def test_classes_that_the_checkpoint_does_not_know(run: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("ant", "bee", "cow", "dog"):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(other / name / "0.png")
    assert "cow" in str(bench("evaluate", run, "--data", other).exception)
    assert "4 classes, the data has 1" in str(bench("evaluate", run, "--data", data / "test" / "ant").exception)
    wrong = bench("train", "--resume", run, "--data", other, "--set", "holdout=0.0", "--epochs", 9)
    assert wrong.exception is not None


def test_training_and_validation_classes_that_differ(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "c")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / split / name / "0.png")
    done = bench("train", "--model", "lenet", "--data", tmp_path)
    assert "only in the first: b; only in the second: c" in str(done.exception)


def test_images_that_are_tested_on_and_trained_on_are_reported(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(data / "train")
    (tmp_path / "test").symlink_to("train")
    done = train(tmp_path, tmp_path, "same", "--epochs", 1, "--no-report")
    assert "warning: all 96 test images are training images too (such as " in done.stderr
    assert "trained on 96 of these, so too good" in done.stderr
    assert "Trained on test images, so too good: same (96)." in done.stdout
    record = read(tmp_path / "same" / "run.json")
    assert (record["test_is_independent"], record["test_images_trained_on"]) == (False, 96)
    (tmp_path / "test").unlink()
    shutil.copytree(data / "test", tmp_path / "test")
    shutil.copy(data / "train" / "ant" / "3.png", tmp_path / "test" / "ant" / "copy.png")
    done = train(tmp_path, tmp_path, "one", "--epochs", 1, "--no-report")
    assert "warning: 1 of the 33 test images are training images too (such as " in done.stderr
    record = read(tmp_path / "one" / "run.json")
    assert (record["test_is_independent"], record["test_images_trained_on"]) == (False, 1)
    assert read(trained(data, tmp_path, "apart", "--epochs", 1) / "run.json")["test_is_independent"]


def test_evaluate_knows_the_training_images_wherever_they_lie(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    shutil.copytree(data / "train", tmp_path / "copy")
    for words in ((data, "--split", "train"), (tmp_path / "link", "--split", "train"), (data / "train",)):
        done = ok("evaluate", run, "--data", *words, "--threads", 1)
        assert "weights: last.safetensors, epoch 6; trained on these images, so too good\n" in done.stderr
    for name in ("ant", "bee", "cat", "dog"):
        shutil.copy(data / "test" / name / "0.png", tmp_path / "copy" / name / "other.png")
    said = json.loads(ok("evaluate", run, "--data", tmp_path / "copy", "--format", "json", "--threads", 1).stdout)
    assert said["weights"] == "last.safetensors, epoch 6; trained on 96 of these 100 images, so too good"
    assert (said["images_trained_on"], said["left_out"]) == (96, [])


def test_a_run_goes_on_with_the_images_it_began_with(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "pets")
    short = ("--epochs", 4, "--max-minutes", 1e-6, "--no-report")
    done = train(tmp_path / "pets", tmp_path, "r", *short)
    assert done.exception is None, done.exception
    (tmp_path / "pets").rename(tmp_path / "moved")
    elsewhere = ok("train", "--resume", tmp_path / "r", "--data", tmp_path / "moved", *short[2:])
    assert "other images" not in elsewhere.stderr
    for number in range(5):
        source = tmp_path / "moved" / "train" / "ant" / f"{number}.png"
        source.rename(tmp_path / "moved" / "train" / "bee" / f"ant{number}.png")
    before = [(tmp_path / "r" / name).read_bytes() for name in ("run.json", "images.npz", "last.safetensors")]
    done = bench("train", "--resume", tmp_path / "r", "--no-report")
    assert "began with other images than there are now (train: 5 in another class)" in str(done.exception)
    assert before == [(tmp_path / "r" / name).read_bytes() for name in ("run.json", "images.npz", "last.safetensors")]
    done = ok("train", "--resume", tmp_path / "r", "--data", tmp_path / "moved", "--no-report")
    assert "warning: the run goes on with other images than before (train: 5 in another class)" in done.stderr


def test_a_run_of_an_earlier_version_goes_on_and_says_what_it_does_not_know(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, "old", "--epochs", 4, "--max-minutes", 1e-6, "--no-report")
    assert done.exception is None, done.exception
    (tmp_path / "old" / "images.npz").unlink()
    record = read(tmp_path / "old" / "run.json")
    del record["test_images_trained_on"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    used = ok("evaluate", tmp_path / "old", "--data", data, "--threads", 1).stderr
    assert "unknown whether it was trained on these images" in used
    done = ok("train", "--resume", tmp_path / "old", "--no-report")
    assert "note: an earlier version began run" in done.stderr
    used = ok("evaluate", tmp_path / "old", "--data", data, "--threads", 1).stderr
    assert "unknown whether it was trained on these images: an earlier version began the run" in used


def test_a_folder_one_too_high_is_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "pets").symlink_to(data)
    done = train(tmp_path / "all", tmp_path / "runs", "x")
    assert isinstance(done.exception, REPORTED)
    assert "all has one class, pets: there is nothing to learn; " in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_folders_named_one_by_one_are_merged_and_found_again_from_anywhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    words = ("--train", "train,test", "--val", "test,train", "--epochs", 1, "--batch", 16, "--threads", 1)
    ok("train", "--model", "lenet", "--runs", tmp_path, "--name", "merged", "--no-report", *words)
    record = read(tmp_path / "merged" / "run.json")
    assert record["images"] == {"train": 128, "validation": 128, "test": 128}
    train, test = str(data / "train"), str(data / "test")
    assert record["data"] == {"folder": "", "train": [train, test], "val": f"{test},{train}"}
    monkeypatch.chdir(tmp_path)
    ok("train", "--resume", "merged", "--epochs", 2, "--no-report")


@pytest.mark.parametrize(
    ("folder", "settings", "images", "independent", "evaluated"),
    [
        ("", ["holdout=0.25", "select=best"], {"train": 72, "validation": 24, "test": 32}, True, "val"),
        ("train", [], {"train": 77, "validation": 19, "test": 19}, False, "held-out"),
    ],
)
def test_a_run_says_what_it_is_tested_on(
    data: Path, tmp_path: Path, folder: str, settings: list[str], images: Any, independent: bool, evaluated: str
) -> None:
    words = [word for text in settings for word in ("--set", text)]
    done = train(data / folder, tmp_path, "held", "--epochs", 1, "--no-report", *words)
    assert done.exception is None, done.exception
    assert ("warning: " in done.stderr) == (not independent)
    record = read(tmp_path / "held" / "run.json")
    assert (record["images"], record["test_is_independent"]) == (images, independent)
    assert read(tmp_path / "held" / "summary.json")["evaluated"] == evaluated


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer=adamw", "lr=0.001", "ema=0.9", "mixup=0.2"],
        ["model.activation=gelu", "model.head_dropout=0.4", "label_smoothing=0.1", "evaluation=random"],
        ["augment=crop+flip+rotate:20", "normalization=per_image", "sam_rho=0.05", "sam_interval=2"],
        ["loader=pil", "configuration=naive", "augment=crop_reflect+flip"],
        ["divide=2", "schedule=plateau", "gamma=0.5", "checkpoint_epochs=1"],
        ["tta=flip", "schedule=onecycle", "nesterov=true", "configuration=amp-nchw-eager"],
    ],
)
def test_keys_of_every_kind_train(settings: list[str], data: Path, tmp_path: Path) -> None:
    words: list[Any] = [word for text in settings for word in ("--set", text)]
    trained(data, tmp_path, "keys", "--epochs", 1, *words)


def test_a_recipe_for_more_classes_leaves_weights_that_can_be_opened(data: Path, tmp_path: Path) -> None:
    done = train(data, tmp_path, "fewer", "--epochs", 1, "--no-report", "--set", "classes=10")
    assert "classes: 4, those of pets0/train; the recipe is for 10" in done.stderr
    ok("evaluate", tmp_path / "fewer", "--data", data, "--threads", 1)


def test_a_student_learns_from_a_teacher(run: Path, data: Path, tmp_path: Path) -> None:
    words = ("--set", f"teacher={run / 'last.safetensors'}", "--set", "model.hidden=[40, 30]", "--epochs", 1)
    student = trained(data, tmp_path, "student", *words)
    assert read(student / "summary.json")["params"] < read(run / "summary.json")["params"]


@pytest.mark.parametrize("loader", ["resident", pytest.param("torchvision", marks=pytest.mark.night), "pil", "dali"])
def test_orientation_is_applied_in_every_command_as_in_training(loader: str, tmp_path: Path) -> None:
    """The classes have the same pixels and differ in their EXIF orientation alone."""
    if (reason := engines.missing(loader)) is not None:
        pytest.skip(reason)
    random, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    for split, count in (("train", 16), ("val", 8)):
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            pixels[:, :12] += 150
            for name, options in (("as-stored", {}), ("turned", {"exif": exif})):
                folder = tmp_path / "data" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95, **options)
    words = ("--set", "augment=none", "--set", f"loader={loader}", "--config", "naive", "--epochs", 6, "--size", 32)
    for policy, reached in (("apply", 1.0), ("ignore", 0.5)):
        run = trained(tmp_path / "data", tmp_path, policy, *words, "--set", f"exif={policy}")
        usual = ("--config", "naive", "--threads", 1, "--format", "json")
        evaluate = ("evaluate", run, "--data", tmp_path / "data", *usual)
        assert json.loads(ok(*evaluate).stdout)["top1"] == reached
        assert json.loads(ok(*evaluate, "--loader", loader).stdout)["top1"] == reached
        if policy == "apply":
            for name in ("as-stored", "turned"):
                path = tmp_path / "data" / "val" / name / "0.jpg"
                predicted = ok("predict", run, path, *usual).stdout
                assert json.loads(predicted)["predictions"][0]["top"][0]["class"] == name


def test_torchrun_on_a_machine_that_came_back_knows_the_run_by_its_name(tmp_path: Path) -> None:
    record = RunRecord(training._command(), "", DataFolders(), {}, True, "cpu", 2, 1, "naive", {}, launch="job-7")
    record.save(tmp_path)
    environ = {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "0"}
    for launch, restarts, known in (("job-7", 0, True), ("job-8", 0, False), ("none", 0, False), ("none", 1, True)):
        more = {"TORCHELASTIC_RUN_ID": launch, "TORCHELASTIC_RESTART_COUNT": str(restarts)}
        assert training._begun_by_this_command(tmp_path, World.from_environ(environ | more)) is known
    replace(record, command="bench train another").save(tmp_path)
    assert not training._begun_by_this_command(tmp_path, World(size=2, launch="job-7"))


ELASTIC = """
import os, signal, sys, threading, time
from pathlib import Path
from bench.cli import main
from models.training.distributed import World
world = World.from_environ()
def kill_when_stored():
    while not Path(sys.argv[1]).exists():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)
if world.rank == 1 and world.restarts == 0:
    threading.Thread(target=kill_when_stored, daemon=True).start()
main(sys.argv[2:])
"""


@pytest.mark.night
def test_processes_share_a_run_and_go_on_with_it_when_torchrun_starts_them_again(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "elastic.py"
    script.write_text(ELASTIC)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", "1", str(script), str(tmp_path / "two" / "last.safetensors")]
    words = ["train", "--model", "lenet", "--data", data, "--runs", tmp_path, "--epochs", 30, "--batch", 16]
    words += ["--lr", 0.01, "--threads", 1, "--no-report", "--config", "fp32-nhwc-eager"]
    command = [*launcher, *map(str, words), "--name", "two"]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming after epoch" in done.stderr
    assert [epoch.epoch for epoch in History.load(tmp_path / "two" / "history.csv").epochs] == list(range(1, 31))
    assert read(tmp_path / "two" / "summary.json")["status"] == "finished"
    ok(*words, "--name", "one")
    for name in ("train_loss_history.txt", "test_loss_history.txt", "test_acc_history.txt"):
        # Sums in another order drift apart with the epochs.
        both = [np.loadtxt(tmp_path / folder / name)[:5] for folder in ("two", "one")]
        np.testing.assert_allclose(*both, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "processes", "compiled"),
    [
        ({}, 1, "graphs"),
        ({"mixup": 0.2}, 1, "compile"),
        ({"accumulate": 2}, 1, "compile"),
        ({"optimizer": "rmsprop"}, 1, "compile"),
        ({}, 2, "compile"),
        # Who asks for graphs gets them, or is told why not.
        ({"mixup": 0.2, "configuration": "amp-nhwc-graphs"}, 1, "graphs"),
    ],
)
def test_a_preset_is_content_with_less_where_steps_are_not_alike(
    changes: dict[str, Any], processes: int, compiled: str
) -> None:
    recipe = Recipe(**{"model": "lenet", "configuration": "fast", "epochs": 1, "batch": 8, "lr": 0.1, **changes})
    assert configured(recipe, Device("cuda", bf16=True, compiler=True), processes).compile == compiled


def test_repeated_it_says_mean_and_spread_and_stores_nothing(data: Path, tmp_path: Path) -> None:
    words = ("--epochs", 2, "--repeat", 3, "--format", "json", "-o", tmp_path / "runs.json")
    base = ("train", "--model", "lenet", "--data", data, "--runs", tmp_path / "runs", "--batch", 16, "--lr", 0.05)
    done = ok(*base, "--threads", 1, "--device", "cpu", *words)
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert sorted(run["name"] for run in runs) == ["seed 0", "seed 1", "seed 2"]
    assert not (tmp_path / "runs").exists()
    [line] = [line for line in done.output.splitlines() if line.startswith("3 runs: ")]
    mean = sum(run["top1"] for run in runs) / 3
    assert f"top-1 {100 * mean:.2f} % (standard deviation " in line
    assert "clock: from the first look at the training images" in line
    # A run of its own with that seed learns the same.
    ok(*base, "--threads", 1, "--device", "cpu", "--epochs", 2, "--seed", 1, "--name", "one", "--no-report")
    alone = json.loads((tmp_path / "runs/one/summary.json").read_text())
    assert alone["top1"] == next(run["top1"] for run in runs if run["name"] == "seed 1")


def test_repeated_runs_that_are_stopped_say_so(data: Path, tmp_path: Path) -> None:
    words = ("--epochs", 2, "--repeat", 3, "--max-minutes", 1e-6, "--runs", tmp_path)
    done = ok("train", "--model", "lenet", "--data", data, "--batch", 16, "--threads", 1, "--device", "cpu", *words)
    assert "stopped after 1e-06 minutes: 0 of 3 runs ended" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [("--resume", "somewhere"), ("--name", "one")])
def test_repeated_runs_have_no_folder(words: tuple[str, str], data: Path, run: Path) -> None:
    given = (words[0], run) if words[0] == "--resume" else ("--model", "lenet", "--data", data, *words)
    assert "--repeat stores no run" in str(bench("train", *given, "--repeat", 2).exception)
