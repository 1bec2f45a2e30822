"""The workloads that a repository's settings list, and workloads named loosely.

Imports no torch: a measuring process tells size and classes of a network where the settings do not.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.defaults import TRAINING_BATCH
from bench.errors import WorkloadError
from bench.timing.tasks import TASKS
from bench.timing.workload import METRIC, OWN, LoaderOutput, StepUnits, Workload
from models.configuration import Choice, Device
from models.project import Project, named
from results.verdict import margin_of

USUAL_SIZE = 224
LISTED = tuple(task for task in TASKS if task != "kernel")

# Names of networks -> {"size", "classes"} of each.
Describe = Callable[[Sequence[str]], Sequence[Mapping[str, int]]]


def listed(project: Project, device: Device, data: str, describe: Describe) -> dict[Workload, float]:
    """The workloads that a repository lists, each with the smallest relative change that matters.

    Args:
        data: name of the image set that loaders read.
        describe: tells size and classes of networks for which the settings do not.

    Raises:
        WorkloadError: a task that is none, or a key that it needs and lacks.
        ModelError: a configuration that cannot work on this device.
    """
    tables = [{"task": "inference", **table} for table in project.workloads]
    unknown = sorted(
        {table["model"] for table in tables if "model" in table and not {"size", "classes"} <= table.keys()}
    )
    described = dict(zip(unknown, describe(unknown), strict=True)) if unknown else {}
    found: dict[Workload, float] = {}
    for number, table in enumerate(tables, 1):
        where = f"workload {number} of {project.file and project.file.name}"
        task = table["task"]
        if task not in LISTED:
            raise WorkloadError(f"{where}: no task is called {task!r}; there are {', '.join(LISTED)}")
        subject = {"loading": "loader", "step": "step"}.get(task, "model")
        if subject not in table:
            raise WorkloadError(f"{where} names no {subject}")
        facts = {**described.get(table.get("model", ""), {}), **table}
        workload = _workload(task, table[subject], facts, device, data)
        if workload in found:
            raise WorkloadError(f"{where} is {workload.id} again")
        found[workload] = table.get("margin", margin_of(METRIC[task]))
    return found


def _workload(task: str, subject: str, facts: Mapping[str, Any], device: Device, data: str) -> Workload:
    batch = 1 if task == "latency" else facts.get("batch", TRAINING_BATCH[device.kind])
    size = facts.get("size", USUAL_SIZE)
    if task == "step":
        return Workload(task, subject, StepUnits(), 1, 1, device=device.kind)
    if task == "loading":
        own = named(subject).is_code
        output = OWN if own else LoaderOutput.from_text(facts.get("configuration", "float32"))
        return Workload(task, subject, output, batch, size, data="" if own else data, device=device.kind)
    training = task in ("training", "end_to_end")
    configuration = Choice.from_text(facts.get("configuration", "fast")).on(device, training)
    loader = facts.get("loader", "dali") if task == "end_to_end" else ""
    return Workload(
        task,
        subject,
        configuration,
        batch,
        size,
        facts["classes"],
        loader,
        data if loader and not named(loader).is_code else "",
        device.kind,
    )


def chosen(words: Sequence[str], known: Sequence[Workload]) -> list[Workload]:
    """The workloads that words name: whole ids, or what picks some of the known ones.

    A word picks those whose id it is a part of between slashes (`training`, `lenet`, `b8`), or that it matches as a
    pattern (`*/b8/*`).

    Raises:
        WorkloadError: it is no id and picks none; the known ones are listed.
    """
    found: list[Workload] = []
    for word in words:
        picked = [workload for workload in known if word == workload.id] or [
            workload for workload in known if _picks(word, workload)
        ]
        if not picked:
            try:
                picked = [Workload.from_id(word)]
            except WorkloadError as error:
                raise WorkloadError(
                    f"{word!r} is no workload's id and picks none of {', '.join(one.id for one in known) or 'none'}"
                ) from error
        found += [workload for workload in picked if workload not in found]
    return found


def _picks(word: str, workload: Workload) -> bool:
    if any(sign in word for sign in "*?"):
        # Brackets belong to names here.
        return fnmatch.fnmatchcase(workload.id, word.replace("[", "[[]"))
    subject, configuration = workload.subject, workload.configuration.text
    parts = {*workload.id.split("/"), subject, configuration, f"{subject}@{configuration}", subject.partition("[")[0]}
    return word in parts
