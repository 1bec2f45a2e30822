"""`bench list`: the names that other commands take, with one line each."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from bench.errors import UsageError
from bench.output import check_output, format_options, write

# What a recipe says besides its line: the data it is for, and what its study published for such a run.
RECIPE_COLUMNS = ("data", "epochs", "published_top1", "published_epochs", "published_seconds")

# {"name", "description"}, for recipes also RECIPE_COLUMNS.
Entries = list[dict[str, Any]]


def _entries(lines: Iterable[tuple[str, str]]) -> Entries:
    return [{"name": name, "description": line} for name, line in lines]


# Nothing here imports torch.
def _models() -> Entries:
    from models import zoo

    return _own("model") + _entries((name, zoo.describe(name)) for name in zoo.names())


def _own(kind: str) -> Entries:
    """What this repository's settings name."""
    from models.project import find

    return _entries((name, meant) for name, (of, meant) in find().names.items() if of == kind)


def _loaders() -> Entries:
    from loaders import engines

    return _own("loader") + _entries((name, engines.describe(name)) for name in engines.names())


def _kernels() -> Entries:
    from kernels import catalogue

    return _entries((name, catalogue.describe(name)) for name in catalogue.names())


def _recipes() -> Entries:
    from models.training import recipe

    entries = []
    for name in recipe.names():
        line = first_comment(recipe.folder() / f"{name}.toml")
        chosen = recipe.load(name)
        published = chosen.published
        top1 = published.top1_best if published.top1 is None else published.top1
        facts = (chosen.data, chosen.epochs, top1, published.epochs, published.seconds)
        entries.append({"name": name, "description": line, **dict(zip(RECIPE_COLUMNS, facts, strict=True))})
    return entries


def first_comment(path: Path) -> str:
    """The text of a file's first line if that is a comment, else ""."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _levers() -> Entries:
    from models.configuration import PRESETS, levers

    return _entries([*PRESETS.items(), *((lever, line) for lever, (_, _, line) in levers().items())])


def _workloads() -> Entries:
    from bench.timing.tasks import TASKS

    return _entries(TASKS.items())


KINDS: dict[str, Callable[[], Entries]] = {
    "models": _models,
    "levers": _levers,
    "loaders": _loaders,
    "kernels": _kernels,
    "recipes": _recipes,
    "workloads": _workloads,
}


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)), required=False)
@click.option("--speed", is_flag=True, help="Of models: how many times as fast as naive the preset fast is.")
@click.option("--compiled", is_flag=True, help="Of kernels: what GPUs would run, compiled here without any GPU.")
@format_options
def command(kind: str | None, speed: bool, compiled: bool, format: str, output: str) -> None:
    """List models, levers (and presets), loaders, kernels, recipes and workloads; without KIND all of them.

    `bench list recipes` also shows each recipe's data set and epochs, and what was published of the run it reproduces:
    accuracy (of the last epoch, or of the best where only that is known), epochs and time.

    `bench list models --speed` shows what was published of the machines that docs/measured.md describes.

    `bench list kernels --compiled` compiles for an A100 and an H200 what EfficientNet-B0 launches at batch 256, and
    shows registers, spilled bytes, and the time in which the GPU can start the instructions beside that of its memory.
    """
    from results.tables import render, to_json

    check_output(output)
    if speed and compiled:
        raise UsageError("--speed is of models, --compiled of kernels: choose one")
    if speed:
        if kind not in (None, "models"):
            raise UsageError(f"--speed is of models, not of {kind}")
        write(_speed(format), output)
        return
    if compiled:
        if kind not in (None, "kernels"):
            raise UsageError(f"--compiled is of kernels, not of {kind}")
        write(_compiled(format), output)
        return
    listed = {name: KINDS[name]() for name in ([kind] if kind else KINDS)}
    if format == "json":
        write(to_json(listed), output)
    elif format == "csv":
        columns = ["name", "description", *(RECIPE_COLUMNS if kind == "recipes" else ())]
        rows = [[name, *(entry[column] for column in columns)] for name, entries in listed.items() for entry in entries]
        write(render(["kind", *columns], rows, format), output)
    else:
        write("\n".join(_table(name, entries, format) for name, entries in listed.items()), output)


def _speed(format: str) -> str:
    """How `fast` did beside `naive` where it was published."""
    from results.presets import published, summary

    outcomes = published()
    if format != "text":
        return summary(outcomes, format)
    # The batches of most networks first.
    machines = Counter((outcome.device, outcome.batch, outcome.training_batch) for outcome in outcomes).most_common()
    return "\n".join(
        f"Images a second of fast over those of naive, the lowest first, with a 95 % interval where there was time for "
        f"one: {device}, batch {batch}, in training {training}; latency is of one image.\n\n"
        + summary([one for one in outcomes if (one.device, one.batch, one.training_batch) == (device, batch, training)])
        for (device, batch, training), _ in machines
    )


def _compiled(format: str) -> str:
    """Every kernel as GPUs would run it."""
    from dataclasses import asdict

    from bench.screen import Screen
    from kernels import ahead, catalogue
    from results.tables import Cell, render, to_json

    screen = Screen()
    found = []
    for name in catalogue.names():
        for architecture in ahead.GPUS:
            screen.progress(f"{name} for an {ahead.GPUS[architecture].name}")
            try:
                found += ahead.compiled(name, architecture)
            except ValueError as error:
                raise UsageError(str(error)) from None
    screen.clear()
    if format == "json":
        return to_json([asdict(each) for each in found])
    headers = ["kernel", "of", "for", "times", "registers", "spilled", "shared", "instructions", "starting", "memory"]
    rows: list[list[Cell]] = [
        [
            *(each.kernel, each.what, ahead.GPUS[each.architecture].name, each.count),
            *(each.registers, each.spilled, each.shared),
            "" if each.instructions is None else f"{each.instructions:.1f}",
            "" if each.seconds is None else f"{each.seconds * 1e6:.1f} us",
            f"{each.floor * 1e6:.1f} us",
        ]
        for each in found
    ]
    return render(headers, rows, format)


def _table(kind: str, entries: Entries, format: str) -> str:
    from results.tables import render

    if not entries:
        return f"{kind}: none\n"
    if kind == "recipes":
        headers = ["recipes", "data", "epochs", "published", "in", "description"]
        return render(headers, [_recipe_row(entry) for entry in entries], format)
    return render([kind, "description"], [list(entry.values()) for entry in entries], format)


def _recipe_row(entry: Mapping[str, Any]) -> list[str]:
    from results.tables import duration

    top1, seconds = entry["published_top1"], entry["published_seconds"]
    return [
        entry["name"],
        entry["data"],
        str(entry["epochs"]),
        "-" if top1 is None else f"{100 * top1:.2f} %",
        "-" if seconds is None else duration(seconds),
        # Without the data set that a line begins with, which has a column here.
        entry["description"].partition(": ")[2] or entry["description"],
    ]
