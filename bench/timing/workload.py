"""Workload: what is timed, and the id it keeps for ever. Imports no torch."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.errors import WorkloadError

# task -> one line; the names also stand in ids.
TASKS: dict[str, str] = {
    "latency": "one image at a time: from input on the host to result on the host, queue empty",
    "inference": "forward passes of a whole batch, queue full",
    "training": "forward, loss, backward and optimiser update on a constant batch",
    "loading": "JPEG files on disk to an augmented batch on the device, no network",
    "end_to_end": "JPEG files on disk to optimiser update: loading and training joined",
    "kernel": "one kernel of kernels/ on a batch of images",
}

EXAMPLE = "training/resnet34@amp-nhwc-eager/b16/s224/c1000/cpu"

_ID = re.compile(
    r"(?P<task>[^/@]+)/(?P<subject>[^@]+)@(?P<configuration>[^/]+)/b(?P<batch>\d+)/s(?P<size>\d+)"
    r"(?P<between>(?:/[^/]+)*)/(?P<device>cpu|cuda)"
)


@dataclass(frozen=True)
class Workload:
    """A thing that can be timed. Everything that changes its number and is not the machine's is a field.

    Attributes:
        task: a key of TASKS.
        subject: the model, loader or kernel.
        configuration: resolved levers of a model, `DTYPE-LAYOUT` of a loader's batches (with `-wN` its workers,
            with `-pN` the batches made ahead),
            `IMPLEMENTATION-DTYPE` of a kernel.
        batch: images a step.
        size: height and width of the square images, in pixels.
        classes: logits of the model; 0 where there is no model.
        loader: the engine that feeds an end_to_end step, else "".
        data: name of the data set, "" where no file is read.
        device: "cpu" or "cuda".
    """

    task: str
    subject: str
    configuration: str
    batch: int
    size: int
    classes: int = 0
    loader: str = ""
    data: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise WorkloadError(f"no task is called {self.task!r}; there are {', '.join(TASKS)}")
        if self.batch < 1 or self.size < 1:
            raise WorkloadError(f"batch and size must be at least 1, got batch {self.batch} and size {self.size}")

    @property
    def id(self) -> str:
        """The text form: `training/resnet34@amp-nhwc-eager/b16/s224/c1000/cpu`."""
        parts = [self.task, f"{self.subject}@{self.configuration}", f"b{self.batch}", f"s{self.size}"]
        if self.classes:
            parts.append(f"c{self.classes}")
        parts += [part for part in (self.loader, self.data) if part]
        return "/".join([*parts, self.device])

    @classmethod
    def from_id(cls, text: str) -> "Workload":
        """The inverse of id.

        Raises:
            WorkloadError: `text` is not the id of a workload.
        """
        match = _ID.fullmatch(text)
        if match is not None and match["task"] in TASKS:
            task, between = match["task"], match["between"].split("/")[1:]
            # A data set may be called c10 too, and what only loads has no classes.
            counted = task != "loading" and between and re.fullmatch(r"c\d+", between[0])
            classes = int(between.pop(0)[1:]) if counted else 0
            loader = between.pop(0) if task == "end_to_end" and between else ""
            data = "/".join(between)
            facts = (match["subject"], match["configuration"], int(match["batch"]), int(match["size"]), classes)
            found = cls(task, *facts, loader, data, match["device"])
            # What only looks alike (a leading zero, an empty word, a data set where no file is read) is refused.
            if found.id == text and (found.reads_files or not data):
                return found
        raise WorkloadError(
            f"{text!r} is no workload's id, which reads like {EXAMPLE!r} and begins with {', '.join(TASKS)}"
        )

    @property
    def training(self) -> bool:
        """True if a step updates weights."""
        return self.task in ("training", "end_to_end")

    @property
    def reads_files(self) -> bool:
        """True if a step consumes images from disk."""
        return self.task in ("loading", "end_to_end")

    def to_json(self) -> dict[str, Any]:
        """Field name -> value."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Workload":
        """The inverse of to_json.

        Raises:
            WorkloadError: an unknown key; the known ones are listed.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise WorkloadError(f"a workload has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**data)


@dataclass(frozen=True)
class Conditions:
    """What a step needs to be built and what is recorded with the machine, not in the id.

    Attributes:
        data_root: folder of the images, "" where no file is read.
        threads: CPU threads of the network and of the loader; both get all of them, as in a real training run.
        seed: of the weights, the constant batch and the loader's shuffle.
        images: use only the first so many files of a shuffled list; 0 is all of them.
        on_bad_image: "stop" or "skip": what to do about unreadable files.
        exclude: files to pass over, found unreadable before.
    """

    data_root: str = ""
    threads: int = 1
    seed: int = 0
    images: int = 0
    on_bad_image: str = "stop"
    exclude: tuple[str, ...] = ()


METRIC = {
    "latency": "inference_latency_p50",
    "inference": "inference_throughput",
    "training": "training_throughput",
    "loading": "loader_throughput",
    "end_to_end": "end_to_end_throughput",
    "kernel": "kernel_throughput",
}
