"""Operands: the things that a command line names to be measured, with their configurations, parsed.

Imports no torch, so that a typing error is answered at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UsageError, WorkloadError
from bench.sides.crew import worker_environment
from bench.sides.process import Worker
from bench.timing.workload import OWN, KernelVariant, LoaderOutput, StepUnits
from models import zoo
from models.configuration import Choice, Configuration, facts_of
from models.project import find, named
from results.curves import OVER, point_label


@dataclass(frozen=True)
class Operand:
    """One column of the comparison.

    Attributes:
        label: unique, as the user wrote it.
        subject: the name before '@'.
        configuration: what stands after '@', parsed; it says what kind of thing this is.
        batch: images that an exported file takes at once; 0 is any number, as of everything else.
        over: what is varied and its value for this operand, see `spread`; none where nothing is.
    """

    label: str
    subject: str
    configuration: Choice | LoaderOutput | KernelVariant | StepUnits
    batch: int = 0
    over: tuple[str, int] | None = None

    @property
    def kind(self) -> str:
        """ "model", "loader", "kernel" or "step"."""
        kinds: dict[type, str] = {Choice: "model", LoaderOutput: "loader", KernelVariant: "kernel", StepUnits: "step"}
        return kinds[type(self.configuration)]

    def varies(self, other: "Operand") -> bool:
        """Whether this is the same thing as another one, at another value of what is varied."""
        return self.over is not None and replace(self, label=other.label, over=other.over) == other

    @property
    def choice(self) -> Choice:
        """The configuration that was chosen for a model."""
        assert isinstance(self.configuration, Choice), f"{self.label} is a {self.kind}"
        return self.configuration

    def on(self, device: str, training: bool) -> Configuration:
        """What a model's configuration comes to on "cpu" or "cuda", as far as that is known without torch.

        What was tuned for this model and machine is looked up when it is measured; the levers behind it count here.

        Raises:
            ModelError: it cannot work there, or for training.
        """
        choice = replace(self.choice, preset="fast") if self.choice.tuned and not self.choice.file else self.choice
        return choice.on(facts_of(device), training)

    def may_compile(self, device: str) -> bool:
        """Whether measuring it on "cpu" or "cuda" may need a compiler."""
        if not isinstance(self.configuration, Choice):
            return self.kind == "kernel"
        if self.choice.tuned:
            return True
        found = self.on(device, training=False)
        return found.compiles or found.peer is not None


@dataclass(frozen=True)
class Found:
    """What only opening a file tells of a name.

    Attributes:
        kind: "model", "loader" or "step".
        batch: see Operand.
    """

    kind: str = "model"
    batch: int = 0


def parse_operands(words: Sequence[str], device: str = "", found: Mapping[str, Found] | None = None) -> list[Operand]:
    """Operands with unique labels; the same word twice compares a thing with itself.

    Args:
        words: as they stand on the command line.
        device: "cpu" or "cuda" that configurations must work on, "" for any.
        found: name of something in the user's files -> what it is, see `look_up`; by default a model.

    Raises:
        ModelError, DataError, WorkloadError: an unknown name (near ones are listed) or configuration.
        UsageError: operands of different kinds.
    """
    operands: list[Operand] = []
    for word in words:
        seen = sum(operand.label.split("#")[0] == word for operand in operands)
        operands.append(_parse(word, word if not seen else f"{word}#{seen + 1}", device, found or {}))
    different = sorted({operand.kind for operand in operands})
    if len(different) > 1:
        raise UsageError(f"cannot compare a {' with a '.join(different)}; name operands of one kind")
    return operands


def over_from(text: str) -> tuple[str, tuple[int, ...]]:
    """What `--over KEY=V1,V2,...` varies, and its values in ascending order.

    Raises:
        UsageError: another key, fewer than two values, or one that is no number above 0.
    """
    key, equals, listed = text.partition("=")
    if key not in OVER or not equals:
        raise UsageError(f"--over {text}: write KEY=V1,V2,... with KEY one of {', '.join(OVER)}, such as batch=1,4,16")
    try:
        values = sorted({int(word) for word in listed.split(",")})
    except ValueError:
        values = []
    if len(values) < 2 or values[0] < 1:
        raise UsageError(f"--over {text}: give two or more different whole numbers above 0, such as {key}=1,4,16")
    return key, tuple(values)


def spread(operands: Sequence[Operand], key: str, values: Sequence[int]) -> list[Operand]:
    """Each operand once with each value of what is varied, its label saying which."""
    return [
        replace(operand, label=point_label(operand.label, key, value), over=(key, value))
        for operand in operands
        for value in values
    ]


def look_up(words: Sequence[str], threads: int) -> dict[str, Found]:
    """What the names of the user's own code and of exported files among these words are.

    Only importing or opening it tells, which a process of its own does.

    Raises:
        WorkloadError: it cannot be imported or read; with file and line.
    """
    mentioned = list(dict.fromkeys(taken_apart(word)[0] for word in words))
    files = [name for name in mentioned if zoo.is_exported(name)]
    # What the project's settings name is known from there.
    code = [name for name in mentioned if _own(name)]
    found = {name: Found(kind) for name in code if (kind := find().kind(name.partition("[")[0]))}
    code = [name for name in code if name not in found]
    for name in (*code, *files):
        zoo.check(name)
    if not code and not files:
        return found
    worker = Worker((*code, *files)[0], worker_environment(threads))
    try:
        if code:
            kinds = worker.ask("kinds", 600, names=code)["kinds"]
            found |= {name: Found(kind) for name, kind in zip(code, kinds, strict=True)}
        if files:
            batches = worker.ask("files", 600, names=files)["batches"]
            found |= {name: Found(batch=batch) for name, batch in zip(files, batches, strict=True)}
    finally:
        worker.close()
    return found


def _own(name: str) -> bool:
    """Whether a name stands for code of the user's; one that stands in a table here stands for that."""
    from kernels import catalogue
    from loaders import engines

    base = name.partition("[")[0]
    return base not in (*zoo.names(), *engines.names(), *catalogue.names()) and named(name).is_code


def taken_apart(word: str) -> tuple[str, str, str]:
    """Name, "@" or "", and configuration of a word; arguments in the name may hold an @ of their own."""
    head, bracket, tail = word.rpartition("]")
    name, at, text = tail.partition("@")
    return f"{head}{bracket}{name}", at, text


def _parse(word: str, label: str, device: str, known: Mapping[str, Found]) -> Operand:
    from kernels import catalogue
    from loaders import engines

    name, at, text = taken_apart(word)
    seen = known.get(name, Found())
    kind = seen.kind
    if kind != "model":
        if at:
            raise UsageError(f"{name} is a {kind} of your own, which has no configuration; leave out @{text}")
        return Operand(label, name, OWN if kind == "loader" else StepUnits())
    if name in engines.names():
        engines.check(name)
        return Operand(label, name, LoaderOutput.from_text(text) if at else LoaderOutput())
    if name in catalogue.names():
        implementations = catalogue.implementations(name)
        variant = KernelVariant.from_text(text or implementations[0])
        if variant.implementation not in implementations:
            raise WorkloadError(
                f"kernel {name} has no implementation {variant.implementation!r}; it has {', '.join(implementations)}"
            )
        return Operand(label, name, variant)
    zoo.check(name)
    choice = Choice.from_text(text if at else "fast")
    if zoo.is_exported(name):
        choice = replace(choice, file=Path(named(name).base).suffix.lower())
    operand = Operand(label, name, choice, seen.batch)
    # Found before any process is started: what this device cannot do.
    operand.on(device or ("cpu" if choice.file or "openvino" in choice.levers else "cuda"), training=False)
    return operand
