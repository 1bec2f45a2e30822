"""`bench data`: what it prints, where, and with which exit code."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from bench.commands.data import command
from bench.errors import UsageError
from loaders import sample
from loaders.errors import DataError


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample.make(tmp_path_factory.mktemp("made") / "set", images=12, classes=3)


def test_make_writes_images_and_keeps_stdout_free(tmp_path: Path) -> None:
    result = run("make", tmp_path / "new", "--images", 4, "--classes", 2, "--seed", 5)
    assert result.exception is None
    assert result.stdout == ""
    assert len(list((tmp_path / "new").rglob("*.JPEG"))) == 4
    assert isinstance(run("make", tmp_path / "new").exception, DataError)


def test_info_as_json_holds_raw_numbers(made: Path) -> None:
    result = run("info", made, "--format", "json")
    (figures,) = json.loads(result.stdout)["datasets"]
    assert (figures["images"], figures["classes"], figures["split"]) == (12, 3, "all")
    assert len(figures["mean"]) == len(figures["std"]) == 3


@pytest.mark.parametrize("format", ["text", "markdown", "csv"])
def test_info_as_table(made: Path, format: str) -> None:
    result = run("info", made, "--format", format)
    assert result.exception is None
    assert "bytes_per_pixel" in result.stdout


def test_info_of_folders_to_be_merged(tmp_path: Path) -> None:
    for part, name in (("x1", "a"), ("x2", "b"), ("v", "a"), ("v", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / name / "1.jpg")
    result = run("info", "--train", f"{tmp_path / 'x1'},{tmp_path / 'x2'}", "--val", tmp_path / "v", "--format", "json")
    train, val = json.loads(result.stdout)["datasets"]
    assert (train["images"], train["classes"], val["images"], val["classes"]) == (2, 2, 2, 2)
    assert isinstance(run("info", "--train", tmp_path / "x1", "--val", tmp_path / "v").exception, DataError)


def test_info_without_a_folder_or_with_too_many_is_a_usage_error(made: Path) -> None:
    assert isinstance(run("info").exception, UsageError)
    assert isinstance(run("info", made, "--train", made).exception, UsageError)
    assert isinstance(run("info", made, "-o", made).exception, UsageError)


def test_info_against_prints_the_ratio_of_both_stages(made: Path) -> None:
    pytest.importorskip("nvidia.dali")
    result = run("info", made, "--against", made, "--turns", 2, "--threads", 1, "--format", "json")
    assert result.exception is None
    stages = json.loads(result.stdout)["decoding"]["stages"]
    assert [stage["stage"] for stage in stages] == ["decode", "loader"]
    assert all(0.1 < stage["ratio"] < 10 and stage["low"] <= stage["ratio"] <= stage["high"] for stage in stages)


def test_check_exits_with_1_and_lists_all(made: Path, tmp_path: Path) -> None:
    clean = run("check", made)
    assert (clean.return_value, clean.stdout) == (0, "")
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"text")
    bad = run("check", tmp_path, "--format", "json")
    assert bad.return_value == 1
    listed = json.loads(bad.stdout)
    assert listed["images"] == 2
    assert [Path(image["path"]).name for image in listed["unreadable"]] == ["a.jpg", "b.jpg"]
    assert "b.jpg" in run("check", tmp_path).stdout
