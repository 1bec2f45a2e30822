import contextlib
import math
import os
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from workloads import workload_of

from bench.checking import baseline, check, looks, sides
from bench.checking.check import default_workloads, record_of
from bench.checking.looks import Busy, Duel, subject_of_self_test, turns_of
from bench.checking.sides import only_one, said_by
from bench.checking.trees import Tree
from bench.errors import OutOfMemoryError, UsageError, WorkerError, WorkloadError
from bench.inspecting import reference
from bench.machine.cpu import CpuTimes
from bench.sides.process import Built, Worker
from bench.timing.clock import Slice
from bench.timing.duel import PAIRS, SlicePlan
from bench.timing.workload import Conditions, Workload
from results.gate import Side
from results.record import Record
from results.verdict import CLEAN, IMPROVED, LOOKS, REGRESSED, UNSURE

FAST = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)
OTHER = workload_of("training", "lenet", "fp32-nchw-eager", 2, 32, 10)
CONDITIONS = Conditions(threads=1)
BASE = Tree(Side("base", "main", "b" * 40), Path("/base"), "bbbb", "python")
HEAD = Tree(Side("head", "", "a" * 40), Path("/head"), "aaaa", "python")

Speed = Callable[[str, str, int], float]
# Processes until the first look: a pair for the questions, then base, head and again in each block.
FIRST_RUN = 2 + 3 * LOOKS[0]


class Machine:
    """Makes workers whose times are drawn: a share for each process, and noise of each slice.

    Attributes:
        speed: (side, workload id, number of the process) -> factor on the time.
        fails: (side, command) -> what it raises.
        opened: side of each process, in order.
        levers: side -> what it says it knows.
        asked: (side, configuration) of each question about facts.
    """

    def __init__(self, speed: Speed = lambda *of: 1.0, scatter: float = 0.004, seed: int = 0) -> None:
        self.speed = speed
        self.scatter = scatter
        self.rng = random.Random(seed)
        self.fails: dict[tuple[str, str], Exception] = {}
        self.opened: list[str] = []
        self.living = 0
        self.environments: dict[str, Mapping[str, str]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.levers: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.make = Process

    def __call__(self, name: str, environment: Mapping[str, str], source: Path, python: str) -> "Process":
        self.opened.append(name)
        self.environments[name] = environment
        self.living += 1
        return self.make(self, name, source, len(self.opened))


class Process:
    def __init__(self, machine: Machine, name: str, source: Path, number: int) -> None:
        self.machine, self.name, self.source, self.number = machine, name, source, number
        self.running = source
        self.share = machine.rng.gauss(0, machine.scatter)
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self._ids: dict[str, str] = {}

    def send(self, command: str, **arguments: Any) -> None:
        self.questions.append((command, arguments))

    def receive(self, timeout: float) -> dict[str, Any]:
        command, arguments = self.questions.pop(0)
        error = self.machine.fails.get((self.name, command))
        if error is not None:
            raise error
        if command == "hello":
            return {"source": str(self.running), "levers": self.machine.levers.get(self.name, ["keep"])}
        if command == "facts":
            assert isinstance(arguments["workload"]["configuration"], dict | str)
            self.machine.asked.append((self.name, Workload.from_json(arguments["workload"]).configuration.text))
            return self.machine.facts.get(self.name, {"parameters": 10})
        if command == "machine":
            return {"fingerprint": {"device": "x"}}
        if command == "reference":
            return {"id": reference.ID, "seconds": 0.001}
        assert command in ("imports", "release"), command
        return {}

    def ask(self, command: str, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
        self.send(command, **arguments)
        return self.receive(timeout)

    greet, greeted = Worker.greet, Worker.greeted
    described = Worker.described

    def begin_build(self, workloads: list[Workload], conditions: Conditions) -> None:
        self.building = workloads

    def built(self) -> Built:
        if (self.name, "build") in self.machine.fails:
            raise self.machine.fails[self.name, "build"]
        return Built(0.0, "none", (), {w.id: 0 for w in self.building})

    def warm(self, workload: Workload, cap: float) -> float:
        return 0.01

    def slice(
        self, workload: Workload, steps: int, drop: int, each: bool, timeout: float, twice_every: int = 0
    ) -> Slice:
        if (self.name, "slice") in self.machine.fails:
            raise self.machine.fails[self.name, "slice"]
        factor = self.machine.speed(self.name, workload.id, self.number)
        extra = 1 + (steps // twice_every) / steps if twice_every else 1.0
        noise = math.exp(self.share + self.machine.rng.gauss(0, self.machine.scatter))
        return Slice(0.01 * steps * factor * noise * extra, steps)

    def close(self) -> None:
        self.machine.living -= 1


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


@pytest.fixture(autouse=True)
def _outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process here computes anything."""
    monkeypatch.setattr(check, "computed", lambda *unused: ([], []))


def run(machine: Machine, workloads: list[Workload] | None = None, **options: Any) -> Any:
    report, extra = check.check(BASE, HEAD, workloads or [FAST, OTHER], CONDITIONS, spawn=machine, **options)
    assert machine.living == 0, "a process is left"
    return report, extra


def test_no_process_of_the_self_test_has_two_turns_in_a_row() -> None:
    """Its caches would be warm, and the code beside it would look slower than itself."""
    machine = Machine()
    taken: list[str] = []

    class Watched(Process):
        def slice(self, *given: Any, **more: Any) -> Slice:
            taken.append(self.name)
            return super().slice(*given, **more)

    machine.make = Watched
    run(machine, [FAST])
    begin = 0
    for _ in range(LOOKS[0]):
        first = taken.index("again", begin) - 1
        instrument = taken[first : first + 4 * PAIRS]
        assert instrument == ["base", "again"] * (2 * PAIRS)
        begin = first + len(instrument)
    assert "again" not in taken[begin:]


def slower(side: str, workload: Workload, factor: float) -> Speed:
    return lambda name, id, number: factor if name == side and id == workload.id else 1.0


def test_nothing_changed() -> None:
    machine = Machine()
    report, extra = run(machine)
    assert report.verdict == CLEAN
    assert report.exit_code == 0
    assert [row.verdict for row in report.rows] == [CLEAN, CLEAN]
    assert report.self_test.workload == FAST.id
    assert (report.self_test.same.verdict, report.self_test.slowed.verdict) == (CLEAN, REGRESSED)
    assert report.self_test.slowed.estimate == pytest.approx(1.05, abs=0.01)
    # One pair of processes for the questions, then for each block one more for base against itself.
    assert machine.opened[:2] == ["base", "head"]
    blocks = [machine.opened[begin : begin + 3] for begin in range(2, len(machine.opened), 3)]
    assert [sorted(block) for block in blocks] == [["again", "base", "head"]] * LOOKS[0]
    # Whoever starts first gets other memory: that falls on all sides alike.
    assert len({tuple(block) for block in blocks}) > 2
    assert len(extra["reference"]["blocks"]) == LOOKS[0]


@pytest.mark.parametrize(
    ("seconds", "prefetch", "steps", "drop", "rounds"),
    [
        (0.0001, 0, 400, 2, 40),
        (0.01, 0, 4, 2, 29),
        (0.035, 0, 2, 1, 17),
        # Long steps: single ones, none untimed.
        (0.05, 0, 1, 0, 33),
        (2.0, 0, 1, 0, 8),
        # A loader's slice is longer, and its queue is emptied first.
        (0.025, 5, 12, 6, 8),
        (0.4, 2, 1, 3, 8),
    ],
)
def test_turns_fill_four_seconds(seconds: float, prefetch: int, steps: int, drop: int, rounds: int) -> None:
    assert turns_of(seconds, prefetch) == (SlicePlan(steps, drop), rounds)


def test_what_is_slower_is_found_and_measured_a_second_time() -> None:
    machine = Machine(slower("head", OTHER, 1.05))
    report, _ = run(machine)
    assert report.verdict == REGRESSED
    assert report.exit_code == 1
    clean, slow = report.rows
    assert (clean.verdict, clean.again) == (CLEAN, None)
    assert slow.again.verdict == REGRESSED
    assert slow.decision.estimate == pytest.approx(1.05, abs=0.01)
    assert slow.head_seconds == pytest.approx(1.05 * slow.base_seconds, rel=0.01)
    assert len(slow.blocks) == len(slow.again_blocks) == LOOKS[0]
    assert all(20 <= len(block) <= 40 for block in slow.blocks)
    # The second run has only what was slower, and no test of the instrument.
    assert sorted(machine.opened[-2:]) == ["base", "head"]


def test_a_regression_that_a_second_run_does_not_show_fails_nothing() -> None:
    machine = Machine(
        lambda name, id, number: 1.05 if name == "head" and id == OTHER.id and number <= FIRST_RUN else 1.0
    )
    report, _ = run(machine)
    row = report.rows[1]
    assert (row.verdict, row.decision.verdict, row.again.verdict) == (UNSURE, REGRESSED, CLEAN)
    assert "the second CLEAN" in row.reason
    assert (report.verdict, report.exit_code) == (UNSURE, 0)


def test_what_is_faster_is_measured_a_second_time_too() -> None:
    report, _ = run(Machine(slower("head", OTHER, 0.95)))
    assert [row.verdict for row in report.rows] == [CLEAN, IMPROVED]
    assert [row.again and row.again.verdict for row in report.rows] == [None, IMPROVED]
    machine = Machine(
        lambda name, id, number: 0.95 if name == "head" and id == OTHER.id and number <= FIRST_RUN else 1.0
    )
    report, _ = run(machine)
    row = report.rows[1]
    assert (row.verdict, row.reason) == (UNSURE, "the first run said IMPROVED, the second CLEAN")


def test_a_wrong_answer_to_the_self_test_voids_the_run() -> None:
    report, _ = run(Machine(slower("again", FAST, 1.06)))
    assert (report.verdict, report.exit_code) == ("VOID", 2)
    assert "base against itself" in report.self_test.faults[0]


def test_a_noisy_machine_is_unsure_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Busy, "foreign", lambda self, before: 0.4)
    report, _ = run(Machine(scatter=0.2))
    assert (report.verdict, report.exit_code) == (UNSURE, 0)
    assert any("40% of this machine" in note for note in report.notes)
    assert any("self-test stayed UNSURE" in note for note in report.notes)


def test_decided_workloads_are_not_measured_on() -> None:
    def noisy(name: str, id: str, number: int) -> float:
        block = (number - 3) // 3
        return 1.2 if id == OTHER.id and (block % 2 == 0) == (name == "head") else 1.0

    report, _ = run(Machine(noisy))
    assert len(report.rows[0].blocks) == LOOKS[0]
    assert len(report.rows[1].blocks) == LOOKS[-1]


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_side_that_fails_in_its_turn_is_named(side: str) -> None:
    machine = Machine()
    machine.fails[side, "slice"] = WorkerError("did not answer within 120 s\nmore")
    report, _ = run(machine)
    assert [row.verdict for row in report.rows] == ["ERROR", "ERROR"]
    assert report.rows[0].reason == f"{side}: did not answer within 120 s"
    # The instrument is tested with processes of the base alone: of a head that fails nothing is said about it.
    assert (report.verdict, report.exit_code) == ("VOID" if side == "base" else "ERROR", 2)
    assert not report.only_noise
    if side == "head":
        assert (report.self_test.workload, report.self_test.faults) == (looks.small("cpu").id, ())


def test_long_steps_leave_the_self_test_to_a_small_workload() -> None:
    """Twenty steps of a second, 32 times a block, would take eleven minutes of it."""
    machine = Machine()

    class Slow(Process):
        def warm(self, workload: Workload, cap: float) -> float:
            return 0.01 if workload == looks.small("cpu") else 1.0

        def slice(self, workload: Workload, *given: Any, **more: Any) -> Slice:
            assert not (self.name == "again" and workload == FAST)
            assert not (self.name == "head" and workload == looks.small("cpu"))
            return super().slice(workload, *given, **more)

    machine.make = Slow
    said: list[str] = []
    report, _ = run(machine, [FAST], say=said.append)
    assert report.verdict == CLEAN
    assert [row.workload for row in report.rows] == [FAST.id]
    assert report.self_test.workload == looks.small("cpu").id
    assert (report.self_test.same.verdict, report.self_test.slowed.verdict) == (CLEAN, REGRESSED)
    # In the block that showed it, too: a value of each block at the first look.
    assert report.self_test.same.blocks == LOOKS[0]


def test_a_budget_that_the_first_look_will_exceed_is_said_after_the_first_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    run(Machine(), [FAST], say=said.append, budget=1000.0)
    assert not any("beyond --budget" in text for text in said)
    clock = iter(range(0, 10**9, 30))
    monkeypatch.setattr(looks, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    run(Machine(), [FAST], say=said.append, budget=300.0)
    assert sum(f"the first look, after {LOOKS[0]}, comes in about" in text for text in said) == 1


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next() -> None:
    machine = Machine()
    machine.fails["head", "release"] = WorkerError("did not answer within 60 s")
    report, _ = run(machine)
    assert report.verdict == CLEAN
    # After each workload of each block the processes are replaced.
    assert machine.opened.count("head") == 1 + LOOKS[0] * 3


def test_one_workload_that_fails_leaves_the_others() -> None:
    machine = Machine()
    real = Process.built

    def built(self: Process) -> dict[str, Any]:
        if self.name == "head" and self.building[0] == OTHER:
            raise WorkerError("the process measuring head ended")
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "built", built)
        report, _ = run(machine)
    assert [row.verdict for row in report.rows] == [CLEAN, "ERROR"]
    assert (report.verdict, report.exit_code) == ("ERROR", 2)
    assert report.rows[1].reason == "head: the process measuring head ended"


@pytest.mark.parametrize(
    ("fails", "verdict", "code"),
    [
        ({"head": WorkloadError("no model is called lenet")}, "VANISHED", 1),
        ({"base": WorkloadError("no model is called lenet")}, "NEW", 0),
        ({"head": WorkloadError("x"), "base": WorkloadError("x")}, "ERROR", 2),
        ({"head": WorkerError("it died")}, "ERROR", 2),
        # Not new: an environment in which nothing of the base runs.
        ({"base": WorkloadError("timm:x needs the package timm, which is not installed")}, "ERROR", 2),
        ({"base": WorkloadError("unknown model 'lenet'; did you mean alexnet?")}, "NEW", 0),
    ],
)
def test_workloads_that_a_side_lacks(fails: dict[str, Exception], verdict: str, code: int) -> None:
    machine = Machine()
    for side, error in fails.items():
        machine.fails[side, "facts"] = error
    report, _ = run(machine, exact_only=True)
    assert {row.verdict for row in report.rows} == {verdict}
    assert report.exit_code == code
    allowed, _ = run(machine, exact_only=True, allow=["VANISHED"])
    assert allowed.exit_code == (0 if verdict == "VANISHED" else code)


def test_a_base_from_before_the_lever_keep_is_asked_for_what_it_does_anyway() -> None:
    machine = Machine()
    machine.levers["base"] = []
    kept = workload_of("inference", "lenet", "fp32-nchw-eager-keep", 2, 32, 10)
    peer = workload_of("inference", "lenet", "openvino-fp32", 2, 32, 10)
    report, _ = run(machine, [kept, FAST, peer], looks=(2,))
    assert {row.workload: row.verdict for row in report.rows}[kept.id] != "ERROR"
    assert machine.asked[:2] == [("base", "fp32-nchw-eager"), ("head", "fp32-nchw-eager-keep")]
    # It would time the plain step with memory kept, as if the head had become slower.
    [new] = [row for row in report.rows if row.workload == FAST.id]
    assert new.verdict == "NEW"
    assert "always keeps freed memory" in new.reason
    assert ("base", "openvino-fp32") in machine.asked


def test_what_keeps_no_memory_comes_first() -> None:
    order: list[str] = []
    kept = workload_of("inference", "lenet", "fp32-nchw-eager-keep", 2, 32, 10)

    class Watched(Process):
        def begin_build(self, workloads: list[Workload], conditions: Conditions) -> None:
            super().begin_build(workloads, conditions)
            order.append(workloads[0].configuration.text)

    machine = Machine()
    machine.make = Watched
    duel = Duel(BASE, HEAD, [kept, FAST], CONDITIONS, looks=(1,), spawn=machine)
    duel.run()
    assert order == ["fp32-nchw-eager"] * 2 + ["fp32-nchw-eager-keep"] * 2


def test_counted_facts_fail_without_any_time() -> None:
    machine = Machine()
    machine.facts = {"base": {"parameters": 10}, "head": {"parameters": 11}}
    report, extra = run(machine, exact_only=True)
    assert (report.verdict, report.exit_code, report.rows, extra) == ("CHANGED", 1, (), {})
    assert machine.opened == ["base", "head"]
    assert [fact.detail for fact in report.changed] == [("10 -> 11",), ("10 -> 11",)]
    allowed, _ = run(machine, exact_only=True, allow=["parameters"])
    assert allowed.exit_code == 0


def test_each_side_has_its_own_compile_caches() -> None:
    machine = Machine()
    run(machine, exact_only=True)
    places = {name: environment["TORCHINDUCTOR_CACHE_DIR"] for name, environment in machine.environments.items()}
    assert len(set(places.values())) == 2


def test_a_cache_that_has_grown_too_large_begins_anew() -> None:
    sides.open_caches()
    large, small = (sides.side_cache(name) / "inductor" / "x" for name in ("base", "head"))
    for file, size in ((large, 2000), (small, 10)):
        file.parent.mkdir()
        file.write_bytes(b"x" * size)
    sides.open_caches(limit=1000)
    assert not large.exists()
    assert small.exists()
    assert sides.side_cache("base").is_dir()


def test_a_process_that_runs_other_code_is_refused() -> None:
    machine = Machine()
    tree = Tree(HEAD.side, Path("/elsewhere"), "aaaa", "python")

    def spawn(name: str, environment: Mapping[str, str], source: Path, python: str) -> Process:
        process = machine(name, environment, source, python)
        process.running = Path("/installed")
        return process

    report, _ = check.check(BASE, tree, [FAST], CONDITIONS, spawn=spawn)
    assert (report.verdict, report.exit_code) == ("ERROR", 2)
    assert "base runs the code of /installed" in (report.rows[0].reason or "")
    assert machine.living == 0


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_side_that_does_not_start_fails_every_row_and_is_named(side: str) -> None:
    machine = Machine()
    machine.fails[side, "hello"] = WorkerError(f"the process measuring {side} ended (exit code 1)", "  Traceback")
    report, extra = run(machine)
    assert (report.verdict, report.exit_code, report.only_noise) == ("ERROR", 2, False)
    assert [row.reason for row in report.rows] == [f"{side}: the process measuring {side} ended (exit code 1)"] * 2
    assert extra == {}


def test_a_side_killed_for_memory_is_replaced_and_the_next_workload_goes_on() -> None:
    machine = Machine()
    real = Process.receive
    asked: list[str] = []

    def receive(self: Process, timeout: float) -> dict[str, Any]:
        command, arguments = self.questions[0]
        if (self.name, command) == ("head", "facts"):
            asked.append(arguments["workload"]["task"])
            if len(asked) == 1:
                self.questions.pop(0)
                raise OutOfMemoryError("the process measuring head was killed")
        return real(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "receive", receive)
        report, _ = run(machine, exact_only=True)
    assert asked == ["inference", "training"]
    assert [(row.workload, row.verdict) for row in report.rows] == [(FAST.id, "ERROR")]
    assert machine.opened == ["base", "head", "head"]


def test_two_checks_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    with only_one("cpu", True, said.append):
        with pytest.raises(UsageError, match=f"process {os.getpid()}"), only_one("cpu", False, said.append):
            pass
        with only_one("cuda", False, said.append):
            pass
    with only_one("cpu", False, said.append):
        pass
    assert said == []


def test_other_work_is_what_is_neither_idle_nor_ours() -> None:
    second = os.sysconf("SC_CLK_TCK")
    before = Busy(CpuTimes(0, 0, 0), 0.0)
    after = Busy(CpuTimes(10 * second, 4 * second, 1 * second), 4.0)
    assert after.foreign(before) == pytest.approx(0.2)
    assert Busy(None, 4.0).foreign(before) is None
    assert before.foreign(before) is None


def test_a_check_can_be_stored_and_read() -> None:
    report, extra = run(Machine(slower("head", OTHER, 1.05)))
    record = Record.from_json(record_of(report, extra, "bench check --base main").to_json())
    assert record.commit == {"sha": "a" * 40, "dirty": False}
    training, inference = record.metrics
    assert training.workloads == {"head": FAST.id}
    assert inference.verdict == REGRESSED
    assert inference.ratio is not None
    # Throughput: what is slower has less of it.
    assert inference.ratio.estimate == pytest.approx(1 / 1.05, abs=0.01)
    assert statistics.median(block[0]["head"] for block in inference.pairs) == pytest.approx(0.0105, rel=0.02)
    assert record.settings["check"]["verdict"] == REGRESSED


def test_default_workloads_have_ids_that_can_be_read_back() -> None:
    for device in ("cpu", "cuda"):
        made = default_workloads(device, "sample-1-1000")
        assert {w.task for w in made} == {"inference", "training", "loading"}
        assert {w.subject for w in made if w.task == "training"} == {"resnet18", "efficientnet_b0"}
        assert [Workload.from_id(w.id) for w in made] == made
        assert subject_of_self_test(made) == made[0]


@pytest.mark.parametrize(("side", "text"), [("", "it died"), ("head", "head: it died"), ("again", "base: it died")])
def test_an_error_is_told_in_one_line_behind_its_side(side: str, text: str) -> None:
    error = WorkerError("it died", "  x\n  y")
    assert str(error) == "it died; its last output was:\n  x\n  y"
    error.side = side
    assert said_by(error) == text


# Against a stored run


def stored(speed: Speed = lambda *of: 1.0, seed: int = 1) -> Record:
    report, extra = run(Machine(speed, seed=seed))
    return record_of(report, extra, "bench check --base main")


def against(record: Record, machine: Machine, **options: Any) -> Any:
    report, extra = baseline.check_against(
        Path("old.json"), record, None, CONDITIONS, spawn=machine, tree=HEAD, **options
    )
    assert machine.living == 0
    return report, extra


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, CLEAN), (1.06, REGRESSED), (0.9, "IMPROVED")])
def test_a_stored_run_is_a_baseline(factor: float, verdict: str) -> None:
    report, extra = against(stored(), Machine(lambda *of: factor))
    assert report.verdict == verdict
    assert [row.workload for row in report.rows] == [FAST.id, OTHER.id]
    assert report.rows[0].base_seconds == pytest.approx(0.01, rel=0.02)
    assert report.base.commit == "a" * 40
    # What is measured against a baseline can be one; both its processes ran the head's code.
    kept = record_of(report, extra, "")
    assert kept.operands == ("head",)
    assert all(set(metric.values) == {"head"} and metric.ratio is None for metric in kept.metrics)
    again, _ = against(kept, Machine(lambda *of: factor, seed=5))
    assert again.verdict == CLEAN


def test_a_run_in_which_every_process_kept_freed_memory_is_measured_like_that_again() -> None:
    record = stored()
    older = replace(record, machine={**record.machine, "settings": {"allocator": "keeps freed memory"}})
    report, _ = against(older, Machine())
    assert [row.workload for row in report.rows] == [
        w.id.replace("-eager", "-eager-keep") for w in (FAST, OTHER)
    ]  # fmt: skip
    assert report.verdict == CLEAN


def test_what_a_stored_run_had_and_the_head_has_not_has_vanished() -> None:
    machine = Machine()
    for side in ("base", "head"):
        machine.fails[side, "facts"] = WorkloadError("unknown model 'lenet'")
    report, _ = against(stored(), machine)
    assert {row.verdict for row in report.rows} == {"VANISHED"}


def test_baselines_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    record = stored()
    machine = Machine()
    other = Record.from_json({**record.to_json(), "machine": {"fingerprint": {"device": "y"}}})
    with pytest.raises(UsageError, match="another machine: device: y against x"):
        against(other, machine)
    bare = Record.from_json({**record.to_json(), "settings": {}})
    with pytest.raises(UsageError, match="without the reference"):
        against(bare, machine)
    more = workload_of("inference", "lenet", "fp32-nchw-eager", 9, 32, 10)
    with pytest.raises(UsageError, match="holds no time of inference/lenet"):
        baseline.check_against(Path("o.json"), record, [more], CONDITIONS, spawn=machine, tree=HEAD)
    with pytest.raises(UsageError, match="holds no check"):
        baseline.find(tmp_path, lambda text: None)
    assert machine.living == 0


def test_the_newest_check_of_a_folder_is_the_baseline(tmp_path: Path) -> None:
    from results import store

    record = stored()
    for number, created in enumerate(("2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00")):
        store.save(Record.from_json({**record.to_json(), "created": created}), tmp_path / f"{number}.json")
    (tmp_path / "torn.json").write_text("{")
    said: list[str] = []
    path, found = baseline.find(tmp_path, said.append)
    assert (path.name, found.created) == ("1.json", "2026-01-03T00:00:00+00:00")
    assert "torn.json" in said[0]
    assert baseline.find(tmp_path / "0.json", said.append)[1].created == "2026-01-02T00:00:00+00:00"
    store.save(Record.from_json({**record.to_json(), "kind": "compare"}), tmp_path / "c.json")
    # What found a slowdown would hide it from the next check.
    told = {**record.settings, "check": {**record.settings["check"], "verdict": REGRESSED}}
    late = {"created": "2026-01-04T00:00:00+00:00"}
    for name, change in {
        "slow": {"settings": told},
        "dirty": {"commit": {"sha": "a" * 40, "dirty": True}},
        "exact": {"metrics": []},
    }.items():
        store.save(Record.from_json({**record.to_json(), **late, **change}), tmp_path / f"{name}.json")
    said.clear()
    assert baseline.find(tmp_path, said.append)[0].name == "1.json"
    assert [reason in " ".join(said) for reason in ("is REGRESSED", "uncommitted changes", "timed nothing")] == [
        True
    ] * 3
    with pytest.raises(UsageError, match="is a compare record"):
        baseline.find(tmp_path / "c.json", said.append)


def test_no_look_is_gone_for_beyond_the_budget() -> None:
    """Scatter so wide that nothing is decided at the first look; a budget that is used up then."""
    machine = Machine()
    machine.scatter = 0.2
    duel = Duel(BASE, HEAD, [FAST], CONDITIONS, budget=0.0, spawn=machine)
    duel.run()
    assert duel.ended_early
    assert len(duel.references) == LOOKS[0]
    row = duel.row(FAST)
    assert row.verdict == "UNSURE"
    report, _ = run(machine, budget=0.0)
    assert any("beyond --budget" in note for note in report.notes)
    assert report.exit_code == 0
    assert not Duel(BASE, HEAD, [FAST], CONDITIONS, spawn=Machine()).ended_early


def test_a_duel_that_is_interrupted_leaves_no_process() -> None:
    machine = Machine()

    def interrupt(name: str, id: str, number: int) -> float:
        if number > 6:
            raise KeyboardInterrupt
        return 1.0

    machine.speed = interrupt
    with contextlib.suppress(KeyboardInterrupt):
        Duel(BASE, HEAD, [FAST], CONDITIONS, spawn=machine).run()
    assert machine.living == 0
