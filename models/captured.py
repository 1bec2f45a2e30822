"""Work on a CUDA device captured once as a graph, so that all its kernels are launched at once."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.errors import ModelError

WARM_UPS = 3  # runs before a capture, in which libraries choose their algorithms and allocate

Captured = tuple[Callable[[], object], tuple[Tensor, ...]]
"""A function that replays the work, and its results, which each replay overwrites."""


def capture(work: Callable[[], tuple[Tensor, ...]]) -> Captured:
    """Run some work on the current CUDA device a few times, then capture it.

    Each replay reads and writes where the captured run did; it is queued on the caller's stream and not waited for.

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
        # Only calls of this thread can break the capture: a loader's threads allocate and copy meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"this cannot be captured as a CUDA graph: {reason}; use compile") from error
    return partial(_replay, graph, work), results


def _replay(graph: torch.cuda.CUDAGraph, work: Callable[[], tuple[Tensor, ...]]) -> None:
    """Holds `work`, so that memory which the graph reads, such as an input that only `work` refers to, is not freed."""
    graph.replay()
