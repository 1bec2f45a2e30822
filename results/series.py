"""The history of each workload: its times in all stored runs of a folder, oldest first.

Reads records (store.py) and the JSON files of `pytest bench --benchmark-json`. Whatever else lies in the folder is
skipped and named. A workload has the id that it has today, also where an older version called it otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from results import store
from results.comparison import sentences
from results.errors import RecordError
from results.gate import VOID
from results.pytest_json import UNVERSIONED, as_seconds, block_seconds, last_of_each, samples
from results.record import METRICS, Record, current_id
from results.stats import summarise
from results.store import Skipped

LATENCY = "inference_latency_p50"


class Point(NamedTuple):
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
        return {**self._asdict(), "path": str(self.path), "relative": self.relative}


@dataclass(frozen=True)
class Content:
    """What a file of a store holds, as far as lists and series ask.

    Attributes:
        points: of its workloads, by id.
        unused: why it gives no point, "" where it does or has none to give.
        error: why it is no record, "" if it is one.
        kind: of a record or a profile; "" of anything else.
        created: of a record, a profile or pytest-benchmark's file; "" of anything else.
        operands: of a record.
        says: what a record says first, of a check its verdict; "interrupted" of one that is not complete.
        passing: whether it could not be read at all, which another attempt may.
    """

    points: tuple[tuple[str, Point], ...] = ()
    unused: str = ""
    error: str = ""
    kind: str = ""
    created: str = ""
    operands: tuple[str, ...] = ()
    says: str = ""
    passing: bool = False

    @property
    def is_result(self) -> bool:
        """Whether it looks like a record, a profile, or pytest-benchmark's file."""
        return not self.error or (self.created != "" and self.kind in ("", "profile"))


def look(path: Path) -> Content:
    """Reads one file of a store, whatever it holds."""
    data: Any = None
    try:
        data = store.read_json(path)
        record = Record.from_json(data, where=str(path))
    except RecordError as error:
        return _no_record(path, data, error)
    verdict = str(_mapping(record.settings.get("check")).get("verdict", ""))
    says = (verdict or next(iter(sentences(record)), "")) if record.complete else "interrupted"
    content = Content(kind=record.kind, created=record.created, operands=record.operands, says=says)
    if verdict == VOID:
        return replace(content, unused="a check whose self-test failed, so its times do not count")
    if record.settings.get("beside", "none") != "none":
        return replace(content, unused="measured beside a busy core on purpose, so its times are no part of a series")
    if str(record.settings.get("over", "")).startswith("threads="):
        return replace(content, unused="measured over numbers of threads, so its times are no part of a series")
    return replace(content, points=tuple(_of_record(path, record)))


def _no_record(path: Path, data: Any, error: RecordError) -> Content:
    reason = str(error).removeprefix(f"{path}: ")
    content = Content(unused=reason, error=reason, passing=isinstance(error.__cause__, OSError))
    if not isinstance(data, dict):
        return content
    content = replace(content, kind=_text(data.get("kind")) or "", created=_text(data.get("created")) or "")
    if "kind" in data or not isinstance(data.get("benchmarks"), list):
        return content
    content = replace(content, created=_text(data.get("datetime")) or "")
    try:
        return replace(content, points=tuple(_of_pytest(path, data)), unused="")
    except RecordError as unusable:
        return replace(content, unused=str(unusable))


def look_at(paths: Sequence[Path]) -> list[Content]:
    """The contents of several files, each one read."""
    return [look(path) for path in paths]


def collect(
    folder: Path | str = store.FOLDER, contents: Callable[[Sequence[Path]], list[Content]] = look_at
) -> tuple[dict[str, list[Point]], list[Skipped]]:
    """Every workload's points, oldest first, by id in alphabetical order; and the files that gave none, and why.

    One point a run and workload: where several operands are the same workload it is the last one, which in a check is
    the newer side. A file and its copy count once. Raises RecordError when the folder cannot be read; one that does
    not exist holds nothing.

    Args:
        contents: of files; `Index.contents` remembers them.
    """
    files, skipped = store.list_files(folder)
    held = contents(files)
    skipped += [Skipped(path, content.unused) for path, content in zip(files, held, strict=True) if content.unused]
    return series(held), sorted(skipped)


def series(contents: Sequence[Content]) -> dict[str, list[Point]]:
    """Every workload's points, as `collect` says, of the contents of files in the order of their names."""
    dated = [(content.points[0][1].moment, content) for content in contents if content.points]
    found: dict[str, dict[tuple[object, ...], Point]] = {}
    for moment, content in sorted(dated, key=itemgetter(0)):
        for id, point in content.points:
            found.setdefault(id, {}).setdefault((moment, point.seconds, point.operand, point.commit), point)
    return {id: list(found[id].values()) for id in sorted(found)}


def digest(fingerprint: Mapping[str, Any] | None) -> str:
    """Twelve hexadecimal digits that are equal for equal fingerprints; "" without one."""
    if not fingerprint:
        return ""
    text = json.dumps(fingerprint, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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


def _of_pytest(path: Path, data: Mapping[str, Any]) -> Iterator[tuple[str, Point]]:
    """The points of a file that pytest-benchmark wrote for `pytest bench`.

    Raises RecordError where nothing of it can be used.
    """
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
