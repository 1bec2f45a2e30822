"""Images in, classes out: single files with their times, whole data sets, and unlabelled pickles."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from results.stats import median

WARM = 20  # calls whose median is the warm time
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
    """

    answers: tuple[Answer, ...]
    cold_seconds: float
    warm_seconds: float

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
    warm = []
    for _ in range(WARM):
        begin = time.perf_counter()
        _classify(opened, paths[0], k)
        warm.append(time.perf_counter() - begin)
    return Answers(tuple(answers), answers[0].seconds, median(warm))


def _classify(opened: Opened, path: Path, k: int) -> tuple[tuple[str, float], ...]:
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
    return tuple(opened.classifier.top(images, k)[0])


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


def plain(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain values."""
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(evaluation).items()
    }
