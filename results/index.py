"""What the files of a folder hold, remembered, so that only new ones are read.

A cache, never the truth: an entry counts while its file has the same size, time and inode, and whatever is wrong with
the index costs time alone. It lies in the user's own cache folder, since SQLite cannot be shared over a network.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import signal
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from results.series import Content, Point, look

if TYPE_CHECKING:
    from results.changes import Places

FOLDER = "index"
"""Of the cache folder."""

_BATCH = 200
"""Files that are kept at a time: what an interruption loses."""

_SHARED_FROM = 500
"""Files from which on starting other processes to read them pays."""

_READERS = 8

_CHANGES = 10_000
"""Answers of `judged` that are kept."""

_OF_FILE = ("created", "commit", "dirty", "reference_seconds", "machine", "reference")
_OWN = ("seconds", "low", "high", "images", "operand", "metric")
"""What all points of a file share beside its path, and what each has of its own."""


_DECODER = json.JSONDecoder()


class Progress(Protocol):
    """What shows how far it is: bench.screen.Screen."""

    def say(self, text: str) -> None: ...

    def steps(self, what: str, done: int, total: int) -> None: ...

    def clear(self) -> None: ...


class Index:
    """Remembers what the files of a folder hold, and where series changed; to be used in a `with` statement.

    Args:
        folder: of stored results.
        cache: the user's cache folder.
    """

    def __init__(self, folder: Path, cache: Path, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
        self.path = cache / FOLDER / f"{name}.sqlite"
        self._file: sqlite3.Connection | None = None
        self._collecting = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except sqlite3.Error as error:
            self._failed(error)
        except OSError as error:
            self._without(error.strerror or str(error))

    def __enter__(self) -> Self:
        # Of so many small objects none is garbage, and looking for it takes a fourth of the time.
        self._collecting = gc.isenabled()
        gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self.progress.clear()
        if self._collecting:
            gc.enable()

    def contents(self, files: Sequence[Path]) -> list[Content]:
        """What each file holds; those that the index does not know as they are now are read."""
        # The state comes before the content: what changes meanwhile is read again next time.
        states = [_state(file) for file in files]
        names = [os.fsencode(file.name) for file in files]
        known = self._known(names)
        found = [
            _content(known[name][1], file) if name in known and known[name][0] == state else None
            for file, name, state in zip(files, names, states, strict=True)
        ]
        new = [i for i, content in enumerate(found) if content is None]
        batch: list[tuple[bytes, str, str]] = []
        for done, (i, content) in enumerate(zip(new, _read([files[i] for i in new]), strict=True), 1):
            found[i] = content
            if states[i] and not content.passing:
                batch.append((names[i], states[i], _text(content)))
            if len(batch) == _BATCH or done == len(new):
                self._write("insert or replace into files values (?, ?, ?)", batch)
                batch = []
            self.progress.steps("reading stored results", done, len(new))
        if new:
            self._forget_removed()
        return [content for content in found if content is not None]

    def judged(self, values: Sequence[float], margin: float) -> Places:
        """`changes.judged`, remembered by what it was asked."""
        key = hashlib.sha256(array("d", (margin, *values)).tobytes()).digest()
        for (text,) in self._ask("select places from changes where series = ?", (key,)):
            with suppress(ValueError):
                return [(at, p) for at, p in json.loads(text)]
        from results.changes import judged

        places = judged(values, margin)
        self._write("insert or replace into changes values (?, ?)", [(key, json.dumps(places))])
        self._write("delete from changes where rowid <= (select max(rowid) from changes) - ?", [(_CHANGES,)])
        return places

    def _open(self) -> None:
        file = self._file = sqlite3.connect(self.path)
        [version] = file.execute("pragma user_version").fetchone()
        if version == _version():
            return
        if version:
            # Not emptied but removed: it would keep the room of what it held.
            self._close()
            self._remove()
            file = self._file = sqlite3.connect(self.path)
        with file:
            file.execute("begin immediate")
            file.execute("create table if not exists files (name blob primary key, state text, content text)")
            file.execute("create table if not exists changes (series blob unique, places text)")
            file.execute(f"pragma user_version = {_version()}")

    def _remove(self) -> None:
        for ending in ("", "-journal"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def _forget_removed(self) -> None:
        with suppress(OSError):
            here = set(os.listdir(os.fsencode(self.folder)))
            gone = [row for row in self._ask("select name from files") if row[0] not in here]
            self._write("delete from files where name = ?", gone)

    def _known(self, names: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
        if len(names) > _BATCH:
            rows = self._ask("select name, state, content from files")
        else:
            rows = self._ask(
                f"select name, state, content from files where name in ({', '.join('?' * len(names))})", names
            )
        return {name: (state, content) for name, state, content in rows}

    def _ask(self, question: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return [] if self._file is None else self._file.execute(question, tuple(values)).fetchall()
        except sqlite3.Error as error:
            self._failed(error)
            return []

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            if self._file is not None:
                with self._file:
                    self._file.executemany(statement, rows)
        except sqlite3.Error as error:
            self._failed(error)

    def _failed(self, error: sqlite3.Error) -> None:
        """Begins anew where the file is damaged; goes on without one where it cannot be used."""
        damaged = not isinstance(error, sqlite3.OperationalError)
        self._close()
        if not damaged:
            self._without(str(error))
            return
        self.progress.say(f"note: {self.path} was damaged and is made anew")
        try:
            self._remove()
            self._open()
        except (OSError, sqlite3.Error) as again:
            self._close()
            self._without(str(again))

    def _close(self) -> None:
        if self._file is not None:
            with suppress(sqlite3.Error):
                self._file.close()
            self._file = None

    def _without(self, reason: str) -> None:
        self.progress.say(f"note: what stored results hold is not remembered: {self.path}: {reason}")


@cache
def _version() -> int:
    """Of what is remembered: another one of anything that it follows from makes the index anew."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return int.from_bytes(code.digest()[:3]) + 1


def _state(file: Path) -> str:
    """What changes when a file does; "" where it cannot be told."""
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def _read(files: Sequence[Path]) -> Iterator[Content]:
    """The contents of files, in their order; of many, several at a time."""
    if len(files) < _SHARED_FROM:
        yield from map(look, files)
        return
    cores = min(len(os.sched_getaffinity(0)), _READERS)
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), _ignore_interrupts) as readers:
        yield from readers.map(look, files, chunksize=16)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches all processes of a terminal; the one that started these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _text(content: Content) -> str:
    plain = {field.name: getattr(content, field.name) for field in fields(Content) if field.name != "passing"}
    shared = [getattr(point, name) for _, point in content.points[:1] for name in _OF_FILE]
    points = [[id, *(getattr(point, name) for name in _OWN)] for id, point in content.points]
    return json.dumps({**plain, "points": [shared, points]})


def _content(text: str, file: Path) -> Content | None:
    """None where the text is not what `_text` makes."""
    try:
        plain, _ = _DECODER.raw_decode(text)
        shared, rows = plain["points"]
        points = []
        for id, seconds, low, high, images, operand, metric in rows:
            created, commit, dirty, reference_seconds, machine, reference = shared
            point = Point(
                created, commit, dirty, seconds, low, high, images, reference_seconds, machine, file, operand, metric,
                reference,
            )  # fmt: skip
            points.append((id, point))
        return Content(**{**plain, "points": tuple(points), "operands": tuple(plain["operands"])})
    except (ValueError, TypeError, KeyError):
        return None
