"""Schedules against torch's, step by step, and against their closed forms."""

import math
import warnings
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from models.training.recipe import Recipe
from models.training.schedules import SCHEDULES, Plateau, apply, factor, lr_series

LR = 0.4
FINE = 10**9  # steps an epoch: so short that a step has no length


def schedule(name: str, epochs: int, per: str = "step", **options: Any) -> Recipe:
    return Recipe("lenet", schedule=name, epochs=epochs, schedule_per=per, lr=LR, **options)


def optimizer(**options: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, **options)


def sequence(own: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    """Five epochs of warm-up from a sixth of the rate, then cosine."""
    warm = lr_scheduler.LinearLR(own, start_factor=1 / 6, total_iters=5)
    return lr_scheduler.SequentialLR(own, [warm, lr_scheduler.CosineAnnealingLR(own, T_max=15)], milestones=[5])


@pytest.mark.parametrize(
    ("ours", "steps", "theirs"),
    [
        (
            schedule("cosine", 30, "epoch", min_lr_factor=0.1),
            1,
            lambda own: lr_scheduler.CosineAnnealingLR(own, T_max=30, eta_min=0.04),
        ),
        (schedule("cosine", 6), 7, lambda own: lr_scheduler.CosineAnnealingLR(own, T_max=6 * 7)),
        (schedule("cosine", 20, "epoch", warmup_epochs=5), 1, sequence),
        (
            schedule("step", 13, step_epochs=4, gamma=0.5),
            1,
            lambda own: lr_scheduler.StepLR(own, step_size=4, gamma=0.5),
        ),
        (
            schedule("multistep", 12, milestones=(2, 5, 9), gamma=0.2),
            1,
            lambda own: lr_scheduler.MultiStepLR(own, milestones=[2, 5, 9], gamma=0.2),
        ),
        *(
            (
                schedule("onecycle", 8, per, pct_start=share),
                steps,
                lambda own, steps=steps, share=share: lr_scheduler.OneCycleLR(
                    own, max_lr=LR, total_steps=8 * steps, pct_start=share, cycle_momentum=False
                ),
            )
            for share in (0.0, 0.25, 0.3, 0.5)
            for per, steps in (("step", 5), ("epoch", 1))
        ),
    ],
    ids=lambda value: value.schedule if isinstance(value, Recipe) else None,
)
def test_rates_are_those_of_torch(ours: Recipe, steps: int, theirs: Any) -> None:
    own = optimizer()
    expected = []
    with warnings.catch_warnings():
        # SequentialLR passes epoch numbers to its parts, which torch itself has deprecated.
        warnings.simplefilter("ignore")
        scheduler = theirs(own)
        for number in range(ours.epochs * steps):
            expected.append(scheduler.get_last_lr()[0])
            own.step()
            if number + 1 < ours.epochs * steps:
                scheduler.step()
    assert lr_series(ours, steps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "points"),
    [
        (schedule("constant", 10), {0: 1, 5: 1, 10: 1}),
        (schedule("step", 10, step_epochs=3), {2.9: 1, 3: 0.1, 6: 0.01}),
        (schedule("step", 10, step_epochs=3, min_lr_factor=0.05), {2.9: 1, 3: 0.1, 6: 0.05}),
        (schedule("multistep", 10, milestones=(4, 6), gamma=0.5), {3.9: 1, 4: 0.5, 9: 0.25}),
        (schedule("cosine", 10), {0: 1, 5: 0.5, 10: 0}),
        (schedule("cosine", 12, warmup_epochs=2), {1: 0.5, 2: 1, 7: 0.5}),
        (schedule("linear", 10), {0: 1, 4: 0.6, 10: 0}),
        (schedule("linear", 10, warmup_epochs=2, min_lr_factor=0.1), {1: 0.5, 6: 0.55, 10: 0.1}),
        (schedule("onecycle", 10), {0: 1 / 25, 3: 1, 10: 1 / 25 / 1e4}),
        (schedule("onecycle", 10, pct_start=0.5), {2.5: 0.52, 5: 1, 7.5: (1 + 4e-6) / 2}),
        (schedule("plateau", 10, warmup_epochs=1), {0.5: 0.5, 1: 1, 9: 1}),
    ],
)
def test_closed_forms(ours: Recipe, points: dict[float, float]) -> None:
    assert {at: factor(ours, at, FINE) for at in points} == pytest.approx(points, abs=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_where_it_ended(name: str) -> None:
    ours = schedule(name, 10, milestones=(5,), step_epochs=20)
    assert factor(ours, 10, 5) == pytest.approx(factor(ours, 15, 5), abs=1e-12)


def test_warmup_begins_with_the_share_of_a_step() -> None:
    rates = [rate / LR for rate in lr_series(schedule("linear", 4, warmup_epochs=1), 4)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert len(rates) == 16
    assert rates[15] == pytest.approx(1 / 12)


def test_only_progress_counts() -> None:
    # Half-way is half-way, whatever the batch and whatever was before.
    assert lr_series(schedule("cosine", 10), 8)[40] == lr_series(schedule("cosine", 10), 2)[10]
    per_epoch = schedule("cosine", 10, "epoch")
    assert factor(per_epoch, 4.99, 8) == factor(per_epoch, 4, 8)


def test_apply_multiplies_each_groups_own_rate() -> None:
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    own = torch.optim.SGD(
        [{"params": [first], "initial_lr": 0.1}, {"params": [second], "initial_lr": 6.4, "lr": torch.tensor(1.0)}],
        lr=0.1,
    )
    place = own.param_groups[1]["lr"].data_ptr()
    apply(own, 0.5)
    apply(own, 0.5)
    assert [float(group["lr"]) for group in own.param_groups] == pytest.approx([0.05, 3.2])
    assert own.param_groups[1]["lr"].data_ptr() == place


def test_plateau_is_torchs() -> None:
    metrics = [0.1, 0.3, 0.3, 0.30001, 0.29, 0.2, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.6, 0.1]
    own = optimizer()
    scheduler = lr_scheduler.ReduceLROnPlateau(own, "max", factor=0.5, patience=2, min_lr=LR / 8)
    ours = schedule("plateau", 20, gamma=0.5, patience=2, min_lr_factor=1 / 8)
    plateau = Plateau()
    for metric in metrics:
        scheduler.step(metric)
        plateau.step(ours, metric)
        assert LR * plateau.factor == pytest.approx(own.param_groups[0]["lr"])
        assert (plateau.best, plateau.bad_epochs) == (scheduler.best, scheduler.num_bad_epochs)
        # What a resumed run goes on with.
        plateau = Plateau(**asdict(plateau))
    assert plateau.factor < 1


def test_plateau_takes_nan_for_a_bad_epoch() -> None:
    plateau = Plateau()
    plateau.step(schedule("plateau", 20, patience=0), math.nan)
    assert (plateau.best, plateau.factor) == (None, 0.1)
    plateau.step(schedule("plateau", 20, patience=0), 0.5)
    assert plateau.best == 0.5
