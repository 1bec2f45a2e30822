"""The runs of a study or a sweep, each trained in a process of its own, until they end or are stopped.

A study has a folder with, for each run, a recipe (RUN.toml), what it printed (RUN.log) and its folder (RUN/), with how
long they took (times.jsonl), and with the tables and pictures of all. Which runs are done follows from these files
alone, so the same command continues wherever the last one ended.
"""

import contextlib
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from bench.locks import HeldError, hold, holder
from bench.runs.cluster import Attempts
from bench.runs.engines import End, Engine, Job, Training, last_line, log_of
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

Condition = Literal["nothing", "submitted", "begun", "tried", "finished"]
"""How far a run has come: "submitted" is with a cluster, "begun" can be resumed, "tried" has ended in this command
without finishing."""


@contextlib.contextmanager
def locked(folder: Path, engine: str = "") -> Iterator[int]:
    """Hold a study's folder, so that two commands do not train the same run; yields the lock's descriptor.

    Raises StudyError: another command holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(hold(folder / LOCK))
        except HeldError as error:
            do = "watch it with --attach" if engine else "wait for it"
            raise StudyError(
                f"another command is at work in {folder} ({error.who}); {do}, or choose another --runs"
            ) from None
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {error.strerror}; choose another place with --runs") from None
        yield handle


def condition(folder: Path, run: PlannedRun, data: DataFolders, engine: str = "") -> Condition:
    """How far a run has come, by the study's folder; `engine` is the name of the one that is to train it.

    Raises StudyError: a run of this name with another recipe or other images, or one that is being trained elsewhere.
    """
    place, recipe_file = folder / run.name, folder / f"{run.name}.toml"
    claim = Attempts.at(folder, run.name).open()
    if claim is not None and claim.engine != engine:
        raise StudyError(
            f"run {place} was given to {claim.engine}, job {claim.name}; see how it ended with --on {claim.engine}"
        )
    if claim is None and not place.is_dir():
        return "nothing"
    who = holder(place / LOCK)
    if claim is None and who is not None:
        raise StudyError(f"run {place} is being trained by {who}; wait for its end")
    if claim is not None or (place / RUN).is_file():
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
    if claim is not None:
        return "submitted"
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
    """Trains what is left of a plan: gives an engine as many runs at a time as it takes, and settles what it returns.

    Attributes:
        folder: of the study.
        data, opened: the folders of the images, and what `open_folders` found in them.
        options: passed to every `bench train`, such as --device.
    """

    plan: Plan
    folder: Path
    data: DataFolders
    opened: list[Dataset]
    options: tuple[str, ...]
    screen: Screen
    engine: Engine
    _took: dict[str, float] = field(default_factory=dict)  # of finished runs, and of parts of others
    _conditions: list[Condition] = field(default_factory=list)
    _times: LineFile | None = None

    def train(self) -> list[RunSummary]:
        """Train what is not finished; the summaries of all runs in the plan's order.

        Raises:
            StudyError: a run of the same name is another one; nothing has been started then.
            KeyboardInterrupt: the engine has been told.
        """
        engine = self.engine
        with contextlib.ExitStack() as on_exit:
            lock = -1 if engine.watching else on_exit.enter_context(locked(self.folder, engine.name))
            self._conditions = [condition(self.folder, run, self.data, engine.name) for run in self.plan.runs]
            self._check_images()
            self._took = whole_times(self.folder)
            if engine.watching:
                if not {"submitted", "finished"}.intersection(self._conditions):
                    raise StudyError(f"no run in {self.folder} was given to {engine.name}; leave out --attach")
            else:
                self._times = on_exit.enter_context(contextlib.closing(LineFile(self.folder / TIMES)))
            try:
                self._conduct(lock)
            except KeyboardInterrupt:
                for run, end in engine.leave(self.screen).items():
                    self._note(run, end)
                raise
        return self.summaries()

    def _conduct(self, lock: int) -> None:
        """Give runs to the engine until all have ended."""
        runs, engine, screen = self.plan.runs, self.engine, self.screen
        waiting, under_way = list[int](), dict[int, Training]()
        for i, known in enumerate(self._conditions):
            if known == "finished":
                screen.say(f"{self._head(i)}: finished before")
            elif known == "submitted" or not engine.watching:
                waiting.append(i)
        while waiting or under_way:
            while waiting and len(under_way) < engine.room:
                i = waiting.pop(0)
                epochs = runs[i].recipe.epochs
                whats = {"begun": "resuming", "submitted": f"with {engine.name} already"}
                what = whats.get(self._conditions[i], f"{epochs} epoch{'s' * (epochs > 1)}")
                screen.say(f"{self._head(i)}, {what}, {self._expected(i)}")
                under_way[i] = engine.start(self._job(runs[i]), self.folder, lock)
            ended = {i: end for i, training in under_way.items() if (end := training.poll()) is not None}
            for i, end in ended.items():
                run = runs[i]
                del under_way[i]
                self._note(run.name, end)
                summary = self._settle(run, end)
                self._conditions[i] = "finished" if summary.status == "finished" else "tried"
                screen.say(f"{self._head(i)}: {_outcome(summary)}, took {duration(end.seconds)}")
            if not ended:
                if screen.moving:
                    lines = {runs[i].name: training.line() for i, training in under_way.items()}
                    screen.progress("; ".join(f"{name}: {line}" for name, line in lines.items()))
                time.sleep(engine.interval)

    def _note(self, run: str, end: End) -> None:
        """Keep how long a run took; one that is only watched is noted by the command that has the study."""
        self._took[run] = end.seconds + (self._took.get(run, 0.0) if end.resumed else 0.0)
        if self._times is not None:
            self._times.add(Took(run, end.seconds, end.resumed))

    def _head(self, i: int) -> str:
        return f"run {i + 1} of {len(self.plan.runs)}: {self.plan.runs[i].name}"

    def _job(self, run: PlannedRun) -> Job:
        """The command lines of a run; what a new one reads is written."""
        place, path = self.folder / run.name, self.folder / f"{run.name}.toml"
        if not (place / checkpoint.LAST).is_file():
            comments = [f"run {run.name} of {self.plan.name}", *filter(None, [self.plan.mark])]
            write_whole(path, recipes.to_toml(run.recipe, comments).encode())
        named = ("--name", run.name, "--runs", str(self.folder), *self.data.options())
        # A resumed run knows its images, and refuses to go on with others.
        return Job(
            run.name,
            ("train", str(path), *named, *self.options),
            ("train", "--resume", str(place), *self.options),
        )

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

    def _expected(self, i: int) -> str:
        """How long a run and the rest will take: as finished runs took, in proportion to the images they train on.

        What a run does beside training (it starts, compiles, tests and draws) is added once a run.
        """
        rates, starts, conditions = [], [], self._conditions
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
        whole = max(*left, sum(left) / self.engine.room) if len(left) > 1 else 0.0
        together = f", all remaining runs {about} {duration(whole)}" if whole else ""
        return f"expected {about} {duration(left[0])}{together}"

    def _settle(self, run: PlannedRun, end: End) -> RunSummary:
        """The summary that a run left, or one with the reason why it failed."""
        place = self.folder / run.name
        with contextlib.suppress(RecordError):
            summary = RunSummary.load(place)
            if summary.status == "finished" and end.code == 0:
                return summary
            if summary.status == "stopped":
                # What its cluster says of it tells what to do.
                return replace(summary, reason=end.reason or summary.reason)
        reason = end.reason or last_line(log_of(self.folder, run.name)).removeprefix("bench: ")
        if end.code < 0:
            name = signal.Signals(-end.code).name
            reason = f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        summary = self._failed(run, reason or f"exit code {end.code} without a message")
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
