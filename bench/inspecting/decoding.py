"""How fast two sets of JPEGs are decoded, both taking turns: is one a fair stand-in for the other?"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from loaders.datasets import Dataset

if TYPE_CHECKING:
    from loaders.epochs import Loader

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
        DataError: a set has no files or DALI is missing.
    """
    from loaders import engines
    from loaders.dali import decode_windows
    from loaders.epochs import Epochs
    from loaders.options import LoaderOptions

    options = LoaderOptions(threads=threads)
    images = min(len(first), len(second), 512)
    rates = []
    for stage in STAGES:
        sources: list[Iterator[int]] = []
        closers: list[Callable[[], None]] = []
        for dataset in (first, second):
            if stage == "decode":
                sources.append(decode_windows(dataset, options, Epochs(len(dataset), options)))
            else:
                loader = engines.build("dali", dataset, options)
                closers.append(loader.close)
                sources.append(_sizes(loader))
        try:
            for source in sources:
                _take(source, images)  # also brings the files into the page cache
            pairs = []
            for _ in range(turns):
                times = [0.0, 0.0]
                for side in random.sample((0, 1), 2):
                    # What was made ahead while the other side ran must not count.
                    _take(sources[side], (2 * options.prefetch + 1) * options.batch)
                    start = perf_counter()
                    done = _take(sources[side], images)
                    times[side] = done / (perf_counter() - start)
                pairs.append((times[0], times[1]))
        finally:
            for close in closers:
                close()
        ratios = [a / b for a, b in pairs]
        medians = (median(a for a, _ in pairs), median(b for _, b in pairs))
        rates.append(DecodeRate(stage, medians, median(ratios), min(ratios), max(ratios), turns))
    return rates


def _sizes(loader: "Loader") -> Iterator[int]:
    while True:
        for images, _ in loader:
            yield len(images)


def _take(source: Iterator[int], images: int) -> int:
    done = 0
    while done < images:
        done += next(source)
    return done
