"""What is done to a network before it is timed: precision, layout, compilation, freezing, engines.

Parsed from the words of MODEL@CONFIGURATION. Imports no torch, so that a mistyped one is answered at once.
"""

import importlib.util
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.errors import ModelError, unknown


@dataclass(frozen=True)
class Precision:
    """What numbers are stored and computed in; dtypes by torch's names.

    Attributes:
        summary: one line for lists.
        inference, training: dtype of the weights, and the dtype that autocast computes in (None: no autocast).
        tf32: CUDA's matrix units may round float32 factors to TF32.
        searched, searched_training: kinds of device on which `bench tune` tries it for inference and for training.
    """

    summary: str
    inference: tuple[str, str | None]
    training: tuple[str, str | None]
    tf32: bool = False
    searched: tuple[str, ...] = ("cpu", "cuda")
    searched_training: tuple[str, ...] = ("cpu", "cuda")

    def weights(self, training: bool) -> str:
        """The dtype that weights are kept in."""
        return (self.training if training else self.inference)[0]

    def autocast(self, training: bool) -> str | None:
        """The dtype that autocast computes in, None without it."""
        return (self.training if training else self.inference)[1]

    @property
    def computed(self) -> str:
        """The dtype of matrix products, and of the images that a network takes."""
        return self.inference[1] or self.inference[0]


# Everything that a precision means stands in its line here; what has no line is refused.
# Weights kept in bfloat16 lose updates that are small beside them, so training in pure bf16 is not searched; on CUDA
# tf32 takes the place of fp32 in training, since torch's own default rounds convolutions to it anyway.
PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(
        "32-bit floats everywhere, TF32 off (alone, as in naive, torch's default switches)",
        ("float32", None), ("float32", None), searched_training=("cpu",),
    ),
    "tf32": Precision(
        "32-bit storage, TF32 matrix products (CUDA)",
        ("float32", None), ("float32", None), tf32=True, searched=("cuda",), searched_training=("cuda",),
    ),
    "amp": Precision("bfloat16 autocast over fp32 weights", ("float32", "bfloat16"), ("float32", "bfloat16")),
    "bf16": Precision(
        "bfloat16 weights and activations", ("bfloat16", None), ("bfloat16", None), searched_training=()
    ),
    "fp16": Precision(
        "float16 weights and activations (inference), float16 autocast with a scaler (training)",
        ("float16", None), ("float32", "float16"), searched=("cuda",), searched_training=("cuda",),
    ),
}  # fmt: skip
LAYOUTS = {"nchw": "contiguous batch, channel, height, width", "nhwc": "channels_last memory format"}
MODES = {
    "eager": "no torch.compile",
    "compile": "torch.compile with inductor's default mode",
    "graphs": "torch.compile, replayed as CUDA graphs; in training the whole update as one (CUDA)",
    "autotune": "torch.compile, max-autotune: kernels timed, CUDA graphs where they capture",
}
SWITCHES = {
    "freeze": "weights become constants: batch norm folded, layouts packed ahead (inference)",
    "fused": "ReLU and additions before it as a part of cuDNN's convolutions; with freeze (inference, CUDA)",
    "mm": "convolutions of 1 x 1 as matrix products; with a compiler, on a CPU with freeze too",
    "kernels": "our Triton kernels: EfficientNet's bottlenecks (inference), depthwise convolutions (training) (CUDA)",
    "keep": "memory freed by a step is kept for the next one, in huge pages, and not given back (CPU, glibc)",
}


@dataclass(frozen=True)
class Peer:
    """A foreign engine: one line for lists, the precisions it can be asked for, and the packages it needs."""

    summary: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether all of its packages are here; none of them is imported."""
        return all(importlib.util.find_spec(name) is not None for name in self.packages)


# Precision is all that a peer is asked for; nothing else of ours reaches inside it.
PEERS = {
    "openvino": Peer("exported to OpenVINO (inference, CPU)", ("fp32", "bf16"), ("openvino",)),
    "onnxruntime": Peer("exported to ONNX Runtime (inference)", ("fp32",), ("onnxruntime", "onnx", "onnxscript")),
    "tensorrt": Peer("compiled by torch-tensorrt (inference, CUDA)", ("fp32", "fp16"), ("torch_tensorrt",)),
}
# Ending of an exported file -> the engines that run it, the default first; none: torch, as any network of its own.
FILES: dict[str, tuple[str, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".pt2": (),
}
ONLY_INFERS = "an exported file only infers"
PRESETS = {
    "naive": "eager fp32 NCHW: what a first script does",
    "fast": "the best known for this device and task (the default)",
    "tuned": "what bench tune found for this model, task and machine",
}


def levers() -> dict[str, tuple[str, str | bool, str]]:
    """Lever -> the field of Configuration that it sets, the value, one line for lists."""
    return {
        **{word: ("precision", word, one.summary) for word, one in PRECISIONS.items()},
        **{word: ("layout", word, line) for word, line in LAYOUTS.items()},
        **{word: ("compile", word, line) for word, line in MODES.items()},
        **{word: (word, True, line) for word, line in SWITCHES.items()},
        **{word: ("peer", word, peer.summary) for word, peer in PEERS.items()},
    }


def words(text: str) -> list[str]:
    """The words of a configuration's text: the one place where it is taken apart."""
    return [word for word in text.strip().lower().split("-") if word]


@dataclass(frozen=True)
class Configuration:
    """How a network is laid out, in which precision, and what runs it.

    Attributes:
        precision: a key of PRECISIONS.
        layout: a key of LAYOUTS; nhwc is channels_last.
        compile: a key of MODES.
        freeze: weights are constants of the program (inference only).
        fused: convolutions end with the addition and ReLU after them, in one kernel of cuDNN's (models.fused).
        mm: convolutions of 1 x 1 are matrix products (models.pointwise; on CUDA the compiler makes them).
        kernels: layers that kernels/ has are computed by it.
        keep: the process keeps freed memory, see bench.machine.allocator.
        peer: None, or the foreign engine that runs the exported network.

    Raises:
        ModelError: a value that is in none of these tables.
    """

    precision: str = "fp32"
    layout: str = "nchw"
    compile: str = "eager"
    freeze: bool = False
    fused: bool = False
    mm: bool = False
    kernels: bool = False
    keep: bool = False
    peer: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("layout", LAYOUTS), ("compile", MODES), ("peer", PEERS)):
            value = getattr(self, name)
            if value not in known and not (name == "peer" and value is None):
                raise ModelError(f"no {name} is called {value!r}; there are {', '.join(known)}")

    @property
    def text(self) -> str:
        """The levers joined by '-': the part after '@' in every id."""
        if self.peer is not None:
            return f"{self.peer}-{self.precision}"
        switches = [name for name in SWITCHES if getattr(self, name)]
        return "-".join([self.precision, self.layout, self.compile, *switches])

    @classmethod
    def from_text(cls, text: str) -> "Configuration":
        """The inverse of text, also with levers left out or in another order; no preset.

        Raises:
            ModelError: an unknown word, or two words for one thing.
        """
        choice = Choice.from_text(text)
        if choice.preset:
            raise ModelError(f"{choice.preset} is a preset: what it stands for depends on the device and the task")
        return cls(**choice.changes)

    @property
    def numbers(self) -> Precision:
        """What its precision means."""
        return PRECISIONS[self.precision]

    @property
    def dtype(self) -> str:
        """The dtype of the images it takes, by torch's name.

        Autocast would cast float32 images at the first convolution; arriving in its dtype saves that pass. The CPU
        engines convert float32 images themselves.
        """
        return "float32" if self.peer in ("openvino", "onnxruntime") else self.numbers.computed

    @property
    def compiles(self) -> bool:
        """Whether torch.compile works on it."""
        return self.compile != "eager"

    @property
    def captures(self) -> bool:
        """Whether CUDA graphs replay it."""
        return self.compile in ("graphs", "autotune")

    @property
    def plain(self) -> bool:
        """Whether torch does what it does in a first script, with its own defaults; `keep` is no matter of torch's."""
        return replace(self, keep=False) == Configuration()

    def process_wide(self, device: str) -> tuple[str, ...]:
        """What it switches on for its whole process on "cpu" or "cuda".

        Configurations of which this is equal may share a process. The rest is the network's own. On CUDA the names are
        those of models.prepare.set_switches, which can be set anew; `keep` cannot be taken back.
        """
        if device == "cpu":
            return ("keep",) if self.keep else ()
        return (*(["tf32"] if self.numbers.tf32 else []), *(["defaults"] if self.plain else []))


@dataclass(frozen=True)
class Choice:
    """A configuration as a user asks for it; what it comes to depends on the device and the task.

    Attributes:
        preset: a key of PRESETS that the words begin with, or "": levers that are not named stay as in naive.
        levers: the other words.
        file: of an exported file its ending, a key of FILES; else "".
    """

    preset: str = ""
    levers: tuple[str, ...] = ()
    file: str = ""

    @classmethod
    def from_text(cls, text: str) -> "Choice":
        """Read a preset, levers joined by '-', or a preset followed by levers that change it.

        `compile` is fp32, NCHW, compiled; `fast-fp32` is the fast preset in fp32.

        Raises:
            ModelError: an unknown word (near names are listed), or two words for one thing.
        """
        found = words(text)
        if not found:
            raise ModelError(
                "an empty configuration after '@'; write a preset (naive, fast) or levers (bf16-nhwc-compile)"
            )
        preset = found.pop(0) if found[0] in PRESETS else ""
        choice = cls(preset, tuple(found))
        known = levers()
        seen: dict[str, str] = {}
        for word in found:
            if word not in known:
                raise unknown(f"lever in configuration {text!r}:", word, [*PRESETS, *known])
            field = known[word][0]
            if seen.setdefault(field, word) != word:
                raise ModelError(f"configuration {text!r} says both {seen[field]} and {word}; choose one")
        return choice

    @property
    def text(self) -> str:
        """As it was written."""
        return "-".join([*filter(None, [self.preset]), *self.levers])

    @property
    def tuned(self) -> bool:
        """Whether it asks for what `bench tune` has found."""
        return self.preset == "tuned"

    @property
    def plainest(self) -> Configuration:
        """What others are compared with: plain fp32, of an exported file in its default engine."""
        return Configuration(peer=next(iter(FILES.get(self.file, ())), None))

    @property
    def changes(self) -> dict[str, Any]:
        """Field of Configuration -> the value that a lever gives it."""
        known = levers()
        return {known[word][0]: known[word][1] for word in self.levers}

    def on(self, device: "Device", training: bool, tuned: Configuration | None = None) -> Configuration:
        """What it comes to on this device and for this task.

        Training drops `freeze` from a preset, never from levers that the user wrote.

        Args:
            tuned: what the preset `tuned` stands for.

        Raises:
            ModelError: a combination that cannot work on this device or for this task.
        """
        if self.file:
            return self._of_file(device, training)
        start = tuned if self.tuned and tuned is not None else preset(self.preset or "naive", device, training)
        if start.mm and "compile" in self.changes:
            # Of a preset it depends on how that is compiled.
            start = replace(start, mm=False)
        configuration = replace(start, **self.changes)
        if "peer" in self.changes:
            configuration = self._peer(configuration, device)
        check(configuration, device, training)
        return configuration

    def _of_file(self, device: "Device", training: bool) -> Configuration:
        """Of an exported file, in which everything but its engine and what torch can still do to a program is fixed."""
        what, engines, changes = f"configuration {self.text!r}: a {self.file} file", FILES[self.file], self.changes
        if training:
            raise ModelError(ONLY_INFERS)
        if self.tuned:
            raise ModelError(f"{what} is not tuned; leave out tuned")
        if not engines:
            for field in ("peer", "fused", "mm", "kernels"):
                if field in changes:
                    said = changes[field] if field == "peer" else field
                    raise ModelError(f"{what} is a program of torch; leave out {said}")
            found = replace(preset(self.preset or "naive", device, training), **changes)
            if found.freeze and not found.compiles:
                if "freeze" in changes:
                    raise ModelError(f"{what} has no layers to fold; freeze it with compile, or leave out freeze")
                found = replace(found, freeze=False)
        else:
            engine = changes.get("peer", engines[0])
            if engine not in engines or self.preset == "naive":
                raise ModelError(f"{what} runs in {' or '.join(engines)}; write @{' or @'.join(engines)}")
            rest = [word for word in self.levers if word != engine]
            found = replace(self, preset="", levers=(engine, *rest))._peer(Configuration(), device)
        check(found, device, training)
        return found

    def _peer(self, configuration: Configuration, device: "Device") -> Configuration:
        """A peer decides layout and compilation itself; only its precision is ours to ask for."""
        changes = self.changes
        name = changes.pop("peer")
        precision = changes.pop("precision", None)
        if changes:
            extra = [word for word in self.levers if word not in (name, precision)]
            raise ModelError(
                f"configuration {self.text!r}: {name} decides {' and '.join(extra)} itself; name only a precision"
            )
        allowed = PEERS[name].precisions
        if precision is None:
            precision = allowed[-1] if device.bf16 and allowed[-1] == "bf16" else allowed[0]
        if precision not in allowed:
            raise ModelError(
                f"configuration {self.text!r}: {name} runs here in {' or '.join(allowed)}, not {precision}"
            )
        return Configuration(precision=precision, peer=name)


@dataclass(frozen=True)
class Device:
    """The facts of a device that decide which preset is best on it.

    Attributes:
        kind: "cpu" or "cuda".
        bf16: it multiplies bfloat16 faster than float32 (AMX, AVX512-BF16, CUDA from compute capability 8.0).
        compiler: a C++ compiler is there, without which inductor cannot build CPU code.
        glibc: the C library is glibc, whose malloc can be told to keep what is freed.
    """

    kind: str
    bf16: bool
    compiler: bool
    glibc: bool = True

    @classmethod
    def from_cpu(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> "Device":
        """This machine's CPU. On other systems than Linux (no /proc/cpuinfo) bf16 is taken to be slow."""
        try:
            text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        flags = next(
            (set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("flags")),
            set(),
        )
        return cls("cpu", bool({"amx_bf16", "avx512_bf16"} & flags), _has_compiler(), has_glibc())

    @classmethod
    def from_cuda(cls, capability: tuple[int, int]) -> "Device":
        """A CUDA device of this compute capability; inductor's CUDA code needs Triton, its wrapper a C++ compiler."""
        return cls("cuda", capability >= (8, 0), _has_compiler(), has_glibc())


def facts_of(device: str) -> Device:
    """What is known of a device without torch; of a GPU the best is assumed."""
    return Device.from_cpu() if device == "cpu" else Device(device, bf16=True, compiler=True)


def _has_compiler() -> bool:
    import os

    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def has_glibc() -> bool:
    """Whether this process's C library is glibc."""
    import os

    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):
        return False


def preset(name: str, device: Device, training: bool) -> Configuration:
    """The configuration a preset stands for on this device and task.

    `fast` on CUDA has not been measured yet: public measurements of other projects suggest it.

    `fast` on a CPU trains eagerly: compiling a training step takes long there and gains little where plain
    convolutions do the work; `bench compare NAME@fast NAME@amp-nhwc-compile` tells for a network at hand.

    Raises:
        ModelError: no preset has this name.
    """
    if name == "naive":
        return Configuration()
    if name == "tuned":
        raise ModelError(
            "tuned stands for what bench tune found for a model; it is not known here: name levers or fast"
        )
    if name != "fast":
        raise ModelError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    if device.kind == "cuda":
        # Autocast under inductor, not weights in bf16: chosen from public measurements, not yet from one of our own.
        precision = "amp" if device.bf16 else "fp16"
        if not device.compiler:
            return Configuration(precision, "nhwc", "eager", freeze=not training)
        # The whole step in one launch, compiled in a minute: timing every kernel takes many, and convolutions, most of
        # the work, stay cuDNN's. A host that asks after each step whether fp16 overflowed cannot be captured.
        if training:
            return Configuration(precision, "nhwc", "graphs" if device.bf16 else "compile")
        return Configuration(precision, "nhwc", "graphs", freeze=True)
    if training:
        return Configuration("amp" if device.bf16 else "fp32", "nhwc", "eager", keep=device.glibc)
    mode = "compile" if device.compiler else "eager"
    return Configuration("bf16" if device.bf16 else "fp32", "nhwc", mode, freeze=True, keep=device.glibc)


def parse(text: str, device: Device, training: bool) -> Configuration:
    """What a text comes to on this device and for this task. Raises ModelError, see Choice."""
    return Choice.from_text(text).on(device, training)


def check(configuration: Configuration, device: Device, training: bool) -> None:
    """Refuse what cannot work.

    Raises:
        ModelError: says which lever, why, and what to use instead.
    """
    text = configuration.text
    if device.kind == "cpu":
        if configuration.precision == "tf32":
            raise ModelError(f"configuration {text!r}: tf32 is a mode of CUDA's matrix units; on a CPU use fp32 or amp")
        if configuration.compile == "graphs":
            raise ModelError(
                f"configuration {text!r}: graphs replays CUDA graphs, and the device is a CPU; use compile"
            )
        if configuration.kernels:
            raise ModelError(f"configuration {text!r}: our kernels are written for CUDA devices; leave out kernels")
        if configuration.fused:
            raise ModelError(f"configuration {text!r}: fused is for cuDNN, on CUDA devices; leave out fused")
        if configuration.mm and not (configuration.freeze and configuration.compile == "compile"):
            raise ModelError(
                f"configuration {text!r}: on a CPU mm goes with compile and freeze; write compile-freeze-mm, or leave "
                "out mm"
            )
        if configuration.keep and not device.glibc:
            raise ModelError(f"configuration {text!r}: keep is a setting of glibc, which is not here; leave out keep")
        if configuration.peer == "tensorrt":
            raise ModelError(
                f"configuration {text!r}: TensorRT needs a CUDA device; on a CPU use openvino or onnxruntime"
            )
        if configuration.precision == "fp16" and training:
            raise ModelError(f"configuration {text!r}: fp16 training needs a CUDA device; on a CPU use amp (bfloat16)")
        if configuration.compiles and not device.compiler:
            raise ModelError(
                f"configuration {text!r}: torch.compile needs a C++ compiler on a CPU and none was found; "
                "install g++ or use eager"
            )
    elif configuration.keep:
        raise ModelError(f"configuration {text!r}: torch keeps a CUDA device's memory anyway; leave out keep")
    elif configuration.peer == "openvino":
        raise ModelError(f"configuration {text!r}: OpenVINO runs on CPUs; use tensorrt or --device cpu")
    if training and configuration.compile == "graphs" and configuration.precision == "fp16":
        raise ModelError(
            f"configuration {text!r}: after each fp16 step the host asks whether a gradient overflowed, which no CUDA "
            "graph can do; use amp"
        )
    if training and configuration.freeze:
        raise ModelError(f"configuration {text!r}: frozen weights cannot be trained; leave out freeze")
    if configuration.mm and not configuration.compiles:
        raise ModelError(f"configuration {text!r}: mm is done by torch's compiler; write compile-mm, or leave out mm")
    if configuration.fused and not configuration.freeze:
        raise ModelError(
            f"configuration {text!r}: between a convolution and ReLU stands batch norm, which freeze folds; "
            "write freeze-fused, or leave out fused"
        )
    if training and configuration.peer is not None:
        raise ModelError(f"configuration {text!r}: {configuration.peer} only runs inference")
