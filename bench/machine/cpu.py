"""The CPU, its memory and its load, as Linux reports them."""

import math
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Roots:
    """Where the kernel's /proc and /sys are; tests point these at fabricated trees."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


def cpu_facts(roots: Roots) -> dict[str, Any]:
    """The processor, what this process may use of it, and what decides its clock."""
    records = _cpuinfo(roots)
    first = records[0] if records else {}
    flags = set((first.get("flags") or first.get("Features") or "").split())
    frequency = roots.sys / "devices/system/cpu/cpu0/cpufreq"
    packages = {(record.get("physical id"), record.get("core id")) for record in records}
    no_turbo = read_text(roots.sys / "devices/system/cpu/intel_pstate/no_turbo")
    boost = read_text(roots.sys / "devices/system/cpu/cpufreq/boost")
    return {
        "model": _cpu_model(first),
        "features": [feature for feature in FEATURES if feature in flags],
        "logical": len(records) or os.cpu_count() or 1,
        "physical": len(packages) if packages and (None, None) not in packages else None,
        "affinity": _affinity(),
        "quota": cpu_quota(roots),
        "usable": usable_cores(roots),
        "clock_hertz": cpu_clock(roots),
        "clock_maximum_hertz": scaled(read_number(frequency / "cpuinfo_max_freq"), 1e3),
        "governor": read_text(frequency / "scaling_governor"),
        "boost": no_turbo == "0" if no_turbo is not None else (boost == "1" if boost is not None else None),
        "virtual": "hypervisor" in flags if flags else None,
        "smt": read_text(roots.sys / "devices/system/cpu/smt/active") == "1",
        "numa_nodes": len(list((roots.sys / "devices/system/node").glob("node[0-9]*"))) or None,
    }


def _cpuinfo(roots: Roots) -> list[dict[str, str]]:
    records: list[dict[str, str]] = []
    for line in read_lines(roots.proc / "cpuinfo"):
        key, separator, value = line.partition(":")
        if not separator:
            continue
        if key.strip() == "processor":
            records.append({})
        if records:
            records[-1][key.strip()] = value.strip()
    return records


def _cpu_model(record: Mapping[str, str]) -> str:
    # Hypervisors hide the model behind a family name such as "AMD EPYC"; family, model and stepping identify it.
    name = record.get("model name") or platform.processor() or platform.machine()
    numbers = [record.get(key) for key in ("cpu family", "model", "stepping")]
    return f"{name} ({'/'.join(str(number) for number in numbers)})" if all(numbers) else name


def usable_cores(roots: Roots | None = None) -> int:
    """How many threads can run at once: the smaller of CPU affinity and control group quota, at least one."""
    affinity = _affinity()
    quota = cpu_quota(roots or Roots())
    # Rounded up: a quota of 1.5 cores lets two threads run three quarters of the time.
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(roots: Roots) -> float | None:
    """Cores granted by the control group, the smallest limit up its tree; None without a limit."""
    limits = []
    for folder in _control_groups(roots, "cpu"):
        maximum = (read_text(folder / "cpu.max") or "").split()
        if len(maximum) == 2 and maximum[0] != "max":
            limits.append(int(maximum[0]) / int(maximum[1]))
        quota, period = read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            limits.append(quota / period)
    return min(limits) if limits else None


def _control_groups(roots: Roots, controller: str) -> list[Path]:
    """The folders of this process's control group and its ancestors, versions 2 and 1."""
    base = roots.sys / "fs/cgroup"
    folders = [base, base / controller]
    for line in read_lines(roots.proc / "self/cgroup"):
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
    """The mean clock of the cores this process may use, in hertz; None where the kernel does not report it.

    cpufreq is read first: on machines with many cores, reading /proc/cpuinfo interrupts every one of them.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    clocks = [read_number(roots.sys / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    kilohertz = [clock for clock in clocks if clock]
    if kilohertz:
        return 1e3 * sum(kilohertz) / len(kilohertz)
    megahertz = [
        float(line.partition(":")[2]) for line in read_lines(roots.proc / "cpuinfo") if line.startswith("cpu MHz")
    ]
    return 1e6 * sum(megahertz) / len(megahertz) if megahertz else None


def memory_facts(roots: Roots) -> dict[str, Any]:
    """Bytes of memory and swap, and the control group's limit."""
    table = {line.split(":")[0]: line.split() for line in read_lines(roots.proc / "meminfo")}

    def entry(name: str) -> int | None:
        return int(table[name][1]) * 1024 if name in table else None

    total, free = entry("SwapTotal"), entry("SwapFree")
    limits: list[float] = []
    for folder in _control_groups(roots, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_number(folder / name)
            # Version 1 writes "no limit" as the largest multiple of a page.
            if limit is not None and limit < 1 << 60:
                limits.append(limit)
    return {
        "total_bytes": entry("MemTotal"),
        "available_bytes": entry("MemAvailable"),
        "limit_bytes": int(min(limits)) if limits else None,
        "swap_bytes": total,
        "swap_used_bytes": total - free if total is not None and free is not None else None,
        "huge_pages": _selected(read_text(roots.sys / "kernel/mm/transparent_hugepage/enabled")),
    }


def load_facts(roots: Roots) -> dict[str, Any]:
    """How busy the machine is: the run queue, and the share of time the hypervisor gave to other guests."""
    averages = (read_text(roots.proc / "loadavg") or "").split()[:3]
    times = cpu_times(roots)
    return {
        "average": [float(value) for value in averages] or None,
        "stolen_since_boot": times.stolen / times.total if times and times.total else None,
    }


@dataclass(frozen=True)
class CpuTimes:
    """Ticks since boot, summed over all cores; only the difference of two readings is meaningful."""

    total: int
    idle: int
    stolen: int


def cpu_times(roots: Roots) -> CpuTimes | None:
    """The first line of /proc/stat; None where there is none."""
    lines = read_lines(roots.proc / "stat")
    if not lines or not lines[0].startswith("cpu "):
        return None
    # user nice system idle iowait irq softirq steal; guest time is counted in user already.
    ticks = [int(value) for value in lines[0].split()[1:9]]
    ticks += [0] * (8 - len(ticks))
    return CpuTimes(total=sum(ticks), idle=ticks[3] + ticks[4], stolen=ticks[7])


@dataclass(frozen=True)
class Load:
    """What else went on while something was measured, as shares of the machine's CPU time, 0..1.

    Attributes:
        foreign: other processes had, and other guests of its host.
        stolen: of that, what other guests had.
    """

    foreign: float
    stolen: float


@dataclass(frozen=True)
class Busy:
    """How busy the machine was up to now, and how much of that were this process and those named.

    Attributes:
        ticks: of all cores since boot; None where the system does not say.
        own: seconds of CPU.
    """

    ticks: CpuTimes | None
    own: float

    @classmethod
    def now(cls, processes: Iterable[int] = (), roots: Roots | None = None) -> "Busy":
        """At this moment; `processes` count with all that they have started."""
        roots = roots or Roots()
        return cls(cpu_times(roots), time.process_time() + sum(cpu_seconds(pid, roots.proc) for pid in processes))

    def since(self, before: "Busy") -> Load | None:
        """What others did since `before`; None where the system does not say, or no tick has passed."""
        if self.ticks is None or before.ticks is None or self.ticks.total <= before.ticks.total:
            return None
        total = self.ticks.total - before.ticks.total
        busy = total - (self.ticks.idle - before.ticks.idle)
        own = (self.own - before.own) * os.sysconf("SC_CLK_TCK")
        stolen = (self.ticks.stolen - before.ticks.stolen) / total
        return Load(max(stolen, (busy - own) / total, 0.0), stolen)


def cpu_seconds(process: int | str, proc: Path = Path("/proc")) -> float:
    """CPU time of a process and of all that it has started, in seconds; 0 of one that is gone."""
    fields = (read_text(proc / str(process) / "stat") or "").rpartition(")")[2].split()
    # utime, stime, and those of children that have ended; in ticks.
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK") if len(fields) > 14 else 0.0
    return own + sum(cpu_seconds(child, proc) for child in children(process, proc))


def children(process: int | str = "self", proc: Path = Path("/proc")) -> list[str]:
    """Process numbers of a process's living children; none where /proc does not list them."""
    listed = (proc / str(process) / "task").glob("*/children")
    return [child for path in listed for child in (read_text(path) or "").split()]


def read_text(path: Path) -> str | None:
    """A file's text without surrounding whitespace; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_lines(path: Path) -> list[str]:
    """A file's lines; none where it cannot be read."""
    return (read_text(path) or "").splitlines()


def read_number(path: Path) -> float | None:
    """The number a file holds; None where there is none."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def scaled(value: float | None, factor: float) -> float | None:
    """`value` in another unit; None stays None."""
    return None if value is None else value * factor


def _selected(words: str | None) -> str | None:
    """The bracketed word of a kernel switch such as "always [madvise] never"."""
    return words[words.index("[") + 1 : words.index("]")] if words and "[" in words and "]" in words else words
