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

import ast
import importlib.metadata
import importlib.util
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import allocator

# What decides which kernels oneDNN, MKL and inductor pick on x86; the arm names are the nearest there.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)

# Variables that change what is measured without leaving a trace in any result.
VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "LD_PRELOAD",
    "MALLOC_CONF",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_FREEZING",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCH_COMPILE_DISABLE",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TRITON_INTERPRET",
)

# NVML's clock event bits. Only a GPU that is too hot or short of supply says that a number is not its own;
# a power limit is a property of the machine (it is in the fingerprint), and idling or locked clocks are not
# faults.
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
THROTTLING = 0x008 | 0x020 | 0x040 | 0x080


@dataclass(frozen=True)
class Roots:
    """Where the kernel publishes its facts; tests point these at fabricated trees."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


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

    NVML ignores CUDA_VISIBLE_DEVICES, so it is applied here: numbers and UUID prefixes, cut at the first
    entry that names no GPU, as the driver does. Without CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA may number unlike
    GPUs fastest first; boards of one kind are numbered alike by both.
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
    """Of a partitioned GPU (MIG) its first slice, which is what CUDA then opens; else the GPU itself."""
    mode = ask(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return handle
    found = ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, 0)
    return handle if found is None else found


def gpu_facts(nvml: Any, environ: Mapping[str, str], roots: Roots) -> list[dict[str, Any]]:
    """One dict a visible GPU; hertz, watts, bytes, degrees Celsius."""
    driver = ask(nvml, "nvmlSystemGetDriverVersion")
    return [_gpu(nvml, handle, driver, roots) for handle in visible_handles(nvml, environ)]


def _gpu(nvml: Any, handle: Any, driver: str | None, roots: Roots) -> dict[str, Any]:
    memory = ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    events = clock_events(nvml, handle)
    mig = ask(nvml, "nvmlDeviceGetMigMode", handle)
    graphics, memory_clock = 0, 2  # NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM
    return {
        "name": ask(nvml, "nvmlDeviceGetName", handle),
        "driver": driver,
        "memory_bytes": memory.total if memory else None,
        "memory_used_bytes": memory.used if memory else None,
        "power_limit_watts": _scaled(ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle), 1e-3),
        "power_default_watts": _scaled(ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle), 1e-3),
        "power_watts": _scaled(ask(nvml, "nvmlDeviceGetPowerUsage", handle), 1e-3),
        "jpeg_engine": ask(nvml, "nvmlDeviceGetJpgUtilization", handle) is not None,
        "clock_hertz": _scaled(ask(nvml, "nvmlDeviceGetClockInfo", handle, graphics), 1e6),
        "clock_maximum_hertz": _scaled(ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, graphics), 1e6),
        "memory_clock_hertz": _scaled(ask(nvml, "nvmlDeviceGetClockInfo", handle, memory_clock), 1e6),
        "celsius": ask(nvml, "nvmlDeviceGetTemperature", handle, 0),
        "clock_events": event_names(events) if events is not None else None,
        "throttled": bool(events & THROTTLING) if events is not None else None,
        "persistence": _flag(ask(nvml, "nvmlDeviceGetPersistenceMode", handle)),
        "mig": _flag(mig[0]) if mig else None,
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
    """The names of the bits in `events`; a bit without a name is given as its number."""
    unnamed = events & ~sum(CLOCK_EVENTS)
    names = [name for bit, name in CLOCK_EVENTS.items() if events & bit]
    return [*names, hex(unnamed)] if unnamed else names


def _other_processes(nvml: Any, handle: Any, roots: Roots) -> list[dict[str, int | None]] | None:
    """Processes on the GPU that are neither this one nor its children."""
    found = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    if found is None:
        return None
    return [
        {"pid": process.pid, "memory_bytes": process.usedGpuMemory}
        for process in found
        if not _descends(process.pid, os.getpid(), roots)
    ]


def _descends(pid: int, ancestor: int, roots: Roots) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        parent = [line.split()[1] for line in _lines(roots.proc / str(pid) / "status") if line.startswith("PPid:")]
        pid = int(parent[0]) if parent else 0
    return False


# --- CPU, memory, load ----------------------------------------------------------------------------------


def cpu_facts(roots: Roots) -> dict[str, Any]:
    """The processor, what this process may use of it, and what decides its clock."""
    records = _cpuinfo(roots)
    first = records[0] if records else {}
    flags = set((first.get("flags") or first.get("Features") or "").split())
    frequency = roots.sys / "devices/system/cpu/cpu0/cpufreq"
    packages = {(record.get("physical id"), record.get("core id")) for record in records}
    no_turbo = _text(roots.sys / "devices/system/cpu/intel_pstate/no_turbo")
    boost = _text(roots.sys / "devices/system/cpu/cpufreq/boost")
    return {
        "model": _cpu_model(first),
        "features": [feature for feature in FEATURES if feature in flags],
        "logical": len(records) or os.cpu_count() or 1,
        "physical": len(packages) if packages and (None, None) not in packages else None,
        "affinity": _affinity(),
        "quota": cpu_quota(roots),
        "usable": usable_cores(roots),
        "clock_hertz": cpu_clock(roots),
        "clock_maximum_hertz": _scaled(_number(frequency / "cpuinfo_max_freq"), 1e3),
        "governor": _text(frequency / "scaling_governor"),
        "boost": no_turbo == "0" if no_turbo is not None else (boost == "1" if boost is not None else None),
        "virtual": "hypervisor" in flags if flags else None,
        "smt": _text(roots.sys / "devices/system/cpu/smt/active") == "1",
        "numa_nodes": len(list((roots.sys / "devices/system/node").glob("node[0-9]*"))) or None,
    }


def _cpuinfo(roots: Roots) -> list[dict[str, str]]:
    records: list[dict[str, str]] = []
    for line in _lines(roots.proc / "cpuinfo"):
        key, separator, value = line.partition(":")
        if not separator:
            continue
        if key.strip() == "processor":
            records.append({})
        if records:
            records[-1][key.strip()] = value.strip()
    return records


def _cpu_model(record: Mapping[str, str]) -> str:
    # Hypervisors hide the model behind a family name such as "AMD EPYC": family, model and stepping tell them
    # apart.
    name = record.get("model name") or platform.processor() or platform.machine()
    numbers = [record.get(key) for key in ("cpu family", "model", "stepping")]
    return f"{name} ({'/'.join(str(number) for number in numbers)})" if all(numbers) else name


def usable_cores(roots: Roots | None = None) -> int:
    """How many threads can run at once here: affinity and the control group's quota, at least one."""
    affinity = _affinity()
    quota = cpu_quota(roots or Roots())
    # A quota of 1.5 cores lets two threads run three quarters of the time, so a part counts as one.
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(roots: Roots) -> float | None:
    """Cores that the control group grants, the smallest up its tree; None without a limit."""
    limits = []
    for folder in _control_groups(roots, "cpu"):
        maximum = (_text(folder / "cpu.max") or "").split()
        if len(maximum) == 2 and maximum[0] != "max":
            limits.append(int(maximum[0]) / int(maximum[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            limits.append(quota / period)
    return min(limits) if limits else None


def _control_groups(roots: Roots, controller: str) -> list[Path]:
    """The folders of this process's control group and its ancestors, versions 2 and 1."""
    base = roots.sys / "fs/cgroup"
    folders = [base, base / controller]
    for line in _lines(roots.proc / "self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            root = base
        elif controller in controllers.split(","):
            root = base / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [root.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def cpu_clock(roots: Roots) -> float | None:
    """The mean clock of the cores this process may use, in hertz; None where the kernel does not say.

    cpufreq first: on machines with many cores /proc/cpuinfo interrupts every one of them to fill its table.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    clocks = [_number(roots.sys / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    kilohertz = [clock for clock in clocks if clock]
    if kilohertz:
        return 1e3 * sum(kilohertz) / len(kilohertz)
    megahertz = [float(line.partition(":")[2]) for line in _lines(roots.proc / "cpuinfo") if line.startswith("cpu MHz")]
    return 1e6 * sum(megahertz) / len(megahertz) if megahertz else None


def memory_facts(roots: Roots) -> dict[str, Any]:
    """Bytes of memory and swap, and the control group's limit."""
    table = {line.split(":")[0]: line.split() for line in _lines(roots.proc / "meminfo")}

    def entry(name: str) -> int | None:
        return int(table[name][1]) * 1024 if name in table else None

    total, free = entry("SwapTotal"), entry("SwapFree")
    limits: list[float] = []
    for folder in _control_groups(roots, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            # Version 1 writes "no limit" as the largest multiple of a page.
            if limit is not None and limit < 1 << 60:
                limits.append(limit)
    return {
        "total_bytes": entry("MemTotal"),
        "available_bytes": entry("MemAvailable"),
        "limit_bytes": int(min(limits)) if limits else None,
        "swap_bytes": total,
        "swap_used_bytes": total - free if total is not None and free is not None else None,
        "huge_pages": _chosen(_text(roots.sys / "kernel/mm/transparent_hugepage/enabled")),
    }


def load_facts(roots: Roots) -> dict[str, Any]:
    """How busy the machine is: the run queue, and the share of time the hypervisor gave to others."""
    averages = (_text(roots.proc / "loadavg") or "").split()[:3]
    times = cpu_times(roots)
    return {
        "average": [float(value) for value in averages] or None,
        "stolen_since_boot": times.stolen / times.total if times and times.total else None,
    }


@dataclass(frozen=True)
class CpuTimes:
    """Ticks since boot over all cores; differences between two readings are what means something."""

    total: int
    idle: int
    stolen: int


def cpu_times(roots: Roots) -> CpuTimes | None:
    """The first line of /proc/stat; None where there is none."""
    lines = _lines(roots.proc / "stat")
    if not lines or not lines[0].startswith("cpu "):
        return None
    # user nice system idle iowait irq softirq steal; guest time is counted in user already.
    ticks = [int(value) for value in lines[0].split()[1:9]]
    ticks += [0] * (8 - len(ticks))
    return CpuTimes(total=sum(ticks), idle=ticks[3] + ticks[4], stolen=ticks[7])


# --- software -------------------------------------------------------------------------------------------

COMPARED_VERSIONS = ("python", "torch", "torchvision", "cuda", "cudnn", "dali", "triton")


def versions() -> dict[str, str | None]:
    """Versions of what a number depends on, read without importing it; None where not installed."""
    torch_facts = _torch_version_file()
    return {
        "python": platform.python_version(),
        "torch": torch_facts.get("__version__") or _version("torch"),
        "torchvision": _version("torchvision"),
        "cuda": torch_facts.get("cuda"),
        "hip": torch_facts.get("hip"),
        "cudnn": _first_version("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu11"),
        "dali": _first_version("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "pillow": _version("pillow"),
        "pytest": _version("pytest"),
        "pytest_benchmark": _version("pytest-benchmark"),
        "nvidia_ml_py": _version("nvidia-ml-py"),
        "pixbench": _version("pixbench"),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_version(*distributions: str) -> str | None:
    return next((found for name in distributions if (found := _version(name)) is not None), None)


def _torch_version_file() -> dict[str, str | None]:
    """torch/version.py read as text: only it names a wheel's CUDA, and importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    found: dict[str, str | None] = {}
    try:
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            targets = [statement.target.id]
        else:
            continue
        value = statement.value
        if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, str)):
            found |= dict.fromkeys(targets, value.value)
    return found


def settings(with_torch: bool, environ: Mapping[str, str]) -> dict[str, Any]:
    """What torch is set to in this process (None where it is not loaded), and variables that change speed."""
    found: dict[str, Any] = {
        "threads": None,
        "interop_threads": None,
        "deterministic": None,
        "cudnn_benchmark": None,
        "cudnn_deterministic": None,
        "tf32": None,
        "cpu_capability": None,
        "allocator": allocator.described(),
        "environment": {name: environ[name] for name in VARIABLES if name in environ},
    }
    if not with_torch and "torch" not in sys.modules:
        return found
    import torch

    # fp32_precision is the one reading that never clashes with whichever of torch's two TF32 interfaces was
    # used.
    cudnn: Any = torch.backends.cudnn
    matmul, convolution = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    return found | {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "tf32": f"matmul {matmul}, convolution {convolution}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def compiler(environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> str | None:
    """First line of the C++ compiler's --version, found as torch.compile finds it; None without one."""
    for words in (environ.get("CXX"), "g++", "clang++"):
        command = shlex.split(words) if words else []
        if not command or which(command[0]) is None:
            continue
        lines = _output([*command, "--version"]).splitlines()
        if lines:
            return lines[0]
    return None


def commit(package: Path) -> dict[str, Any] | None:
    """{"sha", "dirty"} of the checkout that holds `package` at its top; None for an installed copy.

    A wheel unpacked somewhere below another project's repository must not be filed under that project's
    commit.
    """
    top = _output(["git", "-C", str(package), "rev-parse", "--show-toplevel"]).strip()
    if not top or Path(top).resolve() != package.parent:
        return None
    sha = _output(["git", "-C", str(package), "rev-parse", "HEAD"]).strip()
    if len(sha) < 40:
        return None
    status = _output(
        ["git", "--no-optional-locks", "-C", str(package), "status", "--porcelain", "--untracked-files=no"]
    )
    return {"sha": sha, "dirty": bool(status.strip())}


# --- reading --------------------------------------------------------------------------------------------


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _chosen(words: str | None) -> str | None:
    """The bracketed word of a kernel switch such as "always [madvise] never"."""
    return words[words.index("[") + 1 : words.index("]")] if words and "[" in words and "]" in words else words
