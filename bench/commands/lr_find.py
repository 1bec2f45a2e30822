"""`bench lr-find`: a learning rate by a range test, or the rates a schedule will take."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import data_options, place_options, recipe_options
from bench.errors import UsageError
from bench.output import FORMATS, check_output, write

if TYPE_CHECKING:
    from bench.runs.lr_find import RangeTest, Series

PICTURES = (".png", ".svg")


@click.command()
@click.argument("recipe", required=False)
@data_options
@recipe_options
@click.option("--optimizer", help="sgd, adam, adamw, rmsprop, adadelta or adagrad.")
@click.option("--low", type=float, default=1e-6, show_default=True, help="First rate.")
@click.option("--high", type=float, default=10.0, show_default=True, help="Last rate.")
@click.option("--steps", type=click.IntRange(3), default=100, show_default=True, help="Training steps, a rate each.")
@click.option("--schedule", is_flag=True, help="Trains nothing: draw the rates that the recipe's schedule will take.")
@place_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The picture (.png or .svg; a .csv of its points goes beside it), or, with another ending, what else goes to "
    "stdout. The picture is lr-find.png or schedule.png by default.",
)
@click.option(
    "--format", type=click.Choice(FORMATS), default="text", show_default=True, help="How the result is written."
)
def command(
    recipe: str | None,
    data: Path | None,
    train: tuple[str, ...],
    val: str | None,
    settings: tuple[str, ...],
    low: float,
    high: float,
    steps: int,
    schedule: bool,
    device: str,
    threads: int,
    output: str | None,
    format: str,
    **keys: Any,
) -> int:
    """Train RECIPE's network, or --model, for a hundred steps at ever higher rates, and suggest one.

    Images, batch, optimiser and precision are those of the training; the weights are put back afterwards.
    """
    from models.training.recipe import Recipe, load, parse_setting

    changes = {key: value for key, value in keys.items() if value is not None}
    changes |= dict(parse_setting(text) for text in settings)
    if recipe is None and "model" not in changes:
        raise UsageError("name a recipe (bench list recipes) or a network: bench lr-find --model resnet18 --data DIR")
    picture, table = Path("schedule.png" if schedule else "lr-find.png"), "-"
    if output and Path(output).suffix.lower() in PICTURES:
        picture = Path(output)
    elif output:
        table = output
    for path in (str(picture), str(picture.with_suffix(".csv")), table):
        check_output(path)

    from bench.runs.lr_find import draw_range_test, draw_series, range_test, series
    from bench.runs.request import Request, changed

    base = load(recipe) if recipe else Recipe(model=changes.pop("model"))
    title = Path(recipe).stem if recipe else ""
    request = changed(Request(base, title, data, train, val, device=device, threads=threads), changes)
    if schedule:
        found = series(request, _images(request))
        written = draw_series(found, picture)
        write(_schedule(found, request.recipe.lr, format), table)
    else:
        test = range_test(request, low, high, steps, _say)
        written = draw_range_test(test, picture)
        write(_range_test(test, format, written), table)
        if not test.restored:
            _say("bench: the weights after the test are not those before it")
            return 1
        if test.curve.interrupted is not None:
            _say(f"{test.curve.interrupted} after {len(test.curve.lrs)} of {steps} rates; the curve so far is kept")
    _say(f"wrote {' and '.join(map(str, written))}")
    return 0 if schedule or test.curve.interrupted is None else 130


def _say(text: str) -> None:
    click.echo(text, err=True)


def _images(request: Any) -> int:
    """Training images: of the folder if one is named, otherwise as many as the recipe's data set is known to have."""
    from loaders.datasets import KNOWN

    if request.data is None and not request.train:
        known = KNOWN.get(request.recipe.data)
        if known is None:
            raise UsageError("no data: how many steps an epoch has follows from the images; name them with --data DIR")
        _say(f"without --data: as many images as {request.recipe.data} has, {known.images[0]:,}")
        return known.images[0]
    from bench.runs.sources import open_folders

    return len(open_folders(request.data, request.train, request.val)[0])


def _range_test(test: "RangeTest", format: str, written: list[Path]) -> str:
    from results.tables import render, to_json

    curve = test.curve
    if format == "json":
        return to_json(
            {
                "model": test.model,
                "optimizer": test.optimizer,
                "batch": test.batch,
                "suggestion": curve.suggestion,
                "minimum_tenth": curve.minimum_tenth,
                "caution": curve.caution,
                "fall": curve.fall,
                "scatter": curve.scatter if math.isfinite(curve.scatter) else None,
                "interrupted": curve.interrupted,
                "stopped_early": curve.stopped_early,
                "weights_restored": test.restored,
                "weights_digest": test.after,
                "lr": list(curve.lrs),
                "loss": list(curve.losses),
                "smoothed": list(curve.smoothed),
                "files": [str(path) for path in written],
            }
        )
    rows = list(zip(curve.lrs, curve.losses, curve.smoothed, strict=True))
    if format != "text":
        return render(("lr", "loss", "smoothed"), rows, format)
    end = "the loss ran away there" if curve.stopped_early else curve.interrupted or "the highest asked for"
    if curve.caution is None:
        found = [f"suggested learning rate: {curve.suggestion:.3g} (steepest fall of the loss)"]
        found += [f"a tenth of the rate at the lowest loss: {curve.minimum_tenth:.3g}"]
    else:
        found = [f"suggested learning rate: none; caution: {curve.caution}"]
    return "\n".join(
        [
            *found,
            f"{len(rows)} rates from {curve.lrs[0]:.3g} to {curve.lrs[-1]:.3g} ({end}); "
            f"{test.model}, {test.optimizer}, batch {test.batch}",
            f"smoothed loss from {curve.smoothed[0]:.4g}, at its lowest {min(curve.smoothed):.4g}",
            f"weights put back: {'yes' if test.restored else 'NO'} (digest {test.after[:12]})",
        ]
    )


def _schedule(found: "Series", lr: float, format: str) -> str:
    from results.tables import render, to_json

    headers = ("epoch", "first", "last", "lowest", "highest")
    if format == "json":
        return to_json(
            {
                "schedule": found.name,
                "lr": lr,
                "steps_per_epoch": found.steps_per_epoch,
                "steps": len(found.lrs),
                "epochs": [dict(zip(headers, row, strict=True)) for row in found.epochs()],
            }
        )
    return render(headers, found.epochs(), format)
