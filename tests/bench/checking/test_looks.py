"""What a check says beside its rows."""

from types import SimpleNamespace
from typing import Any

from bench.checking.looks import doubts
from results.gate import SelfTest


def test_a_step_that_was_not_warm_is_named_whatever_was_found() -> None:
    duel: Any = SimpleNamespace(apart="", ended_early=False, load=[], unsteady=["inference/lenet"], blocks=8)
    assert doubts(duel, [], SelfTest("w", None, None, ())) == [
        "inference/lenet was still getting faster when its warm-up ended"
    ]
