"""Made-up `bench check` reports: decisions from made-up blocks, every verdict, no process."""

import random
from dataclasses import replace
from typing import Any

from results.gate import CheckReport, Fact, Row, SelfTest, Side
from results.verdict import Decision, look

TRAINING = "training/resnet18@amp-nhwc-eager/b4/s64/c1000/cpu"
INFERENCE = "inference/resnet18@bf16-nhwc-compile/b4/s64/c1000/cpu"
LOADING = "loading/dali@bfloat16-nhwc/b32/s64/generated/cpu"

BASE = Side("base", "main", "0123456789abcdef0123456789abcdef01234567")
HEAD = Side("head", "", "fedcba9876543210fedcba9876543210fedcba98", dirty=True)


def decision(shift: float = 0.0, blocks: int = 10, spread: float = 0.003, seed: int = 0) -> Decision:
    """What so many blocks with this change of log time and this scatter say."""
    rng = random.Random(seed)
    return look([shift + rng.gauss(0, spread) for _ in range(blocks)], 0.02)


CLEAN = decision()
SLOWER = decision(0.05)
FASTER = decision(-0.05)
DOUBT = decision(0.01, blocks=24, spread=0.04)
TOO_FEW = decision(blocks=4)

REGRESSED_ROW = Row(TRAINING, "REGRESSED", SLOWER, decision(0.049, seed=1), 0.1021, 0.1074, 4, 23.0)
CLEAN_ROW = Row(INFERENCE, "CLEAN", CLEAN, None, 0.02021, 0.02022, 4, 12.0)
UNSURE_ROW = Row(LOADING, "UNSURE", DOUBT, None, 0.5, 0.51, 32, 12.0)
TOO_FEW_ROW = Row(
    LOADING, "UNSURE", TOO_FEW, None, 0.5, 0.5, 32, 12.0, reason="another process took 60 % of the machine"
)
DISAGREED_ROW = replace(
    REGRESSED_ROW, verdict="UNSURE", again=CLEAN, reason="the first run said REGRESSED, the second CLEAN"
)
IMPROVED_ROW = Row(TRAINING, "IMPROVED", FASTER, decision(-0.05, seed=1), 0.1, 0.095, 4, 23.0)
ERROR_ROW = Row(LOADING, "ERROR", reason="head: the process died (signal SIGSEGV)")
VANISHED_ROW = Row(LOADING, "VANISHED", reason="head: there is no loader 'dali'")
NEW_ROW = Row(LOADING, "NEW", reason="base: there is no loader 'dali'")
ALL_ROWS = (REGRESSED_ROW, CLEAN_ROW, UNSURE_ROW, TOO_FEW_ROW, DISAGREED_ROW, IMPROVED_ROW, ERROR_ROW)

SAME_FACTS = (
    Fact(TRAINING, "parameters", 11689512, 11689512, True),
    Fact(TRAINING, "output", "0.0021", "0.0021", True),
    Fact(INFERENCE, "operators", 60, 60, True),
)
CHANGED_FACTS = (
    Fact(TRAINING, "parameters", 11689512, 11689640, False, ("11,689,512 -> 11,689,640",)),
    Fact(TRAINING, "state_dict", 122, 123, False, ("+ conv1.bias float32[64]", "  fc.weight a -> b")),
    Fact(INFERENCE, "operators", 60, 60, False, ("- relu 1", "+ gelu 1")),
)

PASSED = SelfTest(INFERENCE, CLEAN, SLOWER)
FAILED = SelfTest(INFERENCE, SLOWER, SLOWER, ("REGRESSED base against itself: +5.1 % time, 10 blocks; expected CLEAN",))
IN_DOUBT = SelfTest(INFERENCE, CLEAN, DOUBT)

MACHINE = {"fingerprint": {"device": "cpu", "cpu": "Fabricated Xeon", "cores": 2, "torch": "2.15.0"}}


def report(**changes: Any) -> CheckReport:
    """One in which everything agrees, with changes."""
    words: dict[str, Any] = {
        "facts": SAME_FACTS,
        "rows": (CLEAN_ROW,),
        "self_test": PASSED,
        "seconds": 431.0,
        "machine": MACHINE,
    }
    return CheckReport(BASE, HEAD, **(words | changes))
