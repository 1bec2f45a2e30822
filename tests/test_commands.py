"""Commands and links in the texts: each command parses as its own command line, each link leads somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from texts import TEXTS, commands

from bench.cli import COMMANDS, FIRST, app
from bench.errors import BenchError
from kernels import catalogue
from loaders import engines
from models import zoo
from models.training.recipe import names as recipes

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
# Names that a reader gives to something.
GIVEN = {"before", "after", "net"}


def parsed(line: str) -> tuple[click.Context, str]:
    """A command line as click takes it, and the name of the command."""
    words = shlex.split(line)[1:]
    context: click.Context = app.make_context("bench", list(words))
    command: click.Command = app
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        assert name is not None
        context, command = found.make_context(name, list(words), parent=context), found
        words = [*context._protected_args, *context.args]
    return context, context.info_name or ""


FOUND = sorted({(path.name, line) for path in TEXTS for line in commands(path.read_text("utf-8"))})


def test_the_texts_have_commands() -> None:
    assert len(FOUND) > 80


@pytest.mark.parametrize("line", sorted({line for _, line in FOUND}))
def test_a_command_of_the_texts_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context, name = parsed(line)
    for operand in context.params.get("operands") or ():
        subject = operand.partition("[")[0].partition("@")[0]
        if re.fullmatch(r"[a-z0-9_]+", subject) and name == "compare":
            assert subject in {*zoo.names(), *engines.names(), *catalogue.names(), *GIVEN}
    recipe = context.params.get("recipe")
    if recipe and name == "train":
        assert recipe in recipes()


@pytest.mark.parametrize("line", [line for listed in COMMANDS.values() for line in listed.examples])
def test_an_example_of_the_help_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parsed(line)


def test_what_a_newcomer_sees_parses() -> None:
    for line, _ in FIRST:
        parsed(line)


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises((click.UsageError, BenchError)):
        parsed("bench compare resnet18 --bugdet 3")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for one, other in LINK.findall(path.read_text("utf-8")):
        target = (one or other).partition("#")[0]
        if target and "://" not in target:
            place = path.parent / target
            # The pages are built from docs/: a folder is no page there.
            assert place.is_file(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for one, other in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)\s+#", path.read_text("utf-8"), re.MULTILINE):
        assert (one or other) in known


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    words = (sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--quiet", "docs", str(tmp_path))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "commands.html").read_text("utf-8")
    assert all(f">{name}<" in text for name in COMMANDS)
