"""What `pytest bench` measures: models in configurations, loaders and kernels, as its options choose them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.errors import UsageError, WorkloadError
from bench.machine.cpu import usable_cores
from bench.machine.devices import choose_device
from bench.timing.workload import TASKS, Conditions, KernelVariant, LoaderOutput, Workload
from loaders import engines
from models import zoo
from models.configuration import Configuration, Device, parse
from models.errors import ModelError

# The generated images; a smoke run makes a tiny set in a second.
IMAGES, SMOKE_IMAGES = 1000, 64


@dataclass(frozen=True)
class Matrix:
    """The workloads that were asked for, with every default filled in.

    Attributes:
        models: names in the zoo.
        configurations: presets or levers, each applied to every model.
        loaders: engines for the loading task; the first one that is not synthetic feeds end_to_end.
        kernels: (kernel, implementation) pairs.
        device: "cpu" or "cuda".
        batch: images a step of inference, loading and kernels.
        training_batch: images a step of training and end_to_end.
        size: height and width, 0 for each model's own.
        data: name of the image set, which is part of the id of whatever reads it.
    """

    models: tuple[str, ...]
    configurations: tuple[str, ...]
    loaders: tuple[str, ...]
    kernels: tuple[tuple[str, str], ...]
    device: str
    batch: int
    training_batch: int
    size: int
    data: str

    def workloads(self, task: str, facts: Device) -> list[Workload]:
        """The workloads of one task, each once: two presets may mean the same levers here.

        Raises:
            ModelError: an unknown model, or a configuration that cannot work on this device.
        """
        if task == "loading":
            made: Iterable[Workload] = map(self._loading, self.loaders)
        elif task == "kernel":
            made = (self._kernel(name, implementation) for name, implementation in self.kernels)
        else:
            made = (
                self._network(task, model, configuration)
                for model in self.models
                for configuration in self._resolved(task in ("training", "end_to_end"), facts)
            )
        return list(dict.fromkeys(made))

    def _resolved(self, training: bool, facts: Device) -> list[Configuration]:
        resolved = []
        for text in self.configurations:
            # One that cannot run is refused; one that cannot train is left out of training.
            inference = parse(text, facts, training=False)
            try:
                resolved.append(parse(text, facts, training=True) if training else inference)
            except ModelError:
                continue
        return resolved

    def _network(self, task: str, model: str, configuration: Configuration) -> Workload:
        training = task in ("training", "end_to_end")
        fed = task == "end_to_end"
        return Workload(
            task,
            model,
            configuration,
            batch=1 if task == "latency" else self.training_batch if training else self.batch,
            size=self.size or zoo.default_size(model),
            classes=zoo.default_classes(model),
            loader=next((name for name in self.loaders if name != "synthetic"), "synthetic") if fed else "",
            data=self.data if fed else "",
            device=self.device,
        )

    def _loading(self, engine: str) -> Workload:
        return Workload(
            "loading", engine, LoaderOutput(), self.batch, self.size or 224, data=self.data, device=self.device
        )

    def _kernel(self, name: str, implementation: str) -> Workload:
        return Workload("kernel", name, KernelVariant(implementation), self.batch, self.size or 224, device=self.device)

    def check(self, facts: Device) -> None:
        """Refuse unknown words before anything is built.

        Raises:
            ModelError, DataError, WorkloadError: an unknown name, with near ones, or an impossible value.
        """
        for model in self.models:
            zoo.check(model)
        for engine in self.loaders:
            engines.check(engine)
        if not self.models or not self.configurations or not self.loaders:
            raise WorkloadError("models, configurations and loaders each need at least one name")
        for task in TASKS:
            self.workloads(task, facts)


@dataclass(frozen=True)
class Survey:
    """What to measure, and under which conditions.

    Attributes:
        matrix: the workloads.
        conditions: what they all share.
        root: folder of the images; None for generated ones.
        images: how many to generate.
        smoke: run each benchmark once, on little, and time nothing.
        compiles: a smoke run compiles the first model, since the user named no configurations.
    """

    matrix: Matrix
    conditions: Conditions
    root: Path | None
    images: int
    smoke: bool
    compiles: bool

    @classmethod
    def from_options(cls, option: Mapping[str, Any], smoke: bool) -> "Survey":
        """From the options of bench.plugin.OPTIONS, by name.

        Raises:
            UsageError, ModelError, DataError, WorkloadError: an unknown name, or a device that is not here.
        """
        if option["device"] not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device is auto, cpu or cuda, not {option['device']!r}")
        device = choose_device(option["device"])
        cuda = device == "cuda"
        root = Path(option["data"]) if option["data"] else None
        images = SMOKE_IMAGES if smoke else IMAGES
        models, configurations, loaders = (_words(option[name]) for name in ("models", "configurations", "loaders"))
        compiles = smoke and configurations == ("fast",)
        matrix = Matrix(
            models=models,
            # Compiling takes longer than the rest of a smoke run together.
            configurations=("naive",) if compiles else configurations,
            loaders=loaders,
            kernels=kernels_for(device),
            device=device,
            batch=option["batch"] or (2 if smoke else 256 if cuda else 32),
            training_batch=option["training-batch"] or (2 if smoke else 256 if cuda else 8),
            size=option["size"] or (64 if smoke else 0),
            data=data_name(root, images),
        )
        survey = cls(matrix, Conditions(threads=option["threads"] or usable_cores()), root, images, smoke, compiles)
        matrix.check(survey.facts)
        return survey

    @cached_property
    def facts(self) -> Device:
        """The facts of the device, which presets depend on."""
        if self.matrix.device == "cpu":
            return Device.from_cpu()
        from bench.timing.step import open_device
        from models.prepare import device_facts

        return device_facts(open_device(self.matrix.device))

    def workloads(self, task: str) -> list[Workload]:
        """The workloads of one task. A smoke run builds each model, and compiles and trains the first."""
        if not self.smoke:
            return self.matrix.workloads(task, self.facts)
        first = replace(self.matrix, models=self.matrix.models[:1])
        if task != "inference":
            return first.workloads(task, self.facts)
        workloads = self.matrix.workloads(task, self.facts)
        if self.compiles:
            workloads += replace(first, configurations=("fast",)).workloads(task, self.facts)
        return list(dict.fromkeys(workloads))

    @cached_property
    def reading(self) -> Conditions:
        """The conditions of what reads files; the images exist then, and all of them decode."""
        from loaders.datasets import open_dataset
        from loaders.images import require_readable
        from loaders.sample import default_sample

        root = self.root or default_sample(self.images)
        require_readable(open_dataset(root, "train"), self.conditions.threads)
        return replace(self.conditions, data_root=str(root))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def kernels_for(device: str) -> tuple[tuple[str, str], ...]:
    """(kernel, implementation) for `device`: on a CPU only PyTorch, on a GPU also Triton and what it has to beat."""
    from kernels import catalogue

    return tuple(
        (name, implementation)
        for name in catalogue.names()
        for implementation in catalogue.implementations(name)
        if device == "cuda" or implementation == "torch"
    )


def data_name(root: Path | None, images: int) -> str:
    """The name of the image set, without making it: of a folder, or of the generated set.

    Raises:
        DataError: there is no image in `root`.
    """
    if root is None:
        from loaders.sample import VERSION

        return f"sample-{VERSION}-{images}"
    from loaders.datasets import open_dataset

    return open_dataset(root, "train").name
