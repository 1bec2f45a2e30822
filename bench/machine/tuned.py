"""What `bench tune` found, remembered: the fastest configuration of a model for a task on a machine."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from loaders.cache import cache_folder, updating
from models.configuration import PEERS, Choice, Configuration, Device, levers
from models.errors import ModelError
from results.store import write_whole

NETWORK_TASKS = ("latency", "inference", "training")
# Of a fingerprint: with another of these, or with more levers to choose from, another configuration may be faster.
FIELDS = ("device", "cpu", "cpu_features", "cores", "compiler", "torch", "cuda")


@dataclass(frozen=True)
class Winner:
    """One remembered configuration.

    Attributes:
        model: or, for loading, the loader.
        task: one of NETWORK_TASKS, or loading.
        configuration: levers, as after '@'; of a loader DTYPE-LAYOUT-wN-pN.
        batch: images a step at which its rate was the highest.
        ratio, low, high: how many times as fast as `fast` it was in the last duel; 1 where `fast` itself won.
        error: root mean square distance of its logits from plain fp32's, as a share of their spread; None where that
            is not a number of the task.
        machine: FIELDS of the fingerprint, and the levers there were.
        created: ISO 8601, UTC.
        alone: where another engine than torch won, the fastest configuration that needs none.
        threads: fewer than there are cores, with which it is faster still; 0 where it is not.
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
    alone: str = ""
    threads: int = 0

    def start(self, choice: Choice) -> Configuration:
        """The configuration that `tuned` stands for in a choice.

        Of another engine only the precision can be chosen; for its other levers, and where that engine is not
        installed, `tuned` is the fastest without it.
        """
        found = Configuration.from_text(self.configuration)
        if found.peer is None or not self.alone:
            return found
        peer, changes = PEERS[found.peer], {name: value for name, value in choice.changes.items() if name != "peer"}
        fits = all(name == "precision" and value in peer.precisions for name, value in changes.items())
        return found if fits and peer.installed else Configuration.from_text(self.alone)


def path() -> Path:
    """The file that holds them."""
    return cache_folder() / "tuned.json"


def fields(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What of a described machine a winner holds for."""
    fingerprint = machine.get("fingerprint") or {}
    return {**{name: fingerprint.get(name) for name in FIELDS}, "levers": " ".join(levers())}


def remember(winner: Winner) -> Path:
    """Keep a winner in place of an older one of the same machine, model and task. Raises DataError, RecordError."""
    # Alone: what another process remembers between this one's reading and writing would be lost.
    with updating(path()):
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


def tuned_configuration(choice: Choice, model: str, task: str, machine: Mapping[str, Any]) -> Configuration | None:
    """The configuration that `tuned` stands for, None where it was not asked for.

    Raises:
        UsageError: it was, and this model was not tuned for the task on this machine.
    """
    if not choice.tuned:
        return None
    winner = recall(machine, model, task)
    if winner is None:
        raise UsageError(f"{model} has not been tuned for {task} on this machine; run: bench tune {model}")
    return winner.start(choice)


@dataclass(frozen=True)
class Resolved:
    """What a choice of configuration comes to for a model on a device.

    Attributes:
        configurations: by task: latency, inference and, where it can be trained, training.
        training_missing: why it cannot be trained, "" if it can.
    """

    configurations: Mapping[str, Configuration]
    training_missing: str = ""

    def of(self, task: str) -> Configuration | None:
        """The configuration of a task; a step that a loader feeds is a training step."""
        return self.configurations.get("training" if task == "end_to_end" else task)


def resolve(choice: Choice, device: Device, model: str, machine: Mapping[str, Any]) -> Resolved:
    """What a choice comes to for each task of a model; `tuned` is `fast` in tasks for which nothing is remembered.

    Raises:
        UsageError: `tuned` was asked for and nothing at all is remembered of the model.
        ModelError: it cannot work here.
    """
    known = {task: recall(machine, model, task) for task in NETWORK_TASKS} if choice.tuned else {}
    if choice.tuned and not any(known.values()):
        raise UsageError(f"{model} has not been tuned on this machine; run: bench tune {model}")
    configurations: dict[str, Configuration] = {}
    missing = ""
    for task in NETWORK_TASKS:
        training = task == "training"
        winner = known.get(task)
        wanted = choice if winner or not choice.tuned else replace(choice, preset="fast")
        try:
            start = winner.start(choice) if winner else None
            configurations[task] = wanted.on(device, training, start)
        except ModelError as error:
            if not training:
                raise
            missing = str(error)
    return Resolved(configurations, missing)


def doubts(choice: Choice, model: str, machine: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    """Where `tuned` is not what won: a sentence for each of the tasks."""
    for task in [task for task in tasks if task in NETWORK_TASKS and choice.tuned]:
        winner = recall(machine, model, task)
        if winner is None:
            yield f"{model} was not tuned for {task} on this machine: measured as fast"
            continue
        peer = Configuration.from_text(winner.configuration).peer
        if peer is not None and not PEERS[peer].installed:
            yield f"{model} is fastest for {task} in {peer}, which is not installed any more: measured without it"
