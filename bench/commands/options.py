"""Options that several commands share, so that they are spelt and explained alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def _stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several; `--help` shows them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# Where the images of a training lie.
data_options = _stacked(
    click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the data set."),
    click.option(
        "--train", multiple=True, metavar="A,B,...", help="Training folders to be merged, in place of --data."
    ),
    click.option("--val", metavar="A,B,...", help="Validation folders that go with --train."),
)

# Recipe keys that most runs change, by the same names; the rest goes through --set.
recipe_options = _stacked(
    click.option("--model", help="Network, where no recipe is named or in place of its own; see bench list models."),
    click.option("--batch", type=click.IntRange(1), help="Images a step, over all processes."),
    click.option("--seed", type=click.IntRange(0), help="Fixes weights, order and augmentation."),
    click.option("--size", type=click.IntRange(1), help="Height and width in pixels."),
    click.option("--loader", help="An engine of bench list loaders, or auto."),
    click.option(
        "--config", "--configuration", "configuration", help="Preset or levers: fast, naive, amp-nhwc-compile."
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any recipe key; model.NAME for the network's."
    ),
)

# What a measurement of one network takes, spelt as in bench compare.
network_options = _stacked(
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to measure.",
    ),
    click.option(
        "--batch", type=click.IntRange(min=1), help="Images a step. Default: 32 on a CPU (8 in training), 256 on a GPU."
    ),
    click.option("--size", type=click.IntRange(min=1), help="Height and width in pixels; default: the model's own."),
    click.option("--classes", type=click.IntRange(min=1), help="Logits; default: the model's own."),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="JPEGs to load; default: a generated set like ImageNet's.",
    ),
    click.option(
        "--images",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        help="Use at most this many files of the data; 0 is all.",
    ),
    click.option(
        "--loader", default="dali", show_default=True, help="The engine that loads them; see bench list loaders."
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: every usable core."),
    click.option("--seed", default=0, show_default=True, help="Of weights, data order and the order of turns."),
    click.option("--force", is_flag=True, help="Measure also on a GPU that other processes use."),
)

# What computes.
place_options = _stacked(
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where it runs."
    ),
    click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; default: every usable core."),
)
