"""Workload -> the callable that does it once. Holds no timing code."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import WorkloadError
from bench.timing.own import OwnLoader, OwnStep
from bench.timing.workload import Conditions, KernelVariant, LoaderOutput, Workload
from loaders import engines
from models import zoo
from models.captured import capture
from models.configuration import Configuration, check
from models.lively import STATISTICS, enliven, has_statistics, varied
from models.prepare import Prepared, device_facts, prepare
from models.project import named
from models.trained import Weights
from models.training.graphed import GraphedUpdate

LONG_EPOCH = 50_000  # images

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Step:
    """A workload built and ready.

    Attributes:
        workload: what a call does once.
        call: does it; asynchronous on a GPU.
        images: how many images one call works through.
        module: the network behind it, None for loaders and kernels.
        optimizer: the optimiser behind it, None unless the step trains.
        inputs: constant tensors the step reads, counted with its memory.
        compiled: the first call compiles.
        converted: building it already compiled, in a foreign engine.
        prefetch: batches a loader holds ready; that many calls after a pause cost nothing to load.
        notes: what a reader of the number must know.
    """

    workload: Workload
    call: Callable[[], object]
    images: int
    module: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    inputs: tuple[Tensor, ...] = ()
    compiled: bool = False
    converted: bool = False
    prefetch: int = 0
    notes: tuple[str, ...] = ()
    _closers: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Stop loader threads and let go of the device's memory."""
        for close in self._closers:
            close()
        self._closers.clear()
        self.call = _closed
        self.module = self.optimizer = None
        self.inputs = ()
        gc.collect()
        if self.workload.device == "cuda":
            torch.cuda.empty_cache()


def _closed() -> None:
    raise WorkloadError("this step was closed")


def build(workloads: Sequence[Workload], conditions: Conditions) -> list[Step]:
    """Build the steps of workloads that belong together: training and end_to_end of one model share its network.

    Raises:
        WorkloadError: the device is missing, or workloads that cannot share were given together.
        ModelError, DataError: the model, its configuration or its data cannot be had.
    """
    first = workloads[0]
    device = open_device(first.device)
    torch.set_num_threads(conditions.threads)
    torch.manual_seed(conditions.seed)
    if first.task == "loading":
        return [loading(workload, conditions) for workload in workloads]
    if first.task == "kernel":
        return [kernel(workload, device) for workload in workloads]
    if first.task == "step":
        return [own(workload) for workload in workloads]
    shared = {(w.subject, w.configuration, w.batch, w.size, w.classes, w.device, w.training) for w in workloads}
    if len(shared) != 1:
        raise WorkloadError(f"workloads that share a network must agree on it: {', '.join(w.id for w in workloads)}")
    configuration = first.network
    check(configuration, device_facts(device), first.training)
    model = network(first, conditions)
    shape = (first.batch, 3, first.size, first.size)
    captured = first.task == "latency" and first.device == "cuda" and configuration.captures
    prepared = prepare(model, configuration, device, first.training, shape, captured)
    if first.training:
        update, optimizer = trainer(prepared, configuration, device)
        steps = [training(workload, prepared, update, optimizer, device, conditions) for workload in workloads]
    else:
        steps = [inference(workload, prepared, device, captured) for workload in workloads]
    for step in steps:
        step.compiled = configuration.compiles
        step.converted = configuration.peer is not None
    return steps


def network(workload: Workload, conditions: Conditions, lively: bool = True) -> nn.Module:
    """The network of a workload.

    Args:
        lively: change a fresh one so that its answers differ where its weights or its images do, or `parity` would
            compare nothing. One with weights of its own stays as it is.
    """
    model = zoo.build(workload.subject, workload.classes)
    if zoo.has_weights(workload.subject):
        return model
    if conditions.weights:
        Weights.read(conditions.weights).put(model, workload.subject)
        return model
    if not lively or has_statistics(model):
        return model
    if workload.training:
        enliven(model)
    else:
        enliven(model.eval(), varied(STATISTICS, workload.size))
    return model


def open_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        WorkloadError: it is not here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise WorkloadError("no CUDA device is available here; use --device cpu, or check the driver with bench doctor")
    return torch.device(name)


def constant_batch(workload: Workload, prepared: Prepared, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normal images [batch, 3, size, size] and labels [batch], as the prepared network takes them.

    Random values: constant or zero inputs make matrix units draw less power and run faster than real work does.
    """
    shape = (workload.batch, 3, workload.size, workload.size)
    images = torch.randn(shape).to(device, prepared.dtype).contiguous(memory_format=prepared.memory_format)
    return images, torch.randint(0, workload.classes, (workload.batch,), device=device)


def inference(workload: Workload, prepared: Prepared, device: torch.device, captured: bool = False) -> Step:
    """Forward passes. For latency the image starts on the host and the logits end there.

    Args:
        captured: both copies and the network between them are one CUDA graph.
    """
    images, _ = constant_batch(workload, prepared, device)
    forward = prepared.forward
    if captured:
        return Step(
            workload,
            answered(images, forward),
            workload.batch,
            prepared.module,
            inputs=(images,),
            notes=prepared.notes,
        )
    if workload.task == "latency" and device.type == "cuda":
        host = images.cpu().pin_memory()

        def call() -> Tensor:
            return forward(host.to(device, non_blocking=True)).cpu()

        return Step(workload, call, workload.batch, prepared.module, inputs=(images,), notes=prepared.notes)
    return Step(
        workload,
        lambda: forward(images),
        workload.batch,
        prepared.module,
        inputs=(images,),
        notes=prepared.notes,
    )


def answered(images: Tensor, forward: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """Pinned images to pinned logits in one replay: the host launches once and waits once."""
    given = images.cpu().pin_memory()
    with torch.no_grad():
        logits = forward(images)
    answer = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)

    def work() -> tuple[Tensor]:
        images.copy_(given, non_blocking=True)
        answer.copy_(forward(images), non_blocking=True)
        return (answer,)

    replay, _ = capture(work)

    def call() -> Tensor:
        replay()
        torch.cuda.current_stream().synchronize()
        return answer

    return call


def trainer(
    prepared: Prepared, configuration: Configuration, device: torch.device
) -> tuple[Callable[[Tensor, Tensor], Tensor], torch.optim.Optimizer]:
    """The update: (images, labels) -> loss, not yet synchronised; SGD with momentum 0.9 and weight decay 1e-4.

    One fused optimiser kernel touches each weight once; only the plain configuration keeps torch's default
    loop, because that is what a first script has.
    """
    fused = None if configuration.plain else True
    optimizer = torch.optim.SGD(prepared.module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)
    loss_function = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device.type) if prepared.autocast is torch.float16 else None

    def update(images: Tensor, labels: Tensor) -> tuple[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        logits = prepared.forward(images)
        if not isinstance(logits, Tensor):
            raise WorkloadError(f"in training it gives a {type(logits).__name__}, not one tensor of logits")
        loss: Tensor = loss_function(logits.float(), labels)
        if scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        else:
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        return (loss.detach(),)

    made: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = update
    if configuration.compile == "graphs":
        made = GraphedUpdate(update, prepared.module, optimizer)
    return lambda images, labels: made(images, labels)[0], optimizer


def training(
    workload: Workload,
    prepared: Prepared,
    update: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    conditions: Conditions,
) -> Step:
    """Optimiser updates, on a constant batch or fed by a loader."""
    step = Step(workload, _closed, workload.batch, prepared.module, optimizer, notes=prepared.notes)
    batches: Batches
    if workload.task == "end_to_end" and named(workload.loader).is_code:
        theirs = OwnLoader(workload.loader, workload.batch, workload.size, workload.device)
        step.prefetch = theirs.prefetch
        step._closers.append(theirs.close)
        batches = theirs.fed(workload.size, workload.classes, device, prepared.dtype, prepared.memory_format)
    elif workload.task == "end_to_end":
        parts = _fed(workload, conditions, workload.loader, LoaderOutput.feeding(workload.network))
        loader = engines.build(workload.loader, *parts)
        step.prefetch = loader.prefetch
        step._closers.append(loader.close)
        batches = forever(loader)
    else:
        step.inputs = constant_batch(workload, prepared, device)
        batches = repeat((step.inputs[0], step.inputs[1]))

    def call() -> Tensor:
        images, labels = next(batches)
        return update(images, labels)

    step.call = call
    return step


def loading(workload: Workload, conditions: Conditions) -> Step:
    """Batches out of a loader; the network is missing."""
    if named(workload.subject).is_code:
        theirs = OwnLoader(workload.subject, workload.batch, workload.size, workload.device)
        made = iter(theirs)
        return Step(workload, lambda: next(made), workload.batch, prefetch=theirs.prefetch, _closers=[theirs.close])
    loader = engines.build(workload.subject, *loader_parts(workload, conditions))
    batches = forever(loader)
    notes: tuple[str, ...] = ()
    if loader.name in ("packed", "resident"):
        notes = (f"{loader.name} reads images that were decoded beforehand: decoding is no part of its rate",)
    if loader.options.decoder != "cpu":
        notes = (
            f"decoded on the GPU, {loader.options.hw_decoder_load:.0%} of the images by its JPEG engine if it has one",
        )
    return Step(
        workload,
        lambda: next(batches),
        workload.batch,
        prefetch=loader.prefetch,
        notes=notes,
        _closers=[loader.close],
    )


def loader_parts(workload: Workload, conditions: Conditions) -> tuple[Any, Any]:
    """Data set and options of a loading workload's loader, which is not built.

    Raises:
        DataError: no such folder, or no readable image in it.
    """
    output = workload.configuration
    assert isinstance(output, LoaderOutput)
    if output.workers is not None:
        conditions = replace(conditions, threads=output.workers)
    dataset, options = _fed(workload, conditions, workload.subject, output)
    return dataset, options if output.ahead is None else replace(options, prefetch=output.ahead)


def _fed(workload: Workload, conditions: Conditions, engine: str, output: LoaderOutput) -> tuple[Any, Any]:
    from bench.timing.images import open_images
    from loaders.gpu_decoding import decoding_there
    from loaders.options import LoaderOptions

    dataset = open_images(conditions)
    # Epochs as long as a real data set's: their ends, where queues run empty, are no part of a rate.
    if workload.classes:
        # Speed does not depend on which label an image has, only on there being a logit for it.
        labels = tuple(label % workload.classes for label in dataset.labels)
        dataset = replace(dataset, labels=labels, classes=dataset.classes[: workload.classes])
    dataset = dataset.select([*range(len(dataset))] * -(-LONG_EPOCH // max(1, len(dataset))), dataset.name)
    options = LoaderOptions(
        batch=workload.batch,
        size=workload.size,
        dtype=output.dtype,
        layout=output.layout,
        device=workload.device,
        threads=conditions.threads,
        seed=conditions.seed,
        train=True,
    )
    return dataset, decoding_there(engine, options, dataset)


def forever(loader: Any) -> Batches:
    """Epoch after epoch; the loader reshuffles between them."""
    while True:
        yield from loader


def own(workload: Workload) -> Step:
    """A callable of the user's."""
    step = OwnStep(workload.subject)
    return Step(workload, step.call, workload.batch, _closers=[step.close])


def kernel(workload: Workload, device: torch.device) -> Step:
    """One call of a kernel on the inputs its catalogue entry makes.

    Raises:
        WorkloadError: this implementation cannot run on the device.
    """
    from kernels import catalogue

    variant = workload.configuration
    assert isinstance(variant, KernelVariant)
    try:
        call = catalogue.example(
            workload.subject, variant.implementation, workload.batch, workload.size, variant.dtype, device
        )
    except ValueError as error:
        raise WorkloadError(f"kernel {workload.subject}@{variant.implementation} cannot run here: {error}") from None
    return Step(workload, call, workload.batch, compiled=variant.implementation == "compiled")
