"""What bench tune prints of a search."""

import pytest

from bench.commands.tune import _text
from bench.comparing.tuning import Tuning
from bench.machine.tuned import Winner


@pytest.mark.parametrize("unsteady", [[], ["bf16-nhwc-compile"]])
def test_what_was_not_warm_is_named(unsteady: list[str]) -> None:
    winner = Winner("lenet", "inference", "fp32-nhwc-eager", 4, 1.0, None, None, None, {}, "2026-01-01T00:00:00+00:00")
    text = _text(Tuning("inference", "lenet", "fp32-nhwc-eager", winner, unsteady=unsteady), "text")
    assert ("still getting faster when their warm-up ended: bf16-nhwc-compile" in text) == bool(unsteady)
