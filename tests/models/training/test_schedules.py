"""Schedules against torch's, step by step, and against their closed forms."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from models.errors import ModelError
from models.training.schedules import SCHEDULES, Plateau, ScheduleOptions, apply, factor, lr_series, momentum

LR = 0.4


def optimizer(**options: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, **options)


def stepped(scheduler: lr_scheduler.LRScheduler, changes: int) -> list[float]:
    """The rates torch's scheduler gives at the first `changes` steps (or epochs)."""
    rates = []
    for _ in range(changes):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_cosine_per_epoch_is_torchs() -> None:
    theirs = stepped(lr_scheduler.CosineAnnealingLR(optimizer(), T_max=30, eta_min=0.04), 30)
    options = ScheduleOptions("cosine", 30, per="epoch", min_lr_factor=0.1)
    ours = [LR * factor(options, epoch) for epoch in range(30)]
    assert ours == pytest.approx(theirs, rel=1e-9)
    # All steps of an epoch have its rate.
    assert factor(options, 4.99) == factor(options, 4)


def test_cosine_per_step_is_torchs() -> None:
    theirs = stepped(lr_scheduler.CosineAnnealingLR(optimizer(), T_max=6 * 7), 42)
    assert lr_series(ScheduleOptions("cosine", 6), LR, 7) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("start", [0.01, 0.0])
def test_warmup_and_cosine_are_torchs(start: float) -> None:
    own = optimizer()
    warm = lr_scheduler.LinearLR(own, start_factor=start or 1 / 6, total_iters=5)
    cosine = lr_scheduler.CosineAnnealingLR(own, T_max=15)
    with warnings.catch_warnings():
        # SequentialLR passes epoch numbers to its parts, which torch itself has deprecated.
        warnings.simplefilter("ignore")
        theirs = stepped(lr_scheduler.SequentialLR(own, [warm, cosine], milestones=[5]), 20)
    options = ScheduleOptions("cosine", 20, per="epoch", warmup_epochs=5, warmup_start_factor=start)
    assert [LR * factor(options, epoch) for epoch in range(20)] == pytest.approx(theirs, rel=1e-9)


def test_step_is_torchs() -> None:
    theirs = stepped(lr_scheduler.StepLR(optimizer(), step_size=4, gamma=0.5), 13)
    options = ScheduleOptions("step", 13, step_epochs=4, gamma=0.5)
    assert [LR * factor(options, epoch) for epoch in range(13)] == pytest.approx(theirs, rel=1e-9)


def test_multistep_is_torchs() -> None:
    theirs = stepped(lr_scheduler.MultiStepLR(optimizer(), milestones=[2, 5, 9], gamma=0.2), 12)
    options = ScheduleOptions("multistep", 12, milestones=(2, 5, 9), gamma=0.2)
    assert [LR * factor(options, epoch) for epoch in range(12)] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("pct_start", [0.0, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("per", ["step", "epoch"])
def test_onecycle_is_torchs(per: str, pct_start: float) -> None:
    epochs, steps = 8, 5
    total = epochs * steps if per == "step" else epochs
    own = optimizer(momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(own, max_lr=LR, total_steps=total, pct_start=pct_start)
    options = ScheduleOptions("onecycle", epochs, per=per, pct_start=pct_start, cycle_momentum=True)
    for number in range(total):
        progress = number / steps if per == "step" else number
        assert LR * factor(options, progress, steps) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        assert momentum(options, progress, steps) == pytest.approx(own.param_groups[0]["momentum"], rel=1e-9)
        own.step()
        if number + 1 < total:
            scheduler.step()


@pytest.mark.parametrize(
    ("options", "points"),
    [
        (ScheduleOptions("constant", 10), {0: 1, 5: 1, 10: 1}),
        (ScheduleOptions("step", 10, step_epochs=3), {2.9: 1, 3: 0.1, 6: 0.01}),
        (ScheduleOptions("step", 10, step_epochs=3, min_lr_factor=0.05), {2.9: 1, 3: 0.1, 6: 0.05}),
        (ScheduleOptions("multistep", 10, milestones=(4, 6), gamma=0.5), {3.9: 1, 4: 0.5, 9: 0.25}),
        (ScheduleOptions("cosine", 10), {0: 1, 5: 0.5, 10: 0}),
        (ScheduleOptions("cosine", 12, warmup_epochs=2), {1: 0.5, 2: 1, 7: 0.5}),
        (ScheduleOptions("linear", 10), {0: 1, 4: 0.6, 10: 0}),
        (ScheduleOptions("linear", 10, warmup_epochs=2, min_lr_factor=0.1), {1: 0.5, 6: 0.55, 10: 0.1}),
        (ScheduleOptions("linear", 10, warmup_epochs=2, warmup_start_factor=0.2), {0: 0.2, 1: 0.6, 2: 1}),
        (ScheduleOptions("onecycle", 10), {0: 1 / 25, 3: 1, 10: 1 / 25 / 1e4}),
        (ScheduleOptions("onecycle", 10, pct_start=0.5), {2.5: 0.52, 5: 1, 7.5: (1 + 4e-6) / 2}),
        (ScheduleOptions("plateau", 10, warmup_epochs=1), {0.5: 0.5, 1: 1, 9: 1}),
    ],
)
def test_closed_forms(options: ScheduleOptions, points: dict[float, float]) -> None:
    assert {at: factor(options, at) for at in points} == pytest.approx(points, abs=1e-12)


def test_every_schedule_stays_where_it_ended() -> None:
    for name in SCHEDULES:
        options = ScheduleOptions(name, 10, milestones=(5,), step_epochs=20)
        assert factor(options, 10) == pytest.approx(factor(options, 15), abs=1e-12)


def test_warmup_begins_with_the_share_of_a_step() -> None:
    rates = lr_series(ScheduleOptions("linear", 4, warmup_epochs=1), 1.0, 4)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert len(rates) == 16
    assert rates[15] == pytest.approx(1 / 12)


def test_changing_steps_or_schedule_needs_no_state() -> None:
    # Half-way is half-way, whatever the batch and whatever was before.
    options = ScheduleOptions("cosine", 10)
    assert lr_series(options, LR, 8)[40] == lr_series(options, LR, 2)[10]


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


def test_apply_sets_momentum_or_beta1() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([{"params": [parameter], "initial_lr": 0.1}], lr=0.1)
    apply(adam, 1.0, 0.85)
    assert adam.param_groups[0]["betas"] == (0.85, 0.999)
    own = optimizer(momentum=0.9)
    own.param_groups[0]["initial_lr"] = LR
    apply(own, 1.0, 0.85)
    assert own.param_groups[0]["momentum"] == 0.85
    with pytest.raises(ModelError, match="no momentum to cycle"):
        apply(torch.optim.Adagrad([{"params": [parameter], "initial_lr": 0.1}]), 1.0, 0.85)
    assert momentum(ScheduleOptions("onecycle", 3), 1) is None


@pytest.mark.parametrize("mode", ["max", "min"])
def test_plateau_is_torchs(mode: str) -> None:
    metrics = [0.1, 0.3, 0.3, 0.30001, 0.29, 0.2, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.6, 0.1]
    own = optimizer()
    scheduler = lr_scheduler.ReduceLROnPlateau(own, mode, factor=0.5, patience=2, min_lr=LR / 8)
    options = ScheduleOptions("plateau", 20, gamma=0.5, patience=2, mode=mode, min_lr_factor=1 / 8)
    plateau = Plateau()
    for metric in metrics:
        scheduler.step(metric)
        plateau.step(options, metric)
        assert LR * plateau.factor == pytest.approx(own.param_groups[0]["lr"])
        assert (plateau.best, plateau.bad_epochs) == (scheduler.best, scheduler.num_bad_epochs)
    assert plateau.factor < 1


def test_plateau_halves_after_patience_and_goes_on_from_its_state() -> None:
    options = ScheduleOptions("plateau", 20, gamma=0.5, patience=5)
    plateau = Plateau()
    assert not plateau.step(options, 0.7)
    assert [plateau.step(options, 0.7) for _ in range(5)] == [False] * 5
    resumed = Plateau()
    resumed.load_state_dict(plateau.state_dict())
    assert resumed == plateau
    assert resumed.step(options, 0.7)
    assert resumed.factor == 0.5
    with pytest.raises(ModelError, match="holds"):
        resumed.load_state_dict({"best": 1})


def test_plateau_takes_not_a_number_for_a_bad_epoch() -> None:
    options = ScheduleOptions("plateau", 20, patience=0)
    plateau = Plateau()
    assert plateau.step(options, math.nan)
    assert plateau.best is None
    plateau.step(options, 0.5)
    assert plateau.best == 0.5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "cosin"}, "did you mean cosine"),
        ({"epochs": 0}, "epochs is 0"),
        ({"per": "batch"}, "step"),
        ({"mode": "best"}, "max"),
        ({"warmup_epochs": 5, "epochs": 5}, "warmup_epochs is 5"),
        ({"name": "step"}, "step_epochs"),
        ({"name": "multistep"}, "milestones"),
        ({"milestones": (5, 3)}, "rising"),
        ({"name": "plateau", "gamma": 1.0}, "gamma"),
        ({"name": "onecycle", "epochs": 9, "warmup_epochs": 2}, "its own warm-up"),
        ({"name": "cosine", "cycle_momentum": True}, "onecycle"),
        ({"pct_start": 2}, "pct_start"),
        ({"min_lr_factor": -1}, "min_lr_factor"),
        ({"base_momentum": 0.99}, "base_momentum"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        ScheduleOptions(**wrong)


def test_progress_is_not_negative() -> None:
    with pytest.raises(ModelError, match="starts at 0"):
        factor(ScheduleOptions(), -0.5)
