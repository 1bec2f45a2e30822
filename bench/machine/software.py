"""The software behind a measurement: versions, settings, compiler and commit."""

import importlib.metadata
import importlib.util
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import allocator
from bench.processes import SOURCE
from models.project import find

# Variables that change what is measured and would otherwise leave no trace in a result.
VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "LD_PRELOAD",
    "MALLOC_CONF",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_FREEZING",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCH_COMPILE_DISABLE",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TRITON_INTERPRET",
)

# Two records are comparable only if these agree.
COMPARED_VERSIONS = ("python", "torch", "torchvision", "cuda", "cudnn", "dali", "triton")


def versions() -> dict[str, str | None]:
    """Versions of the packages a number depends on, read without importing them; None where not installed."""
    torch_build = _torch_build()
    return {
        "python": platform.python_version(),
        "torch": torch_build.get("__version__") or _version("torch"),
        "torchvision": _version("torchvision"),
        "cuda": torch_build.get("cuda"),
        "hip": torch_build.get("hip"),
        "cudnn": _first_version("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu11"),
        "dali": _first_version("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "pillow": _version("pillow"),
        "pytest": _version("pytest"),
        "pytest_benchmark": _version("pytest-benchmark"),
        "nvidia_ml_py": _version("nvidia-ml-py"),
        "pixbench": _version("pixbench"),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_version(*distributions: str) -> str | None:
    return next((version for name in distributions if (version := _version(name)) is not None), None)


def _torch_build() -> dict[str, Any]:
    """The variables of torch/version.py, which alone names a wheel's CUDA; importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        return runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    except (OSError, SyntaxError):
        return {}


def settings(with_torch: bool, environ: Mapping[str, str]) -> dict[str, Any]:
    """torch's settings in this process (None where it is not loaded), and variables that change speed."""
    values: dict[str, Any] = {
        "threads": None,
        "interop_threads": None,
        "deterministic": None,
        "cudnn_benchmark": None,
        "cudnn_deterministic": None,
        "tf32": None,
        "cpu_capability": None,
        "allocator": allocator.described(environ),
        "environment": {name: environ[name] for name in VARIABLES if name in environ},
    }
    if not with_torch and "torch" not in sys.modules:
        return values
    import torch

    # torch has two interfaces for TF32 and refuses to read one after the other was used; this reading always works.
    cudnn: Any = torch.backends.cudnn
    matmul, convolution = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    return values | {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "tf32": f"matmul {matmul}, convolution {convolution}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def compiler(environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> str | None:
    """First line of the C++ compiler's --version, found as torch.compile finds it; None without one."""
    for words in (environ.get("CXX"), "g++", "clang++"):
        command = shlex.split(words) if words else []
        if not command or which(command[0]) is None:
            continue
        lines = _output([*command, "--version"]).splitlines()
        if lines:
            return lines[0]
    return None


def commit(package: Path) -> dict[str, Any] | None:
    """{"sha", "dirty"} of the checkout that holds `package` at its top; None for an installed copy.

    A wheel unpacked somewhere below another project's repository must not be recorded under that project's commit.
    """
    top = _output(["git", "-C", str(package), "rev-parse", "--show-toplevel"]).strip()
    return _state(package) if top and Path(top).resolve() == package.parent else None


def measured_commit() -> dict[str, Any] | None:
    """{"sha", "dirty"} of what is measured: of the repository whose settings hold here, else of this checkout."""
    project = find()
    return _state(project.folder) if project.file is not None else commit(SOURCE / "bench")


def _state(folder: Path) -> dict[str, Any] | None:
    sha = _output(["git", "-C", str(folder), "rev-parse", "HEAD"]).strip()
    if len(sha) < 40:
        return None
    status = _output(["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return {"sha": sha, "dirty": bool(status.strip())}


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
