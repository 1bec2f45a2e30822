"""Workload: what is timed, and the id it keeps for ever. Imports no torch."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.errors import WorkloadError
from bench.timing.tasks import TASKS
from kernels.formats import DTYPES
from models.configuration import Configuration, words
from models.errors import ModelError

EXAMPLE = "training/resnet34@amp-nhwc-eager/b16/s224/c1000/cpu"

_ID = re.compile(
    r"(?P<task>[^/@]+)/(?P<subject>[^@]+)@(?P<configuration>[^/]+)/b(?P<batch>\d+)/s(?P<size>\d+)"
    r"(?P<between>(?:/[^/]*)*)/(?P<device>cpu|cuda)"
)


@dataclass(frozen=True)
class LoaderOutput:
    """What a loader delivers, and how many workers it has.

    Attributes:
        dtype: of the batches, by torch's name; "own" for a loader of the user's, which makes them as it does.
        layout: nchw or nhwc (channels_last), or "own".
        workers: threads or processes that load; None is as many as there are CPU threads.
        ahead: batches made ahead; None is the loader's own default.
        keep: its process keeps freed memory, as a network's does with the lever of that name.
    """

    dtype: str = "float32"
    layout: str = "nhwc"
    workers: int | None = None
    ahead: int | None = None
    keep: bool = False

    @property
    def text(self) -> str:
        """`float32-nhwc`, with `-wN`, `-pN` and `-keep` behind it where they are set."""
        if self == OWN:
            return OWN.dtype
        counts = [f"{name}{n}" for name, n in (("w", self.workers), ("p", self.ahead)) if n is not None]
        return "-".join([self.dtype, self.layout, *counts, *(["keep"] if self.keep else [])])

    @classmethod
    def from_text(cls, text: str) -> "LoaderOutput":
        """The inverse of text; what is not named stays as in LoaderOutput().

        Raises:
            WorkloadError: a word that means nothing.
        """
        if text == OWN.dtype:
            return OWN
        changes: dict[str, Any] = {}
        for word in words(text) or [""]:
            if word in DTYPES:
                changes["dtype"] = word
            elif word in ("nhwc", "nchw"):
                changes["layout"] = word
            elif re.fullmatch(r"w\d+", word) and "workers" not in changes:
                changes["workers"] = int(word[1:])
            elif re.fullmatch(r"p[1-9]\d*", word) and "ahead" not in changes:
                changes["ahead"] = int(word[1:])
            elif word == "keep":
                changes["keep"] = True
            else:
                raise WorkloadError(
                    f"a loader's configuration is DTYPE-LAYOUT-wWORKERS-pAHEAD-keep or a part of it, such as "
                    f"{cls().text} or w0; got {text!r}"
                )
        return cls(**changes)

    @classmethod
    def feeding(cls, network: Configuration) -> "LoaderOutput":
        """The batches that a network takes, made in its process."""
        return cls(network.dtype, network.layout, keep=network.keep)


OWN = LoaderOutput("own", "own")


@dataclass(frozen=True)
class StepUnits:
    """What a call of a step works through, and is counted by: "call" where nothing is counted but the call."""

    unit: str = "call"

    @property
    def text(self) -> str:
        """The unit."""
        return self.unit

    @classmethod
    def from_text(cls, text: str) -> "StepUnits":
        """The inverse of text.

        Raises:
            WorkloadError: it is not one word.
        """
        if not text.isidentifier():
            raise WorkloadError(f"units are one word, such as tokens; got {text!r}")
        return cls(text)


@dataclass(frozen=True)
class KernelVariant:
    """Which implementation of a kernel runs, and the dtype of what it makes, by torch's name."""

    implementation: str
    dtype: str = "bfloat16"

    @property
    def text(self) -> str:
        """`triton-bfloat16`."""
        return f"{self.implementation}-{self.dtype}"

    @classmethod
    def from_text(cls, text: str) -> "KernelVariant":
        """The inverse of text, also without a dtype.

        Raises:
            WorkloadError: it is not of one or two words.
        """
        parts = words(text)
        if not 1 <= len(parts) <= 2:
            raise WorkloadError(
                f"a kernel's configuration is IMPLEMENTATION-DTYPE, such as torch-bfloat16; got {text!r}"
            )
        return cls(*parts)


Configured = Configuration | LoaderOutput | KernelVariant | StepUnits


def configuration_of(task: str, text: str) -> Configured:
    """What the text of a configuration means for a task.

    Raises:
        ModelError, WorkloadError: it means nothing there.
    """
    return _KINDS.get(task, Configuration).from_text(text)


_KINDS: dict[str, type[LoaderOutput | KernelVariant | StepUnits]] = {
    "loading": LoaderOutput,
    "kernel": KernelVariant,
    "step": StepUnits,
}


@dataclass(frozen=True)
class Workload:
    """A thing that can be timed. Everything that changes its number and is not the machine's is a field.

    Attributes:
        task: a key of TASKS.
        subject: the model, loader, kernel or step.
        configuration: of a model, a loader (loading), a kernel (kernel) or a step (step).
        batch: images a step; of a step of the user's, units.
        size: height and width of the square images, in pixels.
        classes: logits of the model; 0 where there is no model.
        loader: the engine that feeds an end_to_end step, else "".
        data: name of the data set, "" where no file is read.
        device: "cpu" or "cuda".
    """

    task: str
    subject: str
    configuration: Configured
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
        parts = [self.task, f"{self.subject}@{self.configuration.text}", f"b{self.batch}", f"s{self.size}"]
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
            loader = ""
            if task == "end_to_end" and between:
                # One in a file of the user's has the file's path.
                own = next((i for i, part in enumerate(between) if ".py:" in part), 0)
                loader, between = "/".join(between[: own + 1]), between[own + 1 :]
            data = "/".join(between)
            try:
                configuration = configuration_of(task, match["configuration"])
            except (ModelError, WorkloadError) as error:
                raise WorkloadError(f"{text!r} is no workload's id: {error}") from None
            facts = (match["subject"], configuration, int(match["batch"]), int(match["size"]), classes)
            found = cls(task, *facts, loader, data, match["device"])
            # What only looks alike (a leading zero, an empty word, a data set where no file is read) is refused.
            if found.id == text and (found.reads_files or not data):
                return found
        raise WorkloadError(
            f"{text!r} is no workload's id, which reads like {EXAMPLE!r} and begins with {', '.join(TASKS)}"
        )

    @property
    def network(self) -> Configuration:
        """The configuration of its model.

        Raises:
            WorkloadError: it has no model.
        """
        if not isinstance(self.configuration, Configuration):
            raise WorkloadError(f"{self.id} runs no network")
        return self.configuration

    @property
    def keeps_memory(self) -> bool:
        """Whether its process keeps freed memory."""
        return isinstance(self.configuration, Configuration | LoaderOutput) and self.configuration.keep

    @property
    def process_wide(self) -> tuple[str, ...]:
        """What it switches on for its whole process: workloads of which this is equal may share one."""
        if isinstance(self.configuration, Configuration):
            return self.configuration.process_wide(self.device)
        return ("keep",) if self.keeps_memory else ()

    @property
    def training(self) -> bool:
        """True if a step updates weights."""
        return self.task in ("training", "end_to_end")

    @property
    def may_compile(self) -> bool:
        """True if getting it ready may call a compiler; kernels are compiled where they are first called."""
        if isinstance(self.configuration, Configuration):
            return self.configuration.compiles or self.configuration.peer is not None
        return self.task == "kernel"

    @property
    def reads_files(self) -> bool:
        """True if a step consumes images from disk."""
        return self.task in ("loading", "end_to_end")

    def to_json(self) -> dict[str, Any]:
        """Field name -> value; the configuration as a table of its fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Workload":
        """The inverse of to_json; the configuration may also be a text, as other versions write it.

        Raises:
            WorkloadError: an unknown key; the known ones are listed.
            ModelError: a configuration that does not exist.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise WorkloadError(f"a workload has no {', '.join(unknown)}; it has {', '.join(known)}")
        task, given = data["task"], data["configuration"]
        if isinstance(given, str):
            return cls(**{**data, "configuration": configuration_of(task, given)})
        return cls(**{**data, "configuration": _KINDS.get(task, Configuration)(**given)})


@dataclass(frozen=True)
class Conditions:
    """What a step needs to be built and what is recorded with the machine, not in the id.

    Attributes:
        data_root: folder of the images, "" where no file is read.
        threads: CPU threads of the network and of the loader; both get all of them, as in a real training run.
        seed: of the weights, the constant batch and the loader's shuffle.
        images: use only this many files of a shuffled list; 0 is all of them.
        on_bad_image: "stop" or "skip": what to do about unreadable files.
        exclude: files to skip, found unreadable before.
        weights: file with the weights of networks that come without, "" for random ones.
    """

    data_root: str = ""
    threads: int = 1
    seed: int = 0
    images: int = 0
    on_bad_image: str = "stop"
    exclude: tuple[str, ...] = ()
    weights: str = ""

    def to_json(self) -> dict[str, Any]:
        """Field name -> value; those that older code does not know only where they say something."""
        found = asdict(self)
        return found if self.weights else {name: value for name, value in found.items() if name != "weights"}


METRIC = {
    "latency": "inference_latency_p50",
    "inference": "inference_throughput",
    "training": "training_throughput",
    "loading": "loader_throughput",
    "end_to_end": "end_to_end_throughput",
    "kernel": "kernel_throughput",
    "step": "step_time",
}
