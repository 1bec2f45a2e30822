"""Operands: the things that a command line names to be measured, with their configurations, parsed.

Imports no torch, so that a typing error is answered at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.errors import UsageError, WorkloadError
from bench.timing.workload import KernelVariant, LoaderOutput
from models import zoo
from models.configuration import Choice, Configuration, Device


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
    configuration: Choice | LoaderOutput | KernelVariant

    @property
    def kind(self) -> str:
        """ "model", "loader" or "kernel"."""
        if isinstance(self.configuration, Choice):
            return "model"
        return "loader" if isinstance(self.configuration, LoaderOutput) else "kernel"

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
        choice = replace(self.choice, preset="fast") if self.choice.tuned else self.choice
        return choice.on(facts_of(device), training)

    def may_compile(self, device: str) -> bool:
        """Whether measuring it on "cpu" or "cuda" may need a compiler."""
        if not isinstance(self.configuration, Choice):
            return self.kind == "kernel"
        if self.choice.tuned:
            return True
        found = self.on(device, training=False)
        return found.compiles or found.peer is not None


def facts_of(device: str) -> Device:
    """What is known of a device without torch; of a GPU the best is assumed."""
    return Device.from_cpu() if device == "cpu" else Device(device, bf16=True, compiler=True)


def parse_operands(words: Sequence[str], device: str = "") -> list[Operand]:
    """Operands with unique labels; the same word twice compares a thing with itself.

    Args:
        words: as they stand on the command line.
        device: "cpu" or "cuda" that configurations must work on, "" for any.

    Raises:
        ModelError, DataError, WorkloadError: an unknown name (near ones are listed) or configuration.
        UsageError: operands of different kinds.
    """
    operands: list[Operand] = []
    for word in words:
        seen = sum(operand.label.split("#")[0] == word for operand in operands)
        operands.append(_parse(word, word if not seen else f"{word}#{seen + 1}", device))
    kinds = {operand.kind for operand in operands}
    if len(kinds) > 1:
        raise UsageError(f"cannot compare a {' with a '.join(sorted(kinds))}; name operands of one kind")
    return operands


def _parse(word: str, label: str, device: str) -> Operand:
    from kernels import catalogue
    from loaders import engines

    name, at, text = word.partition("@")
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
    operand = Operand(label, name, choice)
    # Found before any process is started: what this device cannot do.
    operand.on(device or ("cpu" if "openvino" in choice.levers else "cuda"), training=False)
    return operand
