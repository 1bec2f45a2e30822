"""What is counted or computed on both sides before anything is timed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from bench.checking.sides import Spawn, open_side, said_by
from bench.checking.trees import Tree
from bench.errors import BenchError, OutOfMemoryError, WorkerError, WorkloadError, on_side
from bench.screen import Say
from bench.sides.crew import Crew, Needs
from bench.sides.process import Worker
from bench.timing.workload import Conditions, Workload
from results.gate import ERROR, NEW, VANISHED, Fact, Row


class Question:
    """One process a side, asked the same at the same time, since nothing is timed; a side may fail on its own.

    The threads are shared out among the two: two teams on the same cores would spend their time waiting for each other.
    """

    def __init__(
        self, base: Tree, head: Tree, threads: int, spawn: Spawn = Worker, workloads: Sequence[Workload] = ()
    ) -> None:
        trees = {"base": base, "head": head}
        self.crew = Crew(lambda name: open_side(trees[name], name, threads, spawn))
        self.needs = Needs.of(workloads)

    def __enter__(self) -> Self:
        try:
            self.crew.start(["base", "head"], self.needs)
        except BaseException:
            self.crew.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.crew.close()

    def restart(self) -> None:
        """Fresh processes for both sides."""
        self.crew.close()
        self.__enter__()

    def ask(
        self, command: str, timeout: float, arguments: Callable[[str], dict[str, Any]]
    ) -> dict[str, dict[str, Any] | BenchError]:
        """Side -> its answer, or what it could not do.

        Args:
            arguments: of the question to a side.
        """
        answers: dict[str, dict[str, Any] | BenchError] = {}
        for name in self.crew:
            try:
                self.crew[name].send(command, **arguments(name))
            except BenchError as error:
                answers[name] = error
        for name in self.crew:
            try:
                if name not in answers:
                    answers[name] = self.crew[name].receive(timeout)
            except BenchError as error:
                answers[name] = error
            # It may be dead or out of step (who was killed for memory is): the next question needs a fresh one.
            if isinstance(answers[name], (WorkerError, OutOfMemoryError)):
                self.crew.replace(name)
        return answers

    def asked(self, workload: Workload, conditions: Conditions, quick: bool, name: str) -> dict[str, Any]:
        """The words of a question to a side about a workload.

        Conditions with a side's share of the threads; what a process says of its machine before is of all of them.
        """
        shared = replace(conditions, threads=max(1, conditions.threads // 2))
        described = self.crew[name].described(workload)
        return {"workload": described, "conditions": shared.to_json(), "quick": quick}

    def one(self, name: str, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """One side's answer; raises what it raised, with the side."""
        with on_side(name):
            return self.crew[name].ask(command, timeout, **arguments)


def exact(
    question: Question,
    workloads: Sequence[Workload],
    conditions: Conditions,
    say: Say,
    quick: bool = False,
    sides: Sequence[str] = ("base", "head"),
) -> tuple[list[Fact], list[Row]]:
    """Every fact of every workload, and a row for each workload that one of `sides` does not have or cannot run."""
    from bench.inspecting.sameness import compare_facts

    found: list[Fact] = []
    gone: list[Row] = []
    for workload in workloads:
        say(f"counting {workload.id}")
        answers = question.ask("facts", 600, partial(question.asked, workload, conditions, quick))
        failed = {name: answer for name in sides if isinstance(answer := answers[name], BenchError)}
        if failed:
            gone.append(absent(workload, failed))
            continue
        base, head = (answers[name] for name in ("base", "head"))
        if isinstance(base, BenchError) or isinstance(head, BenchError):
            continue
        found += compare_facts(workload.id, base, head)
    return found, gone


# How every version words a name that it does not know. Other reasons, such as a package that is not installed, are not
# absence: a side that can run nothing must not pass because all of it is new.
UNKNOWN = re.compile(
    r"unknown (model|loader|kernel|lever|name)\b|no \w+( \w+)? is called |kernel \S+ cannot run here: no kernel is |"
    r"\S+\.py does not exist|no module is called "
)


def absent(workload: Workload, failed: Mapping[str, BenchError]) -> Row:
    """The row of a workload that a side could not do; absent is only what a side itself says it does not have."""
    reasons = "; ".join(f"{name}: {error.summary}" for name, error in failed.items())
    known = all(type(error) is WorkloadError and UNKNOWN.match(str(error)) for error in failed.values())
    verdict = ERROR
    if known and len(failed) == 1:
        verdict = VANISHED if "head" in failed else NEW
    return Row(workload.id, verdict, images=workload.batch, reason=reasons)


def computed(
    question: Question,
    workloads: Sequence[Workload],
    conditions: Conditions,
    folder: Path,
    say: Say,
    quick: bool = False,
) -> tuple[list[Fact], list[Row], list[str]]:
    """Whether both sides compute the same.

    Returns:
        a fact for each workload, a row for each that a side could not compute, and why others could not be compared.
    """
    from bench.inspecting.exact import NETWORKS
    from bench.inspecting.sameness import same_output

    facts: list[Fact] = []
    failed: list[Row] = []
    blind: list[str] = []
    for number, workload in enumerate(workloads):
        if workload.task not in (*NETWORKS, "loading"):
            continue
        say(f"comparing what {workload.id} computes")
        files = {name: folder / f"{name}-{number}.safetensors" for name in ("base", "head")}
        words = {name: question.asked(workload, conditions, quick, name) for name in files}
        try:
            first = question.one("base", "outputs", 600, given="", save=str(files["base"]), **words["base"])
            given = str(files["base"])
            answer = question.one("head", "outputs", 600, given=given, save=str(files["head"]), **words["head"])
        except BenchError as error:
            # Not an output that differs: there is none, and no --allow makes one of it.
            failed.append(Row(workload.id, ERROR, images=workload.batch, reason=said_by(error)))
            question.restart()
            continue
        if answer["differs"]:
            facts.append(Fact(workload.id, "output", None, None, False, (answer["differs"],)))
            continue
        fact = same_output(workload.id, workload.task, files["base"], files["head"])
        # Older code does not say, and has no such fact then.
        if fact.same and first.get("blind"):
            blind.append(f"what {workload.id} computes is not comparable: {first['blind']}")
        else:
            facts.append(fact)
        for file in files.values():
            file.unlink(missing_ok=True)
    return facts, failed, blind
