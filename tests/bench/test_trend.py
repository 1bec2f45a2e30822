"""`bench trend`: stored runs as lists, drawings, pages; found by a part of an id."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import cli, trend
from bench.commands.trend import command
from bench.errors import BenchError, UsageError, WorkloadError
from results import store
from results.gate import Row
from results.record import Metric, Record, Value
from results.verdict import CLEAN, REGRESSED, Decision

TRAINING = "training/lenet@fp32-nchw-eager/b8/s32/c10/cpu"
INFERENCE = "inference/lenet@fp32-nchw-eager/b8/s32/c10/cpu"
LOADING = "loading/pil@float32-nhwc/b8/s32/sample-2-100/cpu"
NAMES = {TRAINING: "training_throughput", INFERENCE: "inference_throughput", LOADING: "loader_throughput"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def record(day: int, seconds: Mapping[str, float], machine: str = "m", reference: float | None = None) -> Record:
    metrics = tuple(
        Metric.named(
            NAMES[id],
            {"head": Value.counted(8 / time)},
            batch=8,
            workloads={"head": id},
            pairs=[[{"head": time * (1 + 0.001 * i)} for i in (-1, 0, 1)]] * 6,
        )
        for id, time in seconds.items()
    )
    return Record(
        kind="check",
        created=(START + timedelta(days=day)).isoformat(),
        command="bench check",
        commit={"sha": f"{day:02d}" + "a" * 38, "dirty": False},
        machine={"fingerprint": {"device": machine}},
        operands=("head",),
        metrics=metrics,
        settings={} if reference is None else {"reference": {"id": "matmul", "seconds": reference}},
    )


def fill(folder: Path, **changed: Any) -> Path:
    """Forty runs: training is 10 % slower from the twentieth on, loading 20 % faster, inference as it was."""
    for day in range(40):
        wave = 1 + 0.002 * (day % 5)
        times = {
            INFERENCE: 0.010 * wave,
            TRAINING: 0.020 * wave * (1.1 if day >= 20 else 1),
            LOADING: 0.030 * wave * (0.8 if day >= 25 else 1),
        }
        store.save(record(day, times, **changed), folder / f"{day:02d}.json")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("runs"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def shown(runs: Path, *arguments: str) -> str:
    result = invoke("--store", str(runs), *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def test_the_worst_change_comes_first(runs: Path) -> None:
    lines = shown(runs).splitlines()
    assert lines[0].split() == ["workload", "points", "a", "step", "last", "change", "when", "commit"]
    assert [line.split()[0] for line in lines[2:]] == [TRAINING, INFERENCE, LOADING]
    assert "+10.0 %  2026-01-21  20aaaaaaaa" in lines[2]
    assert lines[3].split()[-3:] == ["-", "-", "-"]
    assert "-20.0 %" in lines[4]
    assert max(map(len, lines)) <= 110
    assert shown(runs, "--format", "table") == shown(runs)
    assert shown(runs, "--format", "markdown").startswith("| workload")


def test_lists_for_machines(runs: Path) -> None:
    data = json.loads(shown(runs, "--format", "json"))["series"]
    assert [(entry["id"], entry["points"]) for entry in data] == [(TRAINING, 40), (INFERENCE, 40), (LOADING, 40)]
    (change,) = data[0]["changes"]
    assert (change["index"], change["commit"][:2], change["created"][:10]) == (20, "20", "2026-01-21")
    assert change["ratio"] == pytest.approx(1.1)
    assert data[0]["last"]["seconds"] == pytest.approx(0.022, rel=0.01)
    header, first, *_ = shown(runs, "--format", "csv").splitlines()
    assert header == "id,points,seconds,relative,margin,ratio,created,commit,p"
    assert first.startswith(f"{TRAINING},40,0.022")


def test_a_drawing_fits_a_terminal_and_names_its_changes(runs: Path) -> None:
    text = shown(runs, "training")
    lines = text.splitlines()
    assert lines[0] == TRAINING
    assert "40 runs, the last of 2026-02-09 00:00: 22.18 ms a step (361 images/s)" in lines[1]
    assert max(map(len, lines)) <= 80
    assert text.isascii()
    assert sum(line.count("o") for line in lines if " |" in line) > 20
    assert any(line.strip() == "A" for line in lines)
    assert lines[-1].startswith("A  2026-01-21 20aaaaaaaa: +10.0 % time (20.1 ms -> 22.1 ms), p=")
    assert "2026-01-01" in lines[-3]
    assert "2026-02-09" in lines[-3]


def test_one_series_in_every_format(runs: Path) -> None:
    data = json.loads(shown(runs, TRAINING, "--format", "json"))
    assert len(data["points"]) == 40
    assert data["points"][0]["path"].endswith("00.json")
    assert data["margin"] == 0.02
    header, *rows = shown(runs, TRAINING, "--format", "csv").splitlines()
    assert header.split(",")[:4] == ["created", "commit", "dirty", "seconds"]
    assert [i for i, row in enumerate(rows) if not row.endswith(",")] == [20]
    assert "| 2026-01-21 00:00 | 20aaaaaaaa |" in shown(runs, TRAINING, "--format", "markdown")
    assert "+10.0 %" in shown(runs, TRAINING, "--format", "table")
    assert ET.fromstring(shown(runs, TRAINING, "--format", "svg")).tag.endswith("svg")


class Page(HTMLParser):
    """Counts tags, and keeps every address that is not of the page itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.outside.append(value)


def test_a_page_needs_no_other_file(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert shown(runs, "--format", "html", "-o", str(path)) == ""
    page = Page()
    page.feed(path.read_text())
    assert page.tags.count("svg") == 3
    assert page.outside == []
    assert "script" not in page.tags
    alone = Page()
    alone.feed(shown(runs, "loading", "--format", "html"))
    assert (alone.tags.count("svg"), alone.tags.count("table")) == (1, 0)


def test_a_part_of_an_id_is_enough_if_only_one_has_it(runs: Path) -> None:
    trends, _ = trend.load(runs)
    assert trend.choose(trends, TRAINING).id == TRAINING
    assert trend.choose(trends, "pil@").id == LOADING
    for text, words in (
        ("lenet", "2 series contain 'lenet': inference/.*, training/.*; name one"),
        ("trainign", "no series contains 'trainign'; did you mean training/lenet"),
        ("qqqq", "no series contains 'qqqq'; bench trend lists what there is"),
    ):
        with pytest.raises(UsageError, match=words):
            trend.choose(trends, text)


def test_files_that_are_no_runs_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "half.json").write_text('{"schema": 1, "kin')
    (tmp_path / "notes.txt").write_text("")
    result = invoke("--store", str(tmp_path))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"passed over {tmp_path / 'half.json'}: ends in the middle of its JSON; copy it again or measure again",
        f"passed over {tmp_path / 'notes.txt'}: not a .json file",
    ]
    assert "half" not in result.stdout


def test_since_leaves_older_runs_out(runs: Path) -> None:
    text = shown(runs, "training", "--since", "2026-01-25")
    assert "16 runs" in text
    assert "16 comparable points; a change can be shown from 18 on" in text
    assert "Every series has fewer than 18" in shown(runs, "--since", "2026-01-25T00:00:00+00:00")


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
    assert "no change beyond 2 %" in apart
    assert "2 parts of other machines" in apart
    assert any(line.count(":") == 1 and "|" in line for line in apart.splitlines())
    joined = shown(tmp_path / "joined", "training")
    assert "no change beyond 2 %" in joined
    assert "in steps of the pinned reference" in joined
    assert "parts of other machines" not in joined
    assert "2.00" in shown(tmp_path / "joined", "training", "--format", "table")


@pytest.mark.parametrize("days", [1, 2, 300])
def test_few_and_many_runs_are_drawn(days: int, tmp_path: Path) -> None:
    for day in range(days):
        store.save(record(day, {TRAINING: 0.02}), tmp_path / f"{day:03d}.json")
    lines = shown(tmp_path, "training").splitlines()
    assert max(map(len, lines)) <= 80
    assert any("o" in line for line in lines[3:])


def test_bad_words_are_one_line(runs: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--store", str(tmp_path / "none")], "no stored run of a workload"),
        (["--store", str(runs), "--since", "2030-01-01"], "since 2030-01-01"),
        (["--store", str(runs), "--since", "yesterday"], "--since yesterday: write a date"),
        (["--store", str(runs), "--format", "svg"], "name it"),
        (["--store", str(runs), "-o", str(tmp_path / "no" / "file")], "there is no folder"),
        (["--store", str(runs), "bisect", "a", "b", "c"], "come after the word bisect"),
    ):
        result = invoke(*arguments)
        assert isinstance(result.exception, UsageError), arguments
        assert words in str(result.exception)
        assert result.stdout == ""
    assert invoke("--format", "pdf").exit_code == 2


def decide(verdict: str, estimate: float) -> Decision:
    return Decision(verdict, 0.02, 10, estimate, None, None, None, None, None, None)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A history of five commits in the working directory; their hashes."""
    monkeypatch.chdir(tmp_path)
    settings = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")

    def git(*words: str) -> str:
        return subprocess.run(["git", *settings, *words], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    hashes = []
    for number in range(5):
        git("commit", "-q", "--allow-empty", "-m", f"change {number}")
        hashes.append(git("rev-parse", "HEAD"))
    return hashes


def test_bisect_beside_an_id(repository: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.checking import check

    def duel_refs(folder: Path, base: str, head: str, workload: Any, say: Any) -> Row:
        assert folder == Path.cwd()
        assert base == repository[0]
        slow = repository.index(head) >= 2
        decision = decide(REGRESSED, 1.1) if slow else decide(CLEAN, 1.0)
        return Row(workload.id, decision.verdict, decision)

    monkeypatch.setattr(check, "duel_refs", duel_refs)
    result = invoke("bisect", "HEAD~4", "HEAD", TRAINING)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{TRAINING} became slower with {repository[2][:10]}")
    assert "change 2" in result.stdout
    assert "4 commits after" in result.stderr
    data = json.loads(invoke("bisect", "HEAD~4", "HEAD", TRAINING, "--format", "json").stdout)
    assert data["first_bad"]["hash"] == repository[2]
    for error, arguments in (
        (WorkloadError, ("HEAD~4", "HEAD", "training")),
        (UsageError, ("none", "HEAD", TRAINING)),
        (BenchError, ("HEAD~4", "HEAD~3", TRAINING)),
    ):
        assert isinstance(invoke("bisect", *arguments).exception, error)


def test_both_commands_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["trend", "--help"], ("Usage: bench trend [OPTIONS] [ID]", "bench trend bisect GOOD BAD ID")),
        (["trend", "bisect", "--help"], ("Usage: bench trend bisect [OPTIONS] GOOD BAD ID",)),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words)


def test_listing_imports_nothing_heavy(tmp_path: Path) -> None:
    store.save(record(1, {TRAINING: 0.02}), tmp_path / "a.json")
    code = (
        "import sys; from bench.commands.trend import command\n"
        f"command.main(['--store', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    root = Path(trend.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60, stdout=subprocess.DEVNULL)
