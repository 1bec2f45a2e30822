"""Reading programs of torch.export (.pt2) without running anything that they carry.

torch.export.load (2.15) trusts its file: it unpickles what the file says is pickled, and sample inputs that are more
than tensors; it evaluates the expressions of shapes as Python, and looks the names of operators up from `torch` on,
where `torch.os.system` is one. What is read here holds tensors and operators of torch alone. The program's guards are
Python too, and are left out: whoever calls it checks the images.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2

from models.errors import ModelError

_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/.+|\.format_version|\.storage_alignment|extra/.+|models/[^/]+\.json"
    r"|data/weights/(weight_\d+|[^/]+_weights_config\.json)|data/constants/(tensor_\d+|[^/]+_constants_config\.json)"
    r"|data/sample_inputs/[^/]+\.pt"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed|higher_order)\.[\w.]+|_operator\.\w+|torch\.sym_\w+"
)
# Of shapes: numbers, names, arithmetic, and calls of these.
_EXPRESSION = re.compile(
    r"((?<!\w)(Symbol|Integer|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Add|Mul|Pow|Eq|Ne|Lt|Le|Gt|Ge)\("
    r"|'\w+'|\w+(?!\s*[\w(])|[ +\-*/),<>=]|(?<!\w)\()*"
)


def read(path: Path, file: str) -> ExportedProgram:
    """The program in a file, which errors call `file`.

    Raises:
        ModelError: it cannot be read, or holds more than tensors and operators of torch.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    try:
        foreign = _foreign(PT2ArchiveReader(io.BytesIO(data)))
    except Exception as error:
        raise ModelError(f"{file} cannot be read: it is damaged, or not written by torch.export.save") from error
    if foreign:
        raise ModelError(f"{file} was not opened: it holds {foreign}, which could run code that the file carries")
    try:
        # Not torch.export.load, which tries an older format, of pickles, where this one fails.
        program: ExportedProgram = load_pt2(io.BytesIO(data)).exported_programs["model"]
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise ModelError(f"{file} cannot be read by torch {torch.__version__}: {why}") from error
    return program


def _foreign(archive: PT2ArchiveReader) -> str:
    """What a file holds that is neither a tensor nor an operator of torch; "" for nothing."""
    for name in archive.get_file_names():
        if not _PLAIN.fullmatch(name):
            return f"{name}"
        if name.endswith(".pt"):
            try:
                torch.load(io.BytesIO(archive.read_bytes(name)), weights_only=True)
            except Exception:
                return f"pickled sample inputs ({name})"
        elif name.endswith(".json") and not name.startswith("extra/"):
            for key, value in _entries(json.loads(archive.read_string(name))):
                if key == "use_pickle" and value is not False:
                    return "pickled weights"
                if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
                    return f"pickled objects ({value})"
                if key == "target" and isinstance(value, str) and not _OPERATOR.fullmatch(value):
                    return f"the operator {value[:80]}"
                if key == "expr_str" and not _EXPRESSION.fullmatch(str(value)):
                    return f"the expression {str(value)[:80]}"
    return ""


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what stands under it, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)
