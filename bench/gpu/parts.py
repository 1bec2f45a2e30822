"""The parts of `make gpu`, and the commands that they consist of.

Every job is a command of its own that leaves a file of its own, so that a failure costs one job, and an early end keeps
what was measured before. Jobs are short: networks are compared one by one, and what a part compiles is compiled by its
first job. A part stands alone and ends within its limit, for hosts that are lent for minutes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from bench.errors import UsageError

NETWORKS = ("resnet50", "efficientnet_b0", "resnet34")
HEADLINE = {"training": 225.0, "inference": 115.0, "cifar": 65.0, "loaders": 80.0, "end_to_end": 120.0}
"""Part -> seconds that it may take, in the order in which they run: first what is asked for most."""
MORE = {"latency": 200.0, "batches": 225.0, "kernels": 225.0, "tests": 225.0, "decoding": 120.0}
"""Parts that run only where they are named."""
PARTS = {**HEADLINE, **MORE}


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
COMPILING = "-compile"
"""End of the name of a job that measures nothing."""
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
        cifar: folder of CIFAR-10 for the training to 94 %; None leaves it out.
        divide: of that training one epoch of that part of the images; 1 is the whole training.
    """

    networks: tuple[str, ...] = NETWORKS
    batch: int = 256
    size: int = 0
    images: int = 2000
    rounds: int = 6
    batches: tuple[int, ...] = (64, 512, 1024)
    cifar: Path | None = None
    divide: int = 1


# What a CPU can rehearse in minutes: the same commands, so that they work at the first try on a GPU.
REHEARSAL = Scale(("resnet18", "efficientnet_b0"), batch=4, size=64, images=64, rounds=2, batches=(8,), divide=20)

# The first is the reference: default torch.compile with everything else as in `fast`.
TRAINED = ("amp-nhwc-compile", "naive", "amp-nhwc-eager", "fast")
INFERRED = ("amp-nhwc-compile", "naive", "fast")
# Of networks with depthwise convolutions and gates, which our kernels are for; beside the same without them.
OUR_KERNELS = {"training": "amp-nhwc-graphs-kernels", "inference": "amp-nhwc-graphs-freeze-kernels"}
# Of a network of convolutions and ReLU, half of them 1 x 1, beside the same with the levers for these.
CONVOLUTIONS = tuple(f"resnet50@bf16-nhwc-graphs-freeze{lever}" for lever in ("", "-fused", "-mm"))
ON_CPU = ("amp-nhwc-compile", "naive", "amp-nhwc-eager")
GIB = 1 << 30
# Up to four trainings are in memory at the same time, of which the largest takes a tenth of a GiB for each image.
BATCHES = ((120 * GIB, 256), (70 * GIB, 128), (0, 64))


def batch_for(memory: int) -> int:
    """Images of a step on a GPU with that many bytes of memory."""
    return next(batch for least, batch in BATCHES if memory >= least)


def configurations(chosen: Sequence[str], device: str) -> list[str]:
    """Those that a device can run, as a rehearsal on a CPU needs."""
    return list(chosen) if device == "cuda" else [each for each in ON_CPU if each in chosen] or ["fast"]


def parts_named(text: str) -> tuple[str, ...]:
    """The parts of a list with commas, in their order: those of HEADLINE for "", every one for "all".

    Raises:
        UsageError: no part has this name.
    """
    wanted = tuple(HEADLINE) if not text else tuple(PARTS) if text == "all" else tuple(text.split(","))
    for part in wanted:
        if part not in PARTS:
            raise UsageError(f"there is no part {part!r}; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in wanted)


def jobs(parts: Sequence[str], device: str, scale: Scale, tests: Path) -> list[Job]:
    """The commands of some parts on "cuda", or on "cpu" as a rehearsal.

    Args:
        tests: the folder of the test suite.
    """
    maker = _JobMaker(device, scale, tests)
    return [job for part in parts for job in maker.part(part)]


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
        images = ("--images", str(self.scale.images))
        match part:
            case "training" | "inference":
                return [self.compiling(part), *self.networks(part, TRAINED if part == "training" else INFERRED)]
            case "latency":
                return [self.compiling(part), *self.networks(part, INFERRED)]
            case "cifar":
                return self.cifar()
            case "loaders":
                return [self.compare(part, part, [*self.loaders(), "torchvision", "pil", "synthetic"], 80, *images)]
            case "end_to_end":
                # The first two: a fed step has to fill its queue first, which takes longer than the step itself.
                few = replace(self, scale=replace(self.scale, networks=self.scale.networks[:2]))
                return few.networks(part, ("fast",), "loading,end_to_end", *images, "--loader", self.loaders()[0])
            case "batches":
                return [
                    replace(job, part=part, name=f"{job.name}-b{batch}")
                    for batch in self.scale.batches
                    if batch != self.scale.batch
                    for job in replace(self, scale=replace(self.scale, batch=batch)).networks("inference", ("fast",))
                ]
            case "kernels":
                return self.kernels()
            case "tests":
                return self.test_jobs()
            case _:
                return [self.own(part, part, "sweep", 120, *images)]

    def loaders(self) -> list[str]:
        """Those that decode on the device and can run here, the fastest first; DALI is not on every GPU host."""
        return [*(["dali"] if find_spec("nvidia.dali") else []), "nvjpeg"]

    def own(self, part: str, name: str, command: str, seconds: float, *more: str, timed: bool = True) -> Job:
        """A job of `python -m bench.gpu`."""
        words = (command, "--device", self.device, "--batch", str(self.scale.batch), *more, "-o", FILE)
        return Job(part, name, (*PYTHON, "bench.gpu", *words), seconds, timed)

    def compiling(self, part: str) -> Job:
        """Compiles what a part measures, so that its comparisons find it in the cache."""
        more = ("--task", part, "--size", str(self.scale.size), "--networks", ",".join(self.scale.networks))
        return self.own(part, f"{part}{COMPILING}", "compile", min(120, PARTS[part]), *more, timed=False)

    def cifar(self) -> list[Job]:
        """CIFAR-10 to 94 %, where the data set is."""
        scale = self.scale
        if scale.cifar is None:
            return []
        words = ["train", "cifar10-record", "--data", str(scale.cifar), "--device", self.device]
        trial = ["--repeat", "1", "--epochs", "1", "--set", f"divide={scale.divide}"]
        words += trial if scale.divide > 1 else ["--repeat", "5"]
        return [Job("cifar", "cifar", (*PYTHON, "bench", *words, "--format", "json", "-o", FILE), 65)]

    def test_jobs(self) -> list[Job]:
        """The tests that need the device, each folder in a process of its own: a broken device must not fail others."""
        on_cpu = "kernel_layers or graphed or gpu_decoding or captured or interpreter"
        chosen = ("-m", "gpu") if self.device == "cuda" else ("-k", on_cpu)
        options = ("-q", *chosen, f"--junitxml={FILE}", "-p", "no:cacheprovider")
        return [
            Job("tests", f"tests-{name}", (*PYTHON, "pytest", str(self.tests / name), *options), 200, timed=False)
            for name in ("models", "loaders", "kernels")
        ]

    def kernels(self) -> list[Job]:
        """Each kernel against its twin, which is the reference (Triton needs a GPU), then networks with and without."""
        from kernels import catalogue

        size = ("--size", str(self.scale.size)) if self.scale.size else ()
        made = []
        for name in catalogue.names():
            ways = [way for way in catalogue.implementations(name) if self.device == "cuda" or way != "triton"]
            made.append(self.compare("kernels", f"kernels-{name}", [f"{name}@{way}" for way in ways], 40, *size))
        if self.device == "cuda":
            for task, configuration in OUR_KERNELS.items():
                pair = [f"efficientnet_b0@{text}" for text in (configuration.removesuffix("-kernels"), configuration)]
                made.append(self.compare("kernels", f"kernels-{task}", pair, 120, "--tasks", task, *size))
            made.append(
                self.compare("kernels", "kernels-convolutions", CONVOLUTIONS, 120, "--tasks", "inference", *size)
            )
        return made

    def networks(self, part: str, chosen: Sequence[str], tasks: str = "", *more: str) -> list[Job]:
        """Each network in all configurations that were chosen; tasks are the part's own by default."""
        if self.scale.size:
            more = (*more, "--size", str(self.scale.size))
        return [
            self.compare(
                part,
                f"{part}-{network}",
                [f"{network}@{text}" for text in configurations(chosen, self.device)],
                min(120, PARTS[part]),
                *("--tasks", tasks or part, *more),
            )
            for network in self.scale.networks
        ]

    def compare(self, part: str, name: str, operands: Sequence[str], seconds: float, *more: str) -> Job:
        """A job of `bench compare`."""
        words = ["compare", *operands, "--device", self.device, "--batch", str(self.scale.batch)]
        words += ["--rounds", str(self.scale.rounds), "--budget", "0", *more]
        # --force: whether other processes use the GPU was checked before the first job.
        words += ["--force", "--no-energy", "--store", ROWS, "--format", "json", "-o", FILE]
        return Job(part, name, (*PYTHON, "bench", *words), seconds)
