"""Where a number comes from: the hardware, its state, the software and the source it was measured with.

`describe()` returns a dict that goes into every record as it is. Its key "fingerprint" holds what has to
agree before two records may be compared; everything else is kept so that a strange number can be explained
later. Importing this module imports no torch. Whatever cannot be read here is None, never a guess.

    fingerprint   device, driver, power limit, CPU, cores, versions, compiler, settings: must agree
    gpus          each visible GPU: clocks, power, temperature, throttle reasons, processes
    cpu           model, features, cores, quota, clock, governor, virtualised or not
    memory        total, available, swap, limit
    load          run queue, time stolen by the hypervisor since boot
    versions      Python, torch, torchvision, CUDA, cuDNN, DALI, Triton, ...
    settings      threads, determinism, TF32, environment variables that change speed
    commit        {"sha", "dirty"} of this checkout, or None when installed from a wheel
    host          operating system and kernel
"""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine.cpu import Roots, cpu_facts, load_facts, memory_facts
from bench.machine.gpu import gpu_facts, open_nvml
from bench.machine.software import COMPARED_VERSIONS, commit, compiler, settings, versions


def describe(
    with_torch: bool = True,
    device: str | None = None,
    roots: Roots | None = None,
    nvml: Any = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Describe this machine as a dict that JSON can hold.

    Args:
        with_torch: import torch and read the settings that are in force in this process. Without it, torch is
            asked only if it is already imported, and the settings in the fingerprint are None otherwise
            (quick: no CUDA).
        device: what is measured, "cpu" or "cuda[:N]"; by default the first visible GPU, else the CPU.
        roots: where /proc and /sys are.
        nvml: a module with NVML's functions; by default `open_nvml()`.
        environ: the environment; by default the process's own.
    """
    roots = roots or Roots()
    environ = os.environ if environ is None else environ
    nvml = open_nvml() if nvml is None else nvml
    gpus = gpu_facts(nvml, environ, roots) if nvml is not None else []
    cpu = cpu_facts(roots)
    versions_found = versions()
    settings_found = settings(with_torch, environ)
    compiler_found = compiler(environ)
    measured = _measured_gpu(device, gpus)
    fingerprint: dict[str, str | int | float | bool | None] = {
        "device": measured["name"] if measured else cpu["model"],
        "devices": len(gpus) if measured else 0,
        "driver": measured["driver"] if measured else None,
        "power_limit_watts": measured["power_limit_watts"] if measured else None,
        "cpu": cpu["model"],
        "cpu_features": " ".join(cpu["features"]),
        "cores": cpu["usable"],
        "virtual": cpu["virtual"],
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": compiler_found,
        "threads": settings_found["threads"],
        "deterministic": settings_found["deterministic"],
        "tf32": settings_found["tf32"],
    }
    fingerprint |= {name: versions_found[name] for name in COMPARED_VERSIONS}
    return {
        "fingerprint": fingerprint,
        "gpus": gpus,
        "cpu": cpu,
        "memory": memory_facts(roots),
        "load": load_facts(roots),
        "versions": versions_found,
        "settings": settings_found,
        "compiler": compiler_found,
        "commit": commit(Path(__file__).resolve().parent),
        "host": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
    }


def _measured_gpu(device: str | None, gpus: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    if not gpus or (device is not None and not device.startswith("cuda")):
        return None
    index = int(device.split(":")[1]) if device and ":" in device else 0
    return gpus[index] if index < len(gpus) else None


# --- GPU ------------------------------------------------------------------------------------------------


# --- CPU, memory, load ----------------------------------------------------------------------------------


# --- software -------------------------------------------------------------------------------------------


# --- reading --------------------------------------------------------------------------------------------
