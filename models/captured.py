"""Work captured once as a CUDA graph: every launch of it in one."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.errors import ModelError

WARM_UPS = 3  # runs before a capture: libraries choose their algorithms and allocate in the first ones

Captured = tuple[Callable[[], object], tuple[Tensor, ...]]
"""What replays it, and its results, which each replay overwrites."""


def capture(work: Callable[[], tuple[Tensor, ...]]) -> Captured:
    """Run some work on the current CUDA device a few times, then record it: what replays it, and its results.

    Each replay reads and writes where the recorded run did; it is queued on the caller's stream and not waited for.

    Raises:
        ModelError: it cannot be captured, with CUDA's reason.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # Only this thread's own calls may spoil it: a loader's threads allocate and copy meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"this cannot be captured as a CUDA graph: {reason}; use compile") from error
    return partial(_replay, graph, work), results


def _replay(graph: torch.cuda.CUDAGraph, work: Callable[[], tuple[Tensor, ...]]) -> None:
    """Takes `work` along so that what the graph reads, such as an input that only `work` holds, is not given back."""
    graph.replay()
