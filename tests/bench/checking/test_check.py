import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_worker
import pytest
from fake_worker import FakeWorker, keep_time
from workloads import workload_of

from bench.checking import baseline, check, looks, sides
from bench.checking.check import default_workloads, record_of
from bench.checking.looks import Busy, Duel, subject_of_self_test
from bench.checking.sides import only_one, said_by
from bench.checking.trees import Tree
from bench.errors import OutOfMemoryError, UsageError, WorkerError, WorkloadError
from bench.machine.cpu import Load
from bench.timing.clock import Slice
from bench.timing.duel import Asked
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


class Machine(fake_worker.Machine):
    """Makes workers whose times are drawn: a share for each process, and noise of each slice.

    Attributes:
        speed: (side, workload id, number of the block, from 1) -> factor on the time.
        step: seconds a step of each workload.
        fails: (side, command) or (side, command, workload id) -> what it raises.
        old: sides whose code is from before a process could hold several.
        levers: side -> what its code knows.
        trees: side -> the tree that it is to run.
        blocks: how many were begun, of all duels.
        taken: side and workload id of each turn.
        asked: (side, configuration) of each question about facts.
    """

    def __init__(self, speed: Speed = lambda *of: 1.0, scatter: float = 0.004, seed: int = 0, old: str = "") -> None:
        super().__init__(seed, noise=scatter)
        self.speed = speed
        self.step: Callable[[Workload], float] = lambda workload: 0.01
        self.fails: dict[tuple[str, ...], Exception] = {}
        self.old = set(old.split())
        self.levers: dict[str, list[str]] = {}
        self.trees = {"base": BASE, "again": BASE, "head": HEAD}
        self.blocks = 0
        self.taken: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.environments: dict[str, Mapping[str, str]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.running: Path | None = None

    def __call__(self, name: str, environment: Mapping[str, str], source: Path, python: str) -> FakeWorker:
        self.environments[name] = environment
        return Process(name, self, self.seconds, self.fail, source=source)

    def seconds(self, side: str, workload: Workload) -> float:
        return self.step(workload) * self.speed(side, workload.id, self.blocks)

    def fail(self, side: str, command: str, what: Any) -> Exception | None:
        self.blocks += command == "reference"
        return self.fails.get((side, command)) or self.fails.get((side, command, getattr(what, "id", "")))


class Process(FakeWorker):
    machine: Machine

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "adopt" and arguments["side"] in self.machine.old:
            raise WorkloadError(f"the code in {arguments['root']} cannot share a process: it has no session")
        answer = super().answer(command, arguments)
        if command == "hello":
            answer["source"] = str(self.machine.running or answer["source"])
            answer["levers"] = self.machine.levers.get(self.name, answer["levers"])
            answer["hosts"] = self.name not in self.machine.old
        if command == "facts":
            self.machine.asked.append((self.name, Workload.from_json(arguments["workload"]).configuration.text))
            return self.machine.facts.get(self.name, {"parameters": 10})
        return answer

    def turn(self, one: Asked) -> Slice:
        side = one.side or self._channel.name
        tree = self._channel.roots.get(side, self.source)
        assert tree == self.machine.trees[side].root, f"{side} runs the code of {tree}"
        self.machine.taken.append((one.name, one.id))
        return super().turn(one)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


@pytest.fixture(autouse=True)
def _outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process here computes anything."""
    monkeypatch.setattr(check, "computed", lambda *unused: ([], [], []))


def run(machine: Machine, workloads: list[Workload] | None = None, **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, looks, check)
        report, extra = check.check(BASE, HEAD, workloads or [FAST, OTHER], CONDITIONS, spawn=machine, **options)
    assert machine.alive == 0, "a process is left"
    return report, extra


def slower(side: str, workload: Workload, factor: float) -> Speed:
    return lambda name, id, number: factor if name == side and id == workload.id else 1.0


OLD = ["", "base again", "base again head"]


@pytest.mark.parametrize("old", OLD)
def test_nothing_changed(old: str) -> None:
    machine = Machine(old=old)
    said: list[str] = []
    report, extra = run(machine, say=said.append)
    assert report.verdict == CLEAN
    assert report.exit_code == 0
    assert [row.verdict for row in report.rows] == [CLEAN, CLEAN]
    assert report.self_test.workload == FAST.id
    assert (report.self_test.same.verdict, report.self_test.slowed.verdict) == (CLEAN, REGRESSED)
    assert report.self_test.slowed.estimate == pytest.approx(1.05, abs=0.01)
    assert len(extra["reference"]["blocks"]) == machine.blocks == LOOKS[0]
    assert sum("process of its own" in text for text in said) == bool(old)
    assert bool(extra["apart"]) == bool(old)


def test_a_block_is_a_fresh_process_for_each_workload_that_holds_both_trees() -> None:
    machine = Machine()
    run(machine)
    # The questions before have a process each; then one is started, and the reference and each workload has a fork.
    assert machine.opened == ["base", "head", "both"]
    assert machine.forked == ["both"] * LOOKS[0] * (1 + 2)
    assert {name for name, id in machine.taken if id == OTHER.id} == {"base", "head"}
    assert {name for name, id in machine.taken if id == FAST.id} == {"base", "head", "again", "beside", "slowed"}


def test_old_code_has_a_fresh_process_for_each_side_and_whoever_starts_first_is_drawn() -> None:
    machine = Machine(old="base again head")
    run(machine, [FAST])
    assert machine.forked == []
    # "both" was started in vain, to time the reference.
    started = machine.opened[machine.opened.index("both") + 1 :]
    blocks = [started[begin : begin + 4] for begin in range(0, len(started), 4)]
    assert [sorted(block[1:]) for block in blocks] == [["again", "base", "head"]] * LOOKS[0]
    assert {block[0] for block in blocks} == {"head"}, "of the reference"
    assert len({tuple(block) for block in blocks}) > 2


def test_sides_apart_are_forked_from_one_process_of_each_tree() -> None:
    machine = Machine()
    machine.fails["base", "adopt"] = WorkloadError("the code in /base cannot share a process: it has no session")
    said: list[str] = []
    report, extra = run(machine, [FAST], say=said.append)
    assert report.verdict == CLEAN
    why = "the code in /base cannot share a process: it has no session"
    assert f"each side has a process of its own: {why}" in said
    assert extra["apart"] == why
    assert any(note.endswith(why) for note in report.notes)
    begin = machine.opened.index("both") + 1
    assert machine.opened[:begin] == ["base", "head", "both"]
    assert {"again": "base"}.get(machine.opened[begin + 1], machine.opened[begin + 1]) == "base"
    assert machine.opened[begin] == "head"
    assert len(machine.opened) == begin + 2
    assert sorted(set(machine.forked)) == ["again", "base", "head"]


def test_two_interpreters_are_two_processes() -> None:
    machine = Machine()
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, looks)
        duel = Duel(BASE, replace(HEAD, python="other"), [FAST], CONDITIONS, spawn=machine)
        duel.run()
    assert duel.row(FAST).verdict == CLEAN
    assert sorted(machine.opened) == ["base", "head"]


def test_on_a_gpu_nothing_is_forked_and_each_process_adopts_both_trees() -> None:
    machine = Machine()
    workload = replace(FAST, device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, looks)
        duel = Duel(BASE, HEAD, [workload], CONDITIONS, spawn=machine)
        duel.run()
    assert duel.row(workload).verdict == CLEAN
    assert machine.opened == ["both"] * 2 * LOOKS[0]
    assert machine.forked == []


def test_kernels_of_two_trees_are_never_in_one_process() -> None:
    kernel = workload_of("kernel", "normalize", "torch-float32", 2, 32)
    machine = Machine()
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, looks)
        Duel(BASE, HEAD, [kernel], CONDITIONS, spawn=machine).run()
    assert sorted(machine.opened) == ["base", "head"]
    inside = workload_of("inference", "lenet", "fp32-nchw-eager-kernels", 2, 32, 10)
    assert looks.shares_kernels(inside)
    assert not looks.shares_kernels(FAST)


@pytest.mark.parametrize("command", ["turns", "switching"])
def test_a_process_killed_under_both_sides_leads_to_processes_of_their_own(command: str) -> None:
    machine = Machine()
    machine.fails["both", command] = OutOfMemoryError("the process measuring base was killed: most likely ...")
    said: list[str] = []
    report, _ = run(machine, [FAST], say=said.append)
    assert report.verdict == CLEAN
    assert "each side has a process of its own: the process measuring base was killed: most likely ..." in said
    assert len(report.rows[0].blocks) == LOOKS[0], "the block was measured again"
    machine.fails["head", "slice"] = OutOfMemoryError("the process measuring head was killed")
    report, _ = run(machine, [FAST])
    assert report.rows[0].reason == "head: the process measuring head was killed"


def test_what_compiles_is_compiled_once_for_all_blocks() -> None:
    compiled = workload_of("inference", "lenet", "fp32-nchw-compile", 2, 32, 10)
    machine = Machine()
    report, _ = run(machine, [compiled, replace(compiled, task="training")])
    assert report.verdict == CLEAN
    # A backward pass cannot come before a fork.
    assert sorted(machine.prepared) == [("both", side, compiled.id) for side in ("again", "base", "head")]
    machine.fails["head", "prepare"] = WorkerError("no compiler")
    assert run(machine, [compiled])[0].verdict == CLEAN, "what cannot be prepared is built in each block"


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
    # Two seconds of steps of ten milliseconds.
    assert all(16 <= len(block) <= 20 for block in slow.blocks)
    # The second run has only what was slower, and no test of the instrument.
    assert {name for name, _ in machine.taken[-100:]} == {"base", "head"}
    assert machine.opened.count("both") == 2


def test_a_regression_that_a_second_run_does_not_show_fails_nothing() -> None:
    machine = Machine(
        lambda name, id, number: 1.05 if name == "head" and id == OTHER.id and number <= LOOKS[0] else 1.0
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
        lambda name, id, number: 0.95 if name == "head" and id == OTHER.id and number <= LOOKS[0] else 1.0
    )
    report, _ = run(machine)
    row = report.rows[1]
    assert (row.verdict, row.reason) == (UNSURE, "the first run said IMPROVED, the second CLEAN")


def test_a_wrong_answer_to_the_self_test_voids_the_run() -> None:
    report, _ = run(Machine(slower("again", FAST, 1.06)))
    assert (report.verdict, report.exit_code) == ("VOID", 2)
    assert "base against itself" in report.self_test.faults[0]


def test_a_noisy_machine_is_unsure_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Busy, "since", lambda self, before: Load(0.4, 0.0))
    report, _ = run(Machine(scatter=0.2))
    assert (report.verdict, report.exit_code) == (UNSURE, 0)
    assert any("40% of this machine" in note for note in report.notes)
    assert any("self-test stayed UNSURE" in note for note in report.notes)


def test_decided_workloads_are_not_measured_on() -> None:
    def noisy(name: str, id: str, number: int) -> float:
        return 1.2 if id == OTHER.id and (number % 2 == 0) == (name == "head") else 1.0

    report, _ = run(Machine(noisy))
    assert len(report.rows[0].blocks) == LOOKS[0]
    assert len(report.rows[1].blocks) == LOOKS[-1]


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_side_that_fails_in_its_turn_is_named(side: str, old: str) -> None:
    machine = Machine(old=old)
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
    machine.step = lambda workload: 0.01 if workload == looks.small("cpu") else 1.0
    said: list[str] = []
    report, _ = run(machine, [FAST], say=said.append)
    assert report.verdict == CLEAN
    assert [row.workload for row in report.rows] == [FAST.id]
    assert report.self_test.workload == looks.small("cpu").id
    assert (report.self_test.same.verdict, report.self_test.slowed.verdict) == (CLEAN, REGRESSED)
    assert {name for name, id in machine.taken if id == FAST.id} == {"base", "head"}
    assert "head" not in {name for name, id in machine.taken if id == looks.small("cpu").id}
    # In the block that showed it, too: a value of each block at the first look.
    assert report.self_test.same.blocks == LOOKS[0]


def test_a_budget_that_the_first_look_will_exceed_is_said_after_the_second_block() -> None:
    for budget, times in ((1000.0, 0), (20.0, 1)):
        said: list[str] = []
        run(Machine(), [FAST], say=said.append, budget=budget)
        assert sum(f"the first look, after {LOOKS[0]}, comes in about" in text for text in said) == times


def test_one_workload_that_fails_leaves_the_others() -> None:
    machine = Machine()
    machine.fails["head", "build", OTHER.id] = WorkerError("the process measuring head ended")
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
    machine.levers = {"base": [], "again": []}
    kept = workload_of("inference", "lenet", "fp32-nchw-eager-keep", 2, 32, 10)
    peer = workload_of("inference", "lenet", "openvino-fp32", 2, 32, 10)
    said: list[str] = []
    report, _ = run(machine, [kept, FAST, peer], looks=(2,), say=said.append)
    assert not any("process of its own" in text for text in said)
    assert {row.workload: row.verdict for row in report.rows}[kept.id] != "ERROR"
    assert machine.asked[:2] == [("base", "fp32-nchw-eager"), ("head", "fp32-nchw-eager-keep")]
    # It would time the plain step with memory kept, as if the head had become slower.
    [new] = [row for row in report.rows if row.workload == FAST.id]
    assert new.verdict == "NEW"
    assert "always keeps freed memory" in new.reason
    assert ("base", "openvino-fp32") in machine.asked


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
    machine.running = Path("/installed")
    report, _ = run(machine, [FAST])
    assert (report.verdict, report.exit_code) == ("ERROR", 2)
    assert "base runs the code of /installed" in (report.rows[0].reason or "")


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
    asked: list[str] = []

    def fail(side: str, command: str, what: Any) -> Exception | None:
        if (side, command) != ("head", "facts"):
            return None
        asked.append(what["workload"]["task"])
        return OutOfMemoryError("the process measuring head was killed") if len(asked) == 1 else None

    machine.fail = fail  # type: ignore[method-assign]
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
    machine.trees = dict.fromkeys(machine.trees, HEAD)
    with pytest.MonkeyPatch.context() as patch:
        keep_time(machine, patch, looks, baseline)
        report, extra = baseline.check_against(
            Path("old.json"), record, None, CONDITIONS, spawn=machine, tree=HEAD, **options
        )
    assert machine.alive == 0
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
    with pytest.raises(UsageError, match="another machine: device: y against fake"):
        against(other, machine)
    bare = Record.from_json({**record.to_json(), "settings": {}})
    with pytest.raises(UsageError, match="without the reference"):
        against(bare, machine)
    more = workload_of("inference", "lenet", "fp32-nchw-eager", 9, 32, 10)
    with pytest.raises(UsageError, match="holds no time of inference/lenet"):
        baseline.check_against(Path("o.json"), record, [more], CONDITIONS, spawn=machine, tree=HEAD)
    with pytest.raises(UsageError, match="holds no check"):
        baseline.find(tmp_path, lambda text: None, {})
    assert machine.alive == 0


def test_the_newest_check_of_a_folder_is_the_baseline(tmp_path: Path) -> None:
    from results import store

    record = stored()
    for number, created in enumerate(("2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00")):
        store.save(Record.from_json({**record.to_json(), "created": created}), tmp_path / f"{number}.json")
    (tmp_path / "torn.json").write_text("{")
    said: list[str] = []
    here = {"device": "fake", "cores": 2}
    path, found = baseline.find(tmp_path, said.append, here)
    assert (path.name, found.created) == ("1.json", "2026-01-03T00:00:00+00:00")
    assert "torn.json" in said[0]
    assert baseline.find(tmp_path / "0.json", said.append, here)[1].created == "2026-01-02T00:00:00+00:00"
    store.save(Record.from_json({**record.to_json(), "kind": "compare"}), tmp_path / "c.json")
    # What found a slowdown would hide it from the next check.
    told = {**record.settings, "check": {**record.settings["check"], "verdict": REGRESSED}}
    late = {"created": "2026-01-04T00:00:00+00:00"}
    for name, change in {
        "slow": {"settings": told},
        "dirty": {"commit": {"sha": "a" * 40, "dirty": True}},
        "exact": {"metrics": []},
        "elsewhere": {"machine": {**record.machine, "fingerprint": {"device": "another"}}},
    }.items():
        store.save(Record.from_json({**record.to_json(), **late, **change}), tmp_path / f"{name}.json")
    said.clear()
    assert baseline.find(tmp_path, said.append, here)[0].name == "1.json"
    for reason in ("is REGRESSED", "uncommitted changes", "timed nothing", "another machine (device: another)"):
        assert reason in " ".join(said)
    with pytest.raises(UsageError, match="is a compare record"):
        baseline.find(tmp_path / "c.json", said.append, here)


def test_no_look_is_gone_for_beyond_the_budget() -> None:
    """Scatter so wide that nothing is decided at the first look; a budget that is used up then."""
    machine = Machine(scatter=0.2)
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
        if number > 2:
            raise KeyboardInterrupt
        return 1.0

    machine.speed = interrupt
    with pytest.raises(KeyboardInterrupt):
        Duel(BASE, HEAD, [FAST], CONDITIONS, spawn=machine).run()
    assert machine.alive == 0
