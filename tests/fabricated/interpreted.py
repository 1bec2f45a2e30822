"""Runs code in a process in which Triton's kernels are interpreted: it reads TRITON_INTERPRET when one is defined."""

import json
import os
import subprocess
import sys
from typing import Any


def interpreted(code: str, given: Any = None, timeout: float = 300) -> Any:
    """What `code` prints as JSON; it finds `given` as JSON in its first line of input."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
