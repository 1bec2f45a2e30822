"""One side's part of a measuring process: holds its steps and answers the parent's questions."""

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.errors import WorkloadError
from bench.machine.allocator import choose_memory
from bench.machine.gpu import THROTTLING
from bench.machine.telemetry import Sensor, sensor_for
from bench.processes import SOURCE
from bench.timing.clock import CLOCKS, time_slice
from bench.timing.steady import settle, slowed, warm_up
from bench.timing.workload import Conditions, Workload
from models import zoo
from models.configuration import levers
from models.project import named

if TYPE_CHECKING:
    from bench.timing.step import Step


class Session:
    """What a side holds: its steps by id, and the answer to each command.

    `bench check` also uses the sessions of older and newer commits: the names of the class, of `steps` and of the
    commands stay.

    Attributes:
        steps: by the id of their workload.
        chooses_memory: building decides whether the process keeps freed memory, see bench.machine.allocator.
    """

    def __init__(self) -> None:
        self.chooses_memory = True
        self.steps: dict[str, Step] = {}
        self.sensors: dict[str, Sensor] = {}

    def hello(self, compiler: bool = True) -> dict[str, Any]:
        """Import what measuring needs: not inside anything timed, and in all processes at the same time.

        Args:
            compiler: also torch's, which eager steps do not need.
        """
        modules = ["bench.inspecting.cost", "bench.inspecting.memory", "bench.timing.step"]
        for module in [*(["torch._inductor.compile_fx"] if compiler else []), *modules]:
            importlib.import_module(module)
        # Half a million objects that stay: each later collection, one before every turn, would walk them all.
        gc.freeze()
        return {"pid": os.getpid(), "source": str(SOURCE), "levers": list(levers()), "hosts": True}

    def imports(self, models: Sequence[str], loaders: Sequence[str], training: bool) -> dict[str, Any]:
        """Import what steps will be built from, for the same reason, and nothing that they do without.

        torchvision's networks, for one, import torch's compiler. What cannot be imported fails again, and is reported,
        where it is built.
        """
        from loaders import engines

        modules = {engines.ENGINES[name][0] for name in loaders if name in engines.ENGINES}
        # The first optimiser would import it.
        for module in sorted({*modules, *(["torch._dynamo"] if training else [])}):
            importlib.import_module(module)
        for name in (*models, *(name for name in loaders if named(name).is_code)):
            zoo.prepare_imports(name)
        gc.freeze()
        return {}

    def machine(self) -> dict[str, Any]:
        from bench.machine.facts import describe

        return dict(describe(with_torch=True))

    def device(self, device: str) -> dict[str, Any]:
        """The facts that presets ask of a device."""
        from bench.timing.step import open_device
        from models.prepare import device_facts

        return asdict(device_facts(open_device(device)))

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """Size of the images and number of classes of networks by default."""
        return {"networks": [{"size": zoo.default_size(n), "classes": zoo.default_classes(n)} for n in names]}

    def kinds(self, names: Sequence[str]) -> dict[str, Any]:
        """What names of the user's own code are; see bench.timing.own."""
        from bench.timing.own import kind

        return {"kinds": [kind(name) for name in names]}

    def steps_facts(self, names: Sequence[str], units: str, seed: int) -> dict[str, Any]:
        """What is counted of the user's steps, and whether they return the same; see bench.timing.own."""
        from bench.timing.own import step_facts

        return {"facts": step_facts(list(names), units, seed)}

    def missing(self, loader: str, device: str) -> dict[str, Any]:
        from loaders import engines

        if named(loader).is_code:
            zoo.prepare_imports(loader)
            return {"reason": None}
        return {"reason": engines.missing(loader, device)}

    def unreadable(self, conditions: dict[str, Any]) -> dict[str, Any]:
        from bench.timing.images import unreadable

        files, bad = unreadable(Conditions(**conditions))
        return {"files": files, "bad": bad}

    def weights(self, models: Sequence[str], classes: int | None, file: str) -> dict[str, Any]:
        """For how many classes the weights in a file fit each network, and what was unwrapped to read them."""
        import torch

        from models.trained import Weights

        found = Weights.read(file)
        fitting = {name: classes or found.classes(name) for name in models}
        for name, number in fitting.items():
            with torch.device("meta"):
                found.put(zoo.build(name, number), name)
        return {"classes": fitting, "unwrapped": found.unwrapped}

    def files(self, names: Sequence[str]) -> dict[str, Any]:
        """How many images exported files take at once, 0 for any number."""
        from models.exported import facts

        return {"batches": [facts(named(name)).batch for name in names]}

    def cost(self, model: str, classes: int | None, size: int | None) -> dict[str, Any]:
        """What a network costs, see bench.inspecting.cost; of what cannot be counted `missing` says why."""
        from bench.inspecting.cost import count
        from bench.inspecting.foreign import UncountedError

        try:
            return asdict(count(model, classes, size))
        except UncountedError as error:
            return {
                "classes": zoo.default_classes(model),
                "size": size or zoo.default_size(model),
                "missing": str(error),
            }

    def build(self, workloads: Sequence[dict[str, Any]], conditions: dict[str, Any]) -> dict[str, Any]:
        """Build, then call each step once: the first call compiles."""
        from bench.timing.step import build, open_device
        from models.dry_run import logits_of

        todo = [Workload.from_json(w) for w in workloads]
        # Before anything is allocated for them: what is there would be handed back all the same.
        said = choose_memory(any(one.keeps_memory for one in todo)) if self.chooses_memory else ""
        open_device(todo[0].device)
        clock = CLOCKS[todo[0].device]
        before = _cache_counts()
        begin = clock()
        built = build(todo, Conditions(**conditions))
        # A peer is converted and compiled while it is built; torch.compile works at the first call.
        compile_seconds = clock() - begin if any(step.converted for step in built) else 0.0
        self.steps.update({step.workload.id: step for step in built})
        for step in built:
            given: list[object] = []
            first = time_slice(partial(_keep, step.call, given), 1, 0, clock).seconds
            if step.workload.task in ("latency", "inference"):
                logits_of(given[0], step.workload.subject, step.workload.batch)
            if step.compiled:
                compile_seconds += max(0.0, first - time_slice(step.call, 1, 0, clock).seconds)
        hits, misses, bypassed = (now - then for now, then in zip(_cache_counts(), before, strict=True))
        return {
            "compile_seconds": compile_seconds,
            "cache": "cold" if misses else "bypassed" if bypassed else "warm" if hits else "none",
            "notes": sorted({note for step in built for note in (said, *step.notes) if note}),
            "prefetch": {step.workload.id: step.prefetch for step in built},
        }

    def warm(self, id: str, cap: float) -> dict[str, Any]:
        """Warm up a step for at most about `cap` seconds; see bench.timing.steady.warm_up."""
        step = self.steps[id]
        # What a loader made ahead while others were built costs nothing to take, and would be timed as its rate.
        for _ in range(step.prefetch + 1 if step.prefetch else 0):
            step.call()
        seconds, stable = warm_up(step.call, CLOCKS[step.workload.device], cap, least=step.prefetch + 1)
        # What the compilers left would be walked by each collection before a slice, for a quarter of a second.
        gc.collect()
        gc.freeze()
        settle()
        return {"seconds_per_step": seconds, "stable": stable}

    def slice(
        self, id: str, steps: int, drop: int, each: bool, slower: float = 0.0, rest: bool = True
    ) -> dict[str, Any]:
        """One turn of a step.

        Args:
            slower: share of its time that each step is made to take longer.
            rest: collect garbage before and wait afterwards until nothing of this process runs any more.
        """
        step = self.steps[id]
        call = slowed(step.call, slower, step.workload.device) if slower else step.call
        if rest:
            gc.collect()
        # Collecting garbage in the middle of a slice would be timed as work of the network.
        gc.disable()
        try:
            turn = time_slice(call, steps, drop, CLOCKS[step.workload.device], each)
        finally:
            gc.enable()
        answer = asdict(turn)
        if step.workload.device == "cuda":
            # A CPU's reading is one core's at one moment; a GPU's clock is the whole device's.
            now = self.sensor("cuda").sample()
            answer.update(clock_hertz=now.clock_hertz, throttled=bool((now.throttle or 0) & THROTTLING))
        if rest:
            settle()
        return answer

    def sensor(self, device: str) -> Sensor:
        if device not in self.sensors:
            self.sensors[device] = sensor_for(device)
        return self.sensors[device]

    def energy(self, id: str, idle: float | None = None) -> dict[str, Any]:
        """Energy of one image above idle, over a window as long as the counter needs.

        Args:
            idle: watts at rest, as measured before; None measures them.

        Returns:
            {"joules", "idle_watts"}, or {"missing"} with the reason.
        """
        from bench.machine.telemetry import idle_watts, measure_energy

        step = self.steps[id]
        sensor = self.sensor(step.workload.device)

        def ten_steps() -> None:
            for _ in range(10):
                step.call()

        if idle is None:
            idle = idle_watts(sensor)
        used = measure_energy(sensor, ten_steps, CLOCKS[step.workload.device])
        if used is None or idle is None:
            return {"missing": "no readable energy counter on this machine"}
        return {"joules": (used.joules - idle * used.seconds) / (10 * used.calls * step.images), "idle_watts": idle}

    def memory(self, id: str, readings: int = 3) -> dict[str, Any]:
        """The step's memory, or {"missing"} with the reason; see bench.inspecting.memory."""
        from bench.inspecting.memory import measure

        try:
            return asdict(measure(self.steps[id], readings))
        except WorkloadError as error:
            return {"missing": str(error)}

    def parity(self, id: str, conditions: dict[str, Any], of: dict[str, Any] | None = None) -> dict[str, Any]:
        """How much an inference step's logits differ from plain fp32's; see bench.inspecting.exact."""
        from bench.inspecting.exact import parity

        return parity(self.steps[id], Conditions(**conditions), Workload.from_json(of) if of else None)

    def trace(self, id: str, steps: int, file: str) -> dict[str, Any]:
        """The step under a profiler; see bench.inspecting.traced."""
        from bench.inspecting.traced import trace

        return trace(self.steps[id], steps, file)

    def annotate(self, id: str, steps: int) -> dict[str, Any]:
        """The step within NVTX ranges."""
        from bench.inspecting.traced import annotated

        return annotated(self.steps[id], steps)

    def stages(self, workload: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
        """What an image costs at each stage of a loader."""
        from bench.inspecting.stages import stages
        from bench.timing.step import loader_parts

        loading = Workload.from_json(workload)
        choose_memory(loading.keeps_memory)
        found, note = stages(loading.subject, *loader_parts(loading, Conditions(**conditions)))
        return {"stages": found, "note": note}

    def sweep(self, workload: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
        """Measure which share of the images the GPU's JPEG engine should decode, and remember the best."""
        from bench.inspecting.jpeg_share import choose
        from bench.timing.step import loader_parts

        dataset, options = loader_parts(Workload.from_json(workload), Conditions(**conditions))
        return {"load": choose(dataset, options, lambda text: None).best}

    def release(self, ids: Sequence[str]) -> dict[str, Any]:
        """Close steps and forget what was compiled for them."""
        for id in ids:
            if id in self.steps:
                self.steps.pop(id).close()
        forget_compiled()
        return {}

    def facts(self, workload: dict[str, Any], conditions: dict[str, Any], quick: bool = False) -> dict[str, Any]:
        """What is counted of a workload; see bench.inspecting.exact."""
        from bench.inspecting.exact import facts

        return facts(Workload.from_json(workload), Conditions(**conditions), quick)

    def outputs(
        self, workload: dict[str, Any], conditions: dict[str, Any], given: str, save: str, quick: bool = False
    ) -> dict[str, Any]:
        """What a workload computes, into a file; see bench.inspecting.exact."""
        from bench.inspecting.exact import outputs

        return outputs(Workload.from_json(workload), Conditions(**conditions), given, save, quick)

    def reference(self, device: str, threads: int) -> dict[str, Any]:
        """Seconds of one step of the pinned reference."""
        from bench.inspecting.reference import ID, measure

        return {"id": ID, "seconds": measure(device, threads)}

    def ceilings(self, device: str, precision: str, threads: int) -> dict[str, Any]:
        from bench.inspecting.roofline import measure

        return asdict(measure(device, precision, threads))

    def close(self) -> None:
        for step in self.steps.values():
            with contextlib.suppress(Exception):
                step.close()


def _keep(call: Callable[[], object], results: list[object]) -> None:
    results.append(call())


def _cache_counts() -> tuple[int, int, int]:
    """(hits, misses, graphs that were not looked up) of inductor's compiled-graph cache in this process so far."""
    if "torch._dynamo" not in sys.modules:
        return 0, 0, 0
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return inductor["fxgraph_cache_hit"], inductor["fxgraph_cache_miss"], inductor["fxgraph_cache_bypass"]


def forget_compiled() -> None:
    """Drop what torch's compiler keeps of networks that are closed."""
    if "torch._dynamo" in sys.modules:
        import torch

        torch.compiler.reset()
    gc.unfreeze()
    gc.collect()
