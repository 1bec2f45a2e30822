"""JPEG files on disk to batches on the device, no network."""

from collections.abc import Callable


def test_loading(measure: Callable[[], None]) -> None:
    measure()
