"""A row of pytest-benchmark: a step, warmed up, on the clock of its device, with facts beside it.

`pytest bench` and the fixture `pixbench` of users' own tests make their rows here.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from bench.errors import REPORTED, out_of_memory
from bench.timing.clock import CLOCKS
from bench.timing.workload import METRIC, Conditions, Workload
from results.errors import RecordError
from results.stats import median, percentile
from results.tables import quantity, render

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


def disabled(config: pytest.Config) -> bool:
    """Whether benchmarks are to run once and be timed not at all."""
    return bool(config.getoption("benchmark_disable", False) and not config.getoption("benchmark_enable", False))


def stopping(config: pytest.Config, task: str, device: str) -> dict[str, Any]:
    """Keyword arguments of pytest.mark.benchmark for a task on a device: our timer, our stopping rule, its place."""
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


def measure(benchmark: Any, workload: Workload, conditions: Conditions) -> None:
    """Build the step, warm it up, hand it to pytest-benchmark, measure its memory, and let go of it.

    A benchmark that is disabled calls the step once.

    Args:
        benchmark: pytest-benchmark's fixture, made with the options of `stopping`; its extra_info gets "workload",
            "images", what building it took, "params", "macs" and "flops" of a network, "memory" in bytes, and the
            rates and percentiles of `derived`.

    Raises:
        BenchError, DataError, ModelError: it cannot be built or run.
    """
    from bench.sides.session import Session

    session = Session()
    try:
        built = session.build([workload.to_json()], conditions.to_json())
        step = session.steps[workload.id]
        benchmark.extra_info |= {"workload": workload.to_json(), "images": step.images}
        benchmark.extra_info |= {key: built[key] for key in ("compile_seconds", "cache", "notes")}
        benchmark.extra_info |= cost_of(workload)
        if benchmark.enabled:
            benchmark.extra_info["stable"] = session.warm(workload.id, WARM_UP_SECONDS)["stable"]
        gc.collect()
        benchmark(step.call)
        if step.module is not None:
            benchmark.extra_info["memory"] = session.memory(workload.id)
        if benchmark.stats is not None:
            times = benchmark.stats
            benchmark.extra_info |= derived(benchmark.extra_info, times.stats.data, times.iterations)
    finally:
        session.release(list(session.steps))


@cache
def cost_of(workload: Workload) -> dict[str, Any]:
    """Counted for one image: {"params", "macs", "flops"}; nothing for loaders and kernels."""
    if not workload.classes:
        return {}
    from bench.inspecting.cost import count

    cost = count(workload.subject, workload.classes, workload.size)
    flops = cost.training_flops if workload.training else cost.flops
    return {"params": cost.params, "macs": cost.macs, "flops": flops}


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Errors that a user can act on fail the test with their own words, without a traceback.

    Args:
        what: ran out of memory, if that is what happened.
    """
    try:
        yield
    except REPORTED as error:
        words = str(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        words = f"out of memory: {what}: {(str(error).splitlines() or ['allocation failed'])[0]}"
    else:
        return
    raise pytest.fail.Exception(words, pytrace=False) from None


def derived(extra: dict[str, Any], seconds: Sequence[float], iterations: int) -> dict[str, Any]:
    """Throughput in images a second, or latency percentiles in seconds, from seconds a step.

    A percentile with too few samples is None, and "missing" says how many it needs.
    """
    task = extra["workload"]["task"]
    if task == "step":
        return {METRIC[task]: median(seconds)}
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


def table(benchmarks: Sequence[Any]) -> str:
    """The rows of a session with their throughputs and with what was not steady; "" without any.

    Args:
        benchmarks: pytest-benchmark's, those of other tests among them.
    """
    rows = []
    for measured in benchmarks:
        extra = measured.extra_info
        if measured.has_error or not measured.stats or "workload" not in extra:
            continue
        rate = next((extra[name] for name in METRIC.values() if name.endswith("throughput") and name in extra), None)
        notes = [*extra.get("notes", []), *([] if extra.get("stable", True) else ["not steady after warm-up"])]
        rows.append(
            [
                measured.fullname,
                quantity(measured.stats.median, "s"),
                "-" if rate is None else quantity(rate, "images/s"),
                "; ".join(notes),
            ]
        )
    return render(["workload", "step", "throughput", "notes"], rows) if rows else ""
