"""Optimiser updates on a constant batch."""

from collections.abc import Callable


def test_training(measure: Callable[[], None]) -> None:
    measure()
