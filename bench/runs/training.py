"""A training run from its recipe to the folder it leaves: opens data and network, runs the loop, writes the files."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bench.errors import UsageError
from bench.machine.cpu import usable_cores
from bench.machine.facts import describe
from bench.machine.tuned import tuned_configuration
from bench.runs import sources
from bench.runs.request import (
    HISTORY,
    RECIPE,
    RUN,
    STEPS,
    Request,
    RunError,
    _empty,
    finished,
    make_folder,
    refuse_existing,
    run_name,
)
from bench.runs.sources import Feed, Say, Splits
from models import zoo
from models.configuration import Choice, Configuration, Device, parse
from models.predict import Classifier, same_classes
from models.prepare import device_facts
from models.training import checkpoint
from models.training.checkpoint import Card
from models.training.distributed import World
from models.training.loop import DivergedError, EpochRow, StepRow, Training, graph_obstacles
from models.training.optimizers import implementation
from models.training.recipe import Recipe, to_toml
from results.events import EventWriter
from results.history import Epoch, History, Step, StepLog, line, load_steps
from results.runs import RunSummary
from results.store import write_whole


@dataclass
class Run:
    """A run under way, as reports need it."""

    request: Request
    recipe: Recipe
    folder: Path
    splits: Splits
    feed: Feed
    training: Training
    configuration: Configuration
    device: torch.device
    world: World
    threads: int
    stopped: str | None = None


class Screen:
    """One line an epoch, and on a terminal a bar that moves inside it."""

    def __init__(self, epochs: int, quiet: bool = False) -> None:
        self._epochs, self._quiet = epochs, quiet
        self._bar: Any = None
        self._epoch = 1

    def say(self, text: str) -> None:
        self.clear()
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def step(self, done: int, steps: int) -> None:
        if self._quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps, initial=done - 1, desc=f"epoch {self._epoch}/{self._epochs}", leave=False, unit="step"
            )
        self._bar.update(1)

    def clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def epoch(self, row: Epoch, best: Epoch | None) -> None:
        self._epoch = row.epoch + 1
        self.say(line(row, self._epochs, best))


class Recorder:
    """Writes what happens into the run's folder: after every epoch the files are whole."""

    def __init__(self, folder: Path, screen: Screen, history: History, after_step: int) -> None:
        self._folder, self._screen = folder, screen
        self.history = history
        epoch = history.epochs[-1].epoch if history.epochs else 0
        self._steps = StepLog(folder / STEPS, after_step)
        resumed = bool(epoch or after_step or any(folder.glob("events.out.tfevents.*")))
        self._events = EventWriter(folder, epoch if resumed else None, after_step if resumed else None)
        self._write()

    def step(self, done: int, steps: int) -> None:
        self._screen.step(done, steps)

    def epoch(self, row: EpochRow, steps: list[StepRow], best: bool) -> None:
        epoch = Epoch(**asdict(row))
        self.history.append(epoch)
        for step in steps:
            entry = Step(**asdict(step))
            self._steps.append(entry)
            self._events.step(entry)
        self._events.epoch(epoch)
        self._steps.flush()
        self._events.flush()
        self._write()
        self._screen.epoch(epoch, self.history.best)

    def _write(self) -> None:
        self.history.save(self._folder / HISTORY)
        self.history.save_texts(self._folder)
        self.history.save_log(self._folder / "log.md")

    def close(self) -> None:
        self._screen.clear()
        self._steps.close()
        self._events.close()


def choose_device(name: str) -> str:
    """ "cuda" where there is one, for "auto"."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


@contextmanager
def _removed_if_nothing_stored(folder: Path) -> Iterator[None]:
    """Make a run's folder; take it away again if the run fails before its first checkpoint.

    A run that diverged leaves the row that says so.
    """
    made = make_folder(folder)
    try:
        yield
    except DivergedError:
        raise
    except BaseException:
        if not (folder / checkpoint.LAST).exists():
            _empty(folder)
            # Not those that hold anything else.
            with suppress(OSError):
                for path in dict.fromkeys((folder, *made)):
                    path.rmdir()
        raise


def network(recipe: Recipe) -> torch.nn.Module:
    """The recipe's network with weights drawn by its seed."""
    torch.manual_seed(recipe.seed)
    return zoo.build(recipe.model, recipe.classes, **recipe.arguments)


def configured(recipe: Recipe, device: Device, processes: int) -> Configuration:
    """The recipe's configuration here; a preset is content with less where its steps cannot be one CUDA graph."""
    choice = Choice.from_text(recipe.configuration)
    tuned = tuned_configuration(choice, recipe.model, "training", describe()) if choice.tuned else None
    found = choice.on(device, True, tuned)
    if found.compile == "graphs" and "graphs" not in choice.levers:
        fused = implementation(recipe.optimizer, True) == "fused"
        if graph_obstacles(recipe, processes) or not fused:
            return replace(found, compile="compile")
    return found


def teacher_of(recipe: Recipe, run: Splits, mean: Any, device: torch.device) -> Callable[[Any], Any] | None:
    """The network a recipe distils from, ready to be called on training batches.

    Raises:
        RunError: it knows other classes or takes images normalised otherwise.
    """
    if not recipe.teacher:
        return None
    configuration = parse("fast", device_facts(device), True)
    taught = Classifier.from_checkpoint(Path(recipe.teacher), configuration, device)
    reason = same_classes(taught.card, run.train.classes)
    if reason is None and tuple(taught.card.mean) != tuple(mean):
        reason = "its images are normalised otherwise; set normalization alike"
    if reason is not None:
        raise RunError(f"teacher {recipe.teacher} cannot teach here: {reason}")
    return taught.prepared.forward


@contextmanager
def interruptible(world: World) -> Iterator[Callable[[], str | None]]:
    """Within it the first Ctrl-C or SIGTERM (see `train`) asks for a clean stop; a second Ctrl-C ends at once."""
    asked: list[str] = []
    caught = (signal.SIGINT, signal.SIGTERM) if world.size == 1 else (signal.SIGINT,)

    def ask(signum: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signal.Signals(signum).name)

    before = {number: signal.signal(number, ask) for number in caught}
    try:
        yield lambda: f"stopped by {asked[0]}" if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(request: Request, say: Say, report: Callable[[Run, History], None]) -> Run | None:
    """Train as asked, then let `report` write what is made of the finished (or stopped) run; None if it was finished.

    Raises:
        UsageError, RunError, ModelError, DataError: see the message; what an interrupted run has stored stays.
    """
    begin = time.monotonic()
    world = World.from_environ()
    if world.size > 1 and not request.name:
        # Made of the time, it would differ between processes, and after a restart.
        raise UsageError("several processes need a --name to find their run by, also when they are started again")
    if world.size > 1:
        # torchrun sends it when another process is gone, and then there is nobody left to finish a step with, nor even
        # to begin with. Not a Python handler, which would wait for a collective call that never returns.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say = say if world.first else _silent
    if finished(request):
        say(f"run {request.resume} has finished its {request.recipe.epochs} epochs; to train on, give more --epochs")
        return None
    folder = request.resume or request.runs / run_name(request)
    # Processes that torchrun starts again find the run they were in and go on with it.
    resume = request.resume is not None or (world.restarts > 0 and (folder / checkpoint.LAST).is_file())
    if not resume and world.first:
        refuse_existing(folder)
    try:
        with opened(request, say, world, folder) as run, ExitStack() as stack:
            if resume:
                for note in _go_on(run.training, folder, run.splits):
                    say(note)
            elif world.first:
                stack.enter_context(_removed_if_nothing_stored(folder))
            _describe_run(run)
            say(_opening(run))
            _go(run, request.max_minutes or run.recipe.max_minutes, begin)
            if world.first:
                rows = [Epoch(**asdict(row)) for row in run.training.history]
                report(run, History(rows, load_steps(folder / STEPS)))
            return run
    finally:
        world.close()


@contextmanager
def opened(request: Request, say: Say, world: World, folder: Path | None) -> Iterator[Run]:
    """Images, network and optimiser of a run, before its first step; loaders are closed on leaving.

    `folder` is where checkpoints will go, None for a run that stores nothing.

    Raises:
        UsageError, RunError, ModelError, DataError: see the message.
    """
    device = world.device(choose_device(request.device))
    threads = request.threads or max(1, usable_cores() // (world.size if device.type == "cpu" else 1))
    torch.set_num_threads(threads)
    found = sources.open_folders(request.data, request.train, request.val)
    splits = sources.split(found, request.recipe, say)
    recipe = sources.resolved(request.recipe, splits, bool(request.title), device.type, say)
    configuration = configured(recipe, device_facts(device), world.size)
    mean, std = sources.statistics(recipe, splits.train)
    card = Card(
        model=recipe.model,
        classes=splits.train.classes,
        size=recipe.size,
        arguments=recipe.arguments,
        mean=mean,
        std=std,
        normalization="per_image" if recipe.normalization == "per_image" else "fixed",
        evaluation=recipe.evaluation,
        tta=recipe.tta,
        data=splits.train.name.partition("/")[0],
    )
    world.open(device)
    feed = Feed.from_recipe(recipe, splits, configuration, device, world, threads, mean, std)
    try:
        teacher = teacher_of(recipe, splits, mean, device)
        training = Training(recipe, network(recipe), card, configuration, device, world, feed, folder, teacher)
        yield Run(request, recipe, folder or Path(), feed.splits, feed, training, configuration, device, world, threads)
    finally:
        feed.close()


def _silent(text: str) -> None:
    """What the other processes say."""


def _go_on(training: Training, folder: Path, splits: Splits) -> list[str]:
    card, weights, state = checkpoint.load_run(folder)
    reason = same_classes(card, splits.train.classes)
    if reason is None and card.model != training.recipe.model:
        reason = f"it trained {card.model}, the recipe says {training.recipe.model}"
    if reason is not None:
        raise RunError(f"run {folder} cannot go on like this: {reason}")
    notes = training.load(weights, state)
    done = training.position.epoch
    notes.append(f"going on after epoch {done} of {training.recipe.epochs}, step {training.position.step}")
    return notes


def _describe_run(run: Run) -> None:
    if not run.world.first:
        return
    request = run.request
    said: Mapping[str, Any] = {
        "command": shlex.join(["bench", *sys.argv[1:]]),
        "recipe": request.title,
        "data": {
            "folder": str(request.data.absolute()) if request.data else "",
            "train": [str(Path(p).absolute()) for parts in request.train for p in parts.split(",")],
            "val": str(Path(request.val).absolute()) if request.val else None,
        },
        "images": {
            "train": len(run.splits.train),
            "validation": len(run.splits.validation),
            "test": len(run.splits.test),
        },
        "test_is_independent": run.splits.independent,
        "device": run.device.type,
        "processes": run.world.size,
        "threads": run.threads,
        "configuration": run.configuration.text,
        "machine": describe(device=str(run.device)),
    }
    write_whole(run.folder / RUN, (json.dumps(said, indent=1) + "\n").encode())
    write_whole(run.folder / RECIPE, to_toml(run.recipe, [f"resolved recipe of run {run.folder.name}"]).encode())


def _opening(run: Run) -> str:
    recipe, splits = run.recipe, run.splits
    params = sum(p.numel() for p in run.training.raw.parameters())
    return (
        f"{recipe.model}@{run.configuration.text} ({params:,} parameters) on {splits.train.name}: "
        f"{len(splits.train):,} images in {recipe.classes} classes at {recipe.size} px, batch {recipe.batch}, "
        f"{recipe.epochs} epochs, loader {recipe.loader}, {run.device.type}; run {run.folder}"
    )


def _go(run: Run, max_minutes: float, begin: float) -> None:
    screen = Screen(run.recipe.epochs, quiet=not run.world.first)
    history = History(Epoch(**asdict(row)) for row in run.training.history)
    # Steps of an epoch are written when it ends, also those made before a pause inside it.
    position = run.training.position
    written = position.step - position.batch_index // run.recipe.accumulate
    recorder = Recorder(run.folder, screen, history, written) if run.world.first else None
    try:
        with interruptible(run.world) as asked:

            def stop() -> str | None:
                if max_minutes and time.monotonic() - begin > 60 * max_minutes:
                    return f"stopped after {max_minutes:g} minutes"
                return asked()

            run.stopped = run.training.run(recorder or _Nobody(), stop)
    except DivergedError as error:
        good = run.training.position.epoch
        kept = f"the weights after epoch {good} are in {run.folder / checkpoint.LAST}" if good else "nothing was stored"
        reason = f"{error} (epoch {good + 1}); {kept}; lower lr, or clip gradients with --set clip=1"
        if run.world.first:
            _failed(run, reason)
        raise DivergedError(reason) from None
    except Exception:
        if run.training.unevaluated:
            epoch = run.training.position.epoch + 1
            screen.say(f"epoch {epoch} is trained and stored; its evaluation failed, --resume {run.folder} repeats it")
        raise
    finally:
        if recorder is not None:
            recorder.close()


def _failed(run: Run, reason: str) -> None:
    """Leave the row that a comparison of runs shows for this one."""
    history = run.training.history
    RunSummary(
        name=run.folder.name,
        model=run.recipe.model,
        data=run.training.card.data,
        recipe=run.request.title or "options",
        evaluated=run.splits.evaluated,
        status="failed",
        reason=reason,
        epochs=len(history),
        train_seconds=run.training.position.seconds,
    ).save(run.folder)


class _Nobody:
    """Watches the other processes, which say nothing."""

    def step(self, done: int, steps: int) -> None:
        """Nothing."""

    def epoch(self, row: EpochRow, steps: list[StepRow], best: bool) -> None:
        """Nothing."""


def choose_weights(run: Run) -> int:
    """Put the weights that the recipe selects into the network; returns their epoch."""
    training = run.training
    best = run.folder / checkpoint.BEST
    if run.recipe.select == "best" and best.is_file() and training.position.best_epoch != training.position.epoch:
        card, tensors = checkpoint.load_weights(best)
        checkpoint.put(training.raw, tensors, str(best))
        training.average = None
        return card.epoch
    return training.position.epoch
