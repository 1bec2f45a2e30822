"""Lines survive a kill, and what is no row is refused by its number."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from results.errors import RecordError
from results.lines import LineFile, read_lines


@dataclass(frozen=True)
class Row:
    name: str
    words: tuple[str, ...] = ()


def test_rows_are_added_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with LineFile(path) as file:
        file.add(Row("a", ("x", "y")))
        assert read_lines(Row, path) == [Row("a", ("x", "y"))], "on the disk at once"
    with path.open("a") as torn:
        torn.write('{"name": "b", "wo')
    assert read_lines(Row, path) == [Row("a", ("x", "y"))]
    with LineFile(path) as file:
        file.add(Row("c"))
    assert read_lines(Row, path) == [Row("a", ("x", "y")), Row("c")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a"}\n{"name": 2}\n', "line 2: name: expected text"),
        ('{"name": "a", "colour": "red"}\n', "line 1: unknown key 'colour'"),
        ("[]\n", "line 1"),
        ("name\n", "line 1: Expecting value"),
    ],
)
def test_other_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        read_lines(Row, path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        read_lines(Row, tmp_path / "none.jsonl")
    with pytest.raises(RecordError, match="cannot write"):
        LineFile(tmp_path / "none" / "rows.jsonl")


def test_two_commands_do_not_add_to_the_same_file(tmp_path: Path) -> None:
    """The second one would take a line that the first one is writing for a torn one."""
    path = tmp_path / "rows.jsonl"
    with LineFile(path), pytest.raises(RecordError, match="another command is adding to .*rows.jsonl"):
        LineFile(path)
    with LineFile(path):
        pass
