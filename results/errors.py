"""The one exception of this package, and where the traceback of any other goes."""

import contextlib
import os
from pathlib import Path


class RecordError(ValueError):
    """A record, a file of one, or a set of samples that cannot be used; the text says what to do about it."""


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's message, shortened; the name of its class where it has none."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Torch puts the traceback of one of its processes in front of what that one says.
    return lines[-1 if "Original Traceback" in text else 0][:most] if lines else type(error).__name__


def keep_traceback(error: BaseException, command: str, *folders: Path, output: str = "") -> str:
    """Store an error's traceback in the first of `folders` that can be written, or else among the temporary files.

    Args:
        command: what was run.
        output: what else belongs to it: the last lines of another process.

    Returns:
        where it is, in words.
    """
    import tempfile
    import time
    import traceback

    text = f"{command}\n\n{''.join(traceback.format_exception(error))}" + (f"\n{output}\n" if output else "")
    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (*folders, None):
        with contextlib.suppress(OSError):
            # Asking for the temporary folder fails where none can be written.
            path = (folder or Path(tempfile.gettempdir())) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(text.encode("utf-8", "backslashreplace"))
            except OSError:
                path.unlink(missing_ok=True)
                raise
            return f"traceback: {path}"
    return "its traceback could not be written to any place; BENCH_DEBUG=1 prints it"
