"""A record in pytest-benchmark's form, so that its `compare` and other readers of it read ours.

The form of pytest-benchmark 5.3: "benchmarks", each with a name and "stats" in seconds, and beside them
"machine_info", "commit_info", "datetime" and "version".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from results.record import Json, Metric, Record, plain

FORM = "5.3.1"
"""The version of pytest-benchmark whose form this is."""

UNVERSIONED = "unversioned"
"""What stands for the commit where there is none."""

_MEDIANS_FROM = 6
"""From so many blocks up the samples are the blocks' medians, as everywhere else; below it all slices."""


def block_seconds(metric: Metric, operand: str) -> list[list[float]]:
    """Seconds a step of one operand: a list for each block. Empty for a metric that has no times of this operand."""
    if not isinstance(metric.pairs, Sequence) or isinstance(metric.pairs, str):
        return []
    blocks = []
    for block in metric.pairs:
        turns = block if isinstance(block, Sequence) and not isinstance(block, str) else ()
        seconds = [
            x for turn in turns if isinstance(turn, Mapping) and (x := as_seconds(turn.get(operand))) is not None
        ]
        if seconds:
            blocks.append(seconds)
    return blocks


def samples(blocks: Sequence[Sequence[float]]) -> list[float]:
    """What an operand's statistics are over: the medians of its blocks, or all slices of fewer than 6 blocks."""
    if len(blocks) >= _MEDIANS_FROM:
        return [statistics.median(block) for block in blocks]
    return [x for block in blocks for x in block]


def shared(record: Record) -> dict[str, Json]:
    """The keys of `record.SHARED_KEYS` for this record.

    One benchmark for each timed operand of each metric, named by its workload's id, as `pytest bench` names it.
    Where two operands share an id (the two sides of a check) the last one has it, since the newer side is named
    last, and the others are "ID (OPERAND)".
    """
    commit = record.commit or {}
    return {
        "machine_info": {"pixbench": plain(record.machine.get("fingerprint") or {})},
        "commit_info": {"id": commit.get("sha") or UNVERSIONED, "dirty": bool(commit.get("dirty", False))},
        "benchmarks": [
            _benchmark(metric, operand, seconds)
            for metric in record.metrics
            for operand in metric.workloads
            if (seconds := samples(block_seconds(metric, operand)))
        ],
        "datetime": record.created,
        "version": FORM,
    }


def as_seconds(x: Json) -> float | None:
    """Seconds, if that is what `x` can be: a number above 0."""
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x < math.inf:
        return None
    return float(x)


def last_of_each(metric: Metric) -> dict[str, str]:
    """Workload id -> the operand that stands for it, the last one that has times of it."""
    return {id: operand for operand, id in metric.workloads.items() if block_seconds(metric, operand)}


def statistics_of(seconds: Sequence[float]) -> dict[str, Json]:
    """pytest-benchmark's "stats" of one or more times, all of them above 0."""
    from pytest_benchmark.stats import Stats

    stats: Any = Stats()  # type: ignore[no-untyped-call]
    for x in seconds:
        stats.update(x)
    return {**stats.as_dict(), "data": list(seconds), "iterations": 1}


def _benchmark(metric: Metric, operand: str, seconds: Sequence[float]) -> dict[str, Json]:
    id = metric.workloads[operand]
    name = id if last_of_each(metric).get(id) == operand else f"{id} ({operand})"
    extra: dict[str, Json] = {"metric": metric.name, "operand": operand, "images": metric.batch}
    value = metric.values.get(operand)
    if value is not None:
        extra[metric.name] = value.median
    return {
        "group": id.partition("/")[0],
        "name": name,
        "fullname": name,
        "params": {"workload": id},
        "param": id,
        "extra_info": extra,
        "options": {},
        "stats": statistics_of(seconds),
    }
