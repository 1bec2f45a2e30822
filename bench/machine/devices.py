"""The device that a command measures on."""

import os
from pathlib import Path

from bench.errors import UsageError, WorkloadError

# Present wherever an NVIDIA driver is installed.
DRIVER = Path("/dev/nvidiactl")


def choose_device(wanted: str) -> str:
    """Turn "auto" into "cuda" if a GPU is visible, else "cpu"; the measuring process finds out if torch can use it.

    A driver without a working NVML counts as a GPU too; records then say that telemetry is missing.

    Raises:
        WorkloadError: cuda was asked for, and the driver shows no GPU.
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
        processes = ", ".join(str(process.pid) for process in users)
        raise UsageError(
            f"the GPU is in use by process {processes}; wait until it ends, or measure anyway with --force"
        )
