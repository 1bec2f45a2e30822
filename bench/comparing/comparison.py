"""Several operands measured side by side: blocks, processes and turns, and what is kept of them.

A block is fresh processes and everything done once in them: one group of workloads after another, each group in turns
(bench.timing.duel). Operands share a process unless a switch of the whole process differs. A metric is handed out, and
stored by the caller, as soon as it is known; each further block narrows its interval, which is over blocks.
"""

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from bench.comparing.figures import Energy, Figures, Parity, Sample, best_ceilings, label_of, load_of, side
from bench.comparing.operands import Operand
from bench.comparing.plan import Group, Settings, classes_for, groups, impossible, needs
from bench.errors import BenchError, OutOfMemoryError, WorkerError, WorkloadError
from bench.machine.cpu import Busy
from bench.machine.telemetry import Telemetry, sensor_for
from bench.machine.tuned import Resolved, doubts, resolve
from bench.screen import Say
from bench.sides.crew import Crew, Entrant, Spawn, spawner
from bench.sides.load import competing
from bench.sides.process import Built, Warm, Worker
from bench.timing.duel import LEAST_ROUNDS, Round, Rounds, SlicePlan, pairs_of, steady_rounds
from bench.timing.images import describe_bad, refuse_bad
from bench.timing.tasks import MODEL_TASKS
from bench.timing.workload import Conditions, Workload
from models import zoo
from models.configuration import Configuration, Device
from results.record import Metric
from results.stats import required_samples

BLOCKS = 6  # the fewest whose signed-rank bounds reach 95 %
# Seconds of turns of a group in a block. Training and what feeds it have the longest steps and the most sides.
GROUP_SECONDS = {"latency": 3.0, "inference": 2.5, "loading": 1.5, "training": 5.0, "kernel": 1.0, "step": 2.5}
# How far a comparison may go beyond its budget to have an interval at all.
PATIENCE = 2.0
LEAST_SHARE = 0.3  # of GROUP_SECONDS: fewer turns in a block say too little of it
# How many times as fast as the network takes images a loader, running alone, keeps its queue full for certain: beside
# the network, which has every core busy, it needs this share of the cores' time.
AMPLE = 8.0
UNSTEADY = "the clock was steady in no round of a block: all of its rounds count"

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
        estimate: gets a first estimate of each rate before anything is compiled; None where nobody would see it.

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
        estimate: Emit | None = None,
    ) -> None:
        self.operands = list(operands)
        self.estimate = estimate
        self.settings = settings
        self.conditions = conditions
        self.emit = emit
        self.progress = progress
        self.warn = warn
        self.crew = Crew(spawner(settings.threads, spawn), forks=settings.device == "cpu")
        self.samples = {name: Sample.from_json(data) for name, data in (state or {}).items()}
        self.costs: dict[str, dict[str, Any]] = {}
        self.ceilings: dict[str, dict[str, Any]] = {}
        self.machine: dict[str, Any] = {}
        self.references: list[float] = []
        self.resolved: dict[str, Resolved] = {}
        self.unusable: dict[str, str] = {}  # operand -> why nothing of it can be measured
        self.rng = random.Random(settings.seed)
        # The share of GROUP_SECONDS that the budget leaves.
        self.share = 1.0
        self.timed = self.once = 0.0
        self.apart = False
        self.started: Mapping[str, str] = {}
        self.prepared: dict[tuple[str, str], Built] = {}
        self.fed: dict[str, Warm] = {}
        self.loaded: dict[str, float] = {}  # operand -> seconds an image of its loader, running alone

    @property
    def failures(self) -> list[str]:
        """What failed, also before the run was interrupted: "training of resnet34"."""
        return [f"{name} of {label}" for name, sample in self.samples.items() for label in sample.failed]

    def run(self, budget: float) -> None:
        """Measure blocks while the next would still end within `budget` seconds of the start, one at least.

        Six give a 95 % interval: where those measured show that they would not fit, the others have fewer rounds, and
        they may take twice as long as the budget. Before the budget is spent, a block that met a bad moment does
        not end the run. Where only first estimates are wanted, there is no block.
        """
        begin = time.monotonic()
        cheapest = math.inf
        # An interrupted run goes on in the block that it had begun.
        block = max(0, max((sample.begun for sample in self.samples.values()), default=1) - 1)
        with self.crew, contextlib.ExitStack() as stack:
            if self.settings.quick:
                stack.enter_context(competing(self.settings.beside, self.settings.seed))
                self.ask()
                self.preview(self.emit)
                return
            self.prepare()
            # A compiler that has to share a core says nothing of the networks.
            stack.enter_context(competing(self.settings.beside, self.settings.seed))
            while True:
                block_begin, self.timed, self.once = time.monotonic(), 0.0, 0.0
                self.run_block(block)
                block += 1
                spent, left = time.monotonic() - block_begin, budget - (time.monotonic() - begin)
                missing = BLOCKS - block
                if missing > 0:
                    # What another one takes besides its turns, if it has a better moment, and these at full length.
                    cheapest, full = min(cheapest, spent - self.timed - self.once), self.timed / self.share
                    self.share = max(LEAST_SHARE, min(1.0, (left / missing - cheapest) / max(full, 1e-9)))
                    another = cheapest + self.share * full
                    if another * (1 if left > 0 else missing) > left + (PATIENCE - 1) * budget:
                        return
                elif spent > left:
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
        # On a GPU a process takes seconds to start, so that of the first group has to do.
        self.start(None if self.settings.device == "cpu" else self.figures.groups[0])
        where = {"device": self.settings.device, "threads": self.settings.threads}
        self.references.append(self.crew[self.operands[0].label].ask("reference", 120, **where)["seconds"])
        if self.resolved:
            self.measure_ceilings()
        for group in self.figures.groups:
            sample = self.samples.setdefault(group.name, Sample())
            if sample.begun <= block and len(sample.missing) < len(self.operands):
                self.measure(group, sample)
            self.emit_all(self.figures.of_group(group))
        self.crew.end_block()
        # Beside what the machine was doing before anything was measured.
        self.machine["load"] = {**(self.machine.get("load") or {}), **load_of(self.samples)}
        self.emit_all(self.figures.summary())

    def start(self, group: Group | None = None) -> None:
        """Fresh processes: for a group's operands, or one in which nothing is timed in turns."""
        homes = {} if group is None or self.apart else self.homes(group)
        labels = [operand.label for operand in self.operands] if group else [self.operands[0].label]
        if group and self.settings.device != "cpu" and set(labels) == set(self.crew) and homes == self.started:
            # There a process takes seconds to start, and nothing of one group stays for the next.
            return
        self.crew.end_block()
        # Whoever builds first gets other memory: that falls on all alike.
        self.crew.start(
            self.rng.sample(labels, len(labels)),
            needs(self.operands, self.settings, bool(self.conditions.data_root)),
            homes,
        )
        self.started = homes

    def homes(self, group: Group) -> dict[str, str]:
        """Operand -> the process that holds it in a group: where threads are varied, each has its own."""
        if not self.settings.over.startswith("threads="):
            return group.homes
        return {label: f"process of {label}" for label in group.homes}

    def conditions_of(self, label: str) -> Conditions:
        """The conditions of an operand."""
        operand = next(operand for operand in self.operands if operand.label == label)
        return replace(self.conditions, threads=self.settings.at(operand).threads)

    def restart(self, group: Group) -> None:
        """Fresh processes in the middle of a group: what a failed side left behind must not affect the others."""
        self.crew.end_block()
        self.start(group)

    def emit_all(self, metrics: Iterator[Metric]) -> None:
        for metric in metrics:
            self.emit(metric)

    # What is not timed.

    def prepare(self) -> None:
        """Ask a process for the machine, resolved configurations, counts and ceilings; have compiled what can be."""
        self.ask()
        slow = self.settings.device == "cpu" and any(
            workload.may_compile
            for group in self.figures.groups
            for listed in group.workloads.values()
            for workload in listed
        )
        # On a GPU a process takes seconds to start, and its presets compile in seconds.
        if self.estimate is not None and slow and not self.samples:
            self.preview(self.estimate)
        for group in self.figures.groups:
            for label, workloads in group.workloads.items():
                for workload in workloads if len(workloads) == 1 else ():
                    if workload.may_compile:
                        self.progress(f"{group.name}: compiling {label}")
                    # What cannot be prepared fails again, and is reported, where it is measured.
                    with contextlib.suppress(BenchError):
                        home = self.homes(group).get(label, label)
                        built = self.crew.prepare(label, workload, self.conditions_of(label), home)
                        if built is not None:
                            self.prepared[label, workload.id] = built

    def preview(self, estimate: Emit) -> None:
        """Hand out a first estimate of each rate: of a few steps, in which nothing is compiled. None of it is kept.

        Whatever fails fails again, and is reported, where it is measured.
        """
        for group in map(_uncompiled, self.figures.groups):
            self.progress(f"{group.name}: first estimate")
            sample = Sample()
            try:
                self.start(group)
                sides = self.built(group, sample)
                sample.blocks.append(pairs_of([self.look(sides) for _ in range(LEAST_ROUNDS)]))
            except BenchError as error:
                if self.settings.quick:
                    self.lose(group, sample, error)
            self.crew.end_block()
            if self.settings.quick:
                # Nothing else will say what failed.
                self.samples[group.name] = sample
            figures = Figures(self.operands, self.settings, [group], {group.name: sample}, self.costs, self.ceilings)
            for metric in figures.of_group(group) if sample.blocks or self.settings.quick else ():
                estimate(metric)

    def lose(self, group: Group, sample: Sample, error: BenchError) -> None:
        """Record why a group has no first estimates: its sides share a process, which one of them ended."""
        self.warn(f"{group.name}: {error}")
        for label, workloads in group.workloads.items():
            if workloads:
                sample.missing[label] = error.summary
                sample.failed.append(label)

    def built(self, group: Group, sample: Sample) -> dict[str, tuple[str, Workload, SlicePlan]]:
        """The sides of a group, built: by name the operand, its workload, and a short turn."""
        sides: dict[str, tuple[str, Workload, SlicePlan]] = {}
        for label, workloads in group.workloads.items():
            if not workloads:
                sample.missing[label] = self.missing(label, group)
                if label in self.unusable:
                    sample.failed.append(label)
            twin = next((of for of, workload, _ in sides.values() if (workload,) == workloads), None)
            if twin is not None and group.name == "loading" and self.resolved:
                sample.twins[label] = twin
                continue
            for workload in workloads:
                prefetch = self.crew[label].build([workload], self.conditions_of(label)).prefetch[workload.id]
                # What a loader has ready tells nothing of its speed.
                plan = SlicePlan(5 if workload.task in ("latency", "loading") else 1, prefetch + 1)
                sides[side(label, workload)] = (label, workload, plan)
        return sides

    def look(self, sides: Mapping[str, tuple[str, Workload, SlicePlan]]) -> Round:
        """One short turn of each side."""
        return {
            name: self.crew[label].slice(workload, plan, each=workload.task == "latency")
            for name, (label, workload, plan) in sides.items()
        }

    def ask(self) -> None:
        """Have a process say what the machine is, and what is counted."""
        self.progress("starting")
        self.start()
        self.ask_facts(self.crew[self.operands[0].label])
        self.crew.end_block()

    def ask_facts(self, first: Worker) -> None:
        """The machine, what the operands resolve to on it, and what is counted of them."""
        self.machine = first.ask("machine")
        watched = {name: sample.telemetry for name, sample in self.samples.items() if sample.telemetry}
        if watched:
            self.machine["telemetry"] = watched
        if self.conditions.data_root:
            self.check_loaders(first)
            self.check_data(first)
        if self.operands[0].kind == "step":
            self.ask_steps(first)
            return
        models = [operand for operand in self.operands if operand.kind == "model"]
        if not models:
            return
        self.progress("counting parameters and operations")
        device = Device(**first.ask("device", device=self.settings.device))
        for operand in models:
            self.resolved[operand.label] = resolve(operand.choice, device, operand.subject, self.machine)
            measured = [task for task in MODEL_TASKS if self.settings.has(task)]
            for doubt in doubts(operand.choice, operand.subject, self.machine, measured):
                self.warn(doubt)
        classes = classes_for(first, [operand.subject for operand in models], self.settings, self.warn)
        counted: dict[tuple[str, int], dict[str, Any] | BenchError] = {}
        for operand in models:
            size = self.settings.at(operand).size
            if (operand.subject, size) not in counted:
                counted[operand.subject, size] = self.cost(operand, classes[operand.subject], size or None)
            found = counted[operand.subject, size]
            if isinstance(found, BenchError):
                self.unusable[operand.label] = found.summary
            else:
                self.costs[operand.label] = found
        self.emit_all(self.figures.counted())
        self.measure_ceilings()

    def cost(self, operand: Operand, classes: int | None, size: int | None) -> dict[str, Any] | BenchError:
        """What a network costs, or how it ended its process: then the others are measured without it."""
        reference = self.operands[0].label
        try:
            return self.crew[reference].ask("cost", 300, model=operand.subject, classes=classes, size=size)
        except (WorkerError, OutOfMemoryError) as error:
            if len({operand.subject for operand in self.operands}) == 1:
                raise
            # The process has the name of the first side, whose fault it need not be.
            blamed = type(error)(error.summary.replace(f"measuring {reference}", f"that counted {operand.label}"))
            self.warn(f"{operand.label} is left out: {blamed}")
            self.crew.replace(reference)
            return blamed

    def ask_steps(self, first: Worker) -> None:
        """What is counted of steps of the user's, and whether they return the same."""
        self.progress("calling each step")
        names, settings = [operand.subject for operand in self.operands], self.settings
        found = first.ask("steps_facts", 900, names=names, units=settings.units, seed=settings.seed)["facts"]
        self.costs = {operand.label: facts for operand, facts in zip(self.operands, found, strict=True)}
        self.emit_all(self.figures.counted())

    def measure_ceilings(self) -> None:
        """The best seen in this run, and every reading: a ceiling measured once may have met a noisy moment."""
        self.progress("measuring this device's ceilings")
        precisions = {
            configuration.precision
            for resolved in self.resolved.values()
            for configuration in resolved.configurations.values()
        }
        where = {"device": self.settings.device, "threads": self.settings.threads}
        for precision in sorted(precisions):
            now = self.crew[self.operands[0].label].ask("ceilings", 120, precision=precision, **where)
            self.ceilings[precision] = best_ceilings(now, self.ceilings.get(precision))
        self.machine["ceilings"] = self.ceilings

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
        answer = worker.ask("unreadable", 600, conditions=self.conditions.to_json())
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
        rounds: list[Round] = []
        self.start(group)
        while not rounds:
            entrants = self.ready_sides(group, sample)
            if not entrants:
                break
            rounds = self.rounds(group, sample, entrants)
        if rounds:
            sample.blocks.append(pairs_of(rounds))
            if not steady_rounds(rounds) and UNSTEADY not in sample.notes:
                sample.notes.append(UNSTEADY)
        # Once, after everything timed.
        begin = time.monotonic()
        built = {
            label: workloads[0]
            for label, workloads in group.workloads.items()
            if workloads and rounds and side(label, workloads[0]) in rounds[0] and label not in sample.missing
        }
        if any(name.endswith("_peak_bytes") for name in group.metrics):
            self.measure_memory(built, sample)
        if not sample.parity and group.name == "inference":
            self.compare_logits(built, sample)
        if not sample.energy and group.name == "inference" and self.settings.energy:
            self.measure_energy(built, sample)
        self.once += time.monotonic() - begin
        for label, workloads in group.workloads.items():
            if label in self.crew and workloads:
                with contextlib.suppress(BenchError):
                    self.crew.release({label: workloads})

    def ready_sides(self, group: Group, sample: Sample) -> dict[str, Entrant]:
        """Every side of a group, built and warm, by its name in the rounds."""
        entrants: dict[str, Entrant] = {}
        built: dict[tuple[Workload, ...], str] = {}
        # Operands with the same loader are measured once, always in the name of the first.
        order = list(group.workloads) if group.name == "loading" and self.resolved else list(self.crew)
        for label in order:
            workloads = group.workloads[label]
            if not workloads:
                sample.missing[label] = self.missing(label, group)
                if label in self.unusable and label not in sample.failed:
                    sample.failed.append(label)
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
                entrants |= self.ready(label, group, workloads, sample)
            except BenchError as error:
                self.drop_operand(label, group, sample, error)
                return self.ready_sides(group, sample)
        # In the order of the operands.
        names = [side(label, workload) for label, listed in group.workloads.items() for workload in listed]
        return {name: entrants[name] for name in names if name in entrants}

    def missing(self, label: str, group: Group) -> str:
        """Why an operand has no workload in a group."""
        if label in self.unusable:
            return self.unusable[label]
        operand = next(operand for operand in self.operands if operand.label == label)
        return impossible(operand, group.name, self.resolved[label], self.costs[label])

    def ready(self, label: str, group: Group, workloads: Sequence[Workload], sample: Sample) -> dict[str, Entrant]:
        """An operand's workloads, which share one network, built and warm."""
        worker = self.crew[label]
        self.progress(f"{group.name}: preparing {label}")
        built = worker.build(workloads, self.conditions_of(label))
        # What was compiled before the processes were forked took its time there.
        once = self.prepared.get((label, workloads[0].id))
        compiled = once or built
        if once is None or label not in sample.compile:
            sample.compile.setdefault(label, []).append((compiled.compile_seconds, compiled.cache))
        sample.notes += [note for note in built.notes if note not in sample.notes]
        entrants: dict[str, Entrant] = {}
        for workload in workloads:
            self.progress(f"{group.name}: warming up {label}")
            name, prefetch = side(label, workload), built.prefetch[workload.id]
            if workload.task == "end_to_end" and name not in self.fed:
                alone = entrants[side(label, workloads[0])].warm
                if AMPLE * workload.batch * self.loader_seconds(label) <= alone.seconds_per_step:
                    self.fed[name] = alone
            if name in self.fed:
                # Only the queue has to be brought to where it stays: the network is warm already.
                self.crew[label].slice(workload, SlicePlan(1, 1))
                entrants[name] = Entrant(label, workload, self.fed[name], SlicePlan(1), rest=True)
                continue
            begin = time.monotonic()
            one = self.crew.warm(label, workload, prefetch)
            if workload.task == "end_to_end":
                self.once += time.monotonic() - begin
                alone = entrants[side(label, workloads[0])].warm
                if one.warm.seconds_per_step <= 1.1 * alone.seconds_per_step:
                    # The step sets the pace, so the loader's queue is as full in the middle of a turn as after a pause.
                    one = replace(one, plan=SlicePlan(1))
                    self.fed[name] = one.warm
            if workload.task == "loading":
                self.loaded[label] = one.warm.seconds_per_step / workload.batch
            if not one.warm.steady and name not in sample.unsteady:
                sample.unsteady.append(name)
            entrants[name] = replace(one, each=workload.task == "latency")
        return entrants

    def loader_seconds(self, label: str) -> float:
        """Seconds an image of the loader that feeds this operand, running alone; infinite where it was not measured."""
        twins = self.samples["loading"].twins if "loading" in self.samples else {}
        return self.loaded.get(twins.get(label, label), math.inf)

    def rounds(self, group: Group, sample: Sample, entrants: Mapping[str, Entrant]) -> list[Round]:
        """The rounds of one group; none where a side failed and is dropped, or where sides are to be kept apart."""
        try:
            return self.take_rounds(group, sample, self.crew.settled(entrants))
        except BenchError as failure:
            if failure.side in entrants:
                self.drop_operand(label_of(failure.side), group, sample, failure)
            elif len({one.side for one in entrants.values()}) == 1 or self.apart:
                self.drop_operand(next(iter(entrants.values())).side, group, sample, failure)
            else:
                # The process died under all of its sides: in processes of their own it shows whose fault it was.
                self.apart = True
                self.restart(group)
            return []

    def take_rounds(self, group: Group, sample: Sample, entrants: Mapping[str, Entrant]) -> list[Round]:
        """Rounds that fill the group's time, and what else the machine did meanwhile."""
        once = sum((one.plan.steps + one.plan.drop) * one.warm.seconds_per_step for one in entrants.values())
        # The median of five outlasts two turns that met a bad moment; of two it outlasts none.
        least = max(LEAST_ROUNDS, min(5, int(GROUP_SECONDS[group.name] / max(once, 1e-9))))
        wanted = Rounds(self.share * GROUP_SECONDS[group.name], least=least)
        if self.settings.rounds:
            wanted = Rounds.exactly(self.settings.rounds)
        elif group.name == "latency":
            # Six blocks have as many samples as p99 needs, if that does not take twice as long.
            enough = -(-required_samples(0.99) // BLOCKS)
            wanted = replace(wanted, seconds=max(wanted.seconds, min(2 * wanted.seconds, 1.5 * enough * once)))
        self.progress(f"{group.name}: taking turns")
        processes = {self.crew[label].pid for label in self.crew}
        before, begin = Busy.now(processes), time.monotonic()
        with self.watched(group, sample):
            # On a CPU storing a row in between would take its time from the measured.
            early = None if self.settings.device == "cpu" else partial(self.emit_early, group, sample)
            rounds = self.crew.take_turns(entrants, wanted, self.rng, early)
        self.timed += time.monotonic() - begin
        load = Busy.now(processes).since(before)
        if load is not None:
            sample.load.append(load)
        sides = {one.side for one in entrants.values()}
        sample.together = len(sides) == 1 or self.crew.together(sides)
        return rounds

    def emit_early(self, group: Group, sample: Sample, rounds: Sequence[Round]) -> None:
        """Hand out a group's metrics as soon as its first rounds give them: a lent GPU may be gone before the rest."""
        if sample.blocks or len(rounds) != LEAST_ROUNDS:
            return
        sample.blocks.append(pairs_of(rounds))
        try:
            self.emit_all(self.figures.of_group(group))
        finally:
            sample.blocks.pop()

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
        self.restart(group)

    def measure_memory(self, built: Mapping[str, Workload], sample: Sample) -> None:
        """Memory of each side: counted once, and read in every block where an engine other than torch allocates."""
        for label, workload in built.items():
            known = sample.memory.setdefault(label, [])
            if any("missing" in memory or memory["counted"] for memory in known):
                continue
            self.progress(f"{workload.task}: memory of {label}")
            # The resident set of a process that holds other sides too says nothing of one of them.
            alone = len(self.crew.beside(label)) == 1
            try:
                memory = self.crew[label].ask(
                    "memory", 900, id=workload.id, readings=0 if not alone else 1 if known else 3
                )
            except BenchError as error:
                memory = {"missing": str(error)}
                self.warn(f"no memory figure for {label}: {error}")
            known.append(memory)

    def compare_logits(self, built: Mapping[str, Workload], sample: Sample) -> None:
        """How much each side's logits differ from plain fp32's: fast but wrong must not look like fast.

        An exported file's own weights are in no network that torch could run: see `basis`.
        """
        for operand in self.operands:
            label, of = operand.label, None
            # What is varied changes nothing in what is computed: one of its values says it for all.
            if label not in built or any(operand.varies(one) for one in self.operands if one.label in sample.parity):
                continue
            workload = built[label]
            basis = self.basis(operand)
            if basis.subject != operand.subject:
                of = replace(built.get(basis.label, workload), subject=basis.subject)
            elif replace(workload.network, keep=False) == operand.choice.plainest:
                continue
            self.progress(f"{workload.task}: logits of {label}")
            conditions, other = self.conditions_of(label).to_json(), of.to_json() if of else None
            try:
                answer = self.crew[label].ask("parity", 300, id=workload.id, conditions=conditions, of=other)
                sample.parity[label] = Parity(**answer, of=of.subject if of else "")
            except BenchError as error:
                self.warn(f"logits of {label} were not compared: {error}")

    def basis(self, operand: Operand) -> Operand:
        """Whose logits in plain fp32 its own are compared with: its own network's, but of an exported file another's.

        That of the first operand which is no exported file, if there is one with as many logits for images of that
        size; or of the first file.
        """
        if not zoo.is_exported(operand.subject):
            return operand
        others = [one for one in self.operands if not zoo.is_exported(one.subject)]
        own = self.costs[operand.label]
        wanted = (own["size"], own["classes"])
        costs = {one.label: self.costs.get(one.label, {}) for one in others}
        same = [one for one in others if (costs[one.label].get("size"), costs[one.label].get("classes")) == wanted]
        return next(iter([*same, *others, self.operands[0]]))

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


def _uncompiled(group: Group) -> Group:
    """A group's first workloads as they would run without a compiler, and the one metric that they give."""

    def plain(workload: Workload) -> Workload:
        configuration = workload.configuration
        if not isinstance(configuration, Configuration) or not configuration.compiles:
            return workload
        return replace(
            workload, configuration=replace(configuration, compile="eager", freeze=False, fused=False, mm=False)
        )

    workloads = {label: tuple(map(plain, listed[:1])) for label, listed in group.workloads.items()}
    return replace(group, workloads=workloads, metrics=group.metrics[:1])
