"""`bench` from Python: the comparisons and counts of the command line as functions."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

import click

from bench.cli import repository_defaults
from bench.commands.compare import command
from bench.comparing.measuring import measure
from bench.comparing.words import MEASURED, only_kind
from bench.errors import REPORTED, BenchError, UsageError
from bench.screen import Screen
from models.imports import under_way
from models.objects import name_of
from results.record import Record

if TYPE_CHECKING:
    from bench.inspecting.cost import Cost

Operand: TypeAlias = str | Callable[..., object]
"""A name as on the command line, or the class or function itself: of a network, a loader or a step."""

SHOWN = ("across", "charts", "explain", "format", "output", "sort")
"""Options of the command that say how a table is made of something, not what is measured."""


class Options(TypedDict, total=False):
    """The options of `compare`: those of `bench compare`, which `bench compare --help` explains.

    What is left out, or None, is the command's default, or that of the repository's settings. `store` is the folder of
    stored runs; False stores nothing.
    """

    batch: int | None
    training_batch: int | None
    size: int | None
    classes: int | None
    device: str | None
    data: str | Path | None
    images: int | None
    on_bad_image: str | None
    loader: str | None
    threads: int | None
    seed: int | None
    tasks: str | list[str] | tuple[str, ...] | None
    budget: float | None
    energy: bool | None
    beside: str | None
    rounds: int | None
    units: str | None
    weights: str | None
    force: bool | None
    resume: bool | None
    store: str | Path | Literal[False] | None
    over: str | None
    quick: bool | None
    tag: str | None


def compare(*operands: Operand, **options: Unpack[Options]) -> Record:
    """Measure networks, loaders, kernels or steps side by side, as `bench compare` does; the first is the reference.

    Progress goes to stderr. The record is stored as the command stores it, and shown by `print` and by notebooks; its
    numbers are in `record.metric("inference_throughput").values[LABEL]` and `.ratio`, in seconds, bytes and images.
    What failed of one operand is there as a value with the reason in `missing`. Ctrl-C keeps what was measured;
    `resume=True` goes on with it.

    Measuring takes place in fresh processes, which import what they measure by its name. A class or function is named
    for them; it has to be in a file or a module. A script that calls this needs `if __name__ == "__main__":` around the
    call, because the processes import the script too.

    Args:
        *operands: names as on the command line ("resnet50", "resnet50@naive", "nets.py:build[width=64]@fast"), classes,
            functions, or `functools.partial` of one with arguments by name.
        **options: see `Options`.

    Raises:
        BenchError: an option or a name that does not exist, an object that no fresh process can import, words that make
            no sense together, or nothing could be measured.
    """
    _refuse_while_imported()
    with _one_root():
        return _compare([name_of(operand) for operand in operands], dict(options))


def _compare(words: list[str], given: dict[str, Any]) -> Record:
    stored = given.get("store") is not False
    if not stored:
        del given["store"]
    if not words:
        raise UsageError("bench.compare needs something to measure: names, classes or functions")
    if (kind := only_kind(words)) != MEASURED:
        raise UsageError(f"bench.compare measures, and {words[0]} is {kind}; the command `bench compare` reads it")
    arguments = [*_arguments(given), "--", *words]
    parsed, screen = _parsed(arguments), Screen()
    line = shlex.join(["bench", "compare", *arguments[: -len(words) - 1], *words])
    measured = measure(
        words,
        parsed,
        line,
        screen,
        parsed["store"],
        stored,
        again="the same call with resume=True goes on",
        tag=parsed["tag"],
    )
    for text in measured.closing:
        screen.say(text)
    return measured.record


def cost(*models: Operand, classes: int | None = None, size: int | None = None) -> "list[Cost]":
    """Count what networks cost for one image, as `bench cost` does; nothing is timed.

    Args:
        *models: names as on the command line, classes, functions, `functools.partial` of one, or networks, wherever
            they were defined: all is counted in this process. Imports torch.
        classes: outputs; None is each network's own.
        size: height and width of the image in pixels; None is each network's own.

    Raises:
        BenchError: no such network, or it takes no image of this size.
    """
    from bench.inspecting.cost import count
    from models import zoo
    from models.code import naming

    costs = []
    with _one_root():
        for model in models:
            if isinstance(model, str):
                zoo.check(model)
        for model in models:
            with naming(model) as name:
                costs.append(count(name, classes, size))
    return costs


@contextmanager
def _one_root() -> Iterator[None]:
    """What the other packages raise of bad input, as a BenchError: there is one root to catch."""
    try:
        yield
    except BenchError:
        raise
    except REPORTED as error:
        raise UsageError(str(error)) from error


def _refuse_while_imported() -> None:
    """Raise UsageError while a script is imported for its networks: it would measure, and import, for ever."""
    if what := under_way():
        raise UsageError(
            f"bench.compare was called while {what} was imported to be measured; put the call under "
            '`if __name__ == "__main__":`'
        )


def _arguments(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line.

    Raises:
        UsageError: there is no such option, or it is a switch and neither on nor off.
    """
    known = {
        str(option.name): option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in SHOWN
    }
    words = []
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"bench.compare has no option {name!r}; it has {', '.join(sorted(known))}")
        option = known[name]
        if value is None:
            continue
        if option.is_flag:
            if not isinstance(value, bool):
                raise UsageError(f"{name} is {value!r}; it is True or False")
            words += (option.opts if value else option.secondary_opts)[:1]
        else:
            text = ",".join(value) if name == "tasks" and not isinstance(value, str) else value
            words.append(f"{option.opts[0]}={text}")
    return words


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command makes of these words: every option by name, with its default where it is not among them."""
    try:
        defaults = repository_defaults("compare", command)
        with command.make_context("bench compare", list(arguments), default_map=defaults) as context:
            return dict(context.params)
    except click.BadParameter as error:
        raise UsageError(f"{error.param.name if error.param else 'an option'}: {error.message}") from error
    except click.UsageError as error:
        raise UsageError(error.format_message()) from error
