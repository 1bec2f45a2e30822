"""Whether one set of JPEGs can stand in for another: the speeds of decoding both, in turns."""

import math
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from statistics import median

from bench.timing.clock import Slice, cpu_clock
from bench.timing.duel import log_ratios, take_turns
from loaders.datasets import Dataset
from loaders.options import LoaderOptions

STAGES = ("decode", "loader")


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """Rates of one stage on two data sets.

    Attributes:
        stage: "decode" (read and decode a random window) or "loader" (to a finished batch at 224 pixels).
        rates: images a second of the first and the second data set, medians over the turns.
        ratio: first over second, the median over turns of the ratio within a turn.
        low, high: smallest and largest ratio of a turn.
        turns: how often each side ran.
    """

    stage: str
    rates: tuple[float, float]
    ratio: float
    low: float
    high: float
    turns: int


def compare_decoding(first: Dataset, second: Dataset, threads: int, turns: int = 9) -> list[DecodeRate]:
    """Measure both stages on both sets with the DALI engine on the CPU.

    A turn is one pass over as many images as the smaller set has (512 at most), each side once, in random order, so
    that a load on the machine falls on both.

    Raises:
        DataError: a set has no files, or DALI is missing.
    """
    options = LoaderOptions(threads=threads)
    images = min(len(first), len(second), 512)
    rates = []
    for stage in STAGES:
        with ExitStack() as stack:
            sides = {}
            for name, dataset in (("first", first), ("second", second)):
                sizes, _ = batch_sizes("dali", stage, dataset, options, stack)
                _take(sizes, images)  # also brings the files into the page cache
                sides[name] = partial(timed_turn, sizes, images, (2 * options.prefetch + 1) * options.batch)
            rounds = take_turns(sides, turns, random.Random())
        speeds = [median(1 / turn[name].seconds_per_step for turn in rounds) for name in sides]
        ratios = [math.exp(ratio) for ratio in log_ratios(rounds, "second", "first")]
        rates.append(DecodeRate(stage, (speeds[0], speeds[1]), median(ratios), min(ratios), max(ratios), turns))
    return rates


def batch_sizes(
    engine: str, stage: str, dataset: Dataset, options: LoaderOptions, stack: ExitStack
) -> tuple[Iterator[int], int]:
    """The numbers of images of batches, made as they are asked for, without end; and how many batches lie ready.

    Args:
        engine: a loader; only DALI has the stage "decode".
        stage: one of STAGES.
        stack: closes the loader.
    """
    from loaders import engines
    from loaders.dali import decode_windows
    from loaders.epochs import Epochs

    if stage == "decode":
        return decode_windows(dataset, options, Epochs(len(dataset), options)), options.prefetch
    loader = engines.build(engine, dataset, options)
    stack.callback(loader.close)
    return (len(images) for images, _ in chain.from_iterable(repeat(loader))), loader.prefetch


def timed_turn(sizes: Iterator[int], images: int, ahead: int) -> Slice:
    """A slice in which a step is an image; batches that were made while the other side ran do not count."""
    _take(sizes, ahead)
    begin = cpu_clock()
    done = _take(sizes, images)
    return Slice(cpu_clock() - begin, done)


def _take(sizes: Iterator[int], images: int) -> int:
    done = 0
    while done < images:
        done += next(sizes)
    return done
