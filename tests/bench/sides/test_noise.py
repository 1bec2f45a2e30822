"""Noise of this machine, from real processes."""

import pytest

from bench.sides import noise


@pytest.mark.slow
def test_this_machine_has_noise_that_time_takes_away() -> None:
    said: list[str] = []
    found = noise.measure("cpu", 1, said.append, seconds=0.0)
    assert found.blocks == len(said) == noise.LEAST_BLOCKS
    assert found.pairs > found.blocks
    assert 0 < found.visible(600) < found.visible(180) < found.visible(60)
