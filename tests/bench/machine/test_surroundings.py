"""What a command does without a home, a name, a place to write, git, a compiler or UTF-8."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT
from fabricated_machine import quiet_machine
from PIL import Image

from bench.machine import surroundings
from bench.machine.diagnosis import GAPS, Facts, examine
from bench.machine.surroundings import LOOKS, gaps, stand_in
from loaders import cache


def nobody(number: int) -> Any:
    raise KeyError(f"getpwuid(): uid not found: {number}")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"pixbench-{os.getuid()}"


def test_this_machine_lacks_nothing_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ann")
    assert not {"home", "user", "cache"} & set(gaps())
    before = dict(os.environ)
    stand_in()
    assert dict(os.environ) == before


def test_every_gap_has_a_remedy() -> None:
    assert set(GAPS) == set(LOOKS)
    findings = examine(Facts(quiet_machine(), busy=0.0, stolen=0.0, cuda=False, gaps=dict.fromkeys(LOOKS, "why")))
    for subject, (level, remedy) in GAPS.items():
        assert [(f.level, f.finding, f.remedy) for f in findings if f.subject == subject] == [(level, "why", remedy)]


def test_a_user_without_name_and_home_gets_both(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", *surroundings.NAMES, *surroundings.LIBRARY_FOLDERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for _ in range(2):
        # What stands in is not taken for what was there.
        assert {"home", "user", "cache"} <= set(gaps())
        stand_in()
    import getpass

    assert getpass.getuser() == f"user-{os.getuid()}"
    assert os.environ["MPLCONFIGDIR"] == str(temporary / "matplotlib")
    assert temporary.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_cannot_be_written_is_replaced_and_that_is_said_once(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "is not a folder" in gaps()["cache"]
    assert cache.cache_folder() == cache.cache_folder() == temporary / "pixbench"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "XDG_CACHE_HOME" in said


def test_a_folder_of_somebody_else_is_not_used(temporary: Path, tmp_path: Path) -> None:
    temporary.symlink_to(tmp_path)
    other = cache.temporary_folder()
    assert other != temporary
    assert other.parent == tmp_path


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(surroundings.tempfile, "gettempdir", none)
    assert "no folder" in gaps()["temporary files"]


def test_git_that_is_missing_or_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in gaps()["git"]
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho 'fatal: detected dubious ownership in repository' >&2\nexit 128\n")
    git.chmod(0o755)
    (tmp_path / "checkout" / ".git").mkdir(parents=True)
    monkeypatch.setattr(surroundings, "SOURCE", tmp_path / "checkout")
    assert "dubious ownership" in gaps()["git"]


# ---- whole commands, each condition in processes of its own ----

BARE = {"HOME", "XDG_CACHE_HOME", "TMPDIR", *surroundings.NAMES, *surroundings.LIBRARY_FOLDERS}
PLAIN = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# A user whom the system does not know, with this user's files and no rights beyond.
NOBODY = ("unshare", "--user", "--map-user=54321", "--map-group=54321")


@dataclass(frozen=True)
class Condition:
    """What is missing.

    Attributes:
        variables: of the environment; HOME may be "sealed", a folder that cannot be written.
        missing: what `gaps` names of it.
        nobody: for a user without a name.
        sealed: the working folder cannot be written.
    """

    variables: dict[str, str]
    missing: set[str]
    nobody: bool = False
    sealed: bool = False


CONDITIONS = {
    "no home and no name": Condition({}, {"home", "user", "cache"}, nobody=True),
    "a home that cannot be written": Condition({"HOME": "sealed"}, {"home", "user", "cache"}, nobody=True),
    "no cache and no programs": Condition({"XDG_CACHE_HOME": "/proc/none", "PATH": "/nonexistent"}, {"git"}),
    "no place for temporary files, and ascii": Condition(
        {"TMPDIR": "/proc/none", **PLAIN}, {"temporary files", "encoding"}
    ),
    "a working folder that cannot be written": Condition({}, {"working folder"}, nobody=True, sealed=True),
}
# Most of what can be missing, at once; the night has each by itself.
TOGETHER = Condition(
    {"HOME": "sealed", "TMPDIR": "/proc/none", **PLAIN},
    {"home", "user", "cache", "temporary files", "encoding"},
    nobody=True,
)
LOOK = "import json; from bench.machine.surroundings import gaps, stand_in; stand_in(); print(json.dumps(gaps()))"
ONE_CORE = ("--threads", "1", "--device", "cpu")
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("list", "loaders"),
    ("train", "--model", "lenet", "--config", "naive", "--batch", "4", "--lr", "0.01", "--epochs", "1", *ONE_CORE),
    ("compare", "lenet@naive", "--tasks", "inference", "--size", "32", "--batch", "4", "--rounds", "2", "--budget", "0",
     "--no-energy", *ONE_CORE),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.effect_noise((32, 32), 60 + number).convert("RGB").save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(TOGETHER, id="most of it", marks=pytest.mark.slow),
        *(pytest.param(condition, id=name, marks=pytest.mark.night) for name, condition in CONDITIONS.items()),
    ],
)
def test_commands_go_on_where_something_is_missing(condition: Condition, images: Path, tmp_path: Path) -> None:
    become = NOBODY if condition.nobody else ()
    if become and subprocess.run([*become, "true"], capture_output=True).returncode:
        pytest.skip("no user without a name can be made here")
    sealed, work = tmp_path / "sealed", tmp_path / "work"
    sealed.mkdir(mode=0o555)
    work.mkdir()
    kept = {key: value for key, value in os.environ.items() if not become or key not in BARE}
    variables = {key: str(sealed) if value == "sealed" else value for key, value in condition.variables.items()}
    environment = {**kept, "PYTHONPATH": str(ROOT), "TERM": "dumb", "TMPDIR": str(tmp_path), **variables}

    def run(*words: str) -> "subprocess.CompletedProcess[bytes]":
        command = [*become, sys.executable, "-P", *words]
        place = sealed if condition.sealed else work
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=300)

    found = run("-c", LOOK)
    assert found.returncode == 0, found.stderr
    assert condition.missing <= set(json.loads(found.stdout)), found.stdout
    for words in COMMANDS:
        done = run("-m", "bench", *words, *(("--data", str(images)) if words[0] == "train" else ()))
        said = done.stderr.decode(errors="replace")
        assert "Traceback" not in said, said
        assert said.count("note: ") <= 1, said
        assert "Warning" not in said, said
        refused = condition.sealed and words[0] in ("train", "compare")
        assert done.returncode == (2 if refused else 0), said
        if refused:
            assert sum(line.startswith("bench: ") for line in said.splitlines()) == 1, said
