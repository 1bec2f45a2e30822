"""`bench compare` on what earlier commands left: training runs and files of labels."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.commands.compare import command
from bench.comparing.words import LABELS, MEASURED, RUN, STORED, kind, run_folders
from bench.errors import UsageError
from results.history import Epoch, History
from results.runs import RunSummary


def left(folder: Path, top1: float | None, status: str = "finished") -> Path:
    folder.mkdir(parents=True)
    RunSummary(
        name=folder.name,
        model="lenet",
        data="cifar10/train",
        recipe="options",
        evaluated="test",
        status=status,
        reason=None if status == "finished" else "the loss is nan",
        epochs=2,
        top1=top1,
        train_seconds=12.5,
        params=62_006,
        weight_bytes=248_024,
        checkpoint_bytes=507_749,
    ).save(folder)
    if top1 is not None:
        rows = [
            Epoch(e, 0.1, 32, 2.0, 0.3, 2.1, top1 * e / 2, 0.8, 64, 6.0, 1.0, 4.0, 1.0, 12.8, 16) for e in (1, 2)
        ]  # fmt: skip
        History(rows).save(folder / "history.csv")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    left(tmp_path / "runs" / "a", 0.5)
    left(tmp_path / "runs" / "b", 0.7)
    left(tmp_path / "runs" / "c", None, "failed")
    return tmp_path / "runs"


def compare(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def test_words_are_told_apart_by_name_and_content(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    Path("copy.json").write_text(Path("a/summary.json").read_text())
    Path("record.json").write_text('{"operands": [], "schema": 1}')
    Path("lenet").mkdir()
    Path("lenet/summary.json").write_text(Path("a/summary.json").read_text())
    assert [kind(word) for word in ("a", "a/summary.json", "copy.json", "../runs", "./a/")] == [RUN] * 5
    assert [kind(word) for word in ("record.json", "absent.json", "x/absent")] == [STORED] * 3
    assert [kind(word) for word in ("a.csv", "x/b.txt")] == [LABELS] * 2
    assert [kind(word) for word in ("lenet", "lenet@naive", "dali", "d")] == [MEASURED] * 4
    assert kind("./lenet") == RUN


def test_runs_are_ranked_with_their_sizes_apart(runs: Path) -> None:
    result = compare(runs / "a", runs / "b" / "summary.json", runs / "c")
    assert result.exit_code == 0, result.output
    names = [line.split()[1] for line in result.stdout.splitlines() if line.strip()[:1] in ("1", "2", "3")]
    assert names[:3] == ["b", "a", "c"]
    assert "the loss is nan" in result.stdout
    assert "full\n" in result.stdout or "checkpoint" in result.stdout
    for format in ("markdown", "csv", "json"):
        assert "62006" in compare(runs / "a", "--format", "csv").stdout
        assert compare(runs / "a", runs / "b", "--format", format).exit_code == 0


def test_json_and_csv_hold_the_raw_rows(runs: Path) -> None:
    rows = json.loads(compare(runs / "a", runs / "b", "--format", "json").stdout)["runs"]
    assert [(row["rank"], row["name"], row["top1"]) for row in rows] == [(1, "b", 0.7), (2, "a", 0.5)]
    rows = list(csv.DictReader(io.StringIO(compare(runs / "a", runs / "b", "--format", "csv").stdout)))
    assert [(row["name"], row["weight_bytes"], row["checkpoint_bytes"]) for row in rows] == [
        ("b", "248024", "507749"),
        ("a", "248024", "507749"),
    ]


def test_a_folder_of_runs_stands_for_all_of_them(runs: Path) -> None:
    (runs / "under_way").mkdir()
    (runs / "damaged").mkdir()
    (runs / "damaged" / "summary.json").write_text("{}")
    folders, passed = run_folders([str(runs)])
    assert [path.name for path in folders] == ["a", "b", "c"]
    assert len(passed) == 2
    result = compare(runs)
    assert result.exit_code == 0
    assert "skipped" in result.stderr


def test_a_run_that_has_not_ended_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has not ended: bench train --resume"):
        run_folders([str(tmp_path)])


def test_charts_are_written_where_asked(runs: Path, tmp_path: Path) -> None:
    result = compare(runs, "--charts", tmp_path / "pictures", "--sort", "name")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"test_accuracy.png", "test_loss.png", "train_test.png", "accuracy.png", "sizes.png"} <= written


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: Path, tmp_path: Path) -> None:
    other = left(tmp_path / "other" / "a", 0.6)
    rows = json.loads(compare(runs / "a", other, "--format", "json").stdout)["runs"]
    assert [row["name"] for row in rows] == [str(other), str(runs / "a")]


@pytest.fixture
def labels(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("ID,Labels\n" + "".join(f"{i},{i % 3}\n" for i in range(30)))
    second.write_text("ID,Labels\n" + "".join(f"{i},{i % 3 if i < 15 else 9}\n" for i in range(30)))
    return first, second


def test_two_files_of_labels_are_compared_image_by_image(labels: tuple[Path, Path]) -> None:
    text = compare(*labels).stdout
    assert text.startswith("images / labelled alike / share: 30 / 15 / 50.00%\n")
    assert "first 10 of 15 differences" in text
    said = json.loads(compare(*labels, "--format", "json").stdout)
    assert (said["rows"], said["matches"], said["share"]) == (30, 15, 0.5)
    assert said["differences"][0] == {"id": "15", "first": "0", "second": "9"}
    assert len(said["differences"]) == 10
    assert compare(*labels, "--format", "csv").stdout.splitlines()[1].endswith(",30,15,0.5")
    assert "50.00" in compare(*labels, "--format", "markdown").stdout


def test_files_that_agree_wholly_and_files_of_bare_labels(tmp_path: Path, labels: tuple[Path, Path]) -> None:
    same = tmp_path / "same.csv"
    same.write_text(labels[0].read_text().rstrip())
    assert compare(labels[0], same).stdout.strip().endswith(": 30 / 30 / 100.00%")
    assert compare(labels[0], same, "--format", "markdown").exit_code == 0
    bare, other = tmp_path / "bare.txt", tmp_path / "other.txt"
    bare.write_text("cat\ndog\n")
    other.write_text("cat\ndog")
    assert compare(bare, other).stdout.strip().endswith(": 2 / 2 / 100.00%")


def test_a_file_is_not_compared_with_itself(labels: tuple[Path, Path], tmp_path: Path) -> None:
    """Labels and records, by whatever names, and copies of them."""
    record = tmp_path / "record.json"
    record.write_text('{"operands": []}')
    for file in (labels[0], record):
        link, copy = tmp_path / f"link{file.suffix}", tmp_path / f"copy{file.suffix}"
        link.symlink_to(file)
        shutil.copy(file, copy)
        for other, said in ((file, "the same file"), (link, "the same file"), (copy, "copies of the same file")):
            result = compare(file, other)
            assert f"{file} and {other} are {said}, so agreeing means nothing" in str(result.exception)


def test_what_cannot_be_compared_is_one_clear_error(runs: Path, labels: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    third = tmp_path / "third.csv"
    third.write_text("ID,Labels\n")
    for words, said in (
        ([runs / "a", "lenet"], "is a training run and lenet is something to measure"),
        ([runs / "a", labels[0]], "is a training run and"),
        (["lenet", labels[0]], "is a file of labels and lenet is something to measure"),
        ([runs / "a", "x.json"], "x.json does not exist"),
        ([runs / "a", runs / "nothing"], "nothing does not exist; name a run's folder"),
        (["runs/nothing"], "runs/nothing does not exist"),
        ([labels[0]], "two files at a time; 1 were named"),
        ([*labels, third], "two files at a time; 3 were named"),
        ([runs / "a", runs / "a"], "is named twice"),
        ([runs, runs / "a" / "summary.json"], "is named twice"),
        ([f"{tmp_path}/none"], "holds no run"),
        (["lenet", "--charts", third / "x"], "cannot make the folder"),
        ([*labels, "--charts", tmp_path / "x"], "--charts draws what was measured or trained"),
        ([*labels, "--across"], "--across compares stored results"),
        ([runs / "a", "--sort", "topp1"], "cannot sort by 'topp1'"),
        ([labels[0], tmp_path / "absent.csv"], "absent.csv does not exist"),
    ):
        result = compare(*words)
        assert said in str(result.exception), words
