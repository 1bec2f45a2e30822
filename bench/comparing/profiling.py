"""`bench profile`: times a step, has a fresh process profile it, and puts both together.

Two processes, so that no profiled step is ever timed: the first takes slices (and, of the end-to-end task, lets loader,
step and both joined take turns), measures the ceilings and counts memory; the second runs torch.profiler.
"""

import random
import shlex
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.comparing.operands import Operand
from bench.comparing.plan import Settings, needs, network_workloads
from bench.errors import UsageError, WorkloadError
from bench.inspecting.cost import Cost
from bench.inspecting.roofline import Ceilings, fraction, utilisation
from bench.machine.tuned import resolve
from bench.screen import Say
from bench.sides.crew import Crew, Needs, enter, spawner
from bench.sides.process import Worker
from bench.timing.duel import Rounds, steady_rounds
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import Device
from results.profile import Break, Module, Operator, Profile, Stalls
from results.record import utc_now
from results.stats import median_interval
from results.store import write_whole
from results.tables import to_json

# What `--task` says -> task of a workload.
TASKS = {"train": "training", "infer": "inference", "latency": "latency", "endtoend": "end_to_end"}
ROUNDS = 9
ALONE_SECONDS = 2.5  # of steps that are timed without another side
STEPS = 3  # profiled: their mean is steady, and the trace stays small enough for a viewer


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        operand: a model with its configuration.
        task: a value of TASKS.
        settings: device, batch, size and loader, as in bench compare.
        conditions: threads and data.
        steps: profiled.
    """

    operand: Operand
    task: str
    settings: Settings
    conditions: Conditions
    steps: int = STEPS

    def start(self, crew: Crew) -> Worker:
        """A fresh process for it."""
        crew.start([self.operand.label], needs([self.operand], self.settings, self.task == "end_to_end"))
        return crew[self.operand.label]

    def described(self, worker: Worker, machine: Mapping[str, Any]) -> tuple[Workload, Cost]:
        """The workload in full, and what its network costs."""
        settings, model = self.settings, self.operand.subject
        device = Device(**worker.ask("device", device=settings.device))
        resolved = resolve(self.operand.choice, device, model, machine)
        size, classes = settings.size or None, settings.classes or None
        cost = worker.ask("cost", 300, model=model, classes=classes, size=size)
        # What is fed by a loader is a training step.
        tasks = ("training", "end_to_end") if self.task == "end_to_end" else (self.task,)
        workloads = network_workloads(self.operand, tasks, settings, resolved, cost)
        if not workloads:
            raise WorkloadError(resolved.training_missing)
        return workloads[-1], Cost(**cost)


def profile(subject: Subject, folder: Path, say: Say) -> Profile:
    """Measure, profile, and write trace, pictures and the profile itself into `folder`.

    Raises:
        WorkloadError, ModelError, DataError, OutOfMemoryError: the step cannot be had.
        RecordError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from None
    label, conditions = subject.operand.label, subject.conditions
    with Crew(spawner(conditions.threads)) as crew:
        say("starting")
        timing = subject.start(crew)
        machine = timing.ask("machine")
        workload, cost = subject.described(timing, machine)
        say(f"timing {workload.id}")
        timed = time_step(crew, label, workload, conditions)
        memory = timing.ask("memory", 900, id=workload.id)
        ceilings = measured_ceilings(timing, workload, conditions)
        stalls = None
        if workload.task == "end_to_end":
            say("timing loader, step and both joined, in turns")
            stalls = measure_stalls(crew, label, workload, conditions)
        crew.close()
        say("profiling")
        # A fresh process: what was timed ran without a profiler.
        watched = subject.start(crew)
        watched.build([workload], conditions)
        watched.warm(workload)
        file = str(folder.absolute() / "trace.json.gz")
        traced = watched.ask("trace", 900, id=workload.id, steps=subject.steps, file=file)
    if workload.task != "latency" and traced["modules"] and not _by_layer(traced):
        traced["notes"].append("most of the step's time could not be attributed to a layer")
    found = put_together(label, workload, cost, timed, ceilings, memory, stalls, traced, machine)
    return write(found, folder)


def time_step(crew: Crew, name: str, workload: Workload, conditions: Conditions) -> list[float]:
    """Seconds a step of several slices."""
    one = enter(crew, name, workload, conditions)
    taken = steady_rounds(crew.take_turns({"step": one}, Rounds(ALONE_SECONDS), random.Random(conditions.seed)))
    return [turn["step"].seconds_per_step for turn in taken]


def measured_ceilings(worker: Worker, workload: Workload, conditions: Conditions) -> Ceilings:
    """The better of two measurements of each ceiling: one alone may meet a busy moment."""
    precision = workload.network.precision
    both = [
        worker.ask("ceilings", 120, device=workload.device, precision=precision, threads=conditions.threads)
        for _ in range(2)
    ]
    return Ceilings(precision, *(max(one[name] for one in both) for name in ("flops", "bandwidth")))


def measure_stalls(crew: Crew, name: str, workload: Workload, conditions: Conditions) -> Stalls:
    """Loader alone, step alone, both joined, each in turns with the others; then the loader's stages."""
    crew.release({name: [workload]})
    alone = replace(workload, task="training", loader="", data="")
    output = LoaderOutput.feeding(workload.network)
    loading = Workload(
        "loading", workload.loader, output, workload.batch, workload.size, data=workload.data, device=workload.device
    )
    feeding = f"loader {workload.loader}"
    crew.start([feeding], Needs(loaders=(workload.loader,), compiler=False))
    prefetch = {
        **crew[name].build([alone, workload], conditions).prefetch,
        **crew[feeding].build([loading], conditions).prefetch,
    }
    sides = {
        side: crew.warm(process, timed, prefetch[timed.id])
        for side, process, timed in (("step", name, alone), ("joined", name, workload), ("loader", feeding, loading))
    }
    rounds = steady_rounds(crew.take_turns(sides, ROUNDS, random.Random(conditions.seed)))
    rates = {
        side: workload.batch / statistics.median(turns[side].seconds_per_step for turns in rounds) for side in sides
    }
    crew.release({feeding: [loading]})
    staged = crew[feeding].ask("stages", 300, workload=loading.to_json(), conditions=asdict(conditions))
    return Stalls(
        workload.loader,
        rates["loader"],
        rates["step"],
        rates["joined"],
        tuple((stage, seconds) for stage, seconds in staged["stages"]),
        f"stages of the loader: {staged['note']}",
    )


def _by_layer(traced: dict[str, Any]) -> bool:
    total = sum(one["forward_seconds"] + one["backward_seconds"] for one in traced["modules"])
    named = sum(
        one["forward_seconds"] + one["backward_seconds"] for one in traced["modules"] if not one["path"].startswith("(")
    )
    return bool(named >= total / 2)


def put_together(
    label: str,
    workload: Workload,
    cost: Cost,
    timed: list[float],
    ceilings: Ceilings,
    memory: dict[str, Any],
    stalls: Stalls | None,
    traced: dict[str, Any],
    machine: dict[str, Any],
) -> Profile:
    """All figures as one profile."""
    seconds = statistics.median(timed)
    low, high, _ = median_interval(timed) if len(timed) >= 6 else (None, None, None)
    rate = workload.batch / seconds
    busy = traced["busy"]
    return Profile(
        label=label,
        workload=workload.id,
        batch=workload.batch,
        seconds=seconds,
        low=low,
        high=high,
        profiled_seconds=traced["seconds"],
        operators=tuple(Operator(**one) for one in traced["operators"]),
        modules=tuple(Module(**one) for one in traced["modules"]),
        precision=ceilings.precision,
        flops_ceiling=ceilings.flops,
        bandwidth=ceilings.bandwidth,
        roof_fraction=fraction(cost, ceilings, rate, workload.batch, workload.training),
        mfu=utilisation(cost, ceilings, rate, workload.training),
        launches=traced["launches"],
        # Against the time without the profiler: with it the host is slower, and would look idle for that.
        idle=None if busy is None else max(0.0, 1 - busy / seconds),
        graphs=traced["graphs"],
        recompiles=traced["recompiles"],
        breaks=tuple(Break(**one) for one in traced["breaks"]),
        memory=memory,
        stalls=stalls,
        notes=tuple(traced["notes"]),
        machine={key: value for key, value in machine.items() if key != "commit"},
        command=shlex.join(["bench", *sys.argv[1:]]),
        created=utc_now(),
        commit=machine.get("commit"),
    )


def write(found: Profile, folder: Path) -> Profile:
    """The profile with its pictures and its JSON in `folder`; `files` names them."""
    from results.pictures.profile import flame, roofline
    from results.pictures.style import save
    from results.profile import FILE

    files = {"profile": FILE, "trace": "trace.json.gz"}
    for name, figure in (("flame", flame(found)), ("roofline", roofline(found))):
        if figure is not None:
            files[name] = f"{name}.svg"
            save(figure, folder / files[name])
    found = replace(found, files=files)
    write_whole(folder / FILE, to_json(found.to_json()).encode())
    return found


def annotate(subject: Subject, say: Say) -> Workload:
    """Run the step within NVTX ranges, under whatever watches this process (nsys profile bench profile ... --nvtx).

    Raises:
        UsageError: on a CPU, where nothing reads them.
    """
    if subject.settings.device != "cuda":
        raise UsageError("--nvtx marks ranges for Nsight Systems, which watches CUDA devices; here the device is a CPU")
    with Crew(spawner(subject.conditions.threads)) as crew:
        worker = subject.start(crew)
        workload, _ = subject.described(worker, worker.ask("machine"))
        worker.build([workload], subject.conditions)
        worker.warm(workload)
        say("running within NVTX ranges")
        worker.ask("annotate", 300, id=workload.id, steps=subject.steps)
    return workload
