"""What stands on a command line -> operands. Imports no torch, so a typing error is answered at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from bench.comparison import Operand
from bench.errors import UsageError, WorkloadError
from models import zoo
from models.configuration import Device, parse

# Batches as a training step takes them by default.
LOADER_OUTPUT = "float32-nhwc"
LOADER_DTYPES = ("float32", "bfloat16", "float16")


def files(words: Sequence[str]) -> list[Path]:
    """The stored results among the operands: all of them or none.

    Raises:
        UsageError: results and things to measure were mixed.
    """
    stored = [word for word in words if word.endswith(".json") or "/" in word]
    if stored and len(stored) != len(words):
        rest = next(word for word in words if word not in stored)
        raise UsageError(
            f"{stored[0]} is a stored result and {rest} is something to measure; compare one kind at a time"
        )
    return [Path(word) for word in stored]


def parse_operands(words: Sequence[str]) -> list[Operand]:
    """Operands with unique labels; the same word twice compares a thing with itself.

    Raises:
        ModelError, DataError, WorkloadError: an unknown name (near ones are listed) or configuration.
        UsageError: operands of different kinds.
    """
    operands: list[Operand] = []
    for word in words:
        seen = sum(operand.label.split("#")[0] == word for operand in operands)
        operands.append(_parse(word, word if not seen else f"{word}#{seen + 1}"))
    kinds = {operand.kind for operand in operands}
    if len(kinds) > 1:
        raise UsageError(f"cannot compare a {' with a '.join(sorted(kinds))}; name operands of one kind")
    return operands


def _parse(word: str, label: str) -> Operand:
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
        # A dry run on a device that can do everything finds mistyped words before any process is started.
        words = configuration.split("-")
        kind = "cpu" if "openvino" in words else "cuda"
        parse(configuration, Device(kind, bf16=True, compiler=True), training=False)
    return Operand(label, "model", name, configuration or "fast")


def _loader_output(text: str) -> str:
    dtype, _, layout = text.partition("-")
    if dtype not in LOADER_DTYPES or layout not in ("nhwc", "nchw"):
        raise WorkloadError(f"a loader's configuration is DTYPE-LAYOUT, such as {LOADER_OUTPUT}; got {text!r}")
    return text


def choose_device(wanted: str) -> str:
    """auto -> cuda if NVML sees a GPU, else cpu. Whether torch can use it is found by the measuring process.

    Raises:
        WorkloadError: cuda was asked for and NVML sees none.
    """
    if wanted == "cpu":
        return "cpu"
    from bench.machine import open_nvml, visible_handles

    nvml = open_nvml()
    if nvml is not None and visible_handles(nvml, os.environ):
        return "cuda"
    if wanted == "cuda":
        raise WorkloadError("no GPU is visible to the NVIDIA driver here; use --device cpu, or see bench doctor")
    return "cpu"
