"""The search on fake processes: known speeds in, the known winner out, and nothing that costs accuracy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_worker import Machine, keep_time, spawner
from workloads import workload_of

from bench.comparing import tuning
from bench.comparing.tuning import Tuner, Tuning, challengers, loader_configurations, one_off, shares
from bench.errors import BenchError, OutOfMemoryError, WorkerError
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import Configuration, Device, parse

CPU = Device("cpu", bf16=True, compiler=True)
GPU = Device("cuda", bf16=True, compiler=True)
FAST = "bf16-nhwc-compile-freeze"
MACHINE = {"fingerprint": {"device": "fake"}}
BASE = workload_of("inference", "lenet", FAST, 32, 32, 10)


def tune(
    seconds: Callable[[Workload], float],
    task: str = "inference",
    base: Workload = BASE,
    budget: float = 1000.0,
    machine: Machine | None = None,
    **options: Any,
) -> Tuning:
    said: list[str] = []
    made = machine or Machine()
    tuner = Tuner(
        {task: base}, CPU, Conditions(), MACHINE, said.append,
        spawner(made, lambda label, workload: seconds(workload), **options),
    )  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as patch:
            keep_time(made, patch, tuning)
            return tuner.tune(task, budget)
    finally:
        assert made.alive == 0, "a process was left"


def per_image(speeds: dict[str, float], default: float = 1.0) -> Callable[[Workload], float]:
    return lambda workload: workload.batch * 1e-3 / speeds.get(workload.configuration.text, default)


def test_the_fastest_configuration_wins_and_is_what_is_remembered() -> None:
    found = tune(per_image({"amp-nhwc-compile-freeze": 1.3, "bf16-nchw-compile-freeze": 1.1}))
    assert found.winner is not None
    assert found.winner.configuration == "amp-nhwc-compile-freeze"
    assert found.winner.ratio == pytest.approx(1.3)
    assert found.winner.model == "lenet"
    assert "1.3" in found.verdict
    assert found.results[0].configuration.text == "amp-nhwc-compile-freeze"


def test_what_is_not_shown_to_be_faster_leaves_fast() -> None:
    found = tune(per_image({"amp-nhwc-compile-freeze": 1.01}))
    assert found.winner is not None
    assert found.winner.configuration == FAST
    assert found.winner.ratio == 1.0
    assert "fast stays" in found.verdict


def test_a_change_that_is_slower_alone_is_not_tried_with_others() -> None:
    slow = {one.text: 0.5 for one in challengers(parse(FAST, CPU, False), CPU, False) if one.precision == "fp32"}
    found = tune(per_image(slow))
    assert {text.split("-")[0] for text in found.hopeless} == {"fp32"}
    assert "fp32-nhwc-compile-freeze" in [one.configuration.text for one in found.results]
    assert not found.untried


def test_accuracy_is_not_traded() -> None:
    quick = "amp-nhwc-compile-freeze"
    found = tune(per_image({quick: 3.0}), error=lambda id: 0.5 if quick in id else 0.01)
    assert found.winner is not None
    assert found.winner.configuration == FAST
    [lost] = [one for one in found.results if one.configuration.text == quick]
    assert "by 0.5 of their spread" in lost.reason
    assert found.winner.error == 0.01


def test_one_that_fails_is_named_and_the_others_go_on() -> None:
    def fail(name: str, command: str, workload: Any) -> BenchError | None:
        bad = command == "build" and workload.configuration.text == "bf16-nhwc-autotune-freeze"
        return WorkerError("no compiler\nmore") if bad else None

    found = tune(per_image({"amp-nhwc-compile-freeze": 1.3}), fail=fail)
    assert found.winner is not None
    assert found.winner.configuration == "amp-nhwc-compile-freeze"
    assert [one.reason for one in found.results if one.configuration.text == "bf16-nhwc-autotune-freeze"] == [
        "no compiler"
    ]


def test_the_best_batch_is_found_and_one_that_does_not_fit_ends_the_search() -> None:
    def seconds(workload: Workload) -> float:
        return 1e-3 * (workload.batch + 32)

    def fail(name: str, command: str, workload: Any) -> BenchError | None:
        return OutOfMemoryError("out of memory") if command == "build" and workload.batch >= 256 else None

    found = tune(seconds, fail=fail)
    assert found.winner is not None
    assert found.winner.batch == 128
    assert [batch for batch, _, ratio, _ in found.batches if ratio is not None][-1] == 128
    assert found.batches[-1][3] == "out of memory"


def test_each_lever_has_its_worth() -> None:
    without = {"fp32-nhwc-compile-freeze": 0.5, "bf16-nchw-compile-freeze": 0.8, "bf16-nhwc-eager-freeze": 0.4}
    found = tune(per_image({**without, "bf16-nhwc-compile": 0.9}))
    worth = {one.lever: one.ratio for one in found.levers}
    assert worth == pytest.approx({"bf16": 2.0, "nhwc": 1.25, "compile": 2.5, "freeze": 1 / 0.9})


def test_levers_of_another_winner_are_measured_against_it() -> None:
    found = tune(per_image({"amp-nhwc-compile-freeze": 2.0}))
    worth = {one.lever: one.ratio for one in found.levers}
    assert worth["amp"] == pytest.approx(2.0)
    assert set(worth) == {"amp", "nhwc", "compile", "freeze"}


def test_without_time_everything_is_named_as_not_tried() -> None:
    found = tune(per_image({}), budget=0.0)
    assert len(found.untried) == len(challengers(parse(FAST, CPU, False), CPU, False))
    assert found.winner is not None
    assert found.winner.configuration == FAST
    assert all(one.reason == "no time was left" for one in found.levers)
    assert found.verdict == "nothing else was measured; fast stays"


def test_where_all_were_slower_the_verdict_says_so() -> None:
    assert tune(per_image({FAST: 1.0}, default=0.5)).verdict == ("no other configuration came near fast")


def test_latency_takes_what_inference_left() -> None:
    machine = Machine()
    speed = per_image({"amp-nhwc-compile-freeze": 1.3}, default=0.8)
    speeds = {FAST: 1.0}
    tuner = Tuner(
        {"inference": BASE, "latency": replace(BASE, task="latency", batch=1)}, CPU, Conditions(), MACHINE,
        lambda text: None,
        spawner(machine, lambda label, w: w.batch * 1e-3 if w.configuration.text in speeds else speed(w)),
    )  # fmt: skip
    tuner.tune("inference", 1000.0)
    assert [w.configuration.text for w in tuner.pool("latency", tuner.base["latency"])] == ["amp-nhwc-compile-freeze"]


def test_training_never_keeps_its_weights_in_bfloat16() -> None:
    training = challengers(Configuration("amp", "nhwc"), CPU, True)
    assert {one.precision for one in training} == {"fp32", "amp"}
    assert not any(one.freeze for one in training)
    cuda = challengers(Configuration("amp", "nhwc", "graphs"), Device("cuda", True, True), True)
    assert {one.precision for one in cuda} == {"tf32", "amp", "fp16"}


def test_nearest_first() -> None:
    reference = parse(FAST, CPU, False)
    ordered = challengers(reference, CPU, False)
    assert ordered[0].compile == "eager", "quickly built"
    assert reference not in ordered
    assert len(ordered) == len(set(ordered)) == 35
    assert shares(Configuration("fp32", "nchw"), Configuration("fp32", "nhwc", "compile", True), reference)
    assert not shares(Configuration("amp", "nchw"), Configuration("fp32", "nhwc", "compile", True), reference)


def test_keeping_memory_is_tried_by_itself_and_before_what_keeps_it() -> None:
    reference = parse("fast", CPU, False)
    ordered = challengers(reference, CPU, False)
    assert ordered[0] == replace(reference, keep=False)
    assert all(one.keep for one in ordered[1:])
    assert len(ordered) == 36
    assert dict(one_off(reference, CPU, False))["keep"] == ordered[0]
    assert not any(one.keep for one in challengers(Configuration("amp", "nhwc", "graphs"), GPU, True))


def test_one_lever_off() -> None:
    off = {lever: changed.text for lever, changed in one_off(parse("amp-nhwc-eager", CPU, True), CPU, True)}
    assert off == {"amp": "fp32-nhwc-eager", "nhwc": "amp-nchw-eager"}


def test_loaders_are_changed_one_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert [one.text for one in loader_configurations(LoaderOutput(workers=2, ahead=2))] == [
        f"float32-nhwc-{text}" for text in ("w1-p2", "w3-p2", "w4-p2", "w2-p1", "w2-p4")
    ]
    base = workload_of("loading", "dali", "float32-nhwc-w2-p2", 32, 32, data="d")
    found = tune(per_image({"float32-nhwc-w2-p4": 1.5}), "loading", base)
    assert found.winner is not None
    assert (found.winner.model, found.winner.configuration) == ("dali", "float32-nhwc-w2-p4")
    assert found.levers == []
