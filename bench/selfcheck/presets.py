"""Whether `fast` is ever slower than `naive`: a short `bench compare` of the two for each network.

Each network's outcome is a JSON line, on the disk before the next begins, so that an interrupted sweep can go on.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.processes import SOURCE
from bench.screen import Say
from bench.timing.workload import METRIC
from results.errors import RecordError
from results.lines import LineFile, read_lines
from results.presets import TASKS, Outcome, told
from results.record import Metric
from results.store import load
from results.tables import plural

INTERRUPTED = 130  # exit code


def run_once(network: str, batch: int, training_batch: int, budget: float, timeout: float) -> Outcome:
    """One comparison, to its end."""
    started, begin = time.time(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-selfcheck-", ignore_cleanup_errors=True) as folder:
        output = Path(folder) / "record.json"
        words = [
            *("compare", f"{network}@naive", f"{network}@fast", "--tasks", ",".join(TASKS)),
            *("--batch", str(batch), "--training-batch", str(training_batch), "--budget", f"{budget:g}"),
            *("--no-energy", "--format", "json", "-o", str(output), "--store", folder),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BENCH_")}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "bench", *words],
                env={**environment, "PYTHONPATH": str(SOURCE)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            if done.returncode == INTERRUPTED:
                raise KeyboardInterrupt
            said = (done.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            said = f"did not end within {timeout:.0f} s"
        commit = device = ""
        rows: dict[str, dict[str, Any]] = {task: {"reason": said} for task in TASKS}
        try:
            record = load(output)
        except RecordError:
            pass
        else:
            commit = str((record.commit or {}).get("sha", ""))
            device = str(record.machine.get("fingerprint", {}).get("device", ""))
            metrics = {metric.name: metric for metric in record.metrics}
            rows |= {
                task: row_of(metrics[METRIC[task]], f"{network}@fast") for task in TASKS if METRIC[task] in metrics
            }
    return Outcome(network, batch, training_batch, commit, device, started, time.monotonic() - begin, rows)


def row_of(metric: Metric, fast: str) -> dict[str, Any]:
    """What a metric says of `fast`, the second operand."""
    if metric.ratio is None or metric.ratio.estimate is None:
        # What a side had no number for says more than how the other one was measured.
        missing = dict.fromkeys(value.missing for value in metric.values.values() if value.missing is not None)
        return {"reason": "; ".join(missing or metric.notes) or "it could not be measured"}
    found = [metric.ratio.estimate, metric.ratio.low, metric.ratio.high]
    if metric.better == "lower":
        # Of times; told as a speed.
        found = [None if value is None else 1 / value for value in (found[0], found[2], found[1])]
    levers = metric.workloads.get(fast, "").partition("@")[2].partition("/")[0]
    return {"fast": levers, **dict(zip(("ratio", "low", "high"), found, strict=True))}


def sweep(
    path: Path,
    networks: Sequence[str],
    batch: int,
    training_batch: int,
    budget: float,
    seconds: float,
    say: Say,
    timeout: float = 3600.0,
    once: Callable[..., Outcome] = run_once,
) -> list[Outcome]:
    """Compare every network that `path` does not hold yet; all outcomes in it.

    Args:
        seconds: after which no further network is begun.

    Raises:
        RecordError: the file is of another kind, or cannot be written.
    """
    begin = time.monotonic()
    outcomes = read_lines(Outcome, path) if path.exists() else []
    done = {outcome.network for outcome in outcomes}
    left = [network for network in networks if network not in done]
    with LineFile(path) as file:
        for number, network in enumerate(left, 1):
            if time.monotonic() - begin > seconds:
                say(f"{plural(len(left) - number + 1, 'network')} left; the same command goes on")
                break
            outcome = once(network, batch, training_batch, budget, timeout)
            file.add(outcome)
            outcomes.append(outcome)
            found = ", ".join(f"{task} {told(row)}" for task, row in outcome.rows.items())
            say(f"{number} of {len(left)}: {network}: {found}; {outcome.seconds:.0f} s")
    return outcomes
