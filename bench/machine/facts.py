"""The machine a number comes from: one description of its hardware, its state and its software.

`describe()` returns a dict that goes into every record unchanged. Its "fingerprint" holds what has to agree before two
records may be compared; the rest is kept so that a strange number can be explained later. Importing this module imports
no torch. Whatever cannot be read is None, never a guess.

    fingerprint   device, driver, power limit, CPU, cores, versions, compiler, settings: must agree
    gpus          each visible GPU: clocks, power, temperature, throttle reasons, processes
    cpu           model, features, cores, quota, clock, governor, virtualised or not
    memory        total, available, swap, limit
    load          run queue, time stolen by the hypervisor since boot
    versions      Python, torch, torchvision, CUDA, cuDNN, DALI, Triton, ...
    settings      threads, determinism, TF32, environment variables that change speed
    compiler      the C++ compiler's version, or None
    commit        {"sha", "dirty"} of the repository that is measured, else of this checkout; None outside of both
    host          operating system and kernel
"""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from bench.machine.cpu import Roots, cpu_facts, load_facts, memory_facts
from bench.machine.gpu import gpu_facts, open_nvml
from bench.machine.software import COMPARED_VERSIONS, compiler, measured_commit, settings, versions


def describe(
    with_torch: bool = True,
    device: str | None = None,
    roots: Roots | None = None,
    nvml: Any = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Describe this machine as a dict that JSON can hold.

    Args:
        with_torch: import torch and read its settings in this process. If False they are read only if torch is
            imported already, and are None otherwise, which is quick and wakes no GPU.
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
    installed = versions()
    torch_settings = settings(with_torch, environ)
    compiler_version = compiler(environ)
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
        "compiler": compiler_version,
        "threads": torch_settings["threads"],
        "deterministic": torch_settings["deterministic"],
        "tf32": torch_settings["tf32"],
    }
    fingerprint |= {name: installed[name] for name in COMPARED_VERSIONS}
    return {
        "fingerprint": fingerprint,
        "gpus": gpus,
        "cpu": cpu,
        "memory": memory_facts(roots),
        "load": load_facts(roots),
        "versions": installed,
        "settings": torch_settings,
        "compiler": compiler_version,
        "commit": measured_commit(),
        "host": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
    }


def _measured_gpu(device: str | None, gpus: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    if not gpus or (device is not None and not device.startswith("cuda")):
        return None
    index = int(device.split(":")[1]) if device and ":" in device else 0
    return gpus[index] if index < len(gpus) else None
