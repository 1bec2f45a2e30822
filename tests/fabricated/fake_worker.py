"""A measuring process that measures nothing: known speeds, a shared drifting machine, and failures on request."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from bench.errors import BenchError
from bench.sides.process import Built
from bench.timing.clock import Slice

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


class Machine:
    """What all fake processes share: noise that moves slowly, as a noisy neighbour does."""

    def __init__(self, seed: int = 0, noise: float = 0.0, drift: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.noise, self.drift = noise, drift
        self.level = 1.0
        self.alive = 0
        self.started = 0
        self.running = 0

    def factor(self) -> float:
        self.level *= 1 + self.rng.uniform(-self.drift, self.drift)
        return self.level * (1 + self.rng.gauss(0, self.noise))


class FakeWorker:
    """Stands in for bench.sides.process.Worker; `seconds(label, workload)` is the time of a step without noise."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        seconds: Callable[[str, Any], float],
        fail: Callable[[str, str, Any], BenchError | None] = lambda name, command, workload: None,
        energy: Callable[[str, Any], dict[str, Any]] | None = None,
        error: Callable[[str], float] = lambda id: 0.01,
    ) -> None:
        self.name, self.machine, self.seconds, self.fail, self.energy = name, machine, seconds, fail, energy
        self.error = error
        self.queue: list[dict[str, Any]] = []
        self.closed = False
        # Each process has an offset of its own: what blocks are there to average over.
        self.offset = 1 + machine.rng.gauss(0, machine.noise)
        machine.alive += 1
        machine.started += 1

    def send(self, command: str, **arguments: Any) -> None:
        self.queue.append(self.ask(command, **arguments))

    def receive(self, timeout: float) -> dict[str, Any]:
        return self.queue.pop(0)

    def ask(self, command: str, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
        error = self.fail(self.name, command, arguments)
        if error is not None:
            raise error
        if command == "machine":
            return {"fingerprint": {"device": "fake", "cores": 2}}
        if command == "device":
            # Without a compiler and bfloat16, fast is fp32-nhwc-eager.
            return {"kind": "cpu", "bf16": False, "compiler": False}
        if command == "cost":
            return {**COST, "model": arguments["model"], "classes": 10, "size": 32}
        if command == "ceilings":
            return {"precision": arguments["precision"], "flops": 1e12, "bandwidth": 1e11}
        if command == "reference":
            return {"id": "fake", "seconds": 0.001}
        if command == "missing":
            return {"reason": None}
        if command == "unreadable":
            return {"files": 10, "bad": []}
        if command == "memory":
            parts = {
                "weights": 4000,
                "gradients": 0,
                "optimizer": 0,
                "inputs": 100,
                "workspace": 900,
                "slack": 0,
            }
            return {
                **parts,
                "engine": 0,
                "peak": 5000,
                "counted": True,
                "peaks": [],
                "process": 9000,
                "processes": [8900, 9000, 9050][: arguments["readings"]],
                "residue": 4000,
            }
        if command == "parity":
            return {"rms": self.error(arguments["id"]), "same_top1": 8, "images": 8}
        if command == "energy" and self.energy is not None:
            return self.energy(self.name, arguments["idle"])
        if command == "energy":
            return {"missing": "no readable energy counter on this machine"}
        return {}

    def greet(self, needs: Any) -> None:
        self.ask("hello", **needs)

    def greeted(self, timeout: float = 0) -> None:
        """It has imported everything at once."""

    def build(self, workloads: Any, conditions: Any, timeout: float = 0) -> Built:
        for workload in workloads:
            error = self.fail(self.name, "build", workload)
            if error is not None:
                raise error
        return Built(0.0, "none", (), {w.id: 0 for w in workloads})

    def begin_build(self, workloads: Any, conditions: Any) -> None:
        self.building = workloads, conditions

    def built(self) -> Built:
        return self.build(*self.building)

    def warm(self, workload: Any, cap: float, timeout: float = 0) -> float:
        return self.seconds(self.name, workload)

    def slice(self, workload: Any, steps: int, drop: int, each: bool, timeout: float, twice_every: int = 0) -> Slice:
        error = self.fail(self.name, "slice", workload)
        if error is not None:
            raise error
        assert self.machine.running == 0, "two sides measured at the same time"
        one = self.seconds(self.name, workload) * self.offset
        samples = tuple(one * self.machine.factor() for _ in range(steps)) if each else ()
        total = sum(samples) if each else steps * one * self.machine.factor()
        return Slice(total, steps, samples)

    def close(self) -> None:
        if not self.closed:
            self.machine.alive -= 1
        self.closed = True


def spawner(
    machine: Machine, seconds: Callable[[str, Any], float], **options: Any
) -> Callable[[str, Mapping[str, str]], FakeWorker]:
    """What Comparison calls to start a process."""
    return lambda name, environment: FakeWorker(name, machine, seconds, **options)
