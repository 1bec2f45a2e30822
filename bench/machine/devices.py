"""Which device a command measures on."""

import os
from pathlib import Path

from bench.errors import UsageError, WorkloadError

# What the NVIDIA driver puts there, whatever else is installed.
DRIVER = Path("/dev/nvidiactl")


def choose_device(wanted: str) -> str:
    """auto -> cuda if NVML sees a GPU, else cpu. Whether torch can use it is found by the measuring process.

    A driver whose NVML cannot be opened is there all the same: then telemetry is missing, and says so in each record.

    Raises:
        WorkloadError: cuda was asked for and the driver shows none.
    """
    if wanted == "cpu":
        return "cpu"
    from bench.machine.gpu import open_nvml, visible_handles

    nvml = open_nvml()
    if nvml is not None and visible_handles(nvml, os.environ):
        return "cuda"
    if nvml is None and DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return "cuda"
    if wanted == "cuda":
        raise WorkloadError("no GPU is visible to the NVIDIA driver here; use --device cpu, or see bench doctor")
    return "cpu"


def refuse_used_gpu() -> None:
    """Raise UsageError if other processes compute on the GPU that would be measured."""
    from bench.machine.gpu import ask, open_nvml, visible_handles

    nvml = open_nvml()
    handles = visible_handles(nvml, os.environ) if nvml is not None else []
    users = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handles[0]) if handles else None
    if users:
        who = ", ".join(str(one.pid) for one in users)
        raise UsageError(f"the GPU is in use by process {who}; wait for it, or go on with --force")
