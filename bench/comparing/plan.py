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
from bench.sides.process import Worker
from bench.timing.images import find_data
from bench.timing.tasks import MODEL_TASKS
from bench.timing.tasks import named as named_tasks
from bench.timing.workload import OWN, Conditions, KernelVariant, LoaderOutput, StepUnits, Workload
from loaders import engines
from loaders.datasets import open_dataset
from loaders.identity import identify
from models import zoo
from models.configuration import ONLY_INFERS
from models.errors import ModelError
from models.project import named

INFERRING = ("latency", "inference")
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
        units: what a call of a step works through, "" where only calls are counted.
        weights: see Conditions.
        quick: only first estimates are wanted, of what is not compiled.
        over: what is varied from operand to operand, "batch=1,2,4"; "" for nothing.
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
    units: str = ""
    weights: str = ""
    quick: bool = False
    over: str = ""

    def at(self, operand: Operand) -> "Settings":
        """The settings of one operand, where one of them is varied."""
        if operand.over is None:
            return self
        key, value = operand.over
        changes: dict[str, Any] = {key: value} | ({"training_batch": value} if key == "batch" else {})
        return replace(self, **changes)

    def has(self, task: str) -> bool:
        """Whether a task of models is measured."""
        return not self.tasks or task in self.tasks.split(",")


def chosen_tasks(text: str, operands: Sequence[Operand], device: str) -> str:
    """The tasks that `--tasks` names, in the order of MODEL_TASKS; of exported files alone those that they can do.

    Raises:
        UsageError: an unknown task, tasks of something that is no model, or none that an operand can do on a device.
    """
    tasks = named_tasks(text, MODEL_TASKS)
    if tasks and operands[0].kind != "model":
        raise UsageError(f"--tasks is for models; {operands[0].label} is a {operands[0].kind}")
    if all(operand.kind == "model" and zoo.is_exported(operand.subject) for operand in operands):
        if not set(tasks) <= {*INFERRING}:
            raise UsageError(f"{ONLY_INFERS}: --tasks {','.join(INFERRING)}")
        tasks = tasks or list(INFERRING)
    if tasks and not {*INFERRING} & set(tasks):
        for operand in operands:
            try:
                operand.on(device, training=True)
            except ModelError as error:
                # Of a network that is not trained no loader feeds the training either.
                raise UsageError(f"{operand.label} can do none of --tasks {text}: {error}") from None
    return ",".join(task for task in MODEL_TASKS if task in tasks)


def check_over(options: Mapping[str, Any], key: str) -> None:
    """Raise UsageError if what is varied is fixed by another option too, or a task that is asked for has one value."""
    for name in ("batch", "training_batch") if key == "batch" else (key,):
        if options.get(name):
            raise UsageError(f"--over {key} and --{name.replace('_', '-')} contradict each other; leave one out")
    if key == "batch" and "latency" in named_tasks(options.get("tasks", ""), MODEL_TASKS):
        raise UsageError("latency is of one image at a time; --over batch shows how long a batch takes in inference")


def reads_files(operands: Sequence[Operand], tasks: str, loader: str) -> bool:
    """Whether images are read from disk by a loader of ours."""
    kind = operands[0].kind
    if kind == "loader":
        return any(operand.configuration != OWN for operand in operands)
    fed = not tasks or bool({"loading", "end_to_end"} & set(tasks.split(",")))
    return kind == "model" and fed and not named(loader).is_code


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
    loader, units = options["loader"], options.get("units") or ""
    if named(loader).is_code:
        zoo.check(loader)
    else:
        engines.check(loader)
    if units:
        StepUnits.from_text(units)
        if operands[0].kind != "step":
            raise UsageError(f"--units is for steps; {operands[0].label} is a {operands[0].kind}")
    over, chosen = options.get("over") or "", options.get("tasks", "")
    if over and operands[0].kind == "model":
        # Each value is a program of its own: what most people ask first is told first.
        chosen = chosen or "inference"
    tasks = chosen_tasks(chosen, operands, device)
    name, root = "", Path()
    if reads_files(operands, tasks, loader) if reads is None else reads and not named(loader).is_code:
        name, root = find_data(options["data"], say)
    weights = options.get("weights") or ""
    if weights and all(operand.kind != "model" or zoo.has_weights(operand.subject) for operand in operands):
        raise UsageError(f"--weights is for networks that come without weights; {operands[0].label} needs none")
    # A file that takes batches of one size decides which; another network then takes the same.
    fixed = [operand for operand in operands if operand.batch]
    batch = options["batch"] or (fixed[0].batch if fixed else BATCH[device])
    for operand in fixed if not tasks or "inference" in tasks else ():
        if operand.batch != (operand.over[1] if over.startswith("batch=") and operand.over else batch):
            raise UsageError(
                f"{operand.subject} takes batches of {operand.batch}: give --batch {operand.batch}, or export it with "
                "--dynamic-batch"
            )
    if fixed and not options["batch"]:
        say(f"--batch {batch}: {fixed[0].subject} takes no other")
    settings = Settings(
        device=device,
        batch=batch,
        training_batch=options.get("training_batch") or options["batch"] or TRAINING_BATCH[device],
        size=options["size"] or 0,
        classes=options["classes"] or 0,
        loader=loader,
        threads=options["threads"] or usable_cores(),
        seed=options["seed"],
        images=options["images"],
        data=name,
        rounds=options.get("rounds") or 0,
        tasks=tasks,
        energy=options.get("energy", True),
        data_fingerprint=_fingerprint(options["data"]) if name and options["data"] else "",
        beside=options.get("beside", "none"),
        units=units,
        weights=weights,
        quick=bool(options.get("quick")),
        over=over,
    )
    conditions = Conditions(
        data_root=str(root.absolute()) if name else "",
        threads=settings.threads,
        seed=settings.seed,
        images=settings.images,
        on_bad_image=options.get("on_bad_image", "stop"),
        weights=weights,
    )
    return settings, conditions


def _fingerprint(folder: Path) -> str:
    dataset = open_dataset(folder, "train")
    return identify(dataset).fingerprint(dataset.classes)


def classes_for(worker: Worker, models: Sequence[str], settings: Settings, say: Say) -> dict[str, int | None]:
    """With how many outputs networks are built: as asked, or as weights are for; None is their own number.

    Raises:
        WorkloadError: the weights do not fit one of them.
    """
    classes: dict[str, int | None] = dict.fromkeys(models, settings.classes or None)
    bare = [name for name in classes if not zoo.has_weights(name)]
    if settings.weights and bare:
        found = worker.ask("weights", 300, models=bare, classes=settings.classes or None, file=settings.weights)
        classes |= found["classes"]
        if found["unwrapped"]:
            say(f"--weights {settings.weights}: took {found['unwrapped']}")
    return classes


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
    if models and (reads_files or named(settings.loader).is_code):
        loaders.add(settings.loader)
    return Needs(
        tuple(sorted(models | {operand.subject for operand in operands if operand.kind == "step"})),
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
        return lambda o: (
            network_workloads(o, tasks, settings.at(o), resolved[o.label], costs[o.label]) if o.label in costs else ()
        )

    def feeding(operand: Operand) -> tuple[Workload, ...]:
        """The loader alone, giving the batches that this operand's training step takes."""
        configuration = resolved[operand.label].of("training")
        if configuration is None or operand.label not in costs:
            return ()
        output = OWN if named(settings.loader).is_code else LoaderOutput.feeding(configuration)
        loader = loader_workload(settings.at(operand), settings.loader, output)
        return (replace(loader, size=costs[operand.label]["size"]),)

    def other(operand: Operand) -> tuple[Workload, ...]:
        if isinstance(operand.configuration, LoaderOutput):
            return (loader_workload(settings.at(operand), operand.subject, operand.configuration),)
        if isinstance(operand.configuration, StepUnits):
            units = StepUnits(settings.units) if settings.units else operand.configuration
            return (Workload("step", operand.subject, units, costs[operand.label]["units"], 1, device=settings.device),)
        assert isinstance(operand.configuration, KernelVariant)
        at = settings.at(operand)
        size = at.size or USUAL_SIZE
        return (Workload("kernel", operand.subject, operand.configuration, at.batch, size, device=at.device),)

    kind = operands[0].kind
    if kind == "step":
        rate = ("step_throughput",) if settings.units else ()
        return [group("step", ("step_time", *rate, "step_peak_bytes"), other)]
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
    """The workloads of a model that share one network; none where it cannot do them, see `impossible`."""
    configuration = resolved.of(tasks[0])
    if configuration is None:
        return ()
    if tasks[0] == "latency" and operand.batch > 1:
        return ()
    training = "training" in tasks
    if training and not cost.get("training_flops", 1):
        return ()
    batch = 1 if tasks[0] == "latency" else settings.training_batch if training else settings.batch
    base = Workload(
        tasks[0], operand.subject, configuration, batch, cost["size"], cost["classes"], device=settings.device
    )
    fed = replace(base, task="end_to_end", loader=settings.loader, data=settings.data)
    return tuple(fed if task == "end_to_end" else replace(base, task=task) for task in tasks)


def impossible(operand: Operand, task: str, resolved: Resolved, cost: Mapping[str, int]) -> str:
    """Why a model has no workload of a task."""
    if task == "latency":
        return f"{operand.subject} takes batches of {operand.batch}, not single images"
    untrainable = "its logits have no gradient, so it cannot be trained"
    return resolved.training_missing or (untrainable if not cost.get("training_flops", 1) else "not possible")


def loader_workload(settings: Settings, engine: str, output: LoaderOutput) -> Workload:
    """A loader on its own."""
    size = settings.size or USUAL_SIZE
    data = "" if output == OWN else settings.data
    return Workload("loading", engine, output, settings.batch, size, data=data, device=settings.device)
