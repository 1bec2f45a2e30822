"""Measured figures in the texts are those of published records; `make texts` writes them.

A figure stands between two comments, which a page does not show. The first one names the record:

    <!--= RECORD KEY... :FORMAT -->2.38 [2.33, 2.47]<!--/-->

RECORD is the end of a path below results/published/. Each KEY (in quotes if it has spaces) leads further into it:

- a key of an object; of a list, the member whose first value, or beginning, it is, or else that column of every member;
- NAME=VALUE, the members of a list with that value; NAME=A/B, those with A divided by those with B, one by one;
- of a text file, the table below a heading, or a line's beginning: that line and those up to the next empty one.

Numbers of several members are shown from the lowest to the highest, the members themselves as how many they are. FORMAT
is one of `FORMATS` or Python's own for numbers. The table of ratios has one comment of several lines: see `ratios`.
"""

import csv
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from results.comparison import compare_table, sentences
from results.errors import RecordError
from results.profile import KIND, Profile
from results.profile import text as profile_text
from results.record import Ratio, Record
from results.tables import duration, folded, percent, plural, ratio_text, render
from results.verdict import compare_verdict, margin_of, topic

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results/published"
TEXTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    # The table of image files is a test's own.
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "images"),
)
WIDTH = 120
FIGURE = re.compile(r"(?P<open><!--= (?P<reference>.*?)-->)(?P<figure>.*?)(?P<close><!--/-->)", re.DOTALL)

# What looks measured: a decimal, a number with a unit, a ratio, an interval, a share of a count.
MEASURED = re.compile(
    r"(?<![\w.,])[-+±]?\d[\d,]*(?:\.\d+|(?:\.\d+)?(?:x| ?(?:%|[KMGT]i?B(?:/s)?|[MGT]FLOP(?:/s)?|[mun]?s|min|h|[mk]?[JW]"
    r"|images/s|times|seconds|minutes|hours))(?!\w)| of \d)"
)
# Rules and options of this program, aims, and versions: nothing that was measured. Each has to occur in the text.
CONSTANTS = {
    "README.md": ("Python 3.11", "about 5 GB"),
    "docs/compare.md": (
        "Python 3.11",
        "95 % confidence",
        "95 % of the best rate",
        "2 or 3 %",
        "5 and 10 %",
    ),
    "docs/configure.md": ("pages of 2 MiB", "4 KiB"),
    "docs/gpu.md": ("in 12 minutes",),
    "docs/guard.md": (
        "slowed by 5 %",
        "python:3.13",
        "98 % interval",
        "(2 %, loaders and end to end 3 %)",
    ),
    "docs/measured.md": (
        "0.95 of the same step",
        "90 %, better 93 %",
        "| 80 % |",
        "| 95 % |",
        "a disk of 100 MiB/s",
    ),
    "docs/measuring.md": (
        "95 % confidence",
        "agree within 1 %",
        "30 s at the latest",
        "0.2 % of the time",
        "did 5 % more",
        "3 % is the margin",
        "95 % at +3 % and 99 % at +5 %",
        "+10 % in",
        "+5 % of device time",
        "+3 % in",
        "+5 % was",
        "by 3 %",
        "5 % longer",
    ),
    "docs/own-network.md": ("times=1.2",),
    "docs/studies.md": (
        "--lr 0.1",
        "--lr 0.175",
    ),
    "docs/train.md": (
        "--lr 0.1",
        "label_smoothing=0.1",
        "--lr 0.175",
        "about 34 GB",  # 126,689 images of 256 x 341 pixels
    ),
    "CHANGELOG.md": (
        "95 % of the best rate",
        "in 12 minutes",
        "from 5 % on, a 99th from 10 % on; both needed 2 %",
        "Triton 3.9",
        "3.10 would",
        "is 150 s now",
        "is 300 s, about half",
        "5 % longer",
        "over 5 times as long",
        "after 30 s at most",
        "10 minutes",
    ),
    "CONTRIBUTING.md": ("Python 3.11",),
}
# The sections of the five studies hold what these have published.
STUDIES = re.compile(r"^## \d\. .*?(?=^## \D)", re.MULTILINE | re.DOTALL)
# No prose: code, and targets of links.
ELSEWHERE = re.compile(r"(?<!`)`(?!`)[^`]+`|\]\([^)]*\)")


class Rows(list[Any]):
    """Members of a list that a key chose, in place of the whole list."""


class FigureError(Exception):
    """A reference that leads nowhere."""


def find(name: str) -> Path:
    """The one published file whose path ends in `name`."""
    found = sorted(path for path in PUBLISHED.rglob(name) if path.is_file())
    if len(found) != 1:
        raise FigureError(f"{len(found)} files below results/published are {name}; expected one")
    return found[0]


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def below(text: str, key: str) -> Any:
    """In a text, the rows of the table below the heading `key`, or the lines from the one that begins with `key` on."""
    lines = text.splitlines()
    start = next(
        (i for i, line in enumerate(lines) if line.startswith("#") and line.lstrip("# ").startswith(key)), None
    )
    if start is not None:
        table = [
            line for line in "\n".join(lines[start + 1 :]).partition("\n#")[0].splitlines() if line.startswith("|")
        ]
        return [dict(zip(cells(table[0]), cells(line), strict=True)) for line in table[2:]]
    start = next((i for i, line in enumerate(lines) if line.startswith(key)), None)
    if start is None:
        raise FigureError(f"no heading and no line begins with {key!r}")
    return "\n".join(lines[start:]).partition("\n\n")[0]


def contents(path: Path) -> Any:
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else text


def number(value: Any) -> float | int:
    """A number, also out of the text of a cell: "5.38 %" is 0.0538."""
    if isinstance(value, (int, float)):
        return value
    found = re.fullmatch(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)( ?%)?", str(value))
    if found is None:
        raise FigureError(f"{value!r} is no number")
    digits = found[1].replace(",", "")
    return float(digits) / 100 if found[2] else float(digits) if re.search("[.e]", digits) else int(digits)


def selected(rows: list[Any], name: str, value: str) -> Rows:
    """The rows with that value; of "a/b", those with a divided by those with b, column by column."""
    found = Rows(row for row in rows if str(row[name]) == value)
    if found or "/" not in value:
        return found
    above, under = ([row for row in rows if str(row[name]) == side] for side in value.split("/"))
    return Rows(
        {key: number(a[key]) / number(b[key]) for key in a if key != name and number(b[key])}
        for a, b in zip(above, under, strict=True)
    )


def step(data: Any, key: str) -> Any:
    """One key further into a record."""
    if isinstance(data, str):
        return below(data, key)
    if isinstance(data, list):
        name, equals, value = key.partition("=")
        if equals:
            return selected(data, name, value)
        found = [row for row in data if row == key or (isinstance(row, dict) and next(iter(row.values())) == key)]
        found = found or [row for row in data if isinstance(row, str) and row.startswith(key)]
        if len(found) > 1:
            raise FigureError(f"{len(found)} members are {key!r}")
        if not found and not all(isinstance(row, dict) and key in row for row in data):
            raise FigureError(f"no member and no column is {key!r}")
        return found[0] if found else [row[key] for row in data]
    if not isinstance(data, Mapping) or key not in data:
        raise FigureError(f"no key {key!r}" + (f"; known: {', '.join(data)}" if isinstance(data, Mapping) else ""))
    return data[key]


def block(data: Any) -> str:
    """A whole comparison, profile or piece of text as the commands print it."""
    if isinstance(data, dict):
        data = profile_text(Profile.from_json(data)) if data["kind"] == KIND else compare_table(Record.from_json(data))
    lines = "\n".join(folded(line, WIDTH) for line in str(data).rstrip("\n").splitlines())
    return f"\n```\n{lines}\n```\n"


def table(data: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, without the columns that are the same in all of them."""
    headers = [name for name in data[0] if len({row[name] for row in data}) > 1]
    return "\n" + render(headers, [[row[name] or "-" for name in headers] for row in data], "markdown")


FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: percent(number(value)),
    "duration": lambda value: duration(number(value)),
    "inverse": lambda value: ratio_text(Ratio(**value).inverse()),
    "text": block,
    "sentences": lambda value: block("\n".join(sentences(Record.from_json(value)))),
    "table": table,
    "markdown": lambda value: f"\n{value}\n",
}


def shown(value: Any, form: str = "") -> str:
    if form in ("text", "sentences", "table", "markdown"):
        return FORMATS[form](value)
    if isinstance(value, Rows):
        return f"{len(value):,}"
    if isinstance(value, list) and len(value) == 1:
        return shown(value[0], form)
    if isinstance(value, list):
        if not value:
            raise FigureError("no members have that value")
        low, high = (shown(end, form) for end in (min(value, key=number), max(value, key=number)))
        return high if low == high else f"{low.removesuffix(' %') if high.endswith(' %') else low} to {high}"
    if form in FORMATS:
        return FORMATS[form](value)
    if isinstance(value, Mapping) and "estimate" in value:
        return ratio_text(Ratio(**value))
    if form:
        return format(number(value), form).replace("%", " %")
    if isinstance(value, (str, int)):
        return f"{value:,}" if isinstance(value, int) else value
    raise FigureError(f"{str(value)[:80]} needs a format: one of {', '.join(FORMATS)}, or one of Python's")


def ratios(lines: list[str]) -> str:
    """The block of several lines, each RECORD METRIC [OPERAND] [| AIM]: a table of how operands compare."""
    rows = []
    for line in lines:
        source, _, aim = line.partition("|")
        name, metric, *only = source.split()
        chosen = [
            (found, ratio)
            for found in Record.from_json(contents(find(name))).metrics
            for ratio in found.comparisons
            if found.name == metric and (not only or ratio.of in only)
        ]
        if not chosen:
            raise FigureError(f"{name} has no ratio {' '.join((metric, *only))}")
        for found, ratio in chosen:
            confidence = "-" if ratio.confidence is None else percent(ratio.confidence)
            rows.append(
                [
                    f"{topic(found, True)}: `{ratio.of}` / `{ratio.to}`",
                    ratio_text(ratio),
                    compare_verdict(ratio, found.better, margin_of(found.name)),
                    f"{confidence}, {plural(ratio.pairs, 'pair')} in {plural(ratio.blocks, 'block')}",
                    aim.strip() or "-",
                    f"`{name}`",
                ]
            )
    return "\n" + render(("what", "ratio", "verdict", "bounds", "aim", "record"), rows, "markdown")


def figure(reference: str) -> str:
    """What stands after a reference. Raises FigureError, naming it, if it leads nowhere."""
    name, *lines = reference.strip().splitlines()
    try:
        if lines:
            return ratios(lines)
        record, *keys = shlex.split(name)
        form = keys.pop()[1:] if keys and keys[-1].startswith(":") else ""
        data = contents(find(record))
        for key in keys:
            data = step(data, key)
        return shown(data, form)
    except (FigureError, RecordError, LookupError, ValueError, TypeError) as error:
        raise FigureError(f"{name}: {error}") from error


def filled(text: str) -> str:
    """The text with every figure as its record has it."""
    return FIGURE.sub(lambda found: found["open"] + figure(found["reference"]) + found["close"], text)


def unproven(text: str) -> Iterator[str]:
    """What looks measured and has no reference, each with the line it stands in."""
    for line in ELSEWHERE.sub("", FIGURE.sub("", STUDIES.sub("", text))).splitlines():
        for found in MEASURED.finditer(line):
            yield f"{found[0]}: {line.strip()}"


@pytest.mark.parametrize("name", TEXTS)
def test_figures_are_those_of_their_records(name: str) -> None:
    written = (ROOT / name).read_text("utf-8")
    assert written == filled(written), "figures differ from their records: make texts"


@pytest.mark.parametrize("name", TEXTS)
def test_what_looks_measured_names_its_record(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    constants = CONSTANTS.get(name, ())
    gone = [phrase for phrase in constants if phrase not in text]
    assert not gone, f"{name} has these no longer; take them out of CONSTANTS"
    for phrase in constants:
        text = text.replace(phrase, "")
    found = list(unproven(text))
    assert not found, "name the record of these figures as the docstring says, or say it without a number"


@pytest.mark.parametrize("name", TEXTS)
def test_no_line_begins_with_a_figure(name: str) -> None:
    # Markdown takes a line that begins with a comment for HTML, and shows the rest of it as it is.
    for found in FIGURE.finditer((ROOT / name).read_text("utf-8")):
        before = found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()]
        whole = found["figure"].startswith("\n")
        assert whole == (not before.strip(" >*-")), f"begin another line than with {found['open']}"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys.modules[__name__], "PUBLISHED", tmp_path)
    ratio = {
        "of": "a",
        "to": "b",
        "estimate": 2.0,
        "low": 1.6,
        "high": 2.5,
        "confidence": 0.95,
        "blocks": 1,
        "pairs": 8,
    }
    (tmp_path / "run.json").write_text(
        json.dumps({"seconds": 95.5, "share": 0.123, "ratio": ratio, "notes": ["a: little", "b: much"]})
    )
    (tmp_path / "turns.csv").write_text("turn,side,rate\n1,new,30\n1,old,10\n2,new,50\n2,old,20\n")
    (tmp_path / "judged.md").write_text("# One\n\n| of | found |\n|:--|--:|\n| all | 5.25 % |\n\n## Two\n\ntook 3 s\n")
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("run.json seconds :duration", "1 min 36 s"),
        ("run.json share :percent", "12 %"),
        ("run.json share :.1%", "12.3 %"),
        ("run.json ratio", "2.0 [1.6, 2.5]"),
        ("run.json ratio :inverse", "0.50 [0.40, 0.62]"),
        ("run.json notes b:", "b: much"),
        ("turns.csv side=new", "2"),
        ("turns.csv side=new rate", "30 to 50"),
        ("turns.csv side=new/old rate :.1f", "2.5 to 3.0"),
        ("judged.md One of=all found", "5.25 %"),
        ("judged.md One of=all found :.0%", "5 %"),
        ("judged.md took", "took 3 s"),
    ],
)
def test_references(published: Path, reference: str, text: str) -> None:
    assert figure(reference) == text


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("other.json seconds", "0 files"),
        ("run.json second", "no key 'second'; known: seconds"),
        ("run.json notes c:", "no member"),
        ("run.json seconds", "needs a format"),
        ("turns.csv rates", "no column"),
        ("turns.csv side=none rate", "no members"),
        ("judged.md Three", "no heading"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(published: Path, reference: str, says: str) -> None:
    with pytest.raises(FigureError, match=says) as caught:
        figure(reference)
    assert str(caught.value).startswith(reference)


def test_a_wrong_figure_is_replaced(published: Path) -> None:
    assert filled("It took <!--= judged.md took -->2 s<!--/-->.") == "It took <!--= judged.md took -->took 3 s<!--/-->."


@pytest.mark.parametrize(
    "text", ["it is 2.5 times", "2x as fast", "saves 30 %", "needs 3 GiB", "0 of 30 fail", "a 1.8"]
)
def test_what_looks_measured(text: str) -> None:
    assert list(unproven(text))


@pytest.mark.parametrize(
    "text", ["batch 32", "10 epochs", "`--lr 0.1`", "[a](b-1.5.md)", "32 x 32", "see <!--= x -->2 s<!--/-->"]
)
def test_what_does_not_look_measured(text: str) -> None:
    assert not list(unproven(text))


def main() -> None:
    """Write the figures of every text."""
    for name in TEXTS:
        path = ROOT / name
        try:
            path.write_text(filled(path.read_text("utf-8")), "utf-8")
        except FigureError as error:
            sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
