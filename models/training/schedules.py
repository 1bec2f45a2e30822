"""Learning rate as a pure function of how far training has come, so that going on needs no state.

A schedule yields a factor; the learning rate is that factor times the rate the recipe names. Whoever resumes with
another schedule, another batch or more epochs asks another function at the same place, and nothing has to be undone.
Only Plateau, which listens to the validation metric, has state, and that is three numbers.

Imports no torch, so that a mistyped schedule is answered at once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from models.errors import ModelError, unknown

if TYPE_CHECKING:
    import torch

THRESHOLD = 1e-4  # a metric is better if it is so by this share, as in torch's ReduceLROnPlateau


@dataclass(frozen=True)
class ScheduleOptions:
    """Which schedule, and its numbers. All durations are in epochs, fractions allowed.

    Attributes:
        name: one of SCHEDULES.
        epochs: length of training. Behind its end a schedule stays where it ended.
        per: "step" changes the rate at every step, "epoch" only between epochs.
        warmup_epochs: linear warm-up before the schedule proper (all but onecycle, which has its own).
        warmup_start_factor: where warm-up starts; 0 = with as much as each of its steps (or epochs) adds, so that n
            of them climb by 1 / (n + 1) each and none is spent at rate 0.
        milestones: multistep: epochs at which the rate is multiplied by gamma, counted from the start of training.
        step_epochs: step: the rate is multiplied by gamma every so many epochs, counted likewise.
        gamma: what step, multistep and plateau multiply by.
        min_lr_factor: what cosine and linear end at; step, multistep and plateau never go below it.
        pct_start, div_factor, final_div_factor: onecycle: share of training spent rising, the peak over the first
            rate, the first rate over the last.
        cycle_momentum, base_momentum, max_momentum: onecycle: momentum moves against the rate, between these.
        patience, mode: plateau: how many epochs without a better metric are borne; "max" or "min" is better.
    """

    name: str = "constant"
    epochs: float = 1
    per: str = "step"
    warmup_epochs: float = 0
    warmup_start_factor: float = 0.0
    milestones: tuple[float, ...] = ()
    step_epochs: float = 0
    gamma: float = 0.1
    min_lr_factor: float = 0.0
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    cycle_momentum: bool = False
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    patience: int = 5
    mode: str = "max"

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown("schedule", self.name, SCHEDULES)
        if self.per not in ("step", "epoch"):
            raise unknown("schedule unit (per)", self.per, ("step", "epoch"))
        if self.mode not in ("max", "min"):
            raise unknown("plateau mode", self.mode, ("max", "min"))
        _check(self.epochs > 0, "epochs", self.epochs, "a positive number")
        _check(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, "0 or more, below epochs")
        _check(0 <= self.warmup_start_factor <= 1, "warmup_start_factor", self.warmup_start_factor, "0 to 1")
        _check(0 < self.gamma < 1 or not self._decays, "gamma", self.gamma, "a factor between 0 and 1")
        _check(0 <= self.min_lr_factor <= 1, "min_lr_factor", self.min_lr_factor, "0 to 1")
        _check(0 <= self.pct_start <= 1, "pct_start", self.pct_start, "0 to 1")
        _check(self.div_factor >= 1, "div_factor", self.div_factor, "1 or more")
        _check(self.final_div_factor >= 1, "final_div_factor", self.final_div_factor, "1 or more")
        _check(self.patience >= 0, "patience", self.patience, "0 or more epochs")
        momenta = (self.base_momentum, self.max_momentum)
        _check(0 <= momenta[0] <= momenta[1] < 1, "base_momentum, max_momentum", momenta, "two rising shares below 1")
        rising = all(low < high for low, high in zip((0.0, *self.milestones), self.milestones, strict=False))
        _check(rising, "milestones", self.milestones, "epochs above 0 in rising order")
        if self.name == "multistep" and not self.milestones:
            raise ModelError("the multistep schedule needs milestones, the epochs at which the rate falls")
        if self.name == "step" and not self.step_epochs > 0:
            raise ModelError(
                f"step_epochs is {self.step_epochs!r}; the step schedule needs the epochs between two falls"
            )
        if self.name == "onecycle" and (self.warmup_epochs or self.min_lr_factor):
            raise ModelError(
                "onecycle has its own warm-up (pct_start) and end (final_div_factor); "
                "leave warmup_epochs and min_lr_factor at 0"
            )
        if self.cycle_momentum and self.name != "onecycle":
            raise ModelError(f"cycle_momentum belongs to onecycle, not to {self.name}")

    @property
    def _decays(self) -> bool:
        return self.name in ("step", "multistep", "plateau")


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ModelError(f"{name} is {value!r}; give {wanted}")


def factor(options: ScheduleOptions, progress_epochs: float, steps_per_epoch: int | None = None) -> float:
    """What the recipe's learning rate is multiplied by.

    Args:
        progress_epochs: epochs behind us when the step is made: 0 at the first step, 1.5 in the middle of the second
            epoch. per="epoch" takes the whole epochs of it.
        steps_per_epoch: lets "onecycle" reach its last rate at the last step, not one step after it, and warm-up
            begin with one step's share. Without it both are the curve that ever shorter steps approach. Not looked at
            with per="epoch".

    Returns:
        The factor; for plateau that of warm-up alone, to be multiplied by `Plateau.factor`.
    """
    progress, unit = _place(options, progress_epochs, steps_per_epoch)
    if progress < options.warmup_epochs:
        start = options.warmup_start_factor or unit / (options.warmup_epochs + unit)
        return start + (1 - start) * progress / options.warmup_epochs
    return SCHEDULES[options.name](options, progress, unit)


def momentum(options: ScheduleOptions, progress_epochs: float, steps_per_epoch: int | None = None) -> float | None:
    """The momentum (beta1 of Adam) onecycle asks for, None if momentum stays as the recipe says."""
    if not options.cycle_momentum:
        return None
    progress, unit = _place(options, progress_epochs, steps_per_epoch)
    high, low = options.max_momentum, options.base_momentum
    return _cycle(options, progress, unit, (high, low, high))


def apply(optimizer: "torch.optim.Optimizer", factor: float, momentum: float | None = None) -> None:
    """Set each group's rate to `factor` times its `initial_lr`, and its momentum or beta1 unless None.

    A rate held in a tensor is filled, not replaced: a captured or compiled update reads it where it lies.
    """
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        if momentum is not None:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif "momentum" in group:
                group["momentum"] = momentum
            else:
                raise ModelError(f"cycle_momentum: {type(optimizer).__name__} has no momentum to cycle")


def lr_series(options: ScheduleOptions, lr: float, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step of a training, for drawing; plateau as if no epoch were ever worse."""
    steps = math.ceil(options.epochs * steps_per_epoch)
    return [lr * factor(options, step / steps_per_epoch, steps_per_epoch) for step in range(steps)]


@dataclass
class Plateau:
    """What the plateau schedule remembers: the semantics of torch's ReduceLROnPlateau, its threshold relative.

    torch also keeps rates that would fall by less than 1e-8; here min_lr_factor is the only floor.

    Attributes:
        best: the best metric so far, None before the first.
        bad_epochs: epochs since, or since the last fall of the rate.
        factor: multiplies the schedule's factor.
    """

    best: float | None = None
    bad_epochs: int = 0
    factor: float = 1.0

    def step(self, options: ScheduleOptions, metric: float) -> bool:
        """Take in an epoch's metric (a not-a-number is not better); returns whether the rate falls."""
        # Before the first number every number is better.
        if not math.isnan(metric) and (self.best is None or _better(options.mode, metric, self.best)):
            self.best, self.bad_epochs = metric, 0
            return False
        self.bad_epochs += 1
        if self.bad_epochs <= options.patience:
            return False
        before, self.bad_epochs = self.factor, 0
        self.factor = max(self.factor * options.gamma, options.min_lr_factor)
        return self.factor < before

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ModelError: not what `state_dict` returned."""
        names = [field.name for field in fields(self)]
        if set(state) != set(names):
            raise ModelError(f"the plateau's state holds {sorted(state)}, not {sorted(names)}")
        for name in names:
            setattr(self, name, state[name])


def _better(mode: str, metric: float, best: float) -> bool:
    return metric > best * (1 + THRESHOLD) if mode == "max" else metric < best * (1 - THRESHOLD)


def _place(options: ScheduleOptions, progress: float, steps_per_epoch: int | None) -> tuple[float, float]:
    """Progress and the length of one change of the rate, both in epochs (length 0: unknown)."""
    if progress < 0:
        raise ModelError(f"a schedule was asked for {progress!r} epochs; training starts at 0")
    if options.per == "epoch":
        return float(math.floor(progress)), 1.0
    return progress, 1 / steps_per_epoch if steps_per_epoch else 0.0


def _constant(options: ScheduleOptions, progress: float, unit: float) -> float:
    return 1.0


def _step(options: ScheduleOptions, progress: float, unit: float) -> float:
    return max(options.gamma ** math.floor(progress / options.step_epochs), options.min_lr_factor)


def _multistep(options: ScheduleOptions, progress: float, unit: float) -> float:
    passed = sum(progress >= milestone for milestone in options.milestones)
    return max(options.gamma**passed, options.min_lr_factor)


def _share(options: ScheduleOptions, progress: float) -> float:
    """How much of the time after warm-up has passed, 0 to 1."""
    return min((progress - options.warmup_epochs) / (options.epochs - options.warmup_epochs), 1.0)


def _cosine(options: ScheduleOptions, progress: float, unit: float) -> float:
    """Loshchilov and Hutter 2017, SGDR, equation 5 without restarts; torch's CosineAnnealingLR in closed form."""
    return _anneal(1.0, options.min_lr_factor, _share(options, progress))


def _linear(options: ScheduleOptions, progress: float, unit: float) -> float:
    return 1 - (1 - options.min_lr_factor) * _share(options, progress)


def _onecycle(options: ScheduleOptions, progress: float, unit: float) -> float:
    """Smith and Topin 2018, Super-Convergence, in the two-phase cosine form of torch's OneCycleLR."""
    first = 1 / options.div_factor
    return _cycle(options, progress, unit, (first, 1.0, first / options.final_div_factor))


def _cycle(options: ScheduleOptions, progress: float, unit: float, values: tuple[float, float, float]) -> float:
    """Half a cosine from values[0] to [1] up to the peak, half a cosine to [2] at the last step."""
    # With n steps the first has number 0 and the last n - 1, hence one unit off both ends.
    peak, last = options.pct_start * options.epochs - unit, options.epochs - unit
    if progress < peak:
        return _anneal(values[0], values[1], progress / peak)
    falling = last - peak
    return _anneal(values[1], values[2], min((progress - peak) / falling, 1.0) if falling > 0 else 0.0)


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[ScheduleOptions, float, float], float]] = {
    "constant": _constant,
    "step": _step,
    "multistep": _multistep,
    "cosine": _cosine,
    "linear": _linear,
    "onecycle": _onecycle,
    "plateau": _constant,
}
