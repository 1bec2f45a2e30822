"""How many of the images the GPU's JPEG engine should decode: every share in turns, and the best remembered."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from bench.timing.clock import CLOCKS, time_slice
from bench.timing.duel import log_ratios, take_turns
from loaders import engines, gpu_decoding
from loaders.datasets import Dataset
from loaders.options import LoaderOptions

LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
ROUNDS = 6
BATCHES = 4  # of a slice, after those that lie ready


@dataclass(frozen=True)
class Rate:
    """What one share gives.

    Attributes:
        load: the share, 0..1; None is decoding on the CPU alone.
        images_per_second: the median over the rounds.
        ratio: of its rate to the first one's, the median over the rounds.
        difference: the largest tile that differs from the CPU's decoding, in grey levels; None where the CPU decodes.
        reason: why it could not be measured, else "".
    """

    load: float | None
    images_per_second: float | None
    ratio: float | None
    difference: float | None
    reason: str = ""


def sweep(dataset: Dataset, options: LoaderOptions, say: Callable[[str], None], seed: int = 0) -> list[Rate]:
    """Measure DALI with each share (on a CPU only without); a share that decodes wrongly is not measured."""
    cuda = options.device != "cpu"
    wanted: list[float | None] = [None, *(LOADS if cuda else ())]
    sides: dict[str, Any] = {}
    rates: dict[float | None, Rate] = {}
    way = gpu_decoding.way_of(gpu_decoding.key_of(torch.device(options.device)), dataset, options) if cuda else "cpu"
    if cuda and way == "cpu":
        say("no way of decoding on this GPU works")
        wanted = [None]
    for load in wanted:
        say("the CPU decodes" if load is None else f"the JPEG engine decodes {load:.0%}")
        chosen = options if load is None else gpu_decoding.on_gpu(options, dataset, load, way)
        try:
            difference = None if load is None else gpu_decoding.check(dataset, chosen)
            # One batch ahead: seven pipelines share the device's memory.
            sides[str(load)] = engines.build("dali", dataset, replace(chosen, prefetch=1))
            rates[load] = Rate(load, None, None, difference)
        except Exception as error:
            rates[load] = Rate(load, None, None, None, str(error).splitlines()[0])
    try:
        rounds = _rounds(sides, options, seed)
    finally:
        for loader in sides.values():
            loader.close()
    first = str(wanted[0])
    for load in wanted:
        name = str(load)
        if name in sides:
            seconds = median(turns[name].seconds_per_step for turns in rounds)
            ratio = median(log_ratios(rounds, first, name)) if first in sides else None
            rates[load] = replace(
                rates[load],
                images_per_second=options.batch / seconds,
                ratio=None if ratio is None else math.exp(ratio),
            )
    return [rates[load] for load in wanted]


def _rounds(sides: dict[str, Any], options: LoaderOptions, seed: int) -> list[Any]:
    clock = CLOCKS["cpu" if options.device == "cpu" else "cuda"]
    sources = {name: _forever(loader) for name, loader in sides.items()}

    def turn(name: str) -> Callable[[], Any]:
        # What was made ahead while the others had their turn is taken out first.
        drop = sides[name].prefetch + 1
        return lambda: time_slice(lambda: next(sources[name]), BATCHES, drop, clock)

    return take_turns({name: turn(name) for name in sides}, ROUNDS, random.Random(seed))


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def best(rates: Sequence[Rate]) -> float | None:
    """The share with the highest rate; None if decoding on the GPU gave none."""
    known = [rate for rate in rates if rate.load is not None and rate.images_per_second]
    return max(known, key=lambda rate: rate.images_per_second or 0.0).load if known else None
