"""Stored runs of three workloads over forty days, as files."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from results import store
from results.record import Metric, Record, Value

TRAINING = "training/lenet@fp32-nchw-eager/b8/s32/c10/cpu"
INFERENCE = "inference/lenet@fp32-nchw-eager/b8/s32/c10/cpu"
LOADING = "loading/pil@float32-nhwc/b8/s32/sample-2-100/cpu"
NAMES = {TRAINING: "training_throughput", INFERENCE: "inference_throughput", LOADING: "loader_throughput"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def record(day: int, seconds: Mapping[str, float], machine: str = "m", reference: float | None = None) -> Record:
    metrics = tuple(
        Metric.named(
            NAMES[id],
            {"head": Value.counted(8 / time)},
            batch=8,
            workloads={"head": id},
            pairs=[[{"head": time * (1 + 0.001 * i)} for i in (-1, 0, 1)]] * 6,
        )
        for id, time in seconds.items()
    )
    return Record(
        kind="check",
        created=(START + timedelta(days=day)).isoformat(),
        command="bench check",
        commit={"sha": f"{day:02d}" + "a" * 38, "dirty": False},
        machine={"fingerprint": {"device": machine}},
        operands=("head",),
        metrics=metrics,
        settings={} if reference is None else {"reference": {"id": "matmul", "seconds": reference}},
    )


def fill(folder: Path) -> Path:
    """Forty runs: training is 10 % slower from the twentieth on, loading 20 % faster, inference as it was."""
    for day in range(40):
        wave = 1 + 0.002 * (day % 5)
        times = {
            INFERENCE: 0.010 * wave,
            TRAINING: 0.020 * wave * (1.1 if day >= 20 else 1),
            LOADING: 0.030 * wave * (0.8 if day >= 25 else 1),
        }
        store.save(record(day, times), folder / f"{day:02d}.json")
    return folder
