"""From what was measured to metrics: rates, percentiles, ratios, verdicts and what belongs beside them."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.comparing.operands import Operand
from bench.comparing.plan import Group, Settings
from bench.machine.cpu import Load
from bench.timing.clock import Slice
from bench.timing.duel import Round, log_ratios
from bench.timing.workload import Workload
from results.curves import point_label, point_of
from results.errors import RecordError
from results.profile import ceilings_text, memory_text
from results.reading import read
from results.record import Metric, Ratio, Value
from results.stats import median_interval, percentile, ratio_of, summarise
from results.tables import quantity, ratio_text
from results.verdict import compare_verdict, margin_of

# Logits that lie further apart than this share of their spread are not the same weights rounded otherwise.
OTHER_WEIGHTS = 0.5
# State of inductor's graph cache -> how it is said, the most expensive first.
CACHE_STATES = {
    "cold": "cold cache",
    "bypassed": "graphs are not cached (frozen weights), their kernels are: the very first run takes longer",
    "warm": "warm cache",
}
# A turn that takes so many times as long as its side's median in the block was stalled.
STALLED = 5.0
APART = (
    "each in a process of its own: a switch of the whole process differs, it holds queues or a foreign engine, or one "
    "process could not hold all"
)
COUNTED = ("params", "weight_bytes", "macs", "flops", "activations")
THROUGHPUT_TASKS = {
    "inference_throughput": "inference",
    "training_throughput": "training",
    "end_to_end_throughput": "end_to_end",
    "loader_throughput": "loading",
    "kernel_throughput": "kernel",
    "step_throughput": "step",
}


Pair = tuple[str, str]
"""Two operands that are compared: the second is the reference."""


@dataclass(frozen=True)
class Parity:
    """How much logits differ from those of the same weights and images in plain fp32.

    Attributes:
        rms: root mean square distance, as a share of the logits' standard deviation.
        same_top1: images whose likeliest class is the same.
        images: images compared.
        blind: why this comparison says nothing; "" where it does.
        of: of an exported file, the network it was compared with; "" for its own.
    """

    rms: float
    same_top1: int
    images: int
    blind: str = ""
    of: str = ""

    @property
    def text(self) -> str:
        if self.of and self.blind:
            return f"logits are not comparable with {self.of}'s: {self.blind}"
        if self.of and not self.rms <= OTHER_WEIGHTS:
            return f"has other weights than {self.of}, so their logits are not comparable"
        if self.of:
            return (
                f"logits lie {self.rms:.2g} of their spread from {self.of}'s in plain fp32 (root mean square), and the "
                f"likeliest class is the same for {self.same_top1} of {self.images} random images"
            )
        if self.blind:
            return f"logits are not comparable with plain fp32's: {self.blind} (fresh weights)"
        return (
            f"logits differ from plain fp32's by {self.rms:.2g} of their spread (root mean square), "
            f"and the likeliest class is the same for {self.same_top1} of {self.images} random images"
        )


@dataclass(frozen=True)
class Energy:
    """Energy of one image above idle, or why there is none.

    Attributes:
        joules: of one image.
        idle_watts: subtracted; None where it is not known.
        missing: why there is no figure, "" where there is one.
    """

    joules: float | None = None
    idle_watts: float | None = None
    missing: str = ""


@dataclass
class Sample:
    """Everything measured of one group so far.

    Attributes:
        blocks: for each block its rounds: {side: its slice}; see `side`.
        missing: operand -> why it has no number.
        failed: operands that could have had one, and failed.
        compile: operand -> (seconds, a key of CACHE_STATES or "none") of each time that it was compiled: once where the
            processes of all blocks are forked from one that has it compiled, else in each block.
        memory: operand -> what bench.inspecting.memory says of it in each block, or {"missing": why it says nothing}.
        energy, parity: operand -> its figure.
        telemetry: of each block on a GPU, what its sensors read while the sides took turns.
        twins: operand -> the one whose workload is the very same, and which was measured for both.
        notes: for the metric's row.
        unsteady: sides that were still getting faster when their warm-up was ended.
        load: what else the machine did during the turns of each block.
        together: whether the sides were in one process.
    """

    blocks: list[list[Mapping[str, Slice]]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    compile: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    memory: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    energy: dict[str, Energy] = field(default_factory=dict)
    telemetry: list[Mapping[str, Any]] = field(default_factory=list)
    parity: dict[str, Parity] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)
    load: list[Load] = field(default_factory=list)
    together: bool = False

    @property
    def begun(self) -> int:
        """Blocks that were measured."""
        return len(self.blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain types, enough to go on from."""
        return asdict(self)

    def having(self, *sides: str) -> list[list[Mapping[str, Slice]]]:
        """The rounds of each block in which all of these had a turn: a side that fails has none from then on."""
        return [[turns for turns in block if all(side in turns for side in sides)] for block in self.blocks]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Sample":
        """The inverse of to_json. Raises RecordError."""
        blocks = [
            [{name: Slice.from_json(turn) for name, turn in turns.items()} for turns in block]
            for block in data["blocks"]
        ]
        # Earlier versions read the resident set, once: what they found is not what is counted now.
        memory = {label: found for label, found in data["memory"].items() if isinstance(found, list)}
        return read(cls, {**data, "blocks": blocks, "memory": memory}, "what the interrupted run had measured")


def side(label: str, workload: Workload) -> str:
    """The name of an operand's workload in the rounds."""
    return f"{label}|{workload.task}"


def label_of(side: str) -> str:
    """The operand that a side belongs to."""
    return side.rpartition("|")[0]


@dataclass(frozen=True)
class Figures:
    """The metrics of a comparison, from what was measured of it so far.

    Attributes:
        operands: the first is the reference.
        settings: what was run.
        groups: what is measured.
        samples: group -> what was measured of it.
        costs: operand -> counts of its network, see bench.inspecting.cost.Cost.
        ceilings: precision -> what the device reached in this run, see bench.inspecting.roofline.Ceilings.
    """

    operands: Sequence[Operand]
    settings: Settings
    groups: Sequence[Group]
    samples: Mapping[str, Sample]
    costs: Mapping[str, Mapping[str, Any]]
    ceilings: Mapping[str, Mapping[str, Any]]

    @property
    def pairs(self) -> list[Pair]:
        """What is compared: each operand with the first, or if something is varied with the first at its value."""
        first, points = self.operands[0].label, [(one.label, point_of(one.label)) for one in self.operands]
        if self.operands[0].over is None:
            return [(label, first) for label, _ in points[1:]]
        subject = next(point[0] for _, point in points if point)
        return [(label, point_label(subject, *point[1:])) for label, point in points if point and point[0] != subject]

    def to_best(self, values: Mapping[str, Value], better: str) -> list[Pair]:
        """Each operand with the best of its curve; none where nothing is varied."""
        known: dict[str, dict[str, float]] = {}
        for label, value in values.items():
            point = point_of(label)
            if point is not None and value.median is not None:
                known.setdefault(point[0], {})[label] = value.median
        found: list[Pair] = []
        for numbers in known.values() if self.operands[0].over else ():
            best = (max if better == "higher" else min)(numbers, key=lambda label: numbers[label])
            found += [(label, best) for label in numbers if label != best]
        return found

    def counted(self) -> Iterator[Metric]:
        """What is counted of networks."""
        for name in COUNTED if self.operands[0].kind == "model" else ():
            values = {operand.label: self._count(operand.label, name) for operand in self.operands}
            files = [one for one in self.operands if one.choice.file not in ("", ".pt2")]
            notes = [f"{one.label}: constants of the file, into which others may have been folded" for one in files]
            yield self._metric(name, values, self._exact(values), notes=notes if name in COUNTED[:2] else ())
        if self.operands[0].kind == "step" and any(cost["flops"] for cost in self.costs.values()):
            none = Value.none("no matrix product or convolution of torch in it")
            values = {k: Value.counted(cost["flops"]) if cost["flops"] else none for k, cost in self.costs.items()}
            yield self._metric("step_flops", values, self._exact(values))

    def _count(self, label: str, name: str) -> Value:
        cost = self.costs.get(label)
        if cost is None:
            return Value.none("its network could not be built")
        return Value.none(cost["missing"]) if cost.get("missing") else Value.counted(cost[name])

    def of_group(self, group: Group) -> Iterator[Metric]:
        """Every metric of a group."""
        sample = self.samples.get(group.name, Sample())
        for name in group.metrics:
            if name.startswith("inference_latency"):
                yield self._latency(name, group, sample)
            elif name.endswith("_peak_bytes"):
                yield self._peak(name, group, sample)
            elif name == "step_time":
                yield self._time(name, group, sample)
            else:
                yield self._throughput(name, THROUGHPUT_TASKS[name], group, sample)

    def summary(self) -> Iterator[Metric]:
        """What follows from several groups of models: compilation, roof, energy."""
        if self.operands[0].kind == "model":
            yield self._compilation()
            yield from self._roof()
            yield self._energy()

    def _throughput(self, name: str, task: str, group: Group, sample: Sample) -> Metric:
        """images/s of each side, and the ratio of rates: the inverse of the ratio of times that the pairs hold."""
        chosen = {
            label: next(w for w in workloads if w.task == task)
            for label, workloads in group.workloads.items()
            if workloads
        }
        timed = _timed(chosen, sample)
        values: dict[str, Value] = {}
        for label in group.workloads:
            if label not in timed:
                values[label] = _missing(sample, label)
                continue
            batch, name_in_rounds = chosen[label].batch, timed[label]
            values[label] = value_over(
                [
                    [batch / turns[name_in_rounds].seconds_per_step for turns in block]
                    for block in sample.having(name_in_rounds)
                ]
            )
        ratios: dict[Pair, Ratio | None] = {}
        for other, first in [*self.pairs, *self.to_best(values, "higher")]:
            of, to = timed.get(other), timed.get(first)
            if of is None or to is None or of == to:
                continue
            images = {of: chosen[other].batch, to: chosen[first].batch}
            logs = [[-r for r in log_ratios(block, of, to, images)] for block in sample.having(of, to)]
            ratios[other, first] = over_blocks(other, first, logs)
        notes = [*self._conditions(sample), *(f"{label}: {parity.text}" for label, parity in sample.parity.items())]
        if task == "end_to_end":
            notes += [self._overlap(label, sample) for label in timed]
        metric = self._metric(
            name,
            values,
            ratios,
            batch=None if task == "step" else _common_batch(chosen.values()),
            workloads={label: w.id for label, w in chosen.items()},
            notes=notes,
            pairs=seconds_by_pair(sample.blocks, task),
        )
        return replace(metric, unit=f"{self.settings.units}/s") if task == "step" else metric

    def _overlap(self, label: str, sample: Sample) -> str:
        """How much of the step's own rate is left when it has to be fed, and which of the two sets the pace."""
        alone, fed = f"{label}|training", f"{label}|end_to_end"
        blocks = sample.having(alone, fed)
        logs = [log_ratios(block, alone, fed) for block in blocks]
        found = over_blocks("end_to_end", "training", logs)
        share = ratio_text(found) if found else "unknown share"
        text = f"{label}: {share} of the same step on a constant batch"
        step = statistics.median(turns[alone].seconds_per_step for block in blocks for turns in block)
        loading = self.samples.get("loading", Sample())
        name = f"{loading.twins.get(label, label)}|loading"
        loads = [turns[name].seconds_per_step for block in loading.blocks for turns in block if name in turns]
        if not loads:
            return text
        settings = next(self.settings.at(operand) for operand in self.operands if operand.label == label)
        loader = statistics.median(loads) / settings.batch
        step /= settings.training_batch
        if loader < step:
            return f"{text}; step-bound, the loader alone delivers {step / loader:.1f} times as many images"
        return f"{text}; loader-bound, the step alone takes {loader / step:.1f} times as many images"

    def _time(self, name: str, group: Group, sample: Sample) -> Metric:
        """Seconds of a call of each side, their ratio, and how far their results lie apart."""
        chosen = {label: workloads[0] for label, workloads in group.workloads.items() if workloads}
        timed = _timed(chosen, sample)
        values = {
            label: value_over([[turns[side].seconds_per_step for turns in block] for block in sample.having(side)])
            for label, side in timed.items()
        }
        ratios: dict[Pair, Ratio | None] = {}
        notes = self._conditions(sample)
        for other, first in [*self.pairs, *self.to_best(values, "lower")]:
            of, to = timed.get(other), timed.get(first)
            logs = [log_ratios(block, of, to) for block in sample.having(of, to)] if of and to else []
            ratios[other, first] = over_blocks(other, first, logs) if logs else None
        for other, first in self.pairs:
            apart = self.costs[other]
            if apart["differs"] is not None:
                notes.append(
                    f"what {other} returns differs from {first}'s by {apart['differs']:.2g} of its spread "
                    "(root mean square)"
                )
            elif apart["why"]:
                notes.append(f"what {other} and {first} return is not comparable: {apart['why']}")
        return self._metric(
            name,
            {label: values.get(label, _missing(sample, label)) for label in group.workloads},
            ratios,
            workloads={label: workload.id for label, workload in chosen.items()},
            notes=notes,
            pairs=seconds_by_pair(sample.blocks, "step"),
        )

    def _latency(self, name: str, group: Group, sample: Sample) -> Metric:
        """A percentile of the times of single images, one in flight."""
        q = int(name.rsplit("_p", 1)[1]) / 100
        chosen = {label: w[0] for label, w in group.workloads.items() if w}
        timed = _timed(chosen, sample)
        times = {label: [samples(block, name) for block in sample.having(name)] for label, name in timed.items()}
        values: dict[str, Value] = {}
        for label in group.workloads:
            if label not in times:
                values[label] = _missing(sample, label)
            else:
                values[label] = quantile_over(times[label], q)
        ratios: dict[Pair, Ratio | None] = {}
        for other, first in [*self.pairs, *self.to_best(values, "lower")]:
            if values[other].median is None or values[first].median is None:
                continue
            # Each block's own percentile: how much the tails of two processes differ is in the interval.
            of, to = timed[other], timed[first]
            logs = [
                [math.log(quantile(samples(block, of), q) / quantile(samples(block, to), q))]
                for block in sample.having(of, to)
                if block
            ]
            ratios[other, first] = over_blocks(other, first, logs)
        metric = self._metric(
            name,
            values,
            ratios,
            batch=1,
            workloads={label: w.id for label, w in chosen.items()},
            notes=self._conditions(sample),
            pairs=seconds_by_pair(sample.blocks, "latency") if q == 0.5 else (),
        )
        if q > 0.5:
            return metric
        return replace(metric, quantiles={label: percentiles(sum(found, [])) for label, found in times.items()})

    def _conditions(self, sample: Sample) -> list[str]:
        """What a reader of a row must know of how it was measured."""
        apart = [] if sample.together or len(self.operands) < 2 or not sample.blocks else [APART]
        unsteady = [f"{label_of(name)} was still getting faster when its warm-up ended" for name in sample.unsteady]
        present = {label_of(name) for block in sample.blocks for turns in block for name in turns}
        gone = [f"{label} failed in a later block: {sample.missing[label]}" for label in present & {*sample.missing}]
        return [*sample.notes, *apart, *unsteady, *sorted(gone)]

    def _peak(self, name: str, group: Group, sample: Sample) -> Metric:
        """Bytes that a step needs: counted, or measured where an engine other than torch allocates them."""
        peaks = {label: peak_readings(blocks) for label, blocks in sample.memory.items()}
        values = {label: _peak_value(label, peaks.get(label, []), sample) for label in group.workloads}
        ratios = self._exact(values)
        for (other, first), exact in ratios.items():
            if exact is not None and not values[other].confidence == values[first].confidence == 1.0:
                ratios[other, first] = _peak_ratio(other, first, peaks)
        memory = {label: joined_memory(blocks) for label, blocks in sample.memory.items()}
        chosen = {label: w[0] for label, w in group.workloads.items() if w}
        metric = self._metric(
            name,
            values,
            ratios,
            batch=None if name.startswith("step") else _common_batch(chosen.values()),
            workloads={label: workload.id for label, workload in chosen.items()},
            notes=[f"{label}: {memory_text(parts)}" for label, parts in memory.items() if parts.get("peak")],
        )
        return replace(metric, memory=memory)

    def _energy(self) -> Metric:
        """Joules above idle for one image of the inference workload; one window, so without an interval."""
        sample = self.samples.get("inference", Sample())
        values: dict[str, Value] = {}
        notes: list[str] = []
        for operand in self.operands:
            energy = sample.energy.get(operand.label)
            if energy is None or energy.joules is None:
                values[operand.label] = Value.none(energy.missing) if energy else _missing(sample, operand.label)
                continue
            values[operand.label] = Value(energy.joules, None, None, samples=1)
            idle = energy.idle_watts
            subtracted = "idle power not known" if idle is None else f"{idle:.0f} W of idle power subtracted"
            notes.append(f"of inference, {subtracted}")
        return self._metric("energy_per_image", values, {}, notes=notes)

    def _compilation(self) -> Metric:
        """Seconds spent compiling before anything was timed, all workloads of an operand together.

        Over the blocks where each compiles, without the first if that did not find the cache as the others do.
        """
        values: dict[str, Value] = {}
        states: dict[str, str] = {}
        seconds: dict[str, list[float]] = {}
        notes: list[str] = []
        for operand in self.operands:
            label = operand.label
            parts = [s.compile[label] for s in self.samples.values() if label in s.compile]
            # What compiles nothing adds nothing, in no block.
            parts = [part for part in parts if max(spent for spent, _ in part) > 0.0] or parts[:1]
            blocks = list(zip(*parts, strict=False)) if parts else []
            spent = [sum(seconds for seconds, _ in block) for block in blocks]
            caches = [_cache_state(cache for _, cache in block) for block in blocks]
            states[label] = caches[-1] if caches else "none"
            again = spent if caches[:1] == ["warm"] else spent[1:]
            seconds[label] = again if len(again) > 1 else []
            said = CACHE_STATES.get(states[label], "nothing to compile")
            if not spent:
                values[label] = Value.none("not measured")
            elif max(spent) == 0.0:
                values[label] = Value.counted(0.0)
            elif seconds[label]:
                values[label] = value_over([[one] for one in again])
                if again is not spent:
                    first = CACHE_STATES.get(caches[0], "")
                    said = f"first: {quantity(spent[0], 's')}{', ' * bool(first)}{first}; then {said}"
            else:
                values[label] = Value(spent[0], None, None, samples=1)
                states[label] = caches[0]
                said = CACHE_STATES.get(caches[0], "nothing to compile")
            notes.append(f"{label}: {said}")
        ratios: dict[Pair, Ratio | None] = {}
        for (other, first), exact in self._exact(values).items():
            of, to = seconds[other], seconds[first]
            if exact is None or states[other] != states[first] or states[other] == "none":
                continue
            if of and to:
                logs = [[math.log(a / b)] for a, b in zip(reversed(of), reversed(to), strict=False) if a > 0 and b > 0]
                ratios[other, first] = over_blocks(other, first, logs)
            else:
                ratios[other, first] = replace(exact, low=None, high=None, confidence=None, blocks=1, pairs=1)
        return self._metric("compile_seconds", values, ratios, notes=notes)

    def _roof(self) -> Iterator[Metric]:
        """Training's share of the measured ceilings, or inference's where training was not measured; and its MFU."""
        from bench.inspecting.cost import Cost
        from bench.inspecting.roofline import Ceilings, fraction, utilisation

        roof: dict[str, Value] = {}
        mfu: dict[str, Value] = {}
        notes: list[str] = []
        trained = bool(self.samples.get("training", Sample()).blocks)
        chosen = "training" if trained else "inference"
        sample = self.samples.get(chosen, Sample())
        group = next((group for group in self.groups if group.name == chosen), None)
        workloads = {label: w[0] for label, w in group.workloads.items() if w} if group else {}
        timed = _timed(workloads, sample)
        for operand in self.operands:
            label = operand.label
            if label not in timed:
                roof[label] = mfu[label] = _missing(sample, label)
                continue
            if self.costs[label].get("missing"):
                roof[label] = mfu[label] = Value.none(self.costs[label]["missing"])
                continue
            workload = workloads[label]
            precision = workload.network.precision
            if precision not in self.ceilings:
                roof[label] = mfu[label] = Value.none(f"no ceiling was measured for {precision}")
                continue
            ceilings, cost = Ceilings(**self.ceilings[precision]), Cost(**self.costs[label])
            name = timed[label]
            rates = [
                [workload.batch / turns[name].seconds_per_step for turns in block] for block in sample.having(name)
            ]
            for shares, factor in (
                (roof, fraction(cost, ceilings, 1.0, workload.batch, trained)),
                (mfu, utilisation(cost, ceilings, 1.0, trained)),
            ):
                shares[label] = value_over([[rate * factor for rate in block] for block in rates])
            reached = ceilings_text(precision, ceilings.flops, ceilings.bandwidth, ceilings.readings)
            notes.append(f"of {chosen}: ceilings measured in this run are {reached}")
        yield self._metric("roof_fraction", roof, {}, notes=notes)
        yield self._metric("mfu", mfu, {}, notes=notes)

    def _exact(self, values: Mapping[str, Value]) -> dict[Pair, Ratio | None]:
        """Ratios of numbers without noise."""
        return {(other, first): Ratio.exact(other, first, values) for other, first in self.pairs}

    def _metric(
        self,
        name: str,
        values: Mapping[str, Value],
        ratios: Mapping[Pair, Ratio | None],
        batch: int | None = None,
        workloads: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        pairs: Sequence[Sequence[Mapping[str, float]]] = (),
    ) -> Metric:
        """The metric with its first ratio, and all of them where there are more than two operands."""
        known = [ratio for ratio in ratios.values() if ratio is not None]
        first = known[0] if known else None
        metric = Metric.named(name, values, batch=batch)
        return replace(
            metric,
            ratio=first,
            verdict=compare_verdict(first, metric.better, margin_of(name)) if first else None,
            ratios=tuple(known) if len(self.operands) > 2 else (),
            workloads=dict(workloads or {}),
            notes=tuple(dict.fromkeys(notes)),
            pairs=pairs,
        )


def _timed(chosen: Mapping[str, Workload], sample: Sample) -> dict[str, str]:
    """Operand -> the side in the rounds that holds its time."""
    present = {name for block in sample.blocks for turns in block for name in turns}
    names = {label: side(sample.twins.get(label, label), workload) for label, workload in chosen.items()}
    return {label: name for label, name in names.items() if name in present}


def _missing(sample: Sample, label: str) -> Value:
    return Value.none(sample.missing.get(label, "not measured"))


def peak_readings(blocks: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """A step's peak bytes in each block: every reading, or the one count; none where it was not to be had."""
    return [list(memory["peaks"] or [memory["peak"]]) if "missing" not in memory else [] for memory in blocks]


def _peak_value(label: str, blocks: Sequence[Sequence[float]], sample: Sample) -> Value:
    """Counted where every count is the same, else measured."""
    readings = [reading for block in blocks for reading in block]
    if not readings:
        reasons = [memory["missing"] for memory in sample.memory.get(label, ())]
        return Value.none(reasons[0]) if reasons else _missing(sample, label)
    counted = not any(memory.get("peaks") for memory in sample.memory[label])
    return Value.counted(readings[0]) if counted and len(set(readings)) == 1 else value_over(blocks)


def _peak_ratio(of: str, to: str, peaks: Mapping[str, Sequence[Sequence[float]]]) -> Ratio | None:
    """Of two peaks of which one is measured: reading by reading, a count beside each reading of the other."""
    logs = []
    # What is counted was counted in one block and is the same in all.
    blocks = max(len(peaks[of]), len(peaks[to]))
    sides = [[*found] * blocks if len(found) == 1 else found for found in (peaks[of], peaks[to])]
    for above, below in zip(*sides, strict=False):
        pairs = max(len(above), len(below)) if above and below else 0
        logs.append([math.log(above[i % len(above)] / below[i % len(below)]) for i in range(pairs)])
    return over_blocks(of, to, logs)


def joined_memory(blocks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first block's memory with the readings of all of them, or why there is none."""
    known = [memory for memory in blocks if "missing" not in memory]
    if not known:
        return blocks[0]
    first = known[0]
    processes = [reading for memory in known for reading in memory["processes"]]
    process = round(statistics.median(processes)) if processes else None
    return {
        **first,
        "peaks": [reading for memory in known for reading in memory["peaks"]],
        "process": process,
        "processes": processes,
        "residue": None if process is None else process - first["peak"],
    }


def best_ceilings(now: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The best of one more measurement of the ceilings and those before it, with all of their readings."""
    names = ("flops", "bandwidth")
    best = {name: max(one[name] for one in (before or now, now)) for name in names}
    return {**now, **best, "readings": [*(before["readings"] if before else ()), [now[name] for name in names]]}


def load_of(samples: Mapping[str, Sample]) -> dict[str, Any]:
    """What disturbed the turns, of which `foreign` and `stolen` are medians over blocks and groups, see Load.

    Returns:
        {"foreign", "stolen": None where the system does not say, "stalls": turns that took over `STALLED` times their
        side's median in the block, "turns": all of them}.
    """
    loads = [load for sample in samples.values() for load in sample.load]
    stalls = turns = 0
    for block in (block for sample in samples.values() for block in sample.blocks):
        for name in {name for taken in block for name in taken}:
            seconds = [taken[name].seconds_per_step for taken in block if name in taken]
            turns += len(seconds)
            stalls += sum(one > STALLED * statistics.median(seconds) for one in seconds)
    return {
        "foreign": statistics.median(load.foreign for load in loads) if loads else None,
        "stolen": statistics.median(load.stolen for load in loads) if loads else None,
        "stalls": stalls,
        "turns": turns,
    }


def _cache_state(caches: Iterable[str]) -> str:
    """The most expensive of the states that several compilations found the cache in."""
    found = set(caches)
    return next((state for state in CACHE_STATES if state in found), "none")


def _common_batch(workloads: Iterable[Workload]) -> int | None:
    """The batch of all of them, None where they differ."""
    batches = {workload.batch for workload in workloads}
    return batches.pop() if len(batches) == 1 else None


def samples(block: Sequence[Round], name: str) -> list[float]:
    """The single times of a side in a block."""
    return [seconds for turns in block for seconds in turns[name].samples]


def over_blocks(of: str, to: str, logs: Sequence[Sequence[float]]) -> Ratio | None:
    """The ratio over blocks, see results.stats.ratio_of; without bounds from one block, None without any."""
    if not any(logs):
        return None
    found = ratio_of(of, to, logs)
    return replace(found, low=None, high=None, confidence=None) if found.blocks == 1 else found


def value_over(blocks: Sequence[Sequence[float]]) -> Value:
    """The median of the blocks' medians, with its interval over blocks: what one process says of the next is little."""
    return quantile_over(blocks, 0.5)


def quantile_over(blocks: Sequence[Sequence[float]], q: float) -> Value:
    """A quantile with its interval over blocks, none from one block.

    The median is that of the blocks' medians. A higher quantile is that of all samples, since one block has too few,
    and its interval holds the blocks' own.
    """
    filled = [block for block in blocks if block]
    if not filled:
        return Value.none("no samples")
    if q == 0.5:
        value = summarise([middle(block) for block in filled])
    else:
        try:
            estimate = percentile([x for block in filled for x in block], q)
        except RecordError as error:
            return Value.none(str(error), samples=sum(map(len, filled)))
        low, high, reached = median_interval([quantile(block, q) for block in filled])
        value = Value(estimate, min(low, estimate), max(high, estimate), samples=len(filled), confidence=reached)
    return value if len(filled) > 1 else replace(value, low=None, high=None, confidence=None)


def middle(samples: Sequence[float]) -> float:
    """The median; of an even number the geometric mean of the two in the middle.

    So a rate is that of its time turned round, and of two turns the quotient of two sides is what their pairs say.
    """
    low, high = statistics.median_low(samples), statistics.median_high(samples)
    return math.sqrt(low * high) if low > 0 and high != low else statistics.median(samples)


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


def seconds_by_pair(blocks: Sequence[Sequence[Round]], task: str) -> list[list[dict[str, float]]]:
    """Seconds a step of each operand in each round of each block: what every figure of a row is computed from."""
    return [
        [
            {label_of(name): turn.seconds_per_step for name, turn in turns.items() if name.endswith("|" + task)}
            for turns in block
        ]
        for block in blocks
    ]
