"""How much times of the same code differ here, and how small a difference a comparison sees."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Of its time a comparison of one task spends this share on turns, so many seconds of them in each process.
TURNS_SHARE = 0.5
BLOCK_SECONDS = 2.5
LEAST_BLOCKS = 6
# Variance of a median over that of a mean, of many normal values.
MEDIAN = math.pi / 2
# What a robust estimate of a normal standard deviation multiplies the median absolute deviation by.
MAD = 1.4826
# Minutes for which the doctor says what can be seen.
MINUTES = (1, 3, 10)


@dataclass(frozen=True)
class Noise:
    """Two copies of the same code, in turns within a process, in several processes.

    Attributes:
        workload: id of what a turn did.
        within: standard deviation of log(time of one / time of the other) over the pairs of a process.
        between: standard deviation of the processes' medians beyond what so many pairs explain.
        pair_seconds: what a pair takes.
        blocks, pairs: processes that were measured, and pairs in all of them.
        foreign: share of the machine that other programs and other guests of its host had; None where it is not known.
        stolen: of that, what other guests had.
    """

    workload: str
    within: float
    between: float
    pair_seconds: float
    blocks: int
    pairs: int
    foreign: float | None = None
    stolen: float | None = None

    @classmethod
    def of(cls, workload: str, blocks: Sequence[Sequence[float]], pair_seconds: float) -> "Noise":
        """From log(time of one / time of the other) of each pair of each process, of two processes at least."""
        medians = [statistics.median(block) for block in blocks]
        apart = [abs(x - median) for block, median in zip(blocks, medians, strict=True) for x in block]
        within = MAD * statistics.median(apart)
        explained = statistics.mean(MEDIAN * within**2 / len(block) for block in blocks)
        between = math.sqrt(max(0.0, statistics.variance(medians) - explained))
        return cls(workload, within, between, pair_seconds, len(blocks), sum(map(len, blocks)))

    @property
    def second(self) -> float:
        """Standard deviation, as a share, of the ratio that 1 s of turns in one process gives."""
        return math.expm1(math.sqrt(self.between**2 + MEDIAN * self.within**2 * self.pair_seconds))

    def visible(self, seconds: float) -> float:
        """Half the width of the 95 % interval of a comparison of one task that takes so many seconds, as a share.

        1.96 * sqrt(between² / blocks + π/2 * within² / pairs): the variance of a mean over processes, each of whose
        values is a median over pairs. Half of the time is spent on turns, 2.5 s of them in each process, in six
        processes at least; pairs = turns / pair_seconds.
        """
        turns = TURNS_SHARE * seconds
        blocks = max(LEAST_BLOCKS, turns / BLOCK_SECONDS)
        variance = self.between**2 / blocks + MEDIAN * self.within**2 * self.pair_seconds / turns
        return math.expm1(1.96 * math.sqrt(variance))

    def to_json(self) -> dict[str, Any]:
        """Plain types, with what can be seen: {minutes: share}."""
        seen = {str(minutes): self.visible(60 * minutes) for minutes in MINUTES}
        return {**asdict(self), "deviation_of_a_second": self.second, "visible_in_minutes": seen}
