"""Machines that do not exist: /proc and /sys trees, and an NVML with made-up GPUs."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.machine.cpu import Roots

CPUINFO = """\
processor	: {n}
cpu family	: 6
model		: 143
model name	: Fabricated Xeon
stepping	: 8
cpu MHz		: 2{n}00.000
physical id	: 0
core id		: {n}
flags		: fpu avx2 avx512f avx512_bf16 amx_bf16 hypervisor

"""

FILES = {
    "proc/cpuinfo": CPUINFO.format(n=0) + CPUINFO.format(n=1),
    "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\nSwapTotal: 200 kB\nSwapFree: 150 kB\n",
    "proc/loadavg": "0.50 0.25 0.10 1/100 4242\n",
    "proc/stat": "cpu  100 0 50 800 20 0 10 20 0 0\ncpu0 1 2 3\n",
    "proc/self/cgroup": "0::/app/job\n",
    "sys/fs/cgroup/app/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/app/job/cpu.max": "max 100000\n",
    "sys/fs/cgroup/app/memory.max": "409600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3500000\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
    "sys/devices/system/cpu/smt/active": "0\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}


def roots(folder: Path, **changes: str | None) -> Roots:
    """A tree under `folder`; `changes` replaces files, None removes one. `/` in a name is written `__`."""
    files: dict[str, str | None] = FILES | {name.replace("__", "/"): text for name, text in changes.items()}
    for name, text in files.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return Roots(proc=folder / "proc", sys=folder / "sys")


class FabricatedError(Exception):
    """What pynvml calls NVMLError."""


@dataclass
class Gpu:
    """What one made-up GPU answers; None stands for a query that it refuses."""

    uuid: str = "GPU-aaaa"
    name: str = "Fabricated H200"
    megahertz: int | None = 1500
    milliwatts: int | None = 250_000
    limit: int | None = 700_000
    celsius: int | None = 55
    events: int | None = 0
    millijoules: int | None = 1_000_000
    processes: tuple[int, ...] = ()
    mig: tuple[int, int] | None = (0, 0)
    slices: tuple["Gpu", ...] = ()
    jpeg: int | None = 0
    memory: Any = field(default_factory=lambda: SimpleNamespace(total=1 << 37, used=1 << 30, free=0))


class FabricatedNvml:
    """The functions of pynvml that are used, over a list of Gpu."""

    NVMLError = FabricatedError

    def __init__(self, *gpus: Gpu, old_driver: bool = False) -> None:
        self.gpus = gpus
        self.old_driver = old_driver

    def _answer(self, value: Any) -> Any:
        if value is None:
            raise FabricatedError("Not Supported")
        return value

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802 - NVML's names
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(gpu.memory)

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(gpu.limit)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(700_000)

    def nvmlDeviceGetPowerUsage(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(gpu.milliwatts)

    def nvmlDeviceGetClockInfo(self, gpu: Gpu, kind: int) -> Any:  # noqa: N802
        return self._answer(gpu.megahertz)

    def nvmlDeviceGetMaxClockInfo(self, gpu: Gpu, kind: int) -> Any:  # noqa: N802
        return self._answer(1980)

    def nvmlDeviceGetTemperature(self, gpu: Gpu, sensor: int) -> Any:  # noqa: N802
        return self._answer(gpu.celsius)

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: Gpu) -> Any:  # noqa: N802
        if self.old_driver:
            raise AttributeError("not in this version")
        return self._answer(gpu.events)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(gpu.events)

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(gpu.mig)

    def nvmlDeviceGetJpgUtilization(self, gpu: Gpu) -> Any:  # noqa: N802
        return [self._answer(gpu.jpeg), 167_000]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> Gpu:  # noqa: N802
        if index >= len(gpu.slices):
            raise FabricatedError("Not Found")
        return gpu.slices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:  # noqa: N802
        for gpu in (*self.gpus, *(part for whole in self.gpus for part in whole.slices)):
            if gpu.uuid == uuid:
                return gpu
        raise FabricatedError("Not Found")

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> Any:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=1024) for pid in gpu.processes]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: Gpu) -> Any:  # noqa: N802
        return self._answer(gpu.millijoules)


def quiet_machine(**changes: Any) -> dict[str, Any]:
    """What describe() gives for a machine with nothing to complain about; `changes` are merged into its parts."""
    parts: dict[str, dict[str, Any]] = {
        "cpu": {
            "model": "Fabricated",
            "features": ["avx512_bf16", "amx_bf16"],
            "logical": 4,
            "physical": 4,
            "affinity": 4,
            "quota": None,
            "usable": 4,
            "governor": "performance",
            "boost": False,
            "virtual": False,
        },
        "memory": {
            "total_bytes": 64 << 30,
            "available_bytes": 60 << 30,
            "limit_bytes": None,
            "swap_bytes": 0,
            "swap_used_bytes": 0,
        },
        "load": {"average": [0.0, 0.0, 0.0], "stolen_since_boot": 0.0},
        "settings": {"threads": 4, "environment": {}},
        "versions": dict.fromkeys(("python", "torch", "torchvision", "cuda", "cudnn", "dali", "triton"), "1.0"),
        "host": {"system": "Linux", "release": "6.1", "machine": "x86_64"},
    }
    found = {name: part | changes.get(name, {}) for name, part in parts.items()}
    rest = {"gpus": [], "compiler": "g++ 12", "commit": None} | changes
    return rest | found
