"""The training loop: one for every recipe, device and number of processes.

Nothing inside an epoch waits for the device. Losses and hits of every step stay there in two tensors and are copied
once, when the epoch ends; the learning rate is a function of the position, computed on the host; all batches are of
one size. On a GPU a loss that is not finite is noticed a few steps late, through a copy that nobody waits for.

The random numbers of an epoch follow from (seed, epoch, rank) and the loader's from its own counters, so a run resumed
from a stored state computes what it would have computed without the interruption.
"""

import contextlib
import copy
import functools
import math
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.configuration import Configuration
from models.errors import ModelError
from models.evaluate import Evaluation, averaged, evaluate
from models.prepare import Prepared, apply_layout, prepare
from models.training import checkpoint, losses, mixing, optimizers, schedules
from models.training.averaging import WeightAverage
from models.training.checkpoint import Card
from models.training.distributed import World
from models.training.graphed import GraphedUpdate
from models.training.lr_finder import restored
from models.training.recipe import Recipe

INITIAL_IMAGES = 4096  # from which a network may compute its first layer


class Batches(Protocol):
    """An iterable of (images, labels) on the device; every iter() is an epoch."""

    images: int

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def state(self) -> dict[str, int]: ...
    def restore(self, state: dict[str, int]) -> None: ...


class Sources(Protocol):
    """Where the images come from."""

    def train(self, size: int) -> Batches:
        """Training batches of images of this size; those of another size may be closed."""

    def validation(self) -> Batches | None:
        """Batches that hold each validation image exactly once; None if there are none."""


@dataclass(frozen=True, slots=True)
class EpochRow:
    """An epoch in figures.

    Attributes:
        lr: of the last step.
        batch: images of a step.
        train_loss, train_top1: means over the steps, of batches as they were trained on.
        val_loss, val_top1, val_top5: None where nothing was validated.
        seconds: of the whole epoch with evaluation, up to the writing of the checkpoint.
        loader_seconds: that training waited for images.
        step_seconds: of the rest of training.
        evaluation_seconds: of the validation.
        images_per_second: images over loader and step time.
    """

    epoch: int
    lr: float
    size: int
    batch: int
    train_loss: float
    train_top1: float
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    images: int
    seconds: float
    loader_seconds: float
    step_seconds: float
    evaluation_seconds: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step in figures.

    Attributes:
        step: its number over the whole training, from 1.
        loss: of the labels and, with distillation, of the teacher, in the recipe's shares.
        top1: share of the batch's images that were classified as their (dominant) label.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    top1: float


class Observer(Protocol):
    """Called as training proceeds; only the first process has one."""

    def step(self, done: int, steps: int) -> None:
        """After each step, cheaply."""

    def trained(self, row: EpochRow, steps: list[StepRow]) -> None:
        """After each epoch, before its checkpoint is stored: a log that is ahead of the checkpoint can be cut back to
        it when the run goes on, one that is behind would keep a gap."""

    def epoch(self, row: EpochRow, best: bool) -> None:
        """After each epoch, when its checkpoint is stored."""


class DivergedError(ModelError):
    """The loss is not finite."""


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch: finished epochs.
        step: steps of all epochs.
        batch_index: the next batch of the epoch.
        seconds: of all finished epochs.
        best_top1, best_epoch: of the best validation so far, and when.
    """

    epoch: int = 0
    step: int = 0
    batch_index: int = 0
    seconds: float = 0.0
    best_top1: float | None = None
    best_epoch: int = 0


class _LossCheck:
    """Notices a loss that is not finite without making the host wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._copies: deque[tuple[int, Tensor, Any]] = deque()  # on their way to the host

    def add(self, step: int, loss: Tensor) -> None:
        """Check this loss, at once or in a later call. Raises DivergedError."""
        if not self._cuda:
            # A CPU has no queue to drain: reading costs nothing.
            _check_finite(step, loss.item())
            return
        host = torch.empty((), pin_memory=True)
        host.copy_(loss, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._copies.append((step, host, event))
        self.finish(wait=False)

    def finish(self, wait: bool = True) -> None:
        """Check what has arrived, or wait for all of it. Raises DivergedError."""
        while self._copies and (wait or self._copies[0][2].query()):
            step, host, event = self._copies.popleft()
            event.synchronize()
            _check_finite(step, host.item())


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} at step {step}")


def graph_obstacles(recipe: Recipe, processes: int) -> list[str]:
    """The recipe keys and circumstances that keep an update from being one CUDA graph; none if it can be one."""
    obstacles = {
        "accumulate": recipe.accumulate > 1,
        "sam_rho": bool(recipe.sam_rho),
        "mixup, cutmix and ricap": bool(recipe.mixup or recipe.cutmix or recipe.ricap),
        "one_at_a_time": recipe.one_at_a_time,
        "several processes": processes > 1,
    }
    return [name for name, present in obstacles.items() if present]


class Training:
    """A network, its optimiser and everything that a run carries from epoch to epoch.

    Args:
        recipe: with size and classes resolved.
        model: with fresh weights, on the CPU.
        card: of its checkpoints; epoch, step and top1 are filled in.
        configuration: the recipe's configuration as parsed for this device.
        sources: of the images.
        folder: of the checkpoints; None stores nothing.
        teacher: images -> logits of the network to distil from, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        card: Card,
        configuration: Configuration,
        device: torch.device,
        world: World,
        sources: Sources,
        folder: Path | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.recipe, self.card, self.device, self.world = recipe, card, device, world
        self.configuration, self.sources, self.folder, self.teacher = configuration, sources, folder, teacher
        self.position = Position()
        self.history: list[EpochRow] = []
        self._partial: dict[str, Any] | None = None
        self._source: Batches | None = None
        self._source_size = 0
        if recipe.batch % world.size:
            raise ModelError(f"batch {recipe.batch} cannot be shared among {world.size} processes")
        if configuration.precision == "bf16" and configuration.peer is None:
            raise ModelError("training needs float32 weights; use amp (bf16 autocast) instead of bf16")
        self.raw = model
        self._initialize()
        model = apply_layout(model.to(device), configuration.layout)
        wrapped = world.wrap(model, device)
        shape = (recipe.batch // world.size, 3, recipe.size, recipe.size)
        self.prepared: Prepared = prepare(wrapped, configuration, device, True, shape)
        self._wrapped = wrapped
        self.forward = _one_at_a_time(self.prepared.forward) if recipe.one_at_a_time else self.prepared.forward
        # float16 gradients underflow without a scaler; bfloat16 has float32's range and needs none.
        self.scaler = torch.amp.GradScaler(device.type) if self.prepared.autocast is torch.float16 else None
        # A fused update advances momentum also at steps that a scaler skips.
        fused = not configuration.plain and self.scaler is None
        self.optimizer = optimizers.build(self.raw, recipe, fused)
        self.plateau = schedules.Plateau() if recipe.schedule == "plateau" else None
        self._ways = {way: getattr(recipe, way) for way in mixing.WAYS if getattr(recipe, way)}
        self.average = WeightAverage(self.raw, recipe.ema, recipe.ema_every) if recipe.ema else None
        groups = self.optimizer.param_groups
        self._rest = [parameter for group in groups if group["name"] == "rest" for parameter in group["params"]]
        self._graphed = self._as_graph() if configuration.compile == "graphs" else None

    def _as_graph(self) -> GraphedUpdate:
        """The update of a step as one CUDA graph. Raises ModelError for a recipe whose steps are not all alike."""
        obstacles = graph_obstacles(self.recipe, self.world.size)
        if obstacles:
            raise ModelError(f"graphs captures one plain update, without {' or '.join(obstacles)}; use compile")
        # Without mixing, nothing in the update depends on the epoch.
        return GraphedUpdate(lambda *batch: self._plain_step([batch], epoch=0), self.raw, self.optimizer)

    def _initialize(self) -> None:
        """Let a network compute its fixed first layer from training images, if it has one."""
        initialize = getattr(self.raw, "initialize_from", None)
        if initialize is None:
            return
        batches: list[Tensor] = []
        for images, _ in self._train_source(1):
            batches.append(images.float().cpu())
            if sum(map(len, batches)) >= INITIAL_IMAGES:
                break
        initialize(torch.cat(batches)[:INITIAL_IMAGES])

    def _set_trainable(self, epoch: int) -> None:
        """Let the parameters that the recipe's `rest_epochs` is about learn in this epoch, or no longer.

        Without them no gradient has to reach the first layers. DistributedDataParallel waits for every gradient that
        there was when it was made: with several processes only their rate is 0.
        """
        if self.recipe.rest_epochs and self.world.size == 1:
            for parameter in self._rest:
                parameter.requires_grad_(epoch <= self.recipe.rest_epochs)

    def _train_source(self, epoch: int) -> Batches:
        size = self.recipe.size_at(epoch) or self.recipe.size
        if self._source is None or self._source_size != size:
            self._source, self._source_size = self.sources.train(size), size
        return self._source

    # One step

    def _backward(self, batches: Sequence[tuple[Tensor, Tensor | mixing.Mixed]]) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over the micro-batches; returns that loss and the share of hits."""
        parts, hits = [], []
        for number, (images, targets) in enumerate(batches):
            # Gradients are exchanged once a step, not once a micro-batch.
            last = number == len(batches) - 1 or self.world.size == 1
            with contextlib.nullcontext() if last else self._wrapped.no_sync():  # type: ignore[operator]
                logits = self.forward(images).float()
                loss = losses.loss(logits, targets, self.recipe, self._teacher_logits(images))
                part = loss / len(batches) if len(batches) > 1 else loss
                (part if self.scaler is None else self.scaler.scale(part)).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                labels = mixing.dominant(targets) if isinstance(targets, mixing.Mixed) else targets
                hits.append((logits.argmax(1) == labels).float().mean() / len(batches))
                parts.append(part.detach())
        return functools.reduce(operator.add, parts), functools.reduce(operator.add, hits)

    def _teacher_logits(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self.teacher(images).float()

    def _step(self, batches: list[tuple[Tensor, Tensor]], epoch: int) -> tuple[Tensor, Tensor]:
        if self._graphed is not None:
            loss, hits = self._graphed(*batches[0])
        else:
            loss, hits = self._plain_step(batches, epoch)
        if self.average is not None:
            self.average.update(self.position.step)
        return loss, hits

    def _plain_step(self, batches: list[tuple[Tensor, Tensor]], epoch: int) -> tuple[Tensor, Tensor]:
        recipe, scaler, step = self.recipe, self.scaler, self.position.step
        targets: list[tuple[Tensor, Tensor | mixing.Mixed]] = [*batches]
        if self._ways:
            keys = [(recipe.seed, epoch, step * recipe.accumulate + number) for number in range(len(batches))]
            mixed = [
                mixing.mix(*batch, self._ways, key, self.world.rank) for batch, key in zip(batches, keys, strict=True)
            ]
            targets = [(batch.images, batch) for batch in mixed]
        self.optimizer.zero_grad(set_to_none=True)
        loss, hits = self._backward(targets)
        if recipe.sam_rho and step % recipe.sam_interval == 0:
            with optimizers.perturbed(self.raw.parameters(), recipe.sam_rho):
                self.optimizer.zero_grad(set_to_none=True)
                with optimizers.frozen_batch_norm_statistics(self.raw):
                    self._backward(targets)
        if recipe.clip:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.raw.parameters(), recipe.clip, foreach=True)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        return loss, hits

    def probe(self, lr: float, images: Tensor, labels: Tensor) -> Tensor:
        """One update at this rate, outside of any epoch; returns the loss before it.

        For range tests, which undo it (lr_finder.restored) but for averages and loss scale.
        """
        self._wrapped.train()
        schedules.apply(self.optimizer, lr / self.recipe.lr)
        loss, _ = self._step([(images, labels)], 1)
        # Mixing and sharpness-aware steps depend on the number of the step.
        self.position.step += 1
        return loss

    def warm_up(self) -> float:
        """Compile what updates and evaluations run, on made-up images; seconds that it took, 0 where nothing compiles.

        Otherwise the first epoch's time would be that of the compiler. Weights, optimiser, loss scale and random
        numbers are as before it.
        """
        if not self.configuration.compiles:
            return 0.0
        begin = time.perf_counter()
        recipe, prepared = self.recipe, self.prepared
        size = recipe.size_at(self.position.epoch + 1) or recipe.size
        images = torch.randn(recipe.batch // self.world.size, 3, size, size, device=self.device)
        images = images.to(prepared.dtype).contiguous(memory_format=prepared.memory_format)
        labels = torch.arange(len(images), device=self.device) % len(self.card.classes)
        self._wrapped.train()
        # From `rest_epochs` on the update is another program.
        for epoch in sorted({self.position.epoch + 1, max(self.position.epoch, recipe.rest_epochs) + 1}):
            self._set_trainable(epoch)
            if self._graphed is not None:
                self._graphed.ready(images, labels)
            else:
                scale = copy.deepcopy(self.scaler.state_dict()) if self.scaler is not None else {}
                with restored(self.raw, self.optimizer):
                    self._plain_step([(images, labels)] * recipe.accumulate, epoch)
                if self.scaler is not None:
                    self.scaler.load_state_dict(scale)
        self._set_trainable(self.position.epoch + 1)
        # Evaluation is another program: it keeps nothing for gradients.
        self._wrapped.eval()
        with torch.no_grad():
            prepared.forward(images)
        self._wrapped.train()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin

    def restart(self, recipe: Recipe, model: nn.Module, sources: Sources) -> None:
        """Begin anew, with nothing learnt; what was compiled or captured stays in use.

        Args:
            recipe: differs from the one before in its seed alone.
            model: with fresh weights, on the CPU.
        """
        self.recipe, self.sources, self._source = recipe, sources, None
        self.position, self.history, self._partial = Position(), [], None
        # In place, since a graph reads these tensors.
        self.raw.load_state_dict(model.state_dict())
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self._initialize()
        if self.plateau is not None:
            self.plateau = schedules.Plateau()
        if self.average is not None:
            self.average = WeightAverage(self.raw, recipe.ema, recipe.ema_every)
        if self.scaler is not None:
            self.scaler.load_state_dict(torch.amp.GradScaler(self.device.type).state_dict())

    # Epochs

    def run(self, observer: Observer | None, stop: Callable[[], str | None] = lambda: None) -> str | None:
        """Train until the recipe's last epoch; returns None, or the reason that `stop` gave for stopping earlier.

        `stop` is called after every step (with several processes: after every epoch, where all agree). The state is
        stored before returning.

        Raises:
            DivergedError: the loss is not finite; the checkpoints of earlier epochs stay.
        """
        recipe = self.recipe
        while self.position.epoch < recipe.epochs:
            reason = self._epoch(observer, stop)
            if reason is not None:
                return reason
        return None

    def _epoch(self, observer: Observer | None, stop: Callable[[], str | None]) -> str | None:
        recipe, position, device = self.recipe, self.position, self.device
        epoch = position.epoch + 1
        begin, waited = time.perf_counter(), 0.0
        source = self._train_source(epoch)
        steps = self._steps()
        first = position.batch_index // recipe.accumulate
        partial, self._partial = self._partial, None
        if first < steps:
            source.restore({"epoch": epoch - 1, "batch": first * recipe.accumulate})
        if partial is None:
            torch.manual_seed(_mixed_seed(recipe.seed, epoch, self.world.rank))
        self._wrapped.train()
        self._set_trainable(epoch)
        loss_values, hit_values = torch.zeros(steps, device=device), torch.zeros(steps, device=device)
        rates = [math.nan] * steps
        unknown = first  # steps of which no figures are known
        if partial is not None:
            begin, waited = begin - partial["seconds"], partial["loader_seconds"]
            if len(partial["losses"]) == steps:
                # Only with as many steps an epoch: with another batch size the steps are other steps.
                loss_values[:first], hit_values[:first] = partial["losses"][:first], partial["hits"][:first]
                rates[:first] = partial["rates"][:first]
                unknown = 0

        def pause(now: float) -> None:
            """Store the state inside the epoch, with the figures of its steps so far."""
            self._partial = {
                "losses": loss_values.cpu(),
                "hits": hit_values.cpu(),
                "rates": rates,
                "seconds": now - begin,
                "loader_seconds": waited,
            }
            self._save(best=False)

        check = _LossCheck(device)
        iterator = iter(source)
        stored = time.perf_counter()
        for number in range(first, steps):
            asked = time.perf_counter()
            batches = [next(iterator) for _ in range(recipe.accumulate)]
            waited += time.perf_counter() - asked
            rates[number] = self._set_lr(epoch - 1 + number / steps, steps)
            loss, hits = self._step(batches, epoch)
            loss_values[number], hit_values[number] = loss, hits
            position.step += 1
            check.add(position.step, loss)
            position.batch_index = (number + 1) * recipe.accumulate
            if observer is not None:
                observer.step(number + 1, steps)
            if self.world.size > 1 or number + 1 == steps:
                continue
            reason = stop()
            late = recipe.checkpoint_minutes and time.perf_counter() - stored > 60 * recipe.checkpoint_minutes
            if reason is not None or late:
                check.finish()
                stored = time.perf_counter()
                pause(stored)
                if reason is not None:
                    return reason
                self._partial = None
        check.finish()
        if first < steps:
            for values in (loss_values, hit_values):
                self.world.sum(values).div_(self.world.size)
        trained = time.perf_counter()
        try:
            validated = self._validate(epoch)
        except Exception:
            # A validation image that cannot be read must not cost the epoch.
            pause(trained)
            raise
        position.epoch, position.batch_index = epoch, 0
        best = self._is_best(validated, epoch)
        if self.plateau is not None and validated is not None:
            self.plateau.step(recipe, validated.top1)
        images = (steps - unknown) * recipe.batch * recipe.accumulate
        row = EpochRow(
            epoch=epoch,
            lr=rates[-1],
            size=self._source_size,
            batch=recipe.batch * recipe.accumulate,
            train_loss=loss_values[unknown:].double().mean().item(),
            train_top1=hit_values[unknown:].double().mean().item(),
            val_loss=validated.loss if validated else None,
            val_top1=validated.top1 if validated else None,
            val_top5=validated.top5 if validated else None,
            images=images,
            # The checkpoint carries the row, so this holds everything but the writing of it.
            seconds=time.perf_counter() - begin,
            loader_seconds=waited,
            step_seconds=trained - begin - waited,
            evaluation_seconds=validated.seconds if validated else 0.0,
            images_per_second=images / (trained - begin),
        )
        position.seconds += row.seconds
        self.history.append(row)
        if observer is not None:
            numbered = enumerate(zip(loss_values.tolist(), hit_values.tolist(), strict=True), position.step - steps + 1)
            rows = [StepRow(step, epoch, lr, *figures) for (step, figures), lr in zip(numbered, rates, strict=True)]
            observer.trained(row, rows[unknown:])
        self._save(best)
        if observer is not None:
            observer.epoch(row, best)
        if epoch < recipe.epochs and epoch == recipe.stop_epoch:
            return f"stopped after epoch {epoch}, as the recipe says"
        return self._agreed(stop) if epoch < recipe.epochs else None

    @property
    def unevaluated(self) -> bool:
        """Whether all steps of an epoch are done and stored, but its evaluation failed."""
        return self._partial is not None and self.position.batch_index == self._steps() * self.recipe.accumulate

    def _steps(self) -> int:
        """Number of steps of the current epoch."""
        batches = len(self._train_source(self.position.epoch + 1))
        return max(1, batches // self.recipe.divide // self.recipe.accumulate)

    def _agreed(self, stop: Callable[[], str | None]) -> str | None:
        """Several processes stop together or not at all."""
        reason = stop()
        if self.world.size == 1:
            return reason
        flag = self.world.sum(torch.tensor([1.0 if reason else 0.0], device=self.device))
        return (reason or "another process stopped") if flag.item() else None

    def _set_lr(self, progress: float, steps: int) -> float:
        factor = schedules.factor(self.recipe, progress, steps)
        if self.plateau is not None:
            factor *= self.plateau.factor
        schedules.apply(self.optimizer, factor)
        if self.recipe.rest_epochs:
            share = max(0.0, 1 - progress / self.recipe.rest_epochs)
            for group in self.optimizer.param_groups:
                if group["name"] == "rest":
                    schedules.set_rate(group, share * factor)
        return self.recipe.lr * factor

    def _validate(self, epoch: int) -> Evaluation | None:
        every = self.recipe.evaluate_every
        if epoch < self.recipe.epochs and (every == 0 or epoch % every):
            return None
        batches = self.sources.validation()
        return None if batches is None else self.evaluate(batches)

    def evaluate(self, batches: Batches, keep: bool = False, alone: bool = False) -> Evaluation:
        """Evaluate the weights a user gets: the averaged ones where the recipe averages.

        `alone` is for a process that evaluates all images by itself: DistributedDataParallel would wait for the
        others at every forward pass.
        """
        swapped = self.average.swap() if self.average is not None else contextlib.nullcontext()
        self._wrapped.eval()
        prepared = self.prepared
        if alone and self.world.size > 1:
            prepared = prepare(self.raw, replace(self.configuration, compile="eager"), self.device, False, (1, 3, 1, 1))
        with swapped:
            result = evaluate(
                averaged(prepared.forward, self.recipe.tta),
                batches,
                len(self.card.classes),
                self.device,
                self.recipe.batch // self.world.size,
                keep,
                World().sum if alone else self.world.sum,
            )
        self._wrapped.train()
        return result

    def _is_best(self, validated: Evaluation | None, epoch: int) -> bool:
        if validated is None:
            return False
        best = self.position.best_top1
        if best is not None and validated.top1 <= best:
            return False
        self.position.best_top1, self.position.best_epoch = validated.top1, epoch
        return True

    # Checkpoints

    def weights(self) -> dict[str, Tensor]:
        """CPU copies of the weights a user gets."""
        with self.average.swap() if self.average is not None else contextlib.nullcontext():
            return checkpoint.weights_of(self.raw)

    def _save(self, best: bool) -> None:
        if self.folder is None or not self.world.first:
            return
        position = self.position
        top1 = self.history[-1].val_top1 if self.history and not position.batch_index else None
        card = replace(self.card, epoch=position.epoch, step=position.step, top1=top1)
        weights = self.weights()
        if best:
            checkpoint.save_weights(self.folder / checkpoint.BEST, weights, card)
        every = self.recipe.checkpoint_epochs
        if every and not position.batch_index and position.epoch % every == 0:
            checkpoint.save_weights(self.folder / f"epoch-{position.epoch:04d}.safetensors", weights, card)
        checkpoint.save_run(self.folder, weights, card, self.state())

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides the weights: plain values and tensors."""
        return {
            "position": asdict(self.position),
            "batch": self.recipe.batch * self.recipe.accumulate,
            "optimizer_name": self.recipe.optimizer,
            "optimizer": self.optimizer.state_dict(),
            # The weights file holds the averaged weights; training continues with these.
            "raw": checkpoint.weights_of(self.raw) if self.average is not None else {},
            "average": self.average.state_dict() if self.average is not None else {},
            "plateau": asdict(self.plateau) if self.plateau is not None else {},
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "history": [asdict(row) for row in self.history],
            "partial": self._partial,
        }

    def load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> list[str]:
        """Resume from a stored state; returns a line about each thing that could not be restored.

        Batch size, learning rate, schedule and optimiser may differ from the stored run's.

        Raises:
            ModelError: the weights belong to another network.
        """
        notes: list[str] = []
        checkpoint.put(self.raw, state["raw"] or weights, "the stored run")
        self.position = Position(**state["position"])
        self.history = [EpochRow(**row) for row in state["history"]]
        self._partial = state["partial"]
        if state["optimizer_name"] == self.recipe.optimizer:
            optimizers.load_state(self.optimizer, state["optimizer"])
        else:
            notes.append(
                f"optimiser {state['optimizer_name']} became {self.recipe.optimizer}, which starts without state"
            )
        if self.average is not None:
            if state["average"]:
                self.average.load_state_dict(state["average"])
            else:
                # The first one was made before the weights were loaded; it must begin with these, not with random ones.
                self.average = WeightAverage(self.raw, self.recipe.ema, self.recipe.ema_every)
                notes.append("the weight average starts anew")
        if self.plateau is not None and state["plateau"]:
            self.plateau = schedules.Plateau(**state["plateau"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.position.batch_index:
            self._partial = self._continued(state, notes)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        return notes

    def _continued(self, state: dict[str, Any], notes: list[str]) -> dict[str, Any] | None:
        """The interrupted epoch, continued at the same image of its order, also with another batch size."""
        batch = self.recipe.batch * self.recipe.accumulate
        partial: dict[str, Any] = state["partial"]
        if state["batch"] != batch:
            seen = self.position.batch_index // self.recipe.accumulate * state["batch"]
            self.position.batch_index = seen // batch * self.recipe.accumulate
            notes.append(f"batch {state['batch']} became {batch} inside an epoch: its figures cover only the rest")
        steps = self._steps()
        only_evaluation_left = state["batch"] == batch and len(partial["losses"]) == steps
        if self.position.batch_index // self.recipe.accumulate >= steps and not only_evaluation_left:
            # Less than one step is left of the epoch: begin the next one.
            self.position.batch_index = 0
            self.position.epoch += 1
            return None
        return partial


def _one_at_a_time(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.cat([forward(image) for image in images.split(1)])  # type: ignore[no-untyped-call]


def _mixed_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed made of three numbers, unrelated for neighbouring ones (finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + rank + 1) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63
