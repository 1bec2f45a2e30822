"""Options that several commands share, each declared once."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.defaults import BATCH, IMAGES, LOADER, TRAINING_BATCH
from bench.timing.tasks import SYNONYMS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Number(click.FloatRange):
    """A number within bounds. Nan is none: it is neither below nor above anything, so that click's own range lets it
    pass, and what it limits would never end."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class Task(click.Choice[str]):
    """The name of a task, or a word that stands for it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(SYNONYMS.get(value, value), param, ctx)


_DEVICES = click.Choice(["auto", "cpu", "cuda"])
_FOLDER = click.Path(path_type=Path)
_CONFIGURATION = ("--config", "--configuration", "configuration")
# Name -> what click is told of it, in the words of a command that measures.
_SHARED: dict[str, dict[str, Any]] = {
    "--device": {"type": _DEVICES, "default": "auto", "show_default": True, "help": "Where to measure."},
    "--batch": {
        "type": click.IntRange(1),
        "help": f"Images a step. Default: {BATCH['cpu']} on a CPU ({TRAINING_BATCH['cpu']} in training), "
        f"{BATCH['cuda']} on a GPU.",
    },
    "--size": {"type": click.IntRange(1), "help": "Height and width in pixels; default: the model's own."},
    "--classes": {"type": click.IntRange(1), "help": "Logits; default: the model's own."},
    "--weights": {
        "metavar": "FILE",
        "help": "Weights for networks that come without: .safetensors, or a state dict (.pth). Default: random.",
    },
    "--class-names": {
        "type": click.Path(path_type=Path),
        "metavar": "FILE",
        "help": "One a line, for a MODEL. Default: ImageNet's for 1000 logits, numbers for others.",
    },
    "--data": {"type": _FOLDER, "metavar": "DIR", "help": "JPEGs to load; default: a generated set like ImageNet's."},
    "--images": {
        "type": click.IntRange(0),
        "default": IMAGES,
        "show_default": True,
        "help": "Use at most this many files of the data; 0 is all.",
    },
    "--loader": {
        "default": LOADER,
        "show_default": True,
        "help": "The engine that loads them; see bench list loaders.",
    },
    "--threads": {"type": click.IntRange(1), "help": "CPU threads; default: every usable core."},
    "--seed": {"default": 0, "show_default": True, "help": "Of weights, data order and the order of turns."},
    "--force": {
        "is_flag": True,
        "help": "Measure also beside a training or another measurement here, and on a GPU that others use.",
    },
    "--config": {"default": "fast", "show_default": True, "help": "Preset or levers."},
    "--runs": {"type": _FOLDER, "default": Path("runs"), "show_default": True, "help": "Folder of runs."},
}


def shared(name: str, **changes: Any) -> Decorator:
    """A shared option by its name; `changes` replace some of its attributes, such as `help`, for one command."""
    return click.option(*(_CONFIGURATION if name == "--config" else (name,)), **{**_SHARED[name], **changes})


def stacked(*options: Decorator) -> Decorator:
    """One decorator for several options; `--help` shows them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


network_options = stacked(*(shared(name) for name in _SHARED if name not in ("--config", "--class-names", "--runs")))
"""A measurement of one network."""

data_options = stacked(
    shared("--data", help="Folder of the data set."),
    click.option("--train", multiple=True, metavar="A,B,...", help="Training folders to merge, in place of --data."),
    click.option("--val", metavar="A,B,...", help="Validation folders that go with --train."),
)
"""The images of a training."""

recipe_options = stacked(
    click.option("--model", help="Network, where no recipe is named or in place of its own; see bench list models."),
    shared("--batch", help="Images a step, over all processes."),
    click.option("--seed", type=click.IntRange(0), help="Fixes weights, order and augmentation."),
    shared("--size", help="Height and width in pixels."),
    click.option("--loader", help="An engine of bench list loaders, auto, auto-resident, or your own: FILE.py:NAME."),
    shared("--config", default=None, show_default=False, help="Preset or levers: fast, naive, amp-nhwc-compile."),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any recipe key; model.NAME for the network's."
    ),
)
"""Recipe keys that most runs change, by their own names; --set changes the others."""

place_options = stacked(
    shared("--device", help="Where it runs."), shared("--threads", type=click.IntRange(0), default=0)
)
"""The hardware of a run."""
