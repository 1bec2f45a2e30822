"""Images in, classes out: single files with their times, whole data sets, and unlabelled pickles."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError
from bench.machine import usable_cores
from bench.sources import evaluation_options
from bench.training import choose_device
from loaders import engines
from loaders.datasets import Dataset, open_unlabelled
from loaders.images import check
from loaders.options import LoaderOptions
from models.configuration import Configuration, parse
from models.evaluate import Evaluation, evaluate
from models.predict import Classifier, same_classes
from models.prepare import device_facts
from results.stats import median, percentile

WARM = 90  # calls of the warm times: as many as a 95th percentile needs
SMALL_BATCH = 128


@dataclass(frozen=True)
class Opened:
    """A classifier with what is needed to feed it."""

    classifier: Classifier
    configuration: Configuration
    device: torch.device
    options: LoaderOptions


def open_checkpoint(path: Path, device: str, configuration: str, batch: int = 0, threads: int = 0) -> Opened:
    """A checkpoint ready to judge images, in the precision that its run was validated in unless told otherwise.

    Raises:
        ModelError: not a checkpoint, damaged, or no such configuration or device.
    """
    from models.training.distributed import World

    place = World().device(choose_device(device))
    if threads:
        torch.set_num_threads(threads)
    # The training form of the preset: compiling takes longer than ten thousand small images.
    chosen = parse(configuration, device_facts(place), True)
    classifier = Classifier.from_checkpoint(path, chosen, place)
    options = evaluation_options(classifier.card, chosen, place.type, batch or SMALL_BATCH, threads or usable_cores())
    return Opened(classifier, chosen, place, options)


def evaluate_on(opened: Opened, dataset: Dataset, loader: str = "auto") -> Evaluation:
    """Evaluate on a labelled data set, each image once, predictions kept.

    Raises:
        UsageError: the data has other classes than the checkpoint.
        DataError: an image cannot be read.
    """
    card = opened.classifier.card
    reason = same_classes(card, dataset.classes)
    if reason is not None:
        raise UsageError(f"cannot test on {dataset.name}: {reason}")
    engine = _engine(loader, dataset, card.size)
    batches = engines.build(engine, dataset, opened.options)
    try:
        return evaluate(
            opened.classifier.forward, batches, len(card.classes), opened.device, opened.options.batch, keep=True
        )
    finally:
        batches.close()


def _engine(loader: str, dataset: Dataset, size: int) -> str:
    if loader != "auto":
        return loader
    if dataset.pixels is not None or size <= 64:
        return "resident"
    return "dali" if engines.missing("dali", "cpu") is None else "torchvision"


@dataclass(frozen=True)
class Answer:
    """What a network says about one file: (class, probability) pairs, likeliest first; seconds from file to answer."""

    path: str
    top: tuple[tuple[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class Answers:
    """Answers with the two times that studies mix up.

    Attributes:
        cold_seconds: the very first image of this process: file, decoding, first call of every operator.
        warm_seconds: median of repeated calls on the first image, everything loaded.
        warm_p95_seconds: their 95th percentile.
        forward_seconds: median of the network alone, on an image that is decoded and normalised.
    """

    answers: tuple[Answer, ...]
    cold_seconds: float
    warm_seconds: float
    warm_p95_seconds: float
    forward_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; `predictions` holds, for each image, its classes with probabilities."""
        return {
            "predictions": [
                {
                    "path": answer.path,
                    "seconds": answer.seconds,
                    "top": [{"class": name, "probability": p} for name, p in answer.top],
                }
                for answer in self.answers
            ],
            "cold_seconds": self.cold_seconds,
            "warm_seconds": self.warm_seconds,
            "warm_p95_seconds": self.warm_p95_seconds,
            "forward_seconds": self.forward_seconds,
        }


def predict(opened: Opened, paths: Sequence[Path], k: int = 5) -> Answers:
    """Classify image files one by one, timing each from the file to the answer.

    Raises:
        UsageError: a file is missing or no image, named.
    """
    answers = []
    for path in paths:
        begin = time.perf_counter()
        top = _classify(opened, path, k)
        answers.append(Answer(str(path), top, time.perf_counter() - begin))
    warm = [_seconds(lambda: _classify(opened, paths[0], k)) for _ in range(WARM)]
    image = _read(opened, paths[0])
    alone = [_seconds(lambda: opened.classifier.top(image, k)) for _ in range(WARM)]
    return Answers(tuple(answers), answers[0].seconds, median(warm), percentile(warm, 0.95), median(alone))


def _seconds(call: Callable[[], object]) -> float:
    # Every call ends with its answer on the host, so the device has nothing left to do.
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _classify(opened: Opened, path: Path, k: int) -> tuple[tuple[str, float], ...]:
    return tuple(opened.classifier.top(_read(opened, path), k)[0])


def _read(opened: Opened, path: Path) -> torch.Tensor:
    """A file as the network takes it, [1, 3, size, size]."""
    if not path.is_file():
        raise UsageError(f"image {path} does not exist")
    card = opened.classifier.card
    dataset = Dataset(path.name, str(path.parent), "all", (str(path),), (0,), card.classes)
    options = replace(opened.options, batch=1, threads=0, random_eval=False)
    batches = engines.build("pil", dataset, options)
    try:
        images, _ = next(iter(batches))
    except Exception:
        bad = check([str(path)], 1)
        if bad:
            raise UsageError(f"cannot read {path} as an image: {bad[0].reason}") from None
        raise
    finally:
        batches.close()
    assert isinstance(images, torch.Tensor)
    return images


def label_pickle(opened: Opened, path: Path) -> tuple[list[Any], list[str]]:
    """Ids and predicted class names of a pickle of unlabelled images (keys data and ids).

    Raises:
        DataError: not such a pickle, or one that asks for more than arrays.
    """
    found = open_unlabelled(path)
    card = opened.classifier.card
    dataset = Dataset(found.name, str(path), "test", (), (0,) * len(found.ids), card.classes, found.pixels)
    batches = engines.build("resident", dataset, opened.options)
    try:
        result = evaluate(
            opened.classifier.forward, batches, len(card.classes), opened.device, opened.options.batch, keep=True
        )
    finally:
        batches.close()
    return list(found.ids), [card.classes[i] for i in result.predicted.tolist()]


def as_numbers(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Class numbers of class names."""
    places = {name: i for i, name in enumerate(classes)}
    return [places[name] for name in names]
