"""The table of a device, made of the files that `make gpu` left."""

from collections.abc import Sequence
from pathlib import Path

from bench.gpu.running import Outcome, outcomes
from bench.gpu.targets import Finding, find, targets
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


def report(folder: Path) -> str:
    """Markdown: every target with its figure, then every rate, then what did not end well.

    Raises:
        UsageError: the folder holds no run of `make gpu`.
        RecordError: it holds no record that can be read.
    """
    done = outcomes(folder)
    records, missing = _records(folder, done)
    if not records:
        raise RecordError(f"{folder} holds no measured record; see {folder / 'jobs.jsonl'}")
    first = next(iter(records.values()))
    device = _device(first)
    networks = tuple(dict.fromkeys(o.name.partition("-")[2] for o in done if o.part in ("training", "end_to_end")))
    found = [find(target, records, device, missing) for target in targets(networks)]
    rows = [_row(one) for one in found]
    parts = [
        f"# {device}",
        f"{machine_line(first)}. Made by `python -m bench.gpu report {folder.name}` of the files beside it. Ratios in "
        "the first table are those of two medians of one run in which all sides took turns.",
        "## Targets",
        render(["what", "wanted", "measured", "by", "met"], rows, "markdown"),
    ]
    for part, metric in RATES.items():
        table = _rates(part, metric, done, records)
        if table:
            parts += [f"## {part.replace('_', ' ')}", table]
    roof = _roof(done, records)
    if roof:
        parts += ["## Share of the device's ceilings in training", ROOF, roof]
    projected = _projected(records)
    if projected:
        parts += ["## Projected trainings", PROJECTED, projected]
    bad: list[list[Cell]] = [[one.name, one.reason] for one in done if one.reason]
    if bad:
        parts += ["## Not ended well", render(["job", "reason"], bad, "markdown")]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


PROJECTED = (
    "Seconds of an epoch from the rate measured from JPEG to step on generated images, beside those that the studies "
    "published for their own code and hardware. Not a training: accuracy takes one."
)

ROOF = (
    "Ceilings are a large matrix product and a large copy, measured in the same run. Roof: the shortest time that both "
    "allow over the time it took. MFU: counted FLOPs a second over those of the product alone."
)


def _roof(done: Sequence[Outcome], records: dict[str, Record]) -> str:
    """What part of the device's ceilings each training reached; "" without any."""
    rows: list[list[Cell]] = []
    for outcome in done:
        record = records.get(outcome.name) if outcome.part == "training" else None
        shares = [record.metric(name) for name in ("roof_fraction", "mfu")] if record else []
        for operand in record.operands if record else ():
            found = [metric.values.get(operand) if metric else None for metric in shares]
            if any(value is not None and value.median is not None for value in found):
                rows.append([operand, *(f"{value.median:.1%}" if value and value.median else "" for value in found)])
    return render(["operand", "roof", "MFU"], rows, "markdown") if rows else ""


def _projected(records: dict[str, Record]) -> str:
    """An epoch of every published run of a network that was fed here; "" without any."""
    from models.training import recipe

    rows: list[list[Cell]] = []
    recipes = {name: recipe.load(name) for name in recipe.names() if not name.endswith("-fast")}
    for name, record in records.items():
        metric = record.metric("end_to_end_throughput") if name.startswith("end_to_end-") else None
        known = [value.median for value in metric.values.values() if value.median] if metric else []
        for key, one in recipes.items():
            said = one.published
            if not known or name != f"end_to_end-{one.model}" or one.data not in EPOCH or not said.seconds_per_epoch:
                continue
            seconds = EPOCH[one.data] / max(known)
            rows.append(
                [
                    key,
                    EPOCH[one.data],
                    _number(max(known)),
                    _number(seconds),
                    _number(said.seconds_per_epoch),
                    said.hardware or "",
                    f"{said.seconds_per_epoch / seconds:.1f}",
                ]
            )
    headers = ["run", "images", "images/s", "seconds an epoch", "published", "on", "times as fast"]
    return render(headers, rows, "markdown") if rows else ""


def _records(folder: Path, done: Sequence[Outcome]) -> tuple[dict[str, Record], dict[str, str]]:
    """Records by name, and why others are not there."""
    records: dict[str, Record] = {}
    missing: dict[str, str] = {}
    for one in done:
        if one.part in ("compile", "tests", "decoding"):
            continue
        if not one.file:
            missing[one.name] = one.reason or "it wrote nothing"
            continue
        try:
            records[one.name] = load(folder / one.file)
        except RecordError as error:
            missing[one.name] = one.reason or str(error)
    return records, missing


def _device(record: Record) -> str:
    """The name of the GPU, or of the processor of a rehearsal."""
    fingerprint = record.machine.get("fingerprint")
    return str(fingerprint.get("device") if isinstance(fingerprint, dict) else "unknown device")


def _row(one: Finding) -> list[Cell]:
    measured = one.missing if one.value is None else _number(one.value)
    if one.low is not None and one.high is not None:
        measured += f" [{_number(one.low)}, {_number(one.high)}]"
    sign = "at least" if one.target.better == "higher" else "at most"
    wanted = "-" if one.wanted is None else f"{sign} {_number(one.wanted)}"
    met = "-" if one.met is None else "yes" if one.met else "no"
    return [one.target.what, wanted, measured, one.operand.partition("@")[2], met]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rates(part: str, metric: str, done: Sequence[Outcome], records: dict[str, Record]) -> str:
    """One part's figures, a row for each operand; "" without any."""
    rows: list[list[Cell]] = []
    for outcome in done:
        record = records.get(outcome.name) if outcome.part == part else None
        found = record.metric(metric) if record else None
        if found is None:
            continue
        ratios = {ratio.of: ratio for ratio in found.comparisons}
        for operand, value in found.values.items():
            ratio = ratios.get(operand)
            rows.append(
                [
                    operand,
                    found.batch if found.batch is not None else "",
                    (value.missing or "") if value.median is None else _number(float(value.median)),
                    "" if ratio is None else f"{ratio.estimate:.2f}",
                    "" if ratio is None or ratio.low is None else f"[{ratio.low:.2f}, {ratio.high:.2f}]",
                ]
            )
    unit = UNITS.get(part, "images/s")
    return render(["operand", "batch", unit, "ratio to the first", "bounds"], rows, "markdown") if rows else ""
