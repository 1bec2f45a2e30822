"""JPEG files on disk to optimiser updates: loading and training joined."""

from collections.abc import Callable


def test_end_to_end(measure: Callable[[], None]) -> None:
    measure()
