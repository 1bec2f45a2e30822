"""Operands: the things that a command line names to be measured, with their configurations, parsed.

Imports no torch, so that a typing error is answered at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.errors import UsageError, WorkloadError
from bench.sides.crew import worker_environment
from bench.sides.process import Worker
from bench.timing.workload import OWN, KernelVariant, LoaderOutput, StepUnits
from models import zoo
from models.configuration import Choice, facts_of
from models.project import find, named


@dataclass(frozen=True)
class Operand:
    """One column of the comparison.

    Attributes:
        label: unique, as the user wrote it.
        subject: the name before '@'.
        configuration: what stands after '@', parsed; it says what kind of thing this is.
    """

    label: str
    subject: str
    configuration: Choice | LoaderOutput | KernelVariant | StepUnits

    @property
    def kind(self) -> str:
        """ "model", "loader", "kernel" or "step"."""
        kinds: dict[type, str] = {Choice: "model", LoaderOutput: "loader", KernelVariant: "kernel", StepUnits: "step"}
        return kinds[type(self.configuration)]

    @property
    def choice(self) -> Choice:
        """The configuration that was chosen for a model."""
        assert isinstance(self.configuration, Choice), f"{self.label} is a {self.kind}"
        return self.configuration

    def may_compile(self, device: str) -> bool:
        """Whether measuring it on "cpu" or "cuda" may need a compiler."""
        if not isinstance(self.configuration, Choice):
            return self.kind == "kernel"
        if self.choice.tuned:
            return True
        found = self.choice.on(facts_of(device), training=False)
        return found.compiles or found.peer is not None


def parse_operands(words: Sequence[str], device: str = "", kinds: Mapping[str, str] | None = None) -> list[Operand]:
    """Operands with unique labels; the same word twice compares a thing with itself.

    Args:
        words: as they stand on the command line.
        device: "cpu" or "cuda" that configurations must work on, "" for any.
        kinds: name of something in the user's code -> what it is, see `kinds_of`; by default a model.

    Raises:
        ModelError, DataError, WorkloadError: an unknown name (near ones are listed) or configuration.
        UsageError: operands of different kinds.
    """
    operands: list[Operand] = []
    for word in words:
        seen = sum(operand.label.split("#")[0] == word for operand in operands)
        operands.append(_parse(word, word if not seen else f"{word}#{seen + 1}", device, kinds or {}))
    different = sorted({operand.kind for operand in operands})
    if len(different) > 1:
        raise UsageError(f"cannot compare a {' with a '.join(different)}; name operands of one kind")
    return operands


def kinds_of(words: Sequence[str], threads: int) -> dict[str, str]:
    """What the names of the user's own code among these words are: "model", "loader" or "step".

    Only importing it tells, which a process of its own does.

    Raises:
        WorkloadError: it cannot be imported; with file and line.
    """
    mentioned = [name for name in dict.fromkeys(taken_apart(word)[0] for word in words) if _own(name)]
    # What the project's settings name is known from there.
    kinds = {name: kind for name in mentioned if (kind := find().kind(name.partition("[")[0]))}
    names = [name for name in mentioned if name not in kinds]
    for name in names:
        zoo.check(name)
    if not names:
        return kinds
    worker = Worker(names[0], worker_environment(threads))
    try:
        return kinds | dict(zip(names, worker.ask("kinds", 600, names=names)["kinds"], strict=True))
    finally:
        worker.close()


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


def _parse(word: str, label: str, device: str, kinds: Mapping[str, str]) -> Operand:
    from kernels import catalogue
    from loaders import engines

    name, at, text = taken_apart(word)
    kind = kinds.get(name, "model")
    if kind != "model":
        if at:
            raise UsageError(f"{name} is a {kind} of your own, which has no configuration; leave out @{text}")
        return Operand(label, name, OWN if kind == "loader" else StepUnits())
    if name in engines.names():
        engines.check(name)
        return Operand(label, name, LoaderOutput.from_text(text) if at else LoaderOutput())
    if name in catalogue.names():
        known = catalogue.implementations(name)
        variant = KernelVariant.from_text(text or known[0])
        if variant.implementation not in known:
            raise WorkloadError(
                f"kernel {name} has no implementation {variant.implementation!r}; it has {', '.join(known)}"
            )
        return Operand(label, name, variant)
    zoo.check(name)
    choice = Choice.from_text(text if at else "fast")
    # Found before any process is started: what this device cannot do. What was tuned for this model and machine is
    # looked up when it is measured; the levers behind it are checked here.
    place = device or ("cpu" if "openvino" in choice.levers else "cuda")
    (replace(choice, preset="fast") if choice.tuned else choice).on(facts_of(place), training=False)
    return Operand(label, name, choice)
