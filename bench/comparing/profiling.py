"""`bench profile`: times a step, then has another process profile it, and puts both together.

Two processes, so that no profiled step is ever timed: the first takes slices (and, of the end-to-end task, lets loader,
step and both joined take turns), measures the ceilings and counts memory; the second runs torch.profiler.
"""

import random
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.comparing.comparison import Operand, precision_of
from bench.errors import UsageError, WorkloadError
from bench.inspecting.cost import Cost
from bench.inspecting.roofline import Ceilings, fraction, utilisation
from bench.machine import tuned
from bench.sides.crew import WARM_UP_CAP, worker_environment
from bench.sides.process import Worker
from bench.timing.duel import keep, plan, take_turns
from bench.timing.workload import Conditions, Workload
from results.profile import Break, Module, Operator, Profile, Stalls
from results.record import utc_now
from results.stats import median_interval
from results.store import write_whole
from results.tables import to_json

# What `--task` says -> task of a workload.
TASKS = {"train": "training", "infer": "inference", "latency": "latency", "endtoend": "end_to_end"}
ROUNDS = 9
STEPS = 3  # profiled: their mean is steady, and the trace stays small enough for a viewer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is to be profiled.

    Attributes:
        operand: a model with its configuration.
        task: a value of TASKS.
        device, batch, size, classes: as in bench compare; 0 is the model's own size and classes.
        loader, data: of the end-to-end task.
        steps: profiled.
    """

    operand: Operand
    task: str
    device: str
    batch: int
    size: int
    classes: int
    loader: str
    data: str
    steps: int = STEPS


def profile(asked: Asked, conditions: Conditions, folder: Path, say: Say) -> Profile:
    """Measure, profile, and write trace, pictures and the profile itself into `folder`.

    Raises:
        WorkloadError, ModelError, DataError, OutOfMemoryError: the step cannot be had.
        RecordError: the folder cannot be written.
    """
    environment = worker_environment(conditions.threads)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from None
    timing = Worker(asked.operand.label, environment)
    try:
        say("starting")
        timing.ask("hello", 300)
        workload, cost = described(timing, asked)
        say(f"timing {workload.id}")
        machine = timing.ask("machine")
        timed = time_step(timing, workload, conditions)
        memory = timing.ask("memory", 120, id=workload.id)
        ceilings = measured_ceilings(timing, workload, conditions)
        stalls = None
        if workload.task == "end_to_end":
            say("timing loader, step and both joined, in turns")
            stalls = measure_stalls(timing, workload, conditions, environment)
    finally:
        timing.close()
    say("profiling")
    watched = Worker(asked.operand.label, environment)
    try:
        watched.ask("hello", 300)
        watched.build([workload], conditions)
        watched.warm(workload, WARM_UP_CAP[workload.task])
        traced = watched.ask(
            "trace", 900, id=workload.id, steps=asked.steps, file=str(folder.absolute() / "trace.json.gz")
        )
        if workload.task != "latency" and traced["modules"] and not _by_layer(traced):
            traced["notes"].append("most of the step's time could not be led back to a layer")
    finally:
        watched.close()
    found = put_together(asked, workload, cost, timed, ceilings, memory, stalls, traced, machine)
    return write(found, folder)


def described(worker: Any, asked: Asked) -> tuple[Workload, Cost]:
    """The workload in full, and what its network costs."""
    machine = worker.ask("machine")
    levers = tuned.levers(worker.ask, asked.device, asked.operand.subject, asked.operand.configuration, machine)
    training = asked.task in ("training", "end_to_end")
    if training and "training" not in levers:
        raise WorkloadError(levers["training_missing"])
    cost = Cost(
        **worker.ask("cost", 300, model=asked.operand.subject, classes=asked.classes or None, size=asked.size or None)
    )
    workload = Workload(
        asked.task,
        asked.operand.subject,
        levers["training" if training else asked.task],
        1 if asked.task == "latency" else asked.batch,
        cost.size,
        cost.classes,
        device=asked.device,
    )
    if asked.task == "end_to_end":
        workload = replace(workload, loader=asked.loader, data=asked.data)
    return workload, cost


def time_step(worker: Any, workload: Workload, conditions: Conditions) -> list[float]:
    """Seconds a step of several slices."""
    built = worker.build([workload], conditions)
    speed = worker.warm(workload, WARM_UP_CAP[workload.task])["seconds_per_step"]
    wanted = plan(speed, prefetch=built["prefetch"][workload.id])
    turns = {"step": lambda: worker.slice(workload, wanted.steps, wanted.drop, each=False, timeout=300)}
    return [turn["step"].seconds_per_step for turn in keep(take_turns(turns, ROUNDS, random.Random(conditions.seed)))]


def measured_ceilings(worker: Any, workload: Workload, conditions: Conditions) -> Ceilings:
    """The better of two measurements of each ceiling: one alone may meet a busy moment."""
    precision = precision_of(workload.configuration)
    both = [
        worker.ask("ceilings", 120, device=workload.device, precision=precision, threads=conditions.threads)
        for _ in range(2)
    ]
    return Ceilings(precision, *(max(one[name] for one in both) for name in ("flops", "bandwidth")))


def measure_stalls(worker: Any, workload: Workload, conditions: Conditions, environment: dict[str, str]) -> Stalls:
    """Loader alone, step alone, both joined, each in turns with the others; then the loader's stages."""
    alone = replace(workload, task="training", loader="", data="")
    worker.ask("release", ids=[workload.id])
    feeding = Worker(f"loader {workload.loader}", environment)
    try:
        feeding.ask("hello", 300, compiler=False)
        precision, layout = workload.configuration.split("-")[:2]
        dtype = {"amp": "bfloat16", "bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
        loading = Workload(
            "loading", workload.loader, f"{dtype}-{layout}", workload.batch, workload.size, data=workload.data,
            device=workload.device,
        )  # fmt: skip
        sides: dict[str, Callable[[], Any]] = {}
        built = worker.build([alone, workload], conditions)
        built["prefetch"].update(feeding.build([loading], conditions)["prefetch"])
        for name, side, one in (("step", worker, alone), ("joined", worker, workload), ("loader", feeding, loading)):
            speed = side.warm(one, WARM_UP_CAP[one.task])["seconds_per_step"]
            wanted = plan(speed, prefetch=built["prefetch"][one.id])

            def turn(side: Any = side, one: Workload = one, wanted: Any = wanted) -> Any:
                return side.slice(one, wanted.steps, wanted.drop, each=False, timeout=300)

            sides[name] = turn
        rounds = keep(take_turns(sides, ROUNDS, random.Random(conditions.seed)))
        rates = {
            name: workload.batch / statistics.median(turns[name].seconds_per_step for turns in rounds) for name in sides
        }
        feeding.ask("release", ids=[loading.id])
        staged = feeding.ask("stages", 300, workload=loading.to_json(), conditions=asdict(conditions))
    finally:
        feeding.close()
    return Stalls(
        workload.loader,
        rates["loader"],
        rates["step"],
        rates["joined"],
        tuple((name, seconds) for name, seconds in staged["stages"]),
        f"stages of the loader: {staged['note']}",
    )


def _by_layer(traced: dict[str, Any]) -> bool:
    total = sum(one["forward_seconds"] + one["backward_seconds"] for one in traced["modules"])
    named = sum(
        one["forward_seconds"] + one["backward_seconds"] for one in traced["modules"] if not one["path"].startswith("(")
    )
    return bool(named >= total / 2)


def put_together(
    asked: Asked,
    workload: Workload,
    cost: Cost,
    timed: list[float],
    ceilings: Ceilings,
    memory: dict[str, int],
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
        label=asked.operand.label,
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


def annotate(asked: Asked, conditions: Conditions, say: Say) -> Workload:
    """Run the step within NVTX ranges, under whatever watches this process (nsys profile bench profile ... --nvtx).

    Raises:
        UsageError: on a CPU, where nothing reads them.
    """
    if asked.device != "cuda":
        raise UsageError("--nvtx marks ranges for Nsight Systems, which watches CUDA devices; here the device is a CPU")
    worker = Worker(asked.operand.label, worker_environment(conditions.threads))
    try:
        worker.ask("hello", 300)
        workload, _ = described(worker, asked)
        worker.build([workload], conditions)
        worker.warm(workload, WARM_UP_CAP[workload.task])
        say("running within NVTX ranges")
        worker.ask("annotate", 300, id=workload.id, steps=asked.steps)
    finally:
        worker.close()
    return workload
