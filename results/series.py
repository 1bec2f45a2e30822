"""The history of each workload: its times in all stored runs of a folder, oldest first.

Reads records (store.py) and the JSON files of `pytest bench --benchmark-json`. Whatever else lies in the folder is
skipped and named. A workload has the id that it has today, also where an older version called it otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results import store
from results.errors import RecordError
from results.gate import VOID
from results.pytest_json import UNVERSIONED, as_seconds, block_seconds, last_of_each, samples
from results.record import METRICS, Record, current_id
from results.stats import summarise
from results.store import Skipped

LATENCY = "inference_latency_p50"


@dataclass(frozen=True)
class Point:
    """What one run measured of a workload.

    Attributes:
        created: when, ISO 8601.
        commit: full hash, None outside a repository.
        dirty: whether files differed from that commit.
        seconds: median seconds a step.
        low, high: enclose it with 95 %, or as much as the samples allow; None where they were not stored.
        images: images a step.
        reference_seconds: one step of the pinned reference in the same run, None where it was not measured.
        machine: digest of the machine's fingerprint, "" where it was not stored.
        path: the file.
        operand: its name in the run; "" in a file of pytest-benchmark.
        metric: name of the figure that these times stand behind, which decides what change matters.
        reference: id of the reference.
    """

    created: str
    commit: str | None
    dirty: bool
    seconds: float
    low: float | None
    high: float | None
    images: int
    reference_seconds: float | None
    machine: str
    path: Path
    operand: str
    metric: str
    reference: str | None = None

    @property
    def relative(self) -> float | None:
        """Seconds a step in steps of the reference; None without one."""
        return None if self.reference_seconds is None else self.seconds / self.reference_seconds

    @property
    def moment(self) -> datetime:
        """`created` as a time; UTC where it does not say."""
        return _moment(self.created)

    def to_json(self) -> dict[str, Any]:
        """Plain types, with `relative`."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "path": str(self.path), "relative": self.relative}


def collect(folder: Path | str = store.FOLDER) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Every workload's points, oldest first, by id in alphabetical order; and the files that gave none, and why.

    One point a run and workload: where several operands are the same workload it is the last one, which in a check is
    the newer side. A file and its copy count once. Raises RecordError when the folder cannot be read; one that does
    not exist holds nothing.
    """
    stored, passed = store.list_records(folder)
    found: dict[str, set[Point]] = {}
    skipped: list[Skipped] = []
    for path, record in stored:
        if _mapping(record.settings.get("check")).get("verdict") == VOID:
            skipped.append(Skipped(path, "a check whose self-test failed, so its times do not count"))
            continue
        if record.settings.get("beside", "none") != "none":
            skipped.append(
                Skipped(path, "measured beside a busy core on purpose, so its times are no part of a series")
            )
            continue
        if str(record.settings.get("over", "")).startswith("threads="):
            skipped.append(Skipped(path, "measured over numbers of threads, so its times are no part of a series"))
            continue
        for id, point in _of_record(path, record):
            found.setdefault(id, set()).add(point)
    for path, reason in passed:
        try:
            points = list(_of_pytest(path)) if path.suffix == ".json" else []
        except RecordError as error:
            skipped.append(Skipped(path, str(error)))
            continue
        if not points:
            skipped.append(Skipped(path, reason))
        for id, point in points:
            found.setdefault(id, set()).add(point)
    return {id: _ordered(found[id]) for id in sorted(found)}, skipped


def digest(fingerprint: Mapping[str, Any] | None) -> str:
    """Twelve hexadecimal digits that are equal for equal fingerprints; "" without one."""
    if not fingerprint:
        return ""
    text = json.dumps(fingerprint, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _ordered(points: set[Point]) -> list[Point]:
    once: dict[tuple[object, ...], Point] = {}
    for point in sorted(points, key=lambda point: (point.moment, point.path.name)):
        once.setdefault((point.moment, point.seconds, point.operand, point.commit), point)
    return list(once.values())


def _of_record(path: Path, record: Record) -> Iterator[tuple[str, Point]]:
    commit = record.commit or {}
    reference, reference_seconds = _reference(record.settings)
    seen: set[str] = set()
    for metric in record.metrics:
        for id, operand in last_of_each(metric).items():
            if id in seen:
                continue
            seen.add(id)
            value = summarise(samples(block_seconds(metric, operand)))
            assert value.median is not None
            yield (
                current_id(id, record.machine),
                Point(
                    created=record.created,
                    commit=_text(commit.get("sha")),
                    dirty=bool(commit.get("dirty", False)),
                    seconds=float(value.median),
                    low=value.low,
                    high=value.high,
                    images=metric.batch or 0,
                    reference_seconds=reference_seconds,
                    machine=digest(record.machine.get("fingerprint")),
                    path=path,
                    operand=operand,
                    metric=metric.name,
                    reference=reference,
                ),
            )


def _of_pytest(path: Path) -> Iterator[tuple[str, Point]]:
    """The points of a file that pytest-benchmark wrote for `pytest bench`; none of any other file.

    Raises RecordError for a file in that form of which nothing can be used.
    """
    try:
        data = store.read_json(path)
    except RecordError:
        return
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list) or "kind" in data:
        return
    created = data.get("datetime")
    try:
        _moment(str(created))
    except ValueError:
        raise RecordError(f"in pytest-benchmark's form, but its datetime is {created!r}") from None
    machine = _mapping(data.get("machine"))
    described = _mapping(machine.get("commit"))
    told = _mapping(data.get("commit_info"))
    sha = _text(described.get("sha")) or _text(told.get("id"))
    fingerprint = _mapping(machine.get("fingerprint")) or _mapping(_mapping(data.get("machine_info")).get("pixbench"))
    reference, reference_seconds = _reference(data)
    ours = 0
    for benchmark in map(_mapping, data["benchmarks"]):
        extra, stats = _mapping(benchmark.get("extra_info")), _mapping(benchmark.get("stats"))
        id, seconds = _text(benchmark.get("fullname")), as_seconds(stats.get("median"))
        if id is None or seconds is None or "workload" not in extra:
            continue
        ours += 1
        kept = stats.get("data")
        times = [x for x in kept if as_seconds(x) is not None] if isinstance(kept, list) else []
        value = summarise(times) if times else None
        images = extra.get("images")
        yield (
            current_id(id, machine),
            Point(
                created=str(created),
                commit=None if sha == UNVERSIONED else sha,
                dirty=bool((described or told).get("dirty", False)),
                seconds=seconds,
                low=value.low if value else None,
                high=value.high if value else None,
                images=images if isinstance(images, int) else 0,
                reference_seconds=reference_seconds,
                machine=digest(fingerprint),
                path=path,
                operand="",
                metric=next((name for name in extra if name in METRICS and name.endswith("_throughput")), LATENCY),
                reference=reference,
            ),
        )
    if not ours:
        raise RecordError("in pytest-benchmark's form, but none of its benchmarks is a workload of this program")


def _reference(settings: Mapping[str, Any]) -> tuple[str | None, float | None]:
    reference = _mapping(settings.get("reference"))
    id, seconds = _text(reference.get("id")), as_seconds(reference.get("seconds"))
    return (id, seconds) if id is not None and seconds is not None else (None, None)


def _moment(created: str) -> datetime:
    moment = datetime.fromisoformat(created)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def _text(data: Any) -> str | None:
    return data if isinstance(data, str) and data else None
