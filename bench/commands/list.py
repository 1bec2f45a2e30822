"""`bench list`: the names that other commands take, with one line each."""

from collections.abc import Callable
from pathlib import Path

import click

from bench.output import check_output, format_options, write

# kind -> its (name, line) pairs; nothing here imports torch
Names = list[tuple[str, str]]


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
    import models

    found = sorted(Path(models.__path__[0], "recipes").glob("*.toml"))
    return [(path.stem, _first_comment(path.read_text(encoding="utf-8"))) for path in found]


def _first_comment(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _workloads() -> Names:
    from bench.workload import TASKS

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
    """List models, loaders, kernels, recipes and workloads, with one line each; all of them without KIND."""
    from results.tables import render, to_json

    check_output(output)
    listed = {name: KINDS[name]() for name in ([kind] if kind else KINDS)}
    if format == "json":
        data = {
            name: [{"name": entry, "description": line} for entry, line in entries] for name, entries in listed.items()
        }
        write(to_json(data), output)
    elif format == "csv":
        rows = [(name, entry, line) for name, entries in listed.items() for entry, line in entries]
        write(render(["kind", "name", "description"], rows, format), output)
    else:
        tables = [
            render([name, "description"], entries, format) if entries else f"{name}: none\n"
            for name, entries in listed.items()
        ]
        write("\n".join(tables), output)
