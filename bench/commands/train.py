"""`bench train`: train a network by a recipe, or go on with a run."""

from pathlib import Path
from typing import Any

import click

from bench.commands.options import data_options, place_options, recipe_options
from bench.errors import UsageError
from bench.output import check_output, format_options, write


@click.command()
@click.argument("recipe", required=False)
@data_options
@recipe_options
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--lr", type=float, help="Learning rate, before the schedule's factor.")
@click.option("--max-minutes", type=float, help="Stop cleanly after this time; --resume goes on.")
@click.option("--name", default="", help="Name of the run's folder; default: recipe and time.")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with the run in this folder.")
@place_options
@click.option("--report/--no-report", default=True, show_default=True, help="Pictures and tables when the run ends.")
@format_options
def command(
    recipe: str | None,
    data: Path | None,
    train: tuple[str, ...],
    val: str | None,
    settings: tuple[str, ...],
    name: str,
    runs: Path,
    resume: Path | None,
    device: str,
    threads: int,
    report: bool,
    format: str,
    output: str,
    **keys: Any,
) -> int:
    """Train by RECIPE (bench list recipes, or a .toml file), or --model with its options; leaves runs/NAME/.

    With torchrun in front (torchrun --nproc-per-node 4 -m bench train ...) the processes share each batch.
    """
    from models.training.recipe import Recipe, load, parse_setting

    check_output(output)
    changes = {key: value for key, value in keys.items() if value is not None}
    epochs = changes.get("epochs")
    changes |= dict(parse_setting(text) for text in settings)
    max_minutes = changes.pop("max_minutes", 0.0)
    if resume is not None and (recipe or name):
        raise UsageError("--resume goes on with a run's own recipe and name; change keys with --set")
    if resume is None and recipe is None and "model" not in changes:
        raise UsageError("name a recipe (bench list recipes) or a network: bench train --model resnet18 --data DIR")

    from dataclasses import replace

    from bench.runs.reporting import finish
    from bench.runs.request import Request, changed, in_fewer_epochs, resumed
    from bench.runs.training import train as run_training
    from results.runs import table

    if resume is not None:
        request = resumed(resume, changes)
        if data is not None or train:
            request = replace(request, data=data, train=train, val=val)
        if threads:
            request = replace(request, threads=threads)
    else:
        base = load(recipe) if recipe else Recipe(model=changes.pop("model"))
        if recipe and epochs is not None and epochs < base.epochs:
            base = in_fewer_epochs(base, epochs, _say)
        request = Request(
            base, Path(recipe).stem if recipe else "", data, train, val, name, runs, None, device, threads
        )
        request = changed(request, changes)
    # Checked as the recipe's key is, but not kept in it: a run that goes on has another limit.
    limit = changed(request, {"max_minutes": max_minutes}).recipe.max_minutes
    request = replace(request, max_minutes=limit)
    summaries: list[Any] = []
    run = run_training(request, _say, lambda done, history: summaries.append(finish(done, history, _say, report)))
    if summaries:
        write(table(summaries, format), output)
    if run is not None and run.stopped is not None:
        _say(f"{run.stopped}; go on with: bench train --resume {run.folder}")
        return 130 if "SIG" in run.stopped else 0
    return 0


def _say(text: str) -> None:
    click.echo(text, err=True)
