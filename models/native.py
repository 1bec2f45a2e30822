"""Our own code for training on a CPU: native.cpp, compiled when a training begins, as torch operators."""

import ctypes
import functools
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # None of them lets what is no number vanish.
    *("-fno-math-errno", "-fno-trapping-math"),
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
)
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""The dtypes that the functions take, and the ends of their names."""


@functools.cache
def library() -> ctypes.CDLL | str:
    """The compiled functions; or why there are none."""
    compiler = os.environ.get("CXX") or "g++"
    if "g++" not in Path(compiler).name or shutil.which(compiler) is None:
        # Another compiler would bring an OpenMP of its own, whose threads would stand beside those of torch.
        return "there is no g++"
    with tempfile.TemporaryDirectory(prefix="pixbench-") as folder:
        output = Path(folder, "native.so")
        # A second or two to compile: less than keeping it for later could go wrong.
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(output)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return f"{compiler} failed ({next(iter(done.stderr.splitlines()), done.returncode)})"
        try:
            return ctypes.CDLL(str(output))
        except OSError as error:
            return f"it cannot be loaded ({error})"


def call(name: str, dtype: torch.dtype, tensors: list[Tensor | None], numbers: list[float | int]) -> None:
    """Call a function of the library with the addresses of tensors, then with numbers."""
    addresses = [ctypes.c_void_p(None if one is None else one.data_ptr()) for one in tensors]
    values = [ctypes.c_double(one) if isinstance(one, float) else ctypes.c_int64(one) for one in numbers]
    getattr(library(), f"{name}_{NAMES[dtype]}")(*addresses, *values)


def _free() -> str:
    """A namespace without these operators: `bench check` has two commits of this file in one process."""
    numbers = itertools.count(1)
    name = "pixbench"
    while hasattr(getattr(torch.ops, name), "batch_norm"):
        name = f"pixbench_{next(numbers)}"
    return name


NAMESPACE = _free()
_OPERATORS: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function one of torch's operators, so that profilers and counters see its calls."""

    def define(function: Callable[..., Any]) -> Any:
        name = schema.split("(")[0]
        _OPERATORS.define(schema)
        _OPERATORS.impl(name, function, "CPU")
        return getattr(getattr(torch.ops, NAMESPACE), name)

    return define
