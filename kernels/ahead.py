"""Kernels compiled for GPUs that are not there: registers, spills, shared memory and instructions, without any GPU.

Triton's wheel carries the assembler and disassembler of CUDA. What a kernel is launched with is noted on torch's device
"meta", where nothing is computed, so that what is compiled here is what a GPU would compile for the same tensors.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kernels import catalogue, depthwise, depthwise_backward, pointwise
from kernels.runtime import FUSED, Launch, noting

BATCH = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        multiprocessors: each starts an instruction of four warps every cycle.
        clock: cycles a second, at most.
        bandwidth: bytes a second.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float


GPUS = {80: Gpu("A100", 108, 1.41e9, 2.039e12), 90: Gpu("H200", 132, 1.98e9, 4.8e12)}
"""By compute capability: the A100 SXM of 80 GB and the H200 SXM."""


@dataclass(frozen=True)
class Compiled:
    """A launch as it would run on a GPU.

    Attributes:
        kernel: the name of its function.
        shape: of its first tensor and of what it is compiled for.
        architecture: compute capability, 90 for 9.0.
        count: how often the network launches it so.
        registers: of a lane.
        spilled: bytes of a lane that did not fit into registers.
        shared: bytes of a program.
        instructions: for each number of its result (of the gradients that it sums, where it sums them); None where a
            loop's length depends on the data.
        seconds: those instructions over what the GPU starts a second.
        floor: seconds in which the GPU's memory reads and writes every tensor of the launch once.
    """

    kernel: str
    shape: str
    architecture: int
    count: int
    registers: int
    spilled: int
    shared: int
    instructions: float | None
    seconds: float | None
    floor: float


def compiled(name: str, architecture: int) -> list[Compiled]:
    """What a kernel of the catalogue launches for EfficientNet-B0 at batch 256 (in training for `depthwise_backward`),
    or for its example where that network does not need it; bfloat16 everywhere.

    Raises:
        ValueError: no such kernel or architecture.
    """
    catalogue.describe(name)
    if architecture not in GPUS:
        raise ValueError(f"architecture must be one of {', '.join(map(str, GPUS))}, not {architecture}")
    found: dict[str, tuple[Launch, int]] = {}
    for call in _calls(name):
        with noting() as launches:
            call()
        for launch in launches:
            key = _shape(launch)
            found[key] = (launch, found[key][1] + 1 if key in found else 1)
    return [_measured(launch, shape, architecture, count) for shape, (launch, count) in found.items()]


def _calls(name: str) -> Iterator[Callable[[], object]]:
    if name not in ("depthwise", "depthwise_backward", "pointwise"):
        # resident's own data sets: CIFAR's sides for the one that moves pixels, ImageNet's for the rest.
        yield catalogue.example(name, "triton", BATCH, 32 if name == "augment" else 224, "bfloat16", "meta")
        return
    for channels, side, kernel, stride, out, residual in bottlenecks():
        after = (side - 1) // stride + 1
        x, y = _maps(channels, side), _maps(channels, after)
        weight = _empty(channels, 1, kernel, kernel)
        if name == "depthwise":
            run = depthwise.DEPTHWISE.implementations["triton"]
            yield partial(run, x, weight, _empty(channels), stride, "silu")
        elif name == "pointwise":
            project = pointwise.SCALED_POINTWISE.implementations["triton"]
            added = _maps(out, after) if residual else None
            yield partial(project, y, _empty(BATCH, channels), _empty(out, channels, 1, 1), _empty(out), added)
        else:
            yield partial(depthwise_backward.FORWARD.implementations["triton"], x, weight, stride)
            yield partial(depthwise_backward.GRAD_INPUT.implementations["triton"], y, weight, stride, side, side)
            yield partial(depthwise_backward.GRAD_WEIGHT.implementations["triton"], y, x, stride, kernel)


def bottlenecks() -> Iterator[tuple[int, int, int, int, int, bool]]:
    """EfficientNet-B0's at 224 pixels (Tan and Le 2019, table 1): channels and side of the depthwise convolution's
    input, its kernel and stride, channels of the result, and whether the block's input is added to that."""
    channels, side = 32, 112
    for expansion, out, kernel, stride, repeats in (
        (1, 16, 3, 1, 1),
        (6, 24, 3, 2, 2),
        (6, 40, 5, 2, 2),
        (6, 80, 3, 2, 3),
        (6, 112, 5, 1, 3),
        (6, 192, 5, 2, 4),
        (6, 320, 3, 1, 1),
    ):
        for number in range(repeats):
            step = stride if number == 0 else 1
            yield channels * expansion, side, kernel, step, out, number > 0
            channels, side = out, (side - 1) // step + 1


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _maps(channels: int, side: int) -> torch.Tensor:
    return _empty(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last)


def _shape(launch: Launch) -> str:
    known = " ".join(f"{name}={value}" for name, value in launch.constants.items())
    return f"{list(launch.arguments[0].shape)} {known}"


def _measured(launch: Launch, shape: str, architecture: int, count: int) -> Compiled:
    gpu = GPUS[architecture]
    cubin = binary(launch, architecture)
    usage, once, repeated = read(cubin)
    names = launch.kernel.arg_names
    tensors = {name: value for name, value in zip(names, launch.arguments, strict=False) if torch.is_tensor(value)}
    programs = 1
    for extent in launch.grid:
        programs *= extent
    instructions = seconds = None
    if not repeated or launch.passes:
        each = once + repeated * launch.passes
        total = float(each * programs * launch.warps)
        seconds = total / (gpu.multiprocessors * 4 * gpu.clock)
        instructions = total * 32 / tensors["out_ptr" if "out_ptr" in tensors else "grad_ptr"].numel()
    floor = sum(tensor.numel() * tensor.element_size() for tensor in set(tensors.values())) / gpu.bandwidth
    return Compiled(
        launch.kernel.__name__.strip("_"), shape, architecture, count,
        usage["REG"], usage["STACK"] + usage["LOCAL"], usage["SHARED"], instructions, seconds, floor,
    )  # fmt: skip


def binary(launch: Launch, architecture: int) -> bytes:
    """The machine code that Triton makes of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, (name, value) in enumerate(
        zip(kernel.arg_names, [*launch.arguments, *launch.constants.values()], strict=True)
    ):
        if place >= len(launch.arguments):
            value = launch.constants[name]
        if place >= len(launch.arguments) or (type(value) is int and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
        elif torch.is_tensor(value):
            signature[name] = f"*{TYPES[value.dtype]}"
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
        # As a launch would: memory from torch begins at a multiple of 16 bytes, and numbers are looked at.
        if torch.is_tensor(value) or (signature[name] in ("i32", "i64") and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, **FUSED}
    code: bytes = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["cubin"]
    return code


TYPES = {
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
"""Triton's names of torch's types."""


def read(cubin: bytes) -> tuple[Counter[str], int, int]:
    """Resources of a kernel by the names of CUDA's tools, its instructions outside of loops, and those of its loops."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def tool(command: str, *options: str) -> str:
            return subprocess.run([command, *options, str(path)], capture_output=True, text=True, check=True).stdout

        usage = tool(knobs.nvidia.cuobjdump.path, "-res-usage")
        listing = tool(knobs.nvidia.nvdisasm.path, "-c")
    resources = Counter({name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", usage)})
    places: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    count = 0
    for line in listing.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            places[label[1]] = count
        instruction = re.search(r"/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;", line)
        if instruction and not instruction[1].startswith("NOP"):
            target = re.search(r"BRA.*?(\.L_x_\d+)", instruction[1])
            if target:
                jumps.append((count, target[1]))
            count += 1
    # A jump backwards ends a loop; the last instruction of all jumps to itself.
    inside = {
        number
        for at, label in jumps
        if label in places and places[label] < at
        for number in range(places[label], at + 1)
    }
    return resources, count - len(inside), len(inside)
