"""`bench list`: the names that other commands take, with one line each."""

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from bench.output import check_output, format_options, write

# kind -> its (name, line) pairs; nothing here imports torch
Names = list[tuple[str, str]]
Facts = Mapping[str, Mapping[str, str | int | float | None]]


def _models() -> Names:
    from models import zoo

    return [(name, zoo.describe(name)) for name in zoo.names()]


def _loaders() -> Names:
    from loaders import engines

    return [(name, engines.describe(name)) for name in engines.names()]


def _kernels() -> Names:
    from kernels import catalogue

    return [(name, catalogue.describe(name)) for name in catalogue.names()]


def _recipes() -> Names:
    from models.training import recipe

    return [(name, _first_comment(recipe.folder() / f"{name}.toml")) for name in recipe.names()]


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


# What a recipe says besides its line: the data it is for, and what its study published for such a run.
RECIPE_COLUMNS = ("data", "epochs", "published_top1", "published_epochs", "published_seconds")


def _recipe_facts(name: str) -> dict[str, str | int | float | None]:
    from models.training import recipe

    chosen = recipe.load(name)
    published = chosen.published
    top1 = published.top1_best if published.top1 is None else published.top1
    facts = (chosen.data, chosen.epochs, top1, published.epochs, published.seconds)
    return dict(zip(RECIPE_COLUMNS, facts, strict=True))


def _workloads() -> Names:
    from bench.timing.workload import TASKS

    return list(TASKS.items())


KINDS: dict[str, Callable[[], Names]] = {
    "models": _models,
    "loaders": _loaders,
    "kernels": _kernels,
    "recipes": _recipes,
    "workloads": _workloads,
}


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)), required=False)
@format_options
def command(kind: str | None, format: str, output: str) -> None:
    """List models, loaders, kernels, recipes and workloads, with one line each; all of them without KIND.

    `bench list recipes` also shows data set and epochs of each recipe, and accuracy (of the last epoch, or of the
    best where only that is published), epochs and time of the public run it stands beside.
    """
    from results.tables import render, to_json

    check_output(output)
    listed = {name: KINDS[name]() for name in ([kind] if kind else KINDS)}
    facts = {name: _recipe_facts(name) for name, _ in listed.get("recipes", [])}
    if format == "json":
        data = {
            name: [{"name": entry, "description": line, **facts.get(entry, {})} for entry, line in entries]
            if name == "recipes"
            else [{"name": entry, "description": line} for entry, line in entries]
            for name, entries in listed.items()
        }
        write(to_json(data), output)
    elif format == "csv":
        columns = ["kind", "name", "description", *(RECIPE_COLUMNS if kind == "recipes" else ())]
        rows = [
            (name, entry, line, *(facts[entry].values() if kind == "recipes" else ()))
            for name, entries in listed.items()
            for entry, line in entries
        ]
        write(render(columns, rows, format), output)
    else:
        write("\n".join(_table(name, entries, facts, format) for name, entries in listed.items()), output)


def _table(kind: str, entries: Names, facts: Facts, format: str) -> str:
    from results.tables import duration, render

    if not entries:
        return f"{kind}: none\n"
    if kind != "recipes":
        return render([kind, "description"], entries, format)

    def cells(name: str) -> list[str]:
        data, epochs, top1, _, seconds = facts[name].values()
        share = "-" if top1 is None else f"{100 * float(top1):.2f} %"
        return [str(data), str(epochs), share, "-" if seconds is None else duration(float(seconds))]

    headers = ["recipes", "data", "epochs", "published", "in", "description"]
    # The data set that a line begins with has a column here.
    rows = [[name, *cells(name), line.partition(": ")[2] or line] for name, line in entries]
    return render(headers, rows, format)
