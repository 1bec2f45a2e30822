"""Hooks of `pytest bench`: workloads as parameters, the device's clock, and facts beside the times.

pytest-benchmark keeps time and decides when to stop; its timer is ours, which waits for the device. A benchmark's name
in JSON is its workload's id. With --benchmark-disable each body runs once, on little.
"""

import warnings
from collections.abc import Callable, Generator
from functools import cache
from typing import Any

import pytest

from bench import plugin, rows
from bench.errors import REPORTED
from bench.inspecting import reference
from bench.matrix import Matrix
from bench.timing.workload import Workload

SCHEMA = 1


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin, which in a checkout that is not installed nobody has done yet."""
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, "pixbench")


MATRIX = pytest.StashKey[Matrix]()


def _matrix(config: pytest.Config) -> Matrix:
    if MATRIX not in config.stash:
        option = {name: config.getoption(f"pixbench_{name.replace('-', '_')}") for name in plugin.OPTIONS}
        try:
            config.stash[MATRIX] = Matrix.from_options(option, rows.disabled(config))
        except REPORTED as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[MATRIX]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Report a mistyped name once, with exit code 4, instead of as an error of every file."""
    _matrix(session.config)


def _task(function: Callable[..., object]) -> str:
    """test_inference -> inference"""
    return function.__name__.removeprefix("test_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" not in metafunc.fixturenames:
        return
    task = _task(metafunc.function)
    # Parameters are texts, so that they are stored in JSON as they are.
    ids = [workload.id for workload in _matrix(metafunc.config).workloads(task)]
    metafunc.parametrize("workload", ids, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each benchmark of this folder our timer, our stopping rule and its place; drop tasks without workloads."""
    items[:] = [item for item in items if not _empty(item)]
    ours = [
        item for item in items if item.path.parent == plugin.HERE and "workload" in getattr(item, "fixturenames", ())
    ]
    # All of them share this process, and one that keeps freed memory goes on doing so.
    items.sort(key=lambda item: item in ours and _workload_of(item).keeps_memory)
    for item in ours:
        task = _task(getattr(item, "function"))  # noqa: B009 - Item does not declare it
        item.add_marker(pytest.mark.benchmark(**rows.stopping(config, task, _matrix(config).device.kind)))
        # A warning from torch must not fail the measurement.
        item.add_marker(pytest.mark.filterwarnings("default"))


def _empty(item: pytest.Item) -> bool:
    """Whether it is what pytest makes of a function for which there is no parameter."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    return item.path.parent == plugin.HERE and "workload" in given and not isinstance(given["workload"], str)


def _workload_of(item: Any) -> Workload:
    return Workload.from_id(item.callspec.params["workload"])


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> Workload:
    """The workload whose id is the parameter."""
    task = _task(request.function)
    return next(w for w in _matrix(request.config).workloads(task) if w.id == request.param)


@pytest.fixture
def measure(benchmark: Any, workload: Workload, pytestconfig: pytest.Config) -> Callable[[], None]:
    """Make the row of the workload."""
    matrix = _matrix(pytestconfig)

    def run_or_report() -> None:
        if workload.task in ("loading", "end_to_end"):
            from loaders import engines
            from models.project import named

            engine = workload.loader or workload.subject
            missing = None if named(engine).is_code else engines.missing(engine, workload.device)
            if missing is not None:
                pytest.skip(f"loader {engine}: {missing}")
        # Dashboards go by these two. The path of a file may change, the id does not.
        benchmark.name = benchmark.fullname = workload.id
        with rows.one_line(workload.id):
            rows.measure(benchmark, workload, matrix.reading if workload.reads_files else matrix.conditions)

    return run_or_report


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the fingerprint alone: pytest-benchmark warns whenever two machine_info differ in anything."""
    from bench.machine.facts import describe

    machine_info["pixbench"] = describe(device=_matrix(config).device.kind)["fingerprint"]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Add "schema", the whole "machine" and the "reference"."""
    from bench.machine.facts import describe

    output_json["schema"] = SCHEMA
    matrix = _matrix(config)
    output_json["machine"] = describe(device=matrix.device.kind)
    output_json["reference"] = _pinned(matrix.device.kind, matrix.threads)


@cache
def _pinned(device: str, threads: int) -> dict[str, Any]:
    """The pinned reference, once for all files of a run."""
    return reference.to_record([reference.measure(device, threads)])


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Append the result to the history, in the form that --benchmark-json has.

    What pytest-benchmark warns of meanwhile, such as that there is nothing to save, becomes a line: no capture of
    warnings is at work any more.
    """
    from pytest_benchmark.logger import PytestBenchmarkWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings("always", category=PytestBenchmarkWarning)
        yield
        _append(session.config)
    terminal = session.config.pluginmanager.getplugin("terminalreporter")
    for warning in said if terminal is not None else ():
        terminal.write_line(str(warning.message), yellow=True)


def _append(config: pytest.Config) -> None:
    from pytest_benchmark.utils import safe_dumps

    from results import store
    from results.errors import RecordError

    session: Any = getattr(config, "_benchmarksession", None)
    folder = config.getoption("pixbench_store")
    if not folder or not any(measured and not measured.has_error for measured in getattr(session, "benchmarks", ())):
        return
    # The hooks of pytest-benchmark, as its own --benchmark-json calls them.
    hook, commit = config.hook, config.hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit)
    result = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=session.benchmarks,
        include_data=True,
        machine_info=session.get_machine_info(),
        commit_info=commit,
    )
    hook.pytest_benchmark_update_json(config=config, benchmarks=session.benchmarks, output_json=result)
    path = store.new_path("run", folder)
    try:
        text = safe_dumps(result, indent=1)  # type: ignore[no-untyped-call]
        store.write_whole(path, f"{text}\n".encode())
    except RecordError as error:
        session.logger.warning(f"pixbench: not stored: {error}")
    else:
        session.logger.info(f"pixbench: stored in {path}")
