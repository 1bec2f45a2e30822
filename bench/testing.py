"""The fixture `pixbench` of users' own tests: speed as a row of pytest-benchmark, budgets, and duels.

With pixbench installed, every test may ask for it:

    def test_speed(pixbench):
        pixbench("nets.py:build", task="inference", batch=8)

    def test_budget(pixbench):
        pixbench.cost("nets.py:build", params=5e6, macs=1e9)
        pixbench.graph_breaks("nets.py:build", at_most=0)

    def test_duel(pixbench):
        pixbench.faster("nets.py:build", than="resnet18", times=1.2, batch=8)

A network is named as on the command line of `bench`, or given as a class or function. A FILE.py is looked for in
pytest's rootdir and then in the test file's own folder, wherever pytest was started; a package.module is found as the
test's own imports are. What cannot be measured fails the test in one line. A test that asks for `pixbench` is a
benchmark to --benchmark-skip and --benchmark-only.

Every pytest run of the environment loads this module, so it imports nothing heavy until the fixture is used.
"""

import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from bench.inspecting.cost import Cost
    from bench.timing.workload import Workload

Network: TypeAlias = str | Callable[..., object]
"""A name as on the command line, or a class, function or network."""

TASKS = ("latency", "inference", "training")
DEVICES = ("auto", "cpu", "cuda")


@pytest.fixture
def pixbench(request: pytest.FixtureRequest) -> "Pixbench":
    """Measures networks and holds them to budgets: see bench.testing.Pixbench, or `pydoc bench.testing`."""
    return Pixbench(request)


class Pixbench:
    """What the fixture `pixbench` gives to a test; call it for a row of pytest-benchmark."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __call__(
        self,
        network: Network,
        task: str = "inference",
        configuration: str = "fast",
        *,
        batch: int | None = None,
        size: int | None = None,
        classes: int | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Measure one step of a network as this test's row in pytest-benchmark's table, once a test.

        The step is warmed up and timed on the device's clock, as in `pytest bench`; the row's extra_info has the
        workload, parameters, MACs, memory in bytes, and images a second or percentiles in seconds. Benchmarks that are
        disabled (--benchmark-disable, pytest-xdist) take the step once. Runs in the test's process.

        Args:
            network: a name, class, function or network.
            task: latency (one image), inference or training.
            configuration: preset or levers, as behind the @ of a name: fast, naive, bf16-nhwc-compile.
            batch: images a step; None is as on the command line.
            size: height and width in pixels; None is the network's own.
            classes: logits; None is the network's own.
            device: auto, cpu or cuda.
            threads: CPU threads; None is every usable core.
        """
        from bench import rows
        from bench.machine.cpu import usable_cores
        from bench.timing.workload import Conditions

        with self._judged(network) as name:
            _check(task, device, batch=batch, size=size, classes=classes, threads=threads)
            workload = _workload(name, task, configuration, device, batch, size, classes)
            if not isinstance(network, str):
                # Another object may have been called the same.
                rows.cost_of.cache_clear()
            # What takes no such image says so before anything is built.
            rows.cost_of(workload)
            options = rows.stopping(self._request.config, task, workload.device)
            marker = self._request.node.get_closest_marker("benchmark")
            # First, so that it is the one that counts; what the test's own says goes before.
            own = marker.kwargs if marker else {}
            self._request.node.add_marker(pytest.mark.benchmark(**{**options, **own}), append=False)
            benchmark = self._request.getfixturevalue("benchmark")
            if benchmark.stats is not None:
                pytest.fail(
                    "pixbench(...) was called twice in one test, and a test is one row: parametrize it", pytrace=False
                )
            with _threads_kept():
                rows.measure(benchmark, workload, Conditions(threads=threads or usable_cores()))

    def cost(
        self,
        network: Network,
        *,
        params: float | None = None,
        weight_bytes: float | None = None,
        macs: float | None = None,
        flops: float | None = None,
        activations: float | None = None,
        classes: int | None = None,
        size: int | None = None,
    ) -> "Cost":
        """Fail the test if a network costs more than this for one image; nothing is timed.

        Args:
            network: a name, class, function or network.
            params, weight_bytes, macs, flops, activations: at most so many, see bench.Cost; None is any number.
            classes: logits; None is the network's own.
            size: height and width in pixels; None is the network's own.

        Returns:
            all that was counted.
        """
        from bench.api import cost

        limits = {
            "params": params,
            "weight_bytes": weight_bytes,
            "macs": macs,
            "flops": flops,
            "activations": activations,
        }
        with self._judged(network) as name:
            [counted] = cost(name, classes=classes, size=size)
        found = {key: getattr(counted, key) for key in limits}
        # Not `>`: a limit that is not a number would let everything pass.
        over = [
            f"{found[key]:,} {key}, at most {limit:,.0f} allowed"
            for key, limit in limits.items()
            if limit is not None and not found[key] <= limit
        ]
        if over:
            pytest.fail(f"{counted.model} has {'; '.join(over)}", pytrace=False)
        return counted

    def graph_breaks(
        self, network: Network, at_most: int = 0, *, classes: int | None = None, size: int | None = None
    ) -> None:
        """Fail the test if torch.compile would break the graph of a forward pass more often; says where and why.

        Nothing is compiled: it is only traced, on the CPU, with two images. Other compiled code of the test's process
        is compiled again when it is called next.

        Args:
            network: a name, class, function or network.
            at_most: breaks that are allowed.
            classes: logits; None is the network's own.
            size: height and width in pixels; None is the network's own.
        """
        with self._judged(network) as name:
            import torch

            from bench.inspecting.inductor import graph_breaks
            from models import zoo

            zoo.check(name)
            pixels = size or zoo.default_size(name)
            breaks = graph_breaks(zoo.build(name, classes).eval(), torch.zeros(2, 3, pixels, pixels))
        if len(breaks) > at_most:
            listed = "; ".join(f"{each['where']}: {each['reason']}" for each in breaks)
            count = f"{len(breaks)} graph break{'s' * (len(breaks) > 1)}"
            pytest.fail(f"{name} has {count}, at most {at_most} allowed: {listed}", pytrace=False)

    def faster(
        self,
        network: Network,
        *,
        than: Network,
        times: float = 1.0,
        task: str = "inference",
        batch: int | None = None,
        size: int | None = None,
        classes: int | None = None,
        device: str = "auto",
        threads: int | None = None,
        budget: float | None = None,
    ) -> None:
        """Pass if one network is at least `times` as fast as another, both measured in turns by `bench.compare`.

        The test passes if the whole interval of the speed-up is at `times` or above, fails if the whole interval is
        below, and is skipped, with the interval as its reason, where that is not certain. Where benchmarks are disabled
        it is skipped too. Nothing is stored.

        Args:
            network, than: names, with @CONFIGURATION if not fast, or classes or functions in files or modules.
            times: speed-up that is wanted; 0.95 allows a network to be 5 % slower.
            task: latency, inference or training.
            batch, size, classes, device, threads, budget: as in bench.compare; the budget is in seconds.
        """
        from bench import rows
        from bench.api import compare
        from bench.comparing.operands import parse_operands
        from bench.errors import UsageError
        from bench.timing.workload import METRIC
        from models.objects import name_of
        from results.tables import ratio_text
        from results.verdict import BETTER, WORSE, at_least, speed_up

        with rows.one_line("this duel"):
            _check(task, device, batch=batch, size=size, classes=classes, threads=threads)
            if not times > 0:
                raise UsageError(f"times is {times}; it is above 0")
            words = [self._found(name_of(each)) for each in (than, network)]
            parse_operands(words)
        if rows.disabled(self._request.config):
            pytest.skip("benchmarks are disabled, and a duel is nothing else")
        with rows.one_line(" against ".join(words)):
            record = compare(
                *words,
                tasks=task,
                batch=batch,
                size=size,
                classes=classes,
                device=device,
                threads=threads,
                budget=budget,
                energy=False,
                store=False,
            )
        metric = record.metric(METRIC[task])
        ratio = speed_up(metric) if metric is not None else None
        if metric is None or ratio is None:
            reasons = [str(value.missing) for value in metric.values.values() if value.missing] if metric else []
            pytest.fail(f"{task} of {words[1]} and {words[0]}: {'; '.join(reasons) or 'no number'}", pytrace=False)
        said = f"{words[1]} is {ratio_text(ratio)} times as fast as {words[0]} in {task}, and {times:g} is asked for"
        verdict = at_least(ratio, times)
        if verdict == WORSE:
            pytest.fail(said, pytrace=False)
        if verdict != BETTER:
            pytest.skip(f"not certain: {said}; a larger budget= narrows the interval")

    @contextmanager
    def _judged(self, network: Network) -> Iterator[str]:
        """A name that leads to the network in this process; errors inside fail the test in one line."""
        from bench import rows
        from bench.errors import UsageError
        from models.code import naming

        # Warnings of torch and of the network must not fail a measurement, nor its compiler's notes fill a report.
        with rows.one_line(str(network)), warnings.catch_warnings(), _not_logged("torch.__trace"):
            warnings.simplefilter("default")
            if isinstance(network, str) and "@" in network.partition("[")[0]:
                raise UsageError(f"{network}: name the network alone; the configuration of a row is an argument")
            with naming(self._found(network) if isinstance(network, str) else network) as name:
                yield name

    def _found(self, name: str) -> str:
        """A name whose file, if it names one, is found from the working directory."""
        from models.names import Name

        parsed = Name(name.partition("[")[0])
        if not (parsed.is_code and parsed.is_file) or Path(parsed.place).is_absolute():
            return name
        for folder in (self._request.config.rootpath, self._request.path.parent):
            path = folder / parsed.place
            if path.is_file():
                return os.path.relpath(path) + name.removeprefix(parsed.place)
        return name


def _check(task: str, device: str = "auto", **counts: int | None) -> None:
    """Raise UsageError for what a test says wrongly."""
    from bench.errors import UsageError

    for name, value, known in (("task", task, TASKS), ("device", device, DEVICES)):
        if value not in known:
            raise UsageError(f"{name} is {value!r}; it is {', '.join(known[:-1])} or {known[-1]}")
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise UsageError(f"{name} is {count!r}; it is a whole number above 0")
    if task == "latency" and counts.get("batch") not in (None, 1):
        raise UsageError(f"latency is that of one image, and batch is {counts['batch']}")


def _workload(
    name: str,
    task: str,
    configuration: str,
    device: str,
    batch: int | None,
    size: int | None,
    classes: int | None,
) -> "Workload":
    """The workload that a test asks for, with every default filled in.

    Raises:
        BenchError, ModelError: something of it does not exist, or cannot run here.
    """
    from bench.defaults import BATCH, TRAINING_BATCH
    from bench.machine.devices import choose_device
    from bench.matrix import device_facts
    from bench.timing.workload import Workload
    from models import zoo
    from models.configuration import parse

    zoo.check(name)
    kind = choose_device(device)
    usual = {"latency": 1, "inference": BATCH[kind], "training": TRAINING_BATCH[kind]}[task]
    return Workload(
        task,
        name,
        parse(configuration, device_facts(kind), task == "training"),
        batch=batch or usual,
        size=size or zoo.default_size(name),
        classes=classes or zoo.default_classes(name),
        device=kind,
    )


@contextmanager
def _not_logged(name: str) -> Iterator[None]:
    """Keep a logger's records from pytest, which prints all of them with a test that fails."""
    logger = logging.getLogger(name)
    theirs = [handler for handler in logger.handlers if type(handler).__module__.startswith("_pytest.")]
    for handler in theirs:
        logger.removeHandler(handler)
    try:
        yield
    finally:
        for handler in theirs:
            logger.addHandler(handler)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Leave torch with as many threads as it had: measuring sets them."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Tests that ask for `pixbench` are benchmarks to pytest-benchmark, which goes by the names of fixtures.

    They ask for its fixture only where they make a row: it complains of one that was not used.
    """
    names = {id(found): found for item in items if "pixbench" in (found := getattr(item, "fixturenames", []))}
    added = [found for found in names.values() if "benchmark" not in found]
    for found in added:
        found.append("benchmark")
    try:
        return (yield)
    finally:
        for found in added:
            found.remove("benchmark")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Add a table of throughputs below pytest-benchmark's of times, with the rows that were not steady."""
    benchmarks = getattr(getattr(config, "_benchmarksession", None), "benchmarks", ())
    if any("workload" in measured.extra_info for measured in benchmarks):
        from bench import rows

        if text := rows.table(benchmarks):
            terminalreporter.write_sep("-", "pixbench")
            terminalreporter.write(text)
