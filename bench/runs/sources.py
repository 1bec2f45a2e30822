"""From a recipe and its data folders to the loaders that a training or an evaluation reads."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.errors import UsageError
from bench.machine.cpu import usable_cores
from bench.runs.folder import DataFolders, named_folders
from bench.runs.own_batches import OwnBatches, refuse_parts
from bench.runs.packing import read_packed
from bench.runs.provenance import RunImages
from bench.screen import Say
from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from loaders import engines, identity, soundness
from loaders.contents import examine
from loaders.datasets import (
    KNOWN,
    Dataset,
    holdout,
    open_dataset,
    open_parts,
    open_splits,
)
from loaders.device_images import all_bytes, kept_bytes, on_device
from loaders.epochs import Loader
from loaders.errors import NoSplitError
from loaders.file_formats import handed_to_pillow
from loaders.gpu_decoding import decoding_there
from loaders.images import opened
from loaders.options import EVAL_MARGIN, LoaderOptions
from loaders.packed_images import PackedImages
from loaders.policies import parse as parse_policy
from loaders.resident import decoded, keeps_squares
from loaders.splits import UNDIVIDED_HOLDOUT
from models import summary, zoo
from models.configuration import Configuration
from models.errors import ModelError
from models.project import named as named_code
from models.project import root
from models.training.checkpoint import Card
from models.training.distributed import World
from models.training.recipe import Recipe
from results.runs import Evaluated

SMALL = 64  # pixels: up to here a whole data set of decoded images fits beside the network
SHARE = 0.5  # of a device's memory for images that are kept there: the network needs the rest
CONSTANT = 1e-3  # deviation below which a channel never varies: a quarter of a level of 255


@dataclass(frozen=True)
class Splits:
    """The images of a run, by their use.

    Attributes:
        train: what the network learns from.
        validation: looked at while training, to choose weights or to lower the rate.
        test: looked at once, in the end; the validation images where there are no others.
        independent: the test images are not training images, and no choice was made by looking at them.
        held_out: the data has training images only, some of which were held out to validate and test on.
        trained_on: test images that are training images too; None where nobody has looked.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    independent: bool
    held_out: bool = False
    trained_on: int | None = None

    @property
    def evaluated(self) -> Evaluated:
        """What epochs are evaluated on."""
        if self.held_out:
            return "held-out"
        return "test" if self.validation is self.test else "val"


def open_folders(data: DataFolders) -> list[Dataset]:
    """All splits of a run's data, the training images first.

    Raises:
        UsageError: no folder is named, or a folder with splits beside single ones.
        DataError: not a data set, one class alone, or classes that differ.
    """
    if data.folder and (data.train or data.val):
        raise UsageError("name either --data or --train and --val, not both")
    if data.folder:
        parts = open_splits(Path(data.folder))
        soundness.refuse_one_class(parts[0])
        return parts
    if not data.train:
        raise UsageError(
            "no data: name a folder with --data DIR (or --train A,B --val C); "
            "for a trial, bench data make DIR --like cifar10 writes images a network can learn"
        )
    parts = open_parts(data.train, named_folders(data.val) if data.val else ())
    soundness.refuse_one_class(parts[0])
    return parts


def split(opened: list[Dataset], recipe: Recipe, say: Say) -> Splits:
    """Train, validation and test images of a run, from what `open_folders` returns.

    Raises DataError: the held-out part would leave nothing.
    """
    train, others = opened[0], {dataset.split: dataset for dataset in opened[1:]}
    share = recipe.holdout
    if not others and not share:
        share = UNDIVIDED_HOLDOUT
        say(
            f"warning: {train.name} has no validation or test images: {share:.0%} of its training images, chosen by "
            f"seed {recipe.seed}, are held out, and every accuracy is measured on these"
        )
    held_out = None
    if share:
        train, held_out = holdout(train, int(share) if share >= 1 else share, recipe.seed)
    test = others.get("test") or others.get("val") or held_out
    assert test is not None
    for line in soundness.untested(held_out, "tested" if test is held_out else "validated") if held_out else ():
        say(line)
    validation = held_out or others.get("val") or test
    # Weights that are chosen, or a rate that is lowered, by the test images have seen them.
    chosen = _chooses(recipe)
    independent = test is not held_out and not (chosen and validation is test)
    return Splits(train, validation, test, independent, test is held_out)


def compared(splits: Splits, images: RunImages, recipe: Recipe, say: Say) -> Splits:
    """The splits, with what their images show: whether any that accuracies are measured on were learned from.

    Args:
        images: of the splits, as `RunImages.after` returns them.
    """
    uses = [("training", splits.train, images.train), ("validation", splits.validation, images.validation)]
    if splits.validation is splits.test:
        uses[1] = (splits.evaluated, splits.test, images.test)
    else:
        uses.append(("test", splits.test, images.test))
    for line in (*soundness.doubtful_labels(splits.train, images.train), *identity.shared(uses)):
        say(line)
    if named_code(recipe.loader).is_code:
        # Which images it gives is not known.
        return replace(splits, trained_on=None)
    test = images.test
    seen = round(int(test.among(images.trained).sum()) * test.images / max(1, len(test)))
    # Chosen by validation images that are test images under another name.
    chosen = _chooses(recipe) and bool(test.among(images.validation.ids).any())
    return replace(splits, independent=splits.independent and not seen and not chosen, trained_on=seen)


def _chooses(recipe: Recipe) -> bool:
    """Whether weights are chosen, or a rate is lowered, by the validation images."""
    return recipe.select == "best" or recipe.schedule == "plateau"


def resolved(recipe: Recipe, splits: Splits, named: bool, device: str, say: Say, shards: int = 1) -> Recipe:
    """The recipe with what depends on data and machine filled in: classes, size, loader, evaluation.

    Args:
        named: the recipe was written down for some data; one put together from options takes the data's own size.
        device: as torch names it.
        shards: processes, each with a part of the images.

    Raises:
        UsageError: the recipe is for fewer classes than the data has, or for a batch of more images.
        DataError, ModelError: no such loader, augmentation or model, or a size that the network does not take.
    """
    zoo.check(recipe.model)
    classes = len(splits.train.classes)
    if recipe.classes and recipe.classes < classes:
        raise UsageError(f"the recipe is for {recipe.classes} classes, but {splits.train.name} has {classes}")
    if recipe.classes > classes:
        # Weights with more outputs than classes would be another network's to whoever opens them later.
        say(f"classes: {classes}, those of {splits.train.name}; the recipe is for {recipe.classes}")
    recipe = replace(recipe, classes=classes)
    size = recipe.size or (0 if named else _image_size(recipe, splits.train, say)) or zoo.default_size(recipe.model)
    _check_sizes(recipe, size)
    recipe = replace(recipe, size=size, evaluation=evaluated_as(recipe.evaluation, size))
    engine, why = recipe.loader, ""
    if engine == "auto-resident":
        engine, why = _resident_if_it_fits(recipe, splits.train, device, shards)
    if engine == "auto":
        engine = fastest_engine(splits.train, recipe.augment, size, device)
        if engine in ("dali", "torchvision") and device == "cpu" and shards == 1:
            others = {id(part): len(part) for part in (splits.validation, splits.test)}
            pays = read_packed(
                engine, splits.train, sum(others.values()), recipe.epochs / recipe.divide, _options(recipe)
            )
            engine, why = ("packed", f", {pays}") if pays else (engine, why)
    if engine != recipe.loader:
        say(f"loader: {engine}{why}")
    if named_code(engine).is_code:
        named_code(engine).check(root())
        refuse_parts(engine, splits.held_out or bool(recipe.holdout), shards)
        say(f"loader: {engine}, with its own augmentation and normalisation; {recipe.augment!r} is not applied")
    else:
        engines.check(engine)
        say_handed_over(engine, splits.train, say)
        parse_policy(recipe.augment)
    check_batch(recipe, splits.train)
    return replace(recipe, loader=engine)


def _resident_if_it_fits(recipe: Recipe, train: Dataset, device: str, shards: int) -> tuple[str, str]:
    """The engine resident, if the training images take at most half of the device's memory, or "auto"; and why."""
    options = _options(recipe)
    # On a CPU the processes share one memory.
    needed = kept_bytes(train, options) // (shards if device.startswith("cuda") else 1)
    # Not what is free just now: all processes must come to one answer, and a resumed run to that of before.
    there = all_bytes(torch.device(device))
    figures = f"about {needed / 1e9:.1f} GB of the {there / 1e9:.0f} GB of {device}"
    if needed <= SHARE * there:
        return "resident", f": the training images take {figures}"
    return "auto", f", not resident: the training images would take {figures}, more than half"


def _options(recipe: Recipe) -> LoaderOptions:
    """How the loader of a training reads, before its device and precision are known."""
    return LoaderOptions(
        size=recipe.size,
        stored_size=recipe.stored_size,
        exif=recipe.exif,
        eval_margin=_margin(recipe.evaluation),
        augment=recipe.augment,
        threads=usable_cores(),
    )


def evaluated_as(evaluation: str, size: int) -> str:
    """How images are brought to `size` pixels: small ones were cut out already, so no margin is left to throw away."""
    return "whole" if evaluation == "center" and size <= SMALL else evaluation


def _margin(evaluation: str) -> float:
    """Shorter side over crop."""
    return EVAL_MARGIN if evaluation == "center" else 1.0


def _image_size(recipe: Recipe, train: Dataset, say: Say) -> int:
    """The pixels that all images of the data set have, if that is known and the network takes them; 0 if not."""
    published = KNOWN.get(train.name.partition("/")[0].replace("-", ""))
    if published is not None and not _are_of(train, published.size):
        published = None
    own = train.pixels.shape[1] if train.pixels is not None else published.size if published is not None else 0
    usual = zoo.default_size(recipe.model)
    if not 0 < own <= SMALL or own == usual:
        return 0
    try:
        _check_sizes(recipe, own)
    except ModelError:
        say(f"size: {usual} px; {recipe.model} does not take the {own} px of {train.name}")
        return 0
    say(f"size: {own} px, that of the images of {train.name}; {recipe.model} was made for --size {usual}")
    return own


def _are_of(train: Dataset, pixels: int) -> bool:
    """Whether images have the size that is published for a data set of this name: a name alone says nothing."""
    for i in np.unique(np.linspace(0, len(train) - 1, min(8, len(train))).astype(int)).tolist() if train.files else ():
        try:
            with opened(train.files[i]) as image:
                if image.size != (pixels, pixels):
                    return False
        except Exception:
            continue  # whoever reads the images says which cannot be decoded
    return True


def _check_sizes(recipe: Recipe, size: int) -> None:
    """Run the network once without weights at every size of the recipe.

    Raises ModelError: it takes no images of a size, or it cannot be built.
    """
    network, title, _ = summary.on_meta(recipe.model, recipe.classes, size, recipe.arguments)
    for pixels in sorted({size, *(pixels for _, pixels in recipe.sizes)}):
        try:
            summary.run(network, title, pixels)
        except ModelError as error:
            usual = zoo.default_size(recipe.model)
            raise ModelError(f"{error}; give another --size, or --set sizes; its usual size is {usual}") from None


def check_batch(recipe: Recipe, train: Dataset, option: str = "--batch ") -> None:
    """Refuse, naming the option that mends it, a batch that the training images cannot fill."""
    if recipe.batch * recipe.accumulate > len(train):
        what = f"batch {recipe.batch}" + (f" accumulated {recipe.accumulate} times" if recipe.accumulate > 1 else "")
        raise UsageError(
            f"{what} is more than the {len(train)} training images of {train.name}; "
            f"give {option}{len(train) // recipe.accumulate or 1} or less"
        )


def say_handed_over(engine: str, dataset: Dataset, say: Say) -> None:
    """Say which files another decoder than the engine's own reads."""
    if handed := handed_to_pillow(engine, dataset.files):
        counts = " and ".join(f"{count:,} {name}" for name, count in handed.items())
        say(f"Pillow decodes {counts} files: loader {engine} has no decoder of its own for these")


def fastest_engine(train: Dataset, augment: str, size: int, device: str) -> str:
    """The fastest engine that reads the data set and knows the augmentation."""
    if size <= SMALL:
        return "resident"
    if isinstance(train.pixels, PackedImages):
        return "packed"
    unknown = {operation.name for operation in parse_policy(augment)} & set(engines.LACKING["dali"])
    slow = 2 * handed_to_pillow("dali", train.files).total() > len(train)  # in one thread
    if train.pixels is not None or unknown or slow or engines.missing("dali", device) is not None:
        return "torchvision"
    return "dali"


def statistics(
    recipe: Recipe, train: Dataset, say: Say
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Channel means and deviations for a recipe, in units of 0..1.

    Published ones of a known data set; otherwise measured on up to 2,000 training images. A channel that never varies
    has a deviation of 1, so that it becomes 0.
    """
    if recipe.normalization == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    known = KNOWN.get(train.name.partition("/")[0]) or KNOWN.get(recipe.data)
    if known is not None and known.classes == len(train.classes):
        return known.mean, known.std
    contents = examine(train)
    constant = [name for name, std in zip(("red", "green", "blue"), contents.std, strict=True) if std < CONSTANT]
    if constant:
        say(
            f"note: {' and '.join(constant)} never var{'ies' if len(constant) == 1 else 'y'} in the training images: "
            "nothing can be learnt from that, and 1 is taken for the deviation"
        )
    red, green, blue = (std if std >= CONSTANT else 1.0 for std in contents.std)
    return contents.mean, (red, green, blue)


def evaluation_options(
    card: Card, configuration: Configuration, device: str, batch: int, threads: int
) -> LoaderOptions:
    """How images must be read for the weights that `card` describes, in the precision and layout they are run in."""
    return LoaderOptions(
        batch=batch,
        size=card.size,
        dtype=configuration.dtype,
        layout=configuration.layout,
        device=device,
        threads=threads,
        train=False,
        mean=card.mean,
        std=card.std,
        eval_margin=_margin(card.evaluation),
        random_eval=card.evaluation == "random",
        normalization=card.normalization,
        exif=card.exif,
    )


class Feed:
    """The loaders of a run: `Sources` of models.training.loop.

    Args:
        options: how to evaluate: see `evaluation_options`.
        world: each process reads its own part of the images.

    Attributes:
        splits: the images, decoded already for an engine that holds them in memory.
        options: as given, with the recipe's augmentation and this process's part.
    """

    def __init__(self, recipe: Recipe, splits: Splits, options: LoaderOptions, world: World) -> None:
        self.recipe = recipe
        self.options = replace(
            options,
            seed=recipe.seed,
            augment=recipe.augment,
            shard=world.rank,
            shards=world.size,
            stored_size=recipe.stored_size,
        )
        # A loader of the user's gives training batches alone.
        self._own = recipe.loader if named_code(recipe.loader).is_code else ""
        self._engine = recipe.loader
        if self._own:
            self._engine = fastest_engine(splits.validation, "none", recipe.size, options.device)
        self.splits = _decoded(splits, self.options) if self._engine == "resident" else splits
        self._train: tuple[int, Loader | OwnBatches] | None = None
        self._validation: Loader | None = None
        self._alone: Loader | None = None

    def train(self, size: int) -> Loader | OwnBatches:
        """Training batches at `size` pixels; the loader of another size is closed."""
        if self._train is not None and self._train[0] != size:
            self._train[1].close()
            self._train = None
        if self._train is None and self._own:
            options = replace(self.options, train=True, size=size)
            train = self.splits.train
            self._train = (size, OwnBatches(self._own, len(train.classes), len(train), options))
        elif self._train is None:
            engine = self._engine
            options = replace(self.options, train=True, random_eval=False, size=size)
            if engine == "resident" and size != self.recipe.size:
                options = replace(options, stored_size=options.stored_size or self.recipe.size)
            options = decoding_there(engine, options, self.splits.train)
            self._train = (size, engines.build(engine, self.splits.train, options))
        return self._train[1]

    def validation(self) -> Loader:
        """The validation images, each once an iteration."""
        if self._validation is None:
            self._validation = engines.build(self._engine, self.splits.validation, self.options)
        return self._validation

    def all_of(self, dataset: Dataset) -> Loader:
        """A loader for one process alone over all of the images; the one handed out before is closed."""
        if self._alone is not None:
            self._alone.close()
        self._alone = engines.build(self._engine, dataset, replace(self.options, shard=0, shards=1))
        return self._alone

    def close(self) -> None:
        """Stop all threads and processes."""
        for loader in (self._train[1] if self._train else None, self._validation, self._alone):
            if loader is not None:
                loader.close()
        self._train = self._validation = self._alone = None


def _decoded(splits: Splits, options: LoaderOptions) -> Splits:
    """Decode every image once: training, evaluation and other sizes start from the same pixels."""
    # Splits may share a data set, and must do so afterwards.
    datasets = {id(dataset): dataset for dataset in (splits.train, splits.validation, splits.test)}
    done = {
        key: decoded(dataset, options.stored_size or options.size, options.threads, options.exif)
        if keeps_squares(options)
        else on_device(dataset, options)
        for key, dataset in datasets.items()
    }
    train, validation, test = (done[id(dataset)] for dataset in (splits.train, splits.validation, splits.test))
    return replace(splits, train=train, validation=validation, test=test)


def open_split(data: Path, name: str | None, say: Say) -> Dataset:
    """One split of a folder, by default the one that a training tests on; a folder without splits is the whole of it.

    Raises:
        UsageError: no such split.
        DataError: no such folder, or a damaged one.
    """
    names = (name,) if name is not None else ("test", "val")
    for split_name in names:
        try:
            dataset = open_dataset(data, split_name)
        except NoSplitError as error:
            reason = str(error)
            continue
        if split_name != names[0]:
            say(f"{data} has no test images: its validation images are used")
        return dataset
    there = ", ".join(f"--split {dataset.split}" for dataset in open_splits(data))
    raise UsageError(f"{reason}; it has {there}")
