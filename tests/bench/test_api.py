"""`bench` from Python: what is imported when, which options there are, and records that the command makes too."""

import functools
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_worker import Machine, keep_time, spawner
from torch import nn

import bench
from bench.api import SHOWN, Options
from bench.commands.compare import command
from bench.comparing import comparison as comparison_module
from bench.comparing import measuring
from bench.timing.workload import Workload
from models import code
from models.errors import ModelError
from models.lenet import LeNet
from results import store


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Processes that measure nothing: what is named by its module is a quarter slower."""
    made = Machine()

    def seconds(label: str, workload: Workload) -> float:
        return 0.125 if ":" in label else 0.1

    monkeypatch.setattr(
        measuring, "Comparison", functools.partial(comparison_module.Comparison, spawn=spawner(made, seconds))
    )
    monkeypatch.setattr(measuring, "look_up", lambda words, threads: {})
    keep_time(made, monkeypatch, comparison_module)
    monkeypatch.chdir(tmp_path)
    return made


SMALL: dict[str, Any] = {
    "tasks": "inference",
    "batch": 4,
    "size": 32,
    "device": "cpu",
    "threads": 1,
    "energy": False,
    "budget": 1,
}


def test_importing_is_light_and_names_are_those_promised() -> None:
    program = (
        "import bench, sys; print(*sorted({'torch', 'click', 'pytest', 'numpy'} & {*sys.modules}), *bench.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["BenchError", "Cost", "Record", "compare", "cost"]
    assert {*bench.__all__} <= {*dir(bench)}
    assert [getattr(bench, name).__name__ for name in bench.__all__] == bench.__all__
    with pytest.raises(AttributeError, match="no attribute 'compere'; it has BenchError"):
        _ = getattr(bench, "compere")  # noqa: B009


def test_options_are_those_of_the_command() -> None:
    known = {str(parameter.name) for parameter in command.params} - {"operands", *SHOWN}
    assert set(Options.__annotations__) == known
    assert "defaults" not in inspect.signature(bench.compare).parameters


def test_a_comparison_is_the_record_that_is_stored(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    record = bench.compare("lenet", functools.partial(LeNet, classes=5), **SMALL)
    assert record.operands == ("lenet", "models.lenet:LeNet[classes=5]")
    assert record.settings["batch"] == 4
    assert record.settings["seed"] == 0
    assert record.command == (
        "bench compare --tasks=inference --batch=4 --size=32 --device=cpu --threads=1 --no-energy --budget=1 "
        "lenet 'models.lenet:LeNet[classes=5]'"
    )
    metric = record.metric("inference_throughput")
    assert metric is not None
    assert metric.ratio is not None
    assert metric.ratio.estimate == pytest.approx(0.1 / 0.125)
    ((path, stored),), skipped = store.list_records(store.FOLDER)
    assert stored.operands == record.operands
    assert not skipped
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"stored in {path}" in printed.err
    assert "\x1b" not in printed.err
    assert str(record).startswith("inference: ")
    assert "<table>" in record._repr_html_()


def test_it_can_be_stored_elsewhere_or_not_at_all(machine: Machine, tmp_path: Path) -> None:
    bench.compare("lenet", store=False, **SMALL)
    assert [*tmp_path.iterdir()] == []
    bench.compare("lenet", store=tmp_path / "kept", **SMALL)
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".json"]


def test_settings_of_the_repository_are_its_defaults(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "pixbench.toml").write_text("[options.compare]\nseed = 7\nbatch = 5\n")
    record = bench.compare("lenet", store=False, **SMALL)
    assert (record.settings["seed"], record.settings["batch"]) == (7, 4)


@pytest.mark.parametrize("stored", [True, False])
def test_an_interruption_keeps_what_was_measured(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stored: bool, tmp_path: Path
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison_module.Comparison, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.compare("lenet", **SMALL, **({} if stored else {"store": False}))
    said = capsys.readouterr().err
    assert ("the same call with resume=True goes on" in said) == stored
    assert (tmp_path / store.FOLDER).exists() == stored


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bench.compare("lenet", batches=3), "no option 'batches'; it has batch, beside"),  # type: ignore[call-arg]
        (lambda: bench.compare("lenet", batch=0), "batch: 0 is not in the range"),
        (lambda: bench.compare("lenet", energy="no"), "energy is 'no'; it is True or False"),  # type: ignore[arg-type]
        (lambda: bench.compare("lenet", tasks=["inferenc"]), "no 'inferenc'"),
        (lambda: bench.compare(), "something to measure"),
        (lambda: bench.compare("nothing.json"), "nothing.json does not exist"),
        (lambda: bench.compare("lenett"), "lenet"),
        (lambda: bench.compare("lenet", "pil"), "name operands of one kind"),
        (lambda: bench.compare(lambda: None), "made inside a function"),
        (lambda: bench.cost("lenett"), "lenet"),
        (lambda: bench.cost(lambda: 3), "not a network"),
    ],
)
def test_mistakes_are_bench_errors(call: Callable[[], object], words: str) -> None:
    with pytest.raises(bench.BenchError, match=words):
        call()


def test_costs_are_counted_of_whatever_is_there() -> None:
    def build(classes: int = 10) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))

    costs = bench.cost("lenet", LeNet, build, build(3), functools.partial(build, classes=4), size=32)
    assert costs[1].model == "models.lenet:LeNet"
    assert costs[0].params == 62006
    assert [(cost.classes, cost.params) for cost in costs[2:]] == [(n, 4 * n) for n in (10, 3, 4)]


def test_another_object_of_the_same_name_is_another() -> None:
    def counted(outputs: int) -> bench.Cost:
        def build() -> nn.Module:
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, outputs))

        return bench.cost(build, size=32)[0]

    assert [counted(outputs).classes for outputs in (3, 4)] == [3, 4]


def test_a_script_that_measures_when_it_is_imported_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "measures_itself.py"
    path.write_text("import bench\n\ndef build(): ...\n\nbench.compare(build)\n")
    words = (
        r"called while .*measures_itself.py was imported .* put the call under `if __name__ == \"__main__\":`.*line 5"
    )
    with pytest.raises(ModelError, match=words):
        code.load(f"{path}:build")
