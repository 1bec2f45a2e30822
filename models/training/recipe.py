"""A training run as data: a TOML file read into a Recipe, with strict keys and checked values. Imports no torch.

A recipe holds everything that decides what a run learns; the command line says where the images are and how the
machine is used (threads, device, time limits).
"""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import models
from models.errors import ModelError, unknown
from models.studies import STUDIES
from models.training.optimizers import OPTIMIZERS
from models.training.schedules import SCHEDULES

# Arguments of our own networks, which are easily mistaken for keys of a recipe.
ARGUMENTS = ("activation", "block_dropout", "depths", "head_dropout", "hidden", "se_ratio", "stem_width", "widths")
USUAL = ("model", "epochs", "batch", "lr", "optimizer", "schedule", "weight_decay", "augment", "loader", "seed")
_WORDS: dict[str, Iterable[str]] = {
    "evaluation": ("center", "whole", "random"),
    "select": ("best", "last"),
    "normalization": ("dataset", "imagenet", "per_image"),
    "exif": ("ignore", "apply"),
    "tta": ("none", "flip", "translate"),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "schedule_per": ("step", "epoch"),
}
# keys, whether a value of theirs is allowed, and which ones are
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "size stored_size classes seed holdout stop_epoch evaluate_every clip checkpoint_epochs checkpoint_minutes "
        "max_minutes weight_decay eps sam_rho warmup_epochs patience mixup cutmix ricap rest_epochs",
        lambda value: value >= 0,
        "0 or more",
    ),
    (
        "epochs batch divide accumulate ema_every sam_interval div_factor final_div_factor",
        lambda value: value >= 1,
        "1 or more",
    ),
    ("lr bias_lr_factor head_lr_factor temperature", lambda value: value > 0, "a positive number"),
    (
        "momentum beta1 beta2 alpha ema label_smoothing",
        lambda value: 0 <= value < 1,
        "a number from 0 up to, but not including, 1",
    ),
    ("min_lr_factor pct_start distill_weight", lambda value: 0 <= value <= 1, "a number from 0 to 1"),
)


@dataclass(frozen=True, slots=True)
class Published:
    """What a study published for a run; None where it published nothing. Accuracies are fractions, times seconds.

    Attributes:
        study: which of the five studies.
        form: "published" repeats the study's run with its defects, "corrected" is the better way to do its job.
        top1: accuracy after the last epoch, on the study's test or validation images.
        top1_best: the best of all epochs.
        epochs: trained by the study.
        seconds: of the whole training.
        defects: what was wrong with the run, and which key of the recipe repeats it.
    """

    study: str = ""
    form: str = "published"
    top1: float | None = None
    top1_best: float | None = None
    train_top1: float | None = None
    test_loss: float | None = None
    epochs: int | None = None
    seconds: float | None = None
    seconds_per_epoch: float | None = None
    hardware: str = ""
    source: str = ""
    defects: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. Durations without another unit are in epochs, fractions allowed; 0 switches an option off.

    Attributes:
        model, arguments: a name of the zoo and keyword arguments for its builder.
        data: name of the data set the recipe was made for; the command line says where it is.
        size: pixels; 0 is the network's own.
        classes: outputs; 0 is as many as the data set has.
        epochs: the run's length, over which schedules stretch.
        stop_epoch: ends the run earlier, to be resumed with other settings; 0 is at the end.
        batch: images of a batch, of all processes together.
        divide: an epoch takes 1 / divide of the training images, drawn anew each time.
        holdout: share (below 1) or number of training images kept for validation; 0 validates on the data set's
            own validation images, or where it has none on its test images.
        evaluation: "center" resizes to 256/224 of the size and crops the centre, "whole" resizes to the size,
            "random" repeats the mistake of evaluating on randomly cropped and flipped images.
        evaluate_every: epochs between validations; 0 validates after the last epoch only.
        select: which weights are tested in the end: those "best" in validation, or the "last".
        loader: an engine of `bench list loaders`; "auto", the fastest that reads the files (on a CPU packed, where a
            trial on some images shows that it saves more than packing costs); or "auto-resident", the engine resident
            where the training images take at most half of the device's memory, otherwise as "auto".
        stored_size: resident keeps images with a shorter side of at most this; 0 is what an evaluation resizes it to.
        configuration: precision, layout and compilation: a preset or levers, as in MODEL@CONFIGURATION.
        augment: words of `bench data show --list` joined by +.
        normalization: channel statistics of the "dataset" or of "imagenet", or each image by its own ("per_image").
        exif: "ignore" the orientation that files store, as torchvision's ImageFolder does, or "apply" it.
        optimizer: a key of models.training.optimizers.OPTIMIZERS.
        lr: learning rate, before the schedule's factor.
        momentum: of sgd, rmsprop and muon.
        nesterov: of sgd.
        weight_decay: an L2 term of the gradient; decoupled from it in adamw.
        decay_all: biases, normalisations and every other parameter decay as well, as in a plain torch optimiser.
        bias_lr_factor: multiplies the learning rate of the biases of normalisations (Jordan 2024, 94 % on CIFAR-10 in
            3.29 seconds on a single GPU), with muon of all that is no weight of a convolution or a linear layer. Where
            these decay, their weight decay is divided by it.
        head_lr_factor: the same for the weights of linear layers, with muon.
        rest_epochs: epochs after which all but the weights of convolutions and linear layers and the biases of
            normalisations stays as it is: biases of convolutions, scales of normalisations. Its rate falls to 0 until
            then, times the schedule's factor. 0 is never.
        beta1, beta2: of adam and adamw.
        eps: of all but sgd; 0 is torch's default, which differs between them.
        alpha: smoothing of squared gradients, `alpha` of rmsprop and `rho` of adadelta; 0 is torch's default.
        sam_rho: radius of sharpness-aware minimisation.
        sam_interval: steps from one sharpness-aware step to the next.
        schedule: a key of models.training.schedules.SCHEDULES. After its end a schedule stays where it ended.
        schedule_per: "step" changes the rate at every step, "epoch" only between epochs.
        warmup_epochs: linear warm-up before the schedule (all but onecycle, which has its own).
        milestones: of multistep: epochs at which the rate is multiplied by gamma, counted from the start of training.
        step_epochs: of step: epochs between two multiplications by gamma, counted from the start of training.
        gamma: what step, multistep and plateau multiply by.
        min_lr_factor: where cosine and linear end; step, multistep and plateau never go below it.
        pct_start, div_factor, final_div_factor: of onecycle: share of training spent rising, the peak over the first
            rate, the first rate over the last.
        patience: of plateau: epochs without a better validation accuracy before the rate falls.
        label_smoothing: share of each label spread evenly over all classes (Szegedy et al. 2016, Rethinking the
            Inception Architecture). At 0.1 and 10 classes the lowest loss is 0.500 nats, not 0.
        teacher: checkpoint of the network to distil from.
        distill_weight: share of the teacher's term in the loss; the labels' term gets the rest.
        temperature: softens both sides of the teacher's term.
        ema: share of the averaged weights that a step keeps.
        ema_every: steps between two averagings.
        mixup, cutmix, ricap: parameter of the Beta distribution (see models.training.mixing).
        clip: largest norm of the gradient.
        accumulate: batches a step.
        sizes: progressive resizing: [first epoch (from 1), size] pairs; the rest of the run stays at the last.
        one_at_a_time: fidelity switch: the network sees the images of a batch one by one, so that batch norm
            normalises each by itself, as one study did by mistake.
        tta: when evaluating, "flip" averages the logits of an image and its mirror image; "translate" averages those of
            the images it is least sure of with their logits when moved by a pixel, too.
        checkpoint_epochs: interval at which weights are kept, besides the last and the best.
        checkpoint_minutes: interval at which the state is also stored inside an epoch.
        max_minutes: stop cleanly after this time.
        published: what a study published for this run.
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    size: int = 0
    classes: int = 0
    epochs: int = 30
    stop_epoch: int = 0
    batch: int = 128
    seed: int = 0
    divide: int = 1
    holdout: float = 0.0
    evaluation: str = "center"
    evaluate_every: int = 1
    select: str = "last"
    loader: str = "auto"
    stored_size: int = 0
    configuration: str = "fast"
    augment: str = "standard"
    normalization: str = "dataset"
    exif: str = "ignore"

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = False
    bias_lr_factor: float = 1.0
    head_lr_factor: float = 1.0
    rest_epochs: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 0.0
    alpha: float = 0.0
    sam_rho: float = 0.0
    sam_interval: int = 1

    schedule: str = "cosine"
    schedule_per: str = "step"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    step_epochs: float = 0.0
    gamma: float = 0.1
    min_lr_factor: float = 0.0
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    patience: int = 5

    label_smoothing: float = 0.0
    teacher: str = ""
    distill_weight: float = 0.5
    temperature: float = 4.0
    ema: float = 0.0
    ema_every: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    ricap: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    sizes: tuple[tuple[int, int], ...] = ()
    one_at_a_time: bool = False
    tta: str = "none"

    checkpoint_epochs: int = 0
    checkpoint_minutes: float = 0.0
    max_minutes: float = 0.0

    published: Published = field(default_factory=Published)

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise unknown(f"value of {name}", getattr(self, name), known)
        for name in _TYPES:
            value = getattr(self, name)
            numbers = value if name == "milestones" else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ModelError(f"recipe key {name} is {value}; it must be finite")
        for names, allowed, wanted in _RANGES:
            for name in names.split():
                self._require(allowed(getattr(self, name)), name, wanted)
        whole = self.holdout < 1 or self.holdout == int(self.holdout)
        self._require(whole, "holdout", "a share below 1 or a whole number of images")
        self._check_schedule()
        first = [epoch for epoch, _ in self.sizes]
        rising = not first or (first[0] == 1 and first == sorted(set(first)) and min(s for _, s in self.sizes) >= 1)
        self._require(rising, "sizes", "[epoch, size] pairs rising from epoch 1")
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ModelError("recipe key nesterov needs momentum; set momentum, usually to 0.9")
        if self.optimizer == "muon":
            self._require(self.momentum > 0, "momentum", "a share above 0: muon orthogonalises the momentum")
        if self.published.study and self.published.study not in STUDIES:
            raise unknown("study", self.published.study, STUDIES)
        if self.one_at_a_time and (self.accumulate > 1 or self.sam_rho):
            raise ModelError("recipe key one_at_a_time goes with neither accumulate nor sam_rho")

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise ModelError(f"recipe key {name} is {getattr(self, name)!r}; give {wanted}")

    def _check_schedule(self) -> None:
        decays = self.schedule in ("step", "multistep", "plateau")
        self._require(not decays or 0 < self.gamma < 1, "gamma", "a factor between 0 and 1")
        self._require(self.warmup_epochs < self.epochs, "warmup_epochs", f"fewer than the {self.epochs} epochs")
        rising = all(low < high for low, high in zip((0.0, *self.milestones), self.milestones, strict=False))
        self._require(rising, "milestones", "epochs above 0 in rising order")
        needed = self.schedule != "multistep" or bool(self.milestones)
        self._require(needed, "milestones", "the epochs at which the multistep schedule lowers the rate")
        needed = self.schedule != "step" or self.step_epochs > 0
        self._require(needed, "step_epochs", "the epochs after which the step schedule lowers the rate")
        if self.schedule == "onecycle" and (self.warmup_epochs or self.min_lr_factor):
            raise ModelError(
                "the onecycle schedule has its own warm-up (pct_start) and end (final_div_factor); "
                "leave warmup_epochs and min_lr_factor at 0"
            )

    def size_at(self, epoch: int) -> int:
        """Training size of an epoch counted from 1; 0 means the network's own."""
        chosen = [size for first, size in self.sizes if first <= epoch]
        return chosen[-1] if chosen else self.size

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as TOML and JSON hold them."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    def replaced(self, changes: Mapping[str, Any]) -> "Recipe":
        """A copy with some keys changed; `model.NAME` is an argument of the network.

        Raises:
            ModelError: an unknown key, or a value of another type or out of range.
        """
        arguments, values = dict(self.arguments), {}
        for key, value in changes.items():
            table, dot, name = key.partition(".")
            if dot and table in ("model", "arguments"):
                arguments[name] = as_tuples(value)
            else:
                values[key] = value
        return replace(self, **{**_checked(values, "the changes"), "arguments": arguments})


_TYPES: dict[str, Any] = {f.name: f.type for f in fields(Recipe)}
# What a value must be, where its type does not say enough.
_FORMS = {
    "milestones": "a list of epochs, such as milestones=[10, 20]",
    "sizes": "a list of [first epoch, size] pairs, such as sizes=[[1, 16], [5, 32]]",
}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def as_tuples(value: Any) -> Any:
    """Lists as tuples, at any depth, so that values can be compared and hashed."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _checked(values: Mapping[str, Any], where: str, kind: type[Recipe] | type[Published] = Recipe) -> dict[str, Any]:
    """The values of a table's keys with exactly the types of the fields of `kind`.

    Raises:
        ModelError: unknown key, wrong type.
    """
    types: dict[str, Any] = {f.name: f.type for f in fields(kind)}
    checked = {}
    for key, value in values.items():
        if key not in types:
            known = ModelError(f"unknown key {key} in {where}; known: {', '.join(types)}")
            raise _unknown_key(key, where) if kind is Recipe else known
        if types[key] is Published and isinstance(value, Mapping):
            checked[key] = Published(**_checked(value, f"[published] of {where}", Published))
            continue
        try:
            checked[key] = _converted(value, types[key])
        except TypeError as error:
            wanted = _FORMS.get(key, str(error))
            raise ModelError(f"recipe key {key} in {where} is {value!r}; it must be {wanted}") from None
    return checked


def _unknown_key(key: str, where: str) -> ModelError:
    near = difflib.get_close_matches(key, _TYPES, n=3)
    # A word that is part of an argument's name means that argument rather than a key of similar spelling.
    near = [f"model.{name}" for name in ARGUMENTS if key in name.split("_") or key == name] or near
    hint = f"did you mean {' or '.join(near)}?" if near else f"usual ones: {', '.join(USUAL)};"
    return ModelError(
        f"unknown recipe key {key} in {where}; {hint} Every run's recipe.toml holds all of them, "
        "and model.NAME is an argument of the network"
    )


def _converted(value: Any, kind: Any) -> Any:
    """A value of TOML as a field of this type. Raises TypeError, with the type in words, where it is of another."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return _converted(value, parts[0])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind in (bool, str, Published) and isinstance(value, kind):
        return value
    if origin is dict and isinstance(value, Mapping):
        return {key: as_tuples(item) for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        if parts[-1] is Ellipsis:
            return tuple(_converted(item, parts[0]) for item in value)
        if len(value) == len(parts):
            return tuple(_converted(item, part) for item, part in zip(value, parts, strict=True))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list"}
    raise TypeError(words.get(origin or kind, "a table"))


def parse(text: str, where: str) -> Recipe:
    """A recipe from TOML text; `where` names it in errors.

    Raises:
        ModelError: not TOML, unknown keys, wrong types, values out of range, no model.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{where} is not valid TOML: {error}") from None
    if "model" not in values:
        raise ModelError(f"{where} names no model; write model = NAME (bench list models)")
    return Recipe(**_checked(values, where))


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe in fewer epochs: warm-up, falls of the rate, changes of size and an early end in proportion."""
    ratio = epochs / recipe.epochs
    sizes: dict[int, int] = {}
    for first, size in recipe.sizes:
        # Of sizes that fall on one epoch the last is kept: it costs most and is the one that is tested.
        sizes[min(epochs, 1 + round((first - 1) * ratio))] = size
    return replace(
        recipe,
        epochs=epochs,
        stop_epoch=min(epochs, max(1, round(recipe.stop_epoch * ratio))) if recipe.stop_epoch else 0,
        warmup_epochs=recipe.warmup_epochs * ratio,
        milestones=tuple(milestone * ratio for milestone in recipe.milestones),
        step_epochs=recipe.step_epochs * ratio,
        sizes=tuple(sorted(sizes.items())),
    )


def folder() -> Path:
    """The folder of the recipes that come with pixbench."""
    return Path(models.__path__[0], "recipes")


def names() -> tuple[str, ...]:
    """Names of the recipes that come with pixbench, sorted."""
    return tuple(sorted(path.stem for path in folder().glob("*.toml")))


def load(name: str | Path) -> Recipe:
    """A recipe by its name, or from a TOML file.

    Raises:
        ModelError: no such recipe or file, or a faulty one.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = folder() / f"{name}.toml"
        if not path.is_file():
            raise unknown("recipe", str(name), names(), "see: bench list recipes")
    try:
        return parse(path.read_text(encoding="utf-8"), str(name))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read recipe {path}: {error}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` from a command line; the value as in `parse_value`.

    Raises:
        ModelError: no `=`.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ModelError(f"cannot read setting {text!r}; write key=value")
    return key, parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A TOML value (number, true, [1, 2], "text"), or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(recipe: Recipe, comments: Iterable[str] = ()) -> str:
    """The whole recipe as TOML; `parse` reads it back unchanged."""
    lines = [f"# {line}" for line in comments]
    values = recipe.to_mapping()
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines += [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        if table:
            lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """JSON's words for numbers, text, true and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)
