"""The memory a step needs, part by part, and what the operating system reports for the process.

On a CPU the parts are counted, to the byte and the same in every run: the tensors that stay, and how far torch's
allocator goes beyond them while a step runs. What does not pass that allocator is not among them: scratch space and
packed copies of weights that oneDNN and MKL allocate themselves, what a loader's own threads allocate, code, libraries.
The process's resident set holds these too; it is read several times, because it differs from one reading to the next.
On CUDA the allocator's counters are read; see `_on_cuda`.

An engine other than torch allocates for itself, so what it holds is measured, by the resident set.
"""

import contextlib
import ctypes
import gc
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

from bench.errors import WorkloadError
from bench.machine.gpu import ask, open_nvml
from bench.timing.step import Step
from models.prepare import prepare

READINGS = 3
"""Readings of the resident set: enough to show how much it differs within a process."""
_COUNTED_STEP = "counted step"


@dataclass(frozen=True)
class Memory:
    """Bytes. `peak` is what has to fit; the fields before it add up to it.

    Attributes:
        weights: parameters and buffers of the network; 0 where another engine holds them.
        gradients: of the parameters, between two steps.
        optimizer: the optimiser's state.
        inputs: the constant batch.
        workspace: activations and scratch space: how far a step's highest point lies above its start.
        slack: reserved by the allocator and not in use (CUDA; 0 on a CPU).
        engine: all that an engine other than torch holds while a step runs, weights included.
        peak: the sum of the above; on CUDA torch's peak of reserved bytes.
        counted: whether `peak` is counted exactly.
        peaks: readings of `peak` where it is measured, which is then their median; else empty.
        process: the whole process: its resident set on a CPU, the driver's figure on CUDA; None if it was not read.
        processes: readings of `process`, which is their median.
        residue: process - peak: code, libraries, the CUDA context, packed copies of frozen weights.
    """

    weights: int
    gradients: int
    optimizer: int
    inputs: int
    workspace: int
    slack: int
    engine: int
    peak: int
    counted: bool
    peaks: tuple[int, ...]
    process: int | None
    processes: tuple[int, ...]
    residue: int | None


def measure(step: Step, readings: int = READINGS) -> Memory:
    """Run a step that has run before a few times more, and report its memory; never while steps are timed.

    Other steps in the process change its own figures only.

    Args:
        readings: how often the process is read, 0 for not at all. What an engine other than torch holds is read as
            often, and at least once.

    Raises:
        WorkloadError: it cannot be measured here.
    """
    parts = dict.fromkeys(("weights", "gradients", "optimizer", "inputs", "workspace", "slack", "engine"), 0)
    parts["inputs"] = tensor_bytes(step.inputs)
    if step.converted:
        held = engine_readings(step, max(1, readings))
        parts["engine"] = round(statistics.median(held))
        peaks = [parts["inputs"] + reading for reading in held]
        return _memory(parts, resident_readings(step.call, readings), peaks=peaks)
    parameters = list(step.module.parameters()) if step.module is not None else []
    buffers = list(step.module.buffers()) if step.module is not None else []
    states = step.optimizer.state.values() if step.optimizer is not None else ()
    parts["weights"] = tensor_bytes([*parameters, *buffers])
    parts["gradients"] = tensor_bytes(p.grad for p in parameters if p.grad is not None)
    parts["optimizer"] = tensor_bytes(v for state in states for v in state.values() if isinstance(v, Tensor))
    if step.workload.device == "cuda":
        allocated, reserved, process = _on_cuda(step)
        parts["workspace"] = max(0, allocated - sum(parts.values()))
        parts["slack"] = reserved - allocated
        return _memory(parts, [process] if readings else [], peak=reserved)
    # Before the count: what the profiler itself holds would be read too.
    processes = resident_readings(step.call, readings)
    parts["workspace"] = counted_workspace(step.call)
    return _memory(parts, processes, counted=True)


def _memory(
    parts: dict[str, int],
    processes: Sequence[int],
    peak: int | None = None,
    counted: bool = False,
    peaks: Sequence[int] = (),
) -> Memory:
    peak = sum(parts.values()) if peak is None else peak
    process = round(statistics.median(processes)) if processes else None
    return Memory(
        **parts,
        peak=peak,
        counted=counted,
        peaks=tuple(peaks),
        process=process,
        processes=tuple(processes),
        residue=None if process is None else process - peak,
    )


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' distinct storages, so that tied weights count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(storages.values())


def counted_workspace(call: Callable[[], object]) -> int:
    """Bytes by which what torch's CPU allocator has given out rises, at most, above the start of a call.

    The profiler reports every allocation and every release on the calling thread, in order. A block is only seen to be
    released if it was also seen to be allocated: the first of two calls allocates under the profiler what lives until
    the next one, such as gradients, and the second is counted.
    """
    gc.collect()
    collecting = gc.isenabled()
    # When garbage is collected must not decide when a block is released.
    gc.disable()
    try:
        with profile(profile_memory=True) as profiler:
            call()
            with record_function(_COUNTED_STEP):
                call()
    finally:
        if collecting:
            gc.enable()
    assert profiler.kineto_results is not None
    events = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    [counted] = [event for event in events if event.name() == _COUNTED_STEP]
    changes = (
        event.nbytes()
        for event in events
        if event.name() == "[memory]" and counted.start_ns() <= event.start_ns() <= counted.end_ns()
    )
    return int(max(accumulate(changes, initial=0)))


def resident_readings(call: Callable[[], object], readings: int) -> list[int]:
    """The highest resident set of each of some calls; none where the system does not let it be read."""
    with contextlib.suppress(OSError, KeyError):
        return [highest_resident(call) for _ in range(readings)]
    return []


def highest_resident(call: Callable[[], object]) -> int:
    """The highest resident set during a call.

    The C library keeps freed pages. They are given back to the kernel first, so that the call has to ask for them again
    and the resident set shows them.

    Raises:
        OSError, KeyError: the system does not report it, or does not let its high-water mark be reset.
    """
    trim()
    # "5" resets the high-water mark of the resident set (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return status_bytes("VmHWM")


def trim() -> None:
    """Give memory that nothing uses back to the kernel."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def engine_readings(step: Step, readings: int) -> list[int]:
    """Bytes that an engine other than torch holds while a step runs, each reading with the network converted anew.

    A reading is the highest resident set of a step less the resident set once that engine is gone again. Code,
    libraries, torch's copy of the weights and all other steps are in both.

    Raises:
        WorkloadError: the resident set cannot be read, or the engine works on a GPU, out of its sight.
    """
    workload = step.workload
    if workload.device != "cpu" or step.module is None:
        raise WorkloadError(f"the memory of {workload.network.peer} on a GPU does not pass torch's allocator")
    [images] = step.inputs
    found: list[int] = []
    try:
        for _ in range(readings):
            device = torch.device(workload.device)
            forward = prepare(step.module, workload.network, device, False, tuple(images.shape)).forward
            forward(images)
            highest = highest_resident(lambda forward=forward: forward(images))  # type: ignore[misc]
            del forward
            trim()
            found.append(highest - status_bytes("VmRSS"))
    except (OSError, KeyError) as error:
        raise WorkloadError(f"the process's resident set cannot be read here: {error}") from error
    return found


def status_bytes(key: str, status: Path = Path("/proc/self/status")) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in status.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _on_cuda(step: Step) -> tuple[int, int, int]:
    """(allocated, reserved, process): the allocator's peaks over one step, after its cache was emptied, and NVML's.

    What a CUDA graph keeps for its replays counts as allocated: to the allocator it is free, but to nobody else.
    """
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step.call()
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    pools = [each for each in segments if tuple(each["segment_pool_id"]) != (0, 0)]
    allocated = min(reserved, allocated + sum(each["total_size"] - each["allocated_size"] for each in pools))
    free, total = torch.cuda.mem_get_info()
    return allocated, reserved, process_bytes(total - free)


def process_bytes(in_use: int) -> int:
    """This process's device memory by NVML; where NVML does not report it `in_use`, that of all processes."""
    nvml = open_nvml()
    if nvml is None:
        return in_use
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    handle = ask(nvml, "nvmlDeviceGetHandleByUUID", uuid.encode())
    processes = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) if handle is not None else None
    used = [process.usedGpuMemory for process in processes or () if process.pid == os.getpid()]
    return int(used[0]) if used and used[0] else in_use
