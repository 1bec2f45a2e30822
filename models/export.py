"""A network as a file for other engines: ONNX, OpenVINO, or a program of torch.export."""

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import ModelError, install, reason
from models.lively import varied, visible_contrast

# format -> (file name suffix, packages that it needs besides torch)
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": (".onnx", ("onnx", "onnxscript")),
    "openvino": (".xml", ("openvino",)),
    "torch-export": (".pt2", ()),
}


@dataclass(frozen=True)
class Exported:
    """Files that were written, and how far their logits are from the network's.

    Attributes:
        files: the one to load first.
        error: largest difference of a logit from the network's own, as a share of their standard deviation; None if no
            engine that runs the file is installed, or the logits could not differ.
        checked_by: that engine, or why nothing was checked.
    """

    files: tuple[Path, ...]
    error: float | None
    checked_by: str


def export(model: nn.Module, format: str, path: Path, size: int, batch: int, dynamic: bool) -> Exported:
    """Write a network to a file, run the file, and compare logits.

    Args:
        model: images [N, 3, size, size] -> logits, fp32 on the CPU.
        format: a key of FORMATS.
        batch: number of images that the file takes at once.
        dynamic: any number of them instead.

    Raises:
        ModelError: a package is missing, or the network cannot be exported; with the reason.
    """
    import importlib.util

    for needed in FORMATS[format][1]:
        if importlib.util.find_spec(needed) is None:
            raise ModelError(f"export to {format} needs {needed}, which is not installed; {install('peers')}")
    model = model.eval()
    # torch.export makes a dimension of size 1 a constant.
    example = varied(max(batch, 2) if dynamic else batch, size)
    try:
        # Beside the file, which a kill or another export must not leave half written.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            drafts, run, checked_by = _WRITERS[format](model, example, Path(folder, path.name), dynamic)
            contrast, blind = (
                visible_contrast(lambda network, images: network(images), model, example) if run else (1.0, "")
            )
            if blind:
                run, checked_by = None, f"{blind}, so that two answers could not differ"
            distance = None if run is None else _distance(model, run, example * contrast)
            files = _put(drafts, path.parent)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"cannot write {path}: {reason(error, path.parent)}; free some space") from error
    except Exception as error:
        why = reason(error, path.parent) + ("; it may work without --dynamic-batch" if dynamic else "")
        raise ModelError(f"the network cannot be exported to {format}: {why}") from error
    return Exported(files, distance, checked_by)


def _put(drafts: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Move an export's files to their place; the one to load first comes last, and never stands beside old ones."""
    files = tuple(folder / draft.name for draft in drafts)
    if len(files) > 1:
        files[0].unlink(missing_ok=True)
    for draft, file in reversed(list(zip(drafts, files, strict=True))):
        draft.replace(file)
    return files


Run = Callable[[Tensor], Tensor]
Written = tuple[tuple[Path, ...], Run | None, str]


def _distance(model: nn.Module, run: Run, example: Tensor) -> float:
    """The largest difference between the logits of both, as a share of the deviation of the network's own."""
    with torch.no_grad():
        own = model(example).double()
    return float((run(example).double() - own).abs().max().item() / own.std(correction=0).item())


def _program(model: nn.Module, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    return torch.export.export(model, (example,), dynamic_shapes=shapes)


def _torch_export(model: nn.Module, example: Tensor, path: Path, dynamic: bool) -> Written:
    # Through memory: when the disk is full, the writer of torch does not say so.
    data = io.BytesIO()
    torch.export.save(_program(model, example, dynamic), data)
    path.write_bytes(data.getvalue())
    loaded = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = loaded(images)
        return logits

    return (path,), run, f"torch {torch.__version__}"


def _onnx(model: nn.Module, example: Tensor, path: Path, dynamic: bool) -> Written:
    shapes = ({0: "batch"},) if dynamic else None
    program = torch.onnx.export(
        model, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes,
        input_names=["images"], output_names=["logits"], external_data=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    try:
        import onnxruntime
    except ImportError:
        return (path,), None, "onnxruntime is not installed, so nothing ran the file"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return (path,), run, f"ONNX Runtime {onnxruntime.__version__}"


def _openvino(model: nn.Module, example: Tensor, path: Path, dynamic: bool) -> Written:
    import openvino

    converted = openvino.convert_model(_program(model, example, dynamic))
    # The converter forgets which sizes the network takes.
    converted.reshape([-1 if dynamic else len(example), *example.shape[1:]])
    # Weights stay fp32: whoever loads the file may halve them.
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled([images.numpy()])[0])

    return (path, path.with_suffix(".bin")), run, f"OpenVINO {openvino.__version__}"


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, bool], Written]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch-export": _torch_export,
}
