"""What has no noise in a workload: counted facts, and what it computes. Runs in a measuring process.

Facts are parameters, MACs, activations, the state dict, the operators of one step, bytes saved for the backward pass,
and the graphs, breaks, recompilations and kernels of compiled code. Two versions of a program either agree on them or
differ in ways that can be named, in seconds and on any machine.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import WorkloadError
from bench.inspecting.cost import count
from bench.inspecting.inductor import compiled_facts, generated_facts
from bench.timing.step import Step, build, network, open_device, trainer
from bench.timing.workload import Conditions, Workload
from loaders import engines
from models import zoo
from models.configuration import Configuration, check
from models.exported import Foreign, Program
from models.lively import STATISTICS, blindness, enliven, varied, visible_contrast
from models.prepare import device_facts, prepare

UPDATES = 3
SAMPLED = 64  # elements of each parameter
COMPARED = 8  # images whose logits are compared: plain fp32 is slow
NETWORKS = ("latency", "inference", "training")


def facts(workload: Workload, conditions: Conditions, quick: bool = False) -> dict[str, Any]:
    """Name of a fact -> number, or a table for what is compared entry by entry.

    Loaders have none, kernels only their operators.

    Args:
        quick: of compiled code count only what is known once it is generated, kernels and breaks; nothing is compiled.

    Raises:
        WorkloadError, ModelError, DataError: the workload does not exist or cannot run here.
    """
    if workload.task == "loading":
        engines.check(workload.subject)
        return {}
    torch.manual_seed(conditions.seed)
    counted: dict[str, Any] = {}
    if workload.task in NETWORKS:
        cost = count(workload.subject, workload.classes, workload.size)
        counted = {"parameters": cost.params, "macs": cost.macs, "activations": cost.activations}
        with torch.device("meta"):
            counted["state_dict"] = {
                name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
                for name, tensor in zoo.build(workload.subject, workload.classes).state_dict().items()
            }
    [step] = build([workload], conditions)
    try:
        if step.compiled:
            counted |= generated_facts(step) if quick else compiled_facts(step)
        if not step.converted:
            counted |= eager_facts(step)
    finally:
        step.close()
    return counted


class OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that reach the device, also those of the backward pass and the optimiser."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The second commit in a process has its operators in a namespace of its own: see models.batch_norm.
        self.counts[re.sub(r"^pixbench_\d+", "pixbench", str(func).removeprefix("aten."))] += 1
        return func(*args, **(kwargs or {}))


def eager_facts(step: Step) -> dict[str, Any]:
    """Operators of one step as Python issues them, and bytes that autograd keeps for the backward pass."""
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in step.module.parameters()} if step.module else set()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Each storage once, however many views of it are kept; weights are there anyway.
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = OperatorCounter()
    with torch.compiler.set_stance("force_eager"), counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        step.call()
    counted: dict[str, Any] = {"operators": dict(sorted(counter.counts.items()))}
    if step.workload.training:
        counted["saved_bytes"] = sum(saved.values())
    return counted


def parity(step: Step, conditions: Conditions, of: Workload | None = None) -> dict[str, Any]:
    """How far an inference step's logits are from those of the same weights and images in plain fp32.

    Args:
        of: of an exported file, the network that it is compared with: as it would be exported, so never enlivened.

    Returns:
        {"rms": root mean square distance as a share of the logits' standard deviation, "same_top1": images with the
        same likeliest class, "images": images compared, "blind": why this says nothing, or ""}.
    """
    torch.manual_seed(conditions.seed)  # as when the step was built, so these are its weights
    own = step.workload
    differ = [
        f"{own.subject} {verb} {getattr(own, name)} {what} and {of.subject} {getattr(of, name)}"
        for name, verb, what in (("size", "takes images of", "pixels"), ("classes", "gives", "logits"))
        if of is not None and getattr(own, name) != getattr(of, name)
    ]
    if differ:
        return {"rms": 0.0, "same_top1": 0, "images": 0, "blind": differ[0]}
    plain = network(own if of is None else of, conditions, lively=of is None).eval()
    # A file may take batches of one size only.
    images = step.inputs[0][: COMPARED if not isinstance(plain, Foreign | Program) else None].float().cpu()
    answered, weights = lambda network, given: network(given), not isinstance(plain, Foreign)
    # Of a step's own network they were drawn so that ordinary images are enough.
    contrast, blind = (
        (1.0, blindness(answered, plain, images, weights))
        if of is None
        else visible_contrast(answered, plain, images, weights)
    )
    step.inputs[0].mul_(contrast)
    try:
        result: Any = step.call()
        logits = result[: len(images)].detach().double().cpu()
    finally:
        step.inputs[0].div_(contrast)
    with torch.no_grad():
        reference = plain(images * contrast).double()
    spread = reference.std(correction=0).item() or 1.0
    return {
        "rms": (logits - reference).square().mean().sqrt().item() / spread,
        "same_top1": int((logits.argmax(1) == reference.argmax(1)).sum()),
        "images": len(images),
        "blind": blind,
    }


def outputs(workload: Workload, conditions: Conditions, given: str, save: str, quick: bool = False) -> dict[str, Any]:
    """Write what the workload computes to `save`, a safetensors file.

    Its `result` is the logits [batch, classes] of inference, the losses of three updates of training (without dropout;
    `moved` says how far they moved the weights), or the first batch of a loader. The side without `given` also writes
    `reference` (the same in plain fp32; `reference_moved`), `images`, `labels` and every weight; the other side is
    given that file and takes these instead of drawing its own. Weights that begin as zeros are drawn too, or nothing
    before them would be compared.

    Returns:
        {"differs": ""}, or why the given weights do not fit; the side without `given` also "blind", why its answer
        could not differ, or "".
    """
    from safetensors.torch import load_file, save_file

    if workload.task == "loading":
        batch = first_batch(workload, conditions)
        save_file(batch, save)
        return {"differs": "", "blind": "" if batch["result"].std() > 0 else "all its pixels are the same"}
    if workload.task not in NETWORKS:
        raise WorkloadError(f"the output of {workload.task} is not compared")
    device = open_device(workload.device)
    torch.set_num_threads(conditions.threads)
    torch.manual_seed(conditions.seed)
    model = zoo.build(workload.subject, workload.classes)
    of_base = load_file(given) if given else {}
    if of_base:
        weights = {name.removeprefix("weight."): t for name, t in of_base.items() if name.startswith("weight.")}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            return {"differs": " ".join(str(error).split())[:300]}
        images, labels = of_base["images"], of_base["labels"]
    else:
        images = varied(workload.batch, workload.size)
        labels = torch.randint(0, workload.classes, (workload.batch,))
        enliven(model.eval(), varied(max(STATISTICS, workload.batch), workload.size))
    weights = {f"weight.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    configuration = workload.network
    check(configuration, device_facts(device), workload.training)
    if quick:
        configuration = replace(configuration, compile="eager", freeze=False, fused=False, mm=False, kernels=False)
    tensors = computed(model, workload, configuration, images, labels, device)
    blind = {}
    if not of_base:
        plain = zoo.build(workload.subject, workload.classes)
        plain.load_state_dict({name.removeprefix("weight."): tensor for name, tensor in weights.items()})
        blind = {"blind": blindness(lambda network, given: network(given), plain.eval(), images)}
        # On a GPU the plain configuration lets convolutions round to TF32; another layout does not.
        exact = Configuration() if device.type == "cpu" else Configuration(layout="nhwc")
        for name, tensor in computed(plain, workload, exact, images, labels, device).items():
            tensors["reference" if name == "result" else f"reference_{name}"] = tensor
        tensors |= {**weights, "images": images, "labels": labels}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, save)
    return {"differs": "", **blind}


def computed(
    model: nn.Module,
    workload: Workload,
    configuration: Configuration,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
) -> dict[str, Tensor]:
    """`result`: logits [batch, classes], or losses [UPDATES] and `moved`, how far a sample of the weights moved.

    In fp32, on the host.
    """
    prepared = prepare(model, configuration, device, workload.training, tuple(images.shape))
    batch = images.to(device, prepared.dtype).contiguous(memory_format=prepared.memory_format)
    if not workload.training:
        return {"result": prepared.forward(batch).detach().float().cpu()}
    # Versions of a layer may draw their random numbers differently; without random numbers they are comparable.
    for module in prepared.module.modules():
        module.training = isinstance(module, _NormBase)
    update, _ = trainer(prepared, configuration, device)
    before = _sampled(prepared.module)
    losses = [update(batch, labels.to(device)).float().cpu() for _ in range(UPDATES)]
    return {"result": torch.stack(losses), "moved": _sampled(prepared.module) - before}


def _sampled(model: nn.Module) -> Tensor:
    """Up to SAMPLED evenly spaced elements of each parameter, one after another: fp32 on the host."""
    parts = [tensor.detach().flatten() for tensor in model.parameters()]
    return torch.cat([part[:: -(-len(part) // SAMPLED)][:SAMPLED].float().cpu() for part in parts])


def first_batch(workload: Workload, conditions: Conditions) -> dict[str, Tensor]:
    """A loader's first batch: images in fp32 and labels."""
    [step] = build([workload], conditions)
    try:
        batch: Any = step.call()
        images, labels = batch
        return {
            "result": images.float().cpu().contiguous(),
            "labels": labels.cpu().contiguous(),
            "layout": torch.tensor(images.stride()),
        }
    finally:
        step.close()
