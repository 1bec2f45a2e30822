"""The comparison on fake processes: known speeds in, known ratios out, and every failure a row."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_worker import FakeWorker, Machine, keep_time, spawner

from bench.comparing import comparison as comparison_module
from bench.comparing.comparison import Comparison
from bench.comparing.operands import Operand, spread
from bench.comparing.plan import Settings
from bench.errors import BenchError, OutOfMemoryError, WorkerError, WorkloadError
from bench.machine import telemetry
from bench.timing.duel import LEAST_ROUNDS
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import Choice
from results.record import METRICS, Metric

SETTINGS = Settings("cpu", 32, 16, 0, 0, "synthetic", 1, 0, 0, "data")
MODELS = [Operand("a", "lenet", Choice("fast")), Operand("b", "cifar_resnet18", Choice("fast"))]
SPEED = {"latency": 0.01, "inference": 0.1, "training": 0.5, "end_to_end": 0.55, "loading": 0.02}


def b_is_a_quarter_slower(label: str, workload: Workload) -> float:
    return SPEED[workload.task] * (1.25 if label.startswith("b") else 1.0)


def compare(
    operands: list[Operand] = MODELS,
    machine: Machine | None = None,
    budget: float = 0.0,
    seconds: Any = b_is_a_quarter_slower,
    state: Any = None,
    tasks: str = "",
    device: str = "cpu",
    beside: str = "none",
    quick: bool = False,
    estimate: Any = None,
    over: str = "",
    **options: Any,
) -> tuple[dict[str, Metric], Comparison, list[str]]:
    found: dict[str, Metric] = {}
    said: list[str] = []
    on = machine or Machine()
    comparison = Comparison(
        operands,
        replace(SETTINGS, tasks=tasks, device=device, beside=beside, quick=quick, over=over),
        Conditions(),
        lambda m: found.update({m.name: m}),
        warn=said.append,
        state=state,
        spawn=spawner(on, seconds, **options),
        estimate=estimate,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            keep_time(on, patch, comparison_module)
            comparison.run(budget)
    finally:
        assert on.alive == 0, "a process is left"
    return found, comparison, said


def test_first_estimates_come_before_anything_is_compiled_and_are_not_kept() -> None:
    machine, estimates = Machine(), list[Metric]()
    machine.compiler = True

    def take(metric: Metric) -> None:
        assert not machine.prepared, "something was compiled before"
        estimates.append(metric)

    found, comparison, said = compare(machine=machine, estimate=take)
    rates = ["inference_latency_p50", "inference_throughput", "loader_throughput", "training_throughput"]
    assert [metric.name for metric in estimates] == rates
    assert machine.prepared
    assert said == []
    for metric in estimates:
        assert not any("compile" in id for id in metric.workloads.values())
        assert all(value.median for value in metric.values.values())
    assert estimates[1].ratio is not None
    assert estimates[1].ratio.estimate == pytest.approx(1 / 1.25)
    assert any("compile" in id for id in found["inference_throughput"].workloads.values())
    assert all(len(sample.blocks) == 1 for sample in comparison.samples.values())


def test_over_batch_each_value_is_compared_with_the_best_and_with_the_first_operand_there() -> None:
    points = spread(MODELS, "batch", (1, 2, 4))

    def seconds(label: str, workload: Workload) -> float:
        # b takes a quarter longer, and nothing is gained by batches above 2.
        return {1: 0.10, 2: 0.125, 4: 0.25}[workload.batch] * (1.25 if label.startswith("b") else 1.0)

    asked: list[str] = []

    def note(name: str, command: str, what: Any) -> None:
        if command == "parity":
            asked.append(name)

    found, _, _ = compare(points, budget=200.0, seconds=seconds, tasks="inference", over="batch=1,2,4", fail=note)
    rate = found["inference_throughput"]
    assert {label: round(value.median or 0) for label, value in rate.values.items()} == {
        **{"a batch=1": 10, "a batch=2": 16, "a batch=4": 16},
        **{"b batch=1": 8, "b batch=2": 13, "b batch=4": 13},
    }
    ratios = {(ratio.of, ratio.to): ratio for ratio in rate.comparisons}
    for at in (1, 2, 4):
        ratio = ratios[f"b batch={at}", f"a batch={at}"]
        assert ratio.estimate == pytest.approx(0.8, rel=0.05), "images, not batches, are compared"
        assert ratio.blocks >= 6
    [to] = {to for of, to in ratios if of == "a batch=1"}
    assert to in ("a batch=2", "a batch=4")
    assert ratios["a batch=1", to].estimate == pytest.approx(10 / 16, rel=0.05)
    assert set(found["inference_peak_bytes"].values) == {point.label for point in points}
    assert asked == ["a batch=1", "b batch=1"], "what is computed is the same at every value"
    assert rate.workloads["a batch=4"].split("/")[2] == "b4"


def test_over_threads_each_number_has_a_process_of_its_own() -> None:
    points, built = spread(MODELS[:1], "threads", (1, 2)), set()

    class Noting(FakeWorker):
        def answer_build(self, workloads: Any, command: str = "build", **more: Any) -> dict[str, Any]:
            built.add((self.name, more["conditions"]["threads"]))
            return super().answer_build(workloads, command, **more)

    machine = Machine()
    comparison = Comparison(
        points,
        replace(SETTINGS, tasks="inference", over="threads=1,2"),
        Conditions(),
        lambda metric: None,
        spawn=lambda name, environment: Noting(name, machine, b_is_a_quarter_slower),
    )
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, comparison_module)
        comparison.run(0.0)
    assert built == {("a threads=1", 1), ("a threads=2", 2)}
    assert {"process of a threads=1", "process of a threads=2"} <= {*machine.opened, *machine.forked}


def test_where_nothing_compiles_nothing_is_estimated_first() -> None:
    estimates: list[Metric] = []
    plain = [replace(operand, configuration=Choice("naive")) for operand in MODELS]
    compare(plain, estimate=estimates.append)
    assert estimates == []


def test_quick_ends_with_first_estimates() -> None:
    found, comparison, _ = compare(quick=True, budget=100.0)
    assert set(found) >= {"params", "inference_throughput", "training_throughput", "loader_throughput"}
    assert not {name for name in found if name.endswith("_peak_bytes")}
    assert found["inference_throughput"].ratio is not None
    assert found["inference_throughput"].ratio.low is None
    assert not any("compile" in id for metric in found.values() for id in metric.workloads.values())
    assert comparison.failures == []


def test_a_first_estimate_that_fails_is_a_row_with_its_reason() -> None:
    def fail(name: str, command: str, what: Any) -> None:
        if command == "build" and what.task == "training":
            raise OutOfMemoryError("out of memory: 2.1 GiB asked for")

    found, comparison, said = compare(quick=True, fail=fail)
    assert "out of memory" in (found["training_throughput"].values["a"].missing or "")
    assert found["inference_throughput"].values["a"].median
    assert comparison.failures == ["training of a", "training of b"]
    assert any("training: " in line for line in said)


def test_a_file_only_infers_and_is_compared_with_the_network_beside_it() -> None:
    file = Operand("b", "b.onnx", Choice("fast", file=".onnx"))
    again = Operand("c", "b.onnx", Choice(levers=("onnxruntime",), file=".onnx"))
    found, comparison, _ = compare([MODELS[0], file], tasks="inference,training")
    assert found["training_throughput"].values["b"].missing == "an exported file only infers"
    assert comparison.failures == []
    [note] = [note for note in found["inference_throughput"].notes if note.startswith("b: ")]
    assert "of their spread from lenet's in plain fp32" in note
    # The same file in the same engine could only be equal.
    assert compare([file, again], tasks="inference")[1].samples["inference"].parity == {}


@pytest.mark.parametrize("hosts", [True, False])
def test_every_promised_metric_is_there_and_right(hosts: bool) -> None:
    machine = Machine(hosts=hosts)
    found, comparison, said = compare(machine=machine, budget=100.0)
    assert set(found) == {name for name in METRICS if not name.startswith(("kernel_", "step_"))}
    assert said == []
    assert {name: sample.together for name, sample in comparison.samples.items()} == {
        # Both take the same batches: there is one side only.
        "latency": hosts, "inference": hosts, "loading": True, "training": hosts,
    }  # fmt: skip
    inference = found["inference_throughput"]
    assert inference.values["a"].median == pytest.approx(32 / 0.1)
    assert inference.values["b"].median == pytest.approx(32 / 0.125)
    assert inference.ratio is not None
    assert (inference.ratio.of, inference.ratio.to) == ("b", "a")
    assert inference.ratio.estimate == pytest.approx(1 / 1.25)
    assert inference.verdict == "worse"
    latency = found["inference_latency_p50"]
    assert latency.values["b"].median == pytest.approx(0.0125)
    assert latency.ratio is not None
    assert latency.ratio.estimate == pytest.approx(1.25)
    assert latency.verdict == "worse"
    assert found["training_throughput"].values["a"].median == pytest.approx(16 / 0.5)
    assert found["end_to_end_throughput"].values["a"].median == pytest.approx(16 / 0.55)


@pytest.mark.parametrize(("loading", "warmed"), [(0.02, False), (0.4, True)])
def test_feeding_is_warmed_up_unless_the_loader_is_many_times_as_fast_as_the_network(
    loading: float, warmed: bool
) -> None:
    asked: list[str] = []

    def note(name: str, command: str, what: Any) -> None:
        if command == "warm":
            asked.append(what.task)

    def seconds(label: str, workload: Workload) -> float:
        return loading if workload.task == "loading" else SPEED[workload.task]

    compare(seconds=seconds, fail=note)
    assert ("end_to_end" in asked) == warmed
    assert "training" in asked


def test_a_block_is_a_fresh_process_for_all_sides_and_one_that_is_not_timed() -> None:
    machine = Machine()
    compare(machine=machine, tasks="inference,loading")
    # One is started; the questions, the reference and the ceilings are asked of forks, as the turns are.
    assert machine.opened == ["a"]
    assert machine.forked == ["a", "a", "process 1", *machine.forked[3:]]
    assert sorted(machine.forked[3:]) == ["a", "b"], "loaders are alone: their threads would compete"


def test_code_that_cannot_hold_several_sides_has_processes_of_its_own() -> None:
    machine = Machine(hosts=False)
    found, _, _ = compare(machine=machine, tasks="inference")
    assert machine.forked == []
    assert found["inference_throughput"].values["b"].median == pytest.approx(32 / 0.125)


@pytest.mark.parametrize(
    ("tasks", "measured"),
    [
        ("training", {"training_throughput"}),
        ("end_to_end", {"training_throughput", "end_to_end_throughput"}),
        ("latency", {"inference_latency_p50"}),
        ("latency,inference", {"inference_latency_p50", "inference_throughput"}),
        ("loading,training", {"loader_throughput", "training_throughput"}),
    ],
)
def test_only_the_tasks_that_were_asked_for_are_measured(tasks: str, measured: set[str]) -> None:
    found, _, said = compare(tasks=tasks)
    assert {name for name in found if name.endswith(("_throughput", "_p50"))} == measured
    assert all(found[name].values["a"].median for name in measured)
    # A roof is that of a whole step.
    known = bool({"inference", "training", "end_to_end"} & set(tasks.split(",")))
    assert (found["roof_fraction"].values["a"].median is not None) == known
    assert said == []


class Gpu:
    """A sensor that always reads the same."""

    missing: dict[str, str] = {}
    counter_seconds = 0.1

    def sample(self) -> telemetry.Sample:
        return telemetry.Sample(time.perf_counter(), 1.7e9, 400.0, 60.0, 0x004, 5 << 30)

    def joules(self) -> None:
        return None


def test_mfu_is_of_the_matrix_ceiling_alone() -> None:
    found, comparison, _ = compare()
    ceiling = next(iter(comparison.ceilings.values()))["flops"]
    flops = comparison.costs["a"]["training_flops"]
    assert found["mfu"].values["a"].median == pytest.approx(flops * 16 / 0.5 / ceiling)
    roof, mfu = (found[name].values["b"].median for name in ("roof_fraction", "mfu"))
    assert roof is not None
    assert mfu is not None
    assert mfu <= roof


def test_idle_power_is_measured_once_and_energy_can_be_left_out() -> None:
    asked: list[tuple[str, Any]] = []

    def energy(label: str, idle: Any) -> dict[str, Any]:
        asked.append((label, idle))
        return {"joules": 2.0, "idle_watts": 70.0}

    found, _, _ = compare(energy=energy)
    assert asked == [("a", None), ("b", 70.0)]
    assert found["energy_per_image"].values["b"].median == 2.0
    asked.clear()
    comparison = Comparison(
        MODELS, replace(SETTINGS, energy=False), Conditions(), lambda m: found.update({m.name: m}),
        spawn=spawner(Machine(), b_is_a_quarter_slower, energy=energy),
    )  # fmt: skip
    comparison.run(0.0)
    assert asked == []
    assert found["energy_per_image"].values["a"].missing == "not measured"


def test_a_gpu_is_watched_while_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "sensor_for", lambda device: Gpu())
    _, comparison, _ = compare(device="cuda", tasks="inference,training")
    found = comparison.machine["telemetry"]
    assert set(found) == {"inference", "training"}
    [block] = found["inference"]
    assert (block["clock_hertz"], block["watts"], block["power_limited"]) == (1.7e9, 400.0, True)
    assert block["samples"] >= 1
    # An interrupted run keeps it.
    _, resumed, _ = compare(device="cuda", tasks="inference,training", state=json.loads(json.dumps(comparison.state())))
    assert resumed.machine["telemetry"] == found


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_on_a_gpu_a_row_is_known_after_its_first_rounds(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_module, "sensor_for", lambda device: Gpu())
    found: dict[str, Metric] = {}

    def leave(name: str, command: str, what: Any) -> None:
        if command == "turns" and (device == "cpu" or "inference_throughput" in found):
            raise KeyboardInterrupt

    comparison = Comparison(
        MODELS, replace(SETTINGS, device=device, tasks="inference", rounds=9), Conditions(),
        lambda m: found.update({m.name: m}), spawn=spawner(Machine(), b_is_a_quarter_slower, fail=leave),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        comparison.run(0.0)
    assert ("inference_throughput" in found) == (device == "cuda")
    if device == "cuda":
        row = found["inference_throughput"]
        assert row.values["b"].median == pytest.approx(32 / 0.125)
        assert row.ratio is not None
        assert row.ratio.estimate == pytest.approx(1 / 1.25)
    # Half a block is none that a resumed run could go on from.
    assert comparison.state()["inference"]["blocks"] == []


def test_a_cpu_is_left_alone() -> None:
    _, comparison, _ = compare(tasks="inference")
    assert "telemetry" not in comparison.machine


def test_throughput_is_not_multiplied_by_the_number_of_steps() -> None:
    """optimum-benchmark's defect: images a second times steps. A slice's number of steps must not matter."""
    found, _, _ = compare(seconds=lambda label, w: 0.001)
    assert found["inference_throughput"].values["a"].median == pytest.approx(32 / 0.001)
    assert found["training_throughput"].values["a"].median == pytest.approx(16 / 0.001)


def test_a_percentile_without_enough_samples_says_how_many_are_missing() -> None:
    found, _, _ = compare(budget=60.0, tasks="latency", seconds=lambda label, w: 0.2)
    p99, p90 = found["inference_latency_p99"], found["inference_latency_p90"]
    assert p99.values["a"].median is None
    assert p99.values["a"].missing == f"needs 459 samples, has {p99.values['a'].samples}"
    assert p90.values["a"].median == pytest.approx(0.2)


def test_percentiles_are_of_all_samples_and_their_intervals_over_blocks() -> None:
    """An image takes twenty milliseconds, and ten times that once in 51; processes differ by 5 %."""
    machine = Machine(seed=2, noise=0.05)
    calls = 0

    def seconds(label: str, workload: Workload) -> float:
        nonlocal calls
        calls += 1
        return 0.2 if calls % 51 == 0 else 0.02

    found, comparison, _ = compare(machine=machine, budget=60.0, tasks="latency", seconds=seconds)
    p50, p90, p99 = (found[f"inference_latency_p{q}"] for q in (50, 90, 99))
    blocks = len(comparison.samples["latency"].blocks)
    assert blocks >= 6
    for metric, low, high in ((p50, 0.018, 0.022), (p90, 0.018, 0.026), (p99, 0.03, 0.3)):
        value, ratio = metric.values["a"], metric.ratio
        assert value.samples == blocks
        assert ratio is not None
        assert (ratio.blocks, ratio.within_process) == (blocks, False)
        assert low < value.low <= value.median <= value.high < high
        assert ratio.low < 1 < ratio.high


def test_out_of_memory_is_a_row_and_never_a_smaller_batch() -> None:
    """timm shrinks the batch and ranks the result among the others."""

    def fail(name: str, command: str, what: Any) -> BenchError | None:
        full = command == "build" and name == "b" and what.task == "training"
        return OutOfMemoryError("out of memory: 9 GiB asked for") if full else None

    machine = Machine()
    found, comparison, said = compare(machine=machine, fail=fail)
    assert comparison.failures == ["training of b"]
    training = found["training_throughput"]
    assert training.batch == 16
    assert training.values["b"].missing == "out of memory: 9 GiB asked for"
    assert training.values["a"].median == pytest.approx(32.0)
    assert training.ratio is None
    assert found["inference_throughput"].ratio is not None
    assert found["training_peak_bytes"].values["b"].missing == "out of memory: 9 GiB asked for"
    assert any("out of memory" in line for line in said)
    assert machine.alive == 0
    _, resumed, _ = compare(state=json.loads(json.dumps(comparison.state())))
    assert resumed.failures == ["training of b"]


@pytest.mark.parametrize("hosts", [True, False])
def test_a_side_that_dies_in_its_turn_is_reported_and_the_other_rows_go_on(hosts: bool) -> None:
    def fail(name: str, command: str, what: Any) -> BenchError | None:
        dead = command == "slice" and name == "a" and what.task == "inference"
        return WorkerError("the process measuring a ended (signal SIGSEGV)", "  boom") if dead else None

    found, comparison, said = compare(machine=Machine(hosts=hosts), fail=fail)
    assert found["inference_throughput"].values["a"].missing == "the process measuring a ended (signal SIGSEGV)"
    assert found["inference_throughput"].values["b"].median is not None
    assert found["training_throughput"].values["a"].median is not None
    assert any("boom" in line for line in said)
    assert comparison.failures == ["inference of a"]
    assert not comparison.apart


@pytest.mark.parametrize("command", ["turns", "switching"])
@pytest.mark.parametrize("guilty", [True, False])
def test_a_process_killed_under_all_of_its_sides_leads_to_processes_of_their_own(command: str, guilty: bool) -> None:
    def fail(name: str, asked: str, what: Any) -> BenchError | None:
        killed = OutOfMemoryError(f"the process measuring {name} was killed: most likely the machine ran out of memory")
        if (name, asked) == ("process 1", command):
            return killed
        return killed if guilty and (name, asked) == ("b", "slice") else None

    found, comparison, _ = compare(tasks="inference", fail=fail)
    assert comparison.apart
    inference = found["inference_throughput"]
    assert inference.values["a"].median == pytest.approx(320.0)
    if guilty:
        assert "the process measuring b was killed" in (inference.values["b"].missing or "")
        assert comparison.failures == ["inference of b"]
    else:
        assert inference.values["b"].median is not None
        assert any("each in a process of its own" in note for note in inference.notes)


def test_a_process_that_others_are_forked_from_is_started_again_when_it_dies() -> None:
    machine = Machine()
    deaths = iter([None, OutOfMemoryError("the process measuring a was killed")])
    found, _, said = compare(
        machine=machine,
        tasks="inference",
        fail=lambda name, command, what: next(deaths, None) if command == "fork" else None,
    )
    assert machine.opened == ["a", "a"]
    assert said == []
    assert found["inference_throughput"].values["b"].median is not None


def test_a_side_that_fails_in_a_later_block_keeps_what_it_had() -> None:
    built = 0

    def fail(name: str, command: str, what: Any) -> BenchError | None:
        nonlocal built
        built += (name, command) == ("b", "build")
        return OutOfMemoryError("out of memory") if built > 2 and (name, command) == ("b", "build") else None

    found, comparison, _ = compare(tasks="latency", budget=30.0, fail=fail)
    assert len(comparison.samples["latency"].blocks) >= 6
    for name in ("inference_latency_p50", "inference_latency_p90"):
        latency = found[name]
        assert latency.values["a"].samples >= 6
        assert latency.values["b"].samples == 2
        assert latency.ratio is not None
        assert (latency.ratio.estimate, latency.ratio.blocks) == (pytest.approx(1.25), 2)
        assert "b failed in a later block: out of memory" in latency.notes


def test_no_process_is_left_when_a_run_is_interrupted() -> None:
    def fail(name: str, command: str, what: Any) -> BenchError | None:
        if command == "slice":
            raise KeyboardInterrupt
        return None

    machine = Machine()
    with pytest.raises(KeyboardInterrupt):
        compare(machine=machine, fail=fail)
    assert machine.forked
    assert machine.alive == 0


def test_a_run_goes_on_where_it_was_interrupted() -> None:
    stop = {"training"}

    def fail(name: str, command: str, what: Any) -> BenchError | None:
        if command == "slice" and what.task in stop:
            raise KeyboardInterrupt
        return None

    found: dict[str, Metric] = {}
    machine = Machine()
    first = Comparison(
        MODELS,
        SETTINGS,
        Conditions(),
        lambda m: found.update({m.name: m}),
        spawn=spawner(machine, b_is_a_quarter_slower, fail=fail),
    )
    with pytest.raises(KeyboardInterrupt):
        first.run(0)
    assert "inference_throughput" in found
    assert "training_throughput" not in found

    tasks: list[str] = []

    def seconds(label: str, workload: Workload) -> float:
        tasks.append(workload.task)
        return b_is_a_quarter_slower(label, workload)

    # Through text, as a record stores it.
    resumed, _, _ = compare(seconds=seconds, state=json.loads(json.dumps(first.state())))
    assert set(tasks) == {"training", "end_to_end"}
    assert resumed["inference_throughput"] == found["inference_throughput"]
    assert resumed["inference_latency_p99"] == found["inference_latency_p99"]
    assert resumed["training_throughput"].ratio is not None


def test_one_block_has_no_interval_and_more_have_one_over_what_processes_differ_by() -> None:
    found, _, _ = compare(machine=Machine(seed=1, noise=0.03), tasks="inference")
    metric = found["inference_throughput"]
    assert metric.ratio is not None
    assert (metric.ratio.blocks, metric.ratio.low, metric.ratio.high, metric.ratio.confidence) == (1, None, None, None)
    assert metric.values["a"].low is None
    assert metric.ratio.pairs > 1
    assert metric.verdict == "unsure"
    found, comparison, _ = compare(machine=Machine(seed=1, noise=0.03, drift=0.01), tasks="inference", budget=40.0)
    metric = found["inference_throughput"]
    assert metric.ratio is not None
    assert metric.ratio.blocks == len(comparison.samples["inference"].blocks) >= 6
    assert metric.ratio.low is not None
    assert metric.ratio.high is not None
    assert metric.ratio.low < 0.8 < metric.ratio.high
    assert metric.ratio.confidence == 0.95
    assert metric.verdict == "worse"


def test_a_competitor_works_beside_everything_timed_and_not_beside_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    working: list[str] = []
    seen: list[tuple[str, bool]] = []

    @contextmanager
    def competing(load: str, seed: int) -> Iterator[None]:
        working.append(load)
        yield
        working.clear()

    def note(name: str, command: str, what: Any) -> None:
        seen.append((command, working == ["busy"]))

    monkeypatch.setattr(comparison_module, "competing", competing)
    compare(beside="busy", tasks="inference", fail=note)
    assert {beside for command, beside in seen if command in ("slice", "warm")} == {True}
    assert working == []


@pytest.mark.parametrize(("budget", "least", "most"), [(0.0, 1, 1), (3.0, 1, 1), (10.0, 6, 6), (60.0, 7, 30)])
def test_six_blocks_fit_by_having_fewer_rounds_unless_the_budget_is_far_too_small(
    budget: float, least: int, most: int
) -> None:
    """Alone, a block would have 2.5 s of turns."""
    machine = Machine()
    _, comparison, _ = compare(machine=machine, tasks="inference", budget=budget)
    sample = comparison.samples["inference"]
    assert least <= len(sample.blocks) <= most
    assert machine.now <= max(2 * budget if most == 6 else budget, 5.0)
    rounds = [len(block) for block in sample.blocks]
    assert min(rounds) >= LEAST_ROUNDS
    # The first block does not know yet.
    assert (min(rounds[1:], default=0) < rounds[0]) == (budget < 60)


@pytest.mark.parametrize(("step", "least"), [(0.2, 5), (0.8, 3), (2.0, 2)])
def test_a_short_block_still_has_rounds_enough_for_its_median(step: float, least: int) -> None:
    """At the least share, the turns of training have 1.5 s a block."""
    _, comparison, _ = compare(tasks="training", budget=12 * step + 14, seconds=lambda label, workload: step)
    blocks = comparison.samples["training"].blocks
    assert len(blocks) >= 6
    assert min(len(block) for block in blocks) == least


def test_a_bad_moment_in_the_first_block_does_not_end_the_run() -> None:
    machine = Machine()
    disturbed: list[str] = []

    def slow_at_first(name: str, command: str, what: Any) -> None:
        if command == "warm" and len(disturbed) < 2:
            machine.now += 20.0
            disturbed.append(name)

    _, comparison, _ = compare(machine=machine, tasks="inference", budget=60.0, fail=slow_at_first)
    rounds = [len(block) for block in comparison.samples["inference"].blocks]
    assert len(rounds) >= 6
    assert machine.now <= 1.5 * 60
    # As many as fit, once another block has shown what one takes.
    assert rounds[-1] > rounds[1]


def test_rounds_that_are_asked_for_are_taken() -> None:
    machine = Machine()
    comparison = Comparison(
        MODELS, replace(SETTINGS, tasks="latency,inference", rounds=7), Conditions(), lambda m: None,
        spawn=spawner(machine, b_is_a_quarter_slower),
    )  # fmt: skip
    comparison.run(0.0)
    assert {name: len(sample.blocks[0]) for name, sample in comparison.samples.items()} == {
        "latency": 7,
        "inference": 7,
    }


def test_the_same_loader_for_both_is_measured_once() -> None:
    found, _, _ = compare()
    loading = found["loader_throughput"]
    assert loading.ratio is None
    assert loading.values["a"] == loading.values["b"]
    assert loading.workloads["a"] == loading.workloads["b"]


def test_three_operands_are_all_compared_to_the_first() -> None:
    operands = [*MODELS, Operand("c", "lenet", Choice("naive"))]
    found, _, _ = compare(operands)
    ratios = found["inference_throughput"].ratios
    assert [(r.of, r.to) for r in ratios] == [("b", "a"), ("c", "a")]
    assert found["inference_throughput"].ratio == ratios[0]


def test_loaders_and_a_thing_against_itself() -> None:
    operands = [
        Operand("dali", "dali", LoaderOutput()),
        Operand("dali#2", "dali", LoaderOutput()),
    ]
    found, _, _ = compare(operands)
    assert set(found) == {"loader_throughput"}
    ratio = found["loader_throughput"].ratio
    assert ratio is not None
    assert ratio.estimate == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_unreadable_images_are_listed_and_stop_the_run_or_not(mode: str) -> None:
    found: dict[str, Metric] = {}
    said: list[str] = []
    left_out: set[tuple[str, ...]] = set()

    class Reader(FakeWorker):
        def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
            if command == "build":
                left_out.add(tuple(arguments["conditions"]["exclude"]))
            if command == "unreadable":
                return {"files": 3, "bad": [["x.jpg", "empty file"]]}
            return super().answer(command, arguments)

    comparison = Comparison(
        MODELS,
        SETTINGS,
        Conditions(data_root="somewhere", on_bad_image=mode),
        lambda m: found.update({m.name: m}),
        warn=said.append,
        spawn=lambda name, environment: Reader(name, Machine(), b_is_a_quarter_slower),
    )
    if mode == "stop":
        with pytest.raises(WorkloadError, match=r"1 of 3 images cannot be read:\n  x.jpg: empty file"):
            comparison.run(0)
        return
    comparison.run(0)
    assert "x.jpg: empty file" in said[0]
    assert left_out == {("x.jpg",)}
    assert "training_throughput" in found
