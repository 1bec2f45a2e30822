"""Records as files: one JSON file a run, safe against crashes and other writers.

Knows nothing of what the numbers mean. Files are never changed in place: a new version is written beside the
old one under a temporary name and renamed over it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, NoReturn, Self

from results.errors import RecordError
from results.pytest_json import shared
from results.record import Record

FOLDER = Path(".benchmarks/pixbench")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Where runs go unless told otherwise, relative to the working directory."""

_TEMPORARY = ".tmp"
_OWN = re.compile(r"\d{8}T\d{6}Z-")  # beginning of a file's name that `new_path` chose
_TAG = re.compile(r"\w[\w.-]*")
LOCK = ".lock"
"""Ending of a file that a process holds while it measures what is stored beside it."""


class TakenError(RecordError):
    """A name that has to be new is another file's."""


class Skipped(NamedTuple):
    """A file in a folder of records that is not a usable record, and why."""

    path: Path
    reason: str


class Stored(NamedTuple):
    """A record and the file it came from."""

    path: Path
    record: Record


def new_path(kind: str, folder: Path | str = FOLDER, now: datetime | None = None) -> Path:
    """A file name that no other writer will choose: UTC time, kind, eight random digits. Creates nothing."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return Path(folder) / f"{moment:%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(4)}.json"


def tagged_path(tag: str, folder: Path | str = FOLDER) -> Path:
    """The file of the result that a user named. Raises RecordError: not a name that a file can have."""
    if not _TAG.fullmatch(tag) or _OWN.match(tag):
        raise RecordError(f"{tag!r} cannot name a result; take letters, digits, dots, dashes and underscores")
    return Path(folder) / f"{tag}.json"


def tag_of(path: Path) -> str:
    """The name that a user gave to a stored result, "" if it has none."""
    return "" if _OWN.match(path.name) or not _TAG.fullmatch(path.stem) else path.stem


def save(record: Record, path: Path | str | None = None, new: bool = False) -> Path:
    """Writes the record to `path` (default: a new file in `FOLDER`) and returns the path.

    Beside the record the file has the keys of pytest-benchmark's form, so that its readers read it too.
    An existing file is replaced as a whole or not at all; if it has to be `new`, not at all (TakenError), whoever
    writes it at the same moment. Raises RecordError when the disk is full or the place cannot be written; the previous
    version is then untouched and nothing is left lying about.
    """
    target = new_path(record.kind) if path is None else Path(path)
    text = json.dumps({**record.to_json(), **shared(record)}, indent=1, allow_nan=False) + "\n"
    write_whole(target, text.encode(), new)
    return target


def write_whole(target: Path, data: bytes, new: bool = False) -> None:
    """Puts `data` at `target` in one step, through a temporary file in the same folder.

    What a link points to is replaced, and what is no plain file (a pipe, /dev/null) is written to. Raises RecordError
    saying why and that the previous version is intact; TakenError if it has to be `new` and is there.
    """
    device = target.is_relative_to("/dev") and not target.is_relative_to("/dev/shm")
    if not device and target.is_symlink():
        target = Path(os.path.realpath(target))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        if device or (target.exists() and not target.is_file() and not target.is_dir()):
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                # Without this a power cut may leave the new name pointing at an empty file.
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                # Whoever may read the old version may read the new one, and nobody else.
                temporary.chmod(target.stat().st_mode & 0o7777)
            if new:
                _put_new(temporary, target)
            else:
                temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        kept = "; the previous version is untouched" if target.is_file() else ""
        advice = "free some space or choose another place" if error.errno in FULL else "choose another place"
        raise RecordError(f"cannot write {target}: {error.strerror or error}{kept}; {advice}") from error
    _sync_folder(target.parent)


def check_folder(folder: Path) -> None:
    """Raise RecordError if a file is in the way of a folder that is not there yet."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise RecordError(f"cannot make the folder {folder}: {there} is a file; choose another place")


def _put_new(temporary: Path, target: Path) -> None:
    """Gives a file a name that no other has. Raises TakenError: one has it."""
    try:
        os.link(temporary, target)
        temporary.unlink()
    except FileExistsError:
        raise _taken(target) from None
    except OSError:
        # A file system without hard links. For a moment the name holds nothing, but it is this writer's.
        try:
            target.touch(exist_ok=False)
        except FileExistsError:
            raise _taken(target) from None
        temporary.replace(target)


def refuse_taken(target: Path) -> None:
    """Raises TakenError if there is a file of that name."""
    if target.exists():
        raise _taken(target)


def _taken(target: Path) -> TakenError:
    return TakenError(f"{target} is called {target.stem} already; choose another --tag, or remove that file")


def load(path: Path | str) -> Record:
    """Reads one record. Raises RecordError: what is wrong with the file, what was expected, what to do."""
    path = Path(path)
    return Record.from_json(read_json(path), where=str(path))


def read_text(path: Path, what: str) -> str:
    """The text of a file that should be `what`. Raises RecordError if it cannot be read or is not in UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not text in UTF-8, so not {what}; is it the right file?") from error
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}; is it the right path?") from error


def read_json(path: Path) -> Any:
    """The file's JSON. Raises RecordError for anything that is not a whole JSON document in UTF-8."""
    text = read_text(path, "a stored record")
    if not text.strip():
        raise RecordError(f"{path}: empty; expected the JSON of a stored record; measure again")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        # A document that breaks off is the usual sign of a copy or download that was cut short.
        begun = text.lstrip()[:1] in ("{", "[")
        cut = begun and (error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated"))
        what = (
            "ends in the middle of its JSON; copy it again or measure again"
            if cut
            else (f"not JSON (line {error.lineno}: {error.msg}), so not a stored record; is it the right file?")
        )
        raise RecordError(f"{path}: {what}") from error
    except RecursionError as error:
        raise RecordError(f"{path}: nested too deeply for a stored record; is it the right file?") from error
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from error


def list_folder(folder: Path | str) -> list[Path]:
    """What is in a folder, by name; nothing for one that does not exist. Raises RecordError if it cannot be read."""
    return [Path(entry.path) for entry in _entries(folder)]


def list_folders(folder: Path | str) -> list[Path]:
    """The folders in a folder, by name. Raises RecordError as list_folder."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def list_files(folder: Path | str = FOLDER) -> tuple[list[Path], list[Skipped]]:
    """The .json files of a folder, by name, and every other file there but locks. Raises RecordError as list_folder."""
    files: list[Path] = []
    skipped: list[Skipped] = []
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_dir() or path.suffix == LOCK:
            continue
        if path.name.endswith(_TEMPORARY):
            skipped.append(Skipped(path, "left by a write that is under way or was cut off"))
        elif path.suffix != ".json":
            skipped.append(Skipped(path, "not a .json file"))
        else:
            files.append(path)
    return files, skipped


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    # It tells files from folders without asking for each of them, which takes long on a network.
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.exists(folder) else []
    except OSError as error:
        raise RecordError(f"cannot list {folder}: {error.strerror or error}; is it a folder?") from error


def list_records(folder: Path | str = FOLDER) -> tuple[list[Stored], list[Skipped]]:
    """Every record in `folder`, oldest first, and every other file there with the reason why it was left out.

    A folder that does not exist holds no records. Raises RecordError when it cannot be read.
    """
    stored: list[Stored] = []
    files, skipped = list_files(folder)
    for path in files:
        try:
            stored.append(Stored(path, load(path)))
        except RecordError as error:
            skipped.append(Skipped(path, str(error).removeprefix(f"{path}: ")))
    stored.sort(key=lambda s: (s.record.created, s.path.name))
    return stored, sorted(skipped)


def same_machine(a: Record | Mapping[str, Any], b: Record | Mapping[str, Any]) -> list[str]:
    """What differs between the machines of two records, one text a field; empty when they may be compared.

    Compares `machine["fingerprint"]`; a field that only one side has differs too. Takes records or their
    `machine`.
    """
    sides = [x.machine if isinstance(x, Record) else x for x in (a, b)]
    left, right = (side.get("fingerprint") for side in sides)
    if not isinstance(left, Mapping) or not left:
        return ["fingerprint: missing in the first record"]
    if not isinstance(right, Mapping) or not right:
        return ["fingerprint: missing in the second record"]
    fields = list(left) + [f for f in right if f not in left]
    return [
        f"{f}: {_side(left, f)} against {_side(right, f)}"
        for f in fields
        if f not in left or f not in right or left[f] != right[f]
    ]


def _side(fingerprint: Mapping[str, Any], name: str) -> str:
    if name not in fingerprint:
        return "(not recorded)"
    value = fingerprint[name]
    return "none" if value is None else str(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which JSON does not have; it was not written by this program")


class GrowingFile:
    """A file that a run adds to: what is added reaches the disk at `flush`, and closing flushes."""

    def __init__(self, path: Path, binary: bool = False, alone: bool = False) -> None:
        """Opens `path` for adding; `alone`: while it is open, no other process does so with the same wish.

        Raises RecordError where it cannot be written, or another process is adding to it.
        """
        self._path = path
        self._file: IO[Any]
        try:
            self._file = path.open("ab") if binary else path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror or error}") from error
        if alone:
            self._lock()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RecordError(
                f"another command is adding to {self._path}; wait for its end, or name another file"
            ) from None
        except OSError:
            # A file system without locks.
            pass

    @property
    def path(self) -> Path:
        return self._path

    def flush(self) -> None:
        """Puts everything on the disk. Raises RecordError when it is full."""
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                # It tries once more to write what could not be written.
                with contextlib.suppress(OSError):
                    self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordError(f"cannot write {self._path}: {error.strerror or error}; free some space") from error


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself survive a power cut; where a folder cannot be opened nothing else is lost.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
