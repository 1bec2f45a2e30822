"""The history of stored runs: as lists, drawings and pages; found by a part of an id."""

import json
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricated_history import INFERENCE, LOADING, TRAINING, fill, record

from results import report, store, trend
from results.changes import Trend
from results.errors import RecordError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("runs"))


def shown(folder: Path, id: str | None = None, format: str = "text", since: datetime | None = None) -> str:
    series, skipped = trend.load(folder, since)
    assert skipped == []
    if id is not None:
        id = trend.chosen(series, id)
        return trend.one(Trend.of(id, series[id]), format)
    return trend.listing(trend.judge(series), format)


def test_the_worst_change_comes_first(runs: Path) -> None:
    lines = shown(runs).splitlines()
    assert lines[0].split() == ["workload", "points", "a", "step", "last", "change", "when", "commit"]
    assert [line.split()[0] for line in lines[2:]] == [TRAINING, INFERENCE, LOADING]
    assert "+10.0 %  2026-01-21  20aaaaaaaa" in lines[2]
    assert lines[3].split()[-3:] == ["-", "-", "-"]
    assert "-20.0 %" in lines[4]
    assert max(map(len, lines)) <= 110
    assert shown(runs, None, "table") == shown(runs)
    assert shown(runs, None, "markdown").startswith("| workload")


def test_lists_for_machines(runs: Path) -> None:
    data = json.loads(shown(runs, None, "json"))["series"]
    assert [(entry["id"], entry["points"]) for entry in data] == [(TRAINING, 40), (INFERENCE, 40), (LOADING, 40)]
    (change,) = data[0]["changes"]
    assert (change["index"], change["commit"][:2], change["created"][:10]) == (20, "20", "2026-01-21")
    assert change["ratio"] == pytest.approx(1.1)
    assert data[0]["last"]["seconds"] == pytest.approx(0.022, rel=0.01)
    header, first, *_ = shown(runs, None, "csv").splitlines()
    assert header == "id,points,seconds,relative,margin,ratio,created,commit,p"
    assert first.startswith(f"{TRAINING},40,0.022")


def test_a_drawing_fits_a_terminal_and_names_its_changes(runs: Path) -> None:
    text = shown(runs, "training")
    lines = text.splitlines()
    assert lines[0] == TRAINING
    assert "40 runs, the last on 2026-02-09 00:00: 22.18 ms a step (361 images/s)" in lines[1]
    assert max(map(len, lines)) <= 80
    assert text.isascii()
    assert sum(line.count("o") for line in lines if " |" in line) > 20
    assert any(line.strip() == "A" for line in lines)
    assert lines[-1].startswith("A  2026-01-21 20aaaaaaaa: +10.0 % time (20.1 ms -> 22.1 ms), p=")
    assert "2026-01-01" in lines[-3]
    assert "2026-02-09" in lines[-3]


def test_one_series_in_every_format(runs: Path) -> None:
    data = json.loads(shown(runs, TRAINING, "json"))
    assert len(data["points"]) == 40
    assert data["points"][0]["path"].endswith("00.json")
    assert data["margin"] == 0.02
    header, *rows = shown(runs, TRAINING, "csv").splitlines()
    assert header.split(",")[:4] == ["created", "commit", "dirty", "seconds"]
    assert [i for i, row in enumerate(rows) if not row.endswith(",")] == [20]
    assert "| 2026-01-21 00:00 | 20aaaaaaaa |" in shown(runs, TRAINING, "markdown")
    assert "+10.0 %" in shown(runs, TRAINING, "table")
    assert ET.fromstring(shown(runs, TRAINING, "svg")).tag.endswith("svg")


class Page(HTMLParser):
    """Counts tags, and keeps every address that is not of the page itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.outside.append(value)


def test_a_page_needs_no_other_file(runs: Path) -> None:
    trends = trend.judge(trend.load(runs)[0])
    page = Page()
    page.feed(report.page(report.of_trends(trends), "all"))
    assert page.tags.count("svg") == 3
    assert page.outside == []
    assert "script" not in page.tags
    alone = Page()
    alone.feed(report.page(report.of_trends(trends[:1]), "one"))
    assert (alone.tags.count("svg"), alone.tags.count("table")) == (1, 0)


def test_a_part_of_an_id_is_enough_if_only_one_has_it(runs: Path) -> None:
    series, _ = trend.load(runs)
    assert trend.chosen(series, TRAINING) == TRAINING
    assert trend.chosen(series, "pil@") == LOADING
    for text, words in (
        ("lenet", "2 series contain 'lenet': inference/.*, training/.*; name one"),
        ("trainign", "no series contains 'trainign'; did you mean training/lenet"),
        ("qqqq", "no series contains 'qqqq'; bench trend lists them all"),
    ):
        with pytest.raises(RecordError, match=words):
            trend.chosen(series, text)


def test_since_leaves_older_runs_out(runs: Path) -> None:
    since = datetime(2026, 1, 25, tzinfo=UTC)
    text = shown(runs, "training", since=since)
    assert "16 runs" in text
    assert "16 comparable points; a change can be shown from 18 on" in text
    assert "Every series has fewer than 18" in shown(runs, since=since)


def test_machines_are_marked_and_joined_only_by_a_reference(tmp_path: Path) -> None:
    for name, reference in (("apart", None), ("joined", 0.01)):
        for day in range(40):
            old = day < 20
            wave = 1 + 0.002 * (day % 5)
            one = record(
                day,
                {TRAINING: wave * (0.02 if old else 0.01)},
                "old" if old else "new",
                reference and reference * (1 if old else 0.5),
            )
            store.save(one, tmp_path / name / f"{day}.json")
    apart = shown(tmp_path / "apart", "training")
    assert "no change of more than 2 %" in apart
    assert "2 parts from different machines" in apart
    assert any(line.count(":") == 1 and "|" in line for line in apart.splitlines())
    joined = shown(tmp_path / "joined", "training")
    assert "no change of more than 2 %" in joined
    assert "in steps of the pinned reference" in joined
    assert "parts from different machines" not in joined
    assert "2.00" in shown(tmp_path / "joined", "training", "table")


@pytest.mark.parametrize("days", [1, 2, 300])
def test_few_and_many_runs_are_drawn(days: int, tmp_path: Path) -> None:
    for day in range(days):
        store.save(record(day, {TRAINING: 0.02}), tmp_path / f"{day:03d}.json")
    lines = shown(tmp_path, "training").splitlines()
    assert max(map(len, lines)) <= 80
    assert any("o" in line for line in lines[3:])
