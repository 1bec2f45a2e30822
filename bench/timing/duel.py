"""Sides taking turns: slices, rounds in random order, which rounds are dropped, and the pairs they give.

A slice is one side's turn. A round is one slice of every side in random order, so that drift of the machine falls
on all sides alike; a pair is two of its slices. A block is a fresh set of processes and its rounds; its value is
the median over pairs of log(time of one / time of the other). Processes of the same code differ (allocation,
autotuning, clocks), so the block is the sample, not the iteration.
"""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import on_side
from bench.timing.clock import Slice

PAIRS = 8
SLICE_SECONDS = 0.25
MAX_CLOCK_DEVIATION = 0.05


Turn = Callable[[], Slice]
Round = Mapping[str, Slice]


@dataclass(frozen=True)
class SlicePlan:
    """How long a side's slice is.

    Attributes:
        steps: timed steps.
        drop: untimed steps before them.
    """

    steps: int
    drop: int


def plan_slice(seconds_per_step: float, slice_seconds: float = SLICE_SECONDS, prefetch: int = 0) -> SlicePlan:
    """Steps that fill a slice, and the untimed ones before them.

    What the untimed steps cure (caches and branch predictors emptied by the other side's turn, a clock that has
    to rise) is over after some tens of milliseconds: short steps drop two, a step beyond 0.3 s drops none. A
    loader's queue filled up during the pause, so as many batches as it holds are taken out untimed.
    """
    steps = max(1, math.ceil(slice_seconds / seconds_per_step))
    drop = 2 if seconds_per_step < 0.03 else (1 if seconds_per_step < 0.3 else 0)
    return SlicePlan(steps, max(drop, prefetch + 1 if prefetch else 0))


def take_turns(
    sides: Mapping[str, Turn],
    rounds: int,
    rng: random.Random,
    enough: Callable[[int], bool] | None = None,
) -> list[Round]:
    """`rounds` rounds, in each of which every side has one turn, in a new random order.

    Args:
        enough: called with the number of rounds done; True ends the block early.

    Raises:
        BenchError: what a side raised in its turn; its `side` says which.
    """
    done: list[Round] = []
    names = list(sides)
    for number in range(rounds):
        rng.shuffle(names)
        turns: dict[str, Slice] = {}
        for name in names:
            with on_side(name):
                turns[name] = sides[name]()
        done.append(turns)
        if enough and enough(number + 1):
            break
    return done


def steady_rounds(rounds: Sequence[Round]) -> list[Round]:
    """The rounds in which no side throttled and every side's clock is within 5 % of its own median.

    Of its own, because under a power cap two networks settle at different clocks, and that difference is theirs.
    A round is dropped whole: keeping one side's slice would leave the other without a partner.
    """
    clocks: dict[str, list[float]] = {}
    for turns in rounds:
        for name, turn in turns.items():
            if turn.clock_hertz is not None:
                clocks.setdefault(name, []).append(turn.clock_hertz)
    medians = {name: statistics.median(values) for name, values in clocks.items()}

    def steady(name: str, turn: Slice) -> bool:
        if turn.throttled:
            return False
        if turn.clock_hertz is None:
            return True
        return abs(turn.clock_hertz - medians[name]) <= MAX_CLOCK_DEVIATION * medians[name]

    return [turns for turns in rounds if all(steady(name, turn) for name, turn in turns.items())]


def log_ratios(rounds: Sequence[Round], of: str, to: str, images: Mapping[str, int] | None = None) -> list[float]:
    """log(time of `of` / time of `to`) of each pair, per image where sides work through different batches."""
    batch = images or {}
    return [
        math.log((turns[of].seconds_per_step / batch.get(of, 1)) / (turns[to].seconds_per_step / batch.get(to, 1)))
        for turns in rounds
    ]
