"""The share of JPEGs that a GPU's JPEG engine should decode: every share in turns, and the best one."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from statistics import median

import torch

from bench.screen import Say
from bench.timing.clock import CLOCKS, time_slice
from bench.timing.duel import Round, Turn, log_ratios, take_turns
from loaders import engines, gpu_decoding
from loaders.datasets import Dataset
from loaders.epochs import Loader
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
        ratio: of its rate to decoding on the CPU alone, the median over the rounds.
        difference: the largest of a tile from the CPU's decoding, in grey levels; None where the CPU decodes.
        reason: why it could not be measured, else "".
    """

    load: float | None
    images_per_second: float | None
    ratio: float | None
    difference: float | None
    reason: str = ""


@dataclass(frozen=True)
class Chosen:
    """What a sweep found.

    Attributes:
        key: the GPU and the version of DALI that it holds for; "" on a CPU.
        best: the fastest share; None if none was measured on a GPU.
        rates: of every share.
    """

    key: str
    best: float | None
    rates: tuple[Rate, ...]


def choose(dataset: Dataset, options: LoaderOptions, say: Say) -> Chosen:
    """Measure every share and remember the fastest for this GPU."""
    key = "" if options.device == "cpu" else gpu_decoding.key_of(torch.device(options.device))
    rates = sweep(dataset, options, say)
    fastest = best(rates)
    if fastest is not None:
        gpu_decoding.remember(key, fastest)
    return Chosen(key, fastest, tuple(rates))


def sweep(dataset: Dataset, options: LoaderOptions, say: Say, seed: int = 0) -> list[Rate]:
    """Measure DALI on the CPU alone and, on a GPU, with each share; one that decodes wrongly is not measured."""
    loads: list[float | None] = [None]
    way = "cpu"
    if options.device != "cpu":
        way = gpu_decoding.way_of(gpu_decoding.key_of(torch.device(options.device)), dataset, options)
        if way == "cpu":
            say("no method of decoding on this GPU works")
        else:
            loads += LOADS
    loaders: dict[str, Loader] = {}
    rates: dict[float | None, Rate] = {}
    for load in loads:
        say("the CPU decodes" if load is None else f"the JPEG engine decodes {load:.0%}")
        chosen = options if load is None else gpu_decoding.on_gpu(options, dataset, load, way)
        try:
            difference = None if load is None else gpu_decoding.check(dataset, chosen)
            # One batch ahead: eight pipelines share the device's memory.
            loaders[str(load)] = engines.build("dali", dataset, replace(chosen, prefetch=1))
            rates[load] = Rate(load, None, None, difference)
        except Exception as error:
            rates[load] = Rate(load, None, None, None, str(error).splitlines()[0])
    try:
        rounds = _rounds(loaders, options, seed)
    finally:
        for loader in loaders.values():
            loader.close()
    for load, rate in rates.items():
        name = str(load)
        if name in loaders:
            seconds = median(turns[name].seconds_per_step for turns in rounds)
            ratio = math.exp(median(log_ratios(rounds, "None", name))) if "None" in loaders else None
            rates[load] = replace(rate, images_per_second=options.batch / seconds, ratio=ratio)
    return list(rates.values())


def _rounds(loaders: Mapping[str, Loader], options: LoaderOptions, seed: int) -> list[Round]:
    clock = CLOCKS["cpu" if options.device == "cpu" else "cuda"]

    def turn(loader: Loader) -> Turn:
        batches: Iterator[object] = chain.from_iterable(repeat(loader))
        # Batches that were made while the others had their turn are taken out first.
        return lambda: time_slice(lambda: next(batches), BATCHES, loader.prefetch + 1, clock)

    return take_turns({name: turn(loader) for name, loader in loaders.items()}, ROUNDS, random.Random(seed))


def best(rates: Sequence[Rate]) -> float | None:
    """The share with the highest rate; None if none was measured on a GPU."""
    known = [rate for rate in rates if rate.load is not None and rate.images_per_second]
    return max(known, key=lambda rate: rate.images_per_second or 0.0).load if known else None
