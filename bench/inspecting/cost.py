"""What a network costs for one image, forward and backward: parameters, FLOPs, activations; counted.

`torch.utils.flop_counter` counts a forward and a backward pass on the meta device: no weight is drawn and nothing is
computed, and with gradients enabled the counter sees the products of attention instead of one fused kernel. fvcore,
which traces a real forward pass, gives a second opinion.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.errors import BenchError
from bench.inspecting.foreign import counted
from models import exported, zoo
from models.dry_run import device_of
from models.errors import ModelError
from models.exported import Foreign
from models.project import named
from models.summary import Layer, on_meta, run, totals
from results.tables import render

# Beyond this share the two counters count different things, and a reader should know.
DISAGREEMENT = 0.05


@dataclass(frozen=True)
class Cost:
    """The cost of one network for one image.

    Attributes:
        model: its name in the zoo.
        classes: outputs.
        size: height and width of the image, in pixels.
        params: trainable and frozen parameters, without buffers.
        parameter_tensors: tensors that hold them.
        state_entries: entries of the state dict, with buffers.
        weight_bytes: bytes of the parameters in fp32. A checkpoint is larger: it also has buffers and, in
            training, the state of the optimiser.
        macs: multiply-adds of one forward pass, flops / 2.
        flops: floating-point operations of convolutions and matrix products in one forward pass, a multiply-add
            counted as two.
        training_flops: the same for a forward and a backward pass; less than three times `flops`, since the image
            needs no gradient. 0 where the logits have no gradient, so that the network cannot be trained.
        activations: output elements of convolutions, linear layers and matrix products in one forward pass, as in
            fvcore's ActivationCountAnalysis; products inside fused attention never reach memory and are not counted.
    """

    model: str
    classes: int
    size: int
    params: int
    parameter_tensors: int
    state_entries: int
    weight_bytes: int
    macs: int
    flops: int
    training_flops: int
    activations: int


@dataclass(frozen=True)
class Opinion:
    """fvcore's count of one forward pass for one image.

    Attributes:
        macs: multiply-adds, with normalisation and pooling, without the operators that fvcore does not support.
        unsupported: operator -> calls that fvcore did not count.
    """

    macs: int
    unsupported: Mapping[str, int]


def convolution_backward_flops(
    gradient_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """FLOPs of a convolution's backward pass: the gradients of input and weight cost a forward pass each.

    A weight is [out, in / groups, *kernel], so its size accounts for the groups. torch's own formula (2.15) ignores
    them in the weight's gradient, and counts many times the FLOPs of training EfficientNet-B0.
    """
    pixels = prod((input_shape if transposed else gradient_shape)[2:])
    return 2 * input_shape[0] * pixels * prod(weight_shape) * (wanted[0] + wanted[1])


class FusedAttention(TorchFunctionMode):
    """Knows whether fused attention is running, which is several matrix products on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        # nn.MultiheadAttention is one call here; its attention is fused unless the attention weights are wanted.
        fused = func is functional.scaled_dot_product_attention or (
            func is functional.multi_head_attention_forward and not keywords.get("need_weights", True)
        )
        self.running = fused
        try:
            return func(*args, **keywords)
        finally:
            self.running = False


class ActivationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the output elements of convolutions, linear layers and matrix products."""

    LAYERS = frozenset(
        {
            torch.ops.aten.convolution.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten.mm.default,
        }
    )
    PRODUCTS = frozenset({torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default})

    def __init__(self, attention: FusedAttention) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention = attention
        self.elements = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.LAYERS or (func in self.PRODUCTS and not self.attention.running):
            self.elements += result.numel()
        return result


def count(model_name: str, classes: int | None = None, size: int | None = None, **arguments: object) -> Cost:
    """Count what a network of the zoo costs for one image.

    Args:
        model_name: a name of `models.zoo`.
        classes: outputs; the network's own if None.
        size: height and width of the image in pixels; the network's own if None.
        **arguments: of the network, as `models.zoo.build` takes them.

    Raises:
        ModelError: no such network or argument, or the network takes no image of this size.
        UncountedError: it is a file for another engine, and nothing here counts in it.
    """
    if zoo.is_exported(model_name):
        facts = exported.facts(named(model_name))
        facts.check(model_name, (facts.batch or 1, 3, size or facts.size, size or facts.size))
        network = zoo.build(model_name, classes)
        if isinstance(network, Foreign):
            found = counted(network, size or facts.size)
            return Cost(model_name, facts.classes, size or facts.size, state_entries=found["parameter_tensors"],
                        macs=found["flops"] // 2, training_flops=0, **found)  # fmt: skip
    classes = zoo.default_classes(model_name) if classes is None else classes
    # In evaluation, which runs the same convolutions as training and also normalises a single value a channel.
    model, _, size = on_meta(model_name, classes, size, arguments)
    flops = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flops}
    )
    attention = FusedAttention()
    activations = ActivationCounter(attention)
    with torch.enable_grad(), flops:
        with attention, activations:
            logits = _forward(model_name, model, size)
        forward_flops = int(flops.get_total_flops())
        trained = logits.requires_grad and not zoo.is_exported(model_name)
        if trained:
            logits.sum().backward()  # type: ignore[no-untyped-call]
    if logits.shape[1] != classes:
        raise ModelError(
            f"{model_name} gives {logits.shape[1]} logits and not {classes}: it takes no number of classes; "
            "leave out --classes"
        )
    images = len(logits)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(
        model=model_name,
        classes=classes,
        size=size,
        params=params,
        parameter_tensors=sum(1 for _ in model.parameters()),
        state_entries=len(model.state_dict()),
        weight_bytes=4 * params,
        macs=forward_flops // 2 // images,
        flops=forward_flops // images,
        training_flops=int(flops.get_total_flops()) // images if trained else 0,
        activations=activations.elements // images,
    )


def second_opinion(model: nn.Module, size: int) -> Opinion:
    """fvcore's count for one image of `size` x `size` pixels.

    fvcore traces a forward pass, which it cannot do on the meta device: a model there is moved to the CPU, with zeros
    for weights.

    Raises:
        BenchError: the network cannot be traced.
    """
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        model = model.to_empty(device="cpu")
        with torch.no_grad():
            # Zeros instead of uninitialised memory: denormal numbers would slow the forward pass down.
            for tensor in chain(model.parameters(), model.buffers()):
                tensor.zero_()
    if (device := device_of(model)).type == "meta":
        # It has no weights.
        device = torch.device("cpu")
    images = torch.zeros(1, 3, size, size, device=device)
    logger = logging.getLogger("fvcore")
    level, training = logger.level, model.training
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), contextlib.redirect_stdout(sys.stderr):
            # torch warns of the deprecated tracer when fvcore is imported and on every branch it fixes.
            warnings.simplefilter("ignore")
            from fvcore.nn import FlopCountAnalysis

            analysis = FlopCountAnalysis(model.eval(), images)
            return Opinion(int(analysis.total()), dict(analysis.unsupported_ops()))
    except Exception as error:
        # A tracer fails in as many ways as there are networks, and none of them should fail the command.
        reason = str(error).strip().partition("\n")[0]
        raise BenchError(f"fvcore cannot trace this network ({reason}): no second opinion") from error
    finally:
        logger.setLevel(level)
        model.train(training)


def disagreement(cost: Cost, opinion: Opinion) -> str | None:
    """A sentence if fvcore's MACs differ from ours by more than 5 %, with the operators it skipped; else None."""
    share = opinion.macs / cost.macs - 1 if cost.macs else 0.0
    if abs(share) <= DISAGREEMENT:
        return None
    skipped = ", ".join(sorted(operator.removeprefix("aten::") for operator in opinion.unsupported))
    return (
        f"{cost.model}: fvcore counts {opinion.macs} MACs, {share:+.1%} of the {cost.macs} counted here; "
        f"it adds normalisation and pooling and leaves out {skipped or 'nothing'}"
    )


def _forward(name: str, model: nn.Module, size: int) -> Tensor:
    try:
        return run(model, name, size)
    except ModelError as error:
        raise ModelError(f"{error}; its default size is {zoo.default_size(name)}") from error


def layer_cells(layer: Layer) -> list[str | int]:
    """Name, type, output shape, parameters and MACs of a layer."""
    return [layer.name, layer.type, "x".join(map(str, layer.output_shape)), layer.params, layer.macs]


def layer_table(title: str, layers: Sequence[Layer], format: str = "text") -> str:
    """A row for each layer in the order in which they run, and the totals; `title` heads the column of names."""
    params, macs = totals(layers)
    rows = [[*layer_cells(layer)[:3], f"{layer.params:,}", f"{layer.macs:,}"] for layer in layers]
    return render(
        [title, "type", "output", "params", "MACs"], [*rows, ["total", "", "", f"{params:,}", f"{macs:,}"]], format
    )
