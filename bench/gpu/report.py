"""The table of a device, made from the files that `make gpu` left."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.gpu.running import OUTCOMES, Outcome, outcomes
from results.errors import RecordError
from results.record import Record
from results.store import load
from results.tables import Cell, machine_line, render

RATES = {
    "training": "training_throughput",
    "inference": "inference_throughput",
    "batches": "inference_throughput",
    "latency": "inference_latency_p50",
    "end_to_end": "end_to_end_throughput",
    "loaders": "loader_throughput",
    "kernels": "kernel_throughput",
}
UNITS = {"latency": "seconds an image (p50)"}
# Training and validation images of an epoch, both taken at the rate of a training step: an upper bound of the time.
EPOCH = {"imagenet100": 126_689 + 5_000, "imagenet": 1_281_167 + 50_000}

# Part -> what a reader of its table must know.
NOTES = {
    "training": (
        "Roof and MFU are shares of this device's ceilings, a large matrix product and a large copy, measured in the "
        "same run. Roof: the shortest time that both allow over the time it took. MFU: counted FLOPs a second over "
        "those of the product alone."
    )
}
SHARES = {"roof": "roof_fraction", "MFU": "mfu"}
PROJECTED = (
    "Seconds of an epoch at the rate measured from JPEG to step on generated images, beside those that the studies "
    "published for their own code and hardware. No network was trained, so there is no accuracy."
)


def report(folder: Path) -> str:
    """Markdown: every rate, projected epochs, then the jobs that failed.

    Raises:
        RecordError: the folder holds no run of `make gpu`, or none of its records can be read.
    """
    done = outcomes(folder)
    records, unreadable = _records(folder, done)
    if not records:
        raise RecordError(f"{folder} holds no measured record; see {folder / OUTCOMES}")
    first = next(iter(records.values()))
    sections = [
        *((part.replace("_", " "), NOTES.get(part, ""), _rates(part, done, records)) for part in RATES),
        ("Projected epochs", PROJECTED, _projected(records)),
    ]
    failed: list[list[Cell]] = [[outcome.name, outcome.reason] for outcome in done if outcome.reason]
    failed += [[name, reason] for name, reason in unreadable.items()]
    if failed:
        sections.append(("Failed jobs", "", render(["job", "reason"], failed, "markdown")))
    parts = [
        f"# {_device(first)}",
        f"{machine_line(first)}. Made by `python -m bench.gpu report {folder.name}` from the files beside it.",
    ]
    for title, text, table in sections:
        if table:
            parts += [f"## {title}", *filter(None, [text]), table]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _records(folder: Path, done: Sequence[Outcome]) -> tuple[dict[str, Record], dict[str, str]]:
    """The records by their job's name, and why others cannot be read."""
    records: dict[str, Record] = {}
    unreadable: dict[str, str] = {}
    for outcome in done:
        if outcome.part in RATES and outcome.file:
            try:
                records[outcome.name] = load(folder / outcome.file)
            except RecordError as error:
                unreadable[outcome.name] = str(error)
    return records, unreadable


def _device(record: Record) -> str:
    """The name of the GPU, or of the processor of a rehearsal."""
    fingerprint = record.machine.get("fingerprint")
    return str(fingerprint.get("device") if isinstance(fingerprint, dict) else "unknown device")


def _rates(part: str, done: Sequence[Outcome], records: Mapping[str, Record]) -> str:
    """The rates of one part, a row for each operand; "" without any."""
    shares = SHARES if part == "training" else {}
    rows: list[list[Cell]] = []
    for outcome in done:
        record = records.get(outcome.name) if outcome.part == part else None
        metric = record.metric(RATES[part]) if record else None
        if record is None or metric is None:
            continue
        ratios = {ratio.of: ratio for ratio in metric.comparisons}
        for operand, value in metric.values.items():
            ratio = ratios.get(operand)
            rows.append(
                [
                    operand,
                    "" if metric.batch is None else metric.batch,
                    (value.missing or "") if value.median is None else _number(float(value.median)),
                    "" if ratio is None else f"{ratio.estimate:.2f}",
                    "" if ratio is None or ratio.low is None else f"[{ratio.low:.2f}, {ratio.high:.2f}]",
                    *(_share(record, name, operand) for name in shares.values()),
                ]
            )
    headers = ["operand", "batch", UNITS.get(part, "images/s"), "ratio to the first", "bounds", *shares]
    return render(headers, rows, "markdown") if rows else ""


def _share(record: Record, name: str, operand: str) -> str:
    metric = record.metric(name)
    value = metric.values.get(operand) if metric else None
    return "" if value is None or value.median is None else f"{value.median:.1%}"


def _projected(records: Mapping[str, Record]) -> str:
    """An epoch of every published run of a network that was fed here; "" without any."""
    from models.training import recipe

    rows: list[list[Cell]] = []
    for key in recipe.names():
        chosen = recipe.load(key)
        published, seconds = chosen.published, chosen.published.seconds_per_epoch
        record = records.get(f"end_to_end-{chosen.model}")
        metric = record.metric("end_to_end_throughput") if record else None
        rates = [value.median for value in metric.values.values() if value.median] if metric else []
        if not rates or chosen.data not in EPOCH or not seconds or key.endswith("-fast"):
            continue
        images = EPOCH[chosen.data]
        ours = images / max(rates)
        figures = (_number(max(rates)), _number(ours), _number(seconds))
        rows.append([key, images, *figures, published.hardware or "", f"{seconds / ours:.1f}"])
    headers = ["run", "images", "images/s", "seconds an epoch", "published", "on", "times as fast"]
    return render(headers, rows, "markdown") if rows else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
