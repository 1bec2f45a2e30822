"""Predicted labels as files, and how far two such files agree."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from results.errors import RecordError
from results.store import read_text, write_whole
from results.tables import page, render, to_json

HEADER = ("ID", "Labels")
_SHOWN = 10


class Difference(NamedTuple):
    """One image that the two files label differently; `id` is its line where a file has no ids."""

    id: str
    first: str
    second: str


@dataclass(frozen=True)
class Agreement:
    """How many of `rows` labels are the same, and the first of those that are not."""

    rows: int
    matches: int
    differences: tuple[Difference, ...]

    @property
    def share(self) -> float:
        """Fraction of rows with the same label."""
        return self.matches / self.rows

    def text(self, format: str = "text", files: Sequence[str] = ("first", "second")) -> str:
        """The counts and the first differences; `files` are what csv and json call the two.

        As text "images / labelled alike / share: 10000 / 8908 / 89.08%", and the differences below it.
        """
        counted = {"rows": self.rows, "matches": self.matches, "share": self.share}
        if format == "json":
            differences = [difference._asdict() for difference in self.differences]
            return to_json({"files": list(files), **counted, "differences": differences})
        if format == "csv":
            return render(["first", "second", *counted], [[*files, *counted.values()]], "csv")
        table = render(("ID", "first", "second"), self.differences, format) if self.differences else ""
        share = f"{100 * self.share:.2f}"
        if format == "markdown":
            return page(render(["rows", "matches", "share [%]"], [[self.rows, self.matches, share]], format), table)
        line = f"images / labelled alike / share: {self.rows} / {self.matches} / {share}%"
        wrong, shown = self.rows - self.matches, len(self.differences)
        title = f"first {shown} of {wrong} differences:" if wrong > shown else "all differences:"
        return page(line, f"{title}\n{table}" if table else "")


def submission_csv(ids: Iterable[str | int], labels: Iterable[str | int]) -> str:
    """`ID,Labels` and a row an image. Raises RecordError where ids and labels differ in number, or for an id twice."""
    rows = [[str(i) for i in ids], [str(label) for label in labels]]
    if len(rows[0]) != len(rows[1]):
        raise RecordError(f"{len(rows[0])} ids for {len(rows[1])} labels")
    _check_unique(rows[0], "the submission")
    return render(HEADER, list(zip(*rows, strict=True)), "csv")


def write_predictions(path: Path | str, labels: Iterable[str | int]) -> None:
    """Writes one label a line in the order of the images, the whole file or nothing."""
    lines = [str(label) for label in labels]
    for i, label in enumerate(lines):
        if label.splitlines() != [label.strip()]:
            raise RecordError(f"label {i + 1} is {label!r}, which is not a single line")
    write_whole(Path(path), "".join(f"{label}\n" for label in lines).encode("utf-8", "backslashreplace"))


def read(path: Path | str) -> dict[str, str]:
    """Id -> label in the file's order: of `ID,Labels` rows if the file begins so, else of one label a line.

    A file of labels alone gets its line numbers, from 1, as ids; it may not be called .csv, where a missing header is
    a mistake. Raises RecordError with file and line.
    """
    path = Path(path)
    text = read_text(path, "a file of predictions")
    lines = text.splitlines()
    if not lines:
        raise RecordError(f"{path}: empty; expected the header {','.join(HEADER)} or one label a line")
    if [cell.strip() for cell in lines[0].split(",")] == list(HEADER):
        return _rows(text, path)
    if lines[0].lower().startswith(("id,", "ids,")) or path.suffix.lower() == ".csv":
        raise RecordError(
            f"{path} is no submission: it begins with {lines[0][:60]!r}; expected {','.join(HEADER)} "
            "(bare labels, one a line, are compared as .txt)"
        )
    for i, label in enumerate(lines):
        if not label.strip():
            raise RecordError(f"{path}, line {i + 1}: empty; expected one label a line")
    return {str(i + 1): label.strip() for i, label in enumerate(lines)}


def compare(
    first: Mapping[str, str], second: Mapping[str, str], names: tuple[str, str] = ("the first", "the second")
) -> Agreement:
    """Counts the ids that both label alike; the order of rows does not matter.

    Raises RecordError naming the ids that only one of the two has, and when there are none at all.
    """
    only = [[i for i in a if i not in b] for a, b in ((first, second), (second, first))]
    if any(only):
        said = [f"only in {name}: {_listed(ids)}" for name, ids in zip(names, only, strict=True) if ids]
        raise RecordError(f"the two do not hold the same ids; {'; '.join(said)}")
    if not first:
        raise RecordError("nothing to compare: neither holds a row")
    wrong = [Difference(i, label, second[i]) for i, label in first.items() if label != second[i]]
    return Agreement(len(first), len(first) - len(wrong), tuple(wrong[:_SHOWN]))


def compare_files(first: Path | str, second: Path | str) -> Agreement:
    """`compare` of two files; see `read` for what they may be."""
    return compare(read(first), read(second), (str(first), str(second)))


def _rows(text: str, path: Path) -> dict[str, str]:
    reader = csv.reader(io.StringIO(text))
    next(reader)
    found: dict[str, str] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if len(row) != len(HEADER):
            raise RecordError(f"{where}: {len(row)} cells; expected {','.join(HEADER)}")
        name, label = (cell.strip() for cell in row)
        if not name or not label:
            raise RecordError(f"{where}: an empty {HEADER[0] if not name else HEADER[1]}")
        if name in found:
            raise RecordError(f"{where}: id {name} a second time")
        found[name] = label
    return found


def _check_unique(ids: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    twice: list[str] = []
    for i in ids:
        if i in seen:
            twice.append(i)
        seen.add(i)
    if twice:
        raise RecordError(f"{where}: ids given twice: {_listed(twice)}")


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{', '.join(ids[:_SHOWN])}{more} ({len(ids)})"
