"""How many times as fast as `naive` the preset `fast` is, network by network: what a sweep found."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from results.lines import read_lines
from results.tables import Cell, render, to_json

TASKS = ("latency", "inference", "training")


@dataclass(frozen=True)
class Outcome:
    """One network.

    Attributes:
        network: its name.
        batch, training_batch: images a step in inference and in training.
        commit, device: of the record.
        started: Unix time, seconds.
        seconds: how long it took.
        rows: task -> "fast", what the preset stood for; "ratio", how many times as fast as naive, with "low" and "high"
            of its 95 % interval (None below six blocks); or "reason", why there is none.
    """

    network: str
    batch: int
    training_batch: int
    commit: str
    device: str
    started: float
    seconds: float
    rows: dict[str, dict[str, Any]]


def published() -> list[Outcome]:
    """What came with this version. Raises RecordError: it cannot be read."""
    files = sorted((Path(__file__).parent / "published").glob("*/presets.jsonl"))
    return [outcome for file in files for outcome in read_lines(Outcome, file)]


def summary(outcomes: Sequence[Outcome], format: str = "text") -> str:
    """A row for each network: how many times as fast as naive in each task; those with the lowest come first.

    Before them come those that have none in some task.
    """
    if format == "json":
        return to_json([asdict(outcome) for outcome in outcomes])
    rows: list[list[Cell]] = [
        [outcome.network, *(told(outcome.rows[task]) for task in TASKS)] for outcome in sorted(outcomes, key=_lowest)
    ]
    return render(["fast / naive", *TASKS], rows, format)


def _lowest(outcome: Outcome) -> float:
    return min(row.get("ratio") or 0.0 for row in outcome.rows.values())


def told(row: dict[str, Any]) -> str:
    """The ratio of a task with its interval, or why there is none."""
    if row.get("ratio") is None:
        return f"none ({row['reason']})"
    interval = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] is not None and row["high"] is not None else ""
    return f"{row['ratio']:.2f}{interval}"
