"""A check in a repository of somebody's own, from its commits to the verdict."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import bench

NET = """
from torch import nn

from models.parts import stem


class Net(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.stem = stem()
        self.norm = nn.LayerNorm(4, eps=1e-5)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.stem(x).mean((2, 3))))
"""
SETTINGS = """
[models]
mine = "models/nets.py:Net"

[[workloads]]
model = "mine"
size = 32
classes = 5
batch = 2
configuration = "naive"
"""


def git(*words: str, cwd: Path) -> None:
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, env={**os.environ, **who})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With a package called like one of ours."""
    place = tmp_path / "theirs"
    (place / "models").mkdir(parents=True)
    (place / "models" / "__init__.py").touch()
    (place / "models" / "nets.py").write_text(NET)
    (place / "models" / "parts.py").write_text("from torch import nn\n\n\ndef stem():\n    return nn.Conv2d(3, 4, 3)\n")
    (place / "pixbench.toml").write_text(SETTINGS)
    git("init", "-q", "-b", "main", cwd=place)
    git("add", "-A", cwd=place)
    git("commit", "-qm", "first", cwd=place)
    return place


def check(place: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = bench("check", "--base", "HEAD", "--exact", "--format", "json", *words, cwd=place)
    return done.returncode, json.loads(done.stdout or f'{{"error": {json.dumps(done.stderr)}}}')


def test_each_sides_own_code_is_counted_and_computed(repository: Path) -> None:
    nets = repository / "models" / "nets.py"
    nets.write_text(NET.replace("class Net", "# a comment\nclass Net"))
    code, report = check(repository)
    assert (code, report["verdict"]) == (0, "CLEAN")
    nets.write_text(NET.replace("1e-5", "1e-1"))
    code, report = check(repository)
    assert (code, report["verdict"]) == (1, "CHANGED")
    assert [fact["name"] for fact in report["facts"] if not fact["same"]] == ["output"]
    # What the base has and the head has not.
    nets.write_text(NET.replace("class Net", "class Renamed"))
    code, report = check(repository)
    assert (code, report["verdict"]) == (1, "VANISHED")
    assert "unknown name in models/nets.py: 'Net'" in report["rows"][0]["reason"]


def test_a_repository_without_workloads_is_told_how_to_list_them(repository: Path) -> None:
    (repository / "pixbench.toml").unlink()
    done = bench("check", "--base", "HEAD", cwd=repository)
    done.refused("this repository lists no workloads: write some with bench init")
