"""Hooks of `pytest bench`: workloads as parameters, the device's clock, and facts beside the times.

pytest-benchmark keeps time and decides when to stop; its timer is ours, which waits for the device. A
benchmark's name in JSON is its workload's id. With --benchmark-disable each body runs once, on little.
"""

import gc
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

from bench import plugin
from bench.errors import REPORTED, BenchError
from bench.inspecting import reference
from bench.matrix import Matrix, data_name, kernels_for
from bench.timing.clock import CLOCKS
from bench.timing.workload import Conditions, Workload

SCHEMA = 1

# The generated set; the smoke run makes a tiny one in a second.
IMAGES, SMOKE_IMAGES = 1000, 64

# Warm-up ends when three slices agree, or here: the table says which rows were still moving.
WARM_UP_SECONDS = 3.0

# What our benchmarks ask of pytest-benchmark where the command line leaves its own defaults.
BENCHMARK_DEFAULTS = {"max_time": (1.0, 3.0), "min_rounds": (5, 5), "precision": (None, 0.01)}
# p90 needs 44 samples, and a latency that stopped early at a stable mean would have no tail.
LATENCY_ROUNDS = 44
# On a GPU a round is many steps, so that the queue is full; on a CPU each step ends before the next.
GPU_ROUND_SECONDS = 0.1
# A loader hands out batches that it made ahead for nothing and then none for a while: single batches mean
# nothing, and pytest-benchmark would take the free ones for the price of all when it decides how many to time.
LOADER_ROUND_SECONDS = 0.5

THROUGHPUT = {
    "inference": "inference_throughput",
    "training": "training_throughput",
    "end_to_end": "end_to_end_throughput",
    "loading": "loader_throughput",
    "kernel": "kernel_throughput",
}


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """In a checkout that is not installed nobody has loaded the plugin yet."""
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, "pixbench")


@dataclass(frozen=True)
class Survey:
    """The command line, understood: what to measure and under which conditions."""

    matrix: Matrix
    conditions: Conditions
    root: Path | None
    images: int
    smoke: bool
    # The smoke run compiles one model, unless the user named configurations.
    compiles: bool

    @classmethod
    def from_config(cls, config: pytest.Config) -> "Survey":
        """Read pytest's options.

        Raises:
            pytest.UsageError: a name that means nothing, a device that is not here.
        """
        option = {name: config.getoption(f"pixbench_{name.replace('-', '_')}") for name in plugin.OPTIONS}
        try:
            return cls._from_options(option, _disabled(config))
        except REPORTED as error:
            raise pytest.UsageError(str(error)) from error

    @classmethod
    def _from_options(cls, option: dict[str, Any], smoke: bool) -> "Survey":
        from bench.machine.cpu import usable_cores
        from bench.machine.devices import choose_device
        from loaders import engines

        if option["device"] not in ("auto", "cpu", "cuda"):
            raise BenchError(f"--device is auto, cpu or cuda, not {option['device']!r}")
        device = choose_device(option["device"])
        root = Path(option["data"]) if option["data"] else None
        images = SMOKE_IMAGES if smoke else IMAGES
        configurations = _words(option["configurations"])
        compiles = smoke and configurations == ("fast",)
        for name in _words(option["loaders"]):
            engines.check(name)
        matrix = Matrix(
            models=_words(option["models"]),
            # Compiling takes longer than the rest of a smoke run together.
            configurations=("naive",) if compiles else configurations,
            loaders=_words(option["loaders"]),
            kernels=kernels_for(device),
            device=device,
            batch=option["batch"] or (2 if smoke else 256 if device == "cuda" else 32),
            training_batch=option["training-batch"] or (2 if smoke else 256 if device == "cuda" else 8),
            size=option["size"] or (64 if smoke else 0),
            data=data_name(root, images),
        )
        conditions = Conditions(threads=option["threads"] or usable_cores())
        survey = cls(matrix, conditions, root, images, smoke, compiles)
        matrix.check(survey.facts)
        return survey

    @cached_property
    def facts(self) -> Any:
        from models.configuration import Device

        if self.matrix.device == "cpu":
            return Device.from_cpu()
        from bench.timing.step import open_device
        from models.prepare import device_facts

        return device_facts(open_device(self.matrix.device))

    def workloads(self, task: str) -> list[Workload]:
        """The workloads of one task. A smoke run builds each model, and compiles and trains the first."""
        if not self.smoke:
            return self.matrix.workloads(task, self.facts)
        one = replace(self.matrix, models=self.matrix.models[:1])
        if task != "inference":
            return one.workloads(task, self.facts)
        found = self.matrix.workloads(task, self.facts)
        if self.compiles:
            found += replace(one, configurations=("fast",)).workloads(task, self.facts)
        return list(dict.fromkeys(found))

    @cached_property
    def reading(self) -> Conditions:
        """The conditions of what reads files: the images exist and all of them decode."""
        from loaders.datasets import open_dataset
        from loaders.images import require_readable
        from loaders.sample import default_sample

        root = self.root or default_sample(self.images)
        require_readable(open_dataset(root, "train"), self.conditions.threads)
        return replace(self.conditions, data_root=str(root))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _disabled(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_disable", False) and not config.getoption("benchmark_enable", False))


SURVEY = pytest.StashKey[Survey]()


def _survey(config: pytest.Config) -> Survey:
    if SURVEY not in config.stash:
        config.stash[SURVEY] = Survey.from_config(config)
    return config.stash[SURVEY]


def pytest_sessionstart(session: pytest.Session) -> None:
    """A mistyped name is one line and exit code 4, not an error of every file."""
    _survey(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" not in metafunc.fixturenames:
        return
    task = metafunc.function.__name__.removeprefix("test_")
    # Parameters are texts, so that they are stored in JSON as they are.
    ids = [workload.id for workload in _survey(metafunc.config).workloads(task)]
    metafunc.parametrize("workload", ids, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each benchmark of this folder our timer and our stopping rule."""
    for item in items:
        if item.path.parent != plugin.HERE or "workload" not in getattr(item, "fixturenames", ()):
            continue
        task = getattr(item, "function").__name__.removeprefix("test_")  # noqa: B009 - Item does not declare it
        item.add_marker(pytest.mark.benchmark(**_stopping(config, task)))
        # A warning of torch's is no reason to lose the measurement.
        item.add_marker(pytest.mark.filterwarnings("default"))


def _stopping(config: pytest.Config, task: str) -> dict[str, Any]:
    device = _survey(config).matrix.device
    options: dict[str, Any] = {"timer": CLOCKS[device], "group": task, "disable_gc": True}
    for name, (theirs, ours) in BENCHMARK_DEFAULTS.items():
        given = config.getoption(f"benchmark_{name}", theirs)
        if given is None or given == theirs or float(given) == theirs:
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
    task = request.function.__name__.removeprefix("test_")
    return next(w for w in _survey(request.config).workloads(task) if w.id == request.param)


@pytest.fixture
def measure(benchmark: Any, workload: Workload, pytestconfig: pytest.Config) -> Iterator[Callable[[], None]]:
    """Build the step, warm it up, hand it to pytest-benchmark, take its memory; in this order and once."""
    from bench.sides.session import Session

    survey, session = _survey(pytestconfig), Session()

    def run() -> None:
        conditions = survey.reading if workload.reads_files else survey.conditions
        built = session.build([workload.to_json()], asdict(conditions))
        step = session.steps[workload.id]
        # The path of a file may change, the id does not: dashboards go by these two.
        benchmark.name = benchmark.fullname = workload.id
        benchmark.extra_info |= {"workload": workload.to_json(), "images": step.images}
        benchmark.extra_info |= {key: built[key] for key in ("compile_seconds", "cache", "notes")}
        benchmark.extra_info |= _cost(workload)
        if benchmark.enabled:
            benchmark.extra_info["stable"] = session.warm(workload.id, WARM_UP_SECONDS)["stable"]
        gc.collect()
        benchmark(step.call)
        if step.module is not None:
            benchmark.extra_info["memory"] = _memory(session, workload.id)

    def reported() -> None:
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
            if "out of memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            pytest.fail(f"out of memory: {workload.id}: {str(error).splitlines()[0]}", pytrace=False)

    yield reported
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


def _memory(session: Any, id: str) -> dict[str, Any]:
    try:
        return dict(session.memory(id))
    except OSError as error:
        # Containers may forbid resetting the high-water mark of the resident set.
        return {"missing": f"cannot be read here: {error}"}


# --- what is stored ----------------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Only what must agree: pytest-benchmark warns whenever two machine_info differ in anything."""
    from bench.machine.facts import describe

    machine_info["pixbench"] = describe(device=_survey(config).matrix.device)["fingerprint"]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Add "schema", the whole "machine", the "reference", and to each benchmark its rates and percentiles."""
    from bench.machine.facts import describe

    output_json["schema"] = SCHEMA
    survey = _survey(config)
    output_json["machine"] = describe(device=survey.matrix.device)
    output_json["reference"] = _pinned(survey.matrix.device, survey.conditions.threads)
    samples = {found.fullname: found for found in benchmarks if not found.has_error}
    for stored in output_json["benchmarks"]:
        found = samples[stored["fullname"]]
        if "workload" in stored["extra_info"]:
            stored["extra_info"] |= derived(stored["extra_info"], found.stats.data, found.iterations)


@cache
def _pinned(device: str, threads: int) -> dict[str, Any]:
    """The pinned reference, once for all files of a run."""
    return reference.to_record([reference.measure(device, threads)])


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Append the result to the history, in the form that --benchmark-json has."""
    yield
    _append(session.config)


def _append(config: pytest.Config) -> None:
    from pytest_benchmark.utils import safe_dumps

    from results import store
    from results.errors import RecordError

    session, folder = getattr(config, "_benchmarksession", None), config.getoption("pixbench_store")
    measured = [found for found in getattr(session, "benchmarks", None) or [] if found and not found.has_error]
    if session is None or not folder or not measured:
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

    A percentile that the samples do not support is None, and "missing" says what it needs.
    """
    from results.errors import RecordError
    from results.stats import median, percentile

    task = extra["workload"]["task"]
    if task != "latency":
        return {THROUGHPUT[task]: extra["images"] / median(seconds)}
    values: dict[str, float | None] = {"inference_latency_p50": median(seconds)}
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
    """Below pytest-benchmark's table of times: the same as images a second, and rows that were not steady."""
    from results.tables import quantity, render

    session = getattr(config, "_benchmarksession", None)
    rows = []
    for found in getattr(session, "benchmarks", None) or []:
        extra = found.extra_info
        if found.has_error or not found.stats or "workload" not in extra:
            continue
        values = derived(extra, found.stats.data, found.iterations)
        rate = [value for name, value in values.items() if name.endswith("throughput")]
        notes = list(extra.get("notes", []))
        if not extra.get("stable", True):
            notes.append("not steady after warm-up")
        rows.append(
            [
                found.fullname,
                quantity(found.stats.median, "s"),
                quantity(rate[0], "images/s") if rate else "-",
                "; ".join(notes),
            ]
        )
    if rows:
        terminalreporter.write_sep("-", "pixbench")
        terminalreporter.write(render(["workload", "step", "throughput", "notes"], rows))
