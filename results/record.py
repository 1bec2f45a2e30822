"""The record of a run: plain frozen types and their JSON form, in SI units, nothing rounded.

This module knows the shape of a record and nothing of files (store.py), of statistics (stats.py) or of how
numbers are shown (tables.py).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, TypeAlias

from results.errors import RecordError
from results.reading import Count, did_you_mean, read

SCHEMA = 1
"""Version of the JSON form. Keys with a default may be added without a new number."""

SHARED_KEYS = ("machine_info", "commit_info", "benchmarks", "datetime", "version")
"""What a stored file holds beside the record, for readers of pytest-benchmark's form (pytest_json.py)."""

ONE_READING = (
    "a single reading of the process's resident set, as earlier versions took it; it differs between identical runs"
)
"""What must be said of peak memory on a CPU in records made before it was counted."""

Number: TypeAlias = int | float
Json: TypeAlias = Any
"""Whatever `json` can write. Kept raw: this package stores it and does not look inside."""

METRICS: dict[str, tuple[str, str, str]] = {
    "params": ("parameters", "lower", "trainable and frozen parameters"),
    "weight_bytes": ("bytes", "lower", "bytes of the parameters in fp32, buffers not counted"),
    "macs": ("MAC", "lower", "multiply-accumulates of one forward pass of one image"),
    "flops": ("FLOP", "lower", "floating point operations of one forward pass of one image, 2 a MAC"),
    "activations": ("elements", "lower", "elements written by the layers in one forward pass of one image"),
    "inference_latency_p50": ("s", "lower", "median time from one image on the host to its result on the host"),
    "inference_latency_p90": ("s", "lower", "the same, 90th percentile"),
    "inference_latency_p99": ("s", "lower", "the same, 99th percentile"),
    "inference_throughput": ("images/s", "higher", "images through the forward pass with the queue full"),
    "training_throughput": ("images/s", "higher", "images through whole training steps on resident data"),
    "end_to_end_throughput": ("images/s", "higher", "images from files through loader and training step"),
    "loader_throughput": ("images/s", "higher", "images from files to batches on the device, no model"),
    "kernel_throughput": ("images/s", "higher", "images through one kernel"),
    "step_time": ("s", "lower", "one call of a step of the user's"),
    "step_throughput": ("units/s", "higher", "what a step of the user's works through, in the unit that was named"),
    "step_flops": ("FLOP", "lower", "floating point operations of matrix products and convolutions in one call"),
    "step_peak_bytes": ("bytes", "lower", "highest memory that torch allocates in one call, above what it begins with"),
    "inference_peak_bytes": (
        "bytes",
        "lower",
        "highest memory of the inference step, after warm-up",
    ),
    "training_peak_bytes": ("bytes", "lower", "highest memory of the training step, after warm-up"),
    "compile_seconds": ("s", "lower", "compilation and autotuning before the first timed step"),
    "roof_fraction": ("1", "higher", "share of the ceiling measured on this device in this run"),
    "mfu": ("1", "higher", "model FLOP/s over those of a large matrix product measured on this device in this run"),
    "energy_per_image": ("J", "lower", "energy above idle for one image"),
}
"""Metric name -> (unit, which direction is better, what it is)."""


def utc_now() -> str:
    """This moment in ISO 8601, UTC, to the second: the form of `Record.created`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Value:
    """One operand's number for one metric, in the metric's unit.

    `low` and `high` enclose the median with `confidence`; None where the samples give no bound. A counted
    number has low = high = median. Without a number `median` is None and `missing` says why, for example "out
    of memory: 2.1 GiB asked for, 0.4 GiB free" or "needs 459 samples, has 120". NaN and infinity become None
    on the way in, so that what is held is what is stored.
    """

    median: Number | None
    low: Number | None
    high: Number | None
    samples: Count
    missing: str | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.median is not None and not math.isfinite(self.median) and self.missing is None:
            object.__setattr__(self, "missing", f"the measurement gave {self.median}")
        for name in ("median", "low", "high"):
            object.__setattr__(self, name, _finite(getattr(self, name)))
        if self.missing is not None:
            for name in ("median", "low", "high"):
                object.__setattr__(self, name, None)
        elif self.median is None:
            raise RecordError("a value without a median needs the reason in `missing`")

    @classmethod
    def counted(cls, number: Number) -> Value:
        """A number without noise: counted, not measured."""
        return cls(number, number, number, samples=1, confidence=1.0)

    @classmethod
    def none(cls, reason: str, samples: int = 0) -> Value:
        """No number, and why."""
        return cls(None, None, None, samples=samples, missing=reason)


@dataclass(frozen=True)
class Ratio:
    """value[of] / value[to], the plain quotient of the metric's numbers; `to` is the reference.

    `low` and `high` enclose it with `confidence` (None: the samples give no bound). `blocks` counts fresh
    pairs of processes and `pairs` the pairs of slices inside them; 0 blocks means that both numbers are
    counted, not timed.
    """

    of: str
    to: str
    estimate: float | None
    low: float | None
    high: float | None
    confidence: float | None
    blocks: Count
    pairs: Count

    def __post_init__(self) -> None:
        for name in ("estimate", "low", "high"):
            object.__setattr__(self, name, _finite(getattr(self, name)))

    @property
    def counted(self) -> bool:
        return self.blocks == 0

    @property
    def within_process(self) -> bool:
        """Whether the interval leaves out how much one process differs from the next."""
        return self.blocks == 1

    @property
    def unpaired(self) -> bool:
        """Whether the two numbers come from separate runs, so that no pair of slices stands behind the quotient."""
        return self.blocks > 0 and self.pairs == 0

    @classmethod
    def exact(cls, of: str, to: str, values: Mapping[str, Value]) -> Ratio | None:
        """The quotient of two counted numbers; None where one is missing or the reference is 0."""
        above, below = values[of].median, values[to].median
        if above is None or not below:
            return None
        quotient = above / below
        return cls(of, to, quotient, quotient, quotient, confidence=1.0, blocks=0, pairs=0)

    def inverse(self) -> Ratio:
        """The same comparison seen from the other side."""
        turn = [1 / x if x else None for x in (self.estimate, self.high, self.low)]
        return Ratio(self.to, self.of, turn[0], turn[1], turn[2], self.confidence, self.blocks, self.pairs)


@dataclass(frozen=True)
class Metric:
    """One quantity for every operand, with how the operands relate.

    `ratio` and `verdict` are about the first comparison; with more than two operands `ratios` holds one ratio
    for each operand against the same reference. `workloads` gives the id of what was timed for each operand.
    `pairs` keeps the raw log ratios, log(value[of] / value[to]): a list of blocks, each a list of pairs (with
    more than two operands: a mapping from operand to such a list). `quantiles` holds of single times, where they were
    taken one by one, the 0th to 100th percentile of each operand. `memory` holds of peak memory, for each operand,
    the parts that it adds up from and the readings of what was measured, in bytes (bench.inspecting.memory).
    """

    name: str
    unit: str
    better: str
    batch: Count | None
    values: Mapping[str, Value]
    ratio: Ratio | None = None
    verdict: str | None = None
    ratios: tuple[Ratio, ...] = ()
    workloads: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pairs: Json = ()
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    memory: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise RecordError(f"metric {self.name}: better is {self.better!r}; it is 'higher' or 'lower'")
        for ratio in self.comparisons:
            for operand in (ratio.of, ratio.to):
                if operand not in self.values:
                    raise RecordError(f"metric {self.name}: the ratio names {operand!r}, which has no value here")

    @classmethod
    def named(
        cls,
        name: str,
        values: Mapping[str, Value],
        *,
        batch: int | None = None,
        ratio: Ratio | None = None,
        verdict: str | None = None,
        ratios: Sequence[Ratio] = (),
        workloads: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        pairs: Json = (),
    ) -> Metric:
        """A metric of `METRICS` with its unit and direction; RecordError with near names for another name."""
        if name not in METRICS:
            raise RecordError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}; known: {', '.join(METRICS)}")
        unit, better, _ = METRICS[name]
        return cls(
            name, unit, better, batch, values, ratio, verdict, tuple(ratios), workloads or {}, tuple(notes), pairs
        )

    @property
    def comparisons(self) -> tuple[Ratio, ...]:
        """Every ratio once, whichever of the two fields holds it."""
        first = () if self.ratio is None or self.ratio in self.ratios else (self.ratio,)
        return first + self.ratios

    @property
    def one_reading(self) -> bool:
        """Whether this is peak memory on a CPU as it was before it was counted; see `ONE_READING`."""
        return (
            self.name.endswith("_peak_bytes")
            and not self.memory
            and any(value.median is not None for value in self.values.values())
            and any(id.endswith("/cpu") for id in self.workloads.values())
        )


@dataclass(frozen=True)
class Record:
    """One run: what was asked, on which machine, what came out, and whether it got to its end.

    `created` is ISO 8601 in UTC, `commit` is {"sha", "dirty"} or None outside a repository, `machine` holds
    under "fingerprint" what must agree before two records may be compared.
    """

    kind: str
    created: str
    command: str
    commit: Mapping[str, Json] | None
    machine: Mapping[str, Json]
    operands: tuple[str, ...]
    metrics: tuple[Metric, ...]
    complete: bool = True
    settings: Mapping[str, Json] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecordError(f"schema {self.schema}: this version writes and reads schema {SCHEMA}")
        try:
            datetime.fromisoformat(self.created)
        except ValueError as error:
            raise RecordError(f"created is {self.created!r}; expected a time in ISO 8601") from error
        for metric in self.metrics:
            for operand in metric.values:
                if operand not in self.operands:
                    raise RecordError(f"metric {metric.name} has a value for {operand!r}, which is not an operand")

    def metric(self, name: str, batch: int | None = None) -> Metric | None:
        """The first metric of that name (and batch, when given), None without one."""
        for metric in self.metrics:
            if metric.name == name and (batch is None or metric.batch == batch):
                return metric
        return None

    def __str__(self) -> str:
        """The record as `bench compare` prints it."""
        return str(_shown().compare_table(self))

    def _repr_html_(self) -> str:
        """The same for a notebook, which calls this."""
        return str(_shown().compare_html(self))

    def to_json(self) -> dict[str, Json]:
        """Plain types for `json`, `schema` first; never NaN or infinity, which become null."""
        return {"schema": self.schema, **plain(self)}

    @classmethod
    def from_json(cls, data: Json, where: str = "record") -> Record:
        """Raises RecordError on another schema and on unknown, missing or mistyped keys, naming them.

        `SHARED_KEYS` are skipped.
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise RecordError(f"{where}: no key 'schema', so this is not a record of this program")
        schema = data["schema"]
        if schema != SCHEMA or isinstance(schema, bool):
            newer = isinstance(schema, int) and schema > SCHEMA
            advice = "it comes from a newer version; update this one" if newer else "measure again"
            raise RecordError(f"{where}: schema is {schema!r}, this version reads {SCHEMA}; {advice}")
        if "benchmarks" in data and "kind" not in data:
            raise RecordError(f"{where}: written by pytest-benchmark, so not a record; bench trend reads such files")
        return read(cls, data, where, ignore=SHARED_KEYS)


def _shown() -> ModuleType:
    # Named, not imported: how a record is shown is known above, and only there.
    return importlib.import_module("results.comparison")


KEPT = "keeps freed memory"
"""What `settings.allocator` of a machine says while every process kept freed memory and no lever said so."""

_ID = re.compile(r"(?P<task>[^/@]+)/[^@]+@(?P<configuration>[^/]+)/(?:[^/]+/)*(?P<device>[^/]+)")


def current_id(id: str, machine: Mapping[str, Json]) -> str:
    """What a stored workload is called today.

    While every process kept freed memory, ids did not say so; such a workload is today's with the lever `keep`. Foreign
    engines have memory of their own, and a GPU's is another matter, except for what loaders make on the host.
    """
    settings, parts = machine.get("settings"), _ID.fullmatch(id)
    if not isinstance(settings, Mapping) or settings.get("allocator") != KEPT or parts is None:
        return id
    words = parts["configuration"].split("-")
    ours = parts["task"] == "kernel" or "nchw" in words or "nhwc" in words
    on_host = parts["device"] == "cpu" or parts["task"] in ("loading", "end_to_end")
    if not ours or not on_host or "keep" in words:
        return id
    end = parts.end("configuration")
    return f"{id[:end]}-keep{id[end:]}"


def _finite(x: Number | None) -> Number | None:
    return None if x is None or not math.isfinite(x) else x


def plain(data: Json) -> Json:
    """Copies into what JSON can hold: dataclasses as objects, NaN and infinity as None."""
    if data is None or isinstance(data, (bool, str)):
        return data
    if isinstance(data, (int, float)):
        return _finite(data)
    if dataclasses.is_dataclass(data):
        return {field.name: plain(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(data) if isinstance(data, (set, frozenset)) else data)]
    return str(data)
