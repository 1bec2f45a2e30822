"""The range test on losses of known shape, and that it leaves nothing behind."""

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.training.lr_finder import LrCurve, restored
from models.training.lr_finder import find as find_between

BATCHES = [(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))]


def find(step: Any, batches: Any, low: float = 1e-6, high: float = 10.0, steps: int = 100, **words: Any) -> LrCurve:
    return find_between(step, batches, low, high, steps, **words)


def valley(lr: float, images: Tensor, labels: Tensor) -> Tensor:
    """Falls by a logistic curve centred at 1e-3 and rises above 0.3."""
    position = math.log10(lr)
    return torch.tensor(2.3 - 2 / (1 + math.exp(-4 * (position + 3))) + max(0.0, position + 0.5) ** 2 * 20)


def test_suggests_the_steepest_descent() -> None:
    curve = find(valley, BATCHES, 1e-6, 10, steps=141, smoothing=0.0)
    assert curve.suggestion == pytest.approx(1e-3, rel=0.2)
    assert 0.01 < curve.minimum_tenth < 0.1
    assert curve.lrs[0] == 1e-6
    ratios = [after / before for before, after in zip(curve.lrs, curve.lrs[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert curve.smoothed == pytest.approx(curve.losses)
    # Smoothing shifts the place by its lag and no more.
    shifted = find(valley, BATCHES, 1e-6, 10, steps=141, smoothing=0.9)
    assert shifted.suggestion is not None
    assert 1e-3 < shifted.suggestion < 1e-2


def test_stops_when_the_loss_diverges() -> None:
    seen: list[float] = []

    def step(lr: float, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(lr)
        return valley(lr, images, labels)

    curve = find(step, BATCHES, 1e-6, 1e3, steps=100, smoothing=0.5)
    assert curve.stopped_early
    assert len(curve.lrs) == len(seen) < 100
    assert curve.smoothed[-1] > 4 * min(curve.smoothed) >= curve.smoothed[-2]
    assert not find(valley, BATCHES, 1e-6, 0.1, steps=50).stopped_early


def test_reaches_the_highest_rate_and_corrects_the_start() -> None:
    curve = find(lambda lr, images, labels: torch.tensor(2.0), BATCHES, 1e-4, 1.0, steps=10, smoothing=0.98)
    assert curve.lrs[-1] == pytest.approx(1.0)
    assert curve.smoothed == pytest.approx([2.0] * 10)
    # What never falls suggests nothing.
    rising = find(lambda lr, images, labels: torch.tensor(2.0 + lr), BATCHES, 1e-4, 1.0, steps=10)
    assert rising.suggestion is None


def test_noise_suggests_nothing_and_a_fall_beyond_it_does() -> None:
    for seed in range(20):
        flat = find(noise(seed), BATCHES)
        assert (flat.suggestion, flat.minimum_tenth) == (None, None)
        assert flat.caution
        real = find(noise(seed, valley), BATCHES, high=0.3)
        assert real.suggestion is not None
        assert real.caution is None
        assert 0.03 < real.scatter < 0.1
    assert any("may be noise" in (find(noise(seed), BATCHES).caution or "") for seed in range(5))


Step = Callable[[float, Tensor, Tensor], Tensor]


def noise(seed: int, course: Step = lambda lr, images, labels: torch.tensor(2.4)) -> Step:
    draw = random.Random(seed)
    return lambda lr, images, labels: course(lr, images, labels) + draw.gauss(0, 0.05)


def test_every_step_is_watched_and_a_stop_keeps_the_curve_so_far() -> None:
    seen: list[int] = []
    curve = find(valley, BATCHES, steps=50, watch=seen.append, stop=lambda: "enough" if seen[-1] == 20 else None)
    assert curve.interrupted == "enough"
    assert not curve.stopped_early
    assert seen == list(range(1, 21))
    assert len(curve.lrs) == len(curve.smoothed) == 20
    assert find(valley, BATCHES, steps=50).interrupted is None


def test_not_a_number_ends_it() -> None:
    def step(lr: float, images: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor(math.nan if lr > 0.1 else 1 - lr)

    curve = find(step, BATCHES, 1e-3, 10, steps=20)
    assert curve.stopped_early
    assert all(map(math.isfinite, curve.losses))
    assert len(curve.lrs) == len(curve.losses) == len(curve.smoothed)
    with pytest.raises(ModelError, match="already"):
        find(step, BATCHES, 1, 10)


def test_goes_through_the_batches_again() -> None:
    class Loader:
        epochs = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.epochs += 1
            yield from BATCHES * 4

    loader = Loader()
    find(valley, loader, 1e-6, 1e-2, steps=10)
    assert loader.epochs == 3
    with pytest.raises(ModelError, match="ran out"):
        find(valley, iter(BATCHES), steps=10)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"low": 1, "high": 0.1}, "range"),
        ({"low": 0}, "range"),
        ({"steps": 2}, "steps is 2"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_arguments_are_checked(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        find(valley, BATCHES, **wrong)


def digest(model: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_range_test_leaves_nothing_behind(name: str, begun: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)
    ).train()
    model[2].eval()
    model.register_buffer("unsaved", torch.zeros(1), persistent=False)
    extra = {"momentum": 0.9} if name == "SGD" else {}
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05, **extra)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)

    def step(lr: float, images: Tensor, labels: Tensor) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    if begun:
        step(0.05, images, labels)
    before = (digest(model), repr(optimizer.state_dict()), torch.get_rng_state())
    places = [parameter.data_ptr() for parameter in model.parameters()]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    with restored(model, optimizer):
        model.train()
        model.unsaved += 1
        curve = find(step, [(images, labels)], 1e-5, 1, steps=20)
        assert len(curve.lrs) > 10
        assert digest(model) != before[0]
    assert digest(model) == before[0]
    assert repr(optimizer.state_dict()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert model.unsaved.item() == 0
    assert not model[2].training
    assert model[1].training
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_restores_after_an_error() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = digest(model)

    def fail() -> None:
        with restored(model, optimizer):
            nn.init.zeros_(model.weight)
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert digest(model) == before
