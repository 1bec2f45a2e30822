"""`bench profile`: times a step, has a fresh process profile it, and puts both together.

No profiled step is ever timed. Several processes, one after another, time the step and measure the ceilings, since one
process says little of the next; the last of them also counts memory and, of the end-to-end task, lets loader, step and
both joined take turns. One more runs torch.profiler.
"""

import random
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.comparing.figures import best_ceilings, value_over
from bench.comparing.operands import Operand
from bench.comparing.plan import Settings, classes_for, impossible, needs, network_workloads
from bench.errors import BenchError, UsageError, WorkloadError
from bench.inspecting.cost import Cost
from bench.inspecting.roofline import Ceilings, fraction, utilisation
from bench.locks import HeldError, hold
from bench.machine.tuned import resolve
from bench.screen import Say
from bench.sides.crew import Crew, Needs, enter, spawner
from bench.sides.process import Worker
from bench.timing.duel import Rounds, pairs_of
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import Device
from results.profile import Break, Module, Operator, Profile, Stalls
from results.record import utc_now
from results.store import write_whole
from results.tables import to_json

ROUNDS = 9
BLOCKS = 6  # fresh processes that time the step: the fewest whose range is a 95 % interval
ALONE_SECONDS = 0.7  # of timed steps in each
UNSTEADY = "the step was still getting faster when its warm-up ended"
STEPS = 3  # profiled: their mean is steady, and the trace stays small enough for a viewer


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        operand: a model with its configuration.
        task: one of PROFILED_TASKS.
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

    def described(self, worker: Worker, machine: Mapping[str, Any], say: Say) -> tuple[Workload, Cost]:
        """The workload in full, and what its network costs."""
        settings, model = self.settings, self.operand.subject
        device = Device(**worker.ask("device", device=settings.device))
        resolved = resolve(self.operand.choice, device, model, machine)
        size, classes = settings.size or None, classes_for(worker, [model], settings, say)[model]
        cost = worker.ask("cost", 300, model=model, classes=classes, size=size)
        if cost.get("missing"):
            raise WorkloadError(cost["missing"])
        # What is fed by a loader is a training step.
        tasks = ("training", "end_to_end") if self.task == "end_to_end" else (self.task,)
        workloads = network_workloads(self.operand, tasks, settings, resolved, cost)
        if not workloads:
            raise WorkloadError(impossible(self.operand, self.task, resolved, cost))
        return workloads[-1], Cost(**cost)


def profile(subject: Subject, folder: Path, say: Say) -> Profile:
    """Measure, profile, and write trace, pictures and the profile itself into `folder`.

    Raises:
        WorkloadError, ModelError, DataError, OutOfMemoryError: the step cannot be had.
        UsageError, RecordError: the folder cannot be written, or another profile is being written into it.
    """
    with _alone(folder):
        return _profiled(subject, folder, say)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another profile of the same name from mixing its files with this one's. Raises UsageError if one does."""
    lock = folder / ".lock"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(lock))
        except HeldError as error:
            raise UsageError(f"{error.who} is writing a profile into {folder}; name another folder: --out") from None
        except OSError as error:
            raise UsageError(f"cannot write into {folder}: {error.strerror}") from None
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _profiled(subject: Subject, folder: Path, say: Say) -> Profile:
    label, conditions = subject.operand.label, subject.conditions
    timed = Timed()
    with Crew(spawner(conditions.threads), forks=subject.settings.device == "cpu") as crew:
        say("starting")
        first = subject.start(crew)
        machine = first.ask("machine")
        workload, cost = subject.described(first, machine, say)
        # What cannot be prepared is built in each process.
        crew.end_block()
        with suppress(BenchError):
            crew.prepare(label, workload, conditions, label)
        for block in range(BLOCKS):
            say(f"timing {workload.id}: process {block + 1} of {BLOCKS}")
            crew.end_block()
            subject.start(crew)
            time_step(crew, label, workload, conditions, timed)
        memory = crew[label].ask("memory", 900, id=workload.id)
        stalls = None
        if workload.task == "end_to_end":
            say("timing loader, step and both joined, in turns")
            stalls = measure_stalls(crew, label, workload, conditions)
    # Not forked, and not one that was timed: what a profiler leaves behind must not be measured.
    with Crew(spawner(conditions.threads)) as crew:
        say("profiling")
        watched = subject.start(crew)
        watched.build([workload], conditions)
        watched.warm(workload)
        file = str(folder.absolute() / "trace.json.gz")
        traced = watched.ask("trace", 900, id=workload.id, steps=subject.steps, file=file)
    if workload.task != "latency" and traced["modules"] and not _by_layer(traced):
        traced["notes"].append("most of the step's time could not be attributed to a layer")
    if not timed.steady:
        traced["notes"].append(UNSTEADY)
    found = put_together(label, workload, cost, timed, memory, stalls, traced, machine)
    return write(found, folder)


@dataclass
class Timed:
    """What the processes that time the step have found so far.

    Attributes:
        blocks: seconds a step of each slice, of each process.
        ceilings: the best, and every process's, as bench.inspecting.roofline.Ceilings has them.
        steady: every warm-up ended because the step no longer got faster.
    """

    blocks: list[list[float]] = field(default_factory=list)
    ceilings: dict[str, Any] | None = None
    steady: bool = True


def time_step(crew: Crew, name: str, workload: Workload, conditions: Conditions, timed: Timed) -> None:
    """Add one process's slices and ceilings."""
    one = enter(crew, name, workload, conditions)
    timed.steady &= one.warm.steady
    taken = pairs_of(crew.take_turns({"step": one}, Rounds(ALONE_SECONDS), random.Random(conditions.seed)))
    timed.blocks.append([turn["step"].seconds_per_step for turn in taken])
    where = {"device": workload.device, "threads": conditions.threads, "precision": workload.network.precision}
    timed.ceilings = best_ceilings(crew[name].ask("ceilings", 120, **where), timed.ceilings)


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
    rounds = pairs_of(crew.take_turns(sides, ROUNDS, random.Random(conditions.seed)))
    rates = {
        side: workload.batch / statistics.median(turns[side].seconds_per_step for turns in rounds) for side in sides
    }
    crew.release({feeding: [loading]})
    staged = crew[feeding].ask("stages", 300, workload=loading.to_json(), conditions=conditions.to_json())
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
    timed: Timed,
    memory: dict[str, Any],
    stalls: Stalls | None,
    traced: dict[str, Any],
    machine: dict[str, Any],
) -> Profile:
    """All figures as one profile.

    Raises:
        WorkloadError: no slice was steady, so there is no time.
    """
    step = value_over(timed.blocks)
    if step.median is None:
        raise WorkloadError("no slice was steady: the device throttled or its clock moved; profile again")
    seconds, low, high = step.median, step.low, step.high
    rate = workload.batch / seconds
    assert timed.ceilings is not None
    ceilings = Ceilings(**timed.ceilings)
    lowest = replace(
        ceilings, flops=min(r[0] for r in ceilings.readings), bandwidth=min(r[1] for r in ceilings.readings)
    )

    def bounds(share: Callable[[Ceilings, float], float]) -> tuple[float, float] | None:
        """Of a share of the ceilings: the slowest step under the best of them, and the fastest under the lowest."""
        if low is None or high is None:
            return None
        return share(ceilings, workload.batch / high), share(lowest, workload.batch / low)

    def roof(under: Ceilings, rate: float) -> float:
        return fraction(cost, under, rate, workload.batch, workload.training)

    def mfu(under: Ceilings, rate: float) -> float:
        return utilisation(cost, under, rate, workload.training)

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
        roof_fraction=roof(ceilings, rate),
        mfu=mfu(ceilings, rate),
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
        processes=sum(map(bool, timed.blocks)),
        confidence=step.confidence,
        roof_interval=bounds(roof),
        mfu_interval=bounds(mfu),
        ceilings=tuple((flops, bandwidth) for flops, bandwidth in ceilings.readings),
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
        workload, _ = subject.described(worker, worker.ask("machine"), say)
        worker.build([workload], subject.conditions)
        worker.warm(workload)
        say("running within NVTX ranges")
        worker.ask("annotate", 300, id=workload.id, steps=subject.steps)
    return workload
