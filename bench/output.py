"""Where a command's data goes: stdout or a file, in the format that was asked for."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.errors import UsageError

FORMATS = ("text", "markdown", "csv", "json")
PICTURES = Path(".benchmarks/pictures")

output_option = click.option(
    "-o", "--output", default="-", metavar="FILE", show_default=True, help="Write here; - is stdout."
)


def format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--format` and `-o/--output` to a click command; they arrive as `format` and `output`."""
    return click.option(
        "--format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        help="How the table is written.",
    )(output_option(command))


def usual_picture(name: str) -> Path:
    """Where a picture goes for which no file was named; the folder is made. Generated files never lie beside code.

    Raises UsageError: the folder cannot be made.
    """
    make_folder(PICTURES, "name a file with -o")
    return PICTURES / name


def make_folder(folder: Path, advice: str) -> None:
    """Make a folder for files of a command, before the work. Raises UsageError: it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; {advice}") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write into {folder}: permission denied; {advice}")


def check_output(output: str) -> None:
    """Fail before the work, not after it, when `output` cannot be written.

    Raises UsageError: the folder is missing or not writable, or `output` is a folder.
    """
    if output == "-":
        return
    path = Path(output)
    if path.is_dir():
        raise UsageError(f"cannot write to {output}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write to {output}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write to {output}: permission denied")


def write(text: str, output: str) -> None:
    """Write `text` and a final newline to `output` ("-" is stdout).

    Raises UsageError, RecordError: the file cannot be written.
    """
    text = text if text.endswith("\n") else text + "\n"
    if output == "-":
        _write_stdout(text)
        return
    path = Path(output)
    if not _replaceable(path):
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"cannot write to {output}: {error.strerror}") from error
        return
    # Whoever reads it has the old version or the new one, whole, whatever ends this process.
    from results.store import write_whole

    write_whole(path.resolve() if path.is_symlink() else path, text.encode("utf-8", "backslashreplace"))


def _replaceable(path: Path) -> bool:
    """Whether another file may take this one's place: not a device's, a pipe's, or one in a folder that is not ours."""
    if path.parts[:2] in (("/", "dev"), ("/", "proc")) or (path.exists() and not path.is_file()):
        return False
    return os.access(path.resolve().parent, os.W_OK)


def _write_stdout(text: str) -> None:
    if sys.stdout is None:
        raise UsageError("cannot write to stdout: it is closed; name a file with -o")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write to stdout: {error.strerror}") from error
