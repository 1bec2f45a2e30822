"""Which workloads `pytest bench` measures: models in configurations, loaders, kernels. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import WorkloadError
from bench.timing.workload import TASKS, KernelVariant, LoaderOutput, Workload
from models import zoo
from models.configuration import Configuration, Device, parse
from models.errors import ModelError


@dataclass(frozen=True)
class Matrix:
    """What was asked for, with every default filled in.

    Attributes:
        models: names in the zoo.
        configurations: presets or levers, each applied to every model.
        loaders: engines for the loading task; the first one that is not synthetic feeds end_to_end.
        kernels: (kernel, implementation) pairs.
        device: "cpu" or "cuda".
        batch: images a step of inference, loading and kernels.
        training_batch: images a step of training and end_to_end.
        size: height and width, 0 for each model's own.
        data: name of the image set, which stands in the ids of whatever reads it.
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
        """The workloads of one task, without repetition: two presets may mean the same levers here.

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
        found = []
        for text in self.configurations:
            # Refused for inference means refused; refused for training only means that there is no such row.
            inference = parse(text, facts, training=False)
            try:
                found.append(parse(text, facts, training=True) if training else inference)
            except ModelError:
                continue
        return found

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
        """Find words that mean nothing before anything is built.

        Raises:
            ModelError, DataError, WorkloadError: an unknown name, with near ones, or an impossible value.
        """
        from loaders import engines

        for model in self.models:
            zoo.check(model)
        for engine in self.loaders:
            engines.check(engine)
        if not self.models or not self.configurations or not self.loaders:
            raise WorkloadError("models, configurations and loaders each need at least one name")
        for task in TASKS:
            self.workloads(task, facts)


def kernels_for(device: str) -> tuple[tuple[str, str], ...]:
    """Each kernel in every way that matters on `device`: Triton's needs a GPU, as does what it has to beat."""
    from kernels import catalogue

    return tuple(
        (name, implementation)
        for name in catalogue.names()
        for implementation in catalogue.implementations(name)
        if device == "cuda" or implementation == "torch"
    )


def data_name(root: Path | None, images: int) -> str:
    """The name of the image set without making it: of a folder, or of the generated set.

    Raises:
        DataError: there is no image in `root`.
    """
    if root is None:
        from loaders.sample import VERSION

        return f"sample-{VERSION}-{images}"
    from loaders.datasets import open_dataset

    return open_dataset(root, "train").name
