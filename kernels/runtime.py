"""What kernels share: which implementation runs where, and how torch.compile keeps them whole."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from kernels import formats
from kernels.formats import IMPLEMENTATIONS

DTYPES = tuple(formats.dtype_of(name) for name in formats.DTYPES)

HAS_TRITON = find_spec("triton") is not None
# Triton reads the variable when a kernel is defined, so only its value at import time counts.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Of every launch: a product and a sum are rounded once. Triton's own default depends on its version, and it warns.
FUSED = {"enable_fp_fusion": True}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def default_implementation(device: torch.device | str) -> str:
    """The implementation that runs on `device` unless another one is asked for: "triton" or "torch"."""
    return "triton" if torch.device(device).type == "cuda" and HAS_TRITON else "torch"


def choose_implementation(implementation: str | None, device: torch.device) -> str:
    """`implementation`, or the default one for None.

    Raises:
        ValueError: it is unknown or cannot run on `device`.
    """
    if implementation is None:
        return default_implementation(device)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    if implementation == "triton" and not HAS_TRITON:
        raise ValueError("implementation 'triton' needs Triton, which is not installed")
    # On "meta", where nothing is computed, a launch is only noted.
    if implementation == "triton" and device.type not in ("cuda", "meta") and not INTERPRETED:
        raise ValueError(f"implementation 'triton' needs a CUDA device, not {device}; use 'torch' there")
    return implementation


@dataclass(frozen=True)
class Launch:
    """A start of a kernel.

    Attributes:
        kernel: Triton's function.
        grid: how many programs, in up to three dimensions.
        arguments: its tensors and numbers, in its order.
        constants: what it is compiled for, by name.
        warps: of a program.
        stages: passes of its loop whose loads are under way at once.
        passes: of the kernel's loop where it has one and that is known before it runs, else 0.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int
    passes: int


_noted: ContextVar[list[Launch] | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[Launch]]:
    """Yields a list of what is launched within the block on tensors of the device "meta"."""
    launches: list[Launch] = []
    token = _noted.set(launches)
    try:
        yield launches
    finally:
        _noted.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    warps: int = 4,
    stages: int = 3,
    passes: int = 0,
) -> None:
    """Start a kernel on the device of its first argument, a tensor; arguments as for `Launch`.

    On "meta" nothing is started, as torch's own operators compute nothing there.
    """
    device = arguments[0].device
    if device.type == "meta":
        noted = _noted.get()
        if noted is not None:
            noted.append(Launch(kernel, grid, arguments, constants, warps, stages, passes))
        return
    # Triton launches on the current device, which need not be the one the data is on.
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, **FUSED)


class Operation(Generic[Arguments, Result]):
    """A function in three implementations, registered as a torch operator.

    Attributes:
        implementations: "torch", the plain twin; "compiled", the twin as torch.compile writes it, which a kernel has
            to beat; "triton", the kernel.
        operator: for gradients and other registrations.
        overload: the operator as it is called; its arguments are the twin's and the implementation's name.
    """

    def __init__(self, name: str, twin: Callable[Arguments, Result], kernel: Callable[Arguments, Result]) -> None:
        """Register torch.ops.pixbench.NAME with the arguments of the twin, which also tells torch the result's shape.

        Args:
            name: of the operator.
            twin: its annotations become the operator's schema.
            kernel: takes the same arguments and gives results of the same shape, dtype and memory order.
        """
        run: dict[str, Callable[..., Result]] = {"torch": twin, "compiled": _compiled(twin), "triton": kernel}
        self.implementations: dict[str, Callable[Arguments, Result]] = run
        arguments, _, result = torch.library.infer_schema(twin, mutates_args=()).rpartition(") -> ")
        self.operator = torch.library.custom_op(
            f"pixbench::{name}",
            lambda *words: run[words[-1]](*words[:-1]),
            mutates_args=(),
            schema=f"{arguments}, str implementation) -> {result}",
        )
        self.operator.register_fake(lambda *words: run["torch"](*words[:-1]))
        self.overload = getattr(torch.ops.pixbench, name).default

    def __call__(self, implementation: str, *arguments: Arguments.args, **none: Arguments.kwargs) -> Result:
        """Run an implementation; all arguments by position."""
        if torch.compiler.is_compiling():
            # An opaque operator: dynamo neither breaks its graph here nor traces into Triton's launcher.
            result: Result = self.overload(*arguments, implementation)
            return result
        return self.implementations[implementation](*arguments, **none)


def _compiled(twin: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The twin under torch.compile, which is entered at the first call."""

    @functools.cache
    def compiled() -> Callable[Arguments, Result]:
        return torch.compile(twin, dynamic=False)

    return lambda *arguments, **none: compiled()(*arguments, **none)


def check_feature_maps(x: torch.Tensor) -> None:
    """Raise ValueError unless `x` has four dimensions and a dtype that the kernels know."""
    if x.dim() != 4 or x.dtype not in DTYPES:
        raise ValueError(f"x must be [B, C, H, W] of {', '.join(map(str, DTYPES))}, not {x.dtype} {list(x.shape)}")


def check_output_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for a dtype that the kernels do not write."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype}")


def empty_channels_last(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor of `shape`, [B, C, H, W], with channels last in memory."""
    return torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=torch.channels_last)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, [B, C, H, W], with channels last in memory; copied if they are not."""
    return tensor.contiguous(memory_format=torch.channels_last)


def scale_and_bias(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """(x / 255 - mean) / std as x * scale + bias, a number for each channel.

    Raises:
        ValueError: not three numbers each, or a deviation that is not above zero.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three numbers each, std above zero; got {mean} and {std}")
    return [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
