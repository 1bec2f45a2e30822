"""The parts of `make gpu`, and the commands that they consist of.

Every job is a command of its own that leaves a file of its own, so that a failure costs one job, and an early end keeps
what was measured before. Jobs are short: networks are compared one by one.
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
"""In the order in which they run: first what later parts build on, then what is asked for most."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        part: one of PARTS.
        name: of its file, without the ending.
        command: its words; FILE stands for the file it writes, ROWS for a folder of the rows it has so far.
        seconds: after which it is ended.
        timed: whether it measures; neighbours that do not run at the same time.
    """

    part: str
    name: str
    command: tuple[str, ...]
    seconds: float
    timed: bool = True


FILE = "{file}"
ROWS = "{rows}"
PYTHON = (sys.executable, "-P", "-m")


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


# What a CPU can rehearse in minutes: the same commands, so that they work at the first try on a GPU.
REHEARSAL = Scale(("resnet18", "efficientnet_b0"), batch=4, size=64, images=64, rounds=2, batches=(8,))

# The first is the reference: default torch.compile with everything else as in `fast`.
TRAINED = ("amp-nhwc-compile", "naive", "amp-nhwc-eager", "fast")
INFERRED = ("amp-nhwc-compile", "naive", "bf16-nhwc-compile-freeze", "fast")
# Of networks with depthwise convolutions and gates, which our kernels are for.
OUR_KERNELS = {"training": "amp-nhwc-graphs-kernels", "inference": "amp-nhwc-compile-kernels"}
ON_CPU = ("amp-nhwc-compile", "naive", "amp-nhwc-eager")
GIB = 1 << 30
# Up to five trainings are in memory at the same time, of which the largest takes a tenth of a GiB for each image.
BATCHES = ((120 * GIB, 256), (70 * GIB, 128), (0, 64))


def batch_for(memory: int) -> int:
    """Images of a step on a GPU with that many bytes of memory."""
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
    maker = _JobMaker(device, scale, tests)
    return [job for part in PARTS if part in parts for job in maker.part(part)]


@dataclass(frozen=True)
class _JobMaker:
    """Makes the jobs of the parts.

    Attributes:
        device: "cuda" or "cpu".
        scale: how large everything is.
        tests: the folder of the test suite.
    """

    device: str
    scale: Scale
    tests: Path

    def part(self, part: str) -> list[Job]:
        """The jobs of one part."""
        scale = self.scale
        images = ("--images", str(scale.images))
        match part:
            case "compile":
                more = ("--size", str(scale.size), "--networks", ",".join(scale.networks))
                return [self.own("compile", "compile", 200, *more)]
            case "tests":
                return self.test_jobs()
            case "decoding":
                return [self.own("decoding", "sweep", 120, *images)]
            case "kernels":
                return self.kernels()
            case "loaders":
                return [self.compare(part, part, ["dali", "torchvision", "pil", "synthetic"], 120, *images)]
            case "end_to_end":
                return self.networks(part, ("fast",), "loading,end_to_end", *images)
            case "batches":
                return [
                    replace(job, part=part, name=f"{job.name}-b{batch}")
                    for batch in scale.batches
                    if batch != scale.batch
                    for job in replace(self, scale=replace(scale, batch=batch)).networks("inference", ("fast",))
                ]
            case _:
                return self.networks(part, TRAINED if part == "training" else INFERRED)

    def own(self, part: str, command: str, seconds: float, *more: str) -> Job:
        """A job of `python -m bench.gpu`."""
        words = (command, "--device", self.device, "--batch", str(self.scale.batch), *more, "-o", FILE)
        return Job(part, part, (*PYTHON, "bench.gpu", *words), seconds, timed=part != "compile")

    def test_jobs(self) -> list[Job]:
        """The tests that need the device, each folder in a process of its own: a broken device must not fail others."""
        on_cpu = "kernel_layers or graphed or gpu_decoding or captured or interpreter"
        chosen = ("-m", "gpu") if self.device == "cuda" else ("-k", on_cpu)
        options = ("-q", *chosen, f"--junitxml={FILE}", "-p", "no:cacheprovider")
        return [
            Job("tests", f"tests-{name}", (*PYTHON, "pytest", str(self.tests / name), *options), 150, timed=False)
            for name in ("models", "loaders", "kernels")
        ]

    def kernels(self) -> list[Job]:
        """Each kernel against its twin, which is the reference; Triton needs a GPU."""
        from kernels import catalogue

        size = ("--size", str(self.scale.size)) if self.scale.size else ()
        made = []
        for name in catalogue.names():
            ways = [way for way in catalogue.implementations(name) if self.device == "cuda" or way != "triton"]
            made.append(self.compare("kernels", f"kernels-{name}", [f"{name}@{way}" for way in ways], 60, *size))
        return made

    def networks(self, part: str, configurations: Sequence[str], tasks: str = "", *more: str) -> list[Job]:
        """Each network in all configurations; tasks are the part's own by default."""
        if self.device == "cpu":
            configurations = [each for each in ON_CPU if each in configurations] or ["fast"]
        if self.scale.size:
            more = (*more, "--size", str(self.scale.size))
        made = []
        for network in self.scale.networks:
            words = list(configurations)
            # Not among the batches, which have one configuration.
            if self.device == "cuda" and len(words) > 1 and network.startswith("efficientnet") and part in OUR_KERNELS:
                words.append(OUR_KERNELS[part])
            operands = [f"{network}@{word}" for word in words]
            made.append(self.compare(part, f"{part}-{network}", operands, 240, "--tasks", tasks or part, *more))
        return made

    def compare(self, part: str, name: str, operands: Sequence[str], seconds: float, *more: str) -> Job:
        """A job of `bench compare`."""
        words = ["compare", *operands, "--device", self.device, "--batch", str(self.scale.batch)]
        words += ["--rounds", str(self.scale.rounds), "--budget", "0", *more]
        # --force: whether other processes use the GPU was checked before the first job.
        words += ["--force", "--no-energy", "--store", ROWS, "--format", "json", "-o", FILE]
        return Job(part, name, (*PYTHON, "bench", *words), seconds)
