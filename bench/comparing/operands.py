"""What stands on a command line -> operands. Imports no torch, so a typing error is answered at once."""

import re
from collections.abc import Sequence

from bench.comparing.comparison import Operand
from bench.errors import UsageError, WorkloadError
from bench.machine.tuned import is_tuned
from models import zoo
from models.configuration import Device, parse

# Batches as a training step takes them by default.
LOADER_OUTPUT = "float32-nhwc"
LOADER_DTYPES = ("float32", "bfloat16", "float16")


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

    name, _, configuration = word.partition("@")
    if name in engines.names():
        engines.check(name)
        return Operand(label, "loader", name, _loader_output(configuration) if "@" in word else LOADER_OUTPUT)
    if name in catalogue.names():
        known = catalogue.implementations(name)
        implementation, _, dtype = configuration.partition("-")
        implementation = implementation or known[0]
        if implementation not in known:
            raise WorkloadError(f"kernel {name} has no implementation {implementation!r}; it has {', '.join(known)}")
        return Operand(label, "kernel", name, f"{implementation}-{dtype or 'bfloat16'}")
    zoo.check(name)
    if "@" in word:
        # Found before any process is started: mistyped words, and what this device cannot do.
        kind = device or ("cpu" if "openvino" in configuration.split("-") else "cuda")
        facts = Device.from_cpu() if device == "cpu" else Device(kind, bf16=True, compiler=True)
        words = configuration.split("-")
        # What was found for this model and machine is looked up by who measures; the words behind it are checked here.
        parse("-".join(["fast", *words[1:]]) if is_tuned(configuration) else configuration, facts, training=False)
    return Operand(label, "model", name, configuration or "fast")


def _loader_output(text: str) -> str:
    """DTYPE-LAYOUT, with -wN for workers and -pN for batches ahead; what is not named stays as in LOADER_OUTPUT."""
    dtype, layout = LOADER_OUTPUT.split("-")
    workers: list[str] = []
    ahead: list[str] = []
    for word in text.split("-"):
        if word in LOADER_DTYPES:
            dtype = word
        elif word in ("nhwc", "nchw"):
            layout = word
        elif re.fullmatch(r"w\d+", word) and not workers:
            workers = [word]
        elif re.fullmatch(r"p[1-9]\d*", word) and not ahead:
            ahead = [word]
        else:
            raise WorkloadError(
                f"a loader's configuration is DTYPE-LAYOUT-wWORKERS-pAHEAD or a part of it, such as {LOADER_OUTPUT} "
                f"or w0; "
                f"got {text!r}"
            )
    return "-".join([dtype, layout, *workers, *ahead])
