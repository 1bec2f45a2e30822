"""Kernels where there is no GPU: Triton's interpreter reads TRITON_INTERPRET when a kernel is defined."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from kernels.runtime import HAS_TRITON, INTERPRETED

# Where the kernels of this process run.
DEVICE = "cpu" if INTERPRETED else "cuda"
# Of a unit in the last place: the interpreter cuts off what a GPU rounds to the nearest.
ROUNDING = 1.0 if INTERPRETED else 0.5


def _loop_ends_at_a_number_of_its_own() -> bool:
    """Whether the interpreter can: that of Triton 3.6 converts it in a way that numpy 2.5 no longer has."""
    import triton
    from triton import language as tl
    from triton.runtime.errors import InterpreterError

    @triton.jit
    def count(end: Any, out: Any) -> None:
        for i in range(tl.load(end)):
            tl.store(out + i, 1)

    found = torch.zeros(3, dtype=torch.int32)
    try:
        count[(1,)](torch.tensor([2], dtype=torch.int32), found)
    except InterpreterError:
        return False
    # One that ends it elsewhere fails the tests.
    return True


loops_end = pytest.mark.skipif(
    INTERPRETED and HAS_TRITON and not _loop_ends_at_a_number_of_its_own(),
    reason="this version of Triton's interpreter and numpy cannot end a loop at a number that the kernel computes",
)
runs_kernels = pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA device")


def interpreting(command: list[str], text: str | None = None, timeout: float = 300) -> str:
    """What a command prints while Triton's kernels are interpreted; it fails the test if the command fails."""
    done = subprocess.run(
        [sys.executable, *command],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def interpreted(code: str, given: Any = None) -> Any:
    """What `code` prints as JSON; it finds `given` as JSON in its first line of input."""
    return json.loads(interpreting(["-c", code], json.dumps(given)))
