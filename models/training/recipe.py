"""A training run as data: TOML file -> Recipe, with strict keys. Imports no torch.

A recipe says everything that decides what a run learns; where the images lie and how far a machine is pushed
(threads, device, time limits) is said on the command line.
"""

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import models
from models.errors import ModelError, unknown

EVALUATIONS = ("center", "whole", "random")
SELECTIONS = ("best", "last")
NORMALIZATIONS = ("dataset", "imagenet", "per_image")
TTA = ("none", "flip")
# Arguments that our own networks take, with which keys of a recipe are mixed up.
ARGUMENTS = ("activation", "block_dropout", "depths", "head_dropout", "hidden", "se_ratio", "stem_width", "widths")
USUAL = ("model", "epochs", "batch", "lr", "optimizer", "schedule", "weight_decay", "augment", "loader", "seed")
STUDIES = ("imagenet100", "narrow-resnets", "four-families", "imagenet-resnet50", "under-5m")


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
    """One training run.

    Attributes:
        model, arguments: a name of the zoo and keyword arguments for its builder.
        data: name of the data set the recipe was made for; a run says where it lies.
        size: pixels; 0 takes the network's own.
        classes: outputs; 0 takes the data set's.
        epochs: the run's length, to which schedules stretch; stop_epoch ends it earlier, to be gone on with
            otherwise; 0 is at the end.
        batch: of all processes together.
        divide: an epoch is this part of the training images (1 / divide of them, drawn anew each epoch).
        holdout: share (below 1) or number of training images kept for validation; 0 validates on the data set's
            own validation images, or where it has none on its test images.
        evaluation: "center" resizes to 256/224 of the size and crops the centre, "whole" resizes to the size,
            "random" repeats the mistake of evaluating on randomly cropped and flipped images.
        evaluate_every: epochs between validations; 0 validates after the last epoch only.
        select: which weights are tested in the end: those "best" in validation, or the "last".
        loader: an engine of `bench list loaders`, or "auto".
        configuration: precision, layout and compilation: a preset or levers, as in MODEL@CONFIGURATION.
        augment: words of `bench data show --list` joined by +.
        normalization: channel statistics of the "dataset" or of "imagenet", or each image by its own ("per_image").
        optimizer .. sam_interval: see models.training.optimizers. decay_all decays biases and normalisations too.
        schedule .. patience: see models.training.schedules.
        label_smoothing, teacher, distill_weight, temperature: see models.training.losses; teacher is a checkpoint.
        ema: decay of the averaged weights, 0 for none; ema_every: steps between averagings.
        mixup, cutmix, ricap: see models.training.mixing; 0 is off.
        clip: largest norm of the gradient; 0 is off.
        accumulate: batches a step; `batch` counts the images of one of them.
        sizes: progressive resizing: [first epoch (from 1), size] pairs; the rest of the run stays at the last.
        one_at_a_time: fidelity switch: the network sees the images of a batch one by one, so that batch norm
            normalises each by itself, as one study did by mistake.
        tta: "flip" averages the logits of an image and its mirror image when evaluating.
        checkpoint_epochs: keep the weights every so many epochs; 0 for only last and best.
        checkpoint_minutes: store the state also inside an epoch; 0 for only after each.
        max_minutes: stop cleanly after this time; 0 for never.
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
    configuration: str = "fast"
    augment: str = "standard"
    normalization: str = "dataset"

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = False
    bias_lr_factor: float = 1.0
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
        for name, known in (
            ("evaluation", EVALUATIONS),
            ("select", SELECTIONS),
            ("normalization", NORMALIZATIONS),
            ("tta", TTA),
        ):
            if getattr(self, name) not in known:
                raise unknown(f"value of {name}", getattr(self, name), known)
        for name in _TYPES:
            value = getattr(self, name)
            numbers = value if name == "milestones" else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ModelError(f"recipe key {name} is {value}; it must be finite")
        for name, least in (
            ("size", 0), ("classes", 0), ("epochs", 1), ("batch", 1), ("seed", 0), ("divide", 1), ("holdout", 0),
            ("evaluate_every", 0), ("ema_every", 1), ("clip", 0), ("accumulate", 1), ("checkpoint_epochs", 0),
            ("checkpoint_minutes", 0), ("max_minutes", 0), ("stop_epoch", 0),
        ):  # fmt: skip
            if not getattr(self, name) >= least:
                raise ModelError(f"recipe key {name} is {getattr(self, name)}; it must be {least} or more")
        if not 0 <= self.ema < 1:
            raise ModelError(f"recipe key ema is {self.ema}; give a decay from 0 (off) up to, but not including, 1")
        if self.holdout >= 1 and self.holdout != int(self.holdout):
            raise ModelError(f"recipe key holdout is {self.holdout}; give a share below 1 or a whole number of images")
        epochs = [first for first, _ in self.sizes]
        if self.sizes and (epochs[0] != 1 or epochs != sorted(set(epochs)) or min(s for _, s in self.sizes) < 1):
            raise ModelError(f"recipe key sizes is {self.sizes}; give [epoch, size] pairs rising from epoch 1")
        if self.published.study and self.published.study not in STUDIES:
            raise unknown("study", self.published.study, STUDIES)
        if self.one_at_a_time and (self.accumulate > 1 or self.sam_rho):
            raise ModelError("recipe key one_at_a_time goes with neither accumulate nor sam_rho")

    def size_at(self, epoch: int) -> int:
        """Training size of an epoch counted from 1, 0 meaning the network's own."""
        chosen = [size for first, size in self.sizes if first <= epoch]
        return chosen[-1] if chosen else self.size

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as TOML and JSON hold them."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    def replaced(self, changes: Mapping[str, Any]) -> "Recipe":
        """A copy with some keys changed; `model.NAME` is an argument of the network.

        Raises:
            ModelError: an unknown key or a value of another type.
        """
        arguments, values = dict(self.arguments), {}
        for key, value in changes.items():
            table, dot, name = key.partition(".")
            if dot and table in ("model", "arguments"):
                arguments[name] = _tuples(value)
            else:
                values[key] = value
        return replace(self, **{**_checked(values, "the changes"), "arguments": arguments})


_TYPES = {f.name: f.type for f in fields(Recipe)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def _tuples(value: Any) -> Any:
    """Lists as tuples, so that a recipe can be compared and hashed part by part."""
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_number, value))


def _pairs(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(_number(part, int) for part in pair)
        for pair in value
    )


# key -> (whether a value has its form, the form in words)
_LISTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "milestones": (_numbers, "a list of epochs, such as milestones=[10, 20]"),
    "sizes": (_pairs, "a list of [first epoch, size] pairs, such as sizes=[[1, 16], [5, 32]]"),
}


def _unknown_key(key: str, where: str) -> ModelError:
    near = difflib.get_close_matches(key, _TYPES, n=3)
    # Where the word is a part of an argument's name, that is meant rather than a key spelt alike.
    near = [f"model.{name}" for name in ARGUMENTS if key in name.split("_") or key == name] or near
    hint = f"did you mean {' or '.join(near)}?" if near else f"usual ones: {', '.join(USUAL)};"
    return ModelError(
        f"unknown recipe key {key} in {where}; {hint} Every run's recipe.toml holds all of them, "
        "and model.NAME is an argument of the network"
    )


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values with their types made exact.

    Raises:
        ModelError: unknown key, wrong type.
    """
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _TYPES:
            raise _unknown_key(key, where)
        if key == "published":
            checked[key] = _published(value, where)
            continue
        if key == "arguments":
            if not isinstance(value, Mapping):
                raise ModelError(f"recipe key arguments in {where} must be a table")
            checked[key] = {k: _tuples(v) for k, v in value.items()}
            continue
        kind: Any = _TYPES[key]
        fits = {
            int: isinstance(value, int) and not isinstance(value, bool),
            float: isinstance(value, (int, float)) and not isinstance(value, bool),
            bool: isinstance(value, bool),
            str: isinstance(value, str),
        }.get(kind, isinstance(value, (list, tuple)))
        if isinstance(value, float) and kind is int and value == int(value):
            fits, value = True, int(value)
        if not fits and key not in _LISTS:
            name = getattr(kind, "__name__", "list")
            raise ModelError(f"recipe key {key} in {where} is {value!r}; it must be a value of type {name}")
        if key in _LISTS and not _LISTS[key][0](value):
            raise ModelError(f"recipe key {key} in {where} is {value!r}; it must be {_LISTS[key][1]}")
        checked[key] = float(value) if kind is float else _tuples(value)
    return checked


def _published(table: Any, where: str) -> Published:
    if isinstance(table, Published):
        return table
    known = [f.name for f in fields(Published)]
    if not isinstance(table, Mapping) or not set(table) <= set(known):
        wrong = ", ".join(sorted(set(table) - set(known))) if isinstance(table, Mapping) else repr(table)
        raise ModelError(f"unknown key {wrong} in [published] of {where}; known: {', '.join(known)}")
    return Published(**{k: _tuples(v) for k, v in table.items()})


def parse(text: str, where: str) -> Recipe:
    """A recipe out of TOML text; `where` names it in errors.

    Raises:
        ModelError: not TOML, unknown keys, wrong types, no model.
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
        # Of sizes that fall on one epoch the last, which costs most and is tested, is the one to try.
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
    """Where the recipes that come with pixbench lie."""
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
    """`key=value` from a command line; the value is read as TOML, and as plain text where that fails.

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
    tables: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in recipe.to_mapping().items():
        if isinstance(value, Mapping):
            tables.append((key, value))
        else:
            lines.append(f"{key} = {_toml(value)}")
    for key, table in tables:
        if table:
            lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
