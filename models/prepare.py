"""Applies a Configuration to a network: one function a lever, and one that calls them in order."""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from models.batch_norm import quicken_batch_norm
from models.configuration import ONLY_INFERS, Configuration, Device
from models.depthwise import adapt_depthwise
from models.dropout import quicken_dropout
from models.errors import ModelError
from models.exported import Foreign, Program
from models.exported import check as check_exported
from models.max_pool import quicken_max_pool
from models.peers import ENGINES
from models.pointwise import adapt_pointwise, use_products
from models.small_maps import adapt_small_maps


@dataclass(frozen=True)
class Prepared:
    """A network ready to be called.

    Attributes:
        module: the network that holds parameters and buffers (also behind a peer, for counting).
        forward: images [N, 3, H, W] -> logits [N, classes]; autocast, inference mode and layout are inside.
        dtype: what images must arrive in.
        memory_format: what images must arrive in.
        autocast: the dtype autocast computes in, or None.
        notes: anything that is not as the configuration's words say; empty in the normal case.
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    memory_format: torch.memory_format
    autocast: torch.dtype | None
    notes: tuple[str, ...] = ()


def device_facts(device: torch.device) -> Device:
    """The facts that presets and checks ask of a torch device."""
    return Device.from_cuda(torch.cuda.get_device_capability(device)) if device.type == "cuda" else Device.from_cpu()


def apply_layout(model: nn.Module, layout: str) -> nn.Module:
    """channels_last lets convolutions run without a transpose before and after each one."""
    return model.to(memory_format=memory_format(layout))


def memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "nhwc" else torch.contiguous_format


def dtype_named(name: str) -> torch.dtype:
    """torch's dtype of this name, such as "bfloat16"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def set_tf32(enabled: bool) -> None:
    """TF32 is a switch of the whole process, so a measuring process holds one configuration only."""
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


def set_switches(configuration: Configuration) -> None:
    """CUDA's switches of the whole process.

    The plain configuration gets torch's own defaults, as a first script has them: TF32 in convolutions, none in matrix
    products, and no algorithm tried out. Against anything less, ours would look better than they are.
    """
    set_tf32(configuration.numbers.tf32)
    if configuration.plain:
        torch.backends.cudnn.allow_tf32 = True
    # The input size never changes within a workload, so letting cuDNN time its algorithms once pays.
    torch.backends.cudnn.benchmark = not configuration.plain
    # 0: all of them, where torch would time the ten that a heuristic puts first.
    torch.backends.cudnn.benchmark_limit = 10 if configuration.plain else 0


def fold_batch_norm(model: nn.Module) -> GraphModule:
    """Fold each batch norm into the convolution before it, by torch.fx (inference only).

    Raises:
        ModelError: the network cannot be traced symbolically.
    """
    from torch.fx.experimental.optimization import fuse

    try:
        folded = fuse(model)
    except Exception as error:
        raise ModelError(
            f"freeze folds batch norm by tracing here, and this network cannot be traced: {error}"
        ) from error
    assert isinstance(folded, GraphModule)
    return folded


COMPILE_MODES = {"compile": "default", "graphs": "reduce-overhead", "autotune": "max-autotune"}
# Where whoever calls the network captures it together with what is around it.
CAPTURED_MODES = {"compile": "default", "graphs": "default", "autotune": "max-autotune-no-cudagraphs"}


def remove_unfinished(message: str) -> bool:
    """Remove a library that an error says is cut short from torch's cache; whether there was one.

    A compilation that was killed leaves one, and torch, which looks only whether it is there, fails from then on
    (pytorch issue 180841).
    """
    found = re.search(r"(/\S+\.so): (file too short|invalid ELF header)", message)
    if not found or not Path(found[1]).is_file():
        return False
    Path(found[1]).unlink(missing_ok=True)
    return True


def apply_compile(model: nn.Module, mode: str, settings: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """torch.compile in torch's `mode`; static shapes, because every distinct size is a program of its own.

    Args:
        settings: `compiler_settings`, for the whole compiler while the first call compiles. Passed as an option of
            torch.compile, freezing reaches only a part of it, and most of the gain is lost without a word (seen on a
            CPU, torch 2.15).
    """
    if settings.get("cpp_wrapper"):
        return _first_differs(_lean(model), settings)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False, mode=mode)
    return _first_differs(compiled, settings) if settings else compiled


def compiler_settings(configuration: Configuration, device: str) -> dict[str, Any]:
    """What torch's compiler is told besides its mode, by the names of torch._inductor.config.

    A frozen network on a CPU is compiled so that each call costs the least besides its kernels, which is a good part of
    a single image's time: the calls are made in C++, and only the images are checked, not every weight. What is not
    frozen is compiled once for all networks of a class, which a look at each tells apart.
    """
    found: dict[str, Any] = {"freezing": True} if configuration.freeze else {}
    if device == "cpu" and configuration.freeze and configuration.compile == "compile":
        found["cpp_wrapper"] = True
    if configuration.mm and device == "cpu":
        # Of what can make matrix products only the compiler's own code, so that nothing is timed.
        found |= {"max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP"}
    elif configuration.mm:
        found["conv_1x1_as_mm"] = True
    return found


def _first_differs(compiled: Callable[[Tensor], Tensor], settings: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """The same, with these settings of the compiler during the first call."""
    call = compiled

    def first(images: Tensor) -> Tensor:
        nonlocal call
        from torch._inductor import config

        with config.patch(dict(settings)):
            logits = compiled(images)
        call = compiled
        return logits

    call = first
    return lambda images: call(images)


def _lean(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A network compiled as one graph that is entered without a look at the network; as usual where it is several."""

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits

    # What was compiled is kept with the code of a function, and two networks of a class share theirs: without a look at
    # the network, one would be answered by the other. This code is of this network alone.
    forward.__code__ = forward.__code__.replace()
    compiled = torch.compile(forward, dynamic=False, fullgraph=True, options={"guard_filter_fn": _only_of_images})

    def call(images: Tensor) -> Tensor:
        nonlocal compiled
        from torch._dynamo.exc import TorchDynamoException

        try:
            return compiled(images)
        except TorchDynamoException:
            compiled = torch.compile(model, dynamic=False)
            return compiled(images)

    return call


def _only_of_images(guards: Sequence[Any]) -> list[bool]:
    """Which conditions of a compiled graph are asked at each call: those of the images and of torch's modes."""
    return [not guard.name or "images" in guard.name for guard in guards]


def prepare(
    model: nn.Module,
    configuration: Configuration,
    device: torch.device,
    training: bool,
    example: tuple[int, ...],
    captured: bool = False,
) -> Prepared:
    """Apply every lever of `configuration` to `model`, in the order in which they must be applied.

    Args:
        model: with random or trained weights, fp32, on the CPU.
        example: the shape [N, 3, H, W] the network will be called with; peers are built for exactly it.
        captured: the caller makes a CUDA graph of its own around the call, so none is made here.

    Raises:
        ModelError: a lever cannot be applied to this network here; says which and why.
    """
    if training and isinstance(model, Foreign | Program):
        raise ModelError(ONLY_INFERS)
    check_exported(model, example)
    model = model.train(training)
    if configuration.peer is not None:
        model = model.eval()
        source = model.path if isinstance(model, Foreign) else model
        peer = ENGINES[configuration.peer](source, configuration.precision, example)
        return Prepared(model, peer, dtype_named(configuration.dtype), torch.contiguous_format, None)
    if device.type == "cuda":
        set_switches(configuration)
    model = model.to(device)
    if configuration.kernels:
        # Brings Triton along, which every other configuration does without.
        from models.kernel_layers import use_kernels

        model = use_kernels(model, training)
    # Folding computes new weights; in fp32 they are exact before they are rounded once.
    if configuration.fused:
        from models.fused import fuse_convolutions

        model = fuse_convolutions(fold_batch_norm(model), example)
    elif configuration.mm and device.type == "cpu":
        model = use_products(fold_batch_norm(model))
    elif configuration.freeze and not configuration.compiles:
        model = fold_batch_norm(model)
    model = apply_layout(model, configuration.layout).to(dtype_named(configuration.numbers.weights(training)))
    notes: tuple[str, ...] = ()
    # A GPU draws in parallel, and inductor draws inside its own kernels; the plain configuration stays plain.
    if training and device.type == "cpu" and not configuration.compiles and not configuration.plain:
        model, normed = quicken_batch_norm(model)
        model, pooled = quicken_max_pool(model)
        notes = normed or pooled  # for the same reason, which one of them tells
        model = adapt_depthwise(adapt_pointwise(adapt_small_maps(quicken_dropout(model))))
    call: Callable[[Tensor], Tensor] = model
    if configuration.compiles:
        # The whole update of a training is captured (models.training.graphed), not each pass by itself.
        captured = captured or (training and configuration.compile == "graphs")
        modes = CAPTURED_MODES if captured else COMPILE_MODES
        call = apply_compile(model, modes[configuration.compile], compiler_settings(configuration, device.type))
    autocast = configuration.numbers.autocast(training)
    cast = dtype_named(autocast) if autocast else None

    def forward(images: Tensor) -> Tensor:
        # no_grad, not inference_mode: inductor only freezes weights it may treat as constants under no_grad.
        guard = contextlib.nullcontext() if training else torch.no_grad()
        with guard, torch.autocast(device.type, cast or torch.bfloat16, enabled=cast is not None):
            while True:
                try:
                    return call(images)
                except Exception as error:
                    if not (configuration.compiles and remove_unfinished(str(error))):
                        raise

    return Prepared(model, forward, dtype_named(configuration.dtype), memory_format(configuration.layout), cast, notes)
