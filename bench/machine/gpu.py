"""The GPUs and their state, as NVML reports them."""

import os
from collections.abc import Mapping
from typing import Any

from bench.machine.cpu import Roots, read_lines, scaled

# NVML's clock event bits.
CLOCK_EVENTS = {
    0x001: "idle",
    0x002: "clocks set by user",
    0x004: "power limit",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x100: "display clocks",
}
POWER_LIMIT = 0x004
# Too hot or short of supply: a number measured then is not typical of the GPU. A power limit is a property of the
# machine (it is in the fingerprint), and idling or locked clocks are not faults.
THROTTLING = 0x008 | 0x020 | 0x040 | 0x080


def open_nvml() -> Any:
    """NVML's Python module, initialised; None where there is no NVIDIA driver (or no nvidia-ml-py)."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """One NVML query; None where this driver or this GPU does not answer it."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def visible_handles(nvml: Any, environ: Mapping[str, str]) -> list[Any]:
    """NVML handles in the order in which CUDA numbers them.

    NVML ignores CUDA_VISIBLE_DEVICES, so it is applied here as the driver does: numbers and UUID prefixes, up to the
    first entry that names no GPU. Without CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA may number GPUs of different models
    fastest first; GPUs of one model are numbered alike by both.
    """
    count = ask(nvml, "nvmlDeviceGetCount") or 0
    handles = [ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [_first_slice(nvml, handle) for handle in handles if handle is not None]
    visible = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.isdigit() and int(entry) < count:
            match = _first_slice(nvml, handles[int(entry)])
        elif entry.startswith("GPU-"):
            match = next((h for h in handles if str(ask(nvml, "nvmlDeviceGetUUID", h)).startswith(entry)), None)
        elif entry.startswith("MIG-"):
            match = ask(nvml, "nvmlDeviceGetHandleByUUID", entry)
        else:
            match = None
        if match is None:
            break
        visible.append(match)
    return visible


def _first_slice(nvml: Any, handle: Any) -> Any:
    """The first slice of a partitioned GPU (MIG), which is what CUDA opens; else the GPU itself."""
    mode = ask(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return handle
    first = ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, 0)
    return handle if first is None else first


def gpu_facts(nvml: Any, environ: Mapping[str, str], roots: Roots) -> list[dict[str, Any]]:
    """One dict for each visible GPU; hertz, watts, bytes, degrees Celsius."""
    driver = ask(nvml, "nvmlSystemGetDriverVersion")
    return [_gpu(nvml, handle, driver, roots) for handle in visible_handles(nvml, environ)]


def _gpu(nvml: Any, handle: Any, driver: str | None, roots: Roots) -> dict[str, Any]:
    memory = ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    events = clock_events(nvml, handle)
    mig = ask(nvml, "nvmlDeviceGetMigMode", handle)
    persistence = ask(nvml, "nvmlDeviceGetPersistenceMode", handle)
    graphics, memory_clock = 0, 2  # NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM
    return {
        "name": ask(nvml, "nvmlDeviceGetName", handle),
        "driver": driver,
        "memory_bytes": memory.total if memory else None,
        "memory_used_bytes": memory.used if memory else None,
        "power_limit_watts": scaled(ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle), 1e-3),
        "power_default_watts": scaled(ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle), 1e-3),
        "power_watts": scaled(ask(nvml, "nvmlDeviceGetPowerUsage", handle), 1e-3),
        "jpeg_engine": ask(nvml, "nvmlDeviceGetJpgUtilization", handle) is not None,
        "clock_hertz": scaled(ask(nvml, "nvmlDeviceGetClockInfo", handle, graphics), 1e6),
        "clock_maximum_hertz": scaled(ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, graphics), 1e6),
        "memory_clock_hertz": scaled(ask(nvml, "nvmlDeviceGetClockInfo", handle, memory_clock), 1e6),
        "celsius": ask(nvml, "nvmlDeviceGetTemperature", handle, 0),
        "clock_events": event_names(events) if events is not None else None,
        "throttled": bool(events & THROTTLING) if events is not None else None,
        "persistence": None if persistence is None else bool(persistence),
        "mig": bool(mig[0]) if mig else None,
        "pcie_generation": ask(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "pcie_width": ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        "other_processes": _other_processes(nvml, handle, roots),
    }


def clock_events(nvml: Any, handle: Any) -> int | None:
    """The bits of CLOCK_EVENTS that are set now; drivers before 535 know them by their old name."""
    events = ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if events is None:
        events = ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return None if events is None else int(events)


def event_names(events: int) -> list[str]:
    """The names of the bits in `events`; a bit without a name is shown as its number."""
    unnamed = events & ~sum(CLOCK_EVENTS)
    names = [name for bit, name in CLOCK_EVENTS.items() if events & bit]
    return [*names, hex(unnamed)] if unnamed else names


def _other_processes(nvml: Any, handle: Any, roots: Roots) -> list[dict[str, int | None]] | None:
    """Processes on the GPU that are neither this one nor its children."""
    processes = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    if processes is None:
        return None
    return [
        {"pid": process.pid, "memory_bytes": process.usedGpuMemory}
        for process in processes
        if not _descends(process.pid, os.getpid(), roots)
    ]


def _descends(pid: int, ancestor: int, roots: Roots) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        parent = [line.split()[1] for line in read_lines(roots.proc / str(pid) / "status") if line.startswith("PPid:")]
        pid = int(parent[0]) if parent else 0
    return False
