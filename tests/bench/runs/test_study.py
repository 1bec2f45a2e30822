"""Studies: what becomes of each run, and what all of them say together; mostly on a fake trainer."""

import contextlib
import csv
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import click
import pytest
from click.testing import CliRunner

from bench import processes
from bench.cli import app
from bench.commands.study import command
from bench.errors import UsageError
from bench.runs import engines, study
from bench.runs.engines import Local
from bench.runs.epochs import EpochPoint, stored_epochs
from bench.runs.findings import Findings, order
from bench.runs.folder import DataFolders, RunRecord
from bench.runs.plan import Plan, StudyError, parse_over, plan_runs
from bench.runs.provenance import RunImages
from bench.runs.sources import open_folders
from bench.runs.study import Conductor, condition
from bench.runs.training import published_row
from bench.screen import Screen
from loaders import separable
from loaders.datasets import Dataset, open_splits
from models.training import recipe as recipes
from models.training.checkpoint import Card, save_weights, weights_of
from models.training.recipe import Recipe
from models.zoo import build
from results.history import Epoch, History
from results.lines import read_lines
from results.pictures import studies as pictures_of_studies
from results.runs import RunSummary

DATA = DataFolders("/data")
OPENED = [Dataset(f"cifar10/{split}", "", split, (), (0,) * 20, ("a",)) for split in ("train", "test")]
ACCURACY = {"sgd": 0.8, "adam": 0.7, "rmsprop": 0.6, "adadelta": 0.65}


class Done:
    """A process that has ended already."""

    pid = 0

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> int:
        return self.code

    def send_signal(self, sig: int) -> None:
        """Too late."""


class Trainer:
    """In place of `bench train`: leaves the files of a run at once; `fails` says how a named run ends instead."""

    def __init__(self, fails: dict[str, tuple[str, int]] | None = None) -> None:
        self.fails = fails or {}
        self.asked: list[list[str]] = []

    def __call__(
        self, arguments: Sequence[str], log: IO[bytes], locks: Sequence[int] = (), variables: Any = None
    ) -> Any:
        self.asked.append(list(arguments))
        resumed = "--resume" in arguments
        if resumed:
            folder = Path(arguments[arguments.index("--resume") + 1])
        else:
            folder = Path(arguments[arguments.index("--runs") + 1], arguments[arguments.index("--name") + 1])
        recipe = recipes.load(folder.with_name(folder.name + ".toml"))
        folder.mkdir(exist_ok=True)
        RunRecord("bench train", "", DATA, {}, True, "cpu", 1, 1, "naive", {}).save(folder)
        if folder.name in self.fails:
            said, code = self.fails[folder.name]
            log.write(f"epoch 1\n\n{said}\n\n".encode())
            return Done(code)
        history(recipe.epochs, ACCURACY.get(recipe.optimizer, 0.5)).save(folder / "history.csv")
        (folder / "last.safetensors").touch()
        finished(folder, recipe, ACCURACY.get(recipe.optimizer, 0.5) + 0.001 * recipe.seed)
        return Done(0)


def history(epochs: int, top1: float) -> History:
    return History(
        Epoch(e, 0.1, 32, 1.0, 0.4, 1.1, top1 * e / epochs, 0.9, 64, 1.0, 0.1, 0.7, 0.2, 80.0, 16)
        for e in range(1, epochs + 1)
    )


def finished(folder: Path, recipe: Recipe, top1: float) -> None:
    RunSummary(
        name=folder.name,
        model=recipe.model,
        data="cifar10",
        recipe=folder.name,
        evaluated="test",
        status="finished",
        epochs=recipe.epochs,
        top1=top1,
        best_top1=top1 + 0.01,
        best_epoch=1,
        train_seconds=10.0 * recipe.epochs,
        params=1000,
        weight_bytes=4000,
        published=published_row(recipe.published),
    ).save(folder)


class Lines(Screen):
    """Keeps the lines that stay."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(silent=True)
        self.lines = lines

    def say(self, text: str) -> None:
        self.lines.append(text)


def conduct(plan: Plan, folder: Path, trainer: Any, said: list[str] | None = None) -> list[RunSummary]:
    screen = Lines([] if said is None else said)
    return Conductor(plan, folder, DATA, OPENED, ("--threads", "1"), screen, Local(starter=trainer)).train()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "cifar10"
    separable.make(folder, "cifar10", 120, 0, None)
    return folder


OPTIMIZERS = {"optimizer": ("sgd", "adam")}


def test_every_run_is_trained_by_its_own_recipe_and_done_once(tmp_path: Path) -> None:
    plan, trainer, said = plan_runs("optimizers", OPTIMIZERS), Trainer(), []
    runs = conduct(plan, tmp_path / "s", trainer, said)
    assert [(run.name, run.top1) for run in runs] == [("sgd", 0.8), ("adam", 0.7)]
    first = trainer.asked[0]
    assert first[:2] == ["train", str(tmp_path / "s" / "sgd.toml")]
    assert first[2:] == ["--name", "sgd", "--runs", str(tmp_path / "s"), "--data", "/data", "--threads", "1"]
    assert recipes.load(tmp_path / "s" / "adam.toml") == plan.runs[1].recipe
    assert said[0] == "run 1 of 2: sgd, 50 epochs, expected time: known after the first"
    assert said[1].startswith("run 1 of 2: sgd: top-1 80.00 %, took ")
    assert said[2] == "run 2 of 2: adam, 50 epochs, expected about 8 min 20 s"
    again, said = Trainer(), []
    assert conduct(plan, tmp_path / "s", again, said) == runs
    assert again.asked == []
    assert said == ["run 1 of 2: sgd: finished before", "run 2 of 2: adam: finished before"]


def test_what_a_run_does_beside_training_is_expected_of_the_rest_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, now = plan_runs("optimizers", {"optimizer": ("sgd", "adam", "adamw")}), [0.0]
    monkeypatch.setattr(engines, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def ending_at(run: str, trainer: Trainer) -> list[str]:
        """Each run trains for 500 s and takes an hour; this one is interrupted after ten minutes."""

        def start(arguments: Sequence[str], log: IO[bytes], locks: Sequence[int], variables: Any) -> Any:
            if any(word.rpartition("/")[2].partition(".")[0] == run for word in arguments):
                now[0] += 600
                trainer.fails[run] = ("epoch 1", 0)
                trainer(arguments, log)
                (tmp_path / run / "last.safetensors").touch()
                os.kill(os.getpid(), signal.SIGINT)
                return Done(0)
            now[0] += 3600
            return trainer(arguments, log)

        said: list[str] = []
        with contextlib.suppress(KeyboardInterrupt):
            conduct(plan, tmp_path, start, said)
        return said

    assert ending_at("adam", Trainer())[2].endswith(
        "adam, 50 epochs, expected about 1 h 0 min, all remaining runs about 2 h 0 min"
    )
    again = ending_at("adamw", Trainer())
    assert again[1].endswith("adam, resuming, expected about 1 h 0 min, all remaining runs about 2 h 0 min")
    # That of adam is the time of both of its processes.
    assert again[3].endswith("adamw, 50 epochs, expected about 1 h 5 min")
    (tmp_path / study.TIMES).unlink()
    assert ending_at("", Trainer())[2].endswith("adamw, resuming, expected more than 8 min 20 s")


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("bench: the loss is nan at step 3", 2, "the loss is nan at step 3"),
        ("RuntimeError: no kernel", 1, "RuntimeError: no kernel"),
        ("", -signal.SIGKILL, "killed by SIGKILL, perhaps for lack of memory"),
    ],
)
def test_a_failed_run_is_a_row_with_its_reason_and_is_tried_again(
    tmp_path: Path, said: str, code: int, reason: str
) -> None:
    plan = plan_runs("optimizers", OPTIMIZERS)
    runs = conduct(plan, tmp_path, Trainer({"sgd": (said, code)}))
    assert [(run.status, run.reason) for run in runs] == [("failed", reason), ("finished", None)]
    assert reason in Findings(plan, tuple(runs)).text("text")
    trainer = Trainer()
    assert [run.status for run in conduct(plan, tmp_path, trainer)] == ["finished", "finished"]
    assert len(trainer.asked) == 1
    assert "--resume" not in trainer.asked[0]


def test_a_run_with_weights_goes_on_and_its_old_summary_is_forgotten(tmp_path: Path) -> None:
    plan = plan_runs("optimizers", {"optimizer": ("sgd",)})
    conduct(plan, tmp_path, Trainer())
    run = RunSummary.load(tmp_path / "sgd")
    replace(run, status="stopped", reason="stopped by SIGINT").save(tmp_path / "sgd")
    assert condition(tmp_path, plan.runs[0], DATA) == "begun"
    trainer = Trainer({"sgd": ("bench: disk full", 2)})
    assert [run.reason for run in conduct(plan, tmp_path, trainer)] == ["disk full"]
    assert trainer.asked[0][:3] == ["train", "--resume", str(tmp_path / "sgd")]
    assert (tmp_path / "sgd" / "last.safetensors").exists()


def test_another_run_under_the_same_name_is_neither_used_nor_removed(tmp_path: Path) -> None:
    conduct(plan_runs("optimizers", OPTIMIZERS), tmp_path, Trainer())
    trainer = Trainer()
    with pytest.raises(StudyError, match="epochs 50 there, 3 here"):
        conduct(plan_runs("optimizers", {**OPTIMIZERS, "epochs": (3,)}), tmp_path, trainer)
    assert trainer.asked == []
    run = plan_runs("optimizers", OPTIMIZERS).runs[0]
    with pytest.raises(StudyError, match="folder /data there, /other here"):
        condition(tmp_path, run, DataFolders("/other"))
    (tmp_path / "rmsprop").mkdir()
    (tmp_path / "rmsprop" / "thesis.txt").touch()
    with pytest.raises(StudyError, match="is in the way"):
        conduct(plan_runs("optimizers"), tmp_path, trainer)
    assert (tmp_path / "rmsprop" / "thesis.txt").exists()


def test_a_run_that_ended_where_its_recipe_says_is_done(tmp_path: Path) -> None:
    over = {"lr": (0.1,), "stop_epoch": (2,)}
    plan = plan_runs("four-families-lenet", over, seeds=(0,))
    conduct(plan, tmp_path, Trainer())
    name = plan.runs[0].name
    replace(RunSummary.load(tmp_path / name), status="stopped", reason="recipe", epochs=2).save(tmp_path / name)
    assert condition(tmp_path, plan.runs[0], DATA) == "finished"


def test_a_folder_belongs_to_one_command_at_a_time(tmp_path: Path) -> None:
    with study.locked(tmp_path), pytest.raises(StudyError, match="another command is at work"):
        conduct(plan_runs("optimizers"), tmp_path, Trainer())


class Slow(Done):
    """Ends only when it is asked to."""

    def __init__(self, interrupts: bool = True) -> None:
        super().__init__(130)
        self.interrupts, self.signals = interrupts, list[int]()

    def poll(self) -> int | None:
        if self.signals:
            return self.code
        if self.interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        return None

    def send_signal(self, sig: int) -> None:
        self.signals.append(sig)


@pytest.mark.parametrize("starting", [False, True])
def test_ctrl_c_asks_the_run_to_stop_and_waits_for_it(tmp_path: Path, starting: bool) -> None:
    slow, said = Slow(), list[str]()

    def starter(*arguments: object) -> Slow:
        if starting:
            os.kill(os.getpid(), signal.SIGINT)
        return slow

    with pytest.raises(KeyboardInterrupt):
        conduct(plan_runs("optimizers", OPTIMIZERS), tmp_path, starter, said)
    assert slow.signals == [signal.SIGINT]
    assert "stopping sgd" in said[-1]


def test_several_runs_at_a_time_share_the_devices_and_are_stopped_together(tmp_path: Path) -> None:
    plan = plan_runs("optimizers", {"optimizer": ("sgd", "adam", "adadelta")})
    trainer, seen, slow = (
        Trainer({"sgd": ("bench: disk full", 2)}),
        list[tuple[str, str]](),
        [Slow(interrupts=False), Slow()],
    )

    def starter(arguments: Sequence[str], log: IO[bytes], locks: Sequence[int], variables: dict[str, str]) -> Any:
        seen.append((arguments[arguments.index("--name") + 1], variables["CUDA_VISIBLE_DEVICES"]))
        return trainer(arguments, log) if len(seen) == 1 else slow[len(seen) - 2]

    said: list[str] = []
    engine = Local(("0", "3"), starter)
    with pytest.raises(KeyboardInterrupt):
        Conductor(plan, tmp_path, DATA, OPENED, (), Lines(said), engine).train()
    # The run that failed gave its place to the third.
    assert seen == [("sgd", "0"), ("adam", "3"), ("adadelta", "0")]
    assert [process.signals for process in slow] == [[signal.SIGINT]] * 2
    assert said[2].startswith("run 1 of 3: sgd: failed: disk full")
    assert said[-1].startswith("stopping adadelta, adam: they store their states first")
    assert {took.run for took in read_lines(study.Took, tmp_path / study.TIMES)} == {"sgd", "adam", "adadelta"}


def test_each_run_at_a_time_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.local_devices(3, "cpu") == [None] * 3
    monkeypatch.setattr(engines, "choose_device", lambda wanted: "cuda")
    monkeypatch.setattr(engines, "open_nvml", lambda: SimpleNamespace(nvmlInit=None))
    monkeypatch.setattr(engines, "visible_handles", lambda nvml, environ: ["a", "b", "c"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engines.local_devices(2, "auto") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1,7")
    assert engines.local_devices(2, "auto") == ["5", "GPU-1"]
    with pytest.raises(UsageError, match="--devices 4: 3 GPUs are visible"):
        engines.local_devices(4, "auto")


def test_an_interrupted_study_keeps_its_tables_and_says_how_to_go_on(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Slow())
    words = ["study", "optimizers", "--over", "batch=16", "--data", str(pictures), "--runs", str(tmp_path)]
    result = CliRunner().invoke(app, words, standalone_mode=False)
    assert isinstance(result.exception, click.Abort), "bench.cli ends with 130 then"
    assert "0 of 5 runs are finished; the same command continues" in result.stderr
    assert json.loads((tmp_path / "optimizers" / "results.json").read_text())["not_run"][0] == "sgd"


def test_the_published_order_stands_beside_ours() -> None:
    made = order({"a": (0.9, 0.5), "b": (0.8, 0.7), "c": (0.7, 0.6)})
    assert made is not None
    assert [(r.point, r.published_rank, r.rank) for r in made.ranks] == [("a", 1, 3), ("b", 2, 1), ("c", 3, 2)]
    assert made.tau == pytest.approx(-1 / 3)
    assert order({"a": (0.9, 0.5)}) is None
    equal = order({"a": (0.9, 0.5), "b": (0.8, 0.5), "c": (0.7, 0.5)})
    assert equal is not None
    assert equal.tau is None


def test_tables_files_and_pictures_of_a_trial_all_say_that_it_is_one(tmp_path: Path) -> None:
    plan = plan_runs("optimizers", None, scale=0.1)
    found = Findings(plan, tuple(conduct(plan, tmp_path, Trainer({"adagrad": ("bench: no", 2)}))))
    written = found.save(tmp_path)
    assert {path.name for path in written} == {
        "table.md", "table.csv", "results.json", "test_accuracy.png", "test_loss.png", "train_test.png",
        "accuracy.png", "training_time.png", "inference_time.png", "inference_time_cold.png", "parameters.png",
        "sizes.png",
    }  # fmt: skip
    assert all(path.stat().st_size for path in written)
    mark = "scaled by 0.1: a trial, no result"
    for format in ("text", "markdown", "csv", "json"):
        assert mark in found.text(format)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["sgd", "adam", "adadelta", "rmsprop", "adagrad"]
    assert {row["scaled"] for row in rows} == {mark}
    said = json.loads((tmp_path / "results.json").read_text())
    assert said["study"] == "optimizers"
    assert [run["name"] for run in said["runs"]] == [row["name"] for row in rows]
    points = said["orders"]["published"]["points"]
    assert [(p["point"], p["published_rank"], p["rank"]) for p in points] == [
        ("sgd", 1, 1), ("adadelta", 2, 3), ("adam", 3, 2), ("rmsprop", 4, 4),
    ]  # fmt: skip
    assert said["orders"]["published"]["tau"] == pytest.approx(2 / 3)
    assert "tau 0.67" in found.text("markdown")


def test_seeds_are_summed_up_and_ranks_go_by_their_mean(tmp_path: Path) -> None:
    plan = plan_runs("optimizers", OPTIMIZERS, seeds=(0, 2))
    found = Findings(plan, tuple(conduct(plan, tmp_path, Trainer())))
    assert [(s.point, s.seeds) for s in found.spreads()] == [("sgd", 2), ("adam", 2)]
    assert found.spreads()[0].mean == pytest.approx(0.801)
    assert found.spreads()[0].deviation == pytest.approx(0.002 / 2**0.5)
    assert found.orders()["published"].ranks[0].ours == pytest.approx(0.801)
    assert "Seeds" in found.text("text")


def test_a_study_whose_figure_is_the_best_epoch_is_ranked_by_it(tmp_path: Path) -> None:
    plan = plan_runs("under-5m")
    assert plan.sort == "best_top1"
    found = Findings(plan, tuple(conduct(plan, tmp_path, Trainer())))
    assert found.orders()["published"].ranks[0].point == "under-5m-res_512_d"
    assert found.orders()["published"].ranks[0].ours == pytest.approx(0.81)


def test_runs_that_were_not_started_are_named() -> None:
    found = Findings(plan_runs("optimizers", OPTIMIZERS), ())
    assert found.not_run() == ["sgd", "adam"]
    for format in ("text", "markdown"):
        assert "not run yet: sgd, adam" in found.text(format)
    assert json.loads(found.text("json"))["not_run"] == ["sgd", "adam"]
    assert found.text("csv").startswith("rank,")


def test_stored_epochs_are_tested_once_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_of_studies, "draw", lambda *_: [])
    plan = plan_runs("epochs", {"epochs": (2, 4)})
    runs = conduct(plan, tmp_path, Trainer())
    weights = weights_of(build("lenet", 10))
    place = tmp_path / plan.runs[0].name
    for epoch in (2, 3, 4):
        save_weights(place / f"epoch-{epoch:04d}.safetensors", weights, Card("lenet", tuple("abcdefghij"), 32))
    tested: list[str] = []

    def test(path: Path) -> tuple[float, float]:
        tested.append(path.name)
        return 0.1 * int(path.stem[-4:]), 2.0

    points = stored_epochs(plan, tmp_path, test, lambda text: None)
    assert [(p.epoch, p.test_top1) for p in points] == [(2, pytest.approx(0.2)), (4, pytest.approx(0.4))]
    assert points[0].val_top1 == pytest.approx(0.4)
    found = Findings(plan, tuple(runs), tuple(points))
    assert {"epochs.csv", "epochs.png"} <= {path.name for path in found.save(tmp_path)}
    assert stored_epochs(plan, tmp_path, test, lambda text: None) == points
    assert tested == ["epoch-0002.safetensors", "epoch-0004.safetensors"]


def test_epochs_are_ranked_against_the_published_ones() -> None:
    plan = plan_runs("epochs")
    points = [
        EpochPoint("lenet", epoch, 0.9, 0.5, top1, 1.0, plan.published[str(epoch)] if plan.published else None, "")
        for epoch, top1 in ((5, 0.5), (20, 0.7), (95, 0.6))
    ]
    ranks = Findings(plan, (), tuple(points)).orders()["published"].ranks
    assert [(rank.point, rank.rank) for rank in ranks] == [("20", 1), ("95", 2), ("5", 3)]


def test_charts_leave_out_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_of_studies, "save", lambda figure, path: path)
    conduct(plan_runs("optimizers", OPTIMIZERS), tmp_path, Trainer({"adam": ("bench: no", 2)}))
    summaries, histories = pictures_of_studies.load([tmp_path / "sgd", tmp_path / "adam"])
    assert list(histories) == ["sgd"]
    assert len(pictures_of_studies.draw(summaries, histories, tmp_path / "pictures")) == 9
    assert len(pictures_of_studies.draw(summaries, {}, tmp_path / "fewer")) == 6


def in_process(arguments: Sequence[str], log: IO[bytes], locks: Sequence[int], variables: Any) -> Done:
    """`bench ARGUMENTS` in this process."""
    result = CliRunner().invoke(app, list(arguments), standalone_mode=False)
    log.write(result.output.encode())
    return Done(0 if result.exception is None else 2)


def test_true_runs_are_ranked_and_done_once(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    over = ["--over", "lr=0.1,0.01", "--over", "batch=32"]
    data = DataFolders(str(pictures))
    plan = plan_runs("four-families-lenet", parse_over(over[1::2]), scale=0.01, images=100, classes=10)
    folder, said = tmp_path / plan.name, list[str]()
    starters = iter((processes.start, in_process))

    def starter(arguments: Sequence[str], log: IO[bytes], locks: Sequence[int], variables: Any) -> Any:
        return next(starters)(arguments, log, locks, variables)

    options = ("--device", "cpu", "--threads", "1", "--no-report")
    runs = Conductor(plan, folder, data, open_folders(data), options, Lines(said), Local(starter=starter)).train()
    log = (folder / "lr-0.1.log").read_text()
    assert [(run.name, run.status, run.epochs) for run in runs] == [
        ("lr-0.1", "finished", 1),
        ("lr-0.01", "finished", 1),
    ], log
    assert all(run.top1 is not None for run in runs)
    assert History.load(folder / "lr-0.1" / "history.csv").epochs[0].images == 32
    words = ["four-families-lenet", *over, "--scale", "0.01", "--data", str(pictures), "--runs", str(tmp_path)]
    again = CliRunner().invoke(command, [*words, "--no-charts", "--format", "json"], catch_exceptions=False)
    assert again.exit_code == 0
    assert again.stderr.count("finished before") == 2
    written = json.loads(again.stdout)
    assert written["mark"] == "scaled by 0.01: a trial, no result"
    assert {run["name"]: run["top1"] for run in written["runs"]} == {run.name: run.top1 for run in runs}
    assert json.loads((folder / "results.json").read_text()) == written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizers"], "no data"),
        (["optimizers", "--data", "nowhere"], "nowhere"),
        (["optimizers", "--scale", "2"], "--scale is 2"),
        (["optimizers", "--seeds", "1,1"], "different numbers"),
        (["optimizers", "--seeds", "x"], "whole numbers"),
        (["optimizers", "--name", "a/b", "--data", "."], "without its path"),
        (["optimizers", "--over", "batch=8,999", "--data", "."], "give --over batch="),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(words: list[str], said: str, tmp_path: Path, pictures: Path) -> None:
    words = [str(pictures) if word == "." else word for word in words]
    result = CliRunner().invoke(command, [*words, "--runs", str(tmp_path)])
    assert result.exception is not None
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_other_images_are_not_ranked_with_new_ones(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "folder", 60, 0, 5)
    plan = plan_runs("optimizers", OPTIMIZERS)

    def go_on() -> list[RunSummary]:
        opened, engine = open_splits(tmp_path / "set"), Local(starter=Trainer())
        return Conductor(plan, tmp_path / "s", DATA, opened, (), Lines([]), engine).train()

    runs = go_on()
    train, val = open_splits(tmp_path / "set")
    RunImages.of(train, val, val).save(tmp_path / "s" / "sgd")
    assert go_on() == runs
    Path(train.files[0]).rename(tmp_path / "set" / "train" / "class_0001" / "moved.JPEG")
    with pytest.raises(StudyError, match=r"sgd was trained with other images or labels .* \(1 new, 1 gone\)"):
        go_on()
