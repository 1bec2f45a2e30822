"""A step under torch.profiler, its time and work by operator and by layer, for `bench profile`.

Runs in a measuring process of its own that times nothing else, since a profiler slows what it watches. A step is looked
at in up to three ways:

- timed by torch.profiler, with a named range around each layer's forward pass, so that an operator is known to belong
  to it. The backward pass calls no layers: autograd's sequence numbers lead its operators back to the forward ones.
- counted by a dispatch mode: FLOPs by torch's formulas, bytes as each tensor read and written once a call.
- compiled again, if torch.compile made it: compiled code calls no layers, so inductor's own notes of the FX nodes that
  each kernel was generated from say which layers and shapes it computes.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.inspecting.counted import AUTOGRAD, LOSS, NETWORK, OPTIMISER, Tallies, Tally, count_work, ranges
from bench.inspecting.inductor import Kernel, compile_again, graphs_so_far, own_name
from bench.machine.cpu import Roots, memory_facts
from bench.timing.clock import CLOCKS
from bench.timing.step import Step

MODULE = "module: "
# Ranges that hold operators but are none: autograd's nodes, the compiler's frames, our own.
STRUCTURE = re.compile(
    r"module: |autograd::engine::|ProfilerStep|Torch-Compiled Region|## Call CompiledFxGraph|TorchDynamo"
    r"|CompiledFunction|Pregraph bytecode|AOTDispatcher|Optimizer\.|.*Backward\d*$|PyTorch Profiler|enumerate\("
)
LAUNCHES = re.compile(r"(cuda|cu)(LaunchKernel|LaunchKernelEx\w*|GraphLaunch|LaunchCooperativeKernel)")
SPARE = 2**30  # bytes

# torch.autograd.profiler_util.FunctionEvent, whose attributes torch does not type.
Event = Any


def trace(step: Step, steps: int, file: str) -> dict[str, Any]:
    """Profile a step that was built and called before.

    Args:
        steps: profiled calls; all figures are means over them.
        file: where to write the Chrome trace, .json or .json.gz; "" writes none.

    Returns:
        {"seconds", "operators", "modules", "launches", "busy", "graphs", "recompiles", "breaks", "notes"}, as in
        results.profile; `busy` are the seconds of a step in which a GPU worked, None on a CPU.
    """
    notes: list[str] = []
    graphs = recompiles = None
    breaks: list[dict[str, str]] = []
    kernels: list[Kernel] = []
    tallies = Tallies()
    if step.compiled:
        kernels = compile_again(step)
        graphs, breaks = graphs_so_far()
        if not kernels:
            notes.append("inductor did not say what its kernels are made of: no FLOPs, bytes and layers")
    elif step.converted:
        notes.append("the network runs inside another engine, which torch.profiler cannot see into")
    else:
        count_work(step, tallies)
    if step.workload.keeps_memory:
        notes += make_spare_memory()
    events, seconds = record_events(step, steps, file, None if step.compiled or step.converted else step.module)
    if graphs is not None:
        recompiles = graphs_so_far()[0] - graphs
    if step.converted:
        events = []
        engine = str(step.workload.network.peer)
        tallies.operators[engine] = Tally(1.0, seconds)
    known = {kernel.name for kernel in kernels} or {name for name, tally in tallies.operators.items() if tally.calls}
    cuda = step.workload.device == "cuda"
    operators = host_operators(events, known, outermost=step.compiled)
    add_operator_times(operators, tallies, steps, cuda, count_calls=step.compiled)
    if cuda:
        add_replayed_kernels(events, tallies, steps)
    if kernels:
        add_kernels(kernels, operators, tallies, steps, cuda)
    else:
        add_layer_times(operators, tallies, steps, cuda)
    own = dict(step.module.named_modules()) if step.module is not None else {}
    return {
        "seconds": seconds,
        "operators": [
            {"name": name, "calls": tally.calls, "seconds": tally.seconds, "flops": tally.flops, "bytes": tally.bytes}
            for name, tally in sorted(tallies.operators.items(), key=lambda item: -item[1].seconds)
            if tally.seconds > 0
        ],
        "modules": [
            {
                "path": path,
                "kind": type(own[path]).__name__ if path in own else "",
                "forward_seconds": tally.forward_seconds,
                "backward_seconds": tally.backward_seconds,
                "flops": tally.flops,
                "bytes": tally.bytes,
            }
            for path, tally in in_order(tallies.layers, own).items()
        ],
        "launches": launches(events, tallies, steps, cuda),
        "busy": busy_seconds(events, steps) if cuda else None,
        "graphs": graphs,
        "recompiles": recompiles,
        "breaks": breaks,
        "notes": notes,
    }


def make_spare_memory() -> list[str]:
    """Leave freed memory in a process that keeps it; a note if it cannot.

    Under the profiler a step that keeps its memory asks the system for more again, most likely because the profiler's
    notes lie where blocks were freed. Its largest layers would be shown with the time of clearing new pages.
    """
    facts = memory_facts(Roots())
    sizes = [facts[name] for name in ("available_bytes", "limit_bytes") if facts[name] is not None]
    # An eighth: what a step itself needs is part of what a control group allows, and a kill would lose the profile.
    if min(sizes, default=0) >= 8 * SPARE:
        try:
            torch.ones(SPARE, dtype=torch.uint8)
        except RuntimeError:  # addresses can be limited too
            pass
        else:
            return []
    return ["too little memory to have some ready: large layers may be shown with the time that new memory takes"]


def record_events(step: Step, steps: int, file: str, module: nn.Module | None) -> tuple[list[Event], float]:
    """Events of `steps` calls, and seconds of one of them; with `module` a range for each call of its layers."""
    from torch.profiler import ProfilerActivity, profile

    clock = CLOCKS[step.workload.device]
    activities = [ProfilerActivity.CPU]
    if step.workload.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with ranges(module, *_profiler_ranges()):
        # Its first use sets up the profiler's buffers and, of a GPU, its counters.
        with profile(activities=activities):
            step.call()
            clock()
        with profile(activities=activities) as profiler:
            begin = clock()
            for _ in range(steps):
                step.call()
            seconds = (clock() - begin) / steps
    if file:
        # Under another name first: a kill must not leave half of a trace in the place of an older one.
        draft = Path(file).with_name(f".{Path(file).name}.{os.getpid()}.json.gz")
        profiler.export_chrome_trace(str(draft))
        draft.replace(file)
    events = list(profiler.events() or ())
    for event in events:
        event.name = own_name(event.name)
    return events, seconds


def _profiler_ranges() -> tuple[Callable[[str], None], Callable[[], None]]:
    """What begins a range of torch.profiler, and what ends the innermost one."""
    running: list[Any] = []

    def push(name: str) -> None:
        running.append(torch.autograd.profiler.record_function(MODULE + name))
        running[-1].__enter__()

    def pop() -> None:
        running.pop().__exit__(None, None, None)

    return push, pop


def host_operators(events: Sequence[Event], known: set[str], outermost: bool = False) -> list[tuple[Event, str | None]]:
    """The host's events in the order of time, each with the operator whose work it is, None where there is none.

    That is the outermost known operator around it.

    Args:
        known: operators that were counted: what runs inside one of them is part of it.
        outermost: an event outside of these belongs to the outermost operator around it, known or not.
    """
    host = sorted((event for event in events if _on_host(event)), key=lambda event: event.time_range.start)
    names: dict[int, str | None] = {}

    def operator_of(event: Event) -> str | None:
        if id(event) not in names:
            parent = event.cpu_parent
            if STRUCTURE.match(event.name):
                names[id(event)] = None
            else:
                above = operator_of(parent) if parent is not None else None
                # Below an operator that is not known, a known one counts.
                counts = event.name in known if above else event.name in known or outermost
                names[id(event)] = event.name if counts and above not in known else above
        return names[id(event)]

    return [(event, operator_of(event)) for event in host]


def _on_host(event: Event) -> bool:
    return str(event.device_type).endswith("CPU") and not event.is_async


def add_operator_times(
    operators: Sequence[tuple[Event, str | None]], tallies: Tallies, steps: int, cuda: bool, count_calls: bool
) -> None:
    """Add each event's own time to its operator, and with `count_calls` the calls of operators."""
    for event, name in operators:
        if name is not None:
            tallies.operators[name].add_time(_own_seconds(event, cuda) / steps)
    if count_calls:
        for name, calls in _calls(operators).items():
            tallies.operators[name].calls += len(calls) / steps


def _own_seconds(event: Event, cuda: bool) -> float:
    return 1e-6 * float(event.self_device_time_total if cuda else event.self_cpu_time_total)


def _calls(operators: Sequence[tuple[Event, str | None]]) -> dict[str, list[Event]]:
    """The events that are calls of an operator, not a part of one, by its name."""
    names = {id(event): name for event, name in operators}
    calls: dict[str, list[Event]] = defaultdict(list)
    for event, name in operators:
        if name == event.name and names.get(id(event.cpu_parent)) != name:
            calls[event.name].append(event)
    return calls


def add_layer_times(operators: Sequence[tuple[Event, str | None]], tallies: Tallies, steps: int, cuda: bool) -> None:
    """Add each event's own time to the layer whose range it ran in, or whose forward pass it is the gradient of."""
    owners: dict[int, tuple[str, bool]] = {}
    path_by_number: dict[int, str] = {}
    for event, name in operators:
        path, backward = owners[id(event)] = _layer(event, owners, path_by_number)
        if event.sequence_nr >= 0 and path not in ("", LOSS) and not backward:
            # Operators without a node of autograd's carry the number of the next one that has one: the last one is it.
            path_by_number[event.sequence_nr] = path
        if name is not None or cuda:
            tallies.layers[path or LOSS].add_time(_own_seconds(event, cuda) / steps, backward)


def _layer(event: Event, owners: Mapping[int, tuple[str, bool]], path_by_number: Mapping[int, str]) -> tuple[str, bool]:
    """(path of the layer an event works for, whether in the backward pass); "" outside of all."""
    if event.name.startswith(MODULE):
        return event.name.removeprefix(MODULE) or NETWORK, False
    if event.name.startswith("autograd::engine::evaluate_function"):
        return path_by_number.get(event.sequence_nr, AUTOGRAD), True
    if event.name.startswith("Optimizer."):
        return OPTIMISER, False
    return owners.get(id(event.cpu_parent), ("", False))


def add_kernels(
    kernels: Sequence[Kernel],
    operators: Sequence[tuple[Event, str | None]],
    tallies: Tallies,
    steps: int,
    cuda: bool,
) -> None:
    """Add the work of compiled code to its operators, and its times to the layers, call by call.

    A kernel that was not called as often as the graphs call it gets neither work nor a layer.
    """
    planned: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        planned[kernel.name].append(kernel)
    for name, calls in _calls(operators).items():
        plan = planned[name] if len(planned[name]) * steps == len(calls) else []
        for number, event in enumerate(calls):
            seconds = 1e-6 * (event.device_time_total if cuda else event.cpu_time_total) / steps
            if plan:
                called = plan[number % len(plan)]
                tallies.layers[called.path].add_time(seconds, called.backward)
            else:
                tallies.layers[_outside(event)].add_time(seconds)
        for kernel in plan:
            tallies.operators[name].add_work(kernel.flops, kernel.bytes)
            tallies.layers[kernel.path].add_work(kernel.flops, kernel.bytes)


def _outside(event: Event) -> str:
    """What an event that no graph knows belongs to."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("Optimizer."):
            return OPTIMISER
        if parent.name.startswith("autograd::engine::"):
            return AUTOGRAD
        parent = parent.cpu_parent
    return LOSS


def add_replayed_kernels(events: Sequence[Event], tallies: Tallies, steps: int) -> None:
    """Add kernels that no operator launched, as those of a replayed CUDA graph. Not yet tried on a GPU.

    The copies into a graph's inputs are operators of their own, whose kernels have been counted with them.
    """
    claimed = Counter(
        (own_name(kernel.name), kernel.duration) for event in events if _on_host(event) for kernel in event.kernels
    )
    for event in events:
        if _on_host(event) or "Memcpy" in event.name or "Memset" in event.name:
            continue
        key = (event.name, event.time_range.elapsed_us())
        if claimed[key]:
            claimed[key] -= 1
        else:
            tallies.operators[event.name].calls += 1 / steps
            tallies.operators[event.name].add_time(1e-6 * event.time_range.elapsed_us() / steps)


def launches(events: Sequence[Event], tallies: Tallies, steps: int, cuda: bool) -> float:
    """Calls a step that put work on a GPU; on a CPU calls of operators."""
    if not cuda:
        return sum(tally.calls for tally in tallies.operators.values())
    return sum(1 for event in events if LAUNCHES.fullmatch(event.name)) / steps


def busy_seconds(events: Sequence[Event], steps: int) -> float:
    """Seconds of a step in which at least one kernel or copy ran on the GPU."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in events if not _on_host(e) and not e.is_async)
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1e-6 * total / steps


def in_order(layers: Mapping[str, Tally], own: Mapping[str, nn.Module]) -> dict[str, Tally]:
    """Layers and their parents in the network's order, then what is not part of it."""
    # Parents have no operators of their own, but are listed too.
    parents = {path[:end] for path in layers for end, letter in enumerate(path) if letter == "."}
    inside = [path for path in own if path in layers or path in parents]
    outside = sorted(path for path in layers if path not in own)
    return {path: layers.get(path, Tally()) for path in (*inside, *outside)}


def annotated(step: Step, steps: int) -> dict[str, Any]:
    """Call a step within NVTX ranges, its layers' and autograd's, for Nsight Systems to show; measures nothing."""
    nvtx: Any = torch.cuda.nvtx
    operators: Any = torch.autograd.profiler.emit_nvtx
    with operators(), ranges(None if step.compiled else step.module, nvtx.range_push, nvtx.range_pop):
        for number in range(steps):
            nvtx.range_push(f"step {number}")
            step.call()
            nvtx.range_pop()
    torch.cuda.synchronize()
    return {"steps": steps}
