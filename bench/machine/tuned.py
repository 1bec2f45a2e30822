"""What `bench tune` found, remembered: for a machine, a model and a task the configuration that was fastest."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from loaders.cache import cache_folder
from results.store import write_whole

NAME = "tuned"
TASKS = ("latency", "inference", "training", "loading")
# Of a fingerprint: with another of these, another configuration may be the fastest.
FIELDS = ("device", "cpu", "cpu_features", "cores", "compiler", "torch", "cuda")


@dataclass(frozen=True)
class Winner:
    """One remembered configuration.

    Attributes:
        model: or, for loading, the loader.
        task: one of TASKS.
        configuration: levers, as after '@'; of a loader DTYPE-LAYOUT-wN-pN.
        batch: images a step at which its rate was the highest.
        ratio, low, high: how many times as fast as `fast` it was in the last duel; 1 where `fast` itself won.
        error: root mean square distance of its logits from plain fp32's, as a share of their spread; None where that
            is not a number of the task.
        machine: FIELDS of the fingerprint.
        created: ISO 8601, UTC.
    """

    model: str
    task: str
    configuration: str
    batch: int
    ratio: float
    low: float | None
    high: float | None
    error: float | None
    machine: Mapping[str, Any]
    created: str


def path() -> Path:
    """The file that holds them."""
    return cache_folder() / "tuned.json"


def fields(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What of a described machine a winner holds for."""
    fingerprint = machine.get("fingerprint") or {}
    return {name: fingerprint.get(name) for name in FIELDS}


def remember(winner: Winner) -> Path:
    """Keep a winner in place of an older one of the same machine, model and task. Raises RecordError."""
    kept = {**_known(), _key(winner.machine, winner.model, winner.task): asdict(winner)}
    write_whole(path(), (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
    return path()


def recall(machine: Mapping[str, Any], model: str, task: str) -> Winner | None:
    """The winner for a described machine, None where none was found; a damaged entry is none."""
    found = _known().get(_key(fields(machine), model, task))
    try:
        return Winner(**found) if found is not None else None
    except TypeError:
        return None


def _key(machine: Mapping[str, Any], model: str, task: str) -> str:
    digest = hashlib.sha256(json.dumps(dict(machine), sort_keys=True).encode()).hexdigest()[:16]
    return f"{digest}/{model}/{task}"


def _known() -> dict[str, Any]:
    try:
        read = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def is_tuned(configuration: str) -> bool:
    """Whether a configuration's first word asks for what was remembered."""
    return configuration.split("-")[0] == NAME


def in_words(configuration: str, model: str, task: str, machine: Mapping[str, Any]) -> str:
    """The configuration with `tuned` replaced by what it stands for; another one as it is.

    Raises:
        UsageError: this model was not tuned for the task on this machine.
    """
    if not is_tuned(configuration):
        return configuration
    winner = recall(machine, model, task)
    if winner is None:
        raise UsageError(f"{model} has not been tuned for {task} on this machine; run: bench tune {model}")
    return "-".join([winner.configuration, *configuration.split("-")[1:]])


def levers(
    ask: Callable[..., Mapping[str, Any]], device: str, model: str, configuration: str, machine: Mapping[str, Any]
) -> dict[str, str]:
    """Levers of a model's configuration by task: "latency", "inference" and "training", or "training_missing".

    Args:
        ask: of a measuring process, see bench.sides.process.Worker.ask.

    Raises:
        UsageError: `tuned` was asked for and nothing is remembered of the model.
        ModelError: no such configuration here.
    """
    if not is_tuned(configuration):
        found: dict[str, str] = dict(ask("resolve", device=device, configurations=[configuration])[configuration])
        return {"latency": found["inference"], **found}
    known = {task: recall(machine, model, task) for task in ("latency", "inference", "training")}
    if not any(known.values()):
        raise UsageError(f"{model} has not been tuned on this machine; run: bench tune {model}")
    more = configuration.split("-")[1:]
    texts = {task: "-".join([winner.configuration if winner else "fast", *more]) for task, winner in known.items()}
    answers = ask("resolve", device=device, configurations=sorted(set(texts.values())))
    chosen = {task: answers[texts[task]]["inference"] for task in ("latency", "inference")}
    training = answers[texts["training"]]
    return chosen | {key: training[key] for key in ("training", "training_missing") if key in training}


def untuned(model: str, machine: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    """Of these tasks the ones that `tuned` stands for `fast` in, since nothing is remembered."""
    return [task for task in tasks if task != "loading" and recall(machine, model, task) is None]
