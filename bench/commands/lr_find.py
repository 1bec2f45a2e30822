"""`bench lr-find`: a learning rate by a range test, or the rates a schedule will take."""

from pathlib import Path
from typing import Any

import click

from bench.commands.options import data_options, place_options, recipe_options
from bench.defaults import HIGHEST_RATE, LOWEST_RATE, RATES
from bench.output import FORMATS, PICTURES, check_output, usual_picture, write
from bench.screen import Screen

ENDINGS = (".png", ".svg")


@click.command()
@click.argument("recipe", required=False)
@data_options
@recipe_options
@click.option("--optimizer", help="sgd, adam, adamw, rmsprop, adadelta or adagrad.")
@click.option("--low", type=float, default=LOWEST_RATE, show_default=True, help="First rate.")
@click.option("--high", type=float, default=HIGHEST_RATE, show_default=True, help="Last rate.")
@click.option("--steps", type=click.IntRange(3), default=RATES, show_default=True, help="Training steps, a rate each.")
@click.option("--schedule", is_flag=True, help="Train nothing; draw the rates that the recipe's schedule will take.")
@place_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The picture (.png or .svg; a .csv of its points goes beside it), or, with another ending, the file for what "
    f"otherwise goes to stdout. The picture is {PICTURES}/lr-find.png or schedule.png there by default.",
)
@click.option(
    "--format", type=click.Choice(FORMATS), default="text", show_default=True, help="How the result is written."
)
def command(
    recipe: str | None,
    low: float,
    high: float,
    steps: int,
    schedule: bool,
    output: str | None,
    format: str,
    **options: Any,
) -> int:
    """Train RECIPE's network, or --model, for a hundred steps at ever higher rates, and suggest one.

    Images, batch, optimiser and precision are those of the training; the weights are restored afterwards.
    """
    from bench.runs.request import Request

    screen = Screen()
    request = Request.from_options(recipe, screen.say, **options)
    if output and Path(output).suffix.lower() in ENDINGS:
        picture, table = Path(output), "-"
    else:
        picture, table = usual_picture("schedule.png" if schedule else "lr-find.png"), output or "-"
    for path in (str(picture), str(picture.with_suffix(".csv")), table):
        check_output(path)

    from bench.runs.lr_find import LrSchedule, range_test

    if schedule:
        rates = LrSchedule.from_request(request, screen.say)
        files, interrupted = rates.draw(picture), None
        write(rates.text(format), table)
    else:
        test = range_test(request, low, high, steps, screen)
        files, interrupted = test.draw(picture), test.curve.interrupted
        write(test.text(format, files), table)
        if not test.weights_restored:
            screen.say("bench: the weights after the test are not those before it")
            return 1
        if interrupted is not None:
            screen.say(f"{interrupted} after {len(test.curve.lrs)} of {steps} rates; the curve so far is kept")
    screen.say(f"wrote {' and '.join(map(str, files))}")
    return 0 if interrupted is None else 130
