"""A step under torch.profiler, and the same step counted: the figures `bench profile` is made of.

Runs in a measuring process that times nothing for a comparison, since a profiler slows what it watches. Three looks at
one step:

- timed by torch.profiler, each layer's call in a range of its own, so that an operator is known to belong to it. The
  backward pass has no such calls: its operators are led back to the forward ones by autograd's sequence numbers.
- counted by a dispatch mode: FLOPs by torch's formulas, bytes as each tensor read and written once a call.
- where torch.compile made kernels, what they were made of is taken from inductor while it generates them (the FX nodes
  of each kernel, with their layers and shapes), because compiled code calls no layer.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from bench.cost import convolution_backward_flops
from bench.step import Step

MODULE = "module: "
# Ranges that hold operators and are none: autograd's nodes, the compiler's frames, our own.
STRUCTURE = re.compile(
    r"module: |autograd::engine::|ProfilerStep|Torch-Compiled Region|## Call CompiledFxGraph|TorchDynamo"
    r"|CompiledFunction|Pregraph bytecode|AOTDispatcher|Optimizer\.|.*Backward\d*$|PyTorch Profiler|enumerate\("
)
LAUNCHES = re.compile(r"(cuda|cu)(LaunchKernel|LaunchKernelEx\w*|GraphLaunch|LaunchCooperativeKernel)")
LOSS, OPTIMISER, AUTOGRAD, UNKNOWN = "(loss)", "(optimiser)", "(autograd)", "(no layer named)"


@dataclass
class Tally:
    """Sums over a step; `flops` and `bytes` stay None while nothing is known of them."""

    calls: float = 0.0
    seconds: float = 0.0
    flops: float | None = None
    bytes: float | None = None

    def work(self, flops: float | None, moved: float | None) -> None:
        """Add an amount of work."""
        if flops is not None:
            self.flops = (self.flops or 0.0) + flops
        if moved is not None:
            self.bytes = (self.bytes or 0.0) + moved


@dataclass
class Times:
    """Seconds of one layer's own operators over a step."""

    forward: float = 0.0
    backward: float = 0.0


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


@dataclass
class Found:
    """What the passes gathered."""

    operators: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    times: dict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    work: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))


def trace(step: Step, steps: int, file: str) -> dict[str, Any]:
    """Profile a step that was built and called before.

    Args:
        steps: profiled calls; figures are their mean.
        file: of the Chrome trace, .json or .json.gz; "" writes none.

    Returns:
        {"seconds", "operators", "modules", "launches", "busy", "graphs", "recompiles", "breaks", "notes"}, as
        results.profile has them; `busy` are seconds of a step in which a GPU worked, None on a CPU.
    """
    notes: list[str] = []
    graphs = recompiles = None
    breaks: list[dict[str, str]] = []
    kernels: list[Kernel] = []
    found = Found()
    if step.compiled:
        kernels = compiled_again(step)
        graphs, breaks = _graphs()
        events, seconds = recorded(step, steps, file, None)
        recompiles = (_graphs()[0] or 0) - (graphs or 0)
        if not kernels:
            notes.append("inductor did not say what its kernels are made of: no FLOPs, bytes and layers")
    elif step.converted:
        notes.append("the network runs inside another engine, which torch.profiler does not see into")
        events, seconds = recorded(step, steps, file, None)
    else:
        counted(step, found)
        events, seconds = recorded(step, steps, file, step.module)
    if step.converted:
        engine = step.workload.configuration.split("-")[0]
        found.operators[engine] = Tally(1.0, seconds)
        events = []
    known = {kernel.name for kernel in kernels} or {name for name, tally in found.operators.items() if tally.calls}
    cuda = step.workload.device == "cuda"
    attribute(events, known, found, steps, cuda, outermost=step.compiled)
    if kernels:
        by_kernel(kernels, events, found, steps, cuda)
    own = dict(step.module.named_modules()) if step.module is not None else {}
    return {
        "seconds": seconds,
        "operators": [
            {"name": name, "calls": t.calls, "seconds": t.seconds, "flops": t.flops, "bytes": t.bytes}
            for name, t in sorted(found.operators.items(), key=lambda item: -item[1].seconds)
            if t.seconds > 0
        ],
        "modules": [
            {
                "path": path,
                "kind": type(own[path]).__name__ if path in own else "",
                "forward_seconds": found.times[path].forward if path in found.times else 0.0,
                "backward_seconds": found.times[path].backward if path in found.times else 0.0,
                "flops": found.work[path].flops if path in found.work else None,
                "bytes": found.work[path].bytes if path in found.work else None,
            }
            for path in in_order(found.times, own)
        ],
        "launches": launches(events, found, steps, cuda),
        "busy": busy_seconds(events, steps) if cuda else None,
        "graphs": graphs,
        "recompiles": recompiles,
        "breaks": breaks,
        "notes": notes,
    }


# ---- the timed pass ----


def recorded(step: Step, steps: int, file: str, module: nn.Module | None) -> tuple[list[Any], float]:
    """Events of `steps` calls and seconds of one of them; with `module` a range for each call of a layer."""
    from torch.profiler import ProfilerActivity, profile

    from bench.clock import CLOCKS

    clock = CLOCKS[step.workload.device]
    activities = [ProfilerActivity.CPU]
    if step.workload.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with ranges(module):
        # The first use of the profiler sets up its buffers, and of a GPU its counters.
        with profile(activities=activities):
            step.call()
            clock()
        with profile(activities=activities) as profiler:
            begin = clock()
            for _ in range(steps):
                step.call()
            seconds = (clock() - begin) / steps
    if file:
        profiler.export_chrome_trace(file)
    return list(profiler.events() or ()), seconds


@contextlib.contextmanager
def ranges(module: nn.Module | None, push: Callable[[str], object] | None = None, pop: Any = None) -> Iterator[None]:
    """A named range around every forward call of a layer while this lasts.

    Args:
        push, pop: begin and end a range; torch.profiler's own by default.
    """
    if module is None:
        yield
        return
    open_: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if push is not None:
                push(name)
                return
            one: Any = torch.autograd.profiler.record_function(MODULE + name)
            one.__enter__()
            open_.append(one)

        return hook

    def leave(*_: Any) -> None:
        if pop is not None:
            pop()
        elif open_:
            open_.pop().__exit__(None, None, None)

    handles = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(enter(name)))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attribute(
    events: Sequence[Any], known: set[str], found: Found, steps: int, cuda: bool, outermost: bool = False
) -> None:
    """Give each event's own time to its operator and to its layer.

    Args:
        known: operators that were counted: what runs inside one of them is part of it.
        outermost: time of an event outside of these goes to the outermost operator around it, else to nobody.
    """
    host = [event for event in events if _on_host(event)]
    host.sort(key=lambda event: event.time_range.start)
    owner: dict[int, tuple[str, bool]] = {}
    by_number: dict[int, str] = {}
    for event in host:
        owner[id(event)] = _layer(event, owner, by_number)
        path, backward = owner[id(event)]
        if event.sequence_nr >= 0 and path not in ("", LOSS) and not backward:
            # Operators that make no node of autograd's carry the number of the next that does; the last one is it.
            by_number[event.sequence_nr] = path
    operator: dict[int, str | None] = {}
    for event in host:
        seconds = 1e-6 * (event.self_device_time_total if cuda else event.self_cpu_time_total) / steps
        name = operator_of(event, known, operator, outermost)
        if name is not None:
            # Outermost events are counted here: what they call is part of them.
            parent = event.cpu_parent
            begins = event.name == name and (parent is None or operator.get(id(parent)) != name)
            tally = found.operators[name]
            tally.seconds += seconds
            if outermost and begins:
                tally.calls += 1 / steps
        path, backward = owner[id(event)]
        if name is None and not cuda:
            continue
        times = found.times[path or LOSS]
        if backward:
            times.backward += seconds
        else:
            times.forward += seconds
    if cuda:
        _loose_kernels(events, host, found, steps)


def _on_host(event: Any) -> bool:
    return str(event.device_type).endswith("CPU") and not event.is_async


def _layer(event: Any, owner: Mapping[int, tuple[str, bool]], by_number: Mapping[int, str]) -> tuple[str, bool]:
    """(path of the layer an event works for, whether in the backward pass); "" outside of all."""
    if event.name.startswith(MODULE):
        return event.name.removeprefix(MODULE) or "(network)", False
    if event.name.startswith("autograd::engine::evaluate_function"):
        return by_number.get(event.sequence_nr, AUTOGRAD), True
    if event.name.startswith("Optimizer."):
        return OPTIMISER, False
    parent = event.cpu_parent
    return owner.get(id(parent), ("", False)) if parent is not None else ("", False)


def operator_of(event: Any, known: set[str], seen: dict[int, str | None], outermost: bool) -> str | None:
    """The operator whose work an event is: the outermost known one around it, see `attribute`."""
    if STRUCTURE.match(event.name):
        seen[id(event)] = None
        return None
    parent = event.cpu_parent
    above = None
    if parent is not None:
        above = seen[id(parent)] if id(parent) in seen else operator_of(parent, known, seen, outermost)
    if above is None and (event.name in known or outermost):
        above = event.name
    elif above is not None and above not in known and event.name in known:
        # A known kernel inside a wrapper that is none.
        above = event.name
    seen[id(event)] = above
    return above


def _loose_kernels(events: Sequence[Any], host: Sequence[Any], found: Found, steps: int) -> None:
    """Kernels that no operator launched: those that a CUDA graph replays. Never seen on a GPU here."""
    linked = {(k.name, round(k.duration, 3)) for event in host for k in event.kernels}
    if linked:
        return
    for event in events:
        if not _on_host(event) and "Memcpy" not in event.name and "Memset" not in event.name:
            tally = found.operators[event.name]
            tally.calls += 1 / steps
            tally.seconds += 1e-6 * event.time_range.elapsed_us() / steps


def launches(events: Sequence[Any], found: Found, steps: int, cuda: bool) -> float:
    """A step: calls that put work on a GPU; on a CPU calls of operators."""
    if not cuda:
        return sum(tally.calls for tally in found.operators.values())
    return sum(1 for event in events if LAUNCHES.fullmatch(event.name)) / steps


def busy_seconds(events: Sequence[Any], steps: int) -> float:
    """Seconds of a step in which at least one kernel or copy ran on the GPU."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in events if not _on_host(e) and not e.is_async)
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1e-6 * total / steps


def in_order(times: Mapping[str, Times], own: Mapping[str, nn.Module]) -> list[str]:
    """Layers in the network's order, then what lies outside of it."""
    outside = [path for path in times if path not in own]
    # What holds layers has no operators of its own, and is named all the same.
    parents = {path for given in times for path in _above(given)}
    return [*(path for path in own if path in times or path in parents), *sorted(outside)]


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


# ---- the counting pass ----


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FLOPs and bytes of every operator that computes, by operator and by layer."""

    def __init__(self, found: Found) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.inside: list[str] = []
        self.by_number: dict[int, str] = {}
        self.optimising = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if not computes(func):
            return result
        flops = flops_of(func, args, given, result)
        moved = float(sum(map(_bytes, _tensors((args, given)))) + sum(map(_bytes, _tensors(result))))
        name = operator_name(func)
        tally = self.found.operators[name]
        tally.calls += 1
        tally.work(flops, moved)
        self.found.work[self._path()].work(flops, moved)
        return result

    def _path(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            # Of the backward pass: an autograd node carries the number that its forward operator was given.
            return self.by_number.get(node._sequence_nr(), AUTOGRAD)
        if not self.inside:
            return OPTIMISER if self.optimising else LOSS
        path = self.inside[-1] or "(network)"
        # A node is made, and takes its number, before its operator runs; operators without one that follow find the
        # number of the node before them.
        self.by_number.setdefault(torch.autograd._get_sequence_nr() - 1, path)
        return path


def counted(step: Step, found: Found) -> None:
    """One call of a step, counted."""
    counter = Counter(found)
    with contextlib.ExitStack() as stack:
        if step.optimizer is not None:
            stack.callback(_watch(step.optimizer, counter))
        stack.enter_context(ranges(step.module, counter.inside.append, counter.inside.pop))
        stack.enter_context(counter)
        step.call()


def _watch(optimizer: torch.optim.Optimizer, counter: Counter) -> Callable[[], None]:
    """Tells the counter when the optimiser works; the returned function ends that."""

    def begin(*_: Any) -> None:
        counter.optimising = True

    def end(*_: Any) -> None:
        counter.optimising = False

    handles = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


def operator_name(func: Any) -> str:
    """aten.convolution.default -> aten::convolution, as the profiler writes it."""
    return str(func._overloadpacket).replace(".", "::", 1)


def computes(func: Any) -> bool:
    """Whether an operator reads or writes elements: no view, no allocation."""
    name = operator_name(func).rpartition("::")[2]
    if name.startswith(("empty", "new_empty", "detach", "_local_scalar", "is_", "record_stream")):
        return False
    returns = func._schema.returns
    return not (returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns))


def flops_of(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> float | None:
    """By torch's formula, with ours for convolutions' backward pass (see bench.cost); None for other operators."""
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        wrapped: Any = shape_wrapper
        return float(wrapped(convolution_backward_flops)(*args, **kwargs, out_val=result))
    if packet not in flop_registry:
        return None
    return float(flop_registry[packet](*args, **kwargs, out_val=result))


def _tensors(tree: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ---- compiled code ----


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
    if step.workload.configuration.endswith("freeze"):
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


def by_kernel(kernels: Sequence[Kernel], events: Sequence[Any], found: Found, steps: int, cuda: bool) -> None:
    """Put work beside the operators of compiled code, and their times to layers, call by call.

    A name whose calls are not as many as the graphs have stays without a layer.
    """
    planned: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        planned[kernel.name].append(kernel)
    found.times.clear()
    calls: dict[str, list[Any]] = defaultdict(list)
    seen: dict[int, str | None] = {}
    for event in sorted((e for e in events if _on_host(e)), key=lambda e: e.time_range.start):
        name = operator_of(event, set(planned), seen, outermost=True)
        parent = event.cpu_parent
        if name is not None and name == event.name and (parent is None or seen.get(id(parent)) != name):
            calls[name].append(event)
    for name, made in calls.items():
        plan = planned.get(name, [])
        fits = len(plan) * steps == len(made)
        for number, event in enumerate(made):
            seconds = 1e-6 * (event.device_time_total if cuda else event.cpu_time_total) / steps
            chosen = plan[number % len(plan)] if fits else None
            times = found.times[chosen.path if chosen else _outside(event)]
            if chosen is not None and chosen.backward:
                times.backward += seconds
            else:
                times.forward += seconds
        for kernel in plan if fits else ():
            found.operators[name].work(kernel.flops, kernel.bytes)
            found.work[kernel.path].work(kernel.flops, kernel.bytes)


def _outside(event: Any) -> str:
    """Where the time of an event goes that no graph knows."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("Optimizer."):
            return OPTIMISER
        if parent.name.startswith("autograd::engine::"):
            return AUTOGRAD
        parent = parent.cpu_parent
    return LOSS


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


def annotated(step: Step, steps: int) -> dict[str, Any]:
    """Call a step within NVTX ranges, its layers' and autograd's, for Nsight Systems to see; nothing is measured."""
    nvtx: Any = torch.cuda.nvtx
    operators: Any = torch.autograd.profiler.emit_nvtx
    with operators(), ranges(None if step.compiled else step.module, nvtx.range_push, nvtx.range_pop):
        for number in range(steps):
            nvtx.range_push(f"step {number}")
            step.call()
            nvtx.range_pop()
    torch.cuda.synchronize()
    return {"steps": steps}
