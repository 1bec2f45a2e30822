"""The runs of a study or a sweep, each trained in a process of its own, until they end or are stopped.

A study has a folder with, for each run, a recipe (RUN.toml), what it printed (RUN.log) and its folder (RUN/), with how
long they took (times.jsonl), and with the tables and pictures of all. Which runs are done follows from these files
alone, so the same command continues wherever the last one ended.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Literal

import numpy as np

from bench.locks import HeldError, hold, holder
from bench.processes import start, stop_requests
from bench.runs.folder import HISTORY, LOCK, RUN, DataFolders, RunRecord, stored_nothing
from bench.runs.plan import Plan, PlannedRun, StudyError
from bench.runs.provenance import RunImages
from bench.runs.sources import split
from bench.runs.training import published_row
from bench.screen import Screen
from loaders.datasets import Dataset
from loaders.errors import DataError
from loaders.identity import Ids, identify
from models.errors import ModelError
from models.training import checkpoint
from models.training import recipe as recipes
from models.training.recipe import Recipe
from results.errors import RecordError
from results.history import History
from results.lines import LineFile, read_lines
from results.runs import FILE as SUMMARY
from results.runs import Evaluated, RunSummary
from results.store import write_whole
from results.tables import duration

TIMES = "times.jsonl"

Condition = Literal["nothing", "begun", "tried", "finished"]
"""How far a run has come: "begun" can be resumed, "tried" has ended in this command without finishing."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a study's folder, so that two commands do not train the same run; yields the lock's descriptor.

    Raises StudyError: another command holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(hold(folder / LOCK))
        except HeldError as error:
            raise StudyError(
                f"another command is at work in {folder} ({error.who}); wait for it, or choose another --runs"
            ) from None
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {error.strerror}; choose another place with --runs") from None
        yield handle


def condition(folder: Path, run: PlannedRun, data: DataFolders) -> Condition:
    """How far a run has come, by the study's folder.

    Raises StudyError: a run of this name with another recipe or other images, or one that is being trained.
    """
    place, recipe_file = folder / run.name, folder / f"{run.name}.toml"
    if not place.is_dir():
        return "nothing"
    who = holder(place / LOCK)
    if who is not None:
        raise StudyError(f"run {place} is being trained by {who}; wait for its end")
    if (place / RUN).is_file():
        differing = []
        try:
            differing += _differences(recipes.load(recipe_file), run.recipe)
        except ModelError as error:
            differing.append(str(error) if recipe_file.is_file() else "not made by bench study")
        with contextlib.suppress(RecordError):
            differing += _differences(RunRecord.load(place).data, data)
        if differing:
            raise StudyError(
                f"run {place} is not the one asked for ({'; '.join(differing[:4])}); choose another --name, "
                "or remove its folder"
            )
    elif not (place / SUMMARY).is_file() and not stored_nothing(place):
        raise StudyError(f"{place} is in the way and is not a run; remove it, or choose another --name")
    with contextlib.suppress(RecordError):
        summary = RunSummary.load(place)
        if summary.status == "finished" or 0 < run.recipe.stop_epoch <= summary.epochs:
            return "finished"
    return "begun" if (place / checkpoint.LAST).is_file() else "nothing"


def _differences(there: Recipe | DataFolders, here: Recipe | DataFolders) -> list[str]:
    """Fields in which a stored value and a new one differ, other than published figures, in words."""
    values = {f.name: (getattr(there, f.name), getattr(here, f.name)) for f in fields(here) if f.name != "published"}
    return [f"{name} {_short(a)} there, {_short(b)} here" for name, (a, b) in values.items() if a != b]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def last_line(log: Path) -> str:
    """The last line that a run printed, blank ones aside."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass(frozen=True)
class Took:
    """How long the process of a run has lived, from its start to its end; a run that was resumed has had several."""

    run: str
    seconds: float
    resumed: bool


def whole_times(folder: Path) -> dict[str, float]:
    """Run -> seconds of all its processes together; not of runs of earlier versions, which did not store them."""
    found: dict[str, float] = {}
    # Only an estimate is made of them.
    with contextlib.suppress(RecordError):
        for took in read_lines(Took, folder / TIMES):
            found[took.run] = took.seconds + (found.get(took.run, 0.0) if took.resumed else 0.0)
    return found


@dataclass
class Conductor:
    """Trains what is left of a plan, one run after another.

    Attributes:
        folder: of the study.
        data, opened: the folders of the images, and what `open_folders` found in them.
        options: passed to every `bench train`, such as --device.
        starter: makes the processes.
    """

    plan: Plan
    folder: Path
    data: DataFolders
    opened: list[Dataset]
    options: tuple[str, ...]
    screen: Screen
    starter: Callable[[Sequence[str], IO[bytes], int], subprocess.Popen[bytes]] = start
    _took: dict[str, float] = field(default_factory=dict)  # of finished runs, and of parts of others

    def train(self) -> list[RunSummary]:
        """Train what is not finished; the summaries of all runs in the plan's order.

        Raises:
            StudyError: a run of the same name is another one; nothing has been started then.
            KeyboardInterrupt: the run under way has been asked to store its state, and has ended.
        """
        runs, screen = self.plan.runs, self.screen
        with contextlib.ExitStack() as on_exit:
            lock = on_exit.enter_context(locked(self.folder))
            conditions = [condition(self.folder, run, self.data) for run in runs]
            self._check_images()
            self._took = whole_times(self.folder)
            times = on_exit.enter_context(contextlib.closing(LineFile(self.folder / TIMES)))
            for i, run in enumerate(runs):
                head = f"run {i + 1} of {len(runs)}: {run.name}"
                if conditions[i] == "finished":
                    screen.say(f"{head}: finished before")
                    continue
                epochs = run.recipe.epochs
                what = "resuming" if conditions[i] == "begun" else f"{epochs} epoch{'s' * (epochs > 1)}"
                screen.say(f"{head}, {what}, {self._expected(conditions, i)}")
                begin, resumed = time.monotonic(), conditions[i] == "begun"
                try:
                    summary = self._settle(run, self._train(run, resumed, lock))
                finally:
                    seconds = time.monotonic() - begin
                    times.add(Took(run.name, seconds, resumed))
                self._took[run.name] = seconds + (self._took.get(run.name, 0.0) if resumed else 0.0)
                conditions[i] = "finished" if summary.status == "finished" else "tried"
                screen.say(f"{head}: {_outcome(summary)}, took {duration(seconds)}")
        return self.summaries()

    def _check_images(self) -> None:
        """Raise StudyError if a run was trained with other images or labels than there are now: ranks need the same."""
        now: dict[int, list[Ids]] = {}
        for run in self.plan.runs:
            images = RunImages.load(self.folder / run.name)
            if images is None:
                continue
            every = images.train.every
            if every not in now:
                now[every] = [identify(part, every).labelled() for part in self.opened]
            theirs = np.concatenate([part.labelled() for part in (images.train, images.validation, images.test)])
            gone = ~np.isin(theirs, np.concatenate(now[every]))
            new = ~np.isin(now[every][0], theirs)
            if gone.any() or new.any():
                raise StudyError(
                    f"run {self.folder / run.name} was trained with other images or labels than there are now "
                    f"({int(new.sum()):,} new, {int(gone.sum()):,} gone); bring them back, or choose another --name"
                )

    def _train(self, run: PlannedRun, resume: bool, lock: int) -> int:
        """Train one run to its end; returns the exit code of its process."""
        place, log = self.folder / run.name, self.folder / f"{run.name}.log"
        # What an earlier one wrote of itself would be taken for what this one does.
        (place / SUMMARY).unlink(missing_ok=True)
        if resume:
            # The run knows its images, and refuses to go on with others.
            words = ["--resume", str(place)]
        else:
            path = self.folder / f"{run.name}.toml"
            comments = [f"run {run.name} of {self.plan.name}", *filter(None, [self.plan.mark])]
            write_whole(path, recipes.to_toml(run.recipe, comments).encode())
            words = [str(path), "--name", run.name, "--runs", str(self.folder), *self.data.options()]
        process: subprocess.Popen[bytes] | None = None
        with log.open("ab" if resume else "wb") as file:
            try:
                # A signal that arrives while the process starts must not leave it running with nobody to stop it.
                with stop_requests() as asked:
                    process = self.starter(["train", *words, *self.options], file, lock)
                if asked():
                    raise KeyboardInterrupt
                return self._wait(process, log)
            except KeyboardInterrupt:
                if process is not None:
                    self._stop(process, run)
                raise

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> int:
        while self.screen.moving:
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                self.screen.progress(last_line(log))
        return process.wait()

    def _stop(self, process: subprocess.Popen[bytes], run: PlannedRun) -> None:
        self.screen.say(f"stopping {run.name}: it stores its state first; Ctrl-C again ends it at once")
        try:
            process.send_signal(signal.SIGINT)
            process.wait()
        except KeyboardInterrupt:
            # The whole group: loaders have worker processes of their own.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _expected(self, conditions: Sequence[Condition], i: int) -> str:
        """How long a run and the rest will take: as finished runs took, in proportion to the images they train on.

        What a run does beside training (it starts, compiles, tests and draws) is added once a run.
        """
        rates, starts = [], []
        for run, known in zip(self.plan.runs, conditions, strict=True):
            trained = RunSummary.load(self.folder / run.name).train_seconds if known == "finished" else None
            if trained:
                rates.append(trained / _work(run.recipe))
                if run.name in self._took:
                    starts.append(max(0.0, self._took[run.name] - trained))
        if not rates:
            return "expected time: known after the first"
        rate, rest = statistics.fmean(rates), statistics.fmean(starts or [0.0])
        about = "about" if starts else "more than"
        left = [
            rest + rate * _work(run.recipe)
            for run, known in zip(self.plan.runs[i:], conditions[i:], strict=True)
            if known != "finished"
        ]
        together = f", all remaining runs {about} {duration(sum(left))}" if len(left) > 1 else ""
        return f"expected {about} {duration(left[0])}{together}"

    def _settle(self, run: PlannedRun, code: int) -> RunSummary:
        """The summary that a run left, or one with the reason why it failed."""
        place = self.folder / run.name
        with contextlib.suppress(RecordError):
            summary = RunSummary.load(place)
            if summary.status == "stopped" or (summary.status == "finished" and code == 0):
                return summary
        reason = last_line(self.folder / f"{run.name}.log").removeprefix("bench: ")
        if code < 0:
            name = signal.Signals(-code).name
            reason = f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        summary = self._failed(run, reason or f"exit code {code} without a message")
        if holder(place / LOCK) is not None:
            # Another command has resumed it meanwhile, and will leave a summary of its own.
            return summary
        place.mkdir(parents=True, exist_ok=True)
        summary.save(place)
        return summary

    def _failed(self, run: PlannedRun, reason: str) -> RunSummary:
        history = History()
        with contextlib.suppress(RecordError):
            history = History.load(self.folder / run.name / HISTORY)
        evaluated: Evaluated = "test"
        # A run whose images cannot be split has no accuracy, so that this says nothing.
        with contextlib.suppress(DataError):
            evaluated = split(self.opened, run.recipe, lambda text: None).evaluated
        return RunSummary(
            name=run.name,
            model=run.recipe.model,
            data=self.opened[0].whole_title,
            recipe=run.name,
            evaluated=evaluated,
            status="failed",
            reason=reason,
            epochs=len(history.epochs),
            best_top1=history.best.val_top1 if history.best else None,
            best_epoch=history.best.epoch if history.best else None,
            published=published_row(run.recipe.published),
        )

    def summaries(self) -> list[RunSummary]:
        """Of the runs that have ended, however they did, in the plan's order."""
        places = [self.folder / run.name for run in self.plan.runs]
        return [RunSummary.load(place) for place in places if (place / SUMMARY).is_file()]


def _work(recipe: Recipe) -> float:
    return recipe.epochs / recipe.divide


def _outcome(run: RunSummary) -> str:
    if run.status != "finished":
        return f"{run.status}: {run.reason}"
    return "finished" if run.top1 is None else f"top-1 {100 * run.top1:.2f} %"
