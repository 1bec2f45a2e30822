"""Several operands measured side by side: blocks, processes and turns, and what is kept of them.

One process an operand and block, one group of workloads after another, each group in turns (bench.timing.duel). A
metric is handed out, and stored by the caller, as soon as it is known. After the first block further blocks follow
while the budget lasts; they only narrow the intervals.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from bench.comparing.figures import Energy, Figures, Parity, Sample, label_of, side
from bench.comparing.operands import Operand
from bench.comparing.plan import MODEL_TASKS, Group, Settings, groups, needs
from bench.errors import BenchError, WorkloadError
from bench.machine.telemetry import Telemetry, sensor_for
from bench.machine.tuned import Resolved, resolve, untuned
from bench.screen import Say
from bench.sides.crew import Crew, Spawn, spawner
from bench.sides.process import Worker
from bench.timing.duel import SLICE_SECONDS, Round, SlicePlan, Turn, plan_slice, steady_rounds, take_turns
from bench.timing.images import describe_bad, refuse_bad
from bench.timing.steady import WARM_UP_CAP
from bench.timing.workload import Conditions, Workload
from models.configuration import Device
from results.record import Metric
from results.stats import required_samples

# Longest slice of a latency workload: enough turns of it reach the 459 samples that p99 needs.
LATENCY_SLICE_SECONDS = 1.5
# A block of a network so slow, or on a machine so busy, that its 8 rounds take half the budget or more ends after
# fewer: the interval then says how little that shows.
LEAST_ROUNDS = 3
LEAST_PATIENCE = 20.0  # seconds

Emit = Callable[[Metric], None]


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
        spawn: starts a process, see bench.sides.crew.

    Raises:
        RecordError: `state` cannot be read.
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
        spawn: Spawn = Worker,
    ) -> None:
        self.operands = list(operands)
        self.settings = settings
        self.conditions = conditions
        self.emit = emit
        self.progress = progress
        self.warn = warn
        self.crew = Crew(spawner(settings.threads, spawn))
        self.samples = {name: Sample.from_json(data) for name, data in (state or {}).items()}
        self.costs: dict[str, dict[str, Any]] = {}
        self.ceilings: dict[str, dict[str, Any]] = {}
        self.machine: dict[str, Any] = {}
        self.references: list[float] = []
        self.resolved: dict[str, Resolved] = {}
        self.rng = random.Random(settings.seed)
        self.patience = LEAST_PATIENCE

    @property
    def failures(self) -> list[str]:
        """What failed, also before the run was interrupted: "training of resnet34"."""
        return [f"{name} of {label}" for name, sample in self.samples.items() for label in sample.failed]

    def run(self, budget: float) -> None:
        """Measure one block, then more while the next would still end within `budget` seconds of the start."""
        begin = time.monotonic()
        self.patience = max(self.patience, budget / 2)
        # An interrupted run goes on in the block that it had begun.
        block = max(0, max((sample.begun for sample in self.samples.values()), default=1) - 1)
        longest = 0.0
        while True:
            block_begin = time.monotonic()
            with self.crew:
                self.run_block(block)
            block += 1
            # The first block also compiles with a cold cache and counts, so it says little about the next.
            longest = max(longest if block > 2 else 0.0, time.monotonic() - block_begin)
            if time.monotonic() - begin + longest > budget:
                return

    def state(self) -> dict[str, Any]:
        """Everything measured so far, for a later run to go on from."""
        return {name: sample.to_json() for name, sample in self.samples.items()}

    @property
    def figures(self) -> Figures:
        """The metrics of what was measured so far."""
        planned = groups(self.operands, self.settings, self.resolved, self.costs)
        return Figures(self.operands, self.settings, planned, self.samples, self.costs, self.ceilings)

    def run_block(self, block: int) -> None:
        """Fresh processes do everything once: what is counted, each group's rounds, the ceilings."""
        self.progress("starting one process for each operand")
        labels = [operand.label for operand in self.operands]
        self.crew.start(labels, needs(self.operands, self.settings, bool(self.conditions.data_root)))
        first = self.crew[labels[0]]
        if not self.machine:
            self.prepare(first)
        where = {"device": self.settings.device, "threads": self.settings.threads}
        self.references.append(first.ask("reference", 120, **where)["seconds"])
        for group in self.figures.groups:
            sample = self.samples.setdefault(group.name, Sample())
            if sample.begun <= block and len(sample.missing) < len(self.operands):
                self.measure(group, sample)
            self.emit_all(self.figures.of_group(group))
        if self.costs:
            self.measure_ceilings()
        self.emit_all(self.figures.summary())

    def emit_all(self, metrics: Iterator[Metric]) -> None:
        for metric in metrics:
            self.emit(metric)

    # What is not timed.

    def prepare(self, first: Worker) -> None:
        """Ask the processes for the machine, resolved configurations, counts and ceilings."""
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
        device = Device(**first.ask("device", device=self.settings.device))
        for operand in models:
            self.resolved[operand.label] = resolve(operand.choice, device, operand.subject, self.machine)
            if operand.choice.tuned:
                measured = [task for task in MODEL_TASKS if self.settings.has(task)]
                for task in untuned(operand.subject, self.machine, measured):
                    self.warn(f"{operand.subject} was not tuned for {task} on this machine: measured as fast")
        classes, size = self.settings.classes or None, self.settings.size or None
        for operand in models:
            self.crew[operand.label].send("cost", model=operand.subject, classes=classes, size=size)
        for operand in models:
            self.costs[operand.label] = self.crew[operand.label].receive(300)
        self.emit_all(self.figures.counted())
        self.measure_ceilings()

    def measure_ceilings(self) -> None:
        """The best seen in this run: a ceiling measured once may have met a noisy moment."""
        self.progress("measuring this device's ceilings")
        precisions = {
            configuration.precision
            for resolved in self.resolved.values()
            for configuration in resolved.configurations.values()
        }
        where = {"device": self.settings.device, "threads": self.settings.threads}
        for precision in sorted(precisions):
            now = self.crew[self.operands[0].label].ask("ceilings", 120, precision=precision, **where)
            best = self.ceilings.setdefault(precision, now)
            self.ceilings[precision] = {**now, **{k: max(best[k], now[k]) for k in ("flops", "bandwidth")}}

    def check_loaders(self, worker: Worker) -> None:
        """Raise WorkloadError if a loader that was named cannot run here: no row could do without it."""
        named = {operand.subject for operand in self.operands if operand.kind == "loader"} or {self.settings.loader}
        for name in sorted(named):
            reason = worker.ask("missing", 300, loader=name, device=self.settings.device)["reason"]
            if reason:
                raise WorkloadError(f"loader {name} cannot run here: {reason}; `bench list loaders` names the others")

    def check_data(self, worker: Worker) -> None:
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
        self.warn(describe_bad(bad, answer["files"]) + "\nskipping them")
        self.conditions = replace(self.conditions, exclude=tuple(path for path, _ in bad))

    # One group in one block.

    def measure(self, group: Group, sample: Sample) -> None:
        """Build every side, warm it, let the sides take turns; a side that fails is left out with its reason."""
        turns = self.ready_sides(group, sample)
        with self.watched(group, sample):
            rounds = self.rounds(group, sample, turns)
        if rounds:
            sample.blocks.append(list(steady_rounds(rounds)))
        # Once, after everything timed.
        built = {
            label: workloads[0]
            for label, workloads in group.workloads.items()
            if workloads and side(label, workloads[0]) in turns and label not in sample.missing
        }
        if any(name.endswith("_peak_bytes") for name in group.metrics):
            self.measure_memory(built, sample)
        if not sample.parity and group.name == "inference":
            self.compare_logits(built, sample)
        if not sample.energy and group.name == "inference" and self.settings.energy:
            self.measure_energy(built, sample)
        for label, workloads in group.workloads.items():
            if label in self.crew and workloads:
                with contextlib.suppress(BenchError):
                    self.crew.release({label: workloads})

    def ready_sides(self, group: Group, sample: Sample) -> dict[str, Turn]:
        """Every side of a group, built and warm: its name in the rounds -> its turn."""
        turns: dict[str, Turn] = {}
        built: dict[tuple[Workload, ...], str] = {}
        for label, workloads in group.workloads.items():
            if not workloads:
                sample.missing[label] = self.resolved[label].training_missing or "not possible"
            if label in sample.missing:
                continue
            twin = built.get(workloads)
            if twin is not None and group.name == "loading" and self.resolved:
                if label not in sample.twins:
                    sample.notes.append(f"{label} and {twin} take the same batches: measured once")
                sample.twins[label] = twin
                continue
            built[workloads] = label
            try:
                turns |= self.ready(label, group, workloads, sample)
            except BenchError as error:
                self.drop_operand(label, group, sample, error)
        return turns

    def ready(self, label: str, group: Group, workloads: Sequence[Workload], sample: Sample) -> dict[str, Turn]:
        """The turns of an operand's workloads, which share one network."""
        worker = self.crew[label]
        self.progress(f"{group.name}: preparing {label}")
        built = worker.build(workloads, self.conditions)
        sample.compile.setdefault(label, []).append((built.compile_seconds, built.cache))
        sample.notes += [note for note in built.notes if note not in sample.notes]
        turns: dict[str, Turn] = {}
        speed: dict[str, float] = {}
        for workload in workloads:
            self.progress(f"{group.name}: warming up {label}")
            speed[workload.task] = worker.warm(workload, WARM_UP_CAP[workload.task])
            prefetch = built.prefetch[workload.id]
            if workload.task == "end_to_end" and speed["end_to_end"] <= 1.1 * speed.get("training", 0.0):
                # The step sets the pace, so the loader's queue is as full in the middle of a slice as after a pause.
                prefetch = 0
            length = self.slice_of(workload, speed[workload.task], prefetch)
            latency = workload.task == "latency"
            turns[side(label, workload)] = self.crew.turn(label, workload, length, each=latency)
        return turns

    def slice_of(self, workload: Workload, seconds_per_step: float, prefetch: int) -> SlicePlan:
        """How long a workload's slice is; single images are timed until there are enough of them for p99."""
        seconds = SLICE_SECONDS
        if workload.task == "latency":
            wanted = -(-required_samples(0.99) // self.settings.rounds) * seconds_per_step
            seconds = min(LATENCY_SLICE_SECONDS, max(SLICE_SECONDS, wanted * 1.02))
        return plan_slice(seconds_per_step, seconds, prefetch)

    def rounds(self, group: Group, sample: Sample, turns: dict[str, Turn]) -> list[Round]:
        """The rounds of one group; an operand that fails in one is dropped and the rounds start again."""
        begin = time.monotonic()

        def enough(done: int) -> bool:
            self.progress(f"{group.name}: round {done} of {self.settings.rounds}")
            return done >= LEAST_ROUNDS and time.monotonic() - begin > self.patience

        while turns:
            try:
                return take_turns(turns, self.settings.rounds, self.rng, enough)
            except BenchError as failure:
                label = label_of(failure.side)
                self.drop_operand(label, group, sample, failure)
                for name in [name for name in turns if label_of(name) == label]:
                    del turns[name]
        return []

    @contextlib.contextmanager
    def watched(self, group: Group, sample: Sample) -> Iterator[None]:
        """Reads the GPU's sensors meanwhile, for the record; a CPU's readers would take its time from the measured.

        Clock, power and memory of this process's device: the sides use it in turns, so one series stands for both.
        """
        if self.settings.device != "cuda":
            yield
            return
        with Telemetry(sensor_for("cuda")) as watch:
            yield
        sample.telemetry.append(asdict(watch.summary()))
        self.machine.setdefault("telemetry", {})[group.name] = sample.telemetry

    def drop_operand(self, label: str, group: Group, sample: Sample, error: BenchError) -> None:
        """Record why an operand has no number in this group, say so, and go on without it."""
        sample.failed.append(label)
        sample.missing[label] = error.summary
        self.warn(f"{group.name} of {label}: {error}")
        # Also after an allocation that failed: what it left behind must not affect the next rows.
        self.crew.replace(label)

    def measure_memory(self, built: Mapping[str, Workload], sample: Sample) -> None:
        """Memory of each side."""
        for label, workload in built.items():
            self.progress(f"{workload.task}: memory of {label}")
            known = sample.memory.setdefault(label, [])
            try:
                memory = self.crew[label].ask("memory", 900, id=workload.id, readings=1 if known else 3)
            except BenchError as error:
                memory = {"missing": str(error)}
                self.warn(f"no memory figure for {label}: {error}")
            known.append(memory)

    def compare_logits(self, built: Mapping[str, Workload], sample: Sample) -> None:
        """How much each side's logits differ from plain fp32's: fast but wrong must not look like fast."""
        for label, workload in built.items():
            if workload.network.plain:
                continue
            self.progress(f"{workload.task}: logits of {label}")
            try:
                answer = self.crew[label].ask("parity", 300, id=workload.id, conditions=asdict(self.conditions))
                sample.parity[label] = Parity(**answer)
            except BenchError as error:
                self.warn(f"logits of {label} were not compared: {error}")

    def measure_energy(self, built: Mapping[str, Workload], sample: Sample) -> None:
        """Energy of an image in inference, where the device counts it."""
        idle: float | None = None
        for label, workload in built.items():
            self.progress(f"{workload.task}: energy of {label}")
            try:
                # At rest the device draws the same for all of them.
                energy = Energy(**self.crew[label].ask("energy", 120, id=workload.id, idle=idle))
            except BenchError as error:
                energy = Energy(missing=str(error))
            sample.energy[label] = energy
            idle = energy.idle_watts if energy.idle_watts is not None else idle
