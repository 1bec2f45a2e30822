"""What a command takes for granted of its surroundings, and what stands in where it is missing.

A home folder, a name of the user, folders that can be written, a terminal that takes every character, git: containers
and batch systems lack one or the other, and libraries fail in ways that do not say so.
"""

import codecs
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.processes import SOURCE
from loaders.cache import temporary_folder, unwritable, usual_folder

# Where Python looks for a user's name before it asks the system.
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
# Variable of a library -> the folder that it may use where there is no home to put its own in.
LIBRARY_FOLDERS = {"MPLCONFIGDIR": "matplotlib", "TRITON_CACHE_DIR": "triton", "TORCH_HOME": "torch"}
# Characters of our own texts, for a stdout that takes ASCII only.
_PLAIN = {"…": "...", "°": "deg ", "±": "+-", "²": "^2", "×": "x", "→": "->", "–": "-", "—": "-", "µ": "u"}
_HANDLER = "bench-plain"


def stand_in() -> None:
    """Give this process and its children what libraries take for granted and this machine lacks.

    Nothing is changed where a user has a name and a home that can be written; a stdout that cannot show a character
    shows how it is written in ASCII, and what is said on a stderr that is closed goes nowhere.
    """
    if sys.stderr is None:
        # Closed (2>&-): the next file that is opened would get its number, and all that is printed as an error.
        null = os.open(os.devnull, os.O_WRONLY)
        if null != 2:
            os.dup2(null, 2)
            os.close(null)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error(_HANDLER, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
    if user():
        os.environ["USER"] = _stand_in_name()
    if home():
        try:
            folder = temporary_folder()
        except OSError:
            return
        for variable, name in LIBRARY_FOLDERS.items():
            os.environ.setdefault(variable, str(folder / name))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters), error.end


def _stand_in_name() -> str:
    return f"user-{os.getuid()}"


def user() -> str:
    """Why this user has no name; "" for one who has."""
    if any(os.environ.get(name) not in (None, "", _stand_in_name()) for name in NAMES):
        return ""
    import pwd

    try:
        return "" if pwd.getpwuid(os.getuid()).pw_name else f"user {os.getuid()} has no name"
    except KeyError:
        return f"user {os.getuid()} has no name on this machine"


def home() -> str:
    """Why there is no home folder that can be written; "" where there is one."""
    try:
        return unwritable(Path.home())
    except RuntimeError:
        return "HOME is not set, and the system knows no home folder of this user"


def temporary() -> str:
    """Why the place for temporary files is not the one asked for; "" if it is."""
    try:
        used = tempfile.gettempdir()
    except FileNotFoundError:
        return "no folder for temporary files can be written"
    wanted = os.environ.get("TMPDIR") or "/tmp"
    return "" if os.path.realpath(used) == os.path.realpath(wanted) else f"{wanted} cannot be written: {used} is used"


def working_folder() -> str:
    """Why nothing can be written into the working folder; "" if it can."""
    try:
        return unwritable(Path.cwd())
    except OSError:
        return "it was removed"


def git() -> str:
    """Why git does not say which commit this code is; "" if it does, or if the code is not in a checkout."""
    if shutil.which("git") is None:
        return "not installed: records carry no commit"
    if not (SOURCE / ".git").exists():
        return ""
    try:
        words = ["git", "-C", str(SOURCE), "rev-parse", "HEAD"]
        done = subprocess.run(words, capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not run: {error}"
    reason = done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
    return "" if done.returncode == 0 else f"it refuses {SOURCE}: {reason[0].removeprefix('fatal: ')}"


def encoding() -> str:
    """In which encoding texts and paths are, if that has not every character; "" for UTF-8."""
    names = {getattr(sys.stdout, "encoding", None) or "utf-8", sys.getfilesystemencoding()}
    others = sorted(name for name in names if codecs.lookup(name).name != "utf-8")
    return f"texts and paths are in {' and '.join(others)}: other characters are spelled out" if others else ""


def cache() -> str:
    """Why the usual cache folder cannot be used; "" if it can."""
    return usual_folder()[1]


LOOKS: dict[str, Callable[[], str]] = {
    "home": home,
    "user": user,
    "cache": cache,
    "temporary files": temporary,
    "working folder": working_folder,
    "git": git,
    "encoding": encoding,
}


def gaps() -> dict[str, str]:
    """What is missing -> why."""
    return {subject: reason for subject, look in LOOKS.items() if (reason := look())}
