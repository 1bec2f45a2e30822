"""The pytest plugin of `pytest bench`: its options, which pytest needs before it reads any file.

An installed distribution registers it, and then every pytest run of the environment loads it. So it imports nothing
heavy, adds options and recognises this folder, no more; what acts on benchmarks is in conftest.py, and the fixture that
tests anywhere may ask for in testing.py.
"""

import argparse
import fnmatch
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench.defaults import BATCH, LOADER, MODELS, TRAINING_BATCH
from results.store import FOLDER

# The fixture of users' own tests; named, since it knows what lies above.
pytest_plugins = ["bench.testing"]

HERE = Path(__file__).resolve().parent

# Option -> (default, metavar, help); each is also read from BENCH_RUN_<OPTION>.
OPTIONS: dict[str, tuple[str, str, str]] = {
    "models": (MODELS, "NAMES", "Models to measure, joined by commas, in place of what pixbench.toml lists."),
    "configurations": ("fast", "NAMES", "Presets or levers for every model: naive,fast."),
    "loaders": (f"{LOADER},torchvision,pil,synthetic", "NAMES", "Loaders to measure; the first also feeds end_to_end."),
    "device": ("auto", "auto|cpu|cuda", "Where to measure."),
    "batch": ("0", "N", f"Images a step of inference and loading; {BATCH['cpu']} on a CPU, {BATCH['cuda']} on a GPU."),
    "training-batch": (
        "0",
        "N",
        f"Images a training step; {TRAINING_BATCH['cpu']} on a CPU, {TRAINING_BATCH['cuda']} on a GPU.",
    ),
    "size": ("0", "PIXELS", "Height and width of the images; each model's own."),
    "data": ("", "DIR", "JPEGs to load; a generated set like ImageNet's."),
    "threads": ("0", "N", "CPU threads; every usable core."),
    "store": (str(FOLDER), "DIR", "Folder of stored results, for bench trend; '' for none."),
}
NUMBERS = ("batch", "training-batch", "size", "threads")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    group = parser.getgroup("pixbench", "pixbench: what `pytest bench` measures")
    for name, (default, metavar, words) in OPTIONS.items():
        variable = f"BENCH_RUN_{name.upper().replace('-', '_')}"
        group.addoption(
            f"--{name}",
            dest=f"pixbench_{name.replace('-', '_')}",
            default=os.environ.get(variable, default),
            type=_whole if name in NUMBERS else str,
            metavar=metavar,
            help=f"{words} Default: {default or 'none'}. [{variable}]".replace("Default: 0. ", ""),
        )
    if not pluginmanager.has_plugin("pixbench-json"):
        pluginmanager.register(_OptionalPath(parser), "pixbench-json")


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


class _OptionalPath:
    """Makes the path of pytest-benchmark's --benchmark-json optional, whichever plugin is loaded first."""

    def __init__(self, parser: pytest.Parser) -> None:
        self._parser = parser

    def pytest_plugin_registered(self) -> None:
        # The digits are random: two runs may begin in the same second.
        name = f"pytest-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json"
        optional = {"nargs": "?", "const": Path(".benchmarks") / name}
        for group in getattr(self._parser, "_groups", []):
            for option in group.options:
                if "--benchmark-json" not in option.names():
                    continue
                action = getattr(option, "_action", None)
                if action is None:
                    # pytest before 9.1 builds its parser from these later.
                    option._attrs.update(optional)
                else:
                    action.nargs, action.const = optional["nargs"], optional["const"]


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("benchmark_json", None)
    if isinstance(path, Path):
        _check_json(path)


def _check_json(path: Path) -> None:
    """Fail before measuring for minutes, not after it."""
    if path.is_dir():
        raise pytest.UsageError(
            f"--benchmark-json took {path}, a folder, for its file: put the option last, or write --benchmark-json=FILE"
        )
    if path.parent == Path(".benchmarks"):
        path.parent.mkdir(exist_ok=True)
    if not path.parent.is_dir():
        raise pytest.UsageError(f"--benchmark-json: there is no folder {path.parent}")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Any:
    """Collect bench_*.py of this folder, also where this project's python_files is not in force."""
    if file_path.parent != HERE or not fnmatch.fnmatch(file_path.name, "bench_*.py"):
        return None
    if any(fnmatch.fnmatch(file_path.name, pattern) for pattern in parent.config.getini("python_files")):
        return None
    return pytest.Module.from_parent(parent, path=file_path)
