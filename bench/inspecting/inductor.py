"""The graphs and kernels that torch.compile makes of a step, read from inside the compiler."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from bench.inspecting.counted import NETWORK, UNKNOWN, bytes_in, flops_of
from bench.timing.step import Step
from models.prepare import compiler_settings


@dataclass(frozen=True)
class Kernel:
    """One call of a generated kernel or of a library's, in compiled code.

    Attributes:
        name: as the profiler will name it.
        path: the layer, or the innermost one that holds all layers it was fused from.
        backward: whether it belongs to a backward graph.
        flops: of its matrix products and convolutions.
        bytes: of the tensors that go into it and come out of it.
    """

    name: str
    path: str
    backward: bool
    flops: float | None
    bytes: float


IN_CPP = "aoti_torch_cpu_"
"""What stands before an operator's name where generated C++ code calls it."""


def compile_again(step: Step) -> list[Kernel]:
    """Compile the step anew, with profiler ranges around its kernels; all their calls in order."""
    from torch._inductor import config, debug
    from torch._inductor.graph import GraphLowering

    _reset_compiler()
    forward: list[list[Kernel]] = []
    backward: list[list[Kernel]] = []
    generate: Any = GraphLowering.codegen

    def codegen(graph: Any) -> Any:
        code = generate(graph)
        kernels = [*kernels_of(graph, debug._inductor_triton_kernel_to_post_grad_node_info)]
        (backward if graph.is_backward else forward).append(kernels)
        return code

    changed: dict[str, Any] = {
        "trace.provenance_tracking_level": 1,
        "cpp.enable_kernel_profile": True,
        # A cached graph would not be generated, and would have no ranges.
        "fx_graph_cache": False,
    }
    changed |= compiler_settings(step.workload.network, step.workload.device)
    with config.patch(changed), patch.object(GraphLowering, "codegen", codegen):
        step.call()
        step.call()
    # Graphs of the backward pass run in the opposite order.
    return [kernel for graph in (*forward, *reversed(backward)) for kernel in graph]


def _reset_compiler() -> None:
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    torch.compiler.reset()
    counters.clear()
    metrics.reset()


def kernels_of(graph: Any, sources: Mapping[str, Sequence[str]]) -> Iterator[Kernel]:
    """The kernels of a graph that was just generated.

    Args:
        graph: inductor's GraphLowering.
        sources: "kernel:number" -> names of the graph's nodes it was made from, as inductor notes them; the number
            counts the calls in their order.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    done: set[Any] = set()
    for key, names in sorted(sources.items(), key=lambda item: int(item[0].rpartition(":")[2])):
        called = key.rpartition(":")[0]
        noted = [computing(nodes[name]) for name in names if name in nodes]
        # Inductor may name what a node was made from along with it: a library's call is its first node, and a
        # generated kernel computes what no kernel before it has.
        library = called.startswith(("torch.ops.", "extern_kernels.", "aten.", IN_CPP))
        inside = noted[:1] if library else [node for node in noted if node not in done] or noted
        if not inside:
            continue
        done.update(inside)
        flops = [known for node in inside if (known := node_flops(node, called)) is not None]
        yield Kernel(
            profiled_name(called, graph.graph_id),
            common_layer(path for node in inside if (path := layer_of(node)) is not None),
            bool(graph.is_backward),
            sum(flops) if flops else None,
            float(moved_bytes(inside, graph)),
        )


def profiled_name(called: str, graph: int | None) -> str:
    """The profiler's name of what generated code calls `called`, as `own_name` has it."""
    if called.startswith(IN_CPP):
        return own_name(called)
    if called.startswith("torch.ops."):
        # The profiler names an operator without its overload.
        return "::".join(called.split(".")[2:4])
    if called.startswith("extern_kernels."):
        return f"aten::{called.removeprefix('extern_kernels.')}"
    if called.startswith("aten."):
        return called.replace(".", "::", 1)
    return called if graph is None or not called.startswith("cpp") else f"graph_{graph}_{called}"


def own_name(name: str) -> str:
    """The operator's own name of a call that C++ code makes of it: mkldnn::_linear_pointwise.

    Of a matrix product of the compiler's own the name that its source has, which leaves out its sizes.
    """
    if not name.startswith(IN_CPP):
        return re.sub(r"^(graph_\d+_)gemm_m\d+n\d+k\d+_", r"\1", name)
    bare = name.removeprefix(IN_CPP).removeprefix("mkldnn_")
    library = "mkldnn" if "_pointwise" in bare else "mkl" if bare.startswith("_mkl") else "aten"
    # A sum that the convolution adds to.
    return f"{library}::{bare.replace('_binary', '')}"


def layer_of(node: Any) -> str | None:
    """Path of the innermost layer that an FX node comes from; None where it does not say."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return None
    path = str(list(stack.values())[-1][0])
    # A network that torch.fx has written looks its numbered layers up: getattr(L['self'].layer1, '0').conv1.
    while (plain := re.sub(r"getattr\(([^()]*), '([^']+)'\)", r"\1.\2", path)) != path:
        path = plain
    # L['self']._modules['layer1']._modules['0'] or L['self'].layer1[0]: the root is the network.
    path = re.sub(r"^L\['\w+'\]|^L__\w+?__", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]|\['?([^'\]]+)'?\]", lambda m: f".{m.group(1) or m.group(2)}", path)
    return path.strip(".")


def common_layer(paths: Iterable[str]) -> str:
    """The innermost layer that holds all of these."""
    parts = [path.split(".") if path else [] for path in paths]
    return ".".join(os.path.commonprefix(parts)) or NETWORK if parts else UNKNOWN


def computing(node: Any) -> Any:
    """The node itself, or the one whose result it only lays out in another order."""
    return node.args[0] if "force_stride_order" in str(node.target) else node


def node_flops(node: Any, called: str) -> float | None:
    """FLOPs of an FX node, by its shapes; None where it is no product or convolution, or has no shapes.

    Args:
        called: the kernel that computes it; a fused pattern of oneDNN has no operator as its target.
    """
    value = node.meta.get("val")
    out = getattr(value, "shape", None)
    shapes = [shape for argument in node.args if (shape := getattr(_value(argument), "shape", None)) is not None]
    packet = getattr(node.target, "_overloadpacket", None)
    try:
        if packet in flop_registry or packet is torch.ops.aten.convolution_backward:
            args, kwargs = tree_map(_value, (node.args, dict(node.kwargs)))
            return flops_of(node.target, args, kwargs, value)
        if out is not None and "convolution_pointwise" in called:
            # The weight is the last tensor of four dimensions: an image that is added comes before it.
            weight = [shape for shape in shapes if len(shape) == len(out)][-1]
            return float(2 * prod(out) * prod(weight[1:]))
        if out is not None and ("linear" in called or "linear_pointwise" in str(node.target)):
            return float(2 * prod(shapes[0]) * out[-1])
    except (IndexError, TypeError, ValueError, AttributeError):
        return None
    return None


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def moved_bytes(nodes: Sequence[Any], graph: Any) -> int:
    """Bytes of what goes into a kernel's nodes from others, and of what others take from them."""
    inside = set(nodes)
    read = {source for node in nodes for source in node.all_input_nodes if source not in inside}
    written = {node for node in nodes if any(user not in inside for user in node.users)}

    def value(node: Any) -> Any:
        if node.op == "get_attr" and node.meta.get("val") is None:
            return getattr(getattr(graph, "module", graph), str(node.target), None)
        return node.meta.get("val")

    return sum(bytes_in(value(node)) for node in (*read, *written))


def graphs_so_far() -> tuple[int, list[dict[str, str]]]:
    """How many graphs were compiled, and where torch.compile had to end one: {"reason", "where"}."""
    from torch._dynamo.utils import counters, graph_break_reasons

    breaks = [
        {"reason": str(each.reason).strip().splitlines()[0], "where": _where(each.user_stack)}
        for each in graph_break_reasons
    ]
    return counters["stats"]["unique_graphs"], [each for i, each in enumerate(breaks) if each not in breaks[:i]]


def _where(stack: Sequence[Any]) -> str:
    """The file and line of the innermost frame."""
    if not stack:
        return "unknown place"
    path = Path(stack[-1].filename)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{stack[-1].lineno}"


def graph_breaks(network: nn.Module, images: Tensor) -> list[dict[str, str]]:
    """Where torch.compile would end a graph in the middle of a forward pass: {"reason", "where"} of each.

    Nothing is compiled, and what was compiled in this process before is forgotten.

    Args:
        images: [B, 3, H, W], on the network's device.
    """
    with torch.no_grad():
        explained = torch._dynamo.explain(network)(images)
    return [
        {"reason": str(each.reason).strip().splitlines()[0], "where": _where(each.user_stack)}
        for each in explained.break_reasons
    ]


def compiled_facts(step: Step) -> dict[str, int]:
    """Graphs, their breaks, recompilations at an unchanged shape, and kernels that were generated."""
    from torch._dynamo.utils import counters

    _reset_compiler()
    step.call()
    graphs = counters["stats"]["unique_graphs"]
    facts = {"graphs": graphs, **_breaks_and_kernels()}
    step.call()
    return {**facts, "recompiles": counters["stats"]["unique_graphs"] - graphs}


def _breaks_and_kernels() -> dict[str, int]:
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    return {
        "graph_breaks": sum(counters["graph_break"].values()),
        "compiled_kernels": metrics.generated_kernel_count,
    }


class GenerationEndedError(Exception):
    """Code was generated, and nothing more was wanted."""


def generated_facts(step: Step) -> dict[str, int]:
    """Breaks and kernels, from generating the code of the first graph without compiling or running it."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    def generate(graph: GraphLowering) -> None:
        graph.codegen()
        raise GenerationEndedError

    _reset_compiler()
    # A cached graph would not be generated; its entry could come from code that was compiled otherwise.
    with config.patch(fx_graph_cache=False), patch.object(GraphLowering, "compile_to_module", generate):
        try:
            step.call()
        except BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, GenerationEndedError):
                raise
    facts = _breaks_and_kernels()
    torch.compiler.reset()
    return facts
