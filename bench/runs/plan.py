"""The runs that a study or a sweep consists of."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError, UsageError
from models.errors import unknown
from models.studies import STUDIES, SWEEPS, Study, Sweep
from models.training import recipe as recipes
from models.training.recipe import Published, Recipe

FORMS = ("published", "corrected")
LEAST_PER_CLASS = 2  # training images of each class in an epoch of a trial

Grid = Mapping[str, Sequence[Any]]
"""Recipe key (or model.NAME) -> its values."""


class StudyError(BenchError):
    """A study that cannot start or continue as asked."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        name: of its folder, and in tables and pictures.
        point: what it stands for, whatever the seed.
        recipe: all keys set.
    """

    name: str
    point: str
    recipe: Recipe

    @classmethod
    def named(cls, label: str, recipe: Recipe, ending: str = "") -> "PlannedRun":
        """A run whose folder is named by its label, as far as the label's letters can stand in a folder's name."""
        folder = re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "run"
        return cls(folder + ending, label + ending, recipe)


@dataclass(frozen=True)
class Plan:
    """The runs of a study in their order.

    Attributes:
        name, line: what it is.
        runs: never two of one name.
        scale: 1 for the whole study, less for a trial.
        sort: the figure by which runs are ranked.
        notes: what to know before figures are compared.
        epochs: the numbers of epochs that are compared, where one run holds them all.
        published: number of epochs -> the accuracy that was published for it.
    """

    name: str
    line: str
    runs: tuple[PlannedRun, ...]
    scale: float = 1.0
    sort: str = "top1"
    notes: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """What every table of a trial says; "" for the whole study."""
        return "" if self.scale == 1 else f"scaled by {self.scale:g}: a trial, no result"


def parse_over(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`key=v1,v2` -> {key: (v1, v2)}; a comma within brackets or quotes belongs to its value.

    Raises UsageError: no `=`, no value, a key or a value twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, rest = text.partition("=")
        words = [word.strip() for word in _split(rest)]
        if not equals or not key.strip() or not all(words):
            raise UsageError(f"cannot read --over {text!r}; write key=value,value,...")
        if key.strip() in grid:
            raise UsageError(f"--over {key.strip()} was given twice; write its values in one: key=value,value,...")
        values = tuple(recipes.parse_value(word) for word in words)
        if len({repr(value) for value in values}) < len(values):
            raise UsageError(f"--over {text}: a value is given twice")
        grid[key.strip()] = values
    return grid


def _split(text: str) -> list[str]:
    """Parts between the commas that stand outside of brackets and quotes."""
    words, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            words.append("")
        else:
            words[-1] += letter
    return words


def plan_runs(
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
        over: every combination of values is run. Takes the place of a sweep's own values.
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
        plan = _study(name, STUDIES[name], over, forms)
    elif name in SWEEPS:
        plan = _sweep(name, SWEEPS[name], over, forms, scale)
    else:
        plan = _grid(name, over, forms, bool(seeds))
    runs = [replace(run, recipe=scaled(run.recipe, scale, images, classes)) for run in plan.runs]
    if seeds:
        runs = [
            replace(run, name=f"{run.name}-seed{seed}", recipe=run.recipe.replaced({"seed": seed}))
            for run in runs
            for seed in seeds
        ]
    return replace(plan, runs=tuple(_distinct(runs)), scale=scale)


def _study(name: str, study: Study, over: Grid, forms: Sequence[str]) -> Plan:
    chosen = [recipe for form in forms for recipe in (study.recipes if form == FORMS[0] else study.fast)]
    # A phase starts from the weights of the one before: by itself it is not a run of the study.
    phases = [recipe for recipe in chosen if re.search(r"-phase\d+$", recipe)]
    notes = (
        [f"left out: {', '.join(phases)}; each starts from the weights of the one before, so run them by hand"]
        if phases
        else []
    )
    runs = [
        PlannedRun.named("+".join([recipe, *_words(over, point)]), recipes.load(recipe).replaced(point))
        for recipe in chosen
        if recipe not in phases
        for point in _points(over)
    ]
    return Plan(name, f"{study.line}; {study.compares}", tuple(runs), sort=study.metrics[0], notes=tuple(notes))


def _sweep(name: str, sweep: Sweep, over: Grid, forms: Sequence[str], scale: float) -> Plan:
    grid: dict[str, Sequence[Any]] = {**sweep.over, **over}
    study = next((key for key, item in STUDIES.items() if name in item.sweeps), "")
    runs: list[PlannedRun] = []
    epochs: tuple[int, ...] = ()
    notes = [sweep.note] if sweep.note else []
    for base, ending in _forms(sweep.recipe, forms):
        if sweep.within_one_run and base.schedule == "constant" and list(grid) == ["epochs"]:
            epochs = tuple(sorted({_epochs(value, scale) for value in grid["epochs"]}))
            longest = base.replaced({**sweep.settings, "epochs": round(max(grid["epochs"])), "evaluate_every": 1})
            # Scaled already: one epoch more or less would miss the stored ones.
            longest = replace(longest, checkpoint_epochs=math.gcd(*epochs), published=Published())
            runs.append(PlannedRun(sweep.recipe + ending, sweep.recipe, longest))
            continue
        if sweep.within_one_run and list(grid) == ["epochs"]:
            notes.append("the corrected recipe's rate depends on the number of epochs: each number is a run of its own")
        for point in _points(grid):
            recipe = base.replaced({**sweep.settings, **point})
            top1 = sweep.published.get(",".join(str(point[key]) for key in sweep.over))
            # The recipe's own published figures belong to its own values, the sweep's to the values of the sweep.
            published = Published()
            if top1 and not set(over) - set(sweep.over):
                old = recipe.published
                published = Published(study=study, form=old.form, top1=top1, epochs=recipe.epochs, source=old.source)
            words = _words(grid, point) or [str(value) for value in point.values()]
            runs.append(PlannedRun.named("+".join(words), replace(recipe, published=published), ending))
    return Plan(name, sweep.line, tuple(runs), notes=tuple(notes), epochs=epochs, published=sweep.published)


def _grid(name: str, over: Grid, forms: Sequence[str], seeded: bool) -> Plan:
    path = Path(name)
    if path.suffix != ".toml" and name not in recipes.names():
        raise unknown("study, sweep or recipe", name, (*STUDIES, *SWEEPS, *recipes.names()), "see: bench list recipes")
    swept = [key for key, values in over.items() if len(values) > 1]
    if not seeded and not swept:
        raise UsageError(f"{name} is one recipe; say what to compare with --over key=value,value or --seeds 0,1,2")
    if path.suffix == ".toml" and FORMS[1] in forms:
        raise UsageError(f"{name} is a file and has no corrected form; leave out --fast and --both")
    runs = []
    for base, ending in _forms(name, forms):
        for point in _points(over):
            recipe = base.replaced(point)
            if point:
                recipe = replace(recipe, published=Published())
            runs.append(PlannedRun.named("+".join(_words(over, point)) or path.stem, recipe, ending))
    folder = "-".join([path.stem, *(key.removeprefix("model.") for key in swept)])
    return Plan(folder, f"{path.stem} by {', '.join(swept)}" if swept else path.stem, tuple(runs))


def _forms(recipe: str, forms: Sequence[str]) -> Iterator[tuple[Recipe, str]]:
    """The recipe in each form, and the ending that its runs have in that form."""
    for form in forms:
        ending = "" if form == FORMS[0] else "-fast"
        yield recipes.load(recipe + ending), ending


def _points(grid: Grid) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _words(grid: Grid, point: Mapping[str, Any]) -> list[str]:
    """What distinguishes a point from the others: words as they are, numbers with their key."""
    words = []
    for key, value in point.items():
        if len(grid[key]) > 1:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(text if isinstance(value, str) else f"{key.removeprefix('model.')}-{text}")
    return words


def _distinct(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs, numbered where labels differ only in letters that no folder's name can have."""
    taken: dict[str, int] = {}
    distinct = []
    for run in runs:
        taken[run.name] = taken.get(run.name, 0) + 1
        distinct.append(run if taken[run.name] == 1 else replace(run, name=f"{run.name}.{taken[run.name]}"))
    return distinct


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

    Raises ModelError: there is no such argument; the known ones are listed.
    """
    from models import zoo

    models = list(dict.fromkeys(run.recipe.model for run in plan.runs))
    known = {name for model in models for name in zoo.known_arguments(model)}
    for key in over:
        table, _, name = key.partition(".")
        if table in ("model", "arguments") and name and name not in known:
            raise unknown(f"argument of {' and '.join(models)}", name, known)
