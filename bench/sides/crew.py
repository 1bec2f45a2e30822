"""Measuring processes as a group: their environment variables, how they are started, built and ended."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from bench.errors import on_side
from bench.sides.process import Built, Worker
from bench.timing.clock import Slice
from bench.timing.duel import SLICE_SECONDS, SlicePlan, Turn, plan_slice
from bench.timing.steady import WARM_UP_CAP
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


class Crew:
    """Measuring processes by name. As a context, it ends all of them.

    Args:
        open_worker: starts the process of a name.

    Raises:
        BenchError: from every method, what a process could not do; its `side` is the name of the process.
    """

    def __init__(self, open_worker: Callable[[str], Worker]) -> None:
        self.open_worker = open_worker
        self.needs = Needs()
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._workers

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._workers))

    def start(self, names: Sequence[str], needs: Needs) -> None:
        """Start a fresh process for each name, in this order, and wait until all have imported what they need."""
        self.needs = needs
        for name in names:
            with on_side(name):
                self._workers[name] = self.open_worker(name)
        for name in names:
            with on_side(name):
                self._workers[name].greet(asdict(needs))
        for name in names:
            with on_side(name):
                self._workers[name].greeted()

    def replace(self, name: str) -> Worker:
        """End the process of this name, whatever state it is in, and start a fresh one."""
        self.end(name)
        self.start([name], self.needs)
        return self._workers[name]

    def end(self, name: str) -> None:
        """End one process."""
        self._workers.pop(name).close()

    def close(self) -> None:
        """End every process."""
        while self._workers:
            self._workers.popitem()[1].close()

    def build(
        self, names: Sequence[str], workloads: Sequence[Workload], conditions: Conditions, together: bool = False
    ) -> dict[str, Built]:
        """Have each process build the same workloads, one after another.

        Args:
            together: all at the same time: compiling is one core's work. What is not compiled runs its first step
                right away, and its threads would wait for those of the other processes.
        """
        built = {}
        for group in [list(names)] if together else [[name] for name in names]:
            for name in group:
                with on_side(name):
                    self._workers[name].begin_build(workloads, conditions)
            for name in group:
                with on_side(name):
                    built[name] = self._workers[name].built()
        return built

    def release(self, workloads: Mapping[str, Sequence[Workload]]) -> None:
        """Have each process named forget its workloads, all at the same time: nothing is timed."""
        for name, listed in workloads.items():
            self._workers[name].send("release", ids=[workload.id for workload in listed])
        for name in workloads:
            self._workers[name].receive(60)

    def turn(self, name: str, workload: Workload, length: SlicePlan, each: bool = False, twice_every: int = 0) -> Turn:
        """A turn of a workload that this process has built, for take_turns; see Worker.slice."""

        def take() -> Slice:
            # Looked up at each turn: the process may have been replaced.
            return self._workers[name].slice(workload, length.steps, length.drop, each, 300, twice_every)

        return take


@dataclass(frozen=True)
class Entrant:
    """A workload that is built and warm in a process of its own, ready for a duel.

    Attributes:
        take: one turn of it.
        images: worked through in a step.
    """

    take: Turn
    images: int


def enter(crew: Crew, name: str, workload: Workload, conditions: Conditions, begun: bool = False) -> Entrant:
    """Build a workload in a process and warm it up.

    Args:
        begun: the process was told to build it before.

    Raises:
        BenchError: it cannot be built, or does not fit.
    """
    worker = crew[name]
    built = worker.built() if begun else worker.build([workload], conditions)
    seconds = worker.warm(workload, WARM_UP_CAP[workload.task])
    length = plan_slice(seconds, SLICE_SECONDS, built.prefetch[workload.id])
    return Entrant(crew.turn(name, workload, length), workload.batch)
