"""Hooks of `pytest bench`: workloads as parameters, the device's clock, and facts beside the times.

pytest-benchmark keeps time and decides when to stop; its timer is ours, which waits for the device. A benchmark's name
in JSON is its workload's id. With --benchmark-disable each body runs once, on little.
"""

import gc
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

import pytest

from bench import plugin
from bench.errors import REPORTED
from bench.inspecting import reference
from bench.matrix import Matrix
from bench.timing.clock import CLOCKS
from bench.timing.workload import METRIC, Workload

SCHEMA = 1

# Warm-up ends when three slices agree, or after this: the table says which rows were not steady.
WARM_UP_SECONDS = 30.0  # at most

# Option of pytest-benchmark -> its own default, and ours, which replaces that and nothing that a user asks for.
BENCHMARK_DEFAULTS = {"max_time": (1.0, 3.0), "min_rounds": (5, 5), "precision": (None, 0.01)}
# p90 needs 44 samples, and a latency that stopped early at a stable mean would have no tail.
LATENCY_ROUNDS = 44
# On a GPU a round is many steps, so that the queue is full; on a CPU each step ends before the next.
GPU_ROUND_SECONDS = 0.1
# A loader hands out the batches it made ahead at once, and then none for a while: single batches mean nothing, and
# pytest-benchmark would conclude from the first ones that a round takes no time.
LOADER_ROUND_SECONDS = 0.5


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin, which in a checkout that is not installed nobody has done yet."""
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, "pixbench")


MATRIX = pytest.StashKey[Matrix]()


def _matrix(config: pytest.Config) -> Matrix:
    if MATRIX not in config.stash:
        option = {name: config.getoption(f"pixbench_{name.replace('-', '_')}") for name in plugin.OPTIONS}
        smoke = config.getoption("benchmark_disable", False) and not config.getoption("benchmark_enable", False)
        try:
            config.stash[MATRIX] = Matrix.from_options(option, bool(smoke))
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
    """Give each benchmark of this folder our timer, our stopping rule and its place."""
    ours = [
        item for item in items if item.path.parent == plugin.HERE and "workload" in getattr(item, "fixturenames", ())
    ]
    # All of them share this process, and one that keeps freed memory goes on doing so.
    items.sort(key=lambda item: item in ours and _workload_of(item).keeps_memory)
    for item in ours:
        task = _task(getattr(item, "function"))  # noqa: B009 - Item does not declare it
        item.add_marker(pytest.mark.benchmark(**_stopping(config, task)))
        # A warning from torch must not fail the measurement.
        item.add_marker(pytest.mark.filterwarnings("default"))


def _workload_of(item: Any) -> Workload:
    return Workload.from_id(item.callspec.params["workload"])


def _stopping(config: pytest.Config, task: str) -> dict[str, Any]:
    device = _matrix(config).device.kind
    options: dict[str, Any] = {"timer": CLOCKS[device], "group": task, "disable_gc": True}
    for name, (theirs, ours) in BENCHMARK_DEFAULTS.items():
        value = config.getoption(f"benchmark_{name}", theirs)
        if value is None or value == theirs or float(value) == theirs:
            options[name] = ours
    if task == "latency":
        options |= {"precision": None}
        if "min_rounds" in options:
            options["min_rounds"] = LATENCY_ROUNDS
    elif task in ("loading", "end_to_end"):
        options["min_time"] = LOADER_ROUND_SECONDS
    elif device == "cuda":
        options["min_time"] = GPU_ROUND_SECONDS
    return options


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> Workload:
    """The workload whose id is the parameter."""
    task = _task(request.function)
    return next(w for w in _matrix(request.config).workloads(task) if w.id == request.param)


@pytest.fixture
def measure(benchmark: Any, workload: Workload, pytestconfig: pytest.Config) -> Iterator[Callable[[], None]]:
    """Build the step, warm it up, hand it to pytest-benchmark, measure its memory."""
    from bench.errors import out_of_memory
    from bench.sides.session import Session

    matrix, session = _matrix(pytestconfig), Session()

    def run() -> None:
        conditions = matrix.reading if workload.reads_files else matrix.conditions
        built = session.build([workload.to_json()], asdict(conditions))
        step = session.steps[workload.id]
        # Dashboards go by these two. The path of a file may change, the id does not.
        benchmark.name = benchmark.fullname = workload.id
        benchmark.extra_info |= {"workload": workload.to_json(), "images": step.images}
        benchmark.extra_info |= {key: built[key] for key in ("compile_seconds", "cache", "notes")}
        benchmark.extra_info |= _cost(workload)
        if benchmark.enabled:
            benchmark.extra_info["stable"] = session.warm(workload.id, WARM_UP_SECONDS)["stable"]
        gc.collect()
        benchmark(step.call)
        if step.module is not None:
            benchmark.extra_info["memory"] = session.memory(workload.id)

    def run_or_report() -> None:
        if workload.task in ("loading", "end_to_end"):
            from loaders import engines

            engine = workload.loader or workload.subject
            missing = engines.missing(engine, workload.device)
            if missing is not None:
                pytest.skip(f"loader {engine}: {missing}")
        try:
            run()
        except REPORTED as error:
            pytest.fail(str(error), pytrace=False)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason = (str(error).splitlines() or ["allocation failed"])[0]
            pytest.fail(f"out of memory: {workload.id}: {reason}", pytrace=False)

    yield run_or_report
    session.release(list(session.steps))


@cache
def _cost(workload: Workload) -> dict[str, Any]:
    """Counted for one image: {"params", "macs", "flops"}; nothing for loaders and kernels."""
    if not workload.classes:
        return {}
    from bench.inspecting.cost import count

    cost = count(workload.subject, workload.classes, workload.size)
    flops = cost.training_flops if workload.training else cost.flops
    return {"params": cost.params, "macs": cost.macs, "flops": flops}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the fingerprint alone: pytest-benchmark warns whenever two machine_info differ in anything."""
    from bench.machine.facts import describe

    machine_info["pixbench"] = describe(device=_matrix(config).device.kind)["fingerprint"]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Add "schema", the whole "machine", the "reference", and to each benchmark its rates and percentiles."""
    from bench.machine.facts import describe

    output_json["schema"] = SCHEMA
    matrix = _matrix(config)
    output_json["machine"] = describe(device=matrix.device.kind)
    output_json["reference"] = _pinned(matrix.device.kind, matrix.threads)
    measured = {benchmark.fullname: benchmark for benchmark in benchmarks if not benchmark.has_error}
    for stored in output_json["benchmarks"]:
        benchmark = measured[stored["fullname"]]
        if "workload" in stored["extra_info"]:
            stored["extra_info"] |= derived(stored["extra_info"], benchmark.stats.data, benchmark.iterations)


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


def derived(extra: dict[str, Any], seconds: list[float], iterations: int) -> dict[str, Any]:
    """Throughput in images a second, or latency percentiles in seconds, from seconds a step.

    A percentile with too few samples is None, and "missing" says how many it needs.
    """
    from results.errors import RecordError
    from results.stats import median, percentile

    task = extra["workload"]["task"]
    if task != "latency":
        return {METRIC[task]: extra["images"] / median(seconds)}
    values: dict[str, float | None] = {METRIC[task]: median(seconds)}
    missing = {}
    for name, q in (("inference_latency_p90", 0.9), ("inference_latency_p99", 0.99)):
        try:
            if iterations > 1:
                raise RecordError(f"each sample is a mean of {iterations} calls")
            values[name] = percentile(seconds, q)
        except RecordError as error:
            values[name], missing[name] = None, str(error)
    return {**values, "missing": missing}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Add a table of throughputs below pytest-benchmark's of times, with the rows that were not steady."""
    from results.tables import quantity, render

    session = getattr(config, "_benchmarksession", None)
    rows = []
    for measured in getattr(session, "benchmarks", ()):
        extra = measured.extra_info
        if measured.has_error or not measured.stats or "workload" not in extra:
            continue
        values = derived(extra, measured.stats.data, measured.iterations)
        rates = [quantity(value, "images/s") for name, value in values.items() if name.endswith("throughput")]
        notes = [*extra.get("notes", []), *([] if extra.get("stable", True) else ["not steady after warm-up"])]
        rows.append([measured.fullname, quantity(measured.stats.median, "s"), *(rates or ["-"]), "; ".join(notes)])
    if rows:
        terminalreporter.write_sep("-", "pixbench")
        terminalreporter.write(render(["workload", "step", "throughput", "notes"], rows))
