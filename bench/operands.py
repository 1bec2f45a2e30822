"""What stands on a command line -> operands. Imports no torch, so a typing error is answered at once."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bench.comparison import Operand
from bench.errors import UsageError, WorkloadError
from bench.tuned import is_tuned
from models import zoo
from models.configuration import Device, parse

# What the NVIDIA driver puts there, whatever else is installed.
DRIVER = Path("/dev/nvidiactl")
SUMMARY = "summary.json"  # results.runs.FILE, which is not imported for a word that is a model's name
# Batches as a training step takes them by default.
LOADER_OUTPUT = "float32-nhwc"
LOADER_DTYPES = ("float32", "bfloat16", "float16")


# What a word on the command line may be, as an error calls it.
MEASURED, STORED, RUN, LABELS = "something to measure", "a stored result", "a training run", "a file of labels"


def kind(word: str) -> str:
    """Which of the four kinds a word is: by its ending, and for folders and .json files by what is in them.

    A model's name stays a model's, also where a folder is called so: write ./NAME for the folder.
    """
    path = Path(word)
    if path.suffix.lower() in (".csv", ".txt"):
        return LABELS
    if path.name == SUMMARY:
        return RUN
    if word.endswith(".json"):
        return RUN if _is_summary(path) else STORED
    if "/" in word:
        return RUN if path.is_dir() else STORED
    holds = path.is_dir() and ((path / SUMMARY).is_file() or next(path.glob(f"*/{SUMMARY}"), None) is not None)
    return RUN if holds and word not in zoo.names() else MEASURED


def _is_summary(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # A record of measurements has operands, a run's summary what became of the run.
    return isinstance(found, dict) and "operands" not in found and {"model", "recipe", "status"} <= set(found)


def only_kind(words: Sequence[str]) -> str:
    """The one kind that all words are.

    Raises:
        UsageError: kinds were mixed, or a path is not there.
    """
    kinds = {word: kind(word) for word in words}
    for word, found in kinds.items():
        if found != MEASURED and not Path(word).exists():
            raise UsageError(f"{word} does not exist; name a run's folder, a stored result or a file of labels")
    # The file first, then what it was mixed with: that is how the mistake is usually made.
    files = [word for word, found in kinds.items() if found != MEASURED]
    first = files[0] if files else words[0]
    for word, found in kinds.items():
        if found != kinds[first]:
            raise UsageError(f"{first} is {kinds[first]} and {word} is {found}; compare one kind at a time")
    return kinds[first]


def files(words: Sequence[str]) -> list[Path]:
    """The stored results among the operands: all of them or none.

    Raises:
        UsageError: kinds were mixed.
    """
    return [Path(word) for word in words] if only_kind(words) == STORED else []


def run_folders(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The runs that folders and summary files name, and what was passed over and why.

    A folder of runs stands for all of them.

    Raises:
        UsageError: a folder holds no run, or one is named twice.
        RecordError: a folder cannot be read.
    """
    from results.runs import list_runs

    found: list[Path] = []
    passed: list[str] = []
    for word in words:
        path = Path(word)
        if path.is_dir() and not (path / SUMMARY).is_file():
            runs, skipped = list_runs(path)
            if not runs:
                raise UsageError(f"{word} holds no run: there is no {SUMMARY} in it or in a folder of it")
            places = [place for place in sorted(path.iterdir()) if (place / SUMMARY).is_file()]
            bad = {item.path for item in skipped}
            found += [place for place in places if place not in bad]
            passed += [f"{item.path}: {item.reason}" for item in skipped]
        else:
            found.append(path.parent if path.name == SUMMARY else path)
    twice = [str(path) for i, path in enumerate(found) if path.resolve() in {p.resolve() for p in found[:i]}]
    if twice:
        raise UsageError(f"{twice[0]} is named twice; name each run once")
    return found, passed


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


def choose_device(wanted: str) -> str:
    """auto -> cuda if NVML sees a GPU, else cpu. Whether torch can use it is found by the measuring process.

    A driver whose NVML cannot be opened is there all the same: then telemetry is missing, and says so in each record.

    Raises:
        WorkloadError: cuda was asked for and the driver shows none.
    """
    if wanted == "cpu":
        return "cpu"
    from bench.machine import open_nvml, visible_handles

    nvml = open_nvml()
    if nvml is not None and visible_handles(nvml, os.environ):
        return "cuda"
    if nvml is None and DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return "cuda"
    if wanted == "cuda":
        raise WorkloadError("no GPU is visible to the NVIDIA driver here; use --device cpu, or see bench doctor")
    return "cpu"


def refuse_used_gpu() -> None:
    """Raise UsageError if other processes compute on the GPU that would be measured."""
    from bench.machine import ask, open_nvml, visible_handles

    nvml = open_nvml()
    handles = visible_handles(nvml, os.environ) if nvml is not None else []
    users = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handles[0]) if handles else None
    if users:
        who = ", ".join(str(one.pid) for one in users)
        raise UsageError(f"the GPU is in use by process {who}; wait for it, or go on with --force")
