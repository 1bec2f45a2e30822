"""`bench run`: runs the benchmark matrix under pytest, from any folder."""

from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from bench.errors import UsageError

HERE = Path(__file__).resolve().parent.parent


class Interruption:
    """A pytest plugin that notes Ctrl-C: pytest's exit code 2 also means that collecting failed."""

    happened = False

    def pytest_keyboard_interrupt(self) -> None:
        self.happened = True


class ProgramName:
    """A pytest plugin by which pytest calls itself what the user called."""

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        parser.prog = "bench run"


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="",
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST ARGS]...")
@click.pass_context
def command(context: click.Context, arguments: tuple[str, ...]) -> int:
    """Run the benchmark matrix: the same as `pytest bench`, from any folder.

    Everything after `run` goes to pytest: -k resnet34, --models resnet18,vgg11, --benchmark-json.
    This help is `bench run --help`; every option is listed by `pytest bench --help`.
    """
    if arguments[:1] in (("--help",), ("-h",)):
        click.echo(context.get_help())
        return 0
    interruption = Interruption()
    plugins = [interruption, ProgramName(), *unregistered()]
    code = pytest.main([*selection(arguments), *arguments], plugins=plugins)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError("no benchmark was selected; bench run --collect-only -q lists the ids of all, for -k")
    return exit_code(int(code), interruption.happened)


def selection(arguments: tuple[str, ...]) -> list[str]:
    """The benchmarks' folder, unless files were named; outside a checkout, pytest leaves no cache beside it."""
    # pytest rewrites the asserts of a plugin's distribution, and warns when a module was imported before that.
    words = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    # Whatever the folder's own project makes of warnings: an error outside of a test is a traceback.
    words += ["-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning"]
    if not (HERE.parent / "pyproject.toml").exists():
        words += ["-p", "no:cacheprovider"]
    named = any(Path(word.partition("::")[0]).suffix == ".py" for word in arguments if word[:1] != "-")
    return words if named else [*words, str(HERE)]


def unregistered() -> list[object]:
    """Our pytest plugin, if no installed distribution registers it, as in a checkout that is only on the path."""
    from bench import plugin

    return [] if entry_points(group="pytest11", name="pixbench") else [plugin]


def exit_code(code: int, interrupted: bool) -> int:
    """pytest's exit code -> ours: 0 fine, 1 something failed or regressed, 2 usage, 130 interrupted."""
    if interrupted:
        return 130
    return code if code in (0, 1) else 2
