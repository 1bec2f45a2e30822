"""This package stays light: what only reads or prints records must not wait for torch, numpy or scipy."""

import subprocess
import sys
from pathlib import Path


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, results.record, results.store, results.stats, results.verdict, results.tables;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"
