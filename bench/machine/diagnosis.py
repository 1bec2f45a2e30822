"""What is wrong with a machine as a place to measure on: facts in, findings out.

`gather` reads the facts; every check is a function of them alone, so each can be tried with made-up facts.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine.cpu import Roots, cpu_times
from bench.machine.facts import describe

OWN = ("bench", "kernels", "loaders", "models", "results")

# The first driver branch that runs a CUDA major version (CUDA toolkit release notes).
DRIVERS = {"11": 450, "12": 525, "13": 580}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        level: "problem" spoils numbers or stops a command, "advice" would improve them, "note" is good to
            know, "fine" needs nothing.
        subject: what was looked at.
        finding: what was seen.
        remedy: what to do about it; "" where there is nothing to do.
    """

    level: str
    subject: str
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Facts:
    """What the checks are told.

    Attributes:
        machine: bench.machine.describe().
        busy: cores at work while this process slept, None where /proc/stat is missing.
        stolen: share of that time which the hypervisor gave to others.
        owners: top-level module -> the distributions that install it.
        elsewhere: our packages that Python would import from another place than ours -> that place.
        distributions: DALI's builds that are installed.
        cuda: torch's answer to whether CUDA is available; None if torch was not asked.
        torch_error: why torch cannot be imported, None if it can.
        headers: Python's C headers are there.
        cache: the folder for generated images and compiled code.
        cache_free_bytes: room in it, None if unknown.
        shared_free_bytes: room in /dev/shm, None where there is none.
        loaders: engine -> why it cannot run here.
    """

    machine: Mapping[str, Any]
    busy: float | None = None
    stolen: float | None = None
    owners: Mapping[str, list[str]] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    distributions: tuple[str, ...] = ()
    cuda: bool | None = None
    torch_error: str | None = None
    headers: bool = True
    cache: str = ""
    cache_free_bytes: int | None = None
    shared_free_bytes: int | None = None
    loaders: Mapping[str, str] = field(default_factory=dict)


def gather(seconds: float = 0.5) -> Facts:
    """Look at this machine; sleeps `seconds` to see what else is running."""
    cuda, torch_error = None, None
    try:
        import torch

        cuda = torch.cuda.is_available()
    except Exception as error:  # a broken installation fails in many ways, and all of them are the finding
        torch_error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    busy, stolen = watch(seconds)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixbench"
    return Facts(
        machine=describe(with_torch=torch_error is None),
        busy=busy,
        stolen=stolen,
        owners={name: list(dists) for name, dists in importlib.metadata.packages_distributions().items()},
        elsewhere=elsewhere(),
        distributions=_installed("nvidia-dali-cuda110", "nvidia-dali-cuda120", "nvidia-dali-cuda130"),
        cuda=cuda,
        torch_error=torch_error,
        headers=(Path(sysconfig.get_path("include")) / "Python.h").exists(),
        cache=str(cache),
        cache_free_bytes=_free(cache),
        shared_free_bytes=_free(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        loaders=_missing_loaders() if torch_error is None else {},
    )


def watch(
    seconds: float, roots: Roots | None = None, sleep: Callable[[float], None] = time.sleep
) -> tuple[float | None, float | None]:
    """(cores busy, share of time stolen) over `seconds` in which this process does nothing."""
    roots = roots or Roots()
    before = cpu_times(roots)
    sleep(seconds)
    after = cpu_times(roots)
    if before is None or after is None or after.total == before.total:
        return None, None
    ticks = after.total - before.total
    idle, stolen = after.idle - before.idle, after.stolen - before.stolen
    return (ticks - idle - stolen) / ticks * (os.cpu_count() or 1), stolen / ticks


def elsewhere() -> dict[str, str]:
    """Our packages that `import` would take from a place other than the one this file lies in."""
    home = Path(__file__).resolve().parent.parent
    found = {}
    for name in OWN:
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if place != home:
            found[name] = str(place) if place else "nowhere"
    return found


def _installed(*distributions: str) -> tuple[str, ...]:
    found = {distribution.name for distribution in importlib.metadata.distributions()}
    return tuple(name for name in distributions if name in found)


def _free(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _missing_loaders() -> dict[str, str]:
    from loaders import engines

    return {name: reason for name in engines.names() if (reason := engines.missing(name)) is not None}


# --- checks ----------------------------------------------------------------------------------------------


def examine(facts: Facts) -> list[Finding]:
    """Everything that was looked at, in a fixed order."""
    return [finding for check in CHECKS for finding in check(facts)]


def other_load(facts: Facts) -> list[Finding]:
    """Programs that run beside the measurement."""
    if facts.busy is None:
        return []
    if facts.busy < 0.1:
        return [Finding("fine", "other load", "none")]
    return [
        Finding(
            "problem",
            "other load",
            f"{facts.busy:.1f} of {facts.machine['cpu']['logical']} cores are busy with other work",
            "Stop other programs (top shows which), or measure when they are done.",
        )
    ]


def stolen_time(facts: Facts) -> list[Finding]:
    """A hypervisor that runs somebody else."""
    virtual = facts.machine["cpu"]["virtual"]
    since_boot = facts.machine["load"]["stolen_since_boot"]
    if (facts.stolen or 0) > 0.01 or (since_boot or 0) > 0.01:
        share = max(facts.stolen or 0, since_boot or 0)
        return [
            Finding(
                "problem",
                "stolen time",
                f"the hypervisor gives up to {share:.1%} of this machine's time to others",
                "Trust ratios of things measured in turns (bench compare); absolute numbers need\n"
                "a machine of your own.",
            )
        ]
    if virtual:
        return [
            Finding(
                "note",
                "virtual machine",
                "neighbours on the same host cannot be seen from here; no time is being stolen now",
                "Ratios measured in turns hold; absolute numbers may move from day to day.",
            )
        ]
    return [Finding("fine", "stolen time", "none")]


def compiler(facts: Facts) -> list[Finding]:
    """torch.compile builds C++ on a CPU, and the launchers of its Triton kernels on a GPU."""
    if facts.machine["compiler"] is None:
        return [
            Finding(
                "problem",
                "compiler",
                "no C++ compiler found: torch.compile cannot build anything, models run eagerly",
                "Install one: apt install g++ (or set CXX to the one to use).",
            )
        ]
    if not facts.headers:
        return [
            Finding(
                "problem",
                "compiler",
                "Python's C headers are missing: torch.compile cannot build its launchers",
                "Install them: apt install python3-dev (of this Python's version).",
            )
        ]
    return [Finding("fine", "compiler", facts.machine["compiler"])]


def governor(facts: Facts) -> list[Finding]:
    """The kernel's policy for the CPU's clock."""
    name, boost = facts.machine["cpu"]["governor"], facts.machine["cpu"]["boost"]
    if name is None:
        return []
    if name == "performance":
        return [Finding("fine", "governor", name)]
    level = "problem" if name == "powersave" else "advice"
    text = f"the CPU's clock is governed by {name!r}" + (", and boost is on" if boost else "")
    return [Finding(level, "governor", text, "sudo cpupower frequency-set --governor performance")]


def cores(facts: Facts) -> list[Finding]:
    """Threads that torch uses against cores that there are."""
    cpu, settings = facts.machine["cpu"], facts.machine["settings"]
    found = []
    quota = cpu["quota"]
    if quota is not None and quota < cpu["affinity"]:
        found.append(
            Finding(
                "advice",
                "quota",
                f"the container may use {quota:g} of {cpu['affinity']} cores and is stopped beyond that",
                "Give whole cores instead of a share of time: docker run --cpuset-cpus=0-3.",
            )
        )
    threads = settings["threads"]
    if threads is None:
        return found
    # As many threads as physical cores is torch's own choice with simultaneous multithreading.
    if threads in (cpu["usable"], cpu["physical"]):
        return [*found, Finding("fine", "threads", f"{threads}")]
    why = settings["environment"].get("OMP_NUM_THREADS")
    cause = f" (OMP_NUM_THREADS={why})" if why else ""
    return [
        *found,
        Finding(
            "advice",
            "threads",
            f"torch uses {threads} threads{cause} and {cpu['usable']} cores are usable",
            "Unset OMP_NUM_THREADS, or name the number: bench compare --threads N.",
        ),
    ]


def precision(facts: Facts) -> list[Finding]:
    """Whether the CPU multiplies bfloat16 faster than float32."""
    if facts.machine["gpus"] or facts.machine["host"]["machine"] not in ("x86_64", "AMD64"):
        return []
    features = facts.machine["cpu"]["features"]
    if "amx_bf16" in features:
        return [Finding("fine", "bf16 units", "AMX")]
    if "avx512_bf16" in features:
        return [
            Finding(
                "note",
                "bf16 units",
                "no AMX here: bf16 runs on AVX-512, up to twice as fast as fp32 and not several times",
            )
        ]
    return [Finding("note", "bf16 units", "none here: the fast preset stays in fp32, and bf16 would be slower")]


def graphics(facts: Facts) -> list[Finding]:
    """Each GPU's state, and whether torch can use it."""
    found: list[Finding] = []
    gpus = facts.machine["gpus"]
    if not gpus:
        return [Finding("note", "gpu", "none is visible; everything is measured on the CPU")]
    if facts.cuda is False:
        found.append(_unusable(gpus[0]["driver"], facts.machine["versions"]["cuda"]))
    for index, gpu in enumerate(gpus):
        found += _gpu(f"gpu {index}", gpu)
    return found


def _unusable(driver: str | None, cuda: str | None) -> Finding:
    if cuda is None:
        return Finding(
            "problem",
            "gpu",
            "this build of torch has no CUDA",
            "Install torch's CUDA build (its site names the command), then make install again.",
        )
    major = cuda.split(".")[0]
    needed = DRIVERS.get(major)
    if driver and needed and driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < needed:
        return Finding(
            "problem",
            "gpu",
            f"driver {driver} is too old for torch's CUDA {cuda}, which needs {needed} or newer",
            "Update the driver, or install torch's build for an older CUDA and make install CUDA=12.",
        )
    return Finding(
        "problem",
        "gpu",
        f"the driver ({driver}) shows a GPU but torch (CUDA {cuda}) cannot use it",
        'python -c "import torch; torch.zeros(1).cuda()" says why.',
    )


def _gpu(subject: str, gpu: Mapping[str, Any]) -> list[Finding]:
    found = []
    others = gpu["other_processes"]
    if others:
        found.append(
            Finding(
                "problem",
                subject,
                f"{len(others)} other processes use it (pid {', '.join(str(p['pid']) for p in others)})",
                "End them, or choose another device with CUDA_VISIBLE_DEVICES.",
            )
        )
    if gpu["throttled"]:
        found.append(
            Finding(
                "problem",
                subject,
                f"it is slowing itself down: {', '.join(gpu['clock_events'])}",
                "Let it cool, check its fans and power supply.",
            )
        )
    if gpu["mig"]:
        found.append(Finding("note", subject, "it is partitioned (MIG): a number holds for this partition only"))
    if not gpu["jpeg_engine"]:
        found.append(Finding("note", subject, "NVML shows no JPEG engine: its CUDA cores decode every image"))
    limit, default = gpu["power_limit_watts"], gpu["power_default_watts"]
    if limit is not None and default is not None and limit < 0.99 * default:
        found.append(
            Finding(
                "advice",
                subject,
                f"its power limit is {limit:.0f} W, {default:.0f} W by default",
                f"sudo nvidia-smi --power-limit={default:.0f}, or say so beside the numbers.",
            )
        )
    if gpu["clock_events"] is not None and "clocks set by user" not in gpu["clock_events"]:
        clock = gpu["clock_maximum_hertz"]
        megahertz = f"{0.8 * clock / 1e6:.0f}" if clock else "MHZ"
        found.append(
            Finding(
                "advice",
                subject,
                "its clock is free to move with temperature and power",
                f"For the steadiest numbers: sudo nvidia-smi --lock-gpu-clocks={megahertz} (undo with\n"
                "--reset-gpu-clocks).",
            )
        )
    if gpu["persistence"] is False:
        found.append(
            Finding(
                "advice",
                subject,
                "persistence mode is off: the driver unloads between runs",
                "sudo nvidia-smi --persistence-mode=1",
            )
        )
    return found or [Finding("fine", subject, "idle, cool, alone")]


def names(facts: Facts) -> list[Finding]:
    """Other distributions that install modules of the same names."""
    found = []
    for module in OWN:
        others = sorted({name for name in facts.owners.get(module, []) if name != "pixbench"})
        if others:
            found.append(
                Finding(
                    "problem",
                    f"name {module}",
                    f"the distribution {', '.join(others)} installs a module {module!r} too",
                    f"Use an environment of this project's own (make install), or pip uninstall {others[0]}.",
                )
            )
    for module, place in facts.elsewhere.items():
        found.append(
            Finding(
                "problem",
                f"name {module}",
                f"Python finds the module {module!r} in {place}, not beside bench",
                "Start Python from another folder, or remove that folder from PYTHONPATH.",
            )
        )
    if "pynvml" in facts.owners.get("pynvml", []):
        found.append(
            Finding(
                "problem",
                "name pynvml",
                "the deprecated distribution pynvml covers nvidia-ml-py's module",
                "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py",
            )
        )
    return found or [Finding("fine", "module names", "no clash")]


def software(facts: Facts) -> list[Finding]:
    """torch, DALI and the loaders."""
    if facts.torch_error is not None:
        return [
            Finding(
                "problem",
                "torch",
                f"cannot be imported: {facts.torch_error}",
                "pip install --force-reinstall torch torchvision, or make clean and make install.",
            )
        ]
    found = []
    if len(facts.distributions) > 1:
        found.append(
            Finding(
                "problem",
                "DALI",
                f"{' and '.join(facts.distributions)} are both installed and own the same files",
                "make clean, then make install (CUDA=12 for a driver older than CUDA 13).",
            )
        )
    for name, reason in facts.loaders.items():
        if name == "dali":
            remedy = "pip install nvidia-dali-cuda130 (Linux on x86_64), or use another loader: bench list loaders"
            found.append(Finding("problem", "DALI", reason, remedy))
        else:
            found.append(Finding("note", f"loader {name}", reason))
    return found or [Finding("fine", "loaders", "all can run")]


def room(facts: Facts) -> list[Finding]:
    """Memory, swap, disk."""
    from results.tables import quantity

    found = []
    memory = facts.machine["memory"]
    if memory["swap_used_bytes"]:
        found.append(
            Finding(
                "advice",
                "swap",
                f"{quantity(memory['swap_used_bytes'], 'bytes')} of memory are swapped out",
                "Free memory, then sudo swapoff -a && sudo swapon -a.",
            )
        )
    available = memory["available_bytes"]
    if memory["limit_bytes"] is not None and available is not None:
        available = min(available, memory["limit_bytes"])
    if available is not None and available < 4 * 2**30:
        found.append(
            Finding(
                "problem",
                "memory",
                f"{quantity(available, 'bytes')} are free; two sides and their loaders want about 4 GiB",
                "Close other programs, or use smaller batches: bench compare --batch 8.",
            )
        )
    free = facts.cache_free_bytes
    if free is not None and free < 2 * 2**30:
        found.append(
            Finding(
                "problem",
                "disk",
                f"{quantity(free, 'bytes')} are free for {facts.cache}",
                "Make room, or move it: export XDG_CACHE_HOME=/somewhere/else.",
            )
        )
    shared = facts.shared_free_bytes
    if shared is not None and shared < 2**30:
        found.append(
            Finding(
                "advice",
                "shared memory",
                f"{quantity(shared, 'bytes')} are free in /dev/shm, where loader processes leave batches",
                "Containers start with 64 MiB: docker run --ipc=host or --shm-size=8g.",
            )
        )
    return found or [Finding("fine", "room", "enough memory and disk")]


CHECKS: tuple[Callable[[Facts], list[Finding]], ...] = (
    software,
    graphics,
    other_load,
    stolen_time,
    governor,
    cores,
    compiler,
    precision,
    room,
    names,
)
