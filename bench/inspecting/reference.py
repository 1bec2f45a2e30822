"""The pinned reference: a fixed piece of work whose time says how fast a machine is at the moment.

A time divided by the reference's stays comparable when the machine changes. The work under an id never changes.
"""

import statistics
from collections.abc import Sequence
from typing import Any

ID = "matmul-512-fp32-v1"
SLICES = 9


def to_record(blocks: Sequence[float]) -> dict[str, Any]:
    """The `reference` of a record: its id, the seconds of each block, and their median."""
    return {"id": ID, "seconds": statistics.median(blocks), "blocks": list(blocks)}


def measure(device: str, threads: int) -> float:
    """Seconds of one product of two 512 x 512 fp32 matrices: the median of nine slices of about 10 ms."""
    import torch

    from bench.timing.clock import CLOCKS, time_slice

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    out = torch.empty_like(a)

    def step() -> Any:
        return torch.mm(a, b, out=out)

    clock = CLOCKS[device]
    first = time_slice(step, 5, 5, clock).seconds_per_step
    steps = max(1, round(0.01 / max(first, 1e-7)))
    return statistics.median(time_slice(step, steps, 1, clock).seconds_per_step for _ in range(SLICES))
