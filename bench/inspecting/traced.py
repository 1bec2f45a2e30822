"""A step under torch.profiler, and the same step counted: the figures `bench profile` is made of.

Runs in a measuring process that times nothing for a comparison, since a profiler slows what it watches. Three looks at
one step:

- timed by torch.profiler, each layer's call in a range of its own, so that an operator is known to belong to it. The
  backward pass has no such calls: its operators are led back to the forward ones by autograd's sequence numbers.
- counted by a dispatch mode: FLOPs by torch's formulas, bytes as each tensor read and written once a call.
- where torch.compile made kernels, what they were made of is taken from inductor while it generates them (the FX nodes
  of each kernel, with their layers and shapes), because compiled code calls no layer.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.inspecting.counted import AUTOGRAD, LOSS, MODULE, OPTIMISER, Found, Tally, Times, counted, ranges
from bench.inspecting.inductor import Kernel, _graphs, compiled_again
from bench.timing.step import Step

# Ranges that hold operators and are none: autograd's nodes, the compiler's frames, our own.
STRUCTURE = re.compile(
    r"module: |autograd::engine::|ProfilerStep|Torch-Compiled Region|## Call CompiledFxGraph|TorchDynamo"
    r"|CompiledFunction|Pregraph bytecode|AOTDispatcher|Optimizer\.|.*Backward\d*$|PyTorch Profiler|enumerate\("
)
LAUNCHES = re.compile(r"(cuda|cu)(LaunchKernel|LaunchKernelEx\w*|GraphLaunch|LaunchCooperativeKernel)")


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
        engine = str(step.workload.network.peer)
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

    from bench.timing.clock import CLOCKS

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


# ---- compiled code ----


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
