"""The table of a device, made from the files that `make gpu` left."""

import contextlib
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.parts import COMPILING
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


@dataclass(frozen=True)
class _Job:
    """How a job ended, and the folder of its file."""

    outcome: Outcome
    folder: Path


def report(runs: Sequence[Path]) -> str:
    """Markdown: every rate, trainings, projected epochs, then the jobs that failed.

    Args:
        runs: folders that `make gpu` filled, or their archives; of a job that is in several the last that left a file.

    Raises:
        RecordError: one of them holds no run of `make gpu`, or none of their records can be read.
    """
    with contextlib.ExitStack() as stack:
        jobs: dict[str, _Job] = {}
        for run in runs:
            folder = run if run.is_dir() else _unpacked(run, stack)
            for outcome in outcomes(folder):
                if outcome.file or outcome.name not in jobs or not jobs[outcome.name].outcome.file:
                    jobs[outcome.name] = _Job(outcome, folder)
        records, unreadable = _records(jobs)
        trained = _trained(jobs, unreadable)
    if not records and not trained:
        raise RecordError(f"{', '.join(map(str, runs))}: no measured record; see {OUTCOMES} there")
    done = [job.outcome for job in jobs.values()]
    sections = [
        *((part.replace("_", " "), NOTES.get(part, ""), _rates(part, done, records)) for part in RATES),
        ("CIFAR-10", "Compilation is not part of the seconds.", trained),
        ("Projected epochs", PROJECTED, _projected(records)),
    ]
    failed: list[list[Cell]] = [[outcome.name, outcome.reason] for outcome in done if outcome.reason]
    failed += [[name, reason] for name, reason in unreadable.items()]
    if failed:
        sections.append(("Failed jobs", "", render(["job", "reason"], failed, "markdown")))
    names = " ".join(run.name for run in runs)
    made = f"Made by `python -m bench.gpu report {names}`."
    first = next(iter(records.values()), None)
    # A training alone says nothing of its machine here.
    parts = [f"# {_device(first)}", f"{machine_line(first)}. {made}"] if first else ["# make gpu", made]
    for title, text, table in sections:
        if table:
            parts += [f"## {title}", *filter(None, [text]), table]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def packed(folder: Path, archive: Path) -> None:
    """Put every file of a folder into one archive: a host that is lent may give back only a few files."""
    draft = archive.with_name(f"{archive.name}.draft")
    with tarfile.open(draft, "w:gz") as made:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path not in (archive, draft):
                made.add(path, str(path.relative_to(folder)))
    draft.replace(archive)


def _unpacked(archive: Path, stack: contextlib.ExitStack) -> Path:
    """A folder with the files of an archive, while the stack is open."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gpu-")))
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise RecordError(f"{archive} cannot be unpacked: {str(error).splitlines()[0].rstrip(': ')}") from None
    return folder


def _records(jobs: Mapping[str, _Job]) -> tuple[dict[str, Record], dict[str, str]]:
    """The records by their job's name, and why others cannot be read."""
    records: dict[str, Record] = {}
    unreadable: dict[str, str] = {}
    for name, job in jobs.items():
        if job.outcome.part in RATES and job.outcome.file and not name.endswith(COMPILING):
            try:
                records[name] = load(job.folder / job.outcome.file)
            except RecordError as error:
                unreadable[name] = str(error)
    return records, unreadable


def _trained(jobs: Mapping[str, _Job], unreadable: dict[str, str]) -> str:
    """The trainings of part cifar; "" without any. Those that cannot be read are added to `unreadable`."""
    rows: list[list[Cell]] = []
    for name, job in jobs.items():
        if job.outcome.part != "cifar" or not job.outcome.file:
            continue
        try:
            for run in json.loads((job.folder / job.outcome.file).read_text(encoding="utf-8")):
                top1, seconds = run.get("top1"), run.get("train_seconds")
                figures = ("" if top1 is None else f"{top1:.2%}", "" if seconds is None else _number(seconds))
                rows.append([run["recipe"], run["epochs"], *figures, run["status"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable[name] = f"{type(error).__name__}: {error}"
    return render(["recipe", "epochs", "top-1", "seconds", "status"], rows, "markdown") if rows else ""


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
        # Of a kernel itself, or of a network with and without it.
        names = (RATES[part], *([RATES["training"], RATES["inference"]] if part == "kernels" else []))
        metric = next(filter(None, map(record.metric, names)), None) if record else None
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
