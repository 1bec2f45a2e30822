"""Graphs and kernels that torch.compile made of a step."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import flop_registry

from bench.inspecting.counted import UNKNOWN, _bytes, _tensors, flops_of
from bench.timing.step import Step


@dataclass(frozen=True)
class Kernel:
    """What a generated or called kernel of compiled code does, once.

    Attributes:
        name: as the profiler will name it.
        path: the layer, or the innermost one that holds all layers it was fused from.
        backward: it belongs to a backward graph.
        flops: of its matrix products and convolutions.
        bytes: of the tensors that go in and come out of it.
    """

    name: str
    path: str
    backward: bool
    flops: float | None
    bytes: float


def compiled_again(step: Step) -> list[Kernel]:
    """Have the step compiled anew with ranges around its kernels, and say what each kernel is made of, in order."""
    from torch._dynamo.utils import counters
    from torch._inductor import config, debug
    from torch._inductor.graph import GraphLowering

    torch.compiler.reset()
    counters.clear()
    forward: list[list[Kernel]] = []
    backward: list[list[Kernel]] = []
    generate: Any = GraphLowering.codegen

    def codegen(graph: Any) -> Any:
        code = generate(graph)
        made = [*kernels_of(graph, debug._inductor_triton_kernel_to_post_grad_node_info)]
        (backward if graph.is_backward else forward).append(made)
        return code

    changed: dict[str, Any] = {
        "trace.provenance_tracking_level": 1,
        "cpp.enable_kernel_profile": True,
        # A cached graph would not be generated, and would have no ranges.
        "fx_graph_cache": False,
    }
    if step.workload.network.freeze:
        changed["freezing"] = True
    with config.patch(changed), patch.object(GraphLowering, "codegen", codegen):
        step.call()
        step.call()
    # Graphs of the backward pass run in the opposite order.
    return [kernel for graph in (*forward, *reversed(backward)) for kernel in graph]


def kernels_of(graph: Any, made_of: Mapping[str, Sequence[str]]) -> Iterator[Kernel]:
    """The kernels of a graph that was just generated.

    Args:
        made_of: "kernel:number" -> names of the graph's nodes, as inductor keeps it while it tracks where they are
            from; the number counts the calls in their order.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    done: set[Any] = set()
    for key, names in sorted(made_of.items(), key=lambda item: int(item[0].rpartition(":")[2])):
        called = key.rpartition(":")[0]
        told = [computing(nodes[name]) for name in names if name in nodes]
        # Inductor may name what a node was made from along with it: a library's call is its first node, and a
        # generated kernel what no kernel before it has computed.
        library = called.startswith(("torch.ops.", "extern_kernels.", "aten."))
        inside = told[:1] if library else [node for node in told if node not in done] or told
        if not inside:
            continue
        done.update(inside)
        yield Kernel(
            profiled_name(called, graph.graph_id),
            common(path for node in inside if (path := layer_of(node)) is not None),
            bool(graph.is_backward),
            _sum(node_flops(node, called) for node in inside),
            float(moved_bytes(inside, graph)),
        )


def profiled_name(called: str, graph: int | None) -> str:
    """The profiler's name of what generated code calls `called`."""
    if called.startswith("torch.ops."):
        # The profiler names an operator without its overload.
        return "::".join(called.split(".")[2:4])
    if called.startswith("extern_kernels."):
        return f"aten::{called.removeprefix('extern_kernels.')}"
    if called.startswith("aten."):
        return called.replace(".", "::", 1)
    return called if graph is None or not called.startswith("cpp") else f"graph_{graph}_{called}"


def layer_of(node: Any) -> str | None:
    """Path of the innermost layer that an FX node comes from, None where it does not say."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return None
    path = str(list(stack.values())[-1][0])
    # L['self']._modules['layer1']._modules['0'], L['self'].layer1[0]: the root is the network.
    path = re.sub(r"^L\['\w+'\]|^L__\w+?__", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]|\['?([^'\]]+)'?\]", lambda m: f".{m.group(1) or m.group(2)}", path)
    return path.strip(".")


def common(paths: Any) -> str:
    """The innermost layer that holds all of these."""
    parts = [path.split(".") if path else [] for path in paths]
    if not parts:
        return UNKNOWN
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared) or "(network)"


def computing(node: Any) -> Any:
    """The node itself, or the one whose result it only lays out otherwise."""
    return node.args[0] if "force_stride_order" in str(node.target) else node


def node_flops(node: Any, called: str) -> float | None:
    """FLOPs of an FX node, by its shapes; None where it is no product or convolution, or does not say.

    Args:
        called: the kernel that computes it; a fused pattern of oneDNN has no operator as its target.
    """
    target = node.target
    value = node.meta.get("val")
    shapes = [shape for argument in node.args if (shape := _shape(argument)) is not None]
    out = getattr(value, "shape", None)
    packet = getattr(target, "_overloadpacket", None)
    try:
        if packet in flop_registry or packet is torch.ops.aten.convolution_backward:
            given = torch.utils._pytree.tree_map(_value, (node.args, dict(node.kwargs)))
            return flops_of(target, given[0], given[1], value)
        if out is not None and "convolution_pointwise" in called:
            # The weight is the last tensor of four dimensions: an image that is added comes before it.
            weight = [shape for shape in shapes if len(shape) == len(out)][-1]
            return 2.0 * _product(out) * _product(weight[1:])
        if out is not None and "linear" in called:
            return 2.0 * _product(shapes[0]) * float(out[-1])
    except (IndexError, TypeError, ValueError, AttributeError):
        return None
    return None


def moved_bytes(nodes: Sequence[Any], graph: Any) -> int:
    """Bytes of what goes into a kernel's nodes from others, and of what others take from them."""
    inside = set(nodes)
    read = {source for node in nodes for source in node.all_input_nodes if source not in inside}
    written = {node for node in nodes if any(user not in inside for user in node.users)}
    return sum(_node_bytes(node, graph) for node in (*read, *written))


def _node_bytes(node: Any, graph: Any) -> int:
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        owner: Any = getattr(graph, "module", graph)
        value = getattr(owner, str(node.target), None)
    return sum(_bytes(tensor) for tensor in _tensors(value))


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def _shape(argument: Any) -> Any:
    return getattr(_value(argument), "shape", None)


def _product(numbers: Any) -> float:
    total = 1.0
    for number in numbers:
        total *= int(number)
    return total


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _graphs() -> tuple[int, list[dict[str, str]]]:
    """Graphs compiled so far, and where torch.compile had to end one."""
    from torch._dynamo.utils import counters, graph_break_reasons

    found = [
        {"reason": str(one.reason).strip().splitlines()[0], "where": _where(one.user_stack)}
        for one in graph_break_reasons
    ]
    return counters["stats"]["unique_graphs"], [one for i, one in enumerate(found) if one not in found[:i]]


def _where(stack: Sequence[Any]) -> str:
    if not stack:
        return "unknown place"
    frame = stack[-1]
    path = Path(frame.filename)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{frame.lineno}"


def compiled_facts(step: Step) -> dict[str, Any]:
    """Graphs, their breaks, recompilations at an unchanged shape, and kernels that were generated."""
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    torch.compiler.reset()
    counters.clear()
    metrics.reset()
    step.call()
    graphs = counters["stats"]["unique_graphs"]
    found = {
        "graphs": graphs,
        "graph_breaks": sum(counters["graph_break"].values()),
        "compiled_kernels": metrics.generated_kernel_count,
    }
    step.call()
    return {**found, "recompiles": counters["stats"]["unique_graphs"] - graphs}


class GenerationEndedError(Exception):
    """Code was generated, and nothing more was wanted."""


def generated_facts(step: Step) -> dict[str, Any]:
    """Breaks and kernels, from generating the code of the first graph without compiling or running it."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._dynamo.utils import counters
    from torch._inductor import config, metrics
    from torch._inductor.graph import GraphLowering

    def generate(graph: GraphLowering) -> None:
        graph.codegen()
        raise GenerationEndedError

    torch.compiler.reset()
    counters.clear()
    metrics.reset()
    # A cached graph would not be generated; its entry could come from code that was compiled otherwise.
    with config.patch(fx_graph_cache=False), patch.object(GraphLowering, "compile_to_module", generate):
        try:
            step.call()
        except BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, GenerationEndedError):
                raise
    torch.compiler.reset()
    return {
        "graph_breaks": sum(counters["graph_break"].values()),
        "compiled_kernels": metrics.generated_kernel_count,
    }
