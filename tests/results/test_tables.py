"""What a reader sees: units, digits, durations, colour, notes; and what a program reads, untouched."""

import io
import json
import re

import pytest

from results import tables
from results.errors import RecordError

OPERANDS = ("efficientnet_b0", "resnet34")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
    ],
)
def test_who_gets_colour(environ: dict[str, str], terminal: bool, expected: bool) -> None:
    assert tables.coloured(Screen() if terminal else io.StringIO(), environ) is expected
    assert tables.coloured(None, {}) is False


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0.01234, "s", "12.3 ms"),
        (3.2e-7, "s", "320 ns"),
        (75.0, "s", "75.0 s"),
        (87190688, "bytes", "83.2 MiB"),
        (12, "bytes", "12 B"),
        (771734656, "FLOP", "772 MFLOP"),
        (21797672, "parameters", "21.8 M"),
        (8341, "parameters", "8341"),
        (12345, "parameters", "12.3 k"),
        (0.613, "1", "61.3 %"),
        (250000.0, "images/s", "250 k images/s"),
        (9.5e6, "images/s", "9500 k images/s"),
        (1.1e8, "images/s", "110 M images/s"),
        (0.0, "s", "0.00 s"),
        (0.5, "furlong", "0.500 furlong"),
        (None, "s", "-"),
    ],
)
def test_quantity(number: float | None, unit: str, text: str) -> None:
    assert tables.quantity(number, unit) == text


def test_quantity_rounds_where_its_interval_ends() -> None:
    assert tables.quantity(0.012345, "s", 0.0119, 0.0128) == "12.3 ms"
    assert tables.quantity(1234.5, "images/s", 1000.0, 1500.0) == "1230 images/s"


def test_bounds_have_the_digits_of_their_number() -> None:
    assert tables.bounded(0.4, "s", 0.31553, 1.66023) == "400 ms [300, 1700]"
    assert tables.bounded(0.012345, "s", 0.0121, 0.0126) == "12.35 ms [12.10, 12.60]"


def test_one_unit_a_row() -> None:
    assert tables.unit_for([0.5, 0.002], "s") == (1e-3, "ms")
    assert tables.unit_for([1.5, 0.02], "s") == (1.0, "s")
    assert tables.unit_for([None, 2.0**31, 2.0**29], "bytes") == (2.0**30, "GiB")
    assert tables.unit_for([1.2e7, 2e5], "images/s") == (1e6, "M images/s")
    assert tables.unit_for([1.2e7, 90.0], "images/s") == (1.0, "images/s")
    assert tables.unit_for([None], "J") == (1.0, "J")


def test_render() -> None:
    rows: list[list[tables.Cell]] = [["a|b", 1, 0.123456], ["c", 20, None]]
    headers = ["name", "count", "share"]
    text = tables.render(headers, rows)
    assert text.splitlines()[2:] == ["a|b       1  0.123", "c        20      -"]
    assert r"a\|b" in tables.render(headers, rows, "markdown")
    assert tables.render(headers, rows, "csv") == "name,count,share\na|b,1,0.123456\nc,20,\n"
    assert json.loads(tables.render(headers, rows, "json"))[1] == {"name": "c", "count": 20, "share": None}
    assert tables.render(headers, []).startswith("name")
    with pytest.raises(RecordError, match="unknown format"):
        tables.render(headers, rows, "xml")


def test_json_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        tables.to_json({"x": float("nan")})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.85, "850 ms"),
        (9.5, "9.5 s"),
        (59.97, "1 min 0 s"),
        (1906, "31 min 46 s"),
        (15780, "4 h 23 min"),
        (7199.9, "2 h 0 min"),
        (0.0, "0 s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_time_unit() -> None:
    assert tables.time_unit([31906.43, None]) == (60.0, "min")
    assert tables.time_unit([40397.59, 1.0]) == (3600.0, "h")
    assert tables.time_unit([0.02, 0.03]) == (1e-3, "ms")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.384, "38 %"), (0.0996, "10 %"), (0.0341, "3.4 %"), (0.09, "9 %"), (0.00123, "0.12 %"), (0.0, "0 %")],
)
def test_percent(share: float, text: str) -> None:
    assert tables.percent(share) == text


def test_words_around_numbers() -> None:
    assert [tables.plural(n, "run") for n in (0, 1, 1024)] == ["0 runs", "1 run", "1,024 runs"]
    assert tables.signed_percent(-0.0123) == "-1.2 %"
    assert [tables.commit_text(sha, True) for sha in (None, "0123456789abcdef")] == ["-", "0123456789+"]


def test_notes_are_numbered_once_and_folded() -> None:
    footnotes = tables.Footnotes()
    assert [footnotes.mark(text) for text in ("a", None, "b", "a")] == [" (1)", "", " (2)", " (1)"]
    assert footnotes.lines() == ["(1) a", "(2) b"]
    assert tables.notes(["x" * 30 + " 12 %"], "text", width=32) == "x" * 30 + "\n  12 %"
    assert tables.notes(["a", "b"], "markdown") == "- a\n- b"
    assert tables.page("a\n", "", "b") == "a\n\nb\n"


def test_broken_names_keep_to_a_width_where_they_can() -> None:
    assert tables.broken("resnet34@fp32-nchw-eager", 10) == "resnet34@\nfp32-nchw-\neager"
    assert tables.broken("a b/c", 3, "/") == "a b/\nc"


def test_a_path_that_is_not_utf8_can_be_written_and_its_column_stays_straight() -> None:
    path = "caf\udce9"
    lines = tables.render(["path", "n"], [[path, 1], ["b", 22]]).splitlines()
    assert lines == ["path        n", "---------  --", r"caf\udce9   1", "b          22"]
    for format in ("markdown", "csv"):
        assert r"caf\udce9" in tables.render(["path"], [[path]], format)
    assert json.loads(tables.render(["path"], [[path]], "json").encode()) == [{"path": path}]
