"""The parts of `make gpu` and the commands that they are made of.

Every job is a command of its own that leaves a file of its own, so that one that fails or hangs costs only itself, and
what was measured before an early end is kept. A job is short: networks are compared one by one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UsageError

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "densenet121", "efficientnet_b0")
PARTS = (
    *("compile", "tests", "decoding", "kernels", "training", "inference", "latency", "loaders", "end_to_end"),
    "batches",
)
"""In the order in which they are run: what later parts stand on first, then what is asked for most."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        part: one of PARTS.
        name: of its file, without the ending.
        command: words; FILE stands for the file it writes, ROWS for a folder of what it has so far.
        seconds: after which it is ended.
        timed: whether it measures; neighbours that do not are run at the same time.
    """

    part: str
    name: str
    command: tuple[str, ...]
    seconds: float
    timed: bool = True


FILE = "{file}"
ROWS = "{rows}"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        networks: names in the zoo.
        batch: images of a step.
        size: of an image in pixels; 0 is each network's own.
        images: JPEGs that loaders read.
        rounds: of a comparison.
        batches: images of a forward pass that are tried beside `batch`.
    """

    networks: tuple[str, ...] = NETWORKS
    batch: int = 256
    size: int = 0
    images: int = 2000
    rounds: int = 6
    batches: tuple[int, ...] = (64, 512, 1024)


# What a CPU can rehearse in minutes: the same commands, so that they run the first time a GPU is at hand.
REHEARSAL = Scale(("resnet18", "efficientnet_b0"), batch=4, size=64, images=64, rounds=2, batches=(8,))

# Beside the reference, which stands first: default torch.compile with everything else as in `fast`.
TRAINED = ("amp-nhwc-compile", "naive", "amp-nhwc-eager", "fast")
INFERRED = ("amp-nhwc-compile", "naive", "bf16-nhwc-compile-freeze", "fast")
ON_CPU = ("amp-nhwc-compile", "naive", "amp-nhwc-eager")
GIB = 1 << 30
# Up to five trainings lie in memory at the same time, of which the largest takes a tenth of a GiB an image.
BATCHES = ((120 * GIB, 256), (70 * GIB, 128), (0, 64))


def batch_for(memory: int) -> int:
    """Images of a step on a GPU of so many bytes."""
    return next(batch for least, batch in BATCHES if memory >= least)


def jobs(parts: Sequence[str], device: str, scale: Scale, tests: Path) -> list[Job]:
    """The commands of some parts on "cuda", or on "cpu" as a rehearsal.

    Args:
        tests: the folder of the test suite.

    Raises:
        UsageError: no part has this name.
    """
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"there is no part {part!r}; there are {', '.join(PARTS)}")
    makers = {
        "compile": lambda: _compile(device, scale),
        "tests": lambda: _tests(device, tests),
        "decoding": lambda: _decoding(device, scale),
        "kernels": lambda: _kernels(device, scale),
        "training": lambda: _networks("training", "training", device, scale, TRAINED),
        "inference": lambda: _networks("inference", "inference", device, scale, INFERRED),
        "latency": lambda: _networks("latency", "latency", device, scale, INFERRED),
        "loaders": lambda: _loaders(device, scale),
        "end_to_end": lambda: _networks("end_to_end", "loading,end_to_end", device, scale, ("fast",)),
        "batches": lambda: [
            replace(job, part="batches", name=f"{job.name}-b{batch}")
            for batch in scale.batches
            if batch != scale.batch
            for job in _networks("inference", "inference", device, replace(scale, batch=batch), ("fast",), False)
        ],
    }
    return [job for part in PARTS if part in parts for job in makers[part]()]


def bench(*words: str) -> tuple[str, ...]:
    """A `bench` command of this code."""
    return (sys.executable, "-P", "-m", "bench", *words)


def _tests(device: str, tests: Path) -> list[Job]:
    words_of_cpu = "kernel_layers or graphed or gpu_decoding or captured or interpreter"
    chosen = ("-m", "gpu") if device == "cuda" else ("-k", words_of_cpu)
    found = []
    # In processes of their own: a test that leaves a device behind in pieces spoils no other folder's.
    for folder in ("models", "loaders", "kernels"):
        words = ("-m", "pytest", str(tests / folder), "-q", *chosen, f"--junitxml={FILE}", "-p", "no:cacheprovider")
        found.append(Job("tests", f"tests-{folder}", (sys.executable, "-P", *words), 150, timed=False))
    return found


def _compile(device: str, scale: Scale) -> list[Job]:
    words = ["compile", "--device", device, "--batch", str(scale.batch), "--size", str(scale.size)]
    words += ["--networks", ",".join(scale.networks), "-o", FILE]
    return [Job("compile", "compile", (sys.executable, "-P", "-m", "bench.gpu", *words), 200, timed=False)]


def _decoding(device: str, scale: Scale) -> list[Job]:
    words = ("sweep", "--device", device, "--images", str(scale.images), "--batch", str(scale.batch), "-o", FILE)
    return [Job("decoding", "decoding", (sys.executable, "-P", "-m", "bench.gpu", *words), 120)]


def _kernels(device: str, scale: Scale) -> list[Job]:
    from kernels import catalogue

    size = ("--size", str(scale.size)) if scale.size else ()
    found = []
    for name in catalogue.names():
        # The twin is the reference; Triton needs a GPU.
        known = catalogue.implementations(name)
        operands = [f"{name}@{one}" for one in known if device == "cuda" or one != "triton"]
        found.append(_compare("kernels", f"kernels-{name}", operands, device, scale, 60, *size))
    return found


def _networks(
    part: str, tasks: str, device: str, scale: Scale, configurations: Sequence[str], kernels: bool = True
) -> list[Job]:
    found = []
    for network in scale.networks:
        words = list(configurations)
        if device == "cpu":
            words = [one for one in ON_CPU if one in configurations] or ["fast"]
        if kernels and device == "cuda" and network.startswith("efficientnet") and part in ("training", "inference"):
            words.append("amp-nhwc-graphs-kernels" if part == "training" else "amp-nhwc-compile-kernels")
        more = ["--tasks", tasks]
        if scale.size:
            more += ["--size", str(scale.size)]
        if "loading" in tasks:
            more += ["--images", str(scale.images)]
        operands = [f"{network}@{word}" for word in words]
        found.append(_compare(part, f"{part}-{network}", operands, device, scale, 240, *more))
    return found


def _loaders(device: str, scale: Scale) -> list[Job]:
    engines = ["dali", "torchvision", "pil", "synthetic"]
    return [_compare("loaders", "loaders", engines, device, scale, 120, "--images", str(scale.images))]


def _compare(
    part: str, name: str, operands: Sequence[str], device: str, scale: Scale, seconds: float, *more: str
) -> Job:
    words = ["compare", *operands, "--device", device, "--batch", str(scale.batch), "--rounds", str(scale.rounds)]
    # Whether others use the GPU was asked before the first job.
    more = (*more, "--force", "--no-energy", "--store", ROWS, "--format", "json", "-o", FILE)
    return Job(part, name, bench(*words, "--budget", "0", *more), seconds)
