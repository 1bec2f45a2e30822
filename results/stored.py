"""Stored results side by side: one record made of two or more."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from results import store
from results.errors import RecordError
from results.record import ONE_READING, Metric, Ratio, Record, Value, current_id, utc_now
from results.verdict import compare_verdict, margin_of


def compare_files(paths: Sequence[Path], across: bool) -> Record:
    """A record whose operands are the files (one operand in each) or FILE:OPERAND pairs.

    Runs were made at different times, so nothing was paired: a ratio's bounds are the quotients of the two
    intervals' far ends, each at 95 %, which is wider than a duel's.

    Args:
        across: allow different machines; every value is then divided by the same record's value of the first operand
            that all files share, so that only ratios to a common reference are compared.

    Raises:
        RecordError: a file is not a record, the machines differ and `across` is False, or nothing is in common.
    """
    records = [store.load(path) for path in paths]
    if not across:
        for path, record in zip(paths[1:], records[1:], strict=True):
            differing = store.same_machine(records[0], record)
            if differing:
                raise RecordError(
                    f"{paths[0]} and {path} come from different machines ({'; '.join(differing[:4])}); "
                    "measure both on one, or use --across to compare ratios to a reference both contain"
                )
    elif len(records) < 2:
        raise RecordError("--across needs at least two stored results")
    columns = _columns(paths, records)
    metrics = [_metric(name, columns, across) for name in _names(records)]
    if not metrics:
        raise RecordError("these results have no metric in common")
    return Record(
        kind="stored",
        created=utc_now(),
        command="",
        commit=None,
        machine={} if across else records[0].machine,
        operands=tuple(columns),
        metrics=tuple(metrics),
        complete=all(r.complete for r in records),
        settings={"files": [str(p) for p in paths]},
    )


def _columns(paths: Sequence[Path], records: Sequence[Record]) -> dict[str, tuple[Record, str]]:
    """Column title -> the record and the operand in it; files of the same name are told apart by their folder."""
    titles = [path.stem for path in paths]
    if len(set(titles)) < len(titles):
        titles = [str(path) for path in paths]
    return {
        title if len(record.operands) == 1 else f"{title}:{operand}": (record, operand)
        for title, record in zip(titles, records, strict=True)
        for operand in record.operands
    }


def _names(records: Sequence[Record]) -> list[str]:
    """Metrics that every record has, in the first one's order."""
    return [m.name for m in records[0].metrics if all(r.metric(m.name) for r in records)]


def _metric(name: str, columns: Mapping[str, tuple[Record, str]], across: bool) -> Metric:
    found: dict[str, tuple[Metric, str]] = {}
    for title, (record, operand) in columns.items():
        metric = record.metric(name)
        if metric is not None and operand in metric.values:
            found[title] = (metric, operand)
    first = next(iter(found.values()))[0]
    older = [title for title, (metric, operand) in found.items() if renamed(metric, operand, columns[title][0])]
    # Of two such runs neither has to be told apart.
    notes = tuple(
        f"{title} kept freed memory, as the lever keep does now" for title in older if len(older) < len(found)
    )
    if across:
        shared = next((o for o in first.values if all(o in r.operands for r, _ in columns.values())), None)
        if shared is None:
            raise RecordError("these results share no operand, so there is no reference to compare their ratios to")
        values = {title: _relative(metric, operand, shared) for title, (metric, operand) in found.items()}
        notes = (f"relative to {shared} of the same run", *notes)
    else:
        values = {title: metric.values[operand] for title, (metric, operand) in found.items()}
    batches = {metric.batch for metric, _ in found.values()}
    pairs = _pairs([(title, columns[title][1]) for title in values])
    ratios = [r for of, to in pairs if (r := quotient(of, to, values)) is not None]
    if len({metric.one_reading for metric, _ in found.values()}) > 1 and not across:
        old = [title for title, (metric, _) in found.items() if metric.one_reading]
        notes = (f"not compared: {', '.join(old)} is {ONE_READING}, and the other is counted",)
        ratios = []
    named = Metric.named(
        name,
        values,
        batch=batches.pop() if len(batches) == 1 else None,
        ratio=ratios[0] if ratios else None,
        verdict=compare_verdict(ratios[0], first.better, margin_of(name)) if ratios else None,
        ratios=ratios if len(columns) > 2 else (),
        workloads={
            title: current_id(metric.workloads.get(operand, ""), columns[title][0].machine)
            for title, (metric, operand) in found.items()
        },
        notes=notes,
    )
    memory = {title: metric.memory[operand] for title, (metric, operand) in found.items() if operand in metric.memory}
    return replace(named, unit="1" if across else first.unit, memory={} if across else memory)


def _pairs(columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Which columns are compared: each with the first that has its operand; all with the first one where none has.

    What stands beside each other in one result was measured in turns: that result says more of it than a quotient.

    Args:
        columns: (title, operand).
    """
    first: dict[str, str] = {}
    again = [(title, first[operand]) for title, operand in columns if first.setdefault(operand, title) != title]
    return again or [(title, columns[0][0]) for title, _ in columns[1:]]


def renamed(metric: Metric, operand: str, record: Record) -> bool:
    """Whether what a record measured of an operand is called otherwise today; see record.current_id."""
    id = metric.workloads.get(operand, "")
    return current_id(id, record.machine) != id


def _relative(metric: Metric, operand: str, shared: str) -> Value:
    """operand / shared within one run."""
    unpaired = quotient(operand, shared, metric.values)
    if unpaired is None:
        return Value.none(metric.values[operand].missing or metric.values[shared].missing or f"{shared} is 0")
    ratio = next((r for r in metric.comparisons if (r.of, r.to) == (operand, shared)), unpaired)
    return Value(ratio.estimate, ratio.low, ratio.high, metric.values[operand].samples, confidence=ratio.confidence)


def quotient(of: str, to: str, values: Mapping[str, Value]) -> Ratio | None:
    """values[of] / values[to] of two numbers that were not paired; None where one is missing or 0."""
    a, b = values[of], values[to]
    if a.median is None or not b.median:
        return None
    if a.confidence == b.confidence == 1.0:
        return Ratio.exact(of, to, values)
    low = high = confidence = None
    if a.low is not None and a.high is not None and b.low and b.high:
        low, high, confidence = a.low / b.high, a.high / b.low, min(a.confidence or 0.0, b.confidence or 0.0)
    # One block and no pair: the difference between processes is not in it.
    return Ratio(of, to, a.median / b.median, low, high, confidence, blocks=1, pairs=0)
