"""The memory a step needs, part by part, and what the operating system reports for the process."""

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.machine.gpu import ask, open_nvml
from bench.timing.step import Step


@dataclass(frozen=True)
class Memory:
    """Bytes. `peak` is what has to fit; the fields before it add up to it.

    Attributes:
        weights: parameters and buffers of the network.
        gradients: of the parameters, between two steps.
        optimizer: the optimiser's state.
        inputs: the constant batch.
        workspace: activations and scratch space: how far a step's highest point lies above its start.
        slack: reserved by the allocator and not in use (CUDA; 0 on a CPU).
        peak: the sum of the above; on CUDA torch's peak of reserved bytes.
        process: the whole process: its resident set on a CPU, the driver's figure on CUDA.
        residue: process - peak: code, libraries, the CUDA context, packed copies of frozen weights.
    """

    weights: int
    gradients: int
    optimizer: int
    inputs: int
    workspace: int
    slack: int
    peak: int
    process: int
    residue: int


def measure(step: Step) -> Memory:
    """Run a step that has run before once more, and report its memory; never while steps are timed."""
    parameters = list(step.module.parameters()) if step.module is not None else []
    states = step.optimizer.state.values() if step.optimizer is not None else ()
    weights = tensor_bytes([*parameters, *(step.module.buffers() if step.module is not None else ())])
    gradients = tensor_bytes(p.grad for p in parameters if p.grad is not None)
    optimizer = tensor_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))
    inputs = tensor_bytes(step.inputs)
    constant = weights + gradients + optimizer + inputs
    if step.workload.device == "cuda":
        workspace, slack, peak, process = _on_cuda(step, constant)
    else:
        workspace, process = cpu_workspace(step)
        slack, peak = 0, constant + workspace
    return Memory(weights, gradients, optimizer, inputs, workspace, slack, peak, process, process - peak)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' distinct storages, so that tied weights count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(storages.values())


def cpu_workspace(step: Step) -> tuple[int, int]:
    """How far the resident set rises above its size at the start of a step, and its highest value.

    The C library keeps freed pages. They are given back to the kernel first, so that the step has to ask for them again
    and the resident set shows them.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    # "5" resets the high-water mark of the resident set (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    step.call()
    highest = status_bytes("VmHWM")
    return max(0, highest - before), highest


def status_bytes(key: str, status: Path = Path("/proc/self/status")) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in status.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _on_cuda(step: Step, constant: int) -> tuple[int, int, int, int]:
    """(workspace, slack, peak, process) by the allocator's counters over one step, after its cache was emptied."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step.call()
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    return max(0, allocated - constant), reserved - allocated, reserved, process_bytes(total - free)


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
