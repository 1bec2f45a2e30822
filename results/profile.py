"""Where a step's time went: plain types, the sentence that says it, and the tables below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from results.errors import RecordError
from results.reading import read
from results.record import ONE_READING
from results.store import read_json
from results.tables import Cell, fixed, page, percent, plural, quantity, render, to_json, unit_for

SCHEMA = 1
KIND = "profile"
FILE = "profile.json"
OVERHEAD = "(Python and dispatch)"
"""Time of a profiled step in which none of the listed operators ran."""
FAR = 0.25
"""Share of the roof below which neither ceiling is what bounds a step."""
OUTSIDE = "("
"""Paths that begin with it are not part of the network: the loss, the optimiser, autograd's own work."""


@dataclass(frozen=True)
class Operator:
    """One operator or kernel, over a step.

    Attributes:
        name: as the profiler names it.
        calls: a step.
        seconds: on the device, a step; on a CPU the time of the call.
        flops: of convolutions and matrix products, 2 a multiply-add; None where they are not known.
        bytes: read and written, each tensor once a call; None where they are not known.
    """

    name: str
    calls: float
    seconds: float
    flops: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Module:
    """One layer, over a step; a parent's figures are sums that `tree` makes.

    Attributes:
        path: as in the state dict, such as layer1.0.conv1; in brackets what lies outside the network.
        kind: its class.
        forward_seconds, backward_seconds: of the operators that ran for it and for none of its children.
        flops, bytes: as of an operator, both passes together.
    """

    path: str
    kind: str
    forward_seconds: float
    backward_seconds: float
    flops: float | None = None
    bytes: float | None = None

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class Break:
    """Where torch.compile had to end a graph.

    Attributes:
        reason: in torch's words, the first line.
        where: file and line of the code that ended it.
    """

    reason: str
    where: str


@dataclass(frozen=True)
class Stalls:
    """Loader, step and both joined, from runs in turns without a profiler.

    Attributes:
        loader: engine.
        loader_rate, step_rate, joined_rate: images/s.
        stages: (name, seconds an image) of the loader's own work, in order.
        stages_note: what the stages are measured as.
    """

    loader: str
    loader_rate: float
    step_rate: float
    joined_rate: float
    stages: tuple[tuple[str, float], ...] = ()
    stages_note: str = ""

    @property
    def overlap(self) -> float:
        """Joined rate over the slower of the two: 1 is a loader that hides behind the step, or the reverse."""
        return self.joined_rate / min(self.loader_rate, self.step_rate)

    def sentence(self) -> str:
        """ "loader-bound by 38 %: decode 61 %, resize 30 %, copy 9 %", "step-bound, the loader is idle 70 %: ..."."""
        total = sum(seconds for _, seconds in self.stages)
        shares = ", ".join(f"{name} {percent(seconds / total)}" for name, seconds in self.stages) if total else ""
        if self.loader_rate < self.step_rate:
            text = f"loader-bound by {percent(1 - self.loader_rate / self.step_rate)}"
        else:
            text = f"step-bound, the loader is idle {percent(max(0.0, 1 - self.joined_rate / self.loader_rate))}"
        return f"{text}: {shares}" if shares else text


@dataclass(frozen=True)
class Profile:
    """What `bench profile` found.

    Attributes:
        label: MODEL@CONFIGURATION as asked for.
        workload: id of what was timed and profiled.
        batch: images a step.
        seconds: a step without a profiler, the median of `processes` fresh processes' medians.
        low, high: of that median, the interval over processes with `confidence`; in older profiles, which timed one
            process, 95 % over its slices.
        profiled_seconds: a step under the profiler, which slows it.
        operators: most seconds first.
        modules: in the network's order.
        precision, flops_ceiling, bandwidth: ceilings measured in this run, FLOP/s and bytes/s.
        roof_fraction, mfu: of `seconds`; see bench.inspecting.roofline.
        roof_interval, mfu_interval: their bounds, from those of `seconds` and the range of the ceilings' readings.
        ceilings: every reading of (flops_ceiling, bandwidth), of which those are the best.
        launches: a step: kernels and graphs launched on a GPU, operators called on a CPU.
        idle: share of `seconds` in which the GPU had nothing to do; None on a CPU.
        graphs, recompiles: of torch.compile; None where nothing is compiled. `breaks` say where graphs ended.
        memory: as bench.inspecting.memory has it, bytes; or {"missing": why it is not known}.
        stalls: of the end-to-end task, else None.
        notes: what a reader must know.
        machine, command, created, commit: as in a record.
        files: what was written beside it, name -> file name.
    """

    label: str
    workload: str
    batch: int
    seconds: float
    low: float | None
    high: float | None
    profiled_seconds: float
    operators: tuple[Operator, ...]
    modules: tuple[Module, ...]
    precision: str
    flops_ceiling: float
    bandwidth: float
    roof_fraction: float
    mfu: float
    launches: float
    idle: float | None
    graphs: int | None
    recompiles: int | None
    breaks: tuple[Break, ...]
    memory: Mapping[str, Any]
    stalls: Stalls | None
    notes: tuple[str, ...]
    machine: Mapping[str, Any]
    command: str
    created: str
    commit: Mapping[str, Any] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    confidence: float | None = None
    roof_interval: tuple[float, float] | None = None
    mfu_interval: tuple[float, float] | None = None
    ceilings: tuple[tuple[float, float], ...] = ()
    kind: str = KIND
    schema: int = SCHEMA

    @property
    def task(self) -> str:
        return self.workload.split("/", 1)[0]

    @property
    def device(self) -> str:
        return self.workload.rsplit("/", 1)[1]

    @property
    def host_share(self) -> float:
        """Of the profiled step: what was spent in none of the operators."""
        known = sum(operator.seconds for operator in self.operators)
        return max(0.0, 1 - known / self.profiled_seconds)

    def least_seconds(self, operator: Operator | Module) -> tuple[float, str] | None:
        """The shortest time the ceilings allow, and which of them: "compute" or "memory"; None where not known."""
        if operator.flops is None and operator.bytes is None:
            return None
        compute, memory = (operator.flops or 0.0) / self.flops_ceiling, (operator.bytes or 0.0) / self.bandwidth
        return (compute, "compute") if compute >= memory else (memory, "memory")

    def fraction(self, operator: Operator | Module) -> float | None:
        """Share of the roof it reached: shortest time over time; above 1 where data stayed in a cache."""
        least = self.least_seconds(operator)
        return None if least is None or not operator.seconds else least[0] / operator.seconds

    @property
    def bound(self) -> str:
        """The ceiling that limits the operators which take most of the step's time: "compute" or "memory"."""
        spent = {"compute": 0.0, "memory": 0.0}
        for operator in self.operators:
            least = self.least_seconds(operator)
            if least is not None:
                spent[least[1]] += operator.seconds
        return "compute" if spent["compute"] >= spent["memory"] else "memory"

    def limit(self) -> str:
        """How close to which roof: "is memory-bound at 61 % of the roof"."""
        share = percent(self.roof_fraction)
        if self.roof_fraction < FAR:
            return f"runs at {share} of the roof, far below both ceilings"
        return f"is {self.bound}-bound at {share} of the roof"

    def sentence(self) -> str:
        """The finding in one sentence."""
        doing = {
            "training": "training",
            "inference": "inference of",
            "latency": "a single image through",
            "end_to_end": "training from files of",
        }[self.task]
        text = f"{doing} {self.label} {self.limit()}"
        if self.operators:
            top = self.operators[0]
            text += f"; {percent(top.seconds / self.profiled_seconds)} of the time is {plain_name(top.name)}"
        if self.idle is not None:
            side = "host-bound" if self.idle > 0.1 else "device-bound"
            text += f"; the GPU is idle {percent(self.idle)} of the time ({side})"
        else:
            text += f"; {percent(self.host_share)} is Python and dispatch"
        if self.stalls is not None:
            text += f"; {self.stalls.sentence()}"
        return text

    def tree(self, depth: int) -> list[Module]:
        """Modules summed up to a depth of the path, in order; 1 is the network's children. The depth is 1 or more."""
        found: dict[str, list[Module]] = {}
        for module in self.modules:
            path = module.path if module.path.startswith(OUTSIDE) else ".".join(module.path.split(".")[:depth])
            found.setdefault(path, []).append(module)
        return [_summed(path, parts) for path, parts in found.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain types, `schema` first, the sentence with them."""
        body = asdict(self)
        return {"schema": body.pop("schema"), "kind": body.pop("kind"), "sentence": self.sentence(), **body}

    @classmethod
    def from_json(cls, data: Any, where: str = "profile") -> Profile:
        """Raises RecordError on another schema or kind, and on unknown, missing or mistyped keys, naming them."""
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise RecordError(f"{where}: not a profile; bench profile writes {FILE}")
        if data.get("schema") != SCHEMA:
            raise RecordError(f"{where}: schema is {data.get('schema')!r}, this version reads {SCHEMA}; profile again")
        return read(cls, data, where, ignore=("sentence",))

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Reads one. Raises RecordError: what is wrong with the file and what to do."""
        return cls.from_json(read_json(Path(path)), str(path))


def _summed(path: str, parts: Sequence[Module]) -> Module:
    def total(values: Iterable[float | None]) -> float | None:
        known = [x for x in values if x is not None]
        return sum(known) if known else None

    return Module(
        path,
        next((part.kind for part in parts if part.path == path), ""),
        sum(part.forward_seconds for part in parts),
        sum(part.backward_seconds for part in parts),
        total(part.flops for part in parts),
        total(part.bytes for part in parts),
    )


_PLAIN = {
    "convolution": ("convolution", "mkldnn_convolution", "convolution_pointwise"),
    "linear layers": ("linear_pointwise", "addmm"),
    "batch-norm": (
        *("batch_norm", "native_batch_norm", "native_batch_norm_legit", "batch_norm_with_update"),
        "cudnn_batch_norm",
    ),
    "ReLU": ("relu", "threshold"),
    "SiLU": ("silu",),
    "max pooling": ("max_pool", "max_pool2d_with_indices"),
    "matrix products": ("mm", "bmm"),
    "casts and copies": ("to_copy",),
    "copies": ("copy",),
    "the optimiser": ("fused_sgd", "foreach_add"),
}
"""What a sentence says -> names of operators, without underscores around them and without "_backward"."""
_WORDS = {name: plain for plain, names in _PLAIN.items() for name in names}


def plain_name(name: str) -> str:
    """An operator's name as a sentence says it: "aten::native_batch_norm_backward" -> "batch-norm backward"."""
    bare = name.rsplit("::", 1)[-1].split(".")[0]
    if bare == "_convolution_pointwise_":
        return "convolution with sum"
    stem, backward, _ = bare.strip("_").partition("_backward")
    if stem in _WORDS:
        return _WORDS[stem] + backward.replace("_", " ")
    return f"the fused kernel {bare}" if "_fused_" in bare else bare.strip("_").replace("_", " ")


ROOF_NOTE = (
    "roof: the shortest time that the ceilings measured in this run allow for the operator's FLOPs and bytes, divided "
    "by its time; above 100 % where data was still in a cache, or a convolution is faster than the large matrix product"
)


def text(profile: Profile, format: str = "text", top: int = 12, depth: int = 1) -> str:
    """Sentence, tables by module and by operator, and what stands beside them; json is raw, csv the operators.

    Raises RecordError on another format.
    """
    if format == "json":
        return to_json(profile.to_json())
    if format == "csv":
        return _csv(profile)
    bullet = "- " if format == "markdown" else ""
    modules = _table(("module", *_MODULE_HEADERS), module_rows(profile, depth), format)
    operators = _table(("operator", *_OPERATOR_HEADERS), operator_rows(profile, top), format)
    breaks = "\n".join(f"{bullet}{place.where}: {place.reason}" for place in profile.breaks)
    return page(
        f"{bullet}{profile.sentence()}",
        "\n".join(f"{bullet}{name}: {fact}" for name, fact in facts(profile)),
        f"by module:\n\n{modules}" if modules else "",
        f"by operator:\n\n{operators}",
        "" if profile.stalls is None else _stalls(profile.stalls, format),
        f"graph breaks:\n{breaks}" if breaks else "",
        "\n".join(f"{bullet}{note}" for note in (*profile.notes, ROOF_NOTE)),
    )


_OPERATOR_HEADERS = ("time", "share", "calls", "FLOPs", "bytes", "roof", "bound by")
_MODULE_HEADERS = ("kind", "forward", "backward", "share", "FLOPs", "bytes", "roof")


def _table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], format: str) -> str:
    """A table whose first cells are names: code in markdown, where underscores would be taken for emphasis."""
    if format == "markdown":
        rows = [[f"`{row[0]}`", *row[1:]] for row in rows]
    return render(headers, rows, format) if rows else ""


def operator_rows(profile: Profile, top: int) -> list[list[Cell]]:
    """Cells of the table by operator, those after the first `top` in one row, and what no operator accounts for."""
    longest = max((operator.seconds for operator in profile.operators), default=0.0)

    def row(name: str, operator: Operator) -> list[Cell]:
        least = profile.least_seconds(operator)
        return [
            name,
            _time(operator.seconds, longest),
            _share(operator.seconds / profile.profiled_seconds),
            _count(operator.calls),
            _work(operator.flops, "FLOP"),
            _work(operator.bytes, "bytes"),
            _roof(profile.fraction(operator)),
            "-" if least is None or not least[0] else least[1],
        ]

    rows = [row(operator.name, operator) for operator in profile.operators[:top]]
    rest = profile.operators[top:]
    if rest:
        others = Operator("", sum(o.calls for o in rest), sum(o.seconds for o in rest))
        rows.append(row(f"({len(rest)} others)", others))
    if profile.idle is None:
        rows.append(row(OVERHEAD, Operator("", 0, profile.profiled_seconds * profile.host_share)))
    return rows


def module_rows(profile: Profile, depth: int) -> list[list[Cell]]:
    """Cells of the table by module, in the network's order."""
    shown = [module for module in profile.tree(depth) if module.seconds > 0]
    total = sum(module.seconds for module in shown)
    longest = max((module.seconds for module in shown), default=0.0)
    return [
        [
            module.path,
            module.kind or "-",
            _time(module.forward_seconds, longest),
            _time(module.backward_seconds, longest),
            _share(module.seconds / total),
            _work(module.flops, "FLOP"),
            _work(module.bytes, "bytes"),
            _roof(profile.fraction(module)),
        ]
        for module in shown
    ]


def facts(profile: Profile) -> list[tuple[str, str]]:
    """What stands beside the tables, name and text."""
    low, high = profile.low, profile.high
    step = quantity(profile.seconds, "s", low, high)
    slowest, fastest = (None if bound is None else profile.batch / bound for bound in (high, low))
    rate = quantity(profile.batch / profile.seconds, "images/s", slowest, fastest)
    slower = fixed(profile.profiled_seconds / profile.seconds)
    interval = ""
    if profile.processes > 1 and low is not None and high is not None:
        sure = f"{percent(profile.confidence)} confidence" if profile.confidence else "95 % confidence"
        bounds = " to ".join(quantity(bound, "s", low, high) for bound in (low, high))
        interval = f" [{bounds} over {profile.processes} processes, {sure}]"
    reached = ceilings_text(profile.precision, profile.flops_ceiling, profile.bandwidth, profile.ceilings)
    roof = f"{percent(profile.roof_fraction)}{_interval_text(profile.roof_interval)}"
    found = [
        ("step", f"{step}{interval} without the profiler ({rate}), {slower} times that with it"),
        ("launches", f"{_count(profile.launches)} {'a step' if profile.idle is not None else 'operator calls a step'}"),
        ("ceilings", reached),
        ("roof", f"{roof} reached; MFU {percent(profile.mfu)}{_interval_text(profile.mfu_interval)}"),
    ]
    if profile.graphs is not None:
        breaks = plural(len(profile.breaks), "graph break")
        recompiled = plural(profile.recompiles or 0, "recompilation")
        found.append(("torch.compile", f"{plural(profile.graphs, 'graph')}, {breaks}, {recompiled}"))
    memory = memory_text(profile.memory)
    if profile.idle is None and "counted" not in profile.memory:
        memory += f"; activations and workspace are {ONE_READING}"
    return [*found, ("memory", memory)]


MEMORY_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "inputs": "input",
    "workspace": "activations and workspace",
    "slack": "allocator slack",
    "engine": "in the engine, weights included, by the resident set",
}


def memory_text(memory: Mapping[str, Any]) -> str:
    """The parts that a step's memory adds up from, and the process's own figure beside it with its readings' range."""
    if "missing" in memory:
        return str(memory["missing"])
    parts = [f"{quantity(memory[name], 'bytes')} {title}" for name, title in MEMORY_PARTS.items() if memory.get(name)]
    text = " + ".join(parts) + _readings_text(memory.get("peaks") or (), "bytes", "in all, ")
    if memory["process"] is None:
        return text
    process = f"the process holds {quantity(memory['process'], 'bytes')} with its libraries"
    return f"{text}; {process}{_readings_text(memory.get('processes') or ())}"


def ceilings_text(precision: str, flops: float, bandwidth: float, readings: Sequence[Sequence[float]] = ()) -> str:
    """Both ceilings with the range of their readings: "674 GFLOP/s (612 GFLOP/s to ... readings) in bf16 and ..."."""
    products, copies = ([reading[i] for reading in readings] for i in (0, 1))
    product = f"{quantity(flops, 'FLOP/s')}{_readings_text(products, 'FLOP/s')} in {precision}"
    return f"{product} and {quantity(bandwidth, 'bytes/s')}{_readings_text(copies, 'bytes/s')}"


def _interval_text(bounds: tuple[float, float] | None) -> str:
    return f" ({percent(bounds[0])} to {percent(bounds[1])})" if bounds else ""


def _readings_text(readings: Sequence[float], unit: str = "bytes", what: str = "") -> str:
    """Their range, " (1.17 GiB to 1.19 GiB in 3 readings)"; nothing of fewer than two."""
    if len(readings) < 2:
        return ""
    low, high = (quantity(bound, unit) for bound in (min(readings), max(readings)))
    return f" ({what}{low if low == high else f'{low} to {high}'} in {len(readings)} readings)"


def _stalls(stalls: Stalls, format: str) -> str:
    rates = {"loader alone": stalls.loader_rate, "step alone": stalls.step_rate, "joined": stalls.joined_rate}
    rows: list[list[Cell]] = [[name, quantity(rate, "images/s")] for name, rate in rates.items()]
    rows.append(["overlap", percent(stalls.overlap)])
    total = sum(seconds for _, seconds in stalls.stages)
    for name, seconds in stalls.stages:
        rows.append([f"loader: {name}", f"{quantity(seconds, 's')} an image, {percent(seconds / total)}"])
    table = render([f"loader {stalls.loader}", "figure"], rows, format)
    return page("loader and step, without the profiler:", table, stalls.stages_note)


def _csv(profile: Profile) -> str:
    headers = ["table", "name", "calls", "seconds", "forward_seconds", "backward_seconds", "flops", "bytes", "roof"]
    rows: list[list[Cell]] = [
        ["operator", o.name, o.calls, o.seconds, None, None, o.flops, o.bytes, profile.fraction(o)]
        for o in profile.operators
    ]
    for m in profile.modules:
        seconds = (m.seconds, m.forward_seconds, m.backward_seconds)
        rows.append(["module", m.path, None, *seconds, m.flops, m.bytes, profile.fraction(m)])
    return render(headers, rows, "csv")


def _time(seconds: float, longest: float) -> str:
    """Seconds in the unit of the table's longest."""
    factor, unit = unit_for([longest], "s")
    return f"{fixed(seconds / factor)} {unit}" if seconds else "-"


def _count(calls: float) -> str:
    return "-" if not calls else f"{calls:.0f}" if calls >= 10 or calls == round(calls) else f"{calls:.1f}"


def _work(amount: float | None, unit: str) -> str:
    return quantity(float(amount), unit) if amount else "-"


def _share(share: float) -> str:
    """A share of the time in a column: tenths of a percent below 10 %."""
    return percent(share) if share >= 0.0995 else f"{100 * share:.1f} %"


def _roof(fraction: float | None) -> str:
    return percent(fraction) if fraction else "-"
