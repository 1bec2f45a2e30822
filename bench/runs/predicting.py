"""Images in, classes out: single files with their times, whole data sets, and unlabelled pickles."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError
from bench.machine.cpu import usable_cores
from bench.runs.sources import evaluation_options
from bench.runs.training import choose_device
from loaders import engines
from loaders.datasets import Dataset, open_unlabelled
from loaders.images import check
from loaders.options import LoaderOptions
from models.configuration import Configuration, parse
from models.evaluate import Evaluation, evaluate
from models.predict import Classifier, same_classes, weights_file
from models.prepare import device_facts
from models.training import checkpoint
from models.training.recipe import load
from results.errors import RecordError
from results.runs import FILE as RUN_SUMMARY
from results.runs import RunSummary
from results.stats import median, median_interval, percentile
from results.store import read_json

WARM = 90  # calls of the warm times: as many as a 95th percentile needs
WARM_SECONDS = 2.0  # less calls where they take longer than this together, but not less than
FEWEST = 6  # calls: as many as the 95 % interval of a median needs
SETTLE = 3  # calls before them, which are not timed
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


def weights_used(path: Path, data: Path, dataset: Dataset) -> str:
    """Which weights a path stands for, and whether they were trained or chosen on these images, in words.

    Raises:
        ModelError, RecordError: a file of the run is damaged.
    """
    file = weights_file(path)
    card, folder = checkpoint.read_card(file), file.parent
    best = file.name == checkpoint.BEST
    which = f"{file.name}, epoch {card.epoch}" + (", the best on the run's validation images" if best else "")
    if not (folder / "run.json").is_file() or not (folder / RUN_SUMMARY).is_file():
        return f"{which}; no finished run beside it says what images it was chosen on"
    recipe, summary = load(folder / "recipe.toml"), RunSummary.load(folder)
    run = read_json(folder / "run.json")["data"]
    own = {run["folder"], run["val"], *run["train"]}
    if str(data.absolute()) not in own:
        return f"{which}; the run had its images from another folder"
    if dataset.split in ("train", "all"):
        return f"{which}; trained on these images, so too good"
    if not best and recipe.schedule != "plateau":
        return f"{which}; not chosen by accuracy"
    # With a holdout the choice was made by held-out training images.
    if recipe.holdout or (dataset.split == "test" and summary.evaluated != "test"):
        return f"{which}; chosen by other images than these"
    return f"{which}; chosen by looking at these images, so a little too good"


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
        warm_interval: 95 % interval of that median, by order statistics.
        warm_calls: how many calls.
        warm_p95_seconds: their 95th percentile; None where calls took too long for as many as that needs.
        forward_seconds: median of the network alone, on an image that is decoded and normalised.
        refused: files that gave no answer, each with the reason.
    """

    answers: tuple[Answer, ...]
    cold_seconds: float
    warm_seconds: float
    warm_interval: tuple[float, float]
    warm_calls: int
    warm_p95_seconds: float | None
    forward_seconds: float
    refused: tuple[tuple[str, str], ...] = ()

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
            "warm_low_seconds": self.warm_interval[0],
            "warm_high_seconds": self.warm_interval[1],
            "warm_calls": self.warm_calls,
            "warm_p95_seconds": self.warm_p95_seconds,
            "forward_seconds": self.forward_seconds,
            "refused": [{"path": path, "reason": reason} for path, reason in self.refused],
        }


def predict(opened: Opened, paths: Sequence[Path], k: int = 5) -> Answers:
    """Classify image files one by one, timing each from the file to the answer.

    A file that cannot be read is refused with the reason, and the others are answered.

    Raises:
        UsageError: not one file could be read; all are named.
    """
    answers: list[Answer] = []
    refused: list[tuple[str, str]] = []
    for path in paths:
        begin = time.perf_counter()
        try:
            top = _classify(opened, path, k)
        except UsageError as error:
            refused.append((str(path), str(error)))
            continue
        answers.append(Answer(str(path), top, time.perf_counter() - begin))
    if not answers:
        raise UsageError("; ".join(reason for _, reason in refused))
    first = Path(answers[0].path)
    image = _read(opened, first)
    warm = timed(lambda: _classify(opened, first, k))
    alone = timed(lambda: opened.classifier.top(image, k))
    low, high, _ = median_interval(warm)
    try:
        p95 = percentile(warm, 0.95)
    except RecordError:
        p95 = None
    return Answers(
        tuple(answers), answers[0].seconds, median(warm), (low, high), len(warm), p95, median(alone), tuple(refused)
    )


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of repeated calls, which must end with their answer on the host, so that nothing is left to do."""
    for _ in range(SETTLE):
        call()
    start, found = clock(), list[float]()
    while len(found) < FEWEST or (len(found) < WARM and clock() - start < WARM_SECONDS):
        begin = clock()
        call()
        found.append(clock() - begin)
    return found


def _classify(opened: Opened, path: Path, k: int) -> tuple[tuple[str, float], ...]:
    return tuple(opened.classifier.top(_read(opened, path), k)[0])


def _read(opened: Opened, path: Path) -> torch.Tensor:
    """A file as the network takes it, [1, 3, size, size]."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the images in it, or test a labelled folder with bench evaluate")
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
