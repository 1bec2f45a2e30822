"""The search on fake processes: known speeds in, the known winner out, and nothing that costs accuracy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_worker import Machine, keep_time, spawner
from workloads import workload_of

from bench.comparing import tuning
from bench.comparing.tuning import Outlook, Result, Tuner, Tuning, challengers, fewer, loader_configurations, one_off
from bench.errors import BenchError, OutOfMemoryError, WorkerError
from bench.sides import crew
from bench.sides.crew import Crew
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
    engines: tuple[str, ...] = (),
    **options: Any,
) -> Tuning:
    said: list[str] = []
    made = machine or Machine()
    tuner = Tuner(
        {task: base}, CPU, Conditions(), MACHINE, said.append,
        crew_of(made, lambda label, workload: seconds(workload), **options), engines,
    )  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as patch:
            keep_time(made, patch, tuning)
            with tuner.crew:
                return tuner.tune(task, budget)
    finally:
        assert made.alive == 0, "a process was left"


def crew_of(machine: Machine, seconds: Callable[[str, Workload], float], **options: Any) -> Crew:
    return Crew(crew.spawner(2, spawner(machine, seconds, **options)), forks=True)


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
    assert found.verdict == "no other configuration is faster than fast"


def test_a_change_that_is_slower_alone_is_not_tried_with_others() -> None:
    found = tune(per_image({"bf16-nhwc-autotune-freeze": 0.9}))
    assert found.hopeless
    assert {text.split("-")[2] for text in found.hopeless} == {"autotune"}
    assert not found.untried


def test_what_is_slower_run_eagerly_is_not_compiled() -> None:
    slow = {one.text: 0.5 for one in challengers(parse(FAST, CPU, False), CPU, False) if one.precision == "fp32"}
    found = tune(per_image(slow))
    assert {text.split("-")[0] for text in found.hopeless} == {"fp32"}
    assert not [one for one in found.results if one.configuration.text.startswith("fp32-nhwc-compile")]
    assert "fp32-nhwc-eager-freeze" in [one.configuration.text for one in found.results]


def test_changes_that_gain_too_little_together_are_not_tried_behind_a_leader() -> None:
    reference = parse(FAST, CPU, False)
    amp, autotune = replace(reference, precision="amp"), replace(reference, compile="autotune")
    both = replace(amp, compile="autotune")
    outlook = Outlook(reference)
    outlook.add(Result(Configuration(peer="openvino"), 1.3, 1, low=1.25, high=1.35), accurate=True)
    outlook.add(Result(amp, 1.05, 1, low=1.02, high=1.08), accurate=True)
    assert not outlook.hopeless(both), "nothing is known of autotune"
    outlook.add(Result(autotune, 1.0, 1, low=0.99, high=1.01), accurate=True)
    assert outlook.hopeless(both)
    assert not outlook.hopeless(Configuration(peer="onnxruntime"))
    inaccurate = Outlook(reference)
    inaccurate.add(Result(Configuration(peer="openvino"), 1.3, 1, low=1.25, high=1.35), accurate=False)
    inaccurate.seen = outlook.seen
    assert not inaccurate.hopeless(both), "what costs accuracy leads nobody"


ENGINES = ("openvino", "onnxruntime")


def test_another_engine_wins_and_the_best_without_it_is_named() -> None:
    speeds = {"openvino-bf16": 1.6, "openvino-fp32": 1.2, "amp-nhwc-compile-freeze": 1.25}
    found = tune(per_image(speeds), engines=ENGINES)
    assert found.winner is not None
    assert (found.winner.configuration, found.winner.alone) == ("openvino-bf16", "amp-nhwc-compile-freeze")
    assert found.winner.ratio == pytest.approx(1.6)
    [worth] = found.levers
    assert (worth.lever, worth.without) == ("openvino", "amp-nhwc-compile-freeze")
    assert worth.ratio == pytest.approx(1.6 / 1.25)
    assert found.to_json()["winner"]["alone"] == found.winner.alone


def test_where_only_another_engine_is_faster_fast_is_the_best_without_it() -> None:
    found = tune(per_image({"openvino-bf16": 1.6}), engines=ENGINES)
    assert found.winner is not None
    assert (found.winner.configuration, found.winner.alone) == ("openvino-bf16", FAST)


def test_another_engine_has_to_be_faster_than_what_torch_does() -> None:
    found = tune(per_image({"openvino-bf16": 1.26, "amp-nhwc-compile-freeze": 1.25}), engines=ENGINES)
    assert found.winner is not None
    assert (found.winner.configuration, found.winner.alone) == ("amp-nhwc-compile-freeze", "")


def test_another_engine_costs_no_accuracy_either() -> None:
    found = tune(
        per_image({"openvino-bf16": 3.0, "openvino-fp32": 1.5}),
        engines=ENGINES,
        error=lambda id: 0.5 if "openvino-bf16" in id else 0.01,
    )
    assert found.winner is not None
    assert found.winner.configuration == "openvino-fp32"


def test_an_engine_that_fails_leaves_the_search_to_the_others() -> None:
    blocks: list[str] = []

    def fail(name: str, command: str, workload: Any) -> BenchError | None:
        if command != "build" or workload.configuration.text != "openvino-bf16":
            return None
        blocks.append(name)
        # In the first rung it can be built, in the last duel no longer.
        return WorkerError("it broke") if len(blocks) > 1 else None

    found = tune(per_image({"openvino-bf16": 1.6, "amp-nhwc-compile-freeze": 1.3}), engines=("openvino",), fail=fail)
    assert found.winner is not None
    assert (found.winner.configuration, found.winner.alone) == ("amp-nhwc-compile-freeze", "")
    assert [one.reason for one in found.results if one.configuration.text == "openvino-bf16"] == ["it broke"]


def test_each_engine_has_a_process_of_its_own() -> None:
    machine = Machine()
    tune(per_image({}), machine=machine, engines=ENGINES)
    named = machine.opened + machine.forked
    assert all(named.count(text) == 1 for text in ("openvino-fp32", "openvino-bf16", "onnxruntime-fp32"))


def test_engines_are_tried_first_and_where_they_can_run() -> None:
    reference = parse(FAST, CPU, False)
    every = ("openvino", "onnxruntime", "tensorrt")
    assert [one.text for one in challengers(reference, CPU, False, every)[:4]] == [
        "openvino-bf16", "openvino-fp32", "onnxruntime-fp32", "bf16-nhwc-eager-freeze",
    ]  # fmt: skip
    plain = challengers(reference, replace(CPU, bf16=False), False, every)
    assert [one.text for one in plain if one.peer] == ["openvino-fp32", "onnxruntime-fp32"]
    cuda = challengers(parse("fast", GPU, False), GPU, False, every)
    assert [one.text for one in cuda if one.peer] == ["onnxruntime-fp32", "tensorrt-fp16", "tensorrt-fp32"]
    assert not any(one.peer for one in challengers(Configuration("amp", "nhwc"), CPU, True, every))


def test_fewer_threads_are_tried_and_named_where_they_are_faster() -> None:
    assert [fewer(n) for n in (1, 2, 3, 8)] == [[], [1], [1], [4, 1]]
    said: list[str] = []
    machine = Machine()
    tuner = Tuner(
        {"latency": replace(BASE, task="latency", batch=1)}, CPU, Conditions(threads=8), MACHINE, said.append,
        crew_of(machine, lambda label, workload: 1e-3 / {"4 threads": 1.5, "1 threads": 0.5}.get(label, 1.0)),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, tuning)
        found = tuner.tune("latency", 1000.0)
    assert found.winner is not None
    assert found.winner.threads == 4
    assert {n: ratio for n, ratio, _, _ in found.threads} == pytest.approx({4: 1.5, 1: 0.5})


def test_a_search_ends_when_nothing_can_win() -> None:
    machine = Machine()
    found = tune(per_image({FAST: 1.0}, default=0.8), machine=machine, engines=ENGINES)
    assert {one.rung for one in found.results} == {1}
    assert not [text for text in machine.opened + machine.forked if text == "amp-nhwc-compile-freeze"]


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
    assert tune(per_image({FAST: 1.0}, default=0.5)).verdict == "no other configuration is faster than fast"


def test_latency_takes_what_inference_left() -> None:
    machine = Machine()
    speed = per_image({"amp-nhwc-compile-freeze": 1.3}, default=0.8)
    speeds = {FAST: 1.0}
    tuner = Tuner(
        {"inference": BASE, "latency": replace(BASE, task="latency", batch=1)}, CPU, Conditions(), MACHINE,
        lambda text: None,
        crew_of(machine, lambda label, w: w.batch * 1e-3 if w.configuration.text in speeds else speed(w)),
    )  # fmt: skip
    tuner.tune("inference", 1000.0)
    assert [w.configuration.text for w in tuner.pool("latency", tuner.base["latency"])] == [
        f"{BASE.configuration.text}-mm", "amp-nhwc-compile-freeze",
    ]  # fmt: skip


def test_an_engine_that_inference_had_no_time_for_is_tried_for_latency() -> None:
    tuner = Tuner(
        {"inference": BASE, "latency": replace(BASE, task="latency", batch=1)}, CPU, Conditions(), MACHINE,
        lambda text: None, crew_of(Machine(), lambda label, w: 1e-3), ENGINES,
    )  # fmt: skip
    tuner.tune("inference", 0.0)
    assert {w.network.peer for w in tuner.pool("latency", tuner.base["latency"]) if w.network.peer} == set(ENGINES)


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
