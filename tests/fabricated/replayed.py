"""Stands in for CUDA graphs on a CPU."""

from collections.abc import Callable

from torch import Tensor

from models.captured import WARM_UPS, Captured


class Recorder:
    """Captures as CUDA does: the results stay where they are, and each replay writes them anew."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, update: Callable[[], tuple[Tensor, ...]]) -> Captured:
        self.captured += 1
        for _ in range(WARM_UPS):
            update()
        results = tuple(tensor.clone() for tensor in update())

        def replay() -> None:
            for held, new in zip(results, update(), strict=True):
                held.copy_(new)

        return replay, results
