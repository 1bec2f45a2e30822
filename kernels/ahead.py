"""Kernels compiled for GPUs that are not there: registers, spills and instructions.

Triton's wheel carries the assembler and disassembler of CUDA. What a kernel is launched with is noted on torch's device
"meta", where nothing is computed, so that what is compiled here is what a GPU would compile for the same tensors.
"""

import math
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
from kernels.runtime import FUSED, HAS_TRITON, INTERPRETED, Launch, noting

BATCH = 256
STARTED = 4
"""Instructions of a warp that a multiprocessor starts in a cycle."""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        multiprocessors: each starts instructions of four warps in a cycle.
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
    """A kernel as a GPU would run it.

    Attributes:
        kernel: the name of its function.
        what: what it computes: sizes of an image's tensors, a window's side and stride.
        architecture: compute capability, 90 for 9.0.
        count: how often the network launches it so.
        registers: of a lane.
        spilled: bytes of a lane that did not fit into registers.
        shared: bytes of a program.
        instructions: of a lane for each number of its result (of the gradients that it sums, where it sums them); None
            where a loop's length depends on the data.
        seconds: in which the GPU can start all of them.
        floor: seconds in which its memory can read and write every tensor of the launch once.
    """

    kernel: str
    what: str
    architecture: int
    count: int
    registers: int
    spilled: int
    shared: int
    instructions: float | None
    seconds: float | None
    floor: float


def compiled(name: str, architecture: int) -> list[Compiled]:
    """What a kernel of the catalogue launches in EfficientNet-B0 at batch 256, or in its example if not there.

    Element types are bfloat16; `depthwise_backward` is training, `depthwise` and `pointwise` are inference.

    Raises:
        ValueError: no such kernel or architecture, or Triton is not installed or interprets.
    """
    if architecture not in GPUS:
        raise ValueError(f"architecture must be one of {', '.join(map(str, GPUS))}, not {architecture}")
    return [_measured(what, launch, architecture, count) for what, launch, count in launches(name)]


def launches(name: str) -> list[tuple[str, Launch, int]]:
    """What `compiled` compiles: each launch with what it computes, and how often the network has it.

    Raises:
        ValueError: no such kernel, or Triton is not installed or interprets.
    """
    catalogue.describe(name)
    if not HAS_TRITON:
        raise ValueError("kernels are compiled by Triton, which is not installed")
    if INTERPRETED:
        raise ValueError("TRITON_INTERPRET=1 has kernels interpreted, not compiled: unset it")
    found: dict[tuple[str, str], tuple[Launch, int]] = {}
    for what, call in _calls(name):
        with noting() as noted:
            call()
        for launch in noted:
            key = (launch.kernel.__name__, what)
            found[key] = (launch, found[key][1] + 1 if key in found else 1)
    return [(what, launch, count) for (_, what), (launch, count) in found.items()]


def _calls(name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    if name not in ("depthwise", "depthwise_backward", "pointwise"):
        # The sides of what resident keeps: CIFAR's where pixels are moved, ImageNet's where images are resized.
        side = 32 if name == "augment" else 224
        yield f"3 x {side} x {side}", catalogue.example(name, "triton", BATCH, side, "bfloat16", "meta")
        return
    for channels, side, kernel, stride, out, residual in bottlenecks():
        after = (side - 1) // stride + 1
        x, y = _maps(channels, side), _maps(channels, after)
        weight = _empty(channels, 1, kernel, kernel)
        what = f"{channels} x {side} x {side}, {kernel} x {kernel}, stride {stride}"
        if name == "depthwise":
            run = depthwise.DEPTHWISE.implementations["triton"]
            yield what, partial(run, x, weight, _empty(channels), stride, "silu")
        elif name == "pointwise":
            added = _maps(out, after) if residual else None
            what = f"{channels} to {out} x {after} x {after}{', added' if residual else ''}"
            run_project = pointwise.SCALED_POINTWISE.implementations["triton"]
            scale, weights, bias = _empty(BATCH, channels), _empty(out, channels, 1, 1), _empty(out)
            yield what, partial(run_project, y, scale, weights, bias, added)
        else:
            of_input = depthwise_backward.GRAD_INPUT.implementations["triton"]
            of_weight = depthwise_backward.GRAD_WEIGHT.implementations["triton"]
            yield f"{what}, forward", partial(depthwise_backward.FORWARD.implementations["triton"], x, weight, stride)
            yield f"{what}, of the input", partial(of_input, y, weight, stride, side, side)
            yield f"{what}, of the weights", partial(of_weight, y, x, stride, kernel)


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


def _measured(what: str, launch: Launch, architecture: int, count: int) -> Compiled:
    gpu = GPUS[architecture]
    usage, once, repeated = read(binary(launch, architecture))
    tensors = {
        name: value
        for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False)
        if isinstance(value, torch.Tensor)
    }
    instructions = seconds = None
    if not repeated or launch.passes:
        warps = math.prod(launch.grid) * launch.warps
        started = float(warps * (once + repeated * launch.passes))
        seconds = started / (gpu.multiprocessors * STARTED * gpu.clock)
        instructions = started * 32 / tensors["out_ptr" if "out_ptr" in tensors else "grad_ptr"].numel()
    # Where a kernel has no use for a tensor it is given another one again.
    moved = sum(
        tensor.numel() * tensor.element_size() for tensor in {id(each): each for each in tensors.values()}.values()
    )
    return Compiled(
        launch.kernel.__name__.strip("_"),
        what,
        architecture,
        count,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        usage["SHARED"],
        instructions,
        seconds,
        moved / gpu.bandwidth,
    )


def binary(launch: Launch, architecture: int) -> bytes:
    """The machine code that Triton makes of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values = {**dict(zip(kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
    for place, name in enumerate(kernel.arg_names):
        value = values[name]
        if name in launch.constants or (type(value) is int and value == 1):
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
