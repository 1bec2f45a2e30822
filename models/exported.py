"""Networks in exported files, which only infer: ONNX, OpenVINO (.xml) and torch.export (.pt2).

A .pt2 is a network of torch like any other. What the others hold only their engines can run (models.peers).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.configuration import FILES
from models.dry_run import USUAL_SIZES, without_weights
from models.errors import ModelError, install
from models.names import Name
from models.peers import ENGINES
from models.project import root

Shape = Sequence[int | None]  # None where any number goes


@dataclass(frozen=True)
class Facts:
    """What an exported network takes and gives.

    Attributes:
        classes: logits.
        size: height and width of its images, in pixels.
        batch: images that it takes at once; 0 is any number.
        resizable: other sizes go too.
    """

    classes: int
    size: int
    batch: int
    resizable: bool

    def check(self, file: str, images: Sequence[int]) -> None:
        """Raise ModelError where images [N, 3, H, W] do not fit."""
        batch, _, height, width = images
        if self.batch not in (0, batch):
            raise ModelError(
                f"{file} takes batches of {self.batch}: give --batch {self.batch}, or export it with --dynamic-batch"
            )
        if not self.resizable and (height, width) != (self.size, self.size):
            raise ModelError(f"{file} takes images of {self.size} pixels: leave out --size, or export it at {height}")


class Foreign(nn.Module):
    """A network in a file for another engine. Called as it is, it runs in its default one, in fp32.

    Attributes:
        file: as it was named.
        path: of the file.
        facts: what it takes and gives.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file, self.path = file, root() / file
        self.facts = _facts(file)
        self._runs: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self._runs:
            self.facts.check(self.file, shape)
            self._runs[shape] = ENGINES[FILES[self.path.suffix.lower()][0]](self.path, "fp32", shape)
        return self._runs[shape](images)


class Program(nn.Module):
    """A program of torch.export as a network that is always in evaluation mode.

    Attributes:
        file: as it was named.
        facts: what it takes and gives.
        batch: images that it takes at once; 0 is any number.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file, self.facts = file, _facts(file)
        # Its guards are Python code that the file carries; `Facts.check` takes their place.
        from models.programs import read

        self.program = read(root() / file, file).module(check_guards=False)
        self.batch = self.facts.batch
        self.training = False

    def train(self, mode: bool = True) -> "Program":
        # Which mode it computes in was decided when it was exported.
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.program(images)
        return logits


def check(network: nn.Module, images: Sequence[int]) -> None:
    """Raise ModelError where an exported network does not take images [N, 3, H, W]; others are not asked."""
    if isinstance(network, Foreign | Program):
        network.facts.check(network.file, images)


def known_arguments(base: str) -> dict[str, object]:
    """None: it is a network already."""
    return {}


def load(base: str) -> None:
    """Import what runs it. Raises ModelError: it cannot be had."""
    _facts(base)


def facts(name: Name) -> Facts:
    """Outputs, image size and batch of the network in a file.

    Raises:
        ModelError: it is missing, damaged, no classifier of images, or needs a package that is not installed.
    """
    return _facts(name.base)


def build(base: str, classes: int | None, arguments: Mapping[str, object]) -> nn.Module:
    """The network in a file; a program of torch is without its weights on the meta device.

    Raises:
        ModelError: see `facts`; or it has another number of outputs.
    """
    own = _facts(base).classes
    if arguments:
        raise ModelError(f"{base} is a network already, so it takes no arguments")
    if classes not in (None, own):
        raise ModelError(f"{base} gives {own} logits and not {classes}: leave out --classes")
    meta = torch.get_default_device().type == "meta"
    with torch.device("cpu"):
        if not base.lower().endswith(".pt2"):
            return Foreign(base)
        program = Program(base)
    return without_weights(program) if meta else program


_known: dict[tuple[Path, int], Facts] = {}


def _facts(file: str) -> Facts:
    path = root() / file
    Name(file).check(root())
    key = (path, path.stat().st_mtime_ns)
    if key not in _known:
        _known[key] = _READERS[path.suffix.lower()](file, path)
    return _known[key]


def _understood(
    file: str, inputs: Sequence[tuple[str, str, Shape]], outputs: Sequence[Shape], run: Callable[[Tensor], Any]
) -> Facts:
    """Facts from the inputs (name, type, shape) and outputs that a file declares.

    Args:
        run: images -> logits, for a file that does not declare how many there are.

    Raises:
        ModelError: it is no classifier of images.
    """
    said = ", ".join(f"{name} {kind} {_text(shape)}" for name, kind, shape in inputs)
    wanted = "what is measured takes one batch of images float32 [N, 3, size, size] and gives logits [N, classes]"
    if len(inputs) != 1 or inputs[0][1] != "float32":
        raise ModelError(f"{file} takes {said or 'nothing'}; {wanted}")
    [(_, _, shape)] = inputs
    if len(shape) != 4 or shape[1] not in (3, None) or shape[2] != shape[3]:
        raise ModelError(f"{file} takes {said}; {wanted}")
    size = shape[2] or USUAL_SIZES[0]
    if len(outputs) != 1 or len(outputs[0]) != 2:
        raise ModelError(f"{file} gives {', '.join(map(_text, outputs)) or 'nothing'}; {wanted}")
    classes = outputs[0][1]
    if classes is None:
        try:
            classes = int(run(torch.zeros(shape[0] or 1, 3, size, size)).shape[1])
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise ModelError(f"{file} takes no image of {size} x {size} pixels ({why})") from error
    return Facts(classes, size, shape[0] or 0, shape[2] is None)


def _text(shape: Shape) -> str:
    return f"[{', '.join('N' if number is None else str(number) for number in shape)}]"


def _of_onnx(file: str, path: Path) -> Facts:
    try:
        import onnxruntime
    except ImportError:
        return _of_openvino(file, path)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _damaged(file, "ONNX Runtime", error) from error

    def shape(found: Any) -> Shape:
        return [n if isinstance(n, int) and n > 0 else None for n in found.shape]

    kinds = {"tensor(float)": "float32"}
    inputs = [(one.name, kinds.get(one.type, one.type), shape(one)) for one in session.get_inputs()]
    return _understood(
        file, inputs, [shape(one) for one in session.get_outputs()],
        lambda images: session.run(None, {inputs[0][0]: images.numpy()})[0],
    )  # fmt: skip


def _of_openvino(file: str, path: Path) -> Facts:
    try:
        import openvino
    except ImportError as error:
        engine = "openvino" if path.suffix.lower() == ".xml" else "onnxruntime or openvino"
        raise ModelError(f"{file} needs {engine}, which is not installed; {install('peers')}") from error
    try:
        found = openvino.Core().read_model(str(path))
    except Exception as error:
        raise _damaged(file, "OpenVINO", error) from error

    def shape(port: Any) -> Shape:
        whole = port.get_partial_shape()
        if whole.rank.is_dynamic:
            return []
        return [None if one.is_dynamic else one.get_length() for one in whole]

    def kind(port: Any) -> str:
        found = port.get_element_type()
        return "float32" if found == openvino.Type.f32 else str(found.get_type_name())

    inputs = [(next(iter(one.get_names()), "images"), kind(one), shape(one)) for one in found.inputs]
    return _understood(
        file, inputs, [shape(one) for one in found.outputs],
        lambda images: openvino.compile_model(found, "CPU")([images.numpy()])[0],
    )  # fmt: skip


def _of_program(file: str, path: Path) -> Facts:
    # Here, because torch.export's archives bring the compiler with them: seconds, for a file that is seldom there.
    from models.programs import read

    program = read(path, file)
    nodes = {node.name: node for node in program.graph.nodes}

    def described(name: object) -> tuple[str, str, Shape]:
        value = nodes[str(name)].meta.get("val") if str(name) in nodes else None
        if not isinstance(value, Tensor):
            return str(name), type(value).__name__, []
        shape = [n if isinstance(n, int) else None for n in value.shape]
        return str(name), str(value.dtype).removeprefix("torch."), shape

    signature = program.graph_signature
    return _understood(
        file, [described(name) for name in signature.user_inputs],
        [described(name)[2] for name in signature.user_outputs], program.module(check_guards=False),
    )  # fmt: skip


_READERS: dict[str, Callable[[str, Path], Facts]] = {".onnx": _of_onnx, ".xml": _of_openvino, ".pt2": _of_program}


def _damaged(file: str, engine: str, error: Exception) -> ModelError:
    # OpenVINO begins with the places in its own code.
    why = next(reversed(str(error).strip().splitlines()), type(error).__name__).strip()[:200]
    return ModelError(f"{file} cannot be read by {engine}: {why}")
