"""Many runs as one: the runs of a study or a sweep, each in a process of its own, and what they say together.

A study lives in a folder: for each run a recipe (RUN.toml), what it printed (RUN.log) and its folder (RUN/), beside
them the tables and pictures of all. Which runs are done follows from these files alone, so the same command goes on
wherever the last one ended.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.processes import Process, Start, start
from bench.runs.plan import Entry, Plan, Say, StudyError
from bench.runs.published import published_row
from loaders.errors import DataError
from models.errors import ModelError
from models.training import recipe as recipes
from models.training.recipe import Recipe
from results.errors import RecordError
from results.history import History
from results.runs import FILE, Evaluated, RunSummary
from results.store import write_whole
from results.tables import duration

# What is to be run


# Where it is run


@dataclass(frozen=True)
class Material:
    """The images of a study, as `bench train` is told of them.

    Attributes:
        options: --data DIR, or --train and --val.
        said: the same as a run's record of itself has them: folder, train, val.
        name: of the data set.
        images, classes: how many.
        evaluated: recipe -> what its epochs are evaluated on, as in `Splits.evaluated`.
    """

    options: tuple[str, ...]
    said: Mapping[str, Any]
    name: str
    images: int
    classes: int
    evaluated: Callable[[Recipe], Evaluated]


def material(data: Path | None, train: tuple[str, ...], val: str | None) -> Material:
    """Look at the images once, before anything is trained.

    Raises:
        UsageError: neither or both were named.
        DataError: not a data set.
    """
    from bench.runs import sources

    found = sources.open_folders(data, train, val)

    def evaluated(recipe: Recipe) -> Evaluated:
        try:
            splits = sources.split(found, recipe, lambda text: None)
        except DataError:
            return "test"  # a run that cannot even part its images has no accuracy to name
        return splits.evaluated

    options = ["--data", str(data)] if data is not None else [word for part in train for word in ("--train", part)]
    said = {
        "folder": str(data.absolute()) if data else "",
        "train": [str(Path(p).absolute()) for parts in train for p in parts.split(",")],
        "val": str(Path(val).absolute()) if val else None,
    }
    options += ["--val", val] if val else []
    return Material(
        tuple(options), said, found[0].name.partition("/")[0], len(found[0]), len(found[0].classes), evaluated
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a study's folder, so that two commands do not train the same run; yields the lock's descriptor.

    Raises:
        StudyError: another command holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StudyError(f"cannot write {folder}: {error.strerror}; choose another place with --runs") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"another command is at work in {folder}; wait for it, or choose another --runs") from None
        yield handle
    finally:
        os.close(handle)


def condition(folder: Path, entry: Entry, said: Mapping[str, Any]) -> str:
    """What there is of a run: "finished", "begun" (it can go on) or "nothing".

    Raises:
        StudyError: a run of this name with another recipe or other images.
    """
    place, asked = folder / entry.name, folder / f"{entry.name}.toml"
    if not place.is_dir():
        return "nothing"
    if (place / "run.json").is_file():
        differing = _differences(asked, entry.recipe) if asked.is_file() else ["not made by bench study"]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            was = json.loads((place / "run.json").read_text(encoding="utf-8"))["data"]
            differing += [f"{key} {was[key]} there, {said[key]} here" for key in said if was[key] != said[key]]
        if differing:
            raise StudyError(
                f"run {place} is another one ({'; '.join(differing[:4])}); keep it and choose another --name, "
                "or remove its folder"
            )
    elif not (place / FILE).is_file() and any(place.iterdir()):
        raise StudyError(f"{place} is in the way and is no run; remove it, or choose another --name")
    with contextlib.suppress(RecordError):
        summary = RunSummary.load(place)
        if summary.status == "finished" or 0 < entry.recipe.stop_epoch <= summary.epochs:
            return "finished"
    return "begun" if (place / "last.safetensors").is_file() else "nothing"


def _differences(path: Path, recipe: Recipe) -> list[str]:
    try:
        there = recipes.load(path)
    except ModelError as error:
        return [str(error)]
    names = [f.name for f in fields(Recipe) if f.name != "published"]
    return [
        f"{name} {_short(getattr(there, name))} there, {_short(getattr(recipe, name))} here"
        for name in names
        if getattr(there, name) != getattr(recipe, name)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Screen:
    """One line when a run begins and one when it ends; on a terminal its latest words in between."""

    def __init__(self, say: Say, moving: bool | None = None) -> None:
        self._say = say
        self.moving = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" if moving is None else moving

    def say(self, text: str) -> None:
        self.clear()
        self._say(text)

    def clear(self) -> None:
        if self.moving:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def follow(self, log: Path) -> None:
        if self.moving:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write("\r\x1b[K" + f"  {last_line(log)}"[:width])
            sys.stderr.flush()


def last_line(log: Path) -> str:
    """The last line with anything in it of what a run printed."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass
class Conductor:
    """Runs what is left of a plan, one run after another.

    Attributes:
        folder: of the study.
        options: passed to every `bench train`, such as --device.
        starter: makes the processes.
    """

    plan: Plan
    folder: Path
    images: Material
    options: tuple[str, ...]
    screen: Screen
    starter: Start = start
    _took: dict[str, float] = field(default_factory=dict)

    def run(self) -> list[RunSummary]:
        """Train what is not finished; the summaries of all runs in the plan's order.

        Raises:
            StudyError: a run of the same name is another one; nothing has been started then.
            KeyboardInterrupt: the run under way has been asked to store its state, and has ended.
        """
        entries, screen = self.plan.entries, self.screen
        with locked(self.folder) as lock:
            conditions = [condition(self.folder, entry, self.images.said) for entry in entries]
            for i, (entry, found) in enumerate(zip(entries, conditions, strict=True)):
                head = f"run {i + 1} of {len(entries)}: {entry.name}"
                if found == "finished":
                    screen.say(f"{head}: finished before")
                    continue
                verb = (
                    "going on" if found == "begun" else f"{entry.recipe.epochs} epoch{'s' * (entry.recipe.epochs > 1)}"
                )
                screen.say(f"{head}, {verb}, {self._expected(conditions, i)}")
                begin = time.monotonic()
                code = self._train(entry, found, lock)
                summary = self._settle(entry, code)
                self._took[entry.name] = time.monotonic() - begin
                conditions[i] = "finished" if summary.status == "finished" else "tried"
                screen.say(f"{head}: {_said(summary)}, took {duration(self._took[entry.name])}")
        return self.summaries()

    def _train(self, entry: Entry, found: str, lock: int) -> int:
        place, log = self.folder / entry.name, self.folder / f"{entry.name}.log"
        if found == "begun":
            # What a stopped run wrote of itself would be taken for what this one does.
            (place / FILE).unlink(missing_ok=True)
            words = ["train", "--resume", str(place), *self.images.options]
        else:
            # Without weights there is nothing in it to go on from or to keep.
            shutil.rmtree(place, ignore_errors=True)
            path = self.folder / f"{entry.name}.toml"
            text = recipes.to_toml(
                entry.recipe, [f"run {entry.name} of {self.plan.name}", *filter(None, [self.plan.mark])]
            )
            write_whole(path, text.encode())
            words = ["train", str(path), "--name", entry.name, "--runs", str(self.folder), *self.images.options]
        with log.open("ab" if found == "begun" else "wb") as file:
            process = self.starter([*words, *self.options], file, lock)
            try:
                return self._wait(process, log)
            except KeyboardInterrupt:
                self._stop(process, entry)
                raise

    def _wait(self, process: Process, log: Path) -> int:
        if not self.screen.moving:
            return process.wait()
        while True:
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                self.screen.follow(log)

    def _stop(self, process: Process, entry: Entry) -> None:
        self.screen.say(f"stopping {entry.name}: it stores where it is; Ctrl-C again ends it at once")
        try:
            process.send_signal(signal.SIGINT)
            process.wait()
        except KeyboardInterrupt:
            # The whole group: loaders have worker processes of their own.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _expected(self, conditions: Sequence[str], i: int) -> str:
        """From what the runs that are done took, for start and end alike and in proportion to their training."""
        rates, starts = [], []
        for entry, found in zip(self.plan.entries, conditions, strict=True):
            trained = RunSummary.load(self.folder / entry.name).train_seconds if found == "finished" else None
            if trained:
                rates.append(trained / _work(entry.recipe))
                if entry.name in self._took:
                    starts.append(max(0.0, self._took[entry.name] - trained))
        if not rates:
            return "expected time: known after the first"
        rate, rest = statistics.fmean(rates), statistics.fmean(starts or [0.0])
        left = [
            rest + rate * _work(entry.recipe)
            for entry, found in zip(self.plan.entries[i:], conditions[i:], strict=True)
            if found != "finished"
        ]
        together = f", all that is left about {duration(sum(left))}" if len(left) > 1 else ""
        return f"expected about {duration(left[0])}{together}"

    def _settle(self, entry: Entry, code: int) -> RunSummary:
        """The summary a run left; of a run that failed one with the reason."""
        place = self.folder / entry.name
        with contextlib.suppress(RecordError):
            found = RunSummary.load(place)
            if found.status == "stopped" or (found.status == "finished" and code == 0):
                return found
        said = last_line(self.folder / f"{entry.name}.log").removeprefix("bench: ")
        if code < 0:
            name = signal.Signals(-code).name
            said = f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
        summary = self._failed(entry, said or f"exit code {code} without a word")
        place.mkdir(parents=True, exist_ok=True)
        summary.save(place)
        return summary

    def _failed(self, entry: Entry, reason: str) -> RunSummary:
        history = None
        with contextlib.suppress(RecordError):
            history = History.load(self.folder / entry.name / "history.csv")
        best = history.best if history else None
        return RunSummary(
            name=entry.name,
            model=entry.recipe.model,
            data=self.images.name,
            recipe=entry.name,
            evaluated=self.images.evaluated(entry.recipe),
            status="failed",
            reason=reason,
            epochs=len(history.epochs) if history else 0,
            best_top1=best.val_top1 if best else None,
            best_epoch=best.epoch if best else None,
            published=published_row(entry.recipe.published),
        )

    def summaries(self) -> list[RunSummary]:
        """Of the runs that have ended in some way, in the plan's order."""
        return [
            RunSummary.load(self.folder / entry.name)
            for entry in self.plan.entries
            if (self.folder / entry.name / FILE).is_file()
        ]


def _work(recipe: Recipe) -> float:
    return recipe.epochs / recipe.divide


def _said(run: RunSummary) -> str:
    if run.status != "finished":
        return f"{run.status}: {run.reason}"
    return "finished" if run.top1 is None else f"top-1 {100 * run.top1:.2f} %"
