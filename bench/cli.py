"""The `bench` command: finds a sub-command, runs it, and turns every error into one line.

Nothing heavy is imported here: a sub-command is a "module:attribute" string until it is called, so
`bench --help` and shell completion never pay for torch.
"""

import contextlib
import importlib
import os
import select
import shlex
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import click

from bench.processes import is_interrupt, take_interrupts


class Listed(NamedTuple):
    """A command before it is imported.

    Attributes:
        place: module and attribute of the click command.
        line: what `bench --help` shows.
        examples: what its own `--help` ends with.
    """

    place: str
    line: str
    examples: tuple[str, str]


COMMANDS = {
    "compare": Listed(
        "bench.commands.compare:command",
        "Measure models, loaders or kernels side by side, taking turns.",
        (
            "bench compare resnet34 efficientnet_b0",
            "bench compare mynet.py:Net resnet18 --quick",
        ),
    ),
    "check": Listed(
        "bench.commands.check:command",
        "Say whether a change made anything slower, bigger or wrong.",
        ("bench check --base main", "bench check --base main --exact"),
    ),
    "clean": Listed(
        "bench.commands.clean:command",
        "Show how large the caches are, and remove what can be made again.",
        ("bench clean", "bench clean compiled packed"),
    ),
    "completion": Listed(
        "bench.commands.completion:command",
        "Install the completion of commands and options for your shell.",
        ("bench completion", "bench completion zsh"),
    ),
    "cost": Listed(
        "bench.commands.cost:command",
        "Count parameters, MACs, FLOPs, activations and bytes; no timing.",
        ("bench cost resnet34 vit_b_16", "bench cost mynet.py:Net --max-params 5e6"),
    ),
    "data": Listed(
        "bench.commands.data:command",
        "Generate, describe and check image data sets.",
        ("bench data make DIR --images 1000", "bench data check DIR"),
    ),
    "doctor": Listed(
        "bench.commands.doctor:command",
        "Say what this machine is and what would spoil a measurement here.",
        ("bench doctor", "bench doctor --json"),
    ),
    "init": Listed(
        "bench.commands.init:command",
        "Write settings and a CI workflow for a repository of your own.",
        ("bench init", "bench check --base HEAD"),
    ),
    "list": Listed(
        "bench.commands.list:command",
        "List models, loaders, kernels, recipes and workloads.",
        ("bench list models", "bench list levers"),
    ),
    "evaluate": Listed(
        "bench.commands.evaluate:command",
        "Test a checkpoint: top-1, top-5, report per class, confusion.",
        ("bench evaluate runs/NAME --data DIR", "bench evaluate resnet18 --weights net.pth --data DIR"),
    ),
    "export": Listed(
        "bench.commands.export:command",
        "Write a network as ONNX, OpenVINO or torch.export, and check it.",
        ("bench export resnet34 --to onnx", "bench export runs/NAME --to openvino --dynamic-batch"),
    ),
    "lr-find": Listed(
        "bench.commands.lr_find:command",
        "Find a learning rate by a range test.",
        ("bench lr-find cifar10-fast --data DIR", "bench lr-find --model resnet18 --data DIR"),
    ),
    "profile": Listed(
        "bench.commands.profile:command",
        "Say where the time of a step goes, and what bounds it.",
        ("bench profile resnet34", "bench profile mynet.py:Net --task inference"),
    ),
    "predict": Listed(
        "bench.commands.predict:command",
        "Name what is on images, with confidences and times.",
        ("bench predict runs/NAME image.jpg", "bench predict runs/NAME --data pickle:FILE -o answers.csv"),
    ),
    "results": Listed(
        "bench.commands.results:command",
        "List stored results, with the names that --tag gave them.",
        ("bench results", "bench compare before after"),
    ),
    "serve": Listed(
        "bench.commands.serve:command",
        "Serve a page and an API that classify images.",
        ("bench serve runs/NAME", "bench serve resnet18 --weights net.pth --port 8000"),
    ),
    "study": Listed(
        "bench.commands.study:command",
        "Run a whole study or a sweep and rank its runs.",
        ("bench study under-5m --data DIR", "bench study cifar10-fast --over lr=0.5,0.9 --data DIR"),
    ),
    "train": Listed(
        "bench.commands.train:command",
        "Train a network by a recipe, or go on with a run.",
        ("bench train cifar10-fast --data DIR", "bench train --resume runs/NAME"),
    ),
    "tune": Listed(
        "bench.commands.tune:command",
        "Find the fastest configuration of a model here, and remember it.",
        ("bench tune resnet34", "bench tune mynet.py:Net --tasks inference"),
    ),
    "trend": Listed(
        "bench.commands.trend:command",
        "Show how stored runs went over time, and where they changed.",
        ("bench trend", "bench trend training/resnet18 --format html -o trend.html"),
    ),
    "report": Listed(
        "bench.commands.report:command",
        "Write stored results as one HTML page.",
        ("bench report .benchmarks/pixbench runs", "bench report record.json -o page.html"),
    ),
    "run": Listed(
        "bench.commands.run:command",
        "Run the benchmark matrix: the same as `pytest bench`.",
        ("bench run", "bench run --models resnet18 --tasks inference"),
    ),
}
# What a newcomer sees first.
FIRST = (
    ("bench compare resnet34 efficientnet_b0", "which is faster on this machine, and how sure is that"),
    ("bench compare mynet.py:Net resnet18", "the same with a network of your own: FILE.py:NAME"),
    ("bench profile resnet34", "where the time of a step goes"),
    ("bench check --base main", "did this change make anything slower"),
    ("bench train cifar10-fast --data DIR", "train by a recipe; leaves runs/NAME/"),
)


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        listed = COMMANDS[cmd_name]
        module, attribute = listed.place.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        command.name = cmd_name
        examples = "\b\n" + "\n".join(["Examples:", *(f"  {example}" for example in listed.examples)])
        if examples not in (command.epilog or ""):
            command.epilog = "\n\n".join(filter(None, (command.epilog, examples)))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            # Click looks for near names among commands that are imported already.
            raise click.exceptions.NoSuchCommand(args[0], possibilities=sorted(COMMANDS), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].line) for name in sorted(COMMANDS)])


CONTEXT = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "BENCH", "max_content_width": 110}


@click.command(cls=LazyGroup, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(package_name="pixbench", prog_name="bench")
@click.pass_context
def app(context: click.Context) -> None:
    """A speed lab for image classifiers: every number says how sure it is.

    Start with `bench doctor`, then `bench compare resnet34 efficientnet_b0`. Your own network is FILE.py:NAME.
    """
    if context.invoked_subcommand is None:
        column = max(len(command) for command, _ in FIRST) + 3
        click.echo("\n".join(f"{command:{column}}{what}" for command, what in FIRST))
        click.echo("\nbench --help names all commands, bench COMMAND --help its options.")
    else:
        name = context.invoked_subcommand
        context.default_map = {name: repository_defaults(name, app.get_command(context, name))}


def repository_defaults(name: str, command: click.Command | None) -> dict[str, Any]:
    """What a repository's settings say of a command's options; see models.project."""
    from models.project import find

    project = find()
    if project.names:
        _refuse_taken(project.names, str(project.file))
    if project.file is None or not (project.data or project.options):
        return {}
    known = {option.name for option in command.params if isinstance(option, click.Option)} if command else set()
    found = {str(key).replace("-", "_"): value for key, value in project.options.get(name, {}).items()}
    for wrong in [*(other for other in project.options if other not in COMMANDS), *(found.keys() - known)]:
        what = f"there is no command {wrong}" if wrong in project.options else f"bench {name} has no --{wrong}"
        raise click.UsageError(f"{project.file.name}, options: {what.replace('_', '-')}")
    if project.data and "data" in known:
        found.setdefault("data", str(project.folder / project.data))
    return found


def _refuse_taken(names: Iterable[str], file: str) -> None:
    """Refuse names of a repository that pixbench has given to something of its own, which a command would mean."""
    from kernels import catalogue
    from loaders import engines
    from models import zoo

    for name in names:
        if name in {*zoo.names(), *engines.names(), *catalogue.names()}:
            raise click.UsageError(
                f"{name} in {file} is the name of something in pixbench, which would be meant; choose another name"
            )


def _reported_by_another(text: str) -> bool:
    """Whether one of the other processes that torchrun has started met the same error and printed it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from models.training.distributed import reported_by_another

    return reported_by_another(text)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run `bench` and exit: 0 fine, 1 regression or guard, 2 usage, environment or input error, 130 interrupted."""
    run(app, "bench", arguments)


def run(program: click.Command, name: str, arguments: list[str] | None = None, after: str = "") -> NoReturn:
    """Run a program and exit as `main` does: the one place that turns an error into one line.

    The traceback of an error that nobody worded for a user goes into a file; BENCH_DEBUG=1 prints it as well.

    Args:
        name: of the program, which begins that line.
        after: what is said of an interruption beside that.
    """
    # A supervisor's SIGTERM deserves what Ctrl-C gets: rows kept, measuring processes ended.
    take_interrupts()
    try:
        from bench.machine.surroundings import stand_in

        stand_in()
        code = _invoked(program, name, arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        _leave(2)
    except SystemExit as error:
        # None of ours: code of the user's, a network or a loader, wanted to end the program.
        _say(f"{name}: what was run called exit({'' if error.code is None else error.code!r})")
        _leave(2)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, click.Abort) or is_interrupt(error):
            _say(f"{name}: interrupted{after}")
            _leave(130)
        _fail(name, error)
    sys.exit(code if isinstance(code, int) else 0)


def _invoked(program: click.Command, name: str, arguments: list[str] | None) -> object:
    """What the program's command returns. Click's own `main` would end with exit code 1 where a pipe is broken."""
    if f"_{name.upper()}_COMPLETE" in os.environ:
        # A shell that asks for completions; click exits by itself, which here means that a user's code did.
        try:
            return program.main(prog_name=name, standalone_mode=False)
        except SystemExit as done:
            return done.code
    try:
        with program.make_context(name, list(sys.argv[1:] if arguments is None else arguments)) as context:
            return program.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code


def _fail(name: str, error: BaseException) -> NoReturn:
    if isinstance(error, BrokenPipeError) and _reader_left():
        # The reader (head, less) went away: not an error of ours, but nothing more can be written.
        _leave(0)
    if os.environ.get("BENCH_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if not _reported_by_another(str(error)):
        _say(f"{name}: {_ending(error)}")
    _leave(2)


def _ending(error: BaseException) -> str:
    """What is said of the error that ended a program: one line, and where its traceback is if nobody worded it."""
    from bench.errors import GONE, REPORTED, WorkerError, explained
    from loaders.cache import usual_folder
    from results.errors import keep_traceback

    output = error.output if isinstance(error, WorkerError) else ""
    if isinstance(error, REPORTED) and not output:
        return str(error)
    text = error.summary if isinstance(error, WorkerError) else explained(error)
    if not os.path.isdir("."):
        # No process can be started there, and none of them says why.
        text = GONE
    folder, reason = usual_folder()
    command = shlex.join(sys.argv)
    return f"{text} ({keep_traceback(error, command, *([] if reason else [folder / 'tracebacks']), output=output)})"


def _say(text: str) -> None:
    """One line on stderr, as long as that can be written."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _reader_left() -> bool:
    """Whether whoever read what we print has gone, rather than a process that we talk to."""
    streams = select.poll()
    for stream in (sys.stdout, sys.stderr):
        # In a test it may be no file.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            streams.register(stream.fileno(), 0)
    return bool(streams.poll(0))


def _leave(code: int) -> NoReturn:
    """Exit; what cannot be written any more is dropped, since the interpreter would try again and fail aloud."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
