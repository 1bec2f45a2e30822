"""What would spoil a measurement on this machine, and what to do about it: facts in, findings out.

`gather` reads the facts. Every check is a function of them alone, so that each can be tried on fabricated ones.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.machine.allocator import BY_LEVER, FOR_SCRIPTS
from bench.machine.cpu import Roots, cpu_times
from bench.machine.facts import describe
from bench.machine.noise import MINUTES, Noise
from bench.machine.surroundings import gaps
from bench.processes import SOURCE
from loaders.cache import cache_folder

PACKAGES = ("bench", "kernels", "loaders", "models", "results")
DALI_BUILDS = {"nvidia-dali-cuda110", "nvidia-dali-cuda120", "nvidia-dali-cuda130"}
# The first driver branch that runs a CUDA major version (CUDA toolkit release notes).
DRIVERS = {"11": 450, "12": 525, "13": 580}
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: "problem" spoils numbers or stops a command, "advice" would improve them, "note" is good to know, "fine"
            needs nothing.
        subject: what was checked.
        finding: what was seen.
        remedy: what to do about it; "" where there is nothing to do.
    """

    level: Literal["problem", "advice", "note", "fine"]
    subject: str
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Facts:
    """What the checks look at.

    Attributes:
        machine: bench.machine.facts.describe().
        busy: cores at work while this process slept; None where /proc/stat is missing.
        stolen: share of that time which the hypervisor gave to other guests.
        owners: top-level module -> the distributions that install it.
        elsewhere: package of ours that Python would import from another folder -> that folder.
        dali_builds: builds of DALI that are installed.
        cuda: whether torch finds CUDA available; None if torch was not asked.
        torch_error: why torch cannot be imported; None if it can.
        headers: whether Python's C headers are installed.
        cache: the folder for generated images and compiled code.
        cache_free_bytes: free space in it; None if unknown.
        shared_free_bytes: free space in /dev/shm; None where there is none.
        temporary_free_bytes: free space for temporary files; None if unknown.
        gaps: what a command takes for granted and is missing here -> why, see bench.machine.surroundings.
        missing_loaders: loader -> why it cannot run here.
        noise: of times of the same code; None if it was not measured, with the reason in `noise_missing`.
    """

    machine: Mapping[str, Any]
    busy: float | None = None
    stolen: float | None = None
    owners: Mapping[str, list[str]] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    dali_builds: tuple[str, ...] = ()
    cuda: bool | None = None
    torch_error: str | None = None
    headers: bool = True
    cache: str = ""
    cache_free_bytes: int | None = None
    shared_free_bytes: int | None = None
    temporary_free_bytes: int | None = None
    gaps: Mapping[str, str] = field(default_factory=dict)
    missing_loaders: Mapping[str, str] = field(default_factory=dict)
    noise: Noise | None = None
    noise_missing: str = ""


Findings = Iterator[Finding]


def gather(seconds: float = 0.5) -> Facts:
    """Read this machine's facts; sleeps `seconds` to see what else is running."""
    # First of all: what stands in for a cache folder that cannot be used would be taken for it.
    missing = gaps()
    cuda, torch_error = None, None
    try:
        import torch

        cuda = torch.cuda.is_available()
    except Exception as error:  # a broken installation fails in many ways, and each of them is the finding
        torch_error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    busy, stolen = other_work(seconds)
    return Facts(
        machine=describe(with_torch=torch_error is None),
        busy=busy,
        stolen=stolen,
        owners={name: list(dists) for name, dists in importlib.metadata.packages_distributions().items()},
        elsewhere=_imported_from_elsewhere(),
        dali_builds=tuple(sorted(DALI_BUILDS & {each.name for each in importlib.metadata.distributions()})),
        cuda=cuda,
        torch_error=torch_error,
        headers=(Path(sysconfig.get_path("include")) / "Python.h").exists(),
        cache=str(cache_folder()),
        cache_free_bytes=_free_bytes(cache_folder()),
        shared_free_bytes=_free_bytes(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        temporary_free_bytes=_free_bytes(Path(os.environ.get("TMPDIR") or "/tmp")),
        gaps=missing,
        missing_loaders=_missing_loaders() if torch_error is None else {},
    )


def other_work(
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


def _imported_from_elsewhere() -> dict[str, str]:
    folders = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        folder = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
        if folder != SOURCE:
            folders[name] = str(folder) if folder else "no folder"
    return folders


def _free_bytes(folder: Path) -> int | None:
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _missing_loaders() -> dict[str, str]:
    from loaders import engines

    return {name: reason for name in engines.names() if (reason := engines.missing(name)) is not None}


def examine(facts: Facts) -> list[Finding]:
    """The findings of all checks, in a fixed order."""
    findings: list[Finding] = []
    for check, otherwise in CHECKS.items():
        findings += list(check(facts)) or ([otherwise] if otherwise else [])
    return findings


def check_software(facts: Facts) -> Findings:
    """torch, DALI and the loaders."""
    if facts.torch_error is not None:
        remedy = "pip install --force-reinstall torch torchvision, or make clean and make install."
        yield Finding("problem", "torch", f"cannot be imported: {facts.torch_error}", remedy)
        return
    if len(facts.dali_builds) > 1:
        text = f"{' and '.join(facts.dali_builds)} are both installed, and each overwrites the other's files"
        remedy = "make clean, then make install (CUDA=12 for a driver older than CUDA 13)."
        yield Finding("problem", "DALI", text, remedy)
    for name, reason in facts.missing_loaders.items():
        if name == "dali":
            remedy = "pip install nvidia-dali-cuda130 (Linux on x86_64), or use another loader: bench list loaders"
            yield Finding("problem", "DALI", reason, remedy)
        else:
            yield Finding("note", f"loader {name}", reason)


def check_gpus(facts: Facts) -> Findings:
    """The state of each GPU, and whether torch can use it."""
    gpus = facts.machine["gpus"]
    if not gpus:
        yield Finding("note", "gpu", "none is visible: everything is measured on the CPU")
        return
    if facts.cuda is False:
        yield _unusable_gpu(gpus[0]["driver"], facts.machine["versions"]["cuda"])
    for index, gpu in enumerate(gpus):
        yield from list(_check_gpu(f"gpu {index}", gpu)) or [Finding("fine", f"gpu {index}", "idle, cool, unshared")]


def _unusable_gpu(driver: str | None, cuda: str | None) -> Finding:
    if cuda is None:
        remedy = "Install torch's CUDA build (pytorch.org gives the command), then make install again."
        return Finding("problem", "gpu", "this build of torch has no CUDA", remedy)
    needed = DRIVERS.get(cuda.split(".")[0])
    branch = (driver or "").split(".")[0]
    if needed and branch.isdigit() and int(branch) < needed:
        text = f"driver {driver} is too old for torch's CUDA {cuda}, which needs {needed} or newer"
        remedy = "Update the driver, or install torch's build for an older CUDA and make install CUDA=12."
        return Finding("problem", "gpu", text, remedy)
    text = f"the driver ({driver}) shows a GPU, but torch (CUDA {cuda}) cannot use it"
    return Finding("problem", "gpu", text, 'python -c "import torch; torch.zeros(1).cuda()" shows the reason.')


def _check_gpu(subject: str, gpu: Mapping[str, Any]) -> Findings:
    others = ", ".join(str(process["pid"]) for process in gpu["other_processes"] or ())
    if others:
        remedy = "End them, or choose another device with CUDA_VISIBLE_DEVICES."
        yield Finding("problem", subject, f"in use by other processes (pid {others})", remedy)
    if gpu["throttled"]:
        text = f"slowed down by its hardware: {', '.join(gpu['clock_events'])}"
        yield Finding("problem", subject, text, "Let it cool; check its fans and power supply.")
    if gpu["mig"]:
        yield Finding("note", subject, "partitioned (MIG): numbers hold for this partition only")
    if not gpu["jpeg_engine"]:
        yield Finding("note", subject, "NVML shows no JPEG engine: its CUDA cores decode every image")
    limit, default = gpu["power_limit_watts"], gpu["power_default_watts"]
    if limit is not None and default is not None and limit < 0.99 * default:
        remedy = f"sudo nvidia-smi --power-limit={default:.0f}, or publish the limit with the numbers."
        yield Finding("advice", subject, f"its power limit is {limit:.0f} W, {default:.0f} W by default", remedy)
    if gpu["clock_events"] is not None and "clocks set by user" not in gpu["clock_events"]:
        clock = gpu["clock_maximum_hertz"]
        megahertz = f"{0.8 * clock / 1e6:.0f}" if clock else "MHZ"
        remedy = (
            f"For the steadiest numbers: sudo nvidia-smi --lock-gpu-clocks={megahertz}\n"
            "(sudo nvidia-smi --reset-gpu-clocks undoes it)."
        )
        yield Finding("advice", subject, "its clock changes with temperature and power", remedy)
    if gpu["persistence"] is False:
        text = "persistence mode is off: the driver unloads between runs"
        yield Finding("advice", subject, text, "sudo nvidia-smi --persistence-mode=1")


def check_other_load(facts: Facts) -> Findings:
    """Programs that run beside the measurement."""
    if facts.busy is None:
        return
    if facts.busy < 0.1:
        yield Finding("fine", "other load", "none")
        return
    text = f"other programs keep {facts.busy:.1f} of {facts.machine['cpu']['logical']} cores busy"
    yield Finding("problem", "other load", text, "Stop them (top shows which), or measure when they have finished.")


# What three minutes should see, and from which share of the machine up other work is named as the cause of noise.
SEEN = 0.05
FOREIGN = 0.02


def check_noise(facts: Facts) -> Findings:
    """How small a difference a comparison can see."""
    from results.tables import percent

    noise = facts.noise
    if noise is None:
        if facts.noise_missing:
            yield Finding("note", "noise", f"not measured: {facts.noise_missing}")
        return
    first, *others = (f"{percent(noise.visible(60 * minutes))} in {minutes}" for minutes in MINUTES)
    text = (
        f"two runs of the same code differ by {percent(noise.second)} (standard deviation of 1 s of turns); bench "
        f"compare can see differences of about {first} minute, {' and '.join(others)} minutes in a single task"
    )
    if noise.visible(180) <= SEEN:
        yield Finding("note", "noise", text)
        return
    had, guests = noise.foreign or 0.0, noise.stolen or 0.0
    if had < FOREIGN:
        remedy = "No other work was seen: fix the clock if it varies, or measure on a machine that is not shared."
    elif guests > had / 2:
        remedy = f"Other guests of the host had {percent(guests)} of this machine: measure later or on another one."
    else:
        remedy = f"Other programs had {percent(had)} of this machine: stop them (top shows which), then measure."
    yield Finding("advice", "noise", text, remedy)


def check_stolen_time(facts: Facts) -> Findings:
    """A hypervisor that runs other guests on the same cores."""
    share = max(facts.stolen or 0, facts.machine["load"]["stolen_since_boot"] or 0)
    if share > 0.01:
        text = f"the hypervisor gives up to {share:.1%} of this machine's time to others"
        remedy = "Ratios measured in turns (bench compare) hold; absolute numbers need a dedicated machine."
        yield Finding("problem", "stolen time", text, remedy)
    elif facts.machine["cpu"]["virtual"]:
        text = "other guests on the host cannot be seen from here; no time is being stolen now"
        remedy = "Ratios measured in turns hold; absolute numbers may change from day to day."
        yield Finding("note", "virtual machine", text, remedy)
    else:
        yield Finding("fine", "stolen time", "none")


def check_governor(facts: Facts) -> Findings:
    """The kernel's policy for the CPU's clock."""
    name, boost = facts.machine["cpu"]["governor"], facts.machine["cpu"]["boost"]
    if name == "performance":
        yield Finding("fine", "governor", name)
    elif name is not None:
        text = f"{name!r} governs the CPU's clock" + (", and boost is on" if boost else "")
        remedy = "sudo cpupower frequency-set --governor performance"
        yield Finding("problem" if name == "powersave" else "advice", "governor", text, remedy)


def check_cores(facts: Facts) -> Findings:
    """The cores this process may use, and torch's number of threads."""
    cpu, settings = facts.machine["cpu"], facts.machine["settings"]
    quota, threads = cpu["quota"], settings["threads"]
    if quota is not None and quota < cpu["affinity"]:
        text = f"the container may use {quota:g} of {cpu['affinity']} cores and is paused when it exceeds that"
        remedy = "Give it whole cores instead of a share of time: docker run --cpuset-cpus=0-3."
        yield Finding("advice", "quota", text, remedy)
    # With simultaneous multithreading torch's own choice is as many threads as physical cores.
    if threads in (cpu["usable"], cpu["physical"]) and threads is not None:
        yield Finding("fine", "threads", f"{threads}")
    elif threads is not None:
        variable = settings["environment"].get("OMP_NUM_THREADS")
        cause = f" (OMP_NUM_THREADS={variable})" if variable else ""
        text = f"torch uses {threads} threads{cause}, and {cpu['usable']} cores are usable"
        remedy = "Unset OMP_NUM_THREADS, or set the number: bench compare --threads N."
        yield Finding("advice", "threads", text, remedy)


def check_compiler(facts: Facts) -> Findings:
    """torch.compile builds C++ on a CPU, and the launchers of its Triton kernels on a GPU."""
    version = facts.machine["compiler"]
    if version is None:
        text = "no C++ compiler found: torch.compile cannot build anything, and models run eagerly"
        yield Finding("problem", "compiler", text, "Install one: apt install g++ (or name yours in CXX).")
    elif not facts.headers:
        text = "Python's C headers are missing: torch.compile cannot build its launchers"
        yield Finding("problem", "compiler", text, "Install them: apt install python3-dev (of this Python's version).")
    else:
        yield Finding("fine", "compiler", version)


def check_bf16(facts: Facts) -> Findings:
    """Whether the CPU multiplies bfloat16 faster than float32."""
    if facts.machine["gpus"] or facts.machine["host"]["machine"] not in ("x86_64", "AMD64"):
        return
    features = facts.machine["cpu"]["features"]
    if "amx_bf16" in features:
        yield Finding("fine", "bf16 units", "AMX")
    elif "avx512_bf16" in features:
        text = "no AMX here: bf16 runs on AVX-512, at most twice as fast as fp32"
        yield Finding("note", "bf16 units", text)
    else:
        text = "none here: bf16 would be slower than fp32, so the fast preset stays in fp32"
        yield Finding("note", "bf16 units", text)


def check_freed_memory(facts: Facts) -> Findings:
    """What glibc does with the memory that a step on the CPU frees."""
    if facts.machine["gpus"] or facts.machine["settings"].get("allocator") != BY_LEVER:
        return
    text = "glibc gives what a step frees back to the system, which clears it for the next one"
    remedy = (
        f"In scripts of your own: {FOR_SCRIPTS} python ...\n"
        "keeps it. In fp32, that nearly doubles the speed of efficientnet_b0 (docs/measured.md names the record).\n"
        "The lever keep does the same: bench compare MODEL@naive MODEL@keep says what it is worth."
    )
    yield Finding("note", "freed memory", text, remedy)


def check_space(facts: Facts) -> Findings:
    """Memory, swap, disk."""
    from results.tables import quantity

    def free(count: int) -> str:
        return f"only {quantity(count, 'bytes')} free"

    memory = facts.machine["memory"]
    if memory["swap_used_bytes"]:
        text = f"{quantity(memory['swap_used_bytes'], 'bytes')} of memory swapped out"
        yield Finding("advice", "swap", text, "Free some memory, then sudo swapoff -a && sudo swapon -a.")
    sizes = [size for size in (memory["available_bytes"], memory["limit_bytes"]) if size is not None]
    if memory["available_bytes"] is not None and min(sizes) < 4 * GIB:
        text = f"{free(min(sizes))}; two sides and their loaders need about 4 GiB"
        remedy = "Close other programs, or use smaller batches: bench compare --batch 8."
        yield Finding("problem", "memory", text, remedy)
    if facts.cache_free_bytes is not None and facts.cache_free_bytes < 2 * GIB:
        text = f"{free(facts.cache_free_bytes)} for {facts.cache}"
        yield Finding("problem", "disk", text, "Make room, or move it: export XDG_CACHE_HOME=/somewhere/else.")
    if facts.temporary_free_bytes is not None and facts.temporary_free_bytes < GIB // 4:
        text = f"{free(facts.temporary_free_bytes)} for temporary files, which compilers and measuring processes write"
        yield Finding("problem", "temporary files", text, GAPS["temporary files"][1])
    if facts.shared_free_bytes is not None and facts.shared_free_bytes < GIB:
        text = f"{free(facts.shared_free_bytes)} in /dev/shm, through which loader processes pass their batches"
        remedy = "Containers start with 64 MiB: docker run --ipc=host or --shm-size=8g."
        yield Finding("advice", "shared memory", text, remedy)


# What is missing -> (level, what to do about it).
GAPS: dict[str, tuple[Literal["problem", "advice"], str]] = {
    "home": ("advice", "Name one that can be written: export HOME=/somewhere (docker run -e HOME=/tmp)."),
    "user": ("advice", "export USER=somebody, or give the user a name in the container (useradd)."),
    "cache": (
        "advice",
        "A temporary folder is used. Name one that stays, so that images and compiled code are made once:\n"
        "export XDG_CACHE_HOME=/somewhere/else",
    ),
    "temporary files": ("problem", "Free some space there, or name another place: export TMPDIR=/somewhere/else."),
    "working folder": (
        "advice",
        "Work in another folder, or name places that can be written: --store, --runs, --out and -o.",
    ),
    "git": (
        "advice",
        "Install it (apt install git); a checkout of another user it accepts after\n"
        "git config --global --add safe.directory FOLDER. bench check --base needs it.",
    ),
    "encoding": ("advice", "export LC_ALL=C.UTF-8, and leave out PYTHONIOENCODING and PYTHONUTF8."),
}


def check_surroundings(facts: Facts) -> Findings:
    """A home, a name, places to write, git, a terminal for every character."""
    for subject, reason in facts.gaps.items():
        level, remedy = GAPS[subject]
        yield Finding(level, subject, reason, remedy)


def check_module_names(facts: Facts) -> Findings:
    """Other distributions that install modules of the same names."""
    for module in PACKAGES:
        others = sorted({name for name in facts.owners.get(module, []) if name != "pixbench"})
        if others:
            text = f"{', '.join(others)} also installs a module {module!r}"
            remedy = f"Use an environment of this project's own (make install), or pip uninstall {others[0]}."
            yield Finding("problem", f"name {module}", text, remedy)
    for module, folder in facts.elsewhere.items():
        text = f"Python finds the module {module!r} in {folder}, not beside bench"
        remedy = "Start Python in another folder, or remove that folder from PYTHONPATH."
        yield Finding("problem", f"name {module}", text, remedy)
    if "pynvml" in facts.owners.get("pynvml", []):
        text = "the deprecated distribution pynvml hides the module of nvidia-ml-py"
        remedy = "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
        yield Finding("problem", "name pynvml", text, remedy)


CHECKS: dict[Callable[[Facts], Findings], Finding | None] = {
    check_software: Finding("fine", "loaders", "all can run"),
    check_gpus: None,
    check_other_load: None,
    check_noise: None,
    check_stolen_time: None,
    check_governor: None,
    check_cores: None,
    check_compiler: None,
    check_bf16: None,
    check_freed_memory: None,
    check_space: Finding("fine", "memory and disk", "enough"),
    check_surroundings: Finding("fine", "surroundings", "home, user, places to write, git and encoding"),
    check_module_names: Finding("fine", "module names", "no clash"),
}
"""In the order of the report, with the finding of a check that has nothing to complain about."""
