"""Learning rate range test: steps at ever higher rates show where the loss falls fastest."""

import contextlib
import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.errors import ModelError

DIVERGED = 4.0  # the test ends when the smoothed loss is this many times its lowest value
# A fall is clear if it is this many times the scatter of single losses; smoothed noise alone seldom falls so far.
CLEAR = 2.0


@dataclass(frozen=True)
class LrCurve:
    """Result of a range test.

    Attributes:
        lrs: the rates tried, rising geometrically.
        losses: the loss at each, in nats, of the batch before its update.
        smoothed: their exponential average, corrected for its start.
        suggestion: the rate at which the smoothed loss falls most steeply over the logarithm of the rate, up to its
            minimum; None if it never falls, or not clearly.
        minimum_tenth: a tenth of the rate at the minimum of the smoothed loss, the other common choice; None likewise.
        stopped_early: the loss diverged, or was not finite, before the highest rate.
        fall: from the mean of the first tenth of the losses to the lowest smoothed one, in nats.
        scatter: standard deviation of single losses about their course, up to that lowest one.
        interrupted: the reason for which `stop` ended the test before the highest rate, None if it did not.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    minimum_tenth: float | None
    stopped_early: bool
    fall: float = math.nan
    scatter: float = math.nan
    interrupted: str | None = None

    @property
    def caution(self) -> str | None:
        """Why this curve suggests no rate; None if it suggests one."""
        if self.suggestion is not None:
            return None
        if not self.fall > 0:
            return "the loss never fell"
        return (
            f"the loss fell by {self.fall:.2g} and single losses scatter by {self.scatter:.2g}, so this may be noise; "
            "take more steps or a larger batch, or check the images and labels"
        )


def find(
    model_step: Callable[[float, Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    low: float,
    high: float,
    steps: int,
    smoothing: float = 0.9,
    watch: Callable[[int], object] = lambda done: None,
    stop: Callable[[], str | None] = lambda: None,
) -> LrCurve:
    """Smith 2017 (arXiv 1506.01186, section 3.3), with rates rising exponentially instead of linearly.

    Args:
        model_step: (learning rate, images, labels) -> loss; makes one update at that rate.
        batches: used again from the start if there are fewer than `steps`.
        low, high: first and last rate.
        steps: number of rates.
        smoothing: share of the average loss that a step keeps.
        watch: called after every step with the number of steps done.
        stop: called after every step; if it returns a reason, the test ends with the curve so far.

    Raises:
        ModelError: no batches, a range that does not rise, or a loss that is not finite at the first step.
    """
    if not 0 < low < high or not math.isfinite(high):
        raise ModelError(
            f"the range of learning rates is {low!r} to {high!r}; give two positive numbers, the lower first"
        )
    if steps < 3:
        raise ModelError(f"steps is {steps!r}; a range test needs at least 3")
    if not 0 <= smoothing < 1:
        raise ModelError(f"smoothing is {smoothing!r}; give 0 up to, but not including, 1")
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average, least, stopped, interrupted = 0.0, math.inf, False, None
    for step, (images, labels) in zip(range(steps), _forever(batches), strict=False):
        lr = low * (high / low) ** (step / (steps - 1))
        # Reading the loss waits for the device; here nothing is timed, and divergence must be seen at once.
        loss = float(model_step(lr, images, labels))
        if not math.isfinite(loss):
            stopped = True
            break
        average = smoothing * average + (1 - smoothing) * loss
        lrs.append(lr)
        losses.append(loss)
        smoothed.append(average / (1 - smoothing ** (step + 1)))
        least = min(least, smoothed[-1])
        watch(step + 1)
        if smoothed[-1] > DIVERGED * least:
            stopped = True
            break
        interrupted = stop() if step + 1 < steps else None
        if interrupted is not None:
            break
    if not lrs:
        raise ModelError(f"the loss is not finite at learning rate {low:g} already; check the images or lower low")
    minimum = smoothed.index(least)
    fall, scatter = _fall(losses, smoothed)
    clear = fall > CLEAR * scatter
    suggestion = _steepest(lrs, smoothed) if clear else None
    tenth = lrs[minimum] / 10 if clear else None
    return LrCurve(
        tuple(lrs), tuple(losses), tuple(smoothed), suggestion, tenth, stopped, fall, scatter, interrupted
    )  # fmt: skip


def _fall(losses: list[float], smoothed: list[float]) -> tuple[float, float]:
    """How far the loss falls, and how much single losses scatter; a minimum at the very start is no fall."""
    minimum = smoothed.index(min(smoothed))
    first = max(3, len(losses) // 10)
    if minimum < first:
        return 0.0, math.inf
    # Differences of neighbours are free of the slow course of the loss, and their median of its steep part.
    difference = statistics.median(abs(b - a) for a, b in zip(losses[:minimum], losses[1 : minimum + 1], strict=True))
    # For normally distributed losses: the median of |difference| is 0.6745 * sqrt(2) standard deviations.
    return statistics.mean(losses[:first]) - smoothed[minimum], difference / 0.954


def _steepest(lrs: list[float], smoothed: list[float]) -> float | None:
    # The rates are equally spaced on the logarithmic axis, so differences are slopes.
    minimum = smoothed.index(min(smoothed))
    slopes = {place: smoothed[place + 1] - smoothed[place - 1] for place in range(1, min(minimum + 1, len(lrs) - 1))}
    place = min(slopes, key=slopes.__getitem__, default=None)
    return lrs[place] if place is not None and slopes[place] < 0 else None


def _forever(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ModelError(
                "the range test ran out of batches; give a data set of at least one batch, not an iterator"
            )


@contextlib.contextmanager
def restored(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """After it, model, optimiser and torch's random numbers are as before it, bit for bit, whatever happened within.

    Restored are parameters, buffers (also those not stored with the weights), gradients and training flags of the
    model, state and settings of the optimiser, and the generators of the CPU and of every CUDA device in use. Weights
    are written into their own memory, so compiled programs stay valid.
    """
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    values = [tensor.clone() for tensor in tensors]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    # state_dict refers to the optimiser's own tensors, which the steps change in place.
    state = copy.deepcopy(optimizer.state_dict())
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for module, flag in training:
            module.training = flag
        optimizer.load_state_dict(state)
