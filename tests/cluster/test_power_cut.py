"""A training on two nodes, one of which is cut off and comes back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRIAL = Path(__file__).with_name("torchrun.sh")


def _namespaces() -> bool:
    """Whether network namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "benchprobe"], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", "benchprobe"], check=True)
    return made


@pytest.mark.night
def test_a_training_goes_on_when_a_node_that_was_lost_is_back(tmp_path: Path) -> None:
    if not _namespaces():
        pytest.skip("needs root and network namespaces (ip netns)")
    source = str(TRIAL.parents[2])
    environ = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": source}
    words = ["bash", str(TRIAL), str(tmp_path), "40", "3000"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "a.log").read_text()[-3000:]
    assert "resuming after epoch" in done.stdout
    assert done.stdout.splitlines()[-1] == "40 epochs, " + " ".join(map(str, range(1, 41)))
