"""Which workloads a comparison consists of, in which groups and order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.comparing.operands import Operand
from bench.defaults import BATCH, TRAINING_BATCH
from bench.errors import UsageError
from bench.machine.cpu import usable_cores
from bench.machine.devices import choose_device, refuse_used_gpu
from bench.machine.tuned import Resolved
from bench.screen import Say
from bench.sides.crew import Needs
from bench.timing.images import find_data
from bench.timing.workload import Conditions, KernelVariant, LoaderOutput, Workload
from loaders import engines
from loaders.datasets import open_dataset
from loaders.identity import identify
from models.errors import ModelError

# Of a model, in the order in which they are measured: the cheapest and most asked for first.
MODEL_TASKS = ("latency", "inference", "loading", "training", "end_to_end")
LATENCIES = ("inference_latency_p50", "inference_latency_p90", "inference_latency_p99")
# What a loader or kernel works on where no size is named.
USUAL_SIZE = 224


@dataclass(frozen=True)
class Settings:
    """What the whole comparison is run with; stored with it, and equal when it is resumed.

    Attributes:
        device: "cpu" or "cuda".
        batch: images a step of inference and loading.
        training_batch: images a step of training and end to end.
        size: height and width in pixels; 0 is each model's own.
        classes: logits; 0 is each model's own.
        loader: engine that feeds end_to_end.
        threads, seed, images: see Conditions.
        data: name of the data set; its folder is not stored.
        data_fingerprint: of its images, wherever they lie; "" for generated ones and where none are read.
        rounds: turns of each side in a block; 0 is as many as fit into the time of a group.
        tasks: of models, which of MODEL_TASKS are measured, comma-separated; "" is all.
        energy: whether an image's energy is measured, which takes ten seconds an operand where there is a counter.
        beside: a key of bench.sides.load.LOADS: what else keeps the machine busy meanwhile.
    """

    device: str
    batch: int
    training_batch: int
    size: int
    classes: int
    loader: str
    threads: int
    seed: int
    images: int
    data: str
    rounds: int = 0
    tasks: str = ""
    energy: bool = True
    data_fingerprint: str = ""
    beside: str = "none"

    def has(self, task: str) -> bool:
        """Whether a task of models is measured."""
        return not self.tasks or task in self.tasks.split(",")


def chosen_tasks(text: str, operands: Sequence[Operand], device: str) -> str:
    """The tasks that `--tasks` names, in the order of MODEL_TASKS.

    Raises:
        UsageError: an unknown task, tasks of something that is no model, or none that an operand can do on a device.
    """
    tasks = [task for task in text.split(",") if task]
    wrong = [task for task in tasks if task not in MODEL_TASKS]
    if wrong:
        raise UsageError(f"--tasks has no {wrong[0]!r}; there are {', '.join(MODEL_TASKS)}")
    if tasks and operands[0].kind != "model":
        raise UsageError(f"--tasks is for models; {operands[0].label} is a {operands[0].kind}")
    if tasks and not {"latency", "inference"} & set(tasks):
        for operand in operands:
            try:
                operand.on(device, training=True)
            except ModelError as error:
                # Of a network that is not trained no loader feeds the training either.
                raise UsageError(f"{operand.label} can do none of --tasks {text}: {error}") from None
    return ",".join(task for task in MODEL_TASKS if task in tasks)


def reads_files(operands: Sequence[Operand], tasks: str) -> bool:
    """Whether images are read from disk."""
    return operands[0].kind != "kernel" and (not tasks or bool({"loading", "end_to_end"} & set(tasks.split(","))))


def open_device(device: str, force: bool) -> str:
    """The device to measure on, "cpu" or "cuda".

    Raises:
        WorkloadError: it is not here.
        UsageError: other processes use the GPU, and `force` is off.
    """
    chosen = choose_device(device)
    if chosen == "cuda" and not force:
        refuse_used_gpu()
    return chosen


def settings_from(
    operands: Sequence[Operand], device: str, options: Mapping[str, Any], say: Say, reads: bool | None = None
) -> tuple[Settings, Conditions]:
    """What the options of a command ask for: bench compare's, or those in bench.commands.options.network_options.

    Args:
        reads: whether images are read from disk; None follows from operands and tasks.

    Raises:
        UsageError, DataError: they make no sense together, or there are no images.
    """
    engines.check(options["loader"])
    tasks = chosen_tasks(options.get("tasks", ""), operands, device)
    name, root = "", Path()
    if reads_files(operands, tasks) if reads is None else reads:
        name, root = find_data(options["data"], say)
    settings = Settings(
        device=device,
        batch=options["batch"] or BATCH[device],
        training_batch=options.get("training_batch") or options["batch"] or TRAINING_BATCH[device],
        size=options["size"] or 0,
        classes=options["classes"] or 0,
        loader=options["loader"],
        threads=options["threads"] or usable_cores(),
        seed=options["seed"],
        images=options["images"],
        data=name,
        rounds=options.get("rounds") or 0,
        tasks=tasks,
        energy=options.get("energy", True),
        data_fingerprint=_fingerprint(options["data"]) if name and options["data"] else "",
        beside=options.get("beside", "none"),
    )
    conditions = Conditions(
        data_root=str(root.absolute()) if name else "",
        threads=settings.threads,
        seed=settings.seed,
        images=settings.images,
        on_bad_image=options.get("on_bad_image", "stop"),
    )
    return settings, conditions


def _fingerprint(folder: Path) -> str:
    dataset = open_dataset(folder, "train")
    return identify(dataset).fingerprint(dataset.classes)


@dataclass(frozen=True)
class Group:
    """Workloads measured in the same rounds.

    Attributes:
        name: for progress.
        workloads: operand label -> workloads that share one network; none where the operand cannot do them.
        metrics: names of the metrics that it gives.
    """

    name: str
    workloads: Mapping[str, tuple[Workload, ...]]
    metrics: tuple[str, ...]

    @property
    def homes(self) -> dict[str, str]:
        """Operand -> the process that holds it, see `homes`."""
        return homes({label: workloads[0] for label, workloads in self.workloads.items() if workloads})


def homes(workloads: Mapping[str, Workload]) -> dict[str, str]:
    """Side -> the process that holds it: sides share one unless a switch of the whole process differs.

    Loaders that are compared have one each: the threads that fill one's queue compete with the other's for the
    interpreter. So does a foreign engine, which has a team of threads of its own.
    """
    found: dict[str, str] = {}
    places: dict[tuple[str, ...], str] = {}
    for side, workload in workloads.items():
        if workload.task != "loading" and getattr(workload.configuration, "peer", None) is None:
            found[side] = places.setdefault(workload.process_wide, f"process {len(places) + 1}")
    return found


def needs(operands: Sequence[Operand], settings: Settings, reads_files: bool) -> Needs:
    """What every process will need: the operands are few, and often the same network."""
    models = {operand.subject for operand in operands if operand.kind == "model"}
    loaders = {operand.subject for operand in operands if operand.kind == "loader"}
    if models and reads_files:
        loaders.add(settings.loader)
    return Needs(
        tuple(sorted(models)),
        tuple(sorted(loaders)),
        training=bool(models),
        compiler=any(operand.may_compile(settings.device) for operand in operands),
    )


def groups(
    operands: Sequence[Operand],
    settings: Settings,
    resolved: Mapping[str, Resolved],
    costs: Mapping[str, Mapping[str, int]],
) -> list[Group]:
    """What is measured, cheapest and most asked for first.

    Args:
        resolved, costs: of each operand that is a model, by label.
    """

    def group(name: str, metrics: tuple[str, ...], of: Callable[[Operand], tuple[Workload, ...]]) -> Group:
        return Group(name, {operand.label: of(operand) for operand in operands}, metrics)

    def network(*tasks: str) -> Callable[[Operand], tuple[Workload, ...]]:
        return lambda o: network_workloads(o, tasks, settings, resolved[o.label], costs[o.label])

    def feeding(operand: Operand) -> tuple[Workload, ...]:
        """The loader alone, giving the batches that this operand's training step takes."""
        configuration = resolved[operand.label].of("training")
        if configuration is None:
            return ()
        output = LoaderOutput.feeding(configuration)
        return (replace(loader_workload(settings, settings.loader, output), size=costs[operand.label]["size"]),)

    def other(operand: Operand) -> tuple[Workload, ...]:
        if isinstance(operand.configuration, LoaderOutput):
            return (loader_workload(settings, operand.subject, operand.configuration),)
        assert isinstance(operand.configuration, KernelVariant)
        size = settings.size or USUAL_SIZE
        return (
            Workload("kernel", operand.subject, operand.configuration, settings.batch, size, device=settings.device),
        )

    kind = operands[0].kind
    if kind != "model":
        return [group("loading" if kind == "loader" else "kernel", (f"{kind}_throughput",), other)]
    has = settings.has
    # The same step on a constant batch takes its turns beside end_to_end: what feeding costs is their ratio.
    fed = has("end_to_end")
    training = ("training", "end_to_end") if fed else ("training",)
    trained = ("training_throughput", *(["end_to_end_throughput"] if fed else []), "training_peak_bytes")
    found = [
        has("latency") and group("latency", LATENCIES, network("latency")),
        has("inference") and group("inference", ("inference_throughput", "inference_peak_bytes"), network("inference")),
        has("loading") and group("loading", ("loader_throughput",), feeding),
        (fed or has("training")) and group("training", trained, network(*training)),
    ]
    return [one for one in found if one]


def network_workloads(
    operand: Operand, tasks: Sequence[str], settings: Settings, resolved: Resolved, cost: Mapping[str, int]
) -> tuple[Workload, ...]:
    """The workloads of a model that share one network; none where it cannot be trained and they train it."""
    configuration = resolved.of(tasks[0])
    if configuration is None:
        return ()
    training = "training" in tasks
    batch = 1 if tasks[0] == "latency" else settings.training_batch if training else settings.batch
    base = Workload(
        tasks[0], operand.subject, configuration, batch, cost["size"], cost["classes"], device=settings.device
    )
    fed = replace(base, task="end_to_end", loader=settings.loader, data=settings.data)
    return tuple(fed if task == "end_to_end" else replace(base, task=task) for task in tasks)


def loader_workload(settings: Settings, engine: str, output: LoaderOutput) -> Workload:
    """A loader on its own."""
    size = settings.size or USUAL_SIZE
    return Workload("loading", engine, output, settings.batch, size, data=settings.data, device=settings.device)
