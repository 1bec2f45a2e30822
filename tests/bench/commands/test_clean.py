"""`bench clean`: sizes are shown, what is named goes, results stay."""

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.cli import app
from bench.errors import UsageError
from bench.machine.alone import measuring, training


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "pixbench"
    for name in (
        "inductor/ab/code.py",
        "packed/one/pixels.npy",
        "sample-1-10/0.jpg",
        "tuned.json",
        "index/ab.sqlite",
        "kept/by-you",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(3 << 20))
    return folder


def clean(*names: str) -> Result:
    return CliRunner().invoke(app, ["clean", *names], standalone_mode=False)


def test_it_shows_sizes_and_removes_what_is_named(cache: Path) -> None:
    shown = clean()
    assert shown.exception is None
    assert "3.0 MiB" in next(line for line in shown.stdout.splitlines() if line.startswith("compiled"))
    assert (cache / "inductor/ab/code.py").exists()
    done = clean("compiled", "generated")
    assert "removed 6.0 MiB: compiled, generated" in done.stdout
    assert sorted(path.name for path in cache.iterdir()) == ["index", "kept", "packed", "tuned.json"]
    clean("all")
    assert [path.name for path in cache.iterdir()] == ["kept"]


@pytest.mark.parametrize("use", [measuring, training])
def test_it_refuses_an_unknown_name_and_goes_on_beside_nothing(cache: Path, use: Any) -> None:
    assert isinstance(clean("compild").exception, UsageError)
    with use("cpu", print):
        assert f"process {os.getpid()} measures or trains" in str(clean("all").exception)
        assert clean().exception is None
    assert (cache / "tuned.json").exists()
    assert clean("all").exception is None
