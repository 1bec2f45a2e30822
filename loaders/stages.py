"""The cost of an image at every stage of a loader, from its file to the batch."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from loaders import engines
from loaders.datasets import Dataset
from loaders.epochs import Epochs
from loaders.options import LoaderOptions

TURNS = 7
IMAGES = 96  # of a turn of a stage that runs by itself; at least two batches
SINGLE = 64  # images that pass one by one through the stages of a DataLoader's worker

Stages = list[tuple[str, float]]


def stages(engine: str, dataset: Dataset, options: LoaderOptions) -> tuple[Stages, str]:
    """(name, seconds an image) of each stage in order, and how these seconds were measured.

    DALI on a CPU: reading alone, reading and decoding, and the whole loader take turns on all threads; a stage is the
    difference to the one before. Loaders with worker processes: one worker's time, image by image, divided by the
    number of workers. Where the stages run as one program, as on a GPU, there is only one.

    Raises:
        DataError: the engine cannot run here, or the data set has no files.
    """
    if engine == "dali" and options.device == "cpu" and options.resize == "torch":
        return _dali(dataset, options), "differences of medians, all threads at each stage, in turns"
    if engine in ("pil", "torchvision"):
        workers = max(1, options.threads)
        single = _pil(dataset, options) if engine == "pil" else _torchvision(dataset, options)
        return [(name, seconds / workers) for name, seconds in single], f"one worker's times over {workers} workers"
    loader = engines.build(engine, dataset, options)
    try:
        source = _forever(loader)
        rate = _seconds(lambda: len(next(source)[0]), options, loader.prefetch)
        return [("whole loader", median(rate() for _ in range(TURNS)))], "its stages run as one program"
    finally:
        loader.close()


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _seconds(take: Callable[[], int], options: LoaderOptions, ahead: int = 0) -> Callable[[], float]:
    """A function that measures seconds an image, after it has taken out the batches that lie ready."""
    images = max(IMAGES, 2 * options.batch)

    def turn() -> float:
        for _ in range(ahead + 1):
            take()
        done, begin = 0, time.perf_counter()
        while done < images:
            done += take()
        return (time.perf_counter() - begin) / done

    return turn


def _dali(dataset: Dataset, options: LoaderOptions) -> Stages:
    from loaders.dali import decode_windows

    files = cycle(dataset.need_files("dali"))
    decoding = decode_windows(dataset, options, Epochs(len(dataset), options))
    loader = engines.build("dali", dataset, options)
    whole = _forever(loader)
    with ThreadPoolExecutor(max(1, options.threads)) as pool:

        def read() -> int:
            chosen = list(islice(files, options.batch))
            return len(list(pool.map(lambda path: len(Path(path).read_bytes()), chosen)))

        turns = {
            "read": _seconds(read, options),
            "decode": _seconds(lambda: next(decoding), options, options.prefetch),
            "all": _seconds(lambda: len(next(whole)[0]), options, loader.prefetch),
        }
        times: dict[str, list[float]] = {name: [] for name in turns}
        try:
            for _ in range(TURNS):
                for name in random.sample(list(turns), len(turns)):
                    times[name].append(turns[name]())
        finally:
            loader.close()
    read_, decoded, finished = (median(times[name]) for name in ("read", "decode", "all"))
    return [
        ("read", read_),
        ("decode", max(0.0, decoded - read_)),
        ("resize, mirror and normalise", max(0.0, finished - decoded)),
    ]


def _pil(dataset: Dataset, options: LoaderOptions) -> Stages:
    from loaders.pil import AlternatingFlip, Images, transform_steps

    steps = [(_words(type(step).__name__), step) for step in transform_steps(options, AlternatingFlip())]
    return _one_by_one(len(dataset), [("read and decode", Images(dataset, options).image), *steps], options)


def _torchvision(dataset: Dataset, options: LoaderOptions) -> Stages:
    from torchvision.transforms.v2 import functional as transform

    from loaders.normalization import normalized
    from loaders.torchvision import Images

    size = options.size

    def resize(image: torch.Tensor) -> torch.Tensor:
        # The mean window of the standard policy; a worker draws one for each image.
        tall, wide = image.shape[1:]
        place = (tall // 6, wide // 6, tall * 2 // 3, wide * 2 // 3)
        resized: torch.Tensor = transform.resized_crop(image, *place, [size, size])
        return resized

    def finish(image: torch.Tensor) -> torch.Tensor:
        return normalized(transform.horizontal_flip(image).permute(1, 2, 0).contiguous()[None], options)

    steps: list[tuple[str, Callable[[Any], Any]]] = [
        ("read and decode", Images(dataset, options).image),
        ("resize", resize),
        ("mirror and normalise", finish),
    ]
    return _one_by_one(len(dataset), steps, options)


def _one_by_one(count: int, steps: Sequence[tuple[str, Callable[[Any], Any]]], options: LoaderOptions) -> Stages:
    """Median seconds of each step over some images; the first ones warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    spent: list[list[float]] = [[] for _ in steps]
    try:
        for number in random.Random(options.seed).choices(range(count), k=SINGLE + 8):
            value: Any = number
            for place, (_, step) in enumerate(steps):
                begin = time.perf_counter()
                value = step(value)
                spent[place].append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return [(name, median(times[8:])) for (name, _), times in zip(steps, spent, strict=True)]


def _words(name: str) -> str:
    """RandomResizedCrop -> random resized crop."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
