"""Forward passes: one image at a time, and a whole batch."""

from collections.abc import Callable


def test_latency(measure: Callable[[], None]) -> None:
    measure()


def test_inference(measure: Callable[[], None]) -> None:
    measure()
