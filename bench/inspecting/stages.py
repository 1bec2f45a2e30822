"""The cost of an image at every stage of a loader, from its file to the batch."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.inspecting.decoding import batch_sizes, timed_turn
from bench.timing.clock import cpu_clock
from bench.timing.duel import take_turns
from loaders.datasets import Dataset
from loaders.options import LoaderOptions

TURNS = 7
IMAGES = 96  # of a turn of a stage that runs by itself; at least two batches
SINGLE = 64  # images that pass one by one through the stages of a DataLoader's worker

Stages = list[tuple[str, float]]
Step = tuple[str, Callable[[Any], Any]]


def stages(engine: str, dataset: Dataset, options: LoaderOptions) -> tuple[Stages, str]:
    """(name, seconds an image) of each stage in order, and how these seconds were measured.

    DALI on a CPU: reading alone, reading and decoding, and the whole loader take turns on all threads; a stage is the
    difference to the one before. Loaders with worker processes: one worker's time, image by image, divided by the
    number of workers. Where the stages run as one program, as on a GPU, there is only one.

    Raises:
        DataError: the engine cannot run here, or the data set has no files.
    """
    if engine == "dali" and options.device == "cpu" and options.resize == "torch":
        read, decoded, finished = _medians(engine, ("read", "decode", "loader"), dataset, options)
        differences = [
            ("read", read),
            ("decode", max(0.0, decoded - read)),
            ("resize, mirror and normalise", max(0.0, finished - decoded)),
        ]
        return differences, "differences of medians, all threads at each stage, in turns"
    if engine in ("pil", "torchvision"):
        workers = max(1, options.threads)
        steps = _pil(dataset, options) if engine == "pil" else _torchvision(dataset, options)
        single = _one_by_one(len(dataset), steps, options)
        return [(name, seconds / workers) for name, seconds in single], f"one worker's times over {workers} workers"
    (seconds,) = _medians(engine, ("loader",), dataset, options)
    return [("whole loader", seconds)], "its stages run as one program"


def _medians(engine: str, names: Sequence[str], dataset: Dataset, options: LoaderOptions) -> list[float]:
    """Seconds an image of everything up to the end of a stage, each stage in turns with the others."""
    images = max(IMAGES, 2 * options.batch)
    with ExitStack() as stack:
        sides = {}
        for name in names:
            if name == "read":
                pool = stack.enter_context(ThreadPoolExecutor(max(1, options.threads)))
                sizes, ahead = _read(dataset, options.batch, pool), 0
            else:
                sizes, ahead = batch_sizes(engine, name, dataset, options, stack)
            sides[name] = partial(timed_turn, sizes, images, (ahead + 1) * options.batch)
        rounds = take_turns(sides, TURNS, random.Random())
    return [median(turns[name].seconds_per_step for turns in rounds) for name in names]


def _read(dataset: Dataset, batch: int, pool: ThreadPoolExecutor) -> Iterator[int]:
    """Read the files, again and again: yields the number of images of each batch."""
    files = cycle(dataset.need_files("dali"))
    while True:
        yield len(list(pool.map(lambda path: len(Path(path).read_bytes()), islice(files, batch))))


def _pil(dataset: Dataset, options: LoaderOptions) -> list[Step]:
    from loaders.pil import AlternatingFlip, Images, transform_steps

    steps = [(_words(type(step).__name__), step) for step in transform_steps(options, AlternatingFlip())]
    return [("read and decode", Images(dataset, options).image), *steps]


def _torchvision(dataset: Dataset, options: LoaderOptions) -> list[Step]:
    from torchvision.transforms.v2 import functional as transform

    from loaders.normalization import normalized
    from loaders.torchvision import Images

    def resize(image: torch.Tensor) -> torch.Tensor:
        # The mean window of the standard policy; a worker draws one for each image.
        tall, wide = image.shape[1:]
        place = (tall // 6, wide // 6, tall * 2 // 3, wide * 2 // 3)
        resized: torch.Tensor = transform.resized_crop(image, *place, [options.size] * 2)
        return resized

    def finish(image: torch.Tensor) -> torch.Tensor:
        return normalized(transform.horizontal_flip(image).permute(1, 2, 0).contiguous()[None], options)

    return [("read and decode", Images(dataset, options).image), ("resize", resize), ("mirror and normalise", finish)]


def _one_by_one(count: int, steps: Sequence[Step], options: LoaderOptions) -> Stages:
    """Median seconds of each step over some images; the first ones warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    spent: list[list[float]] = [[] for _ in steps]
    try:
        for number in random.Random(options.seed).choices(range(count), k=SINGLE + 8):
            value: Any = number
            for place, (_, step) in enumerate(steps):
                begin = cpu_clock()
                value = step(value)
                spent[place].append(cpu_clock() - begin)
    finally:
        torch.set_num_threads(threads)
    return [(name, median(times[8:])) for (name, _), times in zip(steps, spent, strict=True)]


def _words(name: str) -> str:
    """RandomResizedCrop -> random resized crop."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
