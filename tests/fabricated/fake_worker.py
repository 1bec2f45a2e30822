"""A measuring process that measures nothing: known speeds, a shared drifting machine, and failures on request."""

import copy
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bench.errors import BenchError, on_side
from bench.inspecting import reference
from bench.processes import SOURCE
from bench.sides.host import read_asked
from bench.sides.process import Worker
from bench.timing import duel
from bench.timing.clock import Slice
from bench.timing.duel import Asked, Rounds, SlicePlan, switching_drop, take_turns
from bench.timing.workload import Workload
from models.configuration import levers

COST = {
    "model": "",
    "params": 1000,
    "parameter_tensors": 4,
    "state_entries": 6,
    "weight_bytes": 4000,
    "macs": 500_000,
    "flops": 1_000_000,
    "training_flops": 3_000_000,
    "activations": 2000,
}
MEMORY = {
    "weights": 4000,
    "gradients": 0,
    "optimizer": 0,
    "inputs": 100,
    "workspace": 900,
    "slack": 0,
    "engine": 0,
    "peak": 5000,
    "counted": True,
    "peaks": [],
    "process": 9000,
    "residue": 4000,
}


# Seconds that its processes take for what is not timed.
OPENING, FORKING, ANSWERING = 1.0, 0.05, 0.01


class Machine:
    """What all fake processes share: a clock, and noise that moves slowly, as a noisy neighbour's does.

    Attributes:
        hosts: its processes can hold several sides, and fork.
        compiler: it has one for torch.compile.
        now: seconds that its processes have worked so far.
        opened: names of the processes that were started, in order.
        forked: those of the processes that were forked.
        alive: processes that were not ended yet.
        prepared: (process, side, workload id) of what was built before a fork, or the reason why it could not be.
    """

    def __init__(self, seed: int = 0, noise: float = 0.0, drift: float = 0.0, hosts: bool = True) -> None:
        self.rng = random.Random(seed)
        self.noise, self.drift, self.hosts = noise, drift, hosts
        self.compiler = False
        self.level = 1.0
        self.now = 0.0
        self.alive = 0
        self.opened: list[str] = []
        self.forked: list[str] = []
        self.prepared: list[tuple[str, str, str]] = []

    def clock(self) -> float:
        return self.now

    def factor(self) -> float:
        self.level *= 1 + self.rng.uniform(-self.drift, self.drift)
        return self.level * self.share()

    def share(self) -> float:
        return math.exp(self.rng.gauss(0, self.noise))


def keep_time(machine: Machine, patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Have rounds, and these modules, read the machine's clock."""
    for module in (duel, *modules):
        patch.setattr(module, "time", SimpleNamespace(monotonic=machine.clock, time=time.time))


class Process:
    """What is a process's own, whichever side asks it.

    Attributes:
        name: under which it was started or forked.
        roots: side -> the tree that it adopted.
        steps: (side, workload id) -> workload.
        offsets: side -> by how much its times differ from those of other processes.
    """

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine
        self.hosts = self.closed = False
        self.levers: dict[str, frozenset[str]] = {}
        self.ids: dict[str, dict[str, str]] = {}
        self.queue: list[tuple[FakeWorker, dict[str, Any]]] = []
        self.roots: dict[str, Path] = {}
        self.steps: dict[tuple[str, str], Workload] = {}
        self.offsets: dict[str, float] = {}
        machine.alive += 1

    def offset(self, side: str) -> float:
        if side not in self.offsets:
            self.offsets[side] = self.machine.share()
        return self.offsets[side]


class FakeWorker(Worker):
    """A Worker whose questions are answered here; `seconds(side, workload)` is the time of a step without noise.

    Args:
        fail: (side, command, what) -> what it raises, None for nothing. What is the workload of "build", "prepare",
            "warm" and "slice", a turn inside the process among them, else the command's arguments. Of "fork",
            "switching" and "turns" the side is the process.
        energy: (side, watts at rest) -> the answer.
        error: workload id -> how much its logits differ from plain fp32's.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        seconds: Callable[[str, Any], float],
        fail: Callable[[str, str, Any], BenchError | None] = lambda name, command, what: None,
        energy: Callable[[str, Any], dict[str, Any]] | None = None,
        error: Callable[[str], float] = lambda id: 0.01,
        source: Path = SOURCE,
    ) -> None:
        self.name, self.side, self.source = name, "", source
        self.machine, self.seconds, self.fail, self.energy, self.error = machine, seconds, fail, energy, error
        self._channel: Any = Process(name, machine)
        machine.opened.append(name)
        machine.now += OPENING

    @property
    def pid(self) -> int:
        """Of no process that there is."""
        return 1 << 30

    def fork(self, name: str) -> "FakeWorker":
        own = self._channel
        self.refuse(own.name, "fork", {})
        forked = copy.copy(self)
        forked.name = name
        forked._channel = Process(name, self.machine)
        forked._channel.__dict__.update(hosts=own.hosts, levers=own.levers, ids=own.ids, roots=dict(own.roots))
        self.machine.forked.append(name)
        self.machine.now += FORKING
        return forked

    def close(self) -> None:
        if not self._channel.closed:
            self.machine.alive -= 1
        self._channel.closed = True

    def _write(self, question: Mapping[str, Any]) -> None:
        self._channel.queue.append((self, json.loads(json.dumps(question))))

    def receive(self, timeout: float) -> dict[str, Any]:
        asked, question = self._channel.queue.pop(0)
        return asked.answer(question.pop("command"), question)

    def _failure(self, what: str) -> BenchError:
        raise AssertionError(f"{self.name} {what}")

    def refuse(self, name: str, command: str, what: Any) -> None:
        error = self.fail(name, command, what)
        if error is not None:
            raise copy.copy(error)

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the process answers to this side."""
        self.machine.now += ANSWERING
        made = getattr(self, f"answer_{command}", None)
        if made is not None:
            return made(**{name: value for name, value in arguments.items() if name != "side" or command == "adopt"})
        self.refuse(self.name, command, arguments)
        answers = {
            "hello": {
                "source": str(self._channel.roots.get(self.side, self.source)),
                "levers": list(levers()),
                "hosts": self.machine.hosts,
            },
            "machine": {"fingerprint": {"device": "fake", "cores": 2}},
            # Without a compiler and bfloat16, fast is fp32-nhwc-eager.
            "device": {"kind": "cpu", "bf16": False, "compiler": self.machine.compiler},
            "cost": {**COST, "model": arguments.get("model"), "classes": 10, "size": 32},
            "ceilings": {"precision": arguments.get("precision"), "flops": 1e12, "bandwidth": 1e11},
            "reference": {"id": reference.ID, "seconds": 0.001},
            "missing": {"reason": None},
            "unreadable": {"files": 10, "bad": []},
            "memory": {**MEMORY, "processes": [8900, 9000, 9050][: arguments.get("readings")]},
            "parity": {"rms": self.error(arguments.get("id", "")), "same_top1": 8, "images": 8, "blind": ""},
            "energy": {"missing": "no readable energy counter on this machine"},
        }
        if command == "energy" and self.energy is not None:
            return self.energy(self.name, arguments["idle"])
        return answers.get(command, {})

    def answer_adopt(self, side: str, root: str) -> dict[str, Any]:
        self.refuse(side, "adopt", root)
        self._channel.roots[side] = Path(root)
        return {}

    def answer_build(self, workloads: Any, command: str = "build", **more: Any) -> dict[str, Any]:
        listed = [Workload.from_json(data) for data in workloads]
        for workload in listed:
            self.refuse(self.name, command, workload)
            self._channel.steps[self.side, workload.id] = workload
        return {"compile_seconds": 0.0, "cache": "none", "notes": [], "prefetch": {w.id: 0 for w in listed}}

    def answer_prepare(self, workloads: Any, ids: Any, **more: Any) -> dict[str, Any]:
        self.machine.prepared.append((self._channel.name, self.side, ids[0]))
        return self.answer_build(workloads, "prepare")

    def answer_release(self, ids: Any) -> dict[str, Any]:
        self.refuse(self.name, "release", ids)
        for id in ids:
            self._channel.steps.pop((self.side, id), None)
        return {}

    def answer_warm(self, id: str, cap: float) -> dict[str, Any]:
        workload = self._channel.steps[self.side, id]
        self.refuse(self.name, "warm", workload)
        return {"seconds_per_step": self.seconds(self.name, workload), "stable": True}

    def answer_slice(
        self,
        id: str,
        steps: int,
        drop: int,
        each: bool,
        slower: float = 0.0,
        twice_every: int = 0,
        rest: bool = True,
    ) -> dict[str, Any]:
        if twice_every:
            slower = (steps // twice_every) / steps
        return asdict(self.turn(Asked(self.name, self.side, id, SlicePlan(steps, drop), each, slower)))

    def turn(self, one: Asked) -> Slice:
        """A turn of one side of the process."""
        workload = self._channel.steps[one.side, one.id]
        # A process of one side has its name.
        name = one.side or self._channel.name
        self.refuse(name, "slice", workload)
        seconds = self.seconds(name, workload) * self._channel.offset(one.side) * (1 + one.slower)
        samples = tuple(seconds * self.machine.factor() for _ in range(one.plan.steps)) if one.each else ()
        total = sum(samples) if one.each else one.plan.steps * seconds * self.machine.factor()
        self.machine.now += total + one.plan.drop * seconds
        return Slice(total, one.plan.steps, samples)

    def answer_switching(self, turns: Any, seconds: Any) -> dict[str, Any]:
        self.refuse(self._channel.name, "switching", turns)

        def run(one: Asked) -> Callable[[int], tuple[float, ...]]:
            def steps(number: int) -> tuple[float, ...]:
                with on_side(one.name):
                    return self.turn(replace(one, plan=SlicePlan(number), each=True)).samples

            return steps

        return {"drop": switching_drop({one.name: run(one) for one in map(read_asked, turns)}, seconds)}

    def answer_turns(self, turns: Any, rounds: Any, seed: int) -> dict[str, Any]:
        self.refuse(self._channel.name, "turns", turns)
        sides = {one.name: lambda one=one: self.turn(one) for one in map(read_asked, turns)}
        taken = take_turns(sides, Rounds(**rounds), random.Random(seed))
        return {"rounds": [[asdict(row[name]) for name in sides] for row in taken]}


def spawner(
    machine: Machine, seconds: Callable[[str, Any], float], **options: Any
) -> Callable[[str, Mapping[str, str]], FakeWorker]:
    """What Comparison calls to start a process."""
    return lambda name, environment: FakeWorker(name, machine, seconds, **options)
