"""What a parent does when it is interrupted, and whose code its children run."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from bench.processes import bench_command, bench_environment, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_raises(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as asked:
        assert asked() is None
        os.kill(os.getpid(), number)
        assert asked() == f"stopped by {number.name}"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_folder_named_models_in_the_working_directory_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('not ours')")
    command, environ = bench_command(["study", "--help"]), bench_environment()
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "imagenet-resnet50" in done.stdout
