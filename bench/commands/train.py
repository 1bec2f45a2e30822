"""`bench train`: train a network by a recipe, or resume a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import data_options, place_options, recipe_options, shared
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.screen import Screen

if TYPE_CHECKING:
    from bench.runs.request import Request
    from results.runs import RunSummary


@click.command()
@click.argument("recipe", required=False)
@data_options
@recipe_options
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--lr", type=float, help="Learning rate, before the schedule's factor.")
@click.option("--max-minutes", type=float, help="Stop cleanly after this time; --resume continues.")
@click.option("--name", default="", help="Name of the run's folder; default: recipe and time.")
@shared("--runs")
@click.option(
    "--repeat",
    type=click.IntRange(1),
    metavar="N",
    help="Train N times, seed after seed: mean and spread. Stores nothing.",
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Resume the run in this folder.")
@place_options
@click.option("--report/--no-report", default=True, show_default=True, help="Pictures and tables when the run ends.")
@format_options
def command(
    recipe: str | None,
    name: str,
    runs: Path,
    repeat: int | None,
    resume: Path | None,
    device: str,
    report: bool,
    format: str,
    output: str,
    **options: Any,
) -> int:
    """Train by RECIPE (one of bench list recipes, or a .toml file), or --model with its options; leaves runs/NAME/.

    With torchrun in front (torchrun --nproc-per-node 4 -m bench train ...) the processes share each batch.
    """
    from bench.runs.request import Request

    check_output(output)
    screen = Screen()
    if resume is None:
        request = Request.from_options(recipe, screen.say, name=name, runs=runs, device=device, **options)
    elif recipe or name:
        raise UsageError("--resume takes recipe and name from the run; change keys with --set")
    else:
        request = Request.to_resume(resume, device=device, **options)

    if repeat is not None:
        if resume is not None or name:
            raise UsageError("--repeat stores no run; leave out --resume and --name")
        return _repeated(request, screen, repeat, format, output)

    from bench.runs.reporting import finish
    from bench.runs.training import train as run_training
    from results.runs import table

    summaries: list[RunSummary] = []
    run = run_training(request, screen, lambda done: summaries.append(finish(done, screen.say, report)))
    if summaries:
        write(table(summaries, format), output)
    if run is None or run.stopped is None:
        return 0
    screen.say(f"{run.stopped}; resume with: bench train --resume {run.folder}")
    return 130 if run.interrupted else 0


def _repeated(request: "Request", screen: Screen, times: int, format: str, output: str) -> int:
    from bench.runs.repeats import repeat, sentence
    from results.runs import table

    done = repeat(request, screen, times)
    if done.runs:
        words = sentence(done.runs, done.clock)
        write(words if format == "text" else table(done.runs, format), output)
        if format != "text":
            screen.say(words)
    if done.stopped is not None:
        screen.say(f"{done.stopped}: {len(done.runs)} of {times} runs ended")
    return 130 if done.interrupted else 0
