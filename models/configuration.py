"""What can be done to a network before it is timed, as words: `MODEL@CONFIGURATION`.

Imports no torch, so that a mistyped configuration is answered at once.
"""

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import ModelError

# lever -> (which field it sets, the value, one line)
LEVERS: dict[str, tuple[str, str | bool, str]] = {
    "fp32": ("precision", "fp32", "32-bit floats everywhere, TF32 off (alone, as in naive, torch's default switches)"),
    "tf32": ("precision", "tf32", "32-bit storage, TF32 matrix products (CUDA)"),
    "amp": ("precision", "amp", "bfloat16 autocast over fp32 weights"),
    "bf16": ("precision", "bf16", "bfloat16 weights and activations"),
    "fp16": (
        "precision",
        "fp16",
        "float16 weights and activations (inference), float16 autocast with a scaler (training)",
    ),
    "nchw": ("layout", "nchw", "contiguous batch, channel, height, width"),
    "nhwc": ("layout", "nhwc", "channels_last memory format"),
    "eager": ("compile", "eager", "no torch.compile"),
    "compile": ("compile", "compile", "torch.compile with inductor's default mode"),
    "graphs": (
        "compile",
        "graphs",
        "torch.compile, replayed as CUDA graphs; in training the whole update as one (CUDA)",
    ),
    "autotune": (
        "compile",
        "autotune",
        "torch.compile, max-autotune: kernels timed, CUDA graphs where they capture",
    ),
    "freeze": (
        "freeze",
        True,
        "weights become constants: batch norm folded, layouts packed ahead (inference)",
    ),
    "kernels": (
        "kernels",
        True,
        "our Triton kernels: EfficientNet's bottlenecks (inference), depthwise convolutions (training) (CUDA)",
    ),
    "openvino": ("peer", "openvino", "exported to OpenVINO (inference, CPU)"),
    "onnxruntime": ("peer", "onnxruntime", "exported to ONNX Runtime (inference)"),
    "tensorrt": ("peer", "tensorrt", "compiled by torch-tensorrt (inference, CUDA)"),
}
PRESETS: dict[str, str] = {
    "naive": "eager fp32 NCHW: what a first script does",
    "fast": "the best known for this device and task (the default)",
    "tuned": "what bench tune found for this model, task and machine",
}
# What OpenVINO and ONNX Runtime are asked for; nothing else of ours reaches inside them.
PEER_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("fp32", "bf16"),
    "onnxruntime": ("fp32",),
    "tensorrt": ("fp32", "fp16"),
}


@dataclass(frozen=True)
class Configuration:
    """How a network is laid out, in which precision, and what runs it.

    Attributes:
        precision: fp32, tf32, amp, bf16 or fp16.
        layout: nchw or nhwc (channels_last).
        compile: eager, compile, graphs or autotune.
        freeze: weights are constants of the program (inference only).
        kernels: layers that kernels/ has are computed by it.
        peer: None, or the foreign engine that runs the exported network.
    """

    precision: str = "fp32"
    layout: str = "nchw"
    compile: str = "eager"
    freeze: bool = False
    kernels: bool = False
    peer: str | None = None

    @property
    def text(self) -> str:
        """The levers joined by '-': the part after '@' in every id."""
        if self.peer is not None:
            return f"{self.peer}-{self.precision}"
        words = [self.precision, self.layout, self.compile]
        return "-".join(words + ["freeze"] * self.freeze + ["kernels"] * self.kernels)

    @property
    def reduced(self) -> bool:
        """True if activations have fewer than 24 bits of mantissa, so outputs differ from fp32 on purpose."""
        return self.precision != "fp32"


@dataclass(frozen=True)
class Device:
    """The facts of a device that decide which preset is best on it.

    Attributes:
        kind: "cpu" or "cuda".
        bf16: it multiplies bfloat16 faster than float32 (AMX, AVX512-BF16, CUDA from compute capability 8.0).
        compiler: a C++ compiler is there, without which inductor cannot build CPU code.
    """

    kind: str
    bf16: bool
    compiler: bool

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
        return cls("cpu", bool({"amx_bf16", "avx512_bf16"} & flags), _has_compiler())

    @classmethod
    def from_cuda(cls, capability: tuple[int, int]) -> "Device":
        """A CUDA device of this compute capability; inductor's CUDA code needs Triton, its wrapper a C++ compiler."""
        return cls("cuda", capability >= (8, 0), _has_compiler())


def _has_compiler() -> bool:
    import os

    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def preset(name: str, device: Device, training: bool) -> Configuration:
    """The configuration a preset stands for on this device and task.

    `fast` on CUDA has not been measured: it is what public measurements speak for.

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
        # bf16 autocast beats pure bf16 weights under inductor on every ResNet measured in public.
        precision = "amp" if device.bf16 else "fp16"
        if not device.compiler:
            return Configuration(precision, "nhwc", "eager", freeze=not training)
        # The whole update in one launch, compiled in a minute: timing every kernel of a backward pass takes many, and
        # convolutions, which are most of it, stay cuDNN's. A host that asks after fp16's overflows cannot be captured.
        if training:
            return Configuration(precision, "nhwc", "graphs" if device.bf16 else "autotune")
        return Configuration(precision, "nhwc", "autotune", freeze=True)
    if training:
        return Configuration("amp" if device.bf16 else "fp32", "nhwc", "eager")
    return Configuration(
        "bf16" if device.bf16 else "fp32", "nhwc", "compile" if device.compiler else "eager", freeze=True
    )


def parse(text: str, device: Device, training: bool) -> Configuration:
    """Read a configuration: a preset, levers joined by '-', or a preset followed by levers that change it.

    Levers not named stay as in `naive`: `compile` is fp32, NCHW, compiled. `fast-fp32` is the fast preset in fp32.
    Training drops `freeze` from a preset, never from words the user wrote.

    Raises:
        ModelError: an unknown word (near names are listed), two words for one thing, or a combination that
            cannot work on this device or for this task.
    """
    words = [word for word in text.strip().lower().split("-") if word]
    if not words:
        raise ModelError("an empty configuration after '@'; write a preset (naive, fast) or levers (bf16-nhwc-compile)")
    configuration = Configuration()
    if words[0] in PRESETS:
        configuration = preset(words[0], device, training)
        words = words[1:]
    seen: dict[str, str] = {}
    changes: dict[str, str | bool] = {}
    for word in words:
        if word not in LEVERS:
            known = [*PRESETS, *LEVERS]
            near = difflib.get_close_matches(word, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise ModelError(f"no configuration lever is called {word!r} (in {text!r}); {hint}")
        field, value, _ = LEVERS[word]
        if field in seen and seen[field] != word:
            raise ModelError(f"configuration {text!r} says both {seen[field]} and {word}; choose one")
        seen[field] = word
        changes[field] = value
    configuration = replace(configuration, **changes)  # type: ignore[arg-type]
    if configuration.peer is not None:
        configuration = _peer(configuration, seen, device, text)
    check(configuration, device, training)
    return configuration


def _peer(configuration: Configuration, seen: dict[str, str], device: Device, text: str) -> Configuration:
    """A peer decides layout and compilation itself; only its precision is ours to ask for."""
    extra = [seen[field] for field in ("layout", "compile", "freeze", "kernels") if field in seen]
    if extra:
        raise ModelError(
            f"configuration {text!r}: {configuration.peer} decides {' and '.join(extra)} itself; name only a precision"
        )
    allowed = PEER_PRECISIONS[configuration.peer or ""]
    precision = configuration.precision
    if "precision" not in seen:
        precision = allowed[-1] if device.bf16 and allowed[-1] == "bf16" else allowed[0]
    if precision not in allowed:
        raise ModelError(
            f"configuration {text!r}: {configuration.peer} runs here in {' or '.join(allowed)}, not {precision}"
        )
    return Configuration(precision=precision, peer=configuration.peer)


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
        if configuration.peer == "tensorrt":
            raise ModelError(
                f"configuration {text!r}: TensorRT needs a CUDA device; on a CPU use openvino or onnxruntime"
            )
        if configuration.precision == "fp16" and training:
            raise ModelError(f"configuration {text!r}: fp16 training needs a CUDA device; on a CPU use amp (bfloat16)")
        if configuration.compile != "eager" and not device.compiler:
            raise ModelError(
                f"configuration {text!r}: torch.compile needs a C++ compiler on a CPU and none was found; "
                "install g++ or use eager"
            )
    elif configuration.peer == "openvino":
        raise ModelError(f"configuration {text!r}: OpenVINO runs on CPUs; use tensorrt or --device cpu")
    if training and configuration.compile == "graphs" and configuration.precision == "fp16":
        raise ModelError(
            f"configuration {text!r}: after each fp16 step the host asks whether a gradient overflowed, which no CUDA "
            "graph can do; use amp"
        )
    if training and configuration.freeze:
        raise ModelError(f"configuration {text!r}: frozen weights cannot be trained; leave out freeze")
    if training and configuration.peer is not None:
        raise ModelError(f"configuration {text!r}: {configuration.peer} only runs inference")
