"""Learning rate as a pure function of the progress of training, so that resuming needs no state.

A schedule yields a factor; the learning rate is that factor times the recipe's `lr`. A resumed run with another
schedule, batch or number of epochs evaluates another function at the same place, and nothing has to be undone. Only
Plateau, which follows the validation metric, has state, and that is three numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from models.training.recipe import Recipe

THRESHOLD = 1e-4  # relative improvement that counts as one, as in torch's ReduceLROnPlateau


def factor(recipe: "Recipe", progress: float, steps_per_epoch: int) -> float:
    """What the recipe's learning rate is multiplied by; for "plateau" that of warm-up alone.

    Args:
        progress: epochs before the step: 0 at the first step, 1.5 in the middle of the second epoch.
            With `schedule_per` "epoch" only whole epochs count.
        steps_per_epoch: with `schedule_per` "step", "onecycle" reaches its last rate at the last step, and warm-up
            begins with the share of one step.
    """
    unit = 1 / steps_per_epoch
    if recipe.schedule_per == "epoch":
        progress, unit = float(math.floor(progress)), 1.0
    if progress < recipe.warmup_epochs:
        # n steps climb by 1 / (n + 1) each, so that none is spent at rate 0.
        start = unit / (recipe.warmup_epochs + unit)
        return start + (1 - start) * progress / recipe.warmup_epochs
    return SCHEDULES[recipe.schedule](recipe, progress, unit)


def apply(optimizer: "torch.optim.Optimizer", factor: float) -> None:
    """Set the learning rate of each group to `factor` times its `initial_lr`.

    A rate held in a tensor is filled, not replaced: a captured or compiled update reads that tensor.
    """
    for group in optimizer.param_groups:
        set_rate(group, factor)


def set_rate(group: dict[str, Any], factor: float) -> None:
    """`apply` for one group."""
    rate = group["initial_lr"] * factor
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def lr_series(recipe: "Recipe", steps_per_epoch: int) -> list[float]:
    """The learning rate of every step of a training, for drawing; that of "plateau" as if every epoch were better."""
    steps = recipe.epochs * steps_per_epoch
    return [recipe.lr * factor(recipe, step / steps_per_epoch, steps_per_epoch) for step in range(steps)]


@dataclass
class Plateau:
    """State of the "plateau" schedule, which works as torch's ReduceLROnPlateau with a relative threshold.

    torch also keeps rates that would fall by less than 1e-8; here `min_lr_factor` is the only floor.

    Attributes:
        best: the best metric so far, None before the first.
        bad_epochs: epochs since then, or since the last fall of the rate.
        factor: multiplies the schedule's factor.
    """

    best: float | None = None
    bad_epochs: int = 0
    factor: float = 1.0

    def step(self, recipe: "Recipe", metric: float) -> None:
        """Take in an epoch's metric, of which more is better; NaN is never better."""
        if not math.isnan(metric) and (self.best is None or metric > self.best * (1 + THRESHOLD)):
            self.best, self.bad_epochs = metric, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > recipe.patience:
            self.bad_epochs = 0
            self.factor = max(self.factor * recipe.gamma, recipe.min_lr_factor)


def _constant(recipe: "Recipe", progress: float, unit: float) -> float:
    return 1.0


def _step(recipe: "Recipe", progress: float, unit: float) -> float:
    return max(recipe.gamma ** math.floor(progress / recipe.step_epochs), recipe.min_lr_factor)


def _multistep(recipe: "Recipe", progress: float, unit: float) -> float:
    passed = sum(progress >= milestone for milestone in recipe.milestones)
    return max(recipe.gamma**passed, recipe.min_lr_factor)


def _cosine(recipe: "Recipe", progress: float, unit: float) -> float:
    """Loshchilov and Hutter 2017, SGDR, equation 5 without restarts; torch's CosineAnnealingLR in closed form."""
    return _anneal(1.0, recipe.min_lr_factor, _share(recipe, progress))


def _linear(recipe: "Recipe", progress: float, unit: float) -> float:
    return 1 - (1 - recipe.min_lr_factor) * _share(recipe, progress)


def _share(recipe: "Recipe", progress: float) -> float:
    """The share of the time after warm-up that has passed, 0 to 1."""
    return min((progress - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs), 1.0)


def _onecycle(recipe: "Recipe", progress: float, unit: float) -> float:
    """Smith and Topin 2018, Super-Convergence, in the two-phase cosine form of torch's OneCycleLR."""
    first = 1 / recipe.div_factor
    # Of n steps the first has number 0 and the last n - 1, hence one unit less at both ends.
    peak, last = recipe.pct_start * recipe.epochs - unit, recipe.epochs - unit
    if progress < peak:
        return _anneal(first, 1.0, progress / peak)
    falling = last - peak
    return _anneal(1.0, first / recipe.final_div_factor, min((progress - peak) / falling, 1.0) if falling > 0 else 0.0)


def _anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[["Recipe", float, float], float]] = {
    "constant": _constant,
    "step": _step,
    "multistep": _multistep,
    "cosine": _cosine,
    "linear": _linear,
    "onecycle": _onecycle,
    "plateau": _constant,
}
