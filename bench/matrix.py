"""What `pytest bench` measures: models in configurations, loaders and kernels, chosen by options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.defaults import BATCH, IMAGES, MODELS, TRAINING_BATCH
from bench.errors import UsageError, WorkloadError
from bench.machine.cpu import usable_cores
from bench.machine.devices import choose_device
from bench.timing.images import data_name
from bench.timing.listed import listed
from bench.timing.tasks import TASKS
from bench.timing.workload import OWN, Conditions, KernelVariant, LoaderOutput, Workload
from kernels import catalogue
from loaders import engines
from models import zoo
from models.configuration import Configuration, Device, parse
from models.errors import ModelError
from models.names import split
from models.project import find, named

# The generated images; a smoke run makes a tiny set in a second.
SMOKE_IMAGES = 64


@dataclass(frozen=True)
class Matrix:
    """What was asked for, with every default filled in.

    Attributes:
        models: names in the zoo.
        configurations: presets or levers, each applied to every model.
        loaders: engines for the loading task; the first one that is not synthetic feeds end_to_end.
        device: where everything runs.
        batch: images a step of inference, loading and kernels.
        training_batch: images a step of training and end_to_end.
        size: height and width, 0 for each model's own.
        data: name of the image set, which is part of the id of whatever reads it.
        root: folder of the images; None for generated ones.
        threads: CPU threads.
        smoke: run each benchmark once, on little, and time nothing.
        listed: the workloads that the repository's settings list, which are measured where no model is named; empty
            otherwise.
    """

    models: tuple[str, ...]
    configurations: tuple[str, ...]
    loaders: tuple[str, ...]
    device: Device
    batch: int
    training_batch: int
    size: int
    data: str
    root: Path | None = None
    threads: int = 1
    smoke: bool = False
    listed: tuple[Workload, ...] = ()

    @classmethod
    def from_options(cls, option: Mapping[str, Any], smoke: bool) -> "Matrix":
        """From the options of bench.plugin.OPTIONS, by name.

        Raises:
            UsageError, ModelError, DataError, WorkloadError: an unknown name, or a device that is not here.
        """
        if option["device"] not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device is auto, cpu or cuda, not {option['device']!r}")
        device = choose_device(option["device"])
        project = find()
        place = option["data"] or (project.data and project.folder / project.data)
        root = Path(place) if place else None
        data = data_name(root, SMOKE_IMAGES if smoke else IMAGES)
        own = project.workloads and option["models"] == MODELS
        matrix = cls(
            models=_words(option["models"]),
            configurations=_words(option["configurations"]),
            loaders=_words(option["loaders"]),
            device=device_facts(device),
            batch=option["batch"] or (2 if smoke else BATCH[device]),
            training_batch=option["training-batch"] or (2 if smoke else TRAINING_BATCH[device]),
            size=option["size"] or (64 if smoke else 0),
            data=data,
            root=root,
            threads=option["threads"] or usable_cores(),
            smoke=smoke,
            listed=tuple(listed(project, device_facts(device), data, _described)) if own else (),
        )
        matrix.check()
        return matrix

    def check(self) -> None:
        """Refuse unknown words before anything is built.

        Raises:
            ModelError, DataError, WorkloadError: an unknown name, with near ones, or an impossible value.
        """
        for model in self.models:
            zoo.check(model)
        for engine in self.loaders:
            if named(engine).is_code:
                zoo.check(engine)
            else:
                engines.check(engine)
        if not self.models or not self.configurations or not self.loaders:
            raise WorkloadError("models, configurations and loaders each need at least one name")
        for task in TASKS:
            self.workloads(task)

    def workloads(self, task: str) -> list[Workload]:
        """The workloads of one task, each once: two presets may mean the same levers here.

        A smoke run builds each model, and trains the first. Compiling would take longer than the rest of it together:
        unless configurations are named, it compiles only the first model, for inference.

        Raises:
            ModelError: an unknown model, or a configuration that cannot work on this device.
        """
        if self.listed:
            return [workload for workload in self.listed if workload.task == task]
        chosen = [self]
        if self.smoke:
            first = replace(self, models=self.models[:1])
            named = self.configurations != ("fast",)
            if task == "inference":
                chosen = [self] if named else [replace(self, configurations=("naive",)), first]
            else:
                chosen = [first if named else replace(first, configurations=("naive",))]
        return list(dict.fromkeys(workload for matrix in chosen for workload in matrix._of(task)))

    def _of(self, task: str) -> list[Workload]:
        size, device = self.size or 224, self.device.kind
        if task == "step":
            # Only a repository's settings list steps.
            return []
        if task == "loading":
            # Steadier times, and the same process measures the networks' default.
            to = LoaderOutput(keep=self.device.glibc)
            return [
                Workload(task, name, OWN, self.batch, size, device=device)
                if named(name).is_code
                else Workload(task, name, to, self.batch, size, data=self.data, device=device)
                for name in self.loaders
            ]
        if task == "kernel":
            ways = kernels_for(device)
            return [Workload(task, name, KernelVariant(way), self.batch, size, device=device) for name, way in ways]
        configurations = self._resolved(task in ("training", "end_to_end"))
        return [self._network(task, model, each) for model in self.models for each in configurations]

    def _resolved(self, training: bool) -> list[Configuration]:
        resolved = []
        for text in self.configurations:
            # One that cannot run is refused; one that cannot train is left out of training.
            inference = parse(text, self.device, training=False)
            try:
                resolved.append(parse(text, self.device, training=True) if training else inference)
            except ModelError:
                continue
        return resolved

    def _network(self, task: str, model: str, configuration: Configuration) -> Workload:
        fed = task == "end_to_end"
        batch = self.training_batch if fed or task == "training" else self.batch
        return Workload(
            task,
            model,
            configuration,
            batch=1 if task == "latency" else batch,
            size=self.size or zoo.default_size(model),
            classes=zoo.default_classes(model),
            loader=next((name for name in self.loaders if name != "synthetic"), "synthetic") if fed else "",
            data=self.data if fed else "",
            device=self.device.kind,
        )

    @cached_property
    def conditions(self) -> Conditions:
        """The conditions of what reads no files."""
        return Conditions(threads=self.threads)

    @cached_property
    def reading(self) -> Conditions:
        """The conditions of what reads files; the images exist then, and all of them decode."""
        from loaders.datasets import open_dataset
        from loaders.images import require_readable
        from loaders.sample import default_sample

        root = self.root or default_sample(SMOKE_IMAGES if self.smoke else IMAGES)
        require_readable(open_dataset(root, "train"), self.threads)
        return replace(self.conditions, data_root=str(root))


def _described(names: Sequence[str]) -> Sequence[Mapping[str, int]]:
    return [{"size": zoo.default_size(name), "classes": zoo.default_classes(name)} for name in names]


def _words(text: str) -> tuple[str, ...]:
    """Names between commas; those inside the brackets of a name's arguments do not part it."""
    return tuple(word.strip() for word in split(text))


def device_facts(device: str) -> Device:
    """The facts of "cpu" or "cuda"; a CPU's need no torch."""
    if device == "cpu":
        return Device.from_cpu()
    from bench.timing.step import open_device
    from models import prepare

    return prepare.device_facts(open_device(device))


def kernels_for(device: str) -> tuple[tuple[str, str], ...]:
    """(kernel, implementation) for `device`: on a CPU only PyTorch, on a GPU also Triton and what it has to beat."""
    return tuple(
        (name, implementation)
        for name in catalogue.names()
        for implementation in catalogue.implementations(name)
        if device == "cuda" or implementation == "torch"
    )
