"""`bench train`: train a network by a recipe, or go on with a run."""

from pathlib import Path
from typing import Any

import click

from bench.errors import UsageError
from bench.output import check_output, format_options, write

# Options that are recipe keys by the same name.
KEYS = ("model", "epochs", "batch", "lr", "seed", "loader", "size", "configuration", "max_minutes")


@click.command()
@click.argument("recipe", required=False)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the data set.")
@click.option("--train", multiple=True, metavar="A,B,...", help="Training folders to be merged, in place of --data.")
@click.option("--val", metavar="A,B,...", help="Validation folders that go with --train.")
@click.option("--model", help="Network to train; see bench list models.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--batch", type=click.IntRange(1), help="Images a step, over all processes.")
@click.option("--lr", type=float, help="Learning rate, before the schedule's factor.")
@click.option("--seed", type=click.IntRange(0), help="Fixes weights, order and augmentation.")
@click.option("--size", type=click.IntRange(1), help="Height and width in pixels.")
@click.option("--loader", help="An engine of bench list loaders, or auto.")
@click.option("--config", "--configuration", "configuration", help="Preset or levers: fast, naive, amp-nhwc-compile.")
@click.option("--max-minutes", type=float, help="Stop cleanly after this time; --resume goes on.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any recipe key; model.NAME for the network's."
)
@click.option("--name", default="", help="Name of the run's folder; default: recipe and time.")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of runs."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with the run in this folder.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; default: every usable core.")
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
    changes |= dict(parse_setting(text) for text in settings)
    max_minutes = float(changes.pop("max_minutes", 0.0))
    if resume is not None and (recipe or name):
        raise UsageError("--resume goes on with a run's own recipe and name; change keys with --set")
    if resume is None and recipe is None and "model" not in changes:
        raise UsageError("name a recipe (bench list recipes) or a network: bench train --model resnet18 --data DIR")

    from dataclasses import replace

    from bench.reporting import finish
    from bench.training import Request, changed, stored_request
    from bench.training import train as run_training
    from results.runs import table

    if resume is not None:
        request = changed(stored_request(resume), changes)
        if data is not None or train:
            request = replace(request, data=data, train=train, val=val)
        if threads:
            request = replace(request, threads=threads)
    else:
        base = load(recipe) if recipe else Recipe(model=changes.pop("model"))
        request = Request(
            base, Path(recipe).stem if recipe else "", data, train, val, name, runs, None, device, threads
        )
        request = changed(request, changes)
    request = replace(request, max_minutes=max_minutes)
    summaries: list[Any] = []
    run = run_training(request, _say, lambda done, history: summaries.append(finish(done, history, _say, report)))
    if summaries:
        write(table(summaries, format), output)
    if run.stopped is not None:
        _say(f"{run.stopped}; go on with: bench train --resume {run.folder}")
        return 130 if "SIG" in run.stopped else 0
    return 0


def _say(text: str) -> None:
    click.echo(text, err=True)
