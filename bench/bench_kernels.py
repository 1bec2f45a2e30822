"""Each kernel of kernels/, and the plain PyTorch that it has to beat."""

from collections.abc import Callable


def test_kernel(measure: Callable[[], None]) -> None:
    measure()
