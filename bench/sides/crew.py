"""Measuring processes as a group: their environment variables, how they are started, built and ended.

The sides of a comparison share a process where they can live together: then their steps alternate with nothing in
between, and all of them meet the same state of the machine. Where they cannot, since a switch of the whole process
differs or the code of one is too old, each has a process of its own and the parent asks them in turn.

Fresh processes are forked from one that has imported everything and never starts a thread pool of its own.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from bench.errors import BenchError, on_side
from bench.sides.process import Built, Warm, Worker
from bench.timing.clock import Slice
from bench.timing.duel import (
    LEAST_ROUNDS,
    Asked,
    Round,
    Rounds,
    SlicePlan,
    Turn,
    plan_slice,
    switching_drop,
    take_turns,
)
from bench.timing.workload import Conditions, Workload
from loaders.cache import cache_folder

# Starts a process under a name, with these variables.
Spawn = Callable[[str, Mapping[str, str]], Worker]


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a measuring process: compiled code is cached, and no thread pool is larger than asked for."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(cache_folder() / "inductor")
    return {
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def spawner(threads: int, spawn: Spawn = Worker) -> Callable[[str], Worker]:
    """What starts a process of this tree's code under a name."""
    return lambda name: spawn(name, worker_environment(threads))


@dataclass(frozen=True)
class Needs:
    """What processes import before anything is timed, all at the same time.

    Attributes:
        models, loaders: names of networks and of loading engines.
        training: steps update weights.
        compiler: steps may be compiled. Importing torch's compiler is a good part of a process's start.
    """

    models: tuple[str, ...] = ()
    loaders: tuple[str, ...] = ()
    training: bool = False
    compiler: bool = True

    @classmethod
    def of(cls, workloads: Iterable[Workload]) -> "Needs":
        """What these workloads need."""
        listed = list(workloads)
        return cls(
            models=tuple(sorted({w.subject for w in listed if w.task not in ("loading", "kernel")})),
            loaders=tuple(sorted({w.loader or w.subject for w in listed if w.reads_files})),
            training=any(w.training for w in listed),
            compiler=any(w.may_compile for w in listed),
        )


@dataclass(frozen=True)
class Entrant:
    """A workload that is built and warm, ready for turns.

    Attributes:
        side: that holds it.
        workload: what a step does.
        warm: how it was after its warm-up.
        plan: length of its slices.
        rest: its process is left alone until it is at rest, since queues are filled or threads spin after a turn.
        each: whether each step is timed on its own.
        slower: share of its time that each step is made to take longer; 0 for none.
    """

    side: str
    workload: Workload
    warm: Warm
    plan: SlicePlan
    rest: bool = False
    each: bool = False
    slower: float = 0.0


class Crew:
    """Sides by name, and the processes that hold them. As a context, it ends all processes.

    Args:
        open_worker: starts a process, given the name of the one it is for.
        forks: fresh processes are forked from one that has imported everything, on Linux. CUDA does not survive a fork.
        kind: process name -> which of them have the same code and environment, so that they are forked from the same.
        furnish: called with each process that is started rather than forked, after its imports.

    Raises:
        BenchError: from every method, what a process could not do; its `side` is the name of the side.
    """

    def __init__(
        self,
        open_worker: Callable[[str], Worker],
        forks: bool = False,
        kind: Callable[[str], str] = lambda name: "",
        furnish: Callable[[Worker], None] = lambda worker: None,
    ) -> None:
        self.open_worker = open_worker
        self.forks = forks and sys.platform == "linux"
        self.kind = kind
        self.furnish = furnish
        self.needs = Needs()
        self._templates: dict[str, Worker] = {}
        self._processes: dict[str, Worker] = {}
        self._homes: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Worker:
        home = self._homes[name]
        worker = self._processes[home]
        # A process of one side needs no names, and older code knows none.
        return worker if home == name else worker.seat(name)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._homes))

    def start(self, names: Sequence[str], needs: Needs, homes: Mapping[str, str] | None = None) -> None:
        """Give each side a fresh process, in this order, and wait until all have imported what they need.

        Args:
            homes: side -> name of its process, for sides that share one.
        """
        self.needs = needs
        homes = homes or {}
        begun: dict[str, str] = {}
        for name in names:
            home = self._homes[name] = homes.get(name, name)
            if home not in self._processes:
                begun.setdefault(home, name)
        if self.forks:
            # One of a kind, which the others are forked from.
            firsts: dict[str, str] = {}
            for home in begun:
                if self.kind(home) not in self._templates:
                    firsts.setdefault(self.kind(home), home)
            self._open({home: begun[home] for home in firsts.values()})
            for home, name in begun.items():
                if self.kind(home) in self._templates:
                    with on_side(name):
                        self._processes[home] = self._forked(home, name)
        self._open({home: name for home, name in begun.items() if home not in self._processes})

    def _open(self, homes: Mapping[str, str]) -> None:
        """Start processes, and have them import what is needed at the same time; some become templates of others.

        Args:
            homes: name of a process -> the side to blame.
        """
        for home, name in homes.items():
            with on_side(name):
                self._processes[home] = self.open_worker(home)
        for home, name in homes.items():
            with on_side(name):
                self._processes[home].greet(asdict(self.needs))
        for home, name in homes.items():
            with on_side(name):
                worker = self._processes[home]
                worker.greeted()
                self.furnish(worker)
                if self.forks and worker.hosts:
                    self._templates[self.kind(home)] = self._processes.pop(home)

    def _forked(self, home: str, name: str) -> Worker:
        kind = self.kind(home)
        try:
            return self._templates[kind].fork(home)
        except BenchError:
            # It died: the kernel ends measuring processes first where memory runs out.
            self._templates.pop(kind).close()
            self._open({home: name})
            return self._templates[kind].fork(home)

    def replace(self, name: str) -> None:
        """End the process of this side, whatever state it is in, and start a fresh one for all of its sides."""
        sides = self.beside(name)
        self._processes.pop(self._homes[name]).close()
        self.start(sides, self.needs, dict(self._homes))

    def beside(self, name: str) -> list[str]:
        """The sides that are in the same process, this one included."""
        return [side for side, home in self._homes.items() if home == self._homes[name]]

    def end(self, name: str) -> None:
        """End the process of one side."""
        home = self._homes.pop(name)
        if home not in self._homes.values():
            self._processes.pop(home).close()

    def end_block(self) -> None:
        """End every process but those that others are forked from."""
        self._homes.clear()
        while self._processes:
            self._processes.popitem()[1].close()

    def close(self) -> None:
        """End every process."""
        self.end_block()
        while self._templates:
            self._templates.popitem()[1].close()

    def together(self, names: Iterable[str]) -> bool:
        """Whether these sides are in one process that can hold several."""
        listed = list(names)
        homes = {self._homes[name] for name in listed}
        return len(homes) == 1 and self[listed[0]].hosts

    def prepare(self, name: str, workload: Workload, conditions: Conditions, home: str) -> Built | None:
        """Build a side's workload where its processes are forked from; None where they are not, or it cannot be.

        Compiling takes seconds that every block would spend again. A backward pass cannot come before a fork, and
        neither can a foreign engine's threads. Only frozen weights are shared by the blocks: they are part of the
        compiled code; all else is built anew in each.

        Args:
            home: name of the process that will hold the side.
        """
        template = self._templates.get(self.kind(home)) if self.forks else None
        configured = workload.configuration
        if template is None or workload.training or not getattr(configured, "compiles", False):
            return None
        with on_side(name):
            return (template if home == name else template.seat(name)).prepare(workload, conditions)

    def build(
        self, names: Sequence[str], workloads: Sequence[Workload], conditions: Conditions, together: bool = False
    ) -> dict[str, Built]:
        """Have each side build the same workloads, one after another.

        Args:
            together: all at the same time, where they have a process each: compiling is one core's work. What is not
                compiled runs its first step right away, and its threads would wait for those of the other processes.
        """
        built = {}
        apart = len({self._homes[name] for name in names}) == len(names)
        for group in [list(names)] if together and apart else [[name] for name in names]:
            for name in group:
                with on_side(name):
                    self[name].begin_build(workloads, conditions)
            for name in group:
                with on_side(name):
                    built[name] = self[name].built()
        return built

    def release(self, workloads: Mapping[str, Sequence[Workload]]) -> None:
        """Have each side named forget its workloads: nothing is timed."""
        for name, listed in workloads.items():
            with on_side(name):
                self[name].send("release", ids=[workload.id for workload in listed])
                self[name].receive(60)

    def warm(self, name: str, workload: Workload, prefetch: int = 0) -> Entrant:
        """Warm up a workload that is built, and plan its turns."""
        with on_side(name):
            warm = self[name].warm(workload)
        plan = plan_slice(warm.seconds_per_step, workload.device, prefetch)
        # Threads of foreign engines spin after a call.
        rest = bool(prefetch) or getattr(workload.configuration, "peer", None) is not None
        return Entrant(name, workload, warm, plan, rest)

    def settled(self, entrants: Mapping[str, Entrant]) -> dict[str, Entrant]:
        """The same, with the untimed steps that changing sides was measured to need.

        Raises:
            BenchError: as take_turns.
        """
        asked = {name: one for name, one in entrants.items() if not one.plan.drop}
        seconds = {name: one.warm.seconds_per_step for name, one in asked.items()}
        sides = [one.side for one in asked.values()]
        if len(asked) < 2:
            return dict(entrants)
        if self.together(sides):
            answer = self[sides[0]].switching(self._asked(asked), seconds)
        else:

            def run(name: str, one: Entrant) -> Callable[[int], Sequence[float]]:
                def steps(number: int) -> Sequence[float]:
                    with on_side(name):
                        return self[one.side].slice(one.workload, SlicePlan(number), True, rest=one.rest).samples

                return steps

            answer = switching_drop({name: run(name, one) for name, one in asked.items()}, seconds)
        return {
            name: replace(one, plan=replace(one.plan, drop=answer[name])) if answer.get(name) else one
            for name, one in entrants.items()
        }

    def turn(self, one: Entrant) -> Turn:
        """A turn of one side, asked for by this process."""

        def take() -> Slice:
            # Looked up at each turn: the process may have been replaced.
            return self[one.side].slice(one.workload, one.plan, one.each, one.slower, one.rest)

        return take

    def take_turns(
        self,
        entrants: Mapping[str, Entrant],
        rounds: int | Rounds,
        rng: random.Random,
        taken: Callable[[list[Round]], None] | None = None,
    ) -> list[Round]:
        """Rounds of turns, inside the process that holds all sides, or by asking each process in turn.

        Args:
            taken: called with the rounds so far, after each one or, inside a process, after the first few.

        Raises:
            BenchError: what a side raised in its turn; its `side` is the name of the turn.
        """
        wanted = Rounds.exactly(rounds) if isinstance(rounds, int) else rounds
        sides = [one.side for one in entrants.values()]
        if not self.together(sides):
            turns = {name: self.turn(one) for name, one in entrants.items()}
            return take_turns(turns, wanted, rng, taken or (lambda rounds: None))
        holder, asked, begin = self[sides[0]], self._asked(entrants), time.monotonic()
        done: list[Round] = []
        if taken is not None:
            done += holder.turns(asked, Rounds.exactly(min(LEAST_ROUNDS, wanted.most)), rng.randrange(1 << 30))
            taken(done)
            left = max(0.0, wanted.seconds - (time.monotonic() - begin))
            wanted = Rounds(left, wanted.most - len(done), max(0, wanted.least - len(done)))
        return [*done, *(holder.turns(asked, wanted, rng.randrange(1 << 30)) if wanted.most else ())]

    def _asked(self, entrants: Mapping[str, Entrant]) -> list[Asked]:
        # A process of one side knows that side without a name, see __getitem__.
        seats = {one.side: "" if self._homes[one.side] == one.side else one.side for one in entrants.values()}
        return [
            Asked(name, seats[one.side], one.workload.id, one.plan, one.each, one.slower)
            for name, one in entrants.items()
        ]


def enter(crew: Crew, name: str, workload: Workload, conditions: Conditions, within: float = 900.0) -> Entrant:
    """Build a workload in a process, in so many seconds at most, and warm it up.

    Raises:
        BenchError: it cannot be built, or does not fit.
    """
    built = crew[name].build([workload], conditions, within)
    return crew.warm(name, workload, built.prefetch[workload.id])
