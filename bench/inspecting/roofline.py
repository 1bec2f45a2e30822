"""Ceilings of the device, measured in the same run, and the fraction of them that a workload reaches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.inspecting.cost import Cost
from bench.timing.clock import CLOCKS, time_slice
from models.configuration import PRECISIONS
from models.prepare import dtype_named, set_tf32


@dataclass(frozen=True)
class Ceilings:
    """The best the device can do.

    Attributes:
        precision: of the matrix product.
        flops: FLOP/s of a large matrix product of random data.
        bandwidth: bytes/s of a large copy, counting bytes read and written.
        readings: (flops, bandwidth) of each time that both were measured in this run; the best of them are above.
    """

    precision: str
    flops: float
    bandwidth: float
    readings: Sequence[Sequence[float]] = ()


def measure(device: str, precision: str, threads: int) -> Ceilings:
    """The best of several short runs: a ceiling is what was reached at least once.

    The product is 2048 cubed on a CPU and 8192 cubed on a GPU; the copy is far larger than any cache.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    if device == "cuda":
        set_tf32(PRECISIONS[precision].tf32)
    dtype = dtype_named(PRECISIONS[precision].computed)
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=where).to(dtype)
    b = torch.randn(n, n, device=where).to(dtype)
    out = torch.empty(n, n, device=where, dtype=dtype)
    flops = 2.0 * n**3 / _best(lambda: torch.mm(a, b, out=out), device)
    size = 1 << (30 if device == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    bandwidth = 2.0 * size / _best(lambda: target.copy_(source), device)
    return Ceilings(precision, flops, bandwidth)


def _best(call: Callable[[], object], device: str, repeats: int = 6) -> float:
    call()
    return min(time_slice(call, 2, 0, CLOCKS[device]).seconds_per_step for _ in range(repeats))


def utilisation(cost: Cost, ceilings: Ceilings, images_per_second: float, training: bool) -> float:
    """Model FLOP/s utilisation (MFU): the network's counted FLOPs a second over the matrix product's.

    Chowdhery et al. 2022 (PaLM, appendix B), with a measured ceiling in place of the data sheet's.
    """
    return float(cost.training_flops if training else cost.flops) * images_per_second / ceilings.flops


def fraction(cost: Cost, ceilings: Ceilings, images_per_second: float, batch: int, training: bool) -> float:
    """Fraction of the roof: the shortest time that the ceilings allow for an image over the time it took.

    The shortest time is the larger of FLOPs over the matrix ceiling and traffic over the copy ceiling. Traffic is a
    lower bound: a forward pass writes and reads the output of every convolution and linear layer once, and reads the
    weights once a batch; training also reads each saved output again and writes and reads its gradient (five passes),
    and reads and writes weights, gradients and momentum (eight passes a batch).
    """
    width = dtype_named(PRECISIONS[ceilings.precision].computed).itemsize
    if training:
        traffic = 5.0 * cost.activations * width + 8.0 * cost.weight_bytes / batch
        work = float(cost.training_flops)
    else:
        traffic = 2.0 * cost.activations * width + cost.weight_bytes * width / 4 / batch
        work = float(cost.flops)
    shortest = max(work / ceilings.flops, traffic / ceilings.bandwidth)
    return shortest * images_per_second
