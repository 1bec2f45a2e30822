"""The `bench` command as its user meets it: in this process, or in one of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from bench import cli

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a command ended, with the fields of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str

    def refused(self, *words: str, lines: int = 1) -> None:
        """Assert what holds for every bad input: exit code 2, nothing on stdout, one line on stderr, no traceback.

        Args:
            words: all of them are in what is said.
            lines: of stderr, where the error lists files.
        """
        assert self.returncode == 2, self.stderr
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        # click adds these two where the words themselves are wrong.
        said = [line for line in self.stderr.splitlines() if line and not line.startswith(("Usage: ", "Try "))]
        assert len(said) == lines, self.stderr
        for word in words:
            assert word in self.stderr


def _environment(folder: Path, changes: Mapping[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "TERM": "dumb", **changes}


def bench_here(*words: object, cwd: Path, **environment: str) -> Ended:
    """`bench WORDS` in this process, in the folder `cwd`: for what starting a process would take longer than."""
    arguments = [str(word) for word in words]
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            contextlib.chdir(cwd),
            mock.patch.dict(os.environ, _environment(cwd, environment)),
            mock.patch.object(sys, "argv", ["bench", *arguments]),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            pytest.raises(SystemExit) as ended,
        ):
            cli.run(cli.app, "bench", arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(ended.value.code, int)
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return Ended(ended.value.code, stdout, stderr)


def start_bench(
    *words: object, cwd: Path, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`bench WORDS` as a process in the folder `cwd`, with pipes to read from."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bench", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **_environment(cwd, environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def bench(*words: object, cwd: Path, timeout: float = 300, **options: Any) -> Ended:
    """`bench WORDS` as a process in the folder `cwd`, to its end."""
    with start_bench(*words, cwd=cwd, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return Ended(process.returncode, stdout, stderr)
