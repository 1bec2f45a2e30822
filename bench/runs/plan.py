"""Which runs a study or a sweep consists of."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError, UsageError
from models.errors import unknown
from models.studies import STUDIES, SWEEPS, Study, Sweep
from models.training import recipe as recipes
from models.training.recipe import Published, Recipe

FORMS = ("published", "corrected")
LEAST_PER_CLASS = 2  # training images of each class in an epoch of a trial
Say = Callable[[str], None]


class StudyError(BenchError):
    """A study that cannot begin or go on as asked."""


@dataclass(frozen=True)
class Entry:
    """One run of a study.

    Attributes:
        name: of its folder, and in tables and pictures.
        point: what it stands for whatever the seed.
        label: what the study calls it, as in `Sweep.published`.
        recipe: all keys set.
    """

    name: str
    point: str
    label: str
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """The runs of a study in their order.

    Attributes:
        name, line: what it is.
        entries: never two of one name.
        scale: 1 for the whole study, less for a trial.
        sort: the figure by which runs are ranked.
        notes: what to know before figures are compared.
        epochs: the numbers of epochs that are compared, where one run holds them all.
        published: label -> the accuracy that was published for it, for `epochs`.
    """

    name: str
    line: str
    entries: tuple[Entry, ...]
    scale: float = 1.0
    sort: str = "top1"
    notes: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    published: Mapping[str, float] | None = None

    @property
    def mark(self) -> str:
        """What every table of a trial says; "" for the whole study."""
        return "" if self.scale == 1 else f"scaled by {self.scale:g}: a trial, no result"


Grid = Mapping[str, Sequence[Any]]


def parse_over(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`key=v1,v2` -> {key: (v1, v2)}; commas within brackets or quotes part nothing.

    Raises:
        UsageError: no `=`, no value, a key or a value twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, rest = text.partition("=")
        words = [word.strip() for word in _parted(rest)]
        if not equals or not key.strip() or not all(words):
            raise UsageError(f"cannot read --over {text!r}; write key=value,value,...")
        if key.strip() in grid:
            raise UsageError(f"--over {key.strip()} was given twice; write its values in one: key=value,value,...")
        values = tuple(recipes.parse_value(word) for word in words)
        if len({repr(value) for value in values}) < len(values):
            raise UsageError(f"--over {text}: a value stands there twice")
        grid[key.strip()] = values
    return grid


def _parted(text: str) -> list[str]:
    words, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            words.append("")
        else:
            words[-1] += letter
    return words


def plan(
    name: str,
    over: Grid | None = None,
    forms: Sequence[str] = FORMS[:1],
    scale: float = 1.0,
    seeds: Sequence[int] = (),
    images: int = 0,
    classes: int = 0,
) -> Plan:
    """The runs of a study, a sweep, or a recipe.

    Args:
        name: of a study, a sweep or a recipe, or a recipe's file.
        over: recipe key (or model.NAME) -> values; every combination is run. Takes the place of a sweep's own values.
        forms: "published", "corrected" or both.
        scale: below 1 shortens the study to a trial.
        seeds: each run once with each; empty: the recipe's own.
        images, classes: of the training data, as far as known; a trial keeps LEAST_PER_CLASS images of each class.

    Raises:
        ModelError: no such study, recipe or key.
        UsageError: nothing to compare.
    """
    over = dict(over or {})
    if not 0 < scale <= 1:
        raise UsageError(f"--scale is {scale:g}; give a number above 0 up to 1")
    if name in STUDIES:
        made = _study(name, STUDIES[name], over, forms)
    elif name in SWEEPS:
        made = _sweep(name, SWEEPS[name], over, forms, scale)
    else:
        made = _grid(name, over, forms, bool(seeds))
    entries = [replace(entry, recipe=scaled(entry.recipe, scale, images, classes)) for entry in made.entries]
    if seeds:
        entries = [
            replace(entry, name=f"{entry.name}-seed{seed}", recipe=entry.recipe.replaced({"seed": seed}))
            for entry in entries
            for seed in seeds
        ]
    return replace(made, entries=tuple(_distinct(entries)), scale=scale)


def _load(name: str, form: str) -> Recipe:
    return recipes.load(name if form == FORMS[0] else f"{name}-fast")


def _study(name: str, study: Study, over: Grid, forms: Sequence[str]) -> Plan:
    chosen = [recipe for form in forms for recipe in (study.recipes if form == FORMS[0] else study.fast)]
    # A phase goes on from the weights of the one before: by itself it is no run of the study.
    phases = [recipe for recipe in chosen if re.search(r"-phase\d+$", recipe)]
    notes = [f"left out: {', '.join(phases)}, which go on from one another's weights by hand"] if phases else []
    entries = []
    for recipe_name in chosen:
        if recipe_name in phases:
            continue
        recipe = recipes.load(recipe_name)
        for point in _points(over):
            words = _words(over, point)
            label = "+".join([recipe_name, *words])
            entries.append(Entry(_folder(label), label, recipe_name, recipe.replaced(point)))
    return Plan(name, f"{study.line}; {study.compares}", tuple(entries), sort=study.metrics[0], notes=tuple(notes))


def _sweep(name: str, sweep: Sweep, over: Grid, forms: Sequence[str], scale: float) -> Plan:
    grid: dict[str, Sequence[Any]] = {**sweep.over, **over}
    study = next((key for key, item in STUDIES.items() if name in item.sweeps), "")
    entries: list[Entry] = []
    epochs: tuple[int, ...] = ()
    notes = [sweep.note] if sweep.note else []
    for form in forms:
        base = _load(sweep.recipe, form)
        tail = "" if form == FORMS[0] else "-fast"
        if sweep.within_one_run and base.schedule == "constant" and list(grid) == ["epochs"]:
            epochs = tuple(sorted({_epochs(value, scale) for value in grid["epochs"]}))
            # Scaled already: asking for one epoch more or less would miss the stored ones.
            longest = round(max(grid["epochs"]))
            every = math.gcd(*epochs)
            settings = {**sweep.settings, "epochs": longest, "evaluate_every": 1}
            recipe = _without_figures(base.replaced(settings), study, {})
            entries.append(Entry(f"{sweep.recipe}{tail}", sweep.recipe, "", replace(recipe, checkpoint_epochs=every)))
            continue
        if sweep.within_one_run and list(grid) == ["epochs"]:
            notes.append("the corrected recipe's rate depends on the number of epochs: each number is a run of its own")
        for point in _points(grid):
            words = _words(grid, point) or [str(value) for value in point.values()]
            label = ",".join(str(point[key]) for key in sweep.over)
            recipe = base.replaced({**sweep.settings, **point})
            figure = sweep.published.get(label) if not set(over) - set(sweep.over) else None
            recipe = _without_figures(recipe, study, {"top1": figure, "epochs": recipe.epochs} if figure else {})
            entries.append(Entry(_folder("+".join(words)) + tail, "+".join(words) + tail, label, recipe))
    return Plan(name, sweep.line, tuple(entries), notes=tuple(notes), epochs=epochs, published=dict(sweep.published))


def _grid(name: str, over: Grid, forms: Sequence[str], seeded: bool) -> Plan:
    path = Path(name)
    if path.suffix != ".toml" and name not in recipes.names():
        raise unknown("study, sweep or recipe", name, (*STUDIES, *SWEEPS, *recipes.names()), "see: bench list recipes")
    if not seeded and not any(len(values) > 1 for values in over.values()):
        raise UsageError(f"{name} is one recipe; say what to compare with --over key=value,value or --seeds 0,1,2")
    if path.suffix == ".toml" and FORMS[1] in forms:
        raise UsageError(f"{name} is a file and has no corrected form; leave out --fast and --both")
    swept = [key for key, values in over.items() if len(values) > 1]
    entries = []
    for form in forms:
        base, tail = _load(name, form), "" if form == FORMS[0] else "-fast"
        for point in _points(over):
            recipe = base.replaced(point)
            if point:
                recipe = _without_figures(recipe, "", {})
            label = "+".join(_words(over, point)) or path.stem
            entries.append(Entry(_folder(label) + tail, label + tail, label, recipe))
    folder = "-".join([path.stem, *(key.removeprefix("model.") for key in swept)])
    return Plan(folder, f"{path.stem} by {', '.join(swept)}" if swept else path.stem, tuple(entries))


def _points(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _words(grid: Grid, point: Mapping[str, Any]) -> list[str]:
    """What tells a point from the others: words as they are, numbers with their key."""
    return [
        value if isinstance(value, str) else f"{key.removeprefix('model.')}-{_plain(value)}"
        for key, value in point.items()
        if len(grid[key]) > 1
    ]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _folder(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "run"


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    taken: dict[str, int] = {}
    found = []
    for entry in entries:
        taken[entry.name] = taken.get(entry.name, 0) + 1
        # Labels that differ only in letters no folder can have.
        name = entry.name if taken[entry.name] == 1 else f"{entry.name}.{taken[entry.name]}"
        found.append(replace(entry, name=name))
    return found


def _without_figures(recipe: Recipe, study: str, figures: Mapping[str, Any]) -> Recipe:
    """The recipe's own published figures belong to its own values, not to changed ones."""
    if not figures:
        return replace(recipe, published=Published())
    old = recipe.published
    return replace(recipe, published=Published(study=study, form=old.form, source=old.source, **figures))


def _epochs(epochs: float, scale: float) -> int:
    return max(1, round(epochs * scale))


def scaled(recipe: Recipe, scale: float, images: int = 0, classes: int = 0) -> Recipe:
    """A trial of a recipe: fewer epochs, each of fewer images, everything counted in epochs in proportion.

    Args:
        images, classes: of the training data; 0 if unknown, and then an epoch may lack a class.
    """
    if scale == 1:
        return recipe
    epochs = _epochs(recipe.epochs, scale)
    ratio = epochs / recipe.epochs
    divide = max(1, round(recipe.divide / scale))
    if images and classes:
        kept = images * (1 - recipe.holdout) if recipe.holdout < 1 else images - recipe.holdout
        divide = min(divide, max(recipe.divide, int(kept / (LEAST_PER_CLASS * classes))))
    return replace(
        recipes.shortened(recipe, epochs),
        divide=divide,
        patience=max(1, round(recipe.patience * ratio)) if recipe.patience else 0,
        evaluate_every=max(1, round(recipe.evaluate_every * ratio)) if recipe.evaluate_every else 0,
        checkpoint_epochs=min(recipe.checkpoint_epochs, epochs),
    )


def check_arguments(plan: Plan, over: Grid) -> None:
    """Refuse a `model.NAME` that no network of the plan has, before the first of many runs fails by it.

    Raises:
        ModelError: there is no such argument; the known ones are listed.
    """
    from models import zoo

    models = list(dict.fromkeys(entry.recipe.model for entry in plan.entries))
    known = {name for model in models for name in zoo.known_arguments(model)}
    for key in over:
        table, _, name = key.partition(".")
        if table in ("model", "arguments") and name and name not in known:
            raise unknown(f"argument of {' and '.join(models)}", name, known)
