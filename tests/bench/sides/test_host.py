"""Processes that hold several sides and are forked, and what one answers from inside."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from workloads import workload_of

from bench.errors import BenchError, OutOfMemoryError, WorkerError, WorkloadError
from bench.sides import host as host_module
from bench.sides.crew import Crew, Needs
from bench.sides.host import MEMORY_WORDS, Host, answer_all, describe
from bench.sides.process import Worker
from bench.sides.session import Session
from bench.timing.duel import Asked, Rounds, SlicePlan
from bench.timing.step import Step
from bench.timing.workload import Conditions, Workload
from loaders.errors import DataError

LENET = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)
FROZEN = workload_of("inference", "lenet", "fp32-nchw-eager-freeze", 2, 32, 10)
CONDITIONS = Conditions(threads=1)
SEVERAL = Conditions(threads=2)


def greeted(name: str, compiler: bool = False) -> Worker:
    worker = Worker(name)
    worker.greet({"models": ["lenet"], "loaders": [], "training": False, "compiler": compiler})
    worker.greeted()
    return worker


@pytest.fixture(scope="module")
def template() -> Iterator[Worker]:
    with closing(greeted("template")) as worker:
        yield worker


@pytest.fixture
def forked(template: Worker) -> Iterator[Worker]:
    with closing(template.fork("forked")) as worker:
        yield worker


def gone(pid: int) -> bool:
    """Whether a process ends within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_forked_process_is_one_of_its_own(template: Worker, forked: Worker) -> None:
    with closing(template.fork("other")) as other:
        assert len({template.pid, forked.pid, other.pid}) == 3
        assert forked.hosts
        forked.build([LENET], CONDITIONS)
        assert forked.slice(LENET, SlicePlan(3, 1), each=True).steps == 3
        with pytest.raises(WorkerError, match="other: KeyError"):
            other.slice(LENET, SlicePlan(1))
        # Each has a line of its own.
        forked.send("machine")
        other.send("missing", loader="pil", device="cpu")
        assert other.receive(60) == {"reason": None}
        assert "fingerprint" in forked.receive(60)
    assert gone(other.pid)
    assert forked.slice(LENET, SlicePlan(1)).steps == 1


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, OutOfMemoryError, "the process measuring forked was killed: most likely the machine ran out"),
        (signal.SIGSEGV, WorkerError, r"forked (closed its input|ended) \(signal SIGSEGV\)"),
    ],
)
def test_a_forked_process_that_is_killed_is_reported_as_any_other(
    template: Worker, forked: Worker, number: signal.Signals, kind: type[BenchError], words: str
) -> None:
    os.kill(forked.pid, number)
    with pytest.raises(kind, match=words):
        forked.ask("machine")
    with closing(template.fork("next")) as following:
        assert following.ask("missing", loader="pil", device="cpu") == {"reason": None}


def test_forked_processes_end_with_the_one_they_were_forked_from() -> None:
    template = Worker("template")
    forked = template.fork("forked")
    os.kill(template.pid, signal.SIGKILL)
    assert gone(forked.pid)
    with pytest.raises(OutOfMemoryError):
        template.fork("late")
    with pytest.raises(WorkerError, match="forked"):
        forked.ask("machine")
    forked.close()
    template.close()
    template.close()


def test_forked_processes_end_however_the_parent_of_all_does() -> None:
    script = (
        "import os\nfrom bench.sides.process import Worker\nw = Worker('w')\nf = w.fork('f')\n"
        "print(w.pid, f.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert [gone(int(pid)) for pid in done.stdout.split()] == [True, True]


def test_a_process_that_was_ended_is_not_asked_through_a_descriptor_that_is_another_s_by_now() -> None:
    first = Worker("first")
    first.close()
    with closing(Worker("second")) as second:
        with pytest.raises(WorkerError, match="first was ended"):
            first.ask("reap", pid=1)
        # Its answer would stand here.
        second.send("release", ids=[])
        assert second.receive(120) == {}


def test_each_side_has_networks_of_its_own(forked: Worker) -> None:
    one, other = forked.seat("one"), forked.seat("other")
    for seat in (one, other):
        assert seat.build([LENET], CONDITIONS).prefetch == {LENET.id: 0}
        assert seat.warm(LENET, cap=0.01).seconds_per_step > 0
    one.ask("release", ids=[LENET.id])
    assert other.slice(LENET, SlicePlan(2)).steps == 2
    with pytest.raises(WorkerError, match="one: KeyError"):
        one.slice(LENET, SlicePlan(2))
    assert forked.pid == one.pid == other.pid


def test_turns_inside_the_process_are_those_that_were_asked_for(forked: Worker) -> None:
    for side in ("one", "other"):
        forked.seat(side).build([LENET], CONDITIONS)
    asked = [
        Asked("a", "one", LENET.id, SlicePlan(3, 2), each=True),
        Asked("b", "other", LENET.id, SlicePlan(1)),
        Asked("c", "other", LENET.id, SlicePlan(4), slower=2.0),
    ]
    assert forked.switching(asked[:2], {"a": 0.001, "b": 0.001}).keys() == {"a", "b"}
    rounds = forked.turns(asked, Rounds.exactly(30), seed=1)
    assert len(rounds) == 30
    for turns in rounds:
        assert list(turns) == ["a", "b", "c"]
        assert [turn.steps for turn in turns.values()] == [3, 1, 4]
        assert [len(turn.samples) for turn in turns.values()] == [3, 0, 0]
        assert sum(turns["a"].samples) == pytest.approx(turns["a"].seconds)
    # Three times as long: no busy machine hides that.
    longer = statistics.median(turns["c"].seconds_per_step / turns["a"].seconds_per_step for turns in rounds)
    assert longer > 1.5
    assert len(forked.turns(asked, Rounds(0.0), seed=1)) == 2


def test_a_crew_of_two_is_one_process_forked_for_each_block(template: Worker) -> None:
    opened: list[str] = []

    def open_worker(name: str) -> Worker:
        opened.append(name)
        return Worker(name)

    pids = set()
    with Crew(open_worker, forks=True) as crew:
        for _ in range(2):
            crew.start(["a", "b"], Needs(models=("lenet",), compiler=False), {"a": "both", "b": "both"})
            built = crew.build(["a", "b"], [LENET], CONDITIONS)
            assert set(built) == {"a", "b"}
            assert crew.together(["a", "b"])
            assert crew["a"].pid == crew["b"].pid
            pids.add(crew["a"].pid)
            crew.end_block()
        assert [gone(pid) for pid in pids] == [True, True]
    assert opened == ["both"]


@pytest.mark.parametrize("workload", [LENET, FROZEN])
def test_what_was_prepared_before_a_fork_runs_after_it_on_several_threads(template: Worker, workload: Workload) -> None:
    template.seat("prepared").prepare(workload, SEVERAL)
    numbers = []
    for name in ("first", "second"):
        with closing(template.fork(name)) as forked:
            seat = forked.seat("prepared")
            seat.build([workload], SEVERAL)
            seat.slice(workload, SlicePlan(2))
            numbers.append(seat.ask("parity", id=workload.id, conditions={"threads": 2}))
            with pytest.raises(WorkerError, match="KeyError"):
                forked.seat("another").slice(workload, SlicePlan(2))
    assert numbers[0] == numbers[1]
    assert numbers[0]["images"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "levers", [pytest.param("fp32-nchw-compile", marks=pytest.mark.night), "fp32-nchw-compile-freeze"]
)
def test_what_was_compiled_before_a_fork_is_not_compiled_again_and_computes_the_same(levers: str) -> None:
    workload = workload_of("inference", "lenet", levers, 2, 32, 10)

    def logits(worker: Worker) -> dict[str, Any]:
        worker.slice(workload, SlicePlan(2))
        return worker.ask("parity", 300, id=workload.id, conditions={"threads": 2})

    with closing(greeted("template", compiler=True)) as template:
        with closing(template.fork("without")) as direct:
            assert direct.build([workload], SEVERAL).cache != "none"
            expected = logits(direct)
        prepared = template.prepare(workload, SEVERAL)
        assert prepared.cache != "none"
        for name in ("first", "second"):
            with closing(template.fork(name)) as forked:
                built = forked.build([workload], SEVERAL)
                # Frozen weights are part of the compiled code, so the very step is used; others are built anew.
                assert built == prepared if workload.network.freeze else built.cache == "none"
                assert logits(forked) == expected


@pytest.mark.slow
def test_what_was_not_compiled_before_a_fork_is_compiled_after_it() -> None:
    """The compiler's threads stay behind in the process that was forked; waiting for them would never end."""
    first, other = (workload_of("inference", "lenet", "fp32-nchw-compile", batch, 32, 10) for batch in (2, 3))
    with closing(greeted("template", compiler=True)) as template:
        template.prepare(first, SEVERAL)
        with closing(template.fork("forked")) as forked:
            assert forked.build([other], SEVERAL).cache != "none"
            assert forked.slice(other, SlicePlan(2)).steps == 2


# From inside, without processes


class Steps:
    """A session whose steps are given."""

    def __init__(self, **calls: Callable[[], object]) -> None:
        self.steps = {id: Step(LENET, call, 2) for id, call in calls.items()}
        self.closed = False

    def close(self) -> None:
        self.closed = True


def broken() -> None:
    raise RuntimeError("no such luck")


def told(host: Host, *questions: dict[str, Any]) -> list[dict[str, Any]]:
    """What a process answers, line by line."""
    answers = StringIO()
    assert answer_all(host, [json.dumps(question) for question in questions], answers) is None
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def asked(name: str, id: str = "step") -> dict[str, Any]:
    return {"name": name, "side": name, "id": id, "plan": {"steps": 1, "drop": 0}, "each": False, "slower": 0.0}


@pytest.mark.parametrize(
    "question",
    [
        {"command": "turns", "rounds": {"seconds": 0.0}, "seed": 0},
        {"command": "switching", "seconds": {"good": 0.001, "bad": 0.001}},
    ],
)
def test_a_side_that_fails_in_its_turn_is_named(question: dict[str, Any]) -> None:
    host = Host()
    host.sessions = {"good": Steps(step=lambda: sum(range(100))), "bad": Steps(step=broken)}
    [answer] = told(host, {**question, "turns": [asked("good"), asked("bad")], "side": "good"})
    assert answer == {"kind": "internal", "error": "RuntimeError: no such luck", "side": "bad"}


def test_a_queue_or_a_foreign_engine_is_left_to_come_to_rest_after_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[str] = []
    monkeypatch.setattr(host_module, "settle", lambda: settled.append("rest"))
    host = Host()
    host.sessions = {"a": Steps(step=lambda: None), "b": Steps(step=lambda: None)}
    question = {"command": "turns", "rounds": {"most": 3, "least": 3}, "seed": 0, "turns": [asked("a"), asked("b")]}
    told(host, question)
    assert settled == []
    host.sessions["b"].steps["step"].prefetch = 2
    told(host, question)
    assert len(settled) == 6
    host.sessions["b"].steps["step"].prefetch = 0
    host.sessions["a"].steps["step"].converted = True
    told(host, question)
    assert len(settled) == 12


def test_compiled_code_is_forgotten_with_the_last_compiled_step_of_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(host_module, "forget_compiled", lambda: forgotten.append("all"))
    host = Host()
    host.sessions = {"a": Steps(one=lambda: None, two=lambda: None), "b": Steps(one=lambda: None)}
    for session in host.sessions.values():
        for step in session.steps.values():
            step.compiled = True
    for side, id, times in (("a", "one", 0), ("a", "one", 0), ("a", "two", 0), ("b", "one", 1)):
        told(host, {"command": "release", "ids": [id], "side": side})
        assert len(forgotten) == times
    host.examples.append(SimpleNamespace(compiled=True))
    told(host, {"command": "release", "ids": ["one"], "side": "b"})
    assert len(forgotten) == 1, "others are to find it when they are built"


def test_a_forked_process_gets_a_heap_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "setsid", lambda: done.append("alone"))
    monkeypatch.setattr(host_module, "end_with_parent", lambda *_, **__: None)
    monkeypatch.setattr(host_module, "scatter_heap", lambda: done.append("scattered"))
    monkeypatch.setattr(host_module, "forget_threads", lambda: done.append("without threads"))
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(tmp_path / "line"))
        line.listen()
        host = Host()
        host.fork(str(tmp_path / "line"))
        for end in host.line or ():
            end.close()
    assert done == ["alone", "scattered", "without threads"]


def test_questions_of_one_side_reach_its_session_and_no_other() -> None:
    host = Host()
    given = Steps()
    host.sessions["old"] = given
    told(host, {"command": "close", "side": "new"})
    assert not given.closed
    assert isinstance(host.sessions["new"], Session)
    assert told(host, {"command": "no such question"})[0]["kind"] == "internal"
    host.close()
    assert given.closed


@pytest.mark.parametrize("words", MEMORY_WORDS)
def test_every_wording_of_a_failed_allocation_is_recognised(words: str) -> None:
    assert describe(RuntimeError(f"[enforce fail] something: {words}"))["kind"] == "memory"


def test_errors_of_every_tree_are_known_by_their_names() -> None:
    class ModelError(Exception):
        """Another tree's."""

    class UnknownError(ModelError):
        pass

    assert describe(UnknownError("no model is called x")) == {
        "kind": "workload",
        "error": "no model is called x",
        "side": "",
    }
    assert describe(DataError("no images"))["kind"] == describe(WorkloadError("no"))["kind"] == "workload"
    assert describe(MemoryError())["kind"] == "memory"
    error = KeyError("x")
    error.side = "head"  # type: ignore[attr-defined]
    assert describe(error) == {"kind": "internal", "error": "KeyError: 'x'", "side": "head"}
