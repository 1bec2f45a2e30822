"""Calls of a repository's own steps: what its settings list."""

from collections.abc import Callable


def test_step(measure: Callable[[], None]) -> None:
    measure()
