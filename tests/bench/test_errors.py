"""How a command ends that nobody foresaw: exit code 2, one line, and the traceback in a file."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from command_line import ROOT, Ended, bench_here
from PIL import Image
from torch import nn

from bench import cli
from bench.errors import OutOfMemoryError, WorkerError, explained, foreseen
from bench.sides.host import describe
from models.errors import ModelError


def failing(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> Ended:
    """How a command ends that raises this error."""
    monkeypatch.setattr(cli, "app", failing(error))
    return bench_here(cwd=folder, **environment)


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = ended(KeyError("gone\nand more"), monkeypatch, tmp_path)
    done.refused("bench: unexpected KeyError: ", "traceback: ")
    (file,) = (tmp_path / "cache" / "pixbench" / "tracebacks").iterdir()
    assert f"(traceback: {file})" in done.stderr
    text = file.read_text()
    assert text.startswith("bench\n")
    assert "Traceback (most recent call last)" in text
    assert "KeyError" in text


def test_a_traceback_that_no_place_takes_is_left_out_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = ended(KeyError("x"), monkeypatch, tmp_path)
    done.refused("unexpected KeyError: 'x'", "could not be written to any place", "BENCH_DEBUG=1")
    asked = ended(KeyError("x"), monkeypatch, tmp_path, BENCH_DEBUG="1")
    assert asked.returncode == 2
    assert "Traceback (most recent call last)" in asked.stderr


@pytest.mark.parametrize("error", [ModelError("no such model"), OutOfMemoryError("too large")])
def test_what_a_user_can_mend_has_no_file(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = ended(error, monkeypatch, tmp_path)
    assert (done.returncode, done.stderr) == (2, f"bench: {error}\n")
    assert not (tmp_path / "cache").exists()


def test_the_output_of_a_process_that_died_goes_into_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = "\n".join(f"  line {i}" for i in range(50))
    error = WorkerError("the process measuring a ended", output)
    assert str(error).count("\n") == 6
    done = ended(error, monkeypatch, tmp_path)
    done.refused("bench: the process measuring a ended (traceback: ")
    (file,) = (tmp_path / "cache" / "pixbench" / "tracebacks").iterdir()
    assert output in file.read_text()


def test_a_broken_pipe_of_our_own_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended(BrokenPipeError(errno.EPIPE, "Broken pipe"), monkeypatch, tmp_path).refused("Broken pipe")


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_batch_norm_on_a_single_value_is_explained() -> None:
    network = nn.BatchNorm2d(3)
    error = raised(lambda: network(torch.zeros(1, 3, 1, 1)))
    assert "a batch of 2 or more" in foreseen(error)
    wrapped = RuntimeError("the compiler failed")
    wrapped.__cause__ = error
    assert foreseen(wrapped) == foreseen(error)
    assert describe(error)["kind"] == "workload"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "cannot write /x/y: No space left on device; free"),
        (OSError(errno.EFBIG, "File too large"), "cannot write a file: File too large; free"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; choose another place"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/x"), "a link there leads back to itself"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/x: No such file or directory"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "TMPDIR"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "a smaller --batch"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "images was killed"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "images was killed"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (
            RuntimeError("x\nfatal error: error writing to /tmp/a.s: No space left on device\ny"),
            "a disk is full: fatal",
        ),
        (ImportError("libcudart.so.13: cannot open shared object file"), "bench doctor"),
    ],
)
def test_what_a_user_can_do_is_said(error: Exception, words: str) -> None:
    assert words in foreseen(error)
    assert len(foreseen(error).splitlines()) == 1


def test_the_working_folder_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert "is gone" in foreseen(FileNotFoundError(errno.ENOENT, "No such file or directory"))


def test_other_errors_are_named_by_their_class_and_first_line() -> None:
    assert foreseen(KeyError("x")) == ""
    assert explained(KeyError("x")) == "unexpected KeyError: 'x'"
    assert explained(AssertionError()) == "unexpected AssertionError: AssertionError"
    caught = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\nValueError: bad pixel\n'
    )
    assert explained(caught) == "unexpected ValueError: ValueError: bad pixel"


# ---- stdout and stderr ----


def listed(shell: str, tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    words = f"{sys.executable} -P -m bench list loaders {shell}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    shell_words = ["bash", "-c", words]
    return subprocess.run(shell_words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("shell", [">/dev/full", ">/dev/full 2>/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_ends_in_one_line(shell: str, tmp_path: Path) -> None:
    done = listed(shell, tmp_path)
    assert done.returncode == 2
    said = [] if "2>" in shell else done.stderr.splitlines()
    assert all(re.match("bench: cannot write to stdout: ", line) for line in said)
    assert len(said) == ("2>" not in shell)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    done = listed("| head -n 1; echo ${PIPESTATUS[0]}", tmp_path)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_character_is_shown_in_some_way(encoding: str, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "猫…" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "猫…" / "a" / f"{number}.png")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench", "data", "split", "猫…"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u732b..." in done.stdout.decode(encoding)


def test_a_closed_stderr_ends_nothing_and_no_file_takes_its_place(tmp_path: Path) -> None:
    code = """import os, sys
from bench.machine.surroundings import stand_in
stand_in()
with open("file", "w") as file:
    print("lost", file=sys.stderr, flush=True)
    print(file.fileno() > 2, os.readlink("/proc/self/fd/2"))
from bench.screen import Screen
Screen().say("lost too")"""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["bash", "-c", '"$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True /dev/null\n")
    assert (tmp_path / "file").read_text() == ""
