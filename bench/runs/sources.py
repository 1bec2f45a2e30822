"""From a recipe and a folder to the loaders that a training or an evaluation reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError
from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from loaders import engines
from loaders.contents import examine
from loaders.datasets import (
    KNOWN,
    Dataset,
    check_same_classes,
    holdout,
    merge_folders,
    open_dataset,
    open_splits,
)
from loaders.epochs import Loader
from loaders.errors import NoSplitError
from loaders.gpu_decoding import decoding_there
from loaders.options import EVAL_MARGIN, LoaderOptions
from loaders.policies import parse as parse_policy
from models.configuration import Configuration
from models.errors import ModelError
from models.prepare import dtype_named
from models.training.distributed import World
from models.training.recipe import Recipe
from results.runs import Evaluated

SMALL = 64  # pixels: up to here a whole data set of decoded images fits beside the network
UNDIVIDED_HOLDOUT = 0.2  # of a folder that has no validation images

Say = Callable[[str], None]


@dataclass(frozen=True)
class Splits:
    """The images of a run, kept apart.

    Attributes:
        train: what the network learns from.
        validation: looked at while training, to choose weights or to lower the rate.
        test: looked at once, in the end; the validation images where there are no others.
        independent: the test images are no training images, and no choice was made by looking at them.
        held: there are no images but the training ones, some of which were held out to validate and test on.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    independent: bool
    held: bool = False

    @property
    def evaluated(self) -> Evaluated:
        """What epochs are evaluated on."""
        if self.held:
            return "held-out"
        return "test" if self.validation is self.test else "val"

    @property
    def tested(self) -> str:
        """The images of the last test, in words."""
        return "held-out training images" if self.held else "test images"


def open_folders(data: Path | None, train: Sequence[str], val: str | None) -> list[Dataset]:
    """All splits of a folder, or of folders named one by one (each name may be several, comma-separated).

    Raises:
        UsageError: neither or both were named.
        DataError: not a data set, or classes that differ.
    """
    if data is not None and (train or val):
        raise UsageError("name either --data or --train and --val, not both")
    if data is not None:
        return open_splits(data)
    if not train:
        raise UsageError(
            "no data: name a folder with --data DIR (or --train A,B --val C); "
            "for a trial, bench data make DIR --like cifar10 writes images a network can learn"
        )
    found = [merge_folders([part for parts in train for part in parts.split(",")], "train")]
    if val:
        found.append(merge_folders(val.split(","), "val"))
        check_same_classes(*found)
    return found


def split(found: list[Dataset], recipe: Recipe, say: Say) -> Splits:
    """Train, validation and test images of a run.

    Raises:
        DataError: the held-out part would leave nothing.
    """
    train, others = found[0], {dataset.split: dataset for dataset in found[1:]}
    share = recipe.holdout
    if not others and not share:
        share = UNDIVIDED_HOLDOUT
        say(
            f"warning: {train.name} has no images to validate or test on: {share:.0%} of it, chosen by seed "
            f"{recipe.seed}, are held out, and all figures are of these"
        )
    held = None
    if share:
        train, held = holdout(train, int(share) if share >= 1 else share, recipe.seed)
    test = others.get("test") or others.get("val") or held
    assert test is not None
    validation = held or others.get("val") or test
    # Weights that are chosen, or a rate that is lowered, by the test images have seen them.
    chosen = recipe.select == "best" or recipe.schedule == "plateau"
    return Splits(train, validation, test, test is not held and not (chosen and validation is test), test is held)


def resolved(recipe: Recipe, splits: Splits, named: bool, device: str, say: Say) -> Recipe:
    """The recipe with what depends on data and machine filled in: classes, size, loader, evaluation.

    Args:
        named: the recipe was written down for some data; one put together from options takes the data's own size.

    Raises:
        UsageError: the recipe asks for other classes than the data has, or for a batch of more images.
        DataError, ModelError: no such loader, augmentation or model, or a size that the network does not take.
    """
    from models import zoo

    zoo.check(recipe.model)
    classes = len(splits.train.classes)
    if recipe.classes and recipe.classes < classes:
        raise UsageError(f"the recipe has {recipe.classes} classes and {splits.train.name} has {classes}")
    recipe = replace(recipe, classes=recipe.classes or classes)
    size = recipe.size or (0 if named else _own_size(recipe, splits.train, say)) or zoo.default_size(recipe.model)
    _check_sizes(recipe, size)
    engine = recipe.loader
    if engine == "auto":
        engine = _fastest(splits.train, recipe.augment, size, device)
        say(f"loader: {engine}")
    engines.check(engine)
    parse_policy(recipe.augment)
    _check_batch(recipe, splits.train)
    evaluation = recipe.evaluation
    if evaluation == "center" and size <= SMALL:
        # Images of this size were cut out already: no margin is left to throw away.
        evaluation = "whole"
    return replace(recipe, size=size, loader=engine, evaluation=evaluation)


def _own_size(recipe: Recipe, train: Dataset, say: Say) -> int:
    """The pixels that all images of the data set have, if that is known and the network takes them; 0 if not."""
    from models import zoo

    published = KNOWN.get(train.name.partition("/")[0].replace("-", ""))
    own = train.pixels.shape[1] if train.pixels is not None else published.size if published is not None else 0
    usual = zoo.default_size(recipe.model)
    if not 0 < own <= SMALL or own == usual:
        return 0
    try:
        _check_sizes(recipe, own)
    except ModelError:
        say(f"size: {usual} px, since {recipe.model} does not take the {own} px of {train.name}")
        return 0
    say(f"size: {own} px, as the images of {train.name} have; --size {usual} is what {recipe.model} was made for")
    return own


def _check_sizes(recipe: Recipe, size: int) -> None:
    """Run the network once without weights at every size of the recipe.

    Raises:
        ModelError: it takes no images of a size, or it cannot be built.
    """
    from models import summary, zoo

    network, title, _ = summary.on_meta(recipe.model, recipe.classes, size, recipe.arguments)
    for pixels in sorted({size, *(pixels for _, pixels in recipe.sizes)}):
        try:
            summary.run(network, title, pixels)
        except ModelError as error:
            usual = zoo.default_size(recipe.model)
            raise ModelError(f"{error}; give another --size, or --set sizes; its usual size is {usual}") from None


def _check_batch(recipe: Recipe, train: Dataset) -> None:
    images = recipe.batch * recipe.accumulate
    if images > len(train):
        what = f"batch {recipe.batch}" + (f" accumulated {recipe.accumulate} times" if recipe.accumulate > 1 else "")
        raise UsageError(
            f"{what} is more than the {len(train)} training images of {train.name}; "
            f"give --batch {len(train) // recipe.accumulate or 1} or less"
        )


def _fastest(train: Dataset, augment: str, size: int, device: str) -> str:
    """The fastest engine that reads the data set and knows the augmentation."""
    if size <= SMALL:
        return "resident"
    unknown = {operation.name for operation in parse_policy(augment)} & set(engines.LACKING["dali"])
    if train.pixels is not None or unknown or engines.missing("dali", device) is not None:
        return "torchvision"
    return "dali"


def statistics(recipe: Recipe, train: Dataset) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Channel means and deviations for a recipe, in units of 0..1.

    Published ones of a known data set; otherwise measured on up to 2,000 training images.
    """
    if recipe.normalization == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    known = KNOWN.get(train.name.partition("/")[0]) or KNOWN.get(recipe.data)
    if known is not None and known.classes == len(train.classes):
        return known.mean, known.std
    contents = examine(train)
    return contents.mean, contents.std


@dataclass
class Feed:
    """The loaders of a run: `Sources` of models.training.loop.

    Attributes:
        options: of a training loader at the recipe's size; the others differ from it in a few fields.
    """

    recipe: Recipe
    splits: Splits
    options: LoaderOptions
    _open: tuple[int, Loader] | None = None
    _validation: Loader | None = None
    _alone: Loader | None = None

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        splits: Splits,
        configuration: Configuration,
        device: torch.device,
        world: World,
        threads: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> "Feed":
        """Loaders for this process, in the precision and layout the configuration computes in.

        Raises:
            DataError: an engine that cannot run here.
        """
        dtype = dtype_named(configuration.dtype)
        options = LoaderOptions(
            batch=max(1, recipe.batch // world.size),
            size=recipe.size,
            dtype=str(dtype).removeprefix("torch."),
            layout=configuration.layout,
            device=str(device),
            threads=threads,
            seed=recipe.seed,
            train=True,
            shard=world.rank,
            shards=world.size,
            mean=mean,
            std=std,
            augment=recipe.augment,
            eval_margin=EVAL_MARGIN if recipe.evaluation == "center" else 1.0,
            normalization="per_image" if recipe.normalization == "per_image" else "fixed",
        )
        if recipe.loader == "resident":
            splits = _decoded(splits, recipe.size, threads)
        return cls(recipe, splits, options)

    def train(self, size: int) -> Loader:
        """Training batches at `size` pixels; the loader of another size is closed."""
        if self._open is not None and self._open[0] != size:
            self._open[1].close()
            self._open = None
        if self._open is None:
            stored = self.recipe.size if self.recipe.loader == "resident" and size != self.recipe.size else 0
            options = replace(self.options, size=size, stored_size=stored)
            options = decoding_there(self.recipe.loader, options, self.splits.train)
            self._open = (size, engines.build(self.recipe.loader, self.splits.train, options))
        return self._open[1]

    def validation(self) -> Loader:
        """The validation images, each once an iteration."""
        if self._validation is None:
            self._validation = self.evaluation(self.splits.validation)
        return self._validation

    def evaluation(self, dataset: Dataset, **changes: Any) -> Loader:
        """A loader over any images, as the recipe evaluates; this process's part of them unless changed."""
        options = replace(self.options, train=False, random_eval=self.recipe.evaluation == "random", **changes)
        return engines.build(self.recipe.loader, dataset, options)

    def all_of(self, dataset: Dataset) -> Loader:
        """A loader for one process alone over all of the images; the one handed out before is closed."""
        if self._alone is not None:
            self._alone.close()
        self._alone = self.evaluation(dataset, shard=0, shards=1)
        return self._alone

    def close(self) -> None:
        """Stop all threads and processes."""
        for loader in (self._open[1] if self._open else None, self._validation, self._alone):
            if loader is not None:
                loader.close()
        self._open = self._validation = self._alone = None


def _decoded(splits: Splits, size: int, threads: int) -> Splits:
    """Decode every image once: training, evaluation and other sizes start from the same pixels."""
    from loaders.resident import decoded

    done: dict[int, Dataset] = {}

    def once(dataset: Dataset) -> Dataset:
        if id(dataset) not in done:
            done[id(dataset)] = decoded(dataset, size, threads)
        return done[id(dataset)]

    return replace(splits, train=once(splits.train), validation=once(splits.validation), test=once(splits.test))


def evaluation_options(card: Any, configuration: Configuration, device: str, batch: int, threads: int) -> LoaderOptions:
    """How images must be read for the weights that `card` (models.training.checkpoint.Card) describes."""
    dtype = dtype_named(configuration.dtype)
    return LoaderOptions(
        batch=batch,
        size=card.size,
        dtype=str(dtype).removeprefix("torch."),
        layout=configuration.layout,
        device=device,
        threads=threads,
        train=False,
        mean=card.mean,
        std=card.std,
        eval_margin=EVAL_MARGIN if card.evaluation == "center" else 1.0,
        random_eval=card.evaluation == "random",
        normalization=card.normalization,
    )


def open_split(data: Path, name: str | None, say: Say) -> Dataset:
    """One split of a folder, by default the one that a training tests on; a folder without splits is the whole of it.

    Raises:
        UsageError: no such split.
        DataError: no such folder, or a damaged one.
    """
    try:
        return open_dataset(data, name or "test")
    except NoSplitError as error:
        if name is not None:
            raise UsageError(f"{error}; {_splits_there(data)}") from None
    try:
        dataset = open_dataset(data, "val")
    except NoSplitError as error:
        raise UsageError(f"{error}; {_splits_there(data)}") from None
    say(f"{data} has no test images: its validation images are taken")
    return dataset


def _splits_there(data: Path) -> str:
    there = [f"--split {dataset.split}" for dataset in open_splits(data)]
    return f"what there is: {', '.join(there)}"
