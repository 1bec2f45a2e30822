"""Files of JSON lines, a dataclass each, that grow while a command runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from results.errors import RecordError
from results.reading import read
from results.store import GrowingFile

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class LineFile(GrowingFile):
    """Adds lines to a file; a last line that was torn by a kill is removed first."""

    def __init__(self, path: Path) -> None:
        """Opens `path` for adding. Raises RecordError where it cannot be written."""
        super().__init__(path, binary=True, alone=True)
        with self._writing():
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def add(self, row: DataclassInstance) -> None:
        """Stores a row; on return it is on the disk. Raises RecordError when it is full."""
        with self._writing():
            self._file.write((json.dumps(asdict(row), allow_nan=False) + "\n").encode())
        self.flush()


def read_lines(kind: type[T], path: Path) -> list[T]:
    """The rows of a file; a last line without its end is ignored.

    Raises:
        RecordError: the file cannot be read, or one of its lines holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: {error}") from error
        rows.append(read(kind, row, f"{path}, line {number}"))
    return rows
