"""`bench data`: files, streams, tables and exit codes."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from command_line import ROOT, bench_here
from PIL import Image

from bench.commands.data import LAYOUTS, SHOWN, command
from bench.errors import UsageError
from loaders import engines, policies, sample, separable
from loaders.datasets import open_splits
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
    assert all(0 < stage["low"] <= stage["ratio"] <= stage["high"] for stage in stages)


def test_check_exits_with_1_and_lists_all(made: Path, tmp_path: Path) -> None:
    clean = run("check", made)
    assert (clean.return_value, clean.stdout, clean.stderr) == (0, "0 of 12 images cannot be decoded\n", "")
    table = run("check", made, "--format", "csv")
    assert (table.stdout, table.stderr) == ("path,reason\n", "0 of 12 images cannot be decoded\n")
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"text")
    bad = run("check", tmp_path, "--format", "json")
    assert bad.return_value == 1
    listed = json.loads(bad.stdout)
    assert listed["images"] == 2
    assert [Path(image["path"]).name for image in listed["unreadable"]] == ["a.jpg", "b.jpg"]
    assert run("check", tmp_path, "-o", tmp_path / "found.txt").stdout == ""
    found = (tmp_path / "found.txt").read_text()
    assert "b.jpg" in found
    assert found.endswith("\n\n2 of 2 images cannot be decoded\n")


def test_the_layouts_offered_are_those_that_can_be_made() -> None:
    assert tuple(separable.FORMS) == LAYOUTS
    assert set(SHOWN) <= set(engines.names())


def test_make_like_cifar10_can_be_opened(tmp_path: Path) -> None:
    result = run("make", tmp_path / "c", "--like", "cifar10", "--images", 120)
    assert result.exception is None
    assert result.stdout == ""
    assert [len(part) for part in open_splits(tmp_path / "c")] == [100, 20]
    info = json.loads(run("info", tmp_path / "c", "--format", "json").stdout)["datasets"]
    assert [(part["images"], part["classes"]) for part in info] == [(100, 10), (20, 10)]


def test_make_like_folder_takes_classes(tmp_path: Path) -> None:
    assert run("make", tmp_path / "f", "--like", "folder", "--images", 24, "--classes", 3).exception is None
    assert len(open_splits(tmp_path / "f")[0].classes) == 3
    assert isinstance(run("make", tmp_path / "f", "--like", "folder").exception, DataError)
    assert run("make", tmp_path / "g", "--like", "imagenet21k").exception is not None


@pytest.mark.parametrize("policy", ["cifar_heavy", "crop+flip+rotate:10", "none"])
def test_show_writes_a_sheet_of_8_by_8(policy: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        result = run("show", policy, "-o", tmp_path / name)
        assert result.exception is None
        assert result.stdout == ""
        assert str(tmp_path / name) in result.stderr
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert first.shape == (8 * 66 + 2, 8 * 66 + 2, 3)
    np.testing.assert_array_equal(first, second, "the same seed shows the same changes")


@pytest.mark.parametrize("loader", SHOWN)
def test_show_with_every_loader_and_own_images(loader: str, tmp_path: Path) -> None:
    if engines.missing(loader) is not None:
        pytest.skip("missing")
    separable.make(tmp_path / "set", "folder", 24, classes=3)
    for more in ((), ("--data", tmp_path / "set")):
        result = run(
            "show", "crop+flip", "--loader", loader, "--images", 6, "--size", 64, "-o", tmp_path / "s.png", *more
        )
        assert result.exception is None
        assert np.asarray(Image.open(tmp_path / "s.png")).shape == (68, 6 * 66 + 2, 3)


def test_a_picture_without_a_name_leaves_a_repository_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote .benchmarks/pictures/flip_crop-2.png" in run("show", "flip+crop:2", "--images", 2).stderr
    assert [path.name for path in tmp_path.iterdir()] == [".benchmarks"]


def test_show_lists_policies_and_operations() -> None:
    listed = run("show", "--list").stdout
    assert all(name in listed for name in (*policies.names(), *policies.OPERATIONS))


def test_show_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    assert isinstance(run("show").exception, UsageError)
    assert isinstance(run("show", "cifar", "-o", tmp_path / "a.jpg").exception, UsageError)
    with pytest.raises(DataError, match=r"did you mean cifar\?"):
        raise run("show", "cifr").exception or AssertionError
    with pytest.raises(DataError, match="loader dali has no augmentation perspective"):
        raise run("show", "perspective", "--loader", "dali").exception or AssertionError
    assert not list(tmp_path.iterdir())


def test_split_checks_and_exits_with_1_when_parts_share_images(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "folder", 60, classes=5)
    clean = run("split", tmp_path / "set", "--check", "--holdout", 0.2, "--format", "json")
    assert clean.return_value == 0
    document = json.loads(clean.stdout)
    assert [part["images"] for part in document["parts"]] == [40, 10, 10]
    assert [check["found"] for check in document["checks"]] == [0, 0, 0]
    train, val = open_splits(tmp_path / "set")
    Path(val.files[0]).write_bytes(Path(train.files[0]).read_bytes())
    bad = run("split", tmp_path / "set", "--check")
    assert bad.return_value == 1
    assert "copies of an image in another part: 1" in bad.stderr
    assert run("split", tmp_path / "set").return_value == 0


def test_files_that_are_left_out_are_counted_and_named(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "folder", 60, classes=5)
    for path in (tmp_path / "set" / "train" / "class_0000").glob("*.JPEG"):
        path.rename(path.with_suffix(".picture"))
        break
    (tmp_path / "set" / "val" / "class_0001" / ".DS_Store").write_text("")
    train = {"reason": "another ending or none", "files": 1}
    info, check = run("info", tmp_path / "set"), run("check", tmp_path / "set")
    said = "warning: 1 file left out of set/train: another ending or none: 1\n"
    said += "note: 1 file left out of set/val: hidden: 1\n"
    assert info.stderr == said
    assert check.stderr == said
    assert (check.return_value, check.stdout) == (0, "0 of 59 images cannot be decoded; 2 files were left out\n")
    (row,) = [line for line in info.stdout.splitlines() if line.startswith("left_out")]
    assert row.split() == ["left_out", "1", "1"]
    document = json.loads(run("info", tmp_path / "set", "--format", "json").stdout)
    assert document["datasets"][0]["left_out"][0].items() >= train.items()
    assert document["warnings"] == said.splitlines()
    document = json.loads(run("check", tmp_path / "set", "--format", "json").stdout)
    assert [(each["reason"], each["files"]) for each in document["left_out"]] == [tuple(train.values()), ("hidden", 1)]


def test_info_and_check_say_what_is_wrong_with_the_data(tmp_path: Path) -> None:
    separable.make(tmp_path / "set", "folder", 60, classes=5)
    shutil.rmtree(tmp_path / "set" / "val")
    (tmp_path / "set" / "val").symlink_to("train")
    for word in ("info", "check"):
        assert "warning: all 50 validation images are training images too" in run(word, tmp_path / "set").stderr
        one = run(word, tmp_path / "set" / "train" / "class_0000").stderr
        assert "warning: class_0000 has one class, class_0000: every answer is right" in one


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough images that a command can be interrupted."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    for number in range(800):
        path = tmp_path / "many" / "ab"[number % 2] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(pixels, number, 0)).save(path)
    return tmp_path / "many"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_packing_that_was_ended_goes_on(ending: signal.Signals, many: Path, tmp_path: Path) -> None:
    # The journal is written after every few images, so that a kill finds something.
    code = "import sys; from loaders import packing; packing._TOGETHER, packing._EVERY = 8, 0.0\n"
    code += "from bench.cli import main; main()"
    words = ["data", "pack", "many", "out", "--short", "48", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = tmp_path / "out.unfinished" / "journal.npy"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 1000 and np.load(journal)["done"].any()):
        assert process.poll() is None, "it was quicker than this test"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(ending)
    _, said = process.communicate(timeout=120)
    if ending == signal.SIGINT:
        assert process.returncode == 130, said
        assert "the same command goes on with --resume" in said
    assert not (tmp_path / "out").exists()
    done = int(np.load(journal)["done"].sum())
    assert 0 < done < 800
    bench_here(*words, cwd=tmp_path).refused("did not finish", "--resume")
    assert bench_here(*words, "--resume", cwd=tmp_path).returncode == 0
    assert bench_here(*words[:3], "whole", *words[4:], cwd=tmp_path).returncode == 0
    names = ["index.npy", "packed.json", "pixels.npy"]
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == names
    assert filecmp.cmpfiles(tmp_path / "out", tmp_path / "whole", names, shallow=False)[0] == names


def test_a_packed_set_is_described_shown_and_checked(many: Path, tmp_path: Path) -> None:
    (many / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    packed = bench_here("data", "pack", many, "out", "--short", "48", cwd=tmp_path)
    assert packed.returncode == 1
    assert "broken.jpg" in packed.stdout
    assert "800 images packed into out; 1 could not be decoded" in packed.stderr
    assert "packing 801 images of many, shorter sides of at most 48 pixels: 6.6 MiB into out" in packed.stderr
    described = json.loads(bench_here("data", "info", "out", "--format", "json", cwd=tmp_path).stdout)
    assert described["datasets"][0]["images"] == 800
    assert described["datasets"][0]["height"] == [48, 48, 48]
    assert bench_here("data", "show", "imagenet", "--data", "out", "-o", "a.png", cwd=tmp_path).returncode == 0
    checked = bench_here("data", "check", "out", cwd=tmp_path)
    assert checked.returncode == 0
    assert "0 of 800 images are damaged" in checked.stdout
    with (tmp_path / "out" / "pixels.npy").open("r+b") as file:
        file.seek(128 + 5 * 48 * 60 * 3 + 7)
        file.write(b"changed")
    checked = bench_here("data", "check", "out", cwd=tmp_path)
    assert checked.returncode == 1
    assert "image 5 " in checked.stdout
    assert "its checksum is not the one that it was packed with" in checked.stdout
    bench_here("data", "pack", many, "out", cwd=tmp_path).refused("out is a packed data set already")
    bench_here("data", "pack", "out", "again", cwd=tmp_path).refused("out is packed already")
