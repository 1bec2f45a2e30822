"""A training run: opens data and network, runs the loop, and keeps the run's folder up to date."""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError
from bench.machine import alone, facts
from bench.machine.allocator import keep_memory
from bench.machine.cpu import usable_cores
from bench.machine.devices import choose_device
from bench.machine.tuned import tuned_configuration
from bench.processes import STOPPING, stop_requests
from bench.runs import sources
from bench.runs.folder import HISTORY, LOG, RECIPE, STEPS, RunError, RunRecord, existing_folder, new_folder
from bench.runs.provenance import RunImages
from bench.runs.request import Request
from bench.runs.sources import Feed, Splits
from bench.screen import Say, Screen
from loaders.soundness import remarks
from models import zoo
from models.configuration import Choice, Configuration, Device, parse
from models.predict import Classifier, same_classes
from models.prepare import device_facts
from models.project import named
from models.training import checkpoint
from models.training.checkpoint import Card
from models.training.distributed import World
from models.training.loop import DivergedError, EpochRow, StepRow, Training, graph_obstacles
from models.training.optimizers import implementation
from models.training.recipe import Published, Recipe, to_toml
from results.errors import RecordError
from results.events import EventWriter
from results.history import Epoch, History, Step, StepLog, line
from results.runs import Published as PublishedRow
from results.runs import RunSummary, Status
from results.store import write_whole


@dataclass
class Run:
    """A run under way.

    Attributes:
        training: the network and all that goes with it; `training.recipe` is the resolved recipe.
        images: what it is trained, validated and tested on; None in a run that stores nothing.
        stopped: why it ended before its last epoch; None if it did not.
        interrupted: whether a signal is the reason.
    """

    request: Request
    folder: Path
    feed: Feed
    training: Training
    images: RunImages | None = None
    stopped: str | None = None
    interrupted: bool = False

    @property
    def recipe(self) -> Recipe:
        return self.training.recipe

    @property
    def splits(self) -> Splits:
        return self.feed.splits

    def summary(self, status: Status, reason: str | None, **figures: Any) -> RunSummary:
        """The row that this run has in comparisons; `figures` are fields of RunSummary."""
        return RunSummary(
            name=self.folder.name,
            model=self.recipe.model,
            data=self.training.card.data,
            recipe=self.request.title or "options",
            evaluated=self.splits.evaluated,
            status=status,
            reason=reason,
            train_seconds=self.training.position.seconds,
            test_images_trained_on=self.splits.trained_on,
            test_fingerprint=self.images.test.fingerprint(self.training.card.classes) if self.images else None,
            published=published_row(self.recipe.published),
            **figures,
        )


def published_row(published: Published) -> PublishedRow | None:
    """What a study published for a recipe, as a run's summary holds it; None where it names no study."""
    kept = ("study", "top1", "top1_best", "epochs", "seconds", "hardware", "source", "defects", "note")
    values = {name: value for name in kept if (value := getattr(published, name))}
    return PublishedRow(**values) if published.study else None


class TrainingLog:
    """Writes what happens in a training into its folder: after every epoch the files are complete.

    Args:
        history: epochs before this process began.
        step: the last step of these.
    """

    def __init__(self, folder: Path, screen: Screen, epochs: int, history: History, step: int) -> None:
        self._folder, self._screen, self._epochs, self._history = folder, screen, epochs, history
        self._epoch = history.epochs[-1].epoch if history.epochs else 0
        self._steps = StepLog(folder / STEPS, step)
        resumed = bool(self._epoch or step or any(folder.glob("events.out.tfevents.*")))
        self._events = EventWriter(folder, self._epoch if resumed else None, step if resumed else None)
        self._write()

    def step(self, done: int, steps: int) -> None:
        self._screen.steps(f"epoch {self._epoch + 1}/{self._epochs}", done, steps)

    def trained(self, row: EpochRow, steps: list[StepRow]) -> None:
        for step in steps:
            entry = Step(**asdict(step))
            self._steps.append(entry)
            self._events.step(entry)
        self._events.epoch(Epoch(**asdict(row)))
        self._steps.flush()
        self._events.flush()

    def epoch(self, row: EpochRow, best: bool) -> None:
        epoch = Epoch(**asdict(row))
        self._epoch = epoch.epoch
        self._history.append(epoch)
        self._write()
        self._screen.say(line(epoch, self._epochs, self._history.best))

    def _write(self) -> None:
        self._history.save(self._folder / HISTORY)
        self._history.save_texts(self._folder)
        self._history.save_log(self._folder / LOG)

    def close(self) -> None:
        self._screen.clear()
        self._steps.close()
        self._events.close()


def configured(recipe: Recipe, device: Device, processes: int) -> Configuration:
    """The recipe's configuration here; where a preset's steps cannot be one CUDA graph, it is compiled without."""
    choice = Choice.from_text(recipe.configuration)
    tuned = tuned_configuration(choice, recipe.model, "training", facts.describe()) if choice.tuned else None
    configuration = choice.on(device, True, tuned)
    if configuration.compile == "graphs" and "graphs" not in choice.levers:
        fused = implementation(recipe.optimizer, True) == "fused"
        if graph_obstacles(recipe, processes) or not fused:
            return replace(configuration, compile="compile")
    return configuration


def load_teacher(recipe: Recipe, card: Card, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The network a recipe distils from, ready to be called on training batches; None where it has none.

    Args:
        card: of the network that learns.

    Raises RunError: the teacher knows other classes, or takes images normalised or turned in another way.
    """
    if not recipe.teacher:
        return None
    teacher = Classifier.from_checkpoint(Path(recipe.teacher), parse("fast", device_facts(device), True), device)
    reason = same_classes(teacher.card, card.classes)
    if reason is None and teacher.card.mean != card.mean:
        reason = "its images are normalised in another way; set normalization to match"
    if reason is None and teacher.card.exif != card.exif:
        reason = f'it was trained with exif = "{teacher.card.exif}"; set exif to match'
    if reason is not None:
        raise RunError(f"teacher {recipe.teacher} cannot teach here: {reason}")
    return teacher.prepared.forward


def train(request: Request, screen: Screen, report: Callable[[Run], object]) -> Run | None:
    """Train as asked, then call `report` with the finished or stopped run; None if it had finished before.

    The first Ctrl-C or SIGTERM stops after the step under way, a second one at once.

    Raises UsageError, RunError, ModelError, DataError: see the message; what an interrupted run has stored stays.
    """
    begin = time.monotonic()
    world = World.from_environ()
    if world.size > 1 and not request.name:
        # Made of the time, it would differ between processes, and after a restart.
        raise UsageError("several processes need a --name, by which they find their run again after a restart")
    if world.size > 1:
        # torchrun sends it when another process has ended, and without that one no step can be finished. Not a Python
        # handler: it would wait for a collective call that never returns.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not world.first:
        screen = Screen(silent=True)
    if request.finished():
        screen.say(
            f"run {request.resume} has finished its {request.recipe.epochs} epochs; to continue, give more --epochs"
        )
        return None
    folder = request.resume or request.runs / request.run_name()
    # Processes that torchrun starts again find the run they were in, if it is theirs and not the reason why they ended.
    known = request.resume is not None or _begun_by_this_command(folder, world)
    try:
        with ExitStack() as stack:
            if world.first and (request.resume is not None or (known and (folder / checkpoint.LAST).is_file())):
                stack.enter_context(existing_folder(folder))
            elif world.first:
                folder = stack.enter_context(new_folder(folder, numbered=not request.name))
                _store_beginning(request, folder, world)
            resume = known and (folder / checkpoint.LAST).is_file()
            if request.resume is not None and not resume:
                screen.say(f"run {folder} ended before its first checkpoint; starting it from the beginning")
            run = stack.enter_context(opened(request, screen.say, world, folder))
            if not world.agree(resume, run.training.device):
                raise RunError(f"run {folder} is not seen by all machines: choose a folder that they share with --runs")
            for note in _restore(run) if resume else ():
                screen.say(note)
            if world.first:
                _store_request(run)
            stack.enter_context(alone.training(choose_device(request.device), screen.say))
            screen.say(_headline(run))
            _run_epochs(run, screen, request.max_minutes or run.recipe.max_minutes, begin)
            if world.first:
                try:
                    report(run)
                except Exception:
                    screen.say(f"the weights are stored; the rest is repeated by bench train --resume {run.folder}")
                    raise
            return run
    finally:
        world.close()


@contextmanager
def opened(request: Request, say: Say, world: World, folder: Path | None) -> Iterator[Run]:
    """Images, network and optimiser of a run, before its first step; loaders are closed on leaving.

    `folder` is where checkpoints will go, None for a run that stores nothing.

    Raises UsageError, RunError, ModelError, DataError: see the message.
    """
    device = world.device(choose_device(request.device))
    threads = request.threads or max(1, usable_cores() // (world.size if device.type == "cpu" else 1))
    torch.set_num_threads(threads)
    parts = sources.open_folders(request.data)
    splits = sources.split(parts, request.recipe, say)
    images = None
    if world.first:
        for remark in remarks(parts, compare=False):
            say(remark)
        if folder is not None:
            images, splits = _known_images(request, splits, folder, say)
    recipe = sources.resolved(request.recipe, splits, bool(request.title), str(device), say, world.size)
    configuration = configured(recipe, device_facts(device), world.size)
    if configuration.keep:
        keep_memory()
    mean, std = sources.statistics(recipe, splits.train, say)
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
        exif=recipe.exif,
        data=splits.train.whole_title,
    )
    world.open(device)
    batch = max(1, recipe.batch // world.size)
    options = sources.evaluation_options(card, configuration, str(device), batch, threads)
    with closing(Feed(recipe, splits, options, world)) as feed:
        teacher = load_teacher(recipe, card, device)
        torch.manual_seed(recipe.seed)
        model = zoo.build(recipe.model, recipe.classes, **recipe.arguments)
        training = Training(recipe, model, card, configuration, device, world, feed, folder, teacher)
        yield Run(request, folder or Path(), feed, training, images)


def _known_images(request: Request, splits: Splits, folder: Path, say: Say) -> tuple[RunImages, Splits]:
    """The images of a new or a resumed run, and the splits with what these show.

    Raises RunError: a resumed run has others than before.
    """
    resumed = (folder / checkpoint.LAST).is_file()
    before = RunImages.load(folder) if resumed else None
    images = RunImages.of(splits.train, splits.validation, splits.test, before.train.every if before else None)
    if resumed:
        counts = RunRecord.load(folder).images
        images = images.after(before, counts, folder, request.named)
        if before is None:
            say(f"note: an earlier version began run {folder}: only the number of its images can be compared")
        if differences := images.differences(before, counts):
            say(f"warning: the run goes on with other images than before ({'; '.join(differences)})")
    return images, sources.compared(splits, images, request.recipe, say)


def _restore(run: Run) -> list[str]:
    """Put the state that the run's folder holds into the training; returns lines about that."""
    training, folder = run.training, run.folder
    card, weights, state = checkpoint.load_run(folder)
    reason = same_classes(card, run.splits.train.classes)
    if reason is None and card.model != run.recipe.model:
        reason = f"it trained {card.model}, the recipe says {run.recipe.model}"
    if reason is not None:
        raise RunError(f"run {folder} cannot be resumed like this: {reason}")
    notes = training.load(weights, state)
    position = training.position
    if position.batch_index and named(run.recipe.loader).is_code:
        notes.append(f"note: {run.recipe.loader} begins a new pass: the rest of the epoch may have other images")
    return [*notes, f"resuming after epoch {position.epoch} of {run.recipe.epochs}, step {position.step}"]


def _store_beginning(request: Request, folder: Path, world: World) -> None:
    """Store what was asked for before anything is opened, so that a run that is killed meanwhile can start again."""
    record = RunRecord(
        command=_command(),
        recipe=request.title,
        data=request.data,
        images={},
        test_is_independent=False,
        device=request.device,
        processes=world.size,
        threads=request.threads,
        configuration=request.recipe.configuration,
        machine={},
        launch=world.launch,
    )
    _store(folder, request.recipe, f"recipe of run {folder.name} as it was asked for", record)


def _store_request(run: Run) -> None:
    """Store it again with all that has become known."""
    splits, training = run.splits, run.training
    record = RunRecord(
        command=_command(),
        recipe=run.request.title,
        data=run.request.data,
        images={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        test_is_independent=splits.independent,
        test_images_trained_on=splits.trained_on,
        device=training.device.type,
        processes=training.world.size,
        threads=run.feed.options.threads,
        configuration=training.configuration.text,
        machine=facts.describe(device=str(training.device)),
        launch=training.world.launch,
    )
    if run.images is not None:
        run.images.save(run.folder)
    _store(run.folder, run.recipe, f"resolved recipe of run {run.folder.name}", record)


def _command() -> str:
    return shlex.join(["bench", *sys.argv[1:]])


def _begun_by_this_command(folder: Path, world: World) -> bool:
    """Whether torchrun has started this process again. On a machine that was lost and came back, or that took the place
    of one, it is a torchrun that has restarted nothing yet: only its name is that of the others."""
    with suppress(RecordError):
        record = RunRecord.load(folder)
        again = world.restarts > 0 or (world.launch != "" and world.launch == record.launch)
        return again and record.command == _command()
    return False


def _store(folder: Path, recipe: Recipe, comment: str, record: RunRecord) -> None:
    # The recipe first: where there is a record, there is a recipe to start from again.
    write_whole(folder / RECIPE, to_toml(recipe, [comment]).encode())
    record.save(folder)


def until(asked: Callable[[], str | None], max_minutes: float, begin: float) -> Callable[[], str | None]:
    """Why to stop now, or None: that of `asked`, or after so many minutes since `begin`; 0 is no limit."""

    def stop() -> str | None:
        if max_minutes and time.monotonic() - begin > 60 * max_minutes:
            return f"stopped after {max_minutes:g} minutes"
        return asked()

    return stop


def _headline(run: Run) -> str:
    recipe, splits, training = run.recipe, run.splits, run.training
    params = sum(p.numel() for p in training.raw.parameters())
    return (
        f"{recipe.model}@{training.configuration.text} ({params:,} parameters) on {splits.train.title}: "
        f"{len(splits.train):,} images in {recipe.classes} classes at {recipe.size} px, batch {recipe.batch}, "
        f"{recipe.epochs} epochs, loader {recipe.loader}, {training.device.type}; run {run.folder}"
    )


def _run_epochs(run: Run, screen: Screen, max_minutes: float, begin: float) -> None:
    training, world = run.training, run.training.world
    history = History(Epoch(**asdict(row)) for row in training.history)
    # Steps of an epoch are written when it ends, also those made before a pause inside it.
    written = training.position.step - training.position.batch_index // run.recipe.accumulate
    with ExitStack() as stack:
        log = None
        if world.first:
            log = stack.enter_context(closing(TrainingLog(run.folder, screen, run.recipe.epochs, history, written)))
        asked = stack.enter_context(stop_requests(STOPPING if world.size == 1 else STOPPING[:1]))

        stop = until(asked, max_minutes, begin)
        try:
            seconds = training.warm_up()
            if seconds:
                screen.say(f"compiled in {seconds:.0f} s, which no epoch's time contains")
            run.stopped = training.run(log, stop)
            run.interrupted = run.stopped is not None and run.stopped == asked()
        except DivergedError as error:
            epoch, kept = training.position.epoch, "nothing was stored"
            if epoch:
                kept = f"the weights after epoch {epoch} are in {run.folder / checkpoint.LAST}"
            reason = f"{error} (epoch {epoch + 1}); {kept}; lower lr, or clip gradients with --set clip=1"
            if world.first:
                run.summary("failed", reason, epochs=len(training.history)).save(run.folder)
            raise DivergedError(reason) from None
        except Exception:
            if training.unevaluated:
                epoch = training.position.epoch + 1
                screen.say(
                    f"epoch {epoch} is trained and stored; its evaluation failed, --resume {run.folder} repeats it"
                )
            elif world.first and (run.folder / checkpoint.LAST).is_file():
                screen.say(f"what was stored stays, and goes on with: bench train --resume {run.folder}")
            raise
