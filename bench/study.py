"""Many runs as one: the runs of a study or a sweep, each in a process of its own, and what they say together.

A study lives in a folder: for each run a recipe (RUN.toml), what it printed (RUN.log) and its folder (RUN/), beside
them the tables and pictures of all. Which runs are done follows from these files alone, so the same command goes on
wherever the last one ended.
"""

import contextlib
import ctypes
import fcntl
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Protocol

from bench.errors import BenchError, UsageError
from bench.published import published_row
from bench.worker import SOURCE
from loaders.errors import DataError
from models.errors import ModelError, unknown
from models.studies import STUDIES, SWEEPS, Study, Sweep
from models.training import recipe as recipes
from models.training.recipe import Published, Recipe
from results.errors import RecordError
from results.history import History, duration
from results.runs import FILE, RunSummary
from results.store import write_whole

FORMS = ("published", "corrected")
LEAST_PER_CLASS = 2  # training images of each class in an epoch of a trial

Say = Callable[[str], None]


class StudyError(BenchError):
    """A study that cannot begin or go on as asked."""


# What is to be run


@dataclass(frozen=True)
class Entry:
    """One run of a study.

    Attributes:
        name: of its folder, and in tables and pictures.
        point: what it stands for whatever the seed.
        label: what the study calls it, as in `Sweep.published`.
        recipe: all keys set.
    """

    name: str
    point: str
    label: str
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """The runs of a study in their order.

    Attributes:
        name, line: what it is.
        entries: never two of one name.
        scale: 1 for the whole study, less for a trial.
        sort: the figure by which runs are ranked.
        notes: what to know before figures are compared.
        epochs: the numbers of epochs that are compared, where one run holds them all.
        published: label -> the accuracy that was published for it, for `epochs`.
    """

    name: str
    line: str
    entries: tuple[Entry, ...]
    scale: float = 1.0
    sort: str = "top1"
    notes: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    published: Mapping[str, float] | None = None

    @property
    def mark(self) -> str:
        """What every table of a trial says; "" for the whole study."""
        return "" if self.scale == 1 else f"scaled by {self.scale:g}: a trial, no result"


Grid = Mapping[str, Sequence[Any]]


def parse_over(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`key=v1,v2` -> {key: (v1, v2)}; commas within brackets or quotes part nothing.

    Raises:
        UsageError: no `=`, no value, a key or a value twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, rest = text.partition("=")
        words = [word.strip() for word in _parted(rest)]
        if not equals or not key.strip() or not all(words):
            raise UsageError(f"cannot read --over {text!r}; write key=value,value,...")
        if key.strip() in grid:
            raise UsageError(f"--over {key.strip()} was given twice; write its values in one: key=value,value,...")
        values = tuple(recipes.parse_value(word) for word in words)
        if len({repr(value) for value in values}) < len(values):
            raise UsageError(f"--over {text}: a value stands there twice")
        grid[key.strip()] = values
    return grid


def _parted(text: str) -> list[str]:
    words, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            words.append("")
        else:
            words[-1] += letter
    return words


def plan(
    name: str,
    over: Grid | None = None,
    forms: Sequence[str] = FORMS[:1],
    scale: float = 1.0,
    seeds: Sequence[int] = (),
    images: int = 0,
    classes: int = 0,
) -> Plan:
    """The runs of a study, a sweep, or a recipe.

    Args:
        name: of a study, a sweep or a recipe, or a recipe's file.
        over: recipe key (or model.NAME) -> values; every combination is run. Takes the place of a sweep's own values.
        forms: "published", "corrected" or both.
        scale: below 1 shortens the study to a trial.
        seeds: each run once with each; empty: the recipe's own.
        images, classes: of the training data, as far as known; a trial keeps LEAST_PER_CLASS images of each class.

    Raises:
        ModelError: no such study, recipe or key.
        UsageError: nothing to compare.
    """
    over = dict(over or {})
    if not 0 < scale <= 1:
        raise UsageError(f"--scale is {scale:g}; give a number above 0 up to 1")
    if name in STUDIES:
        made = _study(name, STUDIES[name], over, forms)
    elif name in SWEEPS:
        made = _sweep(name, SWEEPS[name], over, forms, scale)
    else:
        made = _grid(name, over, forms, bool(seeds))
    entries = [replace(entry, recipe=scaled(entry.recipe, scale, images, classes)) for entry in made.entries]
    if seeds:
        entries = [
            replace(entry, name=f"{entry.name}-seed{seed}", recipe=entry.recipe.replaced({"seed": seed}))
            for entry in entries
            for seed in seeds
        ]
    return replace(made, entries=tuple(_distinct(entries)), scale=scale)


def _load(name: str, form: str) -> Recipe:
    return recipes.load(name if form == FORMS[0] else f"{name}-fast")


def _study(name: str, study: Study, over: Grid, forms: Sequence[str]) -> Plan:
    chosen = [recipe for form in forms for recipe in (study.recipes if form == FORMS[0] else study.fast)]
    # A phase goes on from the weights of the one before: by itself it is no run of the study.
    phases = [recipe for recipe in chosen if re.search(r"-phase\d+$", recipe)]
    notes = [f"left out: {', '.join(phases)}, which go on from one another's weights by hand"] if phases else []
    entries = []
    for recipe_name in chosen:
        if recipe_name in phases:
            continue
        recipe = recipes.load(recipe_name)
        for point in _points(over):
            words = _words(over, point)
            label = "+".join([recipe_name, *words])
            entries.append(Entry(_folder(label), label, recipe_name, recipe.replaced(point)))
    return Plan(name, f"{study.line}; {study.compares}", tuple(entries), sort=study.metrics[0], notes=tuple(notes))


def _sweep(name: str, sweep: Sweep, over: Grid, forms: Sequence[str], scale: float) -> Plan:
    grid: dict[str, Sequence[Any]] = {**sweep.over, **over}
    study = next((key for key, item in STUDIES.items() if name in item.sweeps), "")
    entries: list[Entry] = []
    epochs: tuple[int, ...] = ()
    notes = [sweep.note] if sweep.note else []
    for form in forms:
        base = _load(sweep.recipe, form)
        tail = "" if form == FORMS[0] else "-fast"
        if sweep.within_one_run and base.schedule == "constant" and list(grid) == ["epochs"]:
            epochs = tuple(sorted({_epochs(value, scale) for value in grid["epochs"]}))
            # Scaled already: asking for one epoch more or less would miss the stored ones.
            longest = round(max(grid["epochs"]))
            every = math.gcd(*epochs)
            settings = {**sweep.settings, "epochs": longest, "evaluate_every": 1}
            recipe = _without_figures(base.replaced(settings), study, {})
            entries.append(Entry(f"{sweep.recipe}{tail}", sweep.recipe, "", replace(recipe, checkpoint_epochs=every)))
            continue
        if sweep.within_one_run and list(grid) == ["epochs"]:
            notes.append("the corrected recipe's rate depends on the number of epochs: each number is a run of its own")
        for point in _points(grid):
            words = _words(grid, point) or [str(value) for value in point.values()]
            label = ",".join(str(point[key]) for key in sweep.over)
            recipe = base.replaced({**sweep.settings, **point})
            figure = sweep.published.get(label) if not set(over) - set(sweep.over) else None
            recipe = _without_figures(recipe, study, {"top1": figure, "epochs": recipe.epochs} if figure else {})
            entries.append(Entry(_folder("+".join(words)) + tail, "+".join(words) + tail, label, recipe))
    return Plan(name, sweep.line, tuple(entries), notes=tuple(notes), epochs=epochs, published=dict(sweep.published))


def _grid(name: str, over: Grid, forms: Sequence[str], seeded: bool) -> Plan:
    path = Path(name)
    if path.suffix != ".toml" and name not in recipes.names():
        raise unknown("study, sweep or recipe", name, (*STUDIES, *SWEEPS, *recipes.names()), "see: bench list recipes")
    if not seeded and not any(len(values) > 1 for values in over.values()):
        raise UsageError(f"{name} is one recipe; say what to compare with --over key=value,value or --seeds 0,1,2")
    if path.suffix == ".toml" and FORMS[1] in forms:
        raise UsageError(f"{name} is a file and has no corrected form; leave out --fast and --both")
    swept = [key for key, values in over.items() if len(values) > 1]
    entries = []
    for form in forms:
        base, tail = _load(name, form), "" if form == FORMS[0] else "-fast"
        for point in _points(over):
            recipe = base.replaced(point)
            if point:
                recipe = _without_figures(recipe, "", {})
            label = "+".join(_words(over, point)) or path.stem
            entries.append(Entry(_folder(label) + tail, label + tail, label, recipe))
    folder = "-".join([path.stem, *(key.removeprefix("model.") for key in swept)])
    return Plan(folder, f"{path.stem} by {', '.join(swept)}" if swept else path.stem, tuple(entries))


def _points(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _words(grid: Grid, point: Mapping[str, Any]) -> list[str]:
    """What tells a point from the others: words as they are, numbers with their key."""
    return [
        value if isinstance(value, str) else f"{key.removeprefix('model.')}-{_plain(value)}"
        for key, value in point.items()
        if len(grid[key]) > 1
    ]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _folder(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "run"


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    taken: dict[str, int] = {}
    found = []
    for entry in entries:
        taken[entry.name] = taken.get(entry.name, 0) + 1
        # Labels that differ only in letters no folder can have.
        name = entry.name if taken[entry.name] == 1 else f"{entry.name}.{taken[entry.name]}"
        found.append(replace(entry, name=name))
    return found


def _without_figures(recipe: Recipe, study: str, figures: Mapping[str, Any]) -> Recipe:
    """The recipe's own published figures belong to its own values, not to changed ones."""
    if not figures:
        return replace(recipe, published=Published())
    old = recipe.published
    return replace(recipe, published=Published(study=study, form=old.form, source=old.source, **figures))


def _epochs(epochs: float, scale: float) -> int:
    return max(1, round(epochs * scale))


def scaled(recipe: Recipe, scale: float, images: int = 0, classes: int = 0) -> Recipe:
    """A trial of a recipe: fewer epochs, each of fewer images, everything counted in epochs in proportion.

    Args:
        images, classes: of the training data; 0 if unknown, and then an epoch may lack a class.
    """
    if scale == 1:
        return recipe
    epochs = _epochs(recipe.epochs, scale)
    ratio = epochs / recipe.epochs
    divide = max(1, round(recipe.divide / scale))
    if images and classes:
        kept = images * (1 - recipe.holdout) if recipe.holdout < 1 else images - recipe.holdout
        divide = min(divide, max(recipe.divide, int(kept / (LEAST_PER_CLASS * classes))))
    return replace(
        recipes.shortened(recipe, epochs),
        divide=divide,
        patience=max(1, round(recipe.patience * ratio)) if recipe.patience else 0,
        evaluate_every=max(1, round(recipe.evaluate_every * ratio)) if recipe.evaluate_every else 0,
        checkpoint_epochs=min(recipe.checkpoint_epochs, epochs),
    )


def check_arguments(plan: Plan, over: Grid) -> None:
    """Refuse a `model.NAME` that no network of the plan has, before the first of many runs fails by it.

    Raises:
        ModelError: there is no such argument; the known ones are listed.
    """
    from models import zoo

    models = list(dict.fromkeys(entry.recipe.model for entry in plan.entries))
    known = {name for model in models for name in zoo.known_arguments(model)}
    for key in over:
        table, _, name = key.partition(".")
        if table in ("model", "arguments") and name and name not in known:
            raise unknown(f"argument of {' and '.join(models)}", name, known)


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
    evaluated: Callable[[Recipe], str]


def material(data: Path | None, train: tuple[str, ...], val: str | None) -> Material:
    """Look at the images once, before anything is trained.

    Raises:
        UsageError: neither or both were named.
        DataError: not a data set.
    """
    from bench import sources

    found = sources.open_folders(data, train, val)

    def evaluated(recipe: Recipe) -> str:
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


class Process(Protocol):
    """What this module asks of a process; subprocess.Popen has it."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


Start = Callable[[Sequence[str], IO[bytes], int], Process]


def start(arguments: Sequence[str], log: IO[bytes], lock: int) -> Process:
    """`bench ARGUMENTS` as a process of its own, with this code, all it prints going to `log`.

    Ctrl-C in the terminal reaches only this process, which then asks the other to stop. Should this one be killed,
    the kernel asks. The lock stays taken until both have ended.
    """
    inherited = os.environ.get("PYTHONPATH")
    return subprocess.Popen(
        # -P: a folder named models in the user's working directory must not be taken for ours.
        [sys.executable, "-P", "-c", "from bench.study import serve; serve()", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=(lock,),
        env={
            **os.environ,
            "BENCH_STUDY_PARENT": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, [inherited])]),
        },
    )


def serve() -> None:
    """The `bench` command, asked to stop by the kernel should the process that started it be killed."""
    from bench.cli import main

    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.environ.get("BENCH_STUDY_PARENT") != str(os.getppid()):
        sys.exit(1)
    main(sys.argv[1:])


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
