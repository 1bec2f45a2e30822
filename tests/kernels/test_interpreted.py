"""The tests that need kernels to run, on a machine without a GPU: Triton's interpreter runs them."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from interpreted import interpreting

from kernels.runtime import HAS_TRITON, INTERPRETED


@pytest.mark.skipif(INTERPRETED or not HAS_TRITON, reason="in a process that interprets, or without Triton")
def test_kernels_equal_their_definitions_under_the_interpreter() -> None:
    report = interpreting(["-m", "pytest", str(Path(__file__).parent), "-m", "gpu", "-q", "-p", "no:cacheprovider"])
    # See loops_end: no later version may skip a test.
    skipped = r"(, \d+ skipped)?" if version("triton").startswith("3.6.") else ""
    assert re.search(rf"^\d+ passed{skipped}, \d+ deselected", report, re.MULTILINE), report
