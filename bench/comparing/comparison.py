"""Several operands measured side by side: which workloads, in which order, and what is kept of them.

One process an operand and block, one group of workloads after another, each group in turns (duel.py). A metric is
handed out, and stored by the caller, as soon as it is known. After the first block further blocks follow while the
budget lasts; they only narrow the intervals.
"""

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.errors import BenchError, WorkloadError
from bench.machine import tuned
from bench.machine.telemetry import Telemetry, sensor_for
from bench.sides.crew import WARM_UP_CAP, worker_environment
from bench.sides.process import Worker
from bench.timing.clock import Slice
from bench.timing.duel import PAIRS, SLICE_SECONDS, Plan, Round, SideError, keep, log_ratios, plan, take_turns
from bench.timing.images import describe_bad, refuse_bad
from bench.timing.workload import Conditions, Workload
from models.configuration import LEVERS, Configuration, Device, parse
from results.profile import memory_text
from results.record import Metric, Ratio, Value
from results.stats import interval, percentile_value, quantile_interval, required_samples, summarise
from results.tables import quantity, ratio_text
from results.verdict import compare_verdict, margin_of

# Longest slice of a latency workload: enough turns of it reach the 459 samples that p99 needs.
LATENCY_SLICE_SECONDS = 1.5
# A block of a network so slow, or on a machine so busy, that its 8 rounds take half the budget or more ends after
# fewer: the interval then says how little that shows.
LEAST_ROUNDS = 3
LEAST_PATIENCE = 20.0  # seconds
# State of inductor's graph cache -> how it is said, the most expensive first.
CACHE_STATES = {
    "cold": "cold cache",
    "bypassed": "graphs are not cached (frozen weights), their kernels are: the very first run takes longer",
    "warm": "warm cache",
}
COUNTED = ("params", "weight_bytes", "macs", "flops", "activations")


@dataclass(frozen=True)
class Operand:
    """One column of the comparison.

    Attributes:
        label: unique, as the user wrote it.
        kind: "model", "loader" or "kernel".
        subject: the name before '@'.
        configuration: the words after '@'; the kind's default where there are none.
    """

    label: str
    kind: str
    subject: str
    configuration: str


@dataclass(frozen=True)
class Settings:
    """What the whole comparison is run with; stored with it, and equal when it is resumed.

    Attributes:
        device: "cpu" or "cuda".
        batch: images a step of inference and loading.
        training_batch: images a step of training and end to end.
        size: height and width in pixels; 0 is each model's own.
        classes: logits; 0 is each model's own.
        loader: engine that feeds end_to_end.
        threads, seed, images: see Conditions.
        data: name of the data set; its folder is not stored.
        rounds: turns of each side in a block.
        tasks: of models, which of MODEL_TASKS are measured, comma-separated; "" is all.
        energy: whether an image's energy is measured, which takes ten seconds an operand where there is a counter.
    """

    device: str
    batch: int
    training_batch: int
    size: int
    classes: int
    loader: str
    threads: int
    seed: int
    images: int
    data: str
    rounds: int = PAIRS
    tasks: str = ""
    energy: bool = True

    def has(self, task: str) -> bool:
        """Whether a task of models is measured."""
        return not self.tasks or task in self.tasks.split(",")


MODEL_TASKS = ("latency", "inference", "loading", "training", "end_to_end")


@dataclass(frozen=True)
class Group:
    """Workloads measured in the same rounds.

    Attributes:
        name: for progress.
        workloads: operand label -> workloads that share one network.
        metrics: names of the metrics that it gives.
    """

    name: str
    workloads: Mapping[str, tuple[Workload, ...]]
    metrics: tuple[str, ...]


@dataclass
class Sample:
    """Everything measured of one group so far.

    Attributes:
        blocks: for each block its rounds: {workload key: seconds a step}, plus samples of single steps for latency.
        missing: operand -> why it has no number.
        failed: operands that could have had one, and failed.
        compile: operand -> (seconds, a key of CACHE_STATES or "none") of each block.
        memory: operand -> what bench.inspecting.memory counted.
        energy: operand -> {"joules" of one image, "idle_watts"} or {"missing"}.
        telemetry: of each block on a GPU, what its sensors read while the sides took turns.
        parity: operand -> how far its logits lie from plain fp32's, see bench.inspecting.exact.parity.
        twins: operand -> the one whose workload is the very same, and which was measured for both.
        notes: for the metric's row.
    """

    blocks: list[list[Round]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    compile: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    energy: dict[str, dict[str, Any]] = field(default_factory=dict)
    telemetry: list[dict[str, Any]] = field(default_factory=list)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain types, enough to go on from."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Sample":
        """The inverse of to_json."""
        blocks = [
            [
                {name: Slice(**{**turn, "samples": tuple(turn["samples"])}) for name, turn in turns.items()}
                for turns in block
            ]
            for block in data["blocks"]
        ]
        compile = {label: [(seconds, cache) for seconds, cache in parts] for label, parts in data["compile"].items()}
        return cls(**{**data, "blocks": blocks, "compile": compile})


Emit = Callable[[Metric], None]
Say = Callable[[str], None]


def _nothing(text: str) -> None:
    """The default for progress and warnings."""


class Comparison:
    """Runs one comparison and emits its metrics.

    Args:
        operands: at least one; the first is the reference.
        settings: what is run.
        conditions: where the data is.
        emit: gets each metric when it is first known and again when more blocks have narrowed it.
        progress: gets one short line for each thing begun.
        warn: gets what the user must know although the run goes on.
        state: of an interrupted run (see `state`); what it holds is not measured again.
    """

    def __init__(
        self,
        operands: Sequence[Operand],
        settings: Settings,
        conditions: Conditions,
        emit: Emit,
        progress: Say = _nothing,
        warn: Say = _nothing,
        state: Mapping[str, Any] | None = None,
        spawn: Callable[[str, Mapping[str, str]], Any] | None = None,
    ) -> None:
        self.operands = list(operands)
        self.settings = settings
        self.conditions = conditions
        self.emit = emit
        self.progress = progress
        self.warn = warn
        self.spawn = spawn or Worker
        self.workers: dict[str, Any] = {}
        self.samples = {name: Sample.from_json(data) for name, data in (state or {}).items()}
        self.costs: dict[str, dict[str, Any]] = {}
        self.ceilings: dict[str, dict[str, Any]] = {}
        self.machine: dict[str, Any] = {}
        self.references: list[float] = []
        self.resolved: dict[str, dict[str, str]] = {}
        self.rng = random.Random(settings.seed)
        self.patience = LEAST_PATIENCE

    @property
    def reference(self) -> str:
        return self.operands[0].label

    @property
    def lost(self) -> list[str]:
        """What failed, also before the run was interrupted: "training of resnet34"."""
        return [f"{name} of {label}" for name, sample in self.samples.items() for label in sample.failed]

    def run(self, budget: float) -> None:
        """Measure one block, then more while the next would still end within `budget` seconds of the start."""
        begin = time.monotonic()
        self.patience = max(self.patience, budget / 2)
        # An interrupted run goes on in the block that it had begun.
        block = max(0, max((len(sample.blocks) for sample in self.samples.values()), default=1) - 1)
        longest = 0.0
        while True:
            block_begin = time.monotonic()
            try:
                self.start_workers()
                self.run_block(block)
            finally:
                self.close()
            block += 1
            # The first block also compiles with a cold cache and counts, so it says little about the next.
            longest = max(longest if block > 2 else 0.0, time.monotonic() - block_begin)
            if time.monotonic() - begin + longest > budget:
                return

    def state(self) -> dict[str, Any]:
        """Everything measured so far, for a later run to go on from."""
        return {name: sample.to_json() for name, sample in self.samples.items()}

    def close(self) -> None:
        """End every process."""
        while self.workers:
            self.workers.popitem()[1].close()

    # ---- processes ----

    def start_workers(self, labels: Sequence[str] | None = None) -> None:
        """Start a fresh process for each operand; they import at the same time, nothing is timed yet."""
        self.progress("starting one process for each operand")
        wanted = list(labels or [operand.label for operand in self.operands])
        for label in wanted:
            self.workers[label] = self.spawn(label, worker_environment(self.settings.threads))
        # Importing torch's compiler is a good part of a process's start, and eager steps do without.
        compiler = any(may_compile(operand, self.settings.device) for operand in self.operands)
        for label in wanted:
            self.workers[label].send("hello", compiler=compiler)
            self.workers[label].send("imports", **self.imports())
        for label in wanted:
            self.workers[label].receive(300)
            with contextlib.suppress(BenchError):
                self.workers[label].receive(300)

    def imports(self) -> dict[str, Any]:
        """What every process will need: the operands are few, and often the same network."""
        models = {operand.subject for operand in self.operands if operand.kind == "model"}
        loaders = {operand.subject for operand in self.operands if operand.kind == "loader"}
        if models and self.conditions.data_root:
            loaders.add(self.settings.loader)
        return {"models": sorted(models), "loaders": sorted(loaders), "training": bool(models)}

    def restart(self, label: str) -> None:
        """A process that failed is replaced, so that the other rows can still be had."""
        self.workers.pop(label).close()
        self.start_workers([label])

    # ---- one block ----

    def run_block(self, block: int) -> None:
        if not self.machine:
            self.prepare()
        pinned = self.workers[self.reference].ask(
            "reference", 120, device=self.settings.device, threads=self.settings.threads
        )
        self.references.append(pinned["seconds"])
        for group in self.groups():
            sample = self.samples.setdefault(group.name, Sample())
            if len(sample.blocks) <= block and len(sample.missing) < len(self.operands):
                self.measure(group, sample)
            for metric in self.metrics_of(group, sample):
                self.emit(metric)
        if self.costs:
            self.measure_ceilings()
        for metric in self.summary():
            self.emit(metric)

    def prepare(self) -> None:
        """Ask the processes for what is not timed: the machine, resolved configurations, counts, ceilings."""
        first = self.workers[self.reference]
        self.machine = first.ask("machine")
        watched = {name: sample.telemetry for name, sample in self.samples.items() if sample.telemetry}
        if watched:
            self.machine["telemetry"] = watched
        if self.conditions.data_root:
            self.check_loaders(first)
            self.check_data(first)
        models = [operand for operand in self.operands if operand.kind == "model"]
        if not models:
            return
        self.progress("counting parameters and operations")
        for operand in models:
            self.resolved[operand.label] = tuned.levers(
                first.ask, self.settings.device, operand.subject, operand.configuration, self.machine
            )
            if tuned.is_tuned(operand.configuration):
                tasks = [task for task in ("latency", "inference", "training") if self.settings.has(task)]
                for task in tuned.untuned(operand.subject, self.machine, tasks):
                    self.warn(f"{operand.subject} was not tuned for {task} on this machine: measured as fast")
        for operand in models:
            self.workers[operand.label].send(
                "cost",
                model=operand.subject,
                classes=self.settings.classes or None,
                size=self.settings.size or None,
            )
        for operand in models:
            self.costs[operand.label] = self.workers[operand.label].receive(300)
        for name in COUNTED:
            self.emit(self.counted(name))
        self.measure_ceilings()

    def measure_ceilings(self) -> None:
        """The best seen in this run: a ceiling measured once may have met a noisy moment."""
        self.progress("measuring this device's ceilings")
        precisions = {
            precision_of(levers[task])
            for levers in self.resolved.values()
            for task in ("latency", "inference", "training")
            if task in levers
        }
        for precision in sorted(precisions):
            now = self.workers[self.reference].ask(
                "ceilings",
                120,
                device=self.settings.device,
                precision=precision,
                threads=self.settings.threads,
            )
            best = self.ceilings.setdefault(precision, now)
            self.ceilings[precision] = {**now, **{k: max(best[k], now[k]) for k in ("flops", "bandwidth")}}

    def check_loaders(self, worker: Any) -> None:
        """Raise WorkloadError if a loader that was named cannot run here: no row could do without it."""
        named = {operand.subject for operand in self.operands if operand.kind == "loader"} or {self.settings.loader}
        for name in sorted(named):
            reason = worker.ask("missing", 300, loader=name, device=self.settings.device)["reason"]
            if reason:
                raise WorkloadError(f"loader {name} cannot run here: {reason}; `bench list loaders` names the others")

    def check_data(self, worker: Any) -> None:
        """Read every file that will be used once; list the unreadable ones, and stop or go on as asked.

        Raises:
            WorkloadError: there are some and they are not to be skipped, or nothing else is left.
        """
        self.progress("reading every image once")
        answer = worker.ask("unreadable", 600, conditions=asdict(self.conditions))
        bad = [(path, reason) for path, reason in answer["bad"]]
        if not bad:
            return
        if self.conditions.on_bad_image == "stop" or len(bad) == answer["files"]:
            refuse_bad(bad, answer["files"])
        self.warn(describe_bad(bad, answer["files"]) + "\npassing over them")
        self.conditions = replace(self.conditions, exclude=tuple(path for path, _ in bad))

    def counted(self, name: str) -> Metric:
        values = {label: Value.counted(cost[name]) for label, cost in self.costs.items()}
        return self.with_ratios(
            name, values, {other: Ratio.exact(other, self.reference, values) for other in self.others()}
        )

    def others(self) -> list[str]:
        return [operand.label for operand in self.operands[1:]]

    def groups(self) -> list[Group]:
        """What is measured, cheapest and most asked for first."""
        kind = self.operands[0].kind
        if kind == "loader":
            return [
                self.group(
                    "loading",
                    ("loader_throughput",),
                    lambda o: (self.loader_workload(o.subject, o.configuration),),
                )
            ]
        if kind == "kernel":
            return [self.group("kernel", ("kernel_throughput",), lambda o: (self.kernel_workload(o),))]
        has = self.settings.has
        groups = []
        metrics: tuple[str, ...]
        if has("latency"):
            metrics = ("inference_latency_p50", "inference_latency_p90", "inference_latency_p99")
            groups.append(self.group("latency", metrics, lambda o: self.model_workloads(o, "latency")))
        if has("inference"):
            metrics = ("inference_throughput", "inference_peak_bytes")
            groups.append(self.group("inference", metrics, lambda o: self.model_workloads(o, "inference")))
        if has("loading"):
            groups.append(self.group("loading", ("loader_throughput",), self.feeding_workload))
        if has("end_to_end"):
            # The same step on a constant batch takes its turns beside it: what feeding costs is their ratio.
            metrics = ("training_throughput", "end_to_end_throughput", "training_peak_bytes")
            groups.append(self.group("training", metrics, lambda o: self.model_workloads(o, "training", "end_to_end")))
        elif has("training"):
            metrics = ("training_throughput", "training_peak_bytes")
            groups.append(self.group("training", metrics, lambda o: self.model_workloads(o, "training")))
        return groups

    def group(self, name: str, metrics: tuple[str, ...], make: Callable[[Operand], tuple[Workload, ...]]) -> Group:
        return Group(name, {operand.label: make(operand) for operand in self.operands}, metrics)

    def model_workloads(self, operand: Operand, *tasks: str) -> tuple[Workload, ...]:
        training = "training" in tasks
        levers = self.resolved[operand.label]
        if training and "training" not in levers:
            return ()
        cost = self.costs[operand.label]
        base = Workload(
            tasks[0],
            operand.subject,
            levers["training" if training else tasks[0]],
            1 if tasks[0] == "latency" else self.settings.training_batch if training else self.settings.batch,
            cost["size"],
            cost["classes"],
            device=self.settings.device,
        )
        fed = replace(base, task="end_to_end", loader=self.settings.loader, data=self.settings.data)
        return tuple(fed if task == "end_to_end" else replace(base, task=task) for task in tasks)

    def feeding_workload(self, operand: Operand) -> tuple[Workload, ...]:
        """The loader alone, giving the batches that this operand's training step takes."""
        levers = self.resolved[operand.label].get("training")
        if levers is None:
            return ()
        precision, layout, *_ = levers.split("-")
        dtype = {"amp": "bfloat16", "bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
        size = self.costs[operand.label]["size"]
        return (replace(self.loader_workload(self.settings.loader, f"{dtype}-{layout}"), size=size),)

    def loader_workload(self, engine: str, configuration: str) -> Workload:
        s = self.settings
        return Workload("loading", engine, configuration, s.batch, s.size or 224, data=s.data, device=s.device)

    def kernel_workload(self, operand: Operand) -> Workload:
        s = self.settings
        return Workload("kernel", operand.subject, operand.configuration, s.batch, s.size or 224, device=s.device)

    # ---- one group ----

    def measure(self, group: Group, sample: Sample) -> None:
        """Build every side, warm it, let the sides take turns; a side that fails is left out with its reason."""
        conditions = self.conditions
        plans: dict[str, Plan] = {}
        turns: dict[str, Callable[[], Slice]] = {}
        measured: dict[str, str] = {}
        for label, workloads in group.workloads.items():
            if not workloads:
                sample.missing[label] = self.resolved[label].get("training_missing", "not possible")
            if not workloads or label in sample.missing:
                continue
            twin = measured.get("+".join(w.id for w in workloads))
            if twin is not None and group.name == "loading" and self.operand(label).kind == "model":
                if label not in sample.twins:
                    sample.notes.append(f"{label} and {twin} take the same batches: measured once")
                sample.twins[label] = twin
                continue
            measured["+".join(w.id for w in workloads)] = label
            try:
                self.build(label, group, workloads, conditions, sample, plans)
            except BenchError as error:
                self.lose(label, group, sample, error)
                continue
            for workload in workloads:
                turns[key(label, workload)] = self.turn(label, workload, plans[key(label, workload)])
        with self.watched(group, sample):
            rounds = self.rounds(group, sample, turns)
        if rounds:
            sample.blocks.append(keep(rounds))
        if not sample.memory:
            self.weigh(group, sample, turns)
        if not sample.parity:
            self.compare_logits(group, sample, turns)
        if not sample.energy:
            self.meter(group, sample, turns)
        for label, workloads in group.workloads.items():
            if label in self.workers and workloads:
                with contextlib.suppress(BenchError):
                    self.workers[label].ask("release", ids=[w.id for w in workloads])

    def operand(self, label: str) -> Operand:
        return next(operand for operand in self.operands if operand.label == label)

    def build(
        self,
        label: str,
        group: Group,
        workloads: Sequence[Workload],
        conditions: Conditions,
        sample: Sample,
        plans: dict[str, Plan],
    ) -> None:
        worker = self.workers[label]
        self.progress(f"{group.name}: preparing {label}")
        built = worker.build(workloads, conditions)
        sample.compile.setdefault(label, []).append((built["compile_seconds"], built["cache"]))
        sample.notes += [note for note in built["notes"] if note not in sample.notes]
        speed: dict[str, float] = {}
        for workload in workloads:
            self.progress(f"{group.name}: warming up {label}")
            speed[workload.task] = worker.warm(workload, cap=WARM_UP_CAP[workload.task])["seconds_per_step"]
            prefetch = built["prefetch"][workload.id]
            if workload.task == "end_to_end" and speed["end_to_end"] <= 1.1 * speed.get("training", 0.0):
                # The step sets the pace, so the loader's queue is as full in the middle of a slice as after a pause.
                prefetch = 0
            length = SLICE_SECONDS
            if workload.task == "latency":
                wanted = -(-required_samples(0.99) // self.settings.rounds) * speed["latency"]
                length = min(LATENCY_SLICE_SECONDS, max(SLICE_SECONDS, wanted * 1.02))
            plans[key(label, workload)] = plan(speed[workload.task], length, prefetch)

    def turn(self, label: str, workload: Workload, plan: Plan) -> Callable[[], Slice]:
        def take() -> Slice:
            worker = self.workers[label]
            turn: Slice = worker.slice(workload, plan.steps, plan.drop, each=workload.task == "latency", timeout=300)
            return turn

        return take

    def rounds(self, group: Group, sample: Sample, turns: dict[str, Callable[[], Slice]]) -> list[Round]:
        """The rounds of one group; an operand that fails in one is dropped and the rounds start again."""

        begin = time.monotonic()

        def enough(done: int) -> bool:
            self.progress(f"{group.name}: round {done} of {self.settings.rounds}")
            return done >= LEAST_ROUNDS and time.monotonic() - begin > self.patience

        while turns:
            try:
                return take_turns(turns, self.settings.rounds, self.rng, enough)
            except SideError as failure:
                label = failure.side.rsplit("|", 1)[0]
                self.lose(label, group, sample, failure.reason)
                for name in [name for name in turns if name.rsplit("|", 1)[0] == label]:
                    del turns[name]
        return []

    @contextlib.contextmanager
    def watched(self, group: Group, sample: Sample) -> Iterator[None]:
        """Reads the GPU's sensors meanwhile, for the record; a CPU's readers would take its time from the measured.

        Clock, power and memory of this process's device: the sides have it in turns, so one series is both's.
        """
        if self.settings.device != "cuda":
            yield
            return
        with Telemetry(sensor_for("cuda")) as watch:
            yield
        sample.telemetry.append(asdict(watch.summary()))
        self.machine.setdefault("telemetry", {})[group.name] = sample.telemetry

    def lose(self, label: str, group: Group, sample: Sample, error: BenchError) -> None:
        """Record why an operand has no number in this group, say so, and go on without it."""
        reason = str(error)
        sample.failed.append(label)
        sample.missing[label] = reason.splitlines()[0].split("; its last output")[0]
        self.warn(f"{group.name} of {label}: {reason}")
        # Also after an allocation that failed: what it left behind must not weigh on the next rows.
        self.restart(label)

    def meter(self, group: Group, sample: Sample, turns: Mapping[str, object]) -> None:
        """Energy of an image in inference, once, where the device counts it."""
        if not self.settings.energy:
            return
        idle: float | None = None
        for label, workloads in group.workloads.items():
            if (
                workloads
                and workloads[0].task == "inference"
                and key(label, workloads[0]) in turns
                and label not in sample.missing
            ):
                self.progress(f"{group.name}: energy of {label}")
                try:
                    # At rest the device draws the same for all of them.
                    found = self.workers[label].ask("energy", 120, id=workloads[0].id, idle=idle)
                    sample.energy[label], idle = found, found.get("idle_watts", idle)
                except BenchError as error:
                    sample.energy[label] = {"missing": str(error)}

    def compare_logits(self, group: Group, sample: Sample, turns: Mapping[str, object]) -> None:
        """How far each side's logits lie from plain fp32's, once: fast and wrong must not look like fast."""
        for label, workloads in group.workloads.items():
            if not workloads or workloads[0].task != "inference" or key(label, workloads[0]) not in turns:
                continue
            if label in sample.missing or workloads[0].configuration == Configuration().text:
                continue
            self.progress(f"{group.name}: logits of {label}")
            try:
                sample.parity[label] = self.workers[label].ask(
                    "parity", 300, id=workloads[0].id, conditions=asdict(self.conditions)
                )
            except BenchError as error:
                self.warn(f"logits of {label} were not compared: {error}")

    def weigh(self, group: Group, sample: Sample, turns: Mapping[str, object]) -> None:
        """Memory of each side, once, after everything timed."""
        if not any(name.endswith("_peak_bytes") for name in group.metrics):
            return
        self.progress(f"{group.name}: memory")
        for label, workloads in group.workloads.items():
            if workloads and key(label, workloads[0]) in turns and label not in sample.missing:
                try:
                    sample.memory[label] = self.workers[label].ask("memory", 120, id=workloads[0].id)
                except BenchError as error:
                    self.warn(f"no memory figure for {label}: {error}")

    # ---- from rounds to metrics ----

    def metrics_of(self, group: Group, sample: Sample) -> Iterator[Metric]:
        task_of = {
            "inference_throughput": "inference",
            "training_throughput": "training",
            "end_to_end_throughput": "end_to_end",
            "loader_throughput": "loading",
            "kernel_throughput": "kernel",
        }
        for name in group.metrics:
            if name.startswith("inference_latency"):
                yield self.latency(name, group, sample)
            elif name.endswith("_peak_bytes"):
                yield self.peak(name, group, sample)
            else:
                yield self.throughput(name, task_of[name], group, sample)

    def throughput(self, name: str, task: str, group: Group, sample: Sample) -> Metric:
        """images/s of each side, and the ratio of rates: the inverse of the ratio of times that the pairs hold."""
        chosen = {
            label: next(w for w in workloads if w.task == task)
            for label, workloads in group.workloads.items()
            if workloads
        }
        timed = self.timed(chosen, sample)
        values: dict[str, Value] = {}
        for label in group.workloads:
            source = timed.get(label)
            if source is None:
                values[label] = Value.none(sample.missing.get(label, "not measured"))
                continue
            rates = [
                [chosen[label].batch / turns[source].seconds_per_step for turns in block] for block in sample.blocks
            ]
            values[label] = value_over(rates)
        ratios: dict[str, Ratio | None] = {}
        for other in self.others():
            of, to = timed.get(other), timed.get(self.reference)
            if of is None or to is None or of == to:
                ratios[other] = None
                continue
            images = {of: chosen[other].batch, to: chosen[self.reference].batch}
            logs = [[-r for r in log_ratios(block, of, to, images)] for block in sample.blocks]
            ratios[other] = interval(logs).ratio(other, self.reference) if any(logs) else None
        batches = {w.batch for w in chosen.values()}
        notes = [*sample.notes, *(f"{label}: {parity_text(found)}" for label, found in sample.parity.items())]
        if task == "end_to_end":
            notes += [self.overlap(label, sample) for label in timed]
        return self.with_ratios(
            name,
            values,
            ratios,
            batch=batches.pop() if len(batches) == 1 else None,
            workloads={label: w.id for label, w in chosen.items()},
            notes=notes,
            pairs=raw(sample.blocks, task),
        )

    def overlap(self, label: str, sample: Sample) -> str:
        """How much of the step's own rate is left when it has to be fed, and which of the two sets the pace."""
        logs = [log_ratios(block, f"{label}|training", f"{label}|end_to_end") for block in sample.blocks]
        share = interval(logs).ratio("end_to_end", "training")
        step = statistics.median(t[f"{label}|training"].seconds_per_step for b in sample.blocks for t in b)
        text = f"{label}: {ratio_text(share)} of the same step on a constant batch"
        loading = self.samples.get("loading")
        name = f"{loading.twins.get(label, label)}|loading" if loading else ""
        turns = [turns[name] for block in loading.blocks for turns in block if name in turns] if loading else []
        if not turns:
            return text
        loader = statistics.median(turn.seconds_per_step for turn in turns)
        per_image = loader / self.settings.batch, step / self.settings.training_batch
        if per_image[0] < per_image[1]:
            return f"{text}; step-bound, the loader alone gives {per_image[1] / per_image[0]:.1f} times as many images"
        return f"{text}; loader-bound, the step alone takes {per_image[0] / per_image[1]:.1f} times as many images"

    def timed(self, chosen: Mapping[str, Workload], sample: Sample) -> dict[str, str]:
        """Operand -> the name in the rounds that holds its time."""
        present = {name for block in sample.blocks for turns in block for name in turns}
        names = {label: key(sample.twins.get(label, label), workload) for label, workload in chosen.items()}
        return {label: name for label, name in names.items() if name in present}

    def latency(self, name: str, group: Group, sample: Sample) -> Metric:
        """A percentile of the times of single images, one in flight."""
        q = int(name.rsplit("_p", 1)[1]) / 100
        chosen = {label: w[0] for label, w in group.workloads.items() if w}
        timed = self.timed(chosen, sample)
        pooled = {
            label: [t for block in sample.blocks for turns in block for t in turns[timed[label]].samples]
            for label in timed
        }
        values = {
            label: percentile_value(pooled[label], q)
            if label in pooled and q > 0.5
            else summarise(pooled[label])
            if label in pooled
            else Value.none(sample.missing.get(label, "not measured"))
            for label in group.workloads
        }
        ratios: dict[str, Ratio | None] = {}
        for other in self.others():
            ratios[other] = self.latency_ratio(q, other, timed, sample, pooled, values)
        metric = self.with_ratios(
            name,
            values,
            ratios,
            batch=1,
            workloads={label: w.id for label, w in chosen.items()},
            notes=sample.notes,
            pairs=raw(sample.blocks, "latency") if q == 0.5 else (),
        )
        if q > 0.5:
            return metric
        return replace(metric, quantiles={label: percentiles(times) for label, times in pooled.items()})

    def latency_ratio(
        self,
        q: float,
        other: str,
        timed: Mapping[str, str],
        sample: Sample,
        pooled: Mapping[str, list[float]],
        values: Mapping[str, Value],
    ) -> Ratio | None:
        """p50 and p90 by pairs of slices; p99, of which a slice has too few samples, from the two pooled percentiles.

        Bounds of p99: each percentile's own 97.5 % order-statistic interval, so that both hold with 95 %.
        """
        of, to = timed.get(other), timed.get(self.reference)
        if of is None or to is None or values[other].median is None or values[self.reference].median is None:
            return None
        if q <= 0.9:
            logs = [
                [math.log(quantile(turns[of].samples, q) / quantile(turns[to].samples, q)) for turns in block]
                for block in sample.blocks
            ]
            return interval(logs).ratio(other, self.reference)
        top, bottom = values[other].median, values[self.reference].median
        assert top is not None
        assert bottom is not None
        a, b = quantile_interval(pooled[other], q, 0.975), quantile_interval(pooled[self.reference], q, 0.975)
        blocks = len(sample.blocks)
        return Ratio(
            other,
            self.reference,
            top / bottom,
            a[0] / b[1],
            a[1] / b[0],
            0.95,
            blocks,
            sum(len(b) for b in sample.blocks),
        )

    def peak(self, name: str, group: Group, sample: Sample) -> Metric:
        """Bytes that a step needs; counted or read from counters, so without an interval."""
        values = {
            label: Value.counted(sample.memory[label]["peak"])
            if label in sample.memory
            else Value.none(sample.missing.get(label, "not measured"))
            for label in group.workloads
        }
        notes = [f"{label}: {memory_text(memory)}" for label, memory in sample.memory.items()]
        batches = {w[0].batch for w in group.workloads.values() if w}
        return self.with_ratios(
            name,
            values,
            {other: Ratio.exact(other, self.reference, values) for other in self.others()},
            batch=batches.pop() if len(batches) == 1 else None,
            workloads={label: w[0].id for label, w in group.workloads.items() if w},
            notes=notes,
        )

    def summary(self) -> Iterator[Metric]:
        """What follows from several groups: compilation, roof, energy."""
        if self.operands[0].kind != "model":
            return
        yield self.compilation()
        yield from self.roof()
        yield self.energy()

    def energy(self) -> Metric:
        """Joules above idle for one image of the inference workload; one window, so without an interval."""
        sample = self.samples.get("inference", Sample())
        values: dict[str, Value] = {}
        notes: list[str] = []
        for operand in self.operands:
            found = sample.energy.get(operand.label, {"missing": sample.missing.get(operand.label, "not measured")})
            if "joules" not in found:
                values[operand.label] = Value.none(found["missing"])
                continue
            values[operand.label] = Value(found["joules"], None, None, samples=1)
            idle = found["idle_watts"]
            notes.append(
                f"of inference, {'idle power not known' if idle is None else f'{idle:.0f} W of idle power subtracted'}"
            )
        return self.with_ratios("energy_per_image", values, {}, notes=notes)

    def compilation(self) -> Metric:
        """Seconds spent compiling before anything was timed, all workloads of an operand together."""
        values: dict[str, Value] = {}
        states: dict[str, str] = {}
        for operand in self.operands:
            parts = [s.compile[operand.label] for s in self.samples.values() if operand.label in s.compile]
            per_block = [sum(seconds for seconds, _ in block) for block in zip(*parts, strict=False)]
            caches = {cache for block in parts for _, cache in block[:1]}
            states[operand.label] = next((state for state in CACHE_STATES if state in caches), "none")
            if not per_block:
                values[operand.label] = Value.none("not measured")
            elif max(per_block) == 0.0:
                values[operand.label] = Value.counted(0.0)
            else:
                # The first block only: it alone may have found the cache cold.
                values[operand.label] = Value(per_block[0], None, None, samples=1)
        ratios: dict[str, Ratio | None] = {}
        for other in self.others():
            exact = Ratio.exact(other, self.reference, values)
            comparable = states[other] == states[self.reference] and states[other] != "none"
            ratios[other] = (
                replace(exact, low=None, high=None, confidence=None, blocks=1, pairs=1)
                if exact and comparable
                else None
            )
        notes = [f"{label}: {CACHE_STATES.get(state, 'nothing to compile')}" for label, state in states.items()]
        return self.with_ratios("compile_seconds", values, ratios, notes=notes)

    def roof(self) -> Iterator[Metric]:
        """Training's share of the measured ceilings, or inference's where training was not measured; and its MFU."""
        from bench.inspecting.cost import Cost
        from bench.inspecting.roofline import Ceilings, fraction, utilisation

        values: dict[str, Value] = {}
        used: dict[str, Value] = {}
        notes: list[str] = []
        chosen = "training" if "training" in self.samples and any(self.samples["training"].blocks) else "inference"
        sample = self.samples.get(chosen)
        group = next((group for group in self.groups() if group.name == chosen), None)
        workloads = {label: w[0] for label, w in group.workloads.items() if w} if group else {}
        timed = self.timed(workloads, sample) if sample else {}
        for operand in self.operands:
            label = operand.label
            if sample is None or label not in timed:
                reason = (sample.missing.get(label) if sample else None) or "not measured"
                values[label] = used[label] = Value.none(reason)
                continue
            workload = workloads[label]
            precision = precision_of(workload.configuration)
            if precision not in self.ceilings:
                values[label] = used[label] = Value.none(f"no ceiling was measured for {workload.configuration}")
                continue
            ceilings = Ceilings(**self.ceilings[precision])
            rates = [
                [workload.batch / turns[timed[label]].seconds_per_step for turns in block] for block in sample.blocks
            ]
            cost, training = Cost(**self.costs[label]), chosen == "training"
            for shares, factor in (
                (values, fraction(cost, ceilings, 1.0, workload.batch, training)),
                (used, utilisation(cost, ceilings, 1.0, training)),
            ):
                shares[label] = value_over([[rate * factor for rate in block] for block in rates])
            flops, bandwidth = quantity(ceilings.flops, "FLOP/s"), quantity(ceilings.bandwidth, "bytes/s")
            note = f"of {chosen}: ceilings measured in this run are {flops} in {precision} and {bandwidth}"
            if note not in notes:
                notes.append(note)
        yield self.with_ratios("roof_fraction", values, {}, notes=notes)
        yield self.with_ratios("mfu", used, {}, notes=notes)

    def with_ratios(
        self,
        name: str,
        values: Mapping[str, Value],
        ratios: Mapping[str, Ratio | None],
        batch: int | None = None,
        workloads: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        pairs: Any = (),
    ) -> Metric:
        """The metric with its first ratio, and all of them where there are more than two operands."""
        found = [ratio for ratio in ratios.values() if ratio is not None]
        first = found[0] if found else None
        metric = Metric.named(name, values, batch=batch)
        verdict = compare_verdict(first, metric.better, margin_of(name)) if first else None
        return replace(
            metric,
            ratio=first,
            verdict=verdict,
            ratios=tuple(found) if len(self.operands) > 2 else (),
            workloads=dict(workloads or {}),
            notes=tuple(dict.fromkeys(notes)),
            pairs=pairs,
        )


def may_compile(operand: Operand, device: str) -> bool:
    """Whether measuring this on "cpu" or "cuda" may need torch's compiler."""
    if operand.kind != "model":
        return operand.kind == "kernel"
    facts = Device.from_cpu() if device == "cpu" else Device(device, bf16=True, compiler=True)
    if tuned.is_tuned(operand.configuration):
        return True
    return parse(operand.configuration, facts, training=False).compile != "eager"


def precision_of(levers: str) -> str:
    """The precision among a configuration's resolved levers; a peer's follows its name."""
    return next(word for word in levers.split("-") if word in LEVERS and LEVERS[word][0] == "precision")


def parity_text(found: Mapping[str, Any]) -> str:
    """How far logits lie from plain fp32's, in words."""
    return (
        f"logits lie {found['rms']:.2g} of their spread from plain fp32's, "
        f"and the first class is the same for {found['same_top1']} of {found['images']} random images"
    )


def key(label: str, workload: Workload) -> str:
    """The name of a side in the rounds."""
    return f"{label}|{workload.task}"


def value_over(blocks: Sequence[Sequence[float]]) -> Value:
    """Median with its interval: over block medians from 6 blocks up, else over all slices."""
    medians = [statistics.median(block) for block in blocks if block]
    if len(medians) >= 6:
        return summarise(medians)
    return summarise([x for block in blocks for x in block])


def quantile(samples: Sequence[float], q: float) -> float:
    """Interpolated quantile of one slice's samples."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[round(q * 100) - 1]


def percentiles(samples: Sequence[float]) -> tuple[float, ...]:
    """The 0th to the 100th percentile; none of fewer samples than that."""
    if len(samples) < 100:
        return ()
    inner = statistics.quantiles(samples, n=100, method="inclusive")
    return (min(samples), *inner, max(samples))


def raw(blocks: Sequence[Sequence[Round]], task: str) -> list[list[dict[str, float]]]:
    """Seconds a step of each side in each round of each block: what every figure of a row is computed from."""
    return [
        [
            {name.rsplit("|", 1)[0]: turn.seconds_per_step for name, turn in turns.items() if name.endswith("|" + task)}
            for turns in block
        ]
        for block in blocks
    ]
