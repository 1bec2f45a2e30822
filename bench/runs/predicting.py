"""Images in, classes out: single files with their times, whole data sets, and unlabelled pickles."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from bench.defaults import EVALUATION_BATCH
from bench.errors import UsageError
from bench.machine.allocator import keep_memory
from bench.machine.cpu import usable_cores
from bench.machine.devices import choose_device
from bench.runs.folder import RECIPE, RUN, RunRecord
from bench.runs.provenance import RunImages, trained_on
from bench.runs.sources import evaluated_as, evaluation_options, fastest_engine, say_handed_over
from bench.screen import Say
from loaders import engines
from loaders.datasets import Dataset, open_unlabelled
from loaders.identity import identify
from loaders.images import check, open_rgb
from loaders.options import LoaderOptions
from loaders.pil import transform_one
from models import zoo
from models.configuration import Choice, Configuration, parse
from models.evaluate import Evaluation, evaluate
from models.predict import Classifier, same_classes
from models.prepare import device_facts, memory_format
from models.project import named
from models.trained import Weights, weights_file
from models.training import checkpoint
from models.training.distributed import World
from models.training.recipe import load
from results.stats import median, median_interval, percentile_value

WARM = 90  # calls of the warm times: as many as a 95th percentile needs
WARM_SECONDS = 2.0  # fewer calls where they take longer than this together, but not fewer than FEWEST
FEWEST = 6  # calls: as many as the 95 % interval of a median needs
SETTLE = 3  # calls before them, which are not timed

T = TypeVar("T")

Top = tuple[tuple[str, float], ...]
"""(class, probability) pairs, likeliest first."""


def top_to_json(top: Top) -> list[dict[str, Any]]:
    """Plain values."""
    return [{"class": name, "probability": p} for name, p in top]


def checkpoint_of(source: str) -> Path | None:
    """The path of a checkpoint or of a run's folder; None for the name of a network.

    Raises UsageError: a path at which there is nothing, or nothing that classifies here.
    """
    path = Path(source)
    if source in zoo.names() or named(source).is_code:
        return None
    if zoo.is_exported(source):
        raise UsageError(f"{source} is an exported file, which bench compare takes; name what it was exported from")
    if path.exists():
        return path
    if "/" in source or path.suffix:
        raise UsageError(f"{source} does not exist; name a checkpoint, a run's folder or a network")
    return None


def read_classes(path: Path | None) -> tuple[str, ...]:
    """The names in a file, one a line; none where there is no file. Raises UsageError: it cannot be read."""
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except OSError as error:
        raise UsageError(f"--class-names {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise UsageError(f"--class-names {path} is no text in UTF-8") from None
    if not names:
        raise UsageError(f"--class-names {path} names no class")
    return names


def _assumed(name: str, given: Weights | None, size: int, named_classes: bool, logits: int) -> str:
    """Where the weights of a named network come from, how its images are prepared, and what its logits are for."""
    if given is not None:
        origin = f"those of {given.file}" + (f" ({given.unwrapped} taken)" if given.unwrapped else "")
    elif named(name).is_code:
        origin = "as its code makes them (give --weights FILE if these are random)"
    else:
        origin = "torchvision's published ones"
    for_what = "" if named_classes else "; logits for ImageNet's classes" if logits == 1000 else "; classes by number"
    return f"{origin}; images of {size} px, normalised by ImageNet's mean and deviation{for_what}"


@dataclass(frozen=True)
class Predictor:
    """A classifier with what is needed to feed it.

    Attributes:
        options: how its images are read.
        said: of a network that was named and not stored by a run: what its weights and its images are taken to be.
    """

    classifier: Classifier
    configuration: Configuration
    device: torch.device
    options: LoaderOptions
    said: str = ""

    @classmethod
    def open(
        cls,
        source: Path | str,
        device: str,
        configuration: str,
        batch: int = EVALUATION_BATCH,
        threads: int = 0,
        weights: str | None = None,
        classes: Sequence[str] = (),
        size: int | None = None,
    ) -> "Predictor":
        """A network ready to classify images.

        Args:
            source: path of a checkpoint or of a run's folder, or the name of a network.
            batch: images a step of an evaluation.
            threads: CPU threads; 0 for every usable core.
            weights, classes, size: of a network that is named; see Classifier.from_name.

        Raises:
            UsageError: there is no such checkpoint, or it is given what it has.
            ModelError: no such weights, damaged ones, or no such configuration or device.
        """
        path = checkpoint_of(str(source))
        place = World().device(choose_device(device))
        if threads:
            torch.set_num_threads(threads)
        if "peer" in Choice.from_text(configuration).changes:
            raise UsageError(
                f"--config {configuration}: another engine takes batches of one size, and images come in any number "
                "here; name levers of torch's, or fast"
            )
        # The training form of the preset, in which a run is validated: compiling the other one takes longer than ten
        # thousand small images.
        chosen = parse(configuration, device_facts(place), True)
        if chosen.keep:
            keep_memory()
        given = None
        if path is not None:
            if weights or classes or size:
                raise UsageError(f"{source} knows its weights, classes and size; leave out what says others")
            classifier = Classifier.from_checkpoint(path, chosen, place)
        else:
            zoo.check(str(source))
            given = Weights.read(weights) if weights else None
            classifier = Classifier.from_name(str(source), given, classes, size, chosen, place)
            card = classifier.card
            classifier = replace(classifier, card=replace(card, evaluation=evaluated_as(card.evaluation, card.size)))
        options = evaluation_options(classifier.card, chosen, place.type, batch, threads or usable_cores())
        card = classifier.card
        said = "" if path else _assumed(str(source), given, card.size, bool(classes), len(card.classes))
        return cls(classifier, chosen, place, options, said)

    @cached_property
    def prepare(self) -> Callable[[Image.Image], Tensor]:
        """Turns an RGB image into normalised values, [3, size, size] on the host."""
        return transform_one(replace(self.options, batch=1, threads=0, random_eval=False))

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Prepared images as one batch on the device, [N, 3, size, size]."""
        batch = torch.stack(list(images)).to(self.device, getattr(torch, self.options.dtype))
        return batch.contiguous(memory_format=memory_format(self.options.layout))

    def evaluate(self, dataset: Dataset, loader: str = "auto", say: Say = lambda text: None) -> Evaluation:
        """Evaluate on a labelled data set, each image once, predictions kept; say which files the loader hands over.

        Raises:
            UsageError: the data has other classes than the checkpoint.
            DataError: an image cannot be read.
        """
        card = self.classifier.card
        reason = same_classes(card, dataset.classes)
        if reason is not None:
            raise UsageError(f"cannot test on {dataset.name}: {reason}")
        engine = loader if loader != "auto" else fastest_engine(dataset, "none", card.size, self.device.type)
        say_handed_over(engine, dataset, say)
        with closing(engines.build(engine, dataset, self.options)) as batches:
            return evaluate(
                self.classifier.forward, batches, len(card.classes), self.device, self.options.batch, keep=True
            )

    def label_pickle(self, path: Path) -> tuple[Sequence[str], list[int]]:
        """Ids and predicted class numbers of a pickle of unlabelled images (keys data and ids).

        Raises DataError: not such a pickle, or one that asks for more than arrays.
        """
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder; name the images in it, or test a labelled folder with bench evaluate"
            )
        unlabelled = open_unlabelled(path)
        labels = (0,) * len(unlabelled)  # a loader wants some; nobody reads them
        classes = self.classifier.card.classes
        dataset = Dataset(unlabelled.name, str(path), "all", (), labels, classes, unlabelled.pixels)
        evaluation = self.evaluate(dataset, "resident")
        return unlabelled.ids, evaluation.predicted.tolist()


@dataclass(frozen=True)
class WeightsUsed:
    """Which weights a path stands for, and what they have seen of the images they are tested on.

    Attributes:
        text: all of it in words.
        trained_on: how many of the images they were trained on, about that many where not all could be compared; None
            where it is not known.
    """

    text: str
    trained_on: int | None


def weights_used(path: Path, data: Path, dataset: Dataset) -> WeightsUsed:
    """Which weights a path stands for, and whether they were trained or chosen on these images.

    Images are known by their bytes, wherever they lie; those of a run of an earlier version by their folder alone.

    Raises ModelError, RecordError, DataError: a file of the run is damaged.
    """
    file = weights_file(path)
    card, folder = checkpoint.read_card(file), file.parent
    best = file.name == checkpoint.BEST
    which = f"{file.name}, epoch {card.epoch}" + (", the best on the run's validation images" if best else "")
    if not (folder / RUN).is_file() or not (folder / RECIPE).is_file():
        return WeightsUsed(f"{which}; unknown whether it was trained on these images: no run beside it says so", None)
    recipe, images = load(folder / RECIPE), RunImages.load(folder)
    if named(recipe.loader).is_code:
        return WeightsUsed(f"{which}; unknown whether it was trained on these images: {recipe.loader} gave them", None)
    count, words = trained_on(images, dataset)
    if images is None:
        folders = RunRecord.load(folder).data
        places = [Path(name).resolve() for name in (folders.folder, *folders.train) if name]
        if dataset.split in ("train", "all") and data.resolve() in places:
            words = "trained on these images, so too good"
    if words or images is None:
        return WeightsUsed(f"{which}; {words}", count)
    if not best and recipe.schedule != "plateau":
        return WeightsUsed(f"{which}; not chosen by accuracy", 0)
    if identify(dataset, images.train.every).among(images.validation.ids).any():
        return WeightsUsed(f"{which}; chosen by looking at these images, so a little too good", 0)
    return WeightsUsed(f"{which}; chosen by other images than these", 0)


@dataclass(frozen=True)
class ImageTimes:
    """Seconds for one image from its file to its class, with the two times that studies mix up.

    Attributes:
        cold_seconds: the very first image of this process: file, decoding, first call of every operator.
        warm_seconds: median of repeated calls on the first image, everything loaded; low and high bound its 95 %
            interval, by order statistics.
        warm_calls: how many calls.
        warm_p95_seconds: their 95th percentile; None where calls took too long for as many as that needs.
        forward_seconds: median of the network's part of the same calls: the image is decoded and normalised by then.
    """

    cold_seconds: float
    warm_seconds: float
    warm_low_seconds: float
    warm_high_seconds: float
    warm_calls: int
    warm_p95_seconds: float | None
    forward_seconds: float


@dataclass(frozen=True)
class Prediction:
    """What a network says about one file; seconds from file to answer."""

    path: str
    top: Top
    seconds: float


@dataclass(frozen=True)
class Predictions:
    """Predictions for files, and the times of the first of them.

    Attributes:
        refused: files without a prediction -> the reason.
    """

    predictions: tuple[Prediction, ...]
    times: ImageTimes
    refused: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `predictions` holds, for each image, its classes with probabilities."""
        return {
            "predictions": [{**asdict(image), "top": top_to_json(image.top)} for image in self.predictions],
            **asdict(self.times),
            "refused": [{"path": path, "reason": reason} for path, reason in self.refused.items()],
        }


def predict(predictor: Predictor, paths: Sequence[Path], k: int = 5) -> Predictions:
    """Classify image files one by one, timing each from the file to the answer.

    A file that cannot be read is refused with the reason, and the others are answered.

    Raises UsageError: not one file could be read; all are named.
    """
    predictions: list[Prediction] = []
    refused: dict[str, str] = {}
    for path in paths:
        begin = time.perf_counter()
        try:
            [top] = predictor.classifier.top(_read(predictor, path), k)
        except UsageError as error:
            refused[str(path)] = str(error)
            continue
        predictions.append(Prediction(str(path), tuple(top), time.perf_counter() - begin))
    if not predictions:
        raise UsageError("; ".join(refused.values()))
    first = Path(predictions[0].path)
    warm, forward = timed(lambda: _read(predictor, first), lambda image: predictor.classifier.top(image, k))
    low, high, _ = median_interval(warm)
    p95 = percentile_value(warm, 0.95).median
    times = ImageTimes(predictions[0].seconds, median(warm), low, high, len(warm), p95, median(forward))
    return Predictions(tuple(predictions), times, refused)


def timed(
    prepare: Callable[[], T], answer: Callable[[T], object], clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """Seconds of repeated calls of both, one after the other, and of `answer` alone in each.

    An answer must be on the host when its call ends, so that nothing is left to do.
    """
    for _ in range(SETTLE):
        answer(prepare())
    start, whole, answering = clock(), list[float](), list[float]()
    while len(whole) < FEWEST or (len(whole) < WARM and clock() - start < WARM_SECONDS):
        begin = clock()
        prepared = prepare()
        ready = clock()
        answer(prepared)
        end = clock()
        whole.append(end - begin)
        answering.append(end - ready)
    return whole, answering


def _read(predictor: Predictor, path: Path) -> Tensor:
    """A file as the network takes it, [1, 3, size, size]."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the images in it, or test a labelled folder with bench evaluate")
    if not path.is_file():
        raise UsageError(f"image {path} does not exist")
    try:
        image = open_rgb(str(path), predictor.options.exif)
    except Exception as error:
        # Decoders fail in as many ways as files are damaged; the check says how in plain words.
        bad = check([str(path)], 1)
        raise UsageError(f"cannot read {path} as an image: {bad[0].reason if bad else error}") from None
    return predictor.batch([predictor.prepare(image)])
