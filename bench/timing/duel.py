"""Sides taking turns: how long a turn is, rounds in mirrored random order, and the pairs they give.

A slice is one side's turn. A round is one slice of every side, and the next round has them the other way round, so that
drift of the machine falls on all sides alike; a pair is the slices of two sides in a round, or in several neighbouring
ones. A block is fresh processes and its rounds; its value is the median over pairs of log(time of one / time of the
other). Processes of the same code differ
(allocation, autotuning, clocks), so the block is the sample, not the iteration.

Turns are as short as the step allows. What disturbs a shared machine is slow: neighbouring steps have nearly the same
disturbance, which cancels in their ratio, and steps some seconds apart do not.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.errors import on_side
from bench.timing.clock import Slice

# The shortest turn. On a CPU one step; several where a step is so short that changing sides would be most of the work.
# On CUDA the queue has to fill, or the time would be that of launching and waiting.
TURN_SECONDS = {"cpu": 0.004, "cuda": 0.03}
# A loader's turn is longer: its batches come in bursts, and those that it made ahead during the other side's turn are
# taken out untimed first.
QUEUE_SECONDS = 0.3
MOST_ROUNDS = 256
PAIRS = 16
LEAST_ROUNDS = 2
MAX_CLOCK_DEVIATION = 0.05
# A first step that takes so much longer than the second pays for the change of sides, and is not timed.
SWITCHING = 1.01
# Longer steps are not asked: refilling caches takes milliseconds.
SWITCHING_SECONDS = 0.1


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
    drop: int = 0


@dataclass(frozen=True)
class Rounds:
    """How many rounds are taken.

    Attributes:
        seconds: no round is begun after so many seconds, once there are `least`. By the clock, not by a number worked
            out from how long a step seemed to take: on a busy machine that is another one a moment later.
        most, least: rounds.
    """

    seconds: float = math.inf
    most: int = MOST_ROUNDS
    least: int = LEAST_ROUNDS

    @classmethod
    def exactly(cls, number: int) -> "Rounds":
        """So many rounds, however long they take."""
        return cls(math.inf, number, number)


@dataclass(frozen=True)
class Asked:
    """A turn as it is asked of the process that holds its side.

    Attributes:
        name: of the turn in the rounds.
        side: that built the workload, see bench.sides.process.Worker.seat.
        id: of the workload.
        plan: length of the slice.
        each: whether each step is timed on its own.
        slower: share of its time that each step is made to take longer; 0 for none.
    """

    name: str
    side: str
    id: str
    plan: SlicePlan
    each: bool = False
    slower: float = 0.0


def plan_slice(seconds_per_step: float, device: str = "cpu", prefetch: int = 0, drop: int = 0) -> SlicePlan:
    """The shortest slice that a step allows.

    Args:
        prefetch: batches that a loader holds ready, 0 for what has no queue.
        drop: untimed steps, where changing sides was measured to cost something.
    """
    shortest = QUEUE_SECONDS if prefetch else TURN_SECONDS[device]
    steps = max(1, math.ceil(shortest / max(seconds_per_step, 1e-9)))
    return SlicePlan(steps, prefetch + 1 if prefetch else drop)


def _nothing(rounds: list[Round]) -> None:
    """The default for `taken`."""


def take_turns(
    sides: Mapping[str, Turn], rounds: int | Rounds, rng: random.Random, taken: Callable[[list[Round]], None] = _nothing
) -> list[Round]:
    """Rounds in which every side has one turn: in random order, then in the reverse of it, and so on.

    Args:
        taken: called after each round with all so far, while nothing is timed.

    Raises:
        BenchError: what a side raised in its turn; its `side` says which.
    """
    wanted = Rounds.exactly(rounds) if isinstance(rounds, int) else rounds
    begin = time.monotonic()
    done: list[Round] = []
    names = list(sides)
    for number in range(wanted.most):
        if number >= wanted.least and time.monotonic() - begin > wanted.seconds:
            break
        if number % 2:
            names.reverse()
        else:
            rng.shuffle(names)
        turns: dict[str, Slice] = {}
        for name in names:
            with on_side(name):
                turns[name] = sides[name]()
        done.append(turns)
        taken(done)
    return done


def switching_drop(
    steps: Mapping[str, Callable[[int], Sequence[float]]], seconds: Mapping[str, float]
) -> dict[str, int]:
    """Side -> untimed steps that a turn needs: 1 where the first step after another side's is measurably longer.

    Caches emptied by the other side are refilled in it, and threads woken up. Longer in three of four tries,
    as noise alone makes one step longer than the next in half of them.

    Args:
        steps: side -> what runs so many steps and gives the seconds of each.
        seconds: side -> seconds a step; sides with long steps are not asked.
    """
    found = dict.fromkeys(steps, 0)
    if len(steps) < 2 or sum(seconds.values()) > SWITCHING_SECONDS:
        return found
    longer: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(8):
        for name, run in steps.items():
            first, second = run(2)
            longer[name].append(first / second)
    for name, ratios in longer.items():
        lower_quartile = statistics.quantiles(ratios, n=4)[0]
        found[name] = int(lower_quartile > SWITCHING)
    return found


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


def pairs_of(rounds: Sequence[Round]) -> list[Round]:
    """The steady rounds of a block, neighbouring ones taken together so that 16 to 31 are left of many.

    What a block says is the median over these. Of single steps, the median would not see a slowdown that strikes only
    every fourth of them; of the times of several steps in a row it does, and what disturbs one of them counts no more
    than before. The last few rounds that do not fill a pair are left out. Without a steady round all of them count.
    """
    steady = steady_rounds(rounds) or list(rounds)
    size = max(1, len(steady) // PAIRS)
    return [_together(steady[start : start + size]) for start in range(0, len(steady) - size + 1, size)]


def _together(rounds: Sequence[Round]) -> Round:
    """Several rounds as one: each side's slices as one slice."""
    if len(rounds) == 1:
        return rounds[0]
    return {
        name: replace(
            first,
            seconds=sum(turns[name].seconds for turns in rounds),
            steps=sum(turns[name].steps for turns in rounds),
            samples=tuple(sample for turns in rounds for sample in turns[name].samples),
        )
        for name, first in rounds[0].items()
    }


def log_ratios(rounds: Sequence[Round], of: str, to: str, images: Mapping[str, int] | None = None) -> list[float]:
    """log(time of `of` / time of `to`) of each pair, per image where sides work through different batches."""
    batch = images or {}
    return [
        math.log((turns[of].seconds_per_step / batch.get(of, 1)) / (turns[to].seconds_per_step / batch.get(to, 1)))
        for turns in rounds
    ]
