"""`bench init`: settings that can be read, and name what is found."""

import tomllib
from pathlib import Path

import pytest
from command_line import bench_here

from models.project import find

NETWORK = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()


class Net(nn.Module):
    def __init__(self, num_classes=10, width=32):
        super().__init__()


class Tool:
    def __init__(self, classes):
        pass
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)


def test_networks_are_found_without_importing_them() -> None:
    Path("package").mkdir()
    Path("package/nets.py").write_text(NETWORK + "\nraise RuntimeError('imported')\n")
    Path("broken.py").write_text("def (")
    for place in ("tests", ".hidden", "venv"):
        Path(place).mkdir()
        Path(place, "nets.py").write_text(NETWORK.replace("Net(", "Hidden("))
    Path("venv/pyvenv.cfg").touch()
    Path("requirements.txt").touch()
    result = bench_here("init", cwd=Path.cwd())
    assert result.returncode == 0
    assert "next: bench compare net resnet18" in result.stderr
    project = find()
    assert project.names == {"net": ("model", "package/nets.py:Net")}
    assert [table["task"] for table in project.workloads] == ["inference", "training"]
    workflow = Path(".github/workflows/pixbench.yml").read_text()
    assert "pip install pixbench -r requirements.txt\n" in workflow
    assert 'bench check --base "${BASE:-HEAD~1}"' in workflow
    assert "BASE: ${{ github.event.pull_request.base.sha }}" in workflow


def test_without_a_network_the_file_says_where_to_name_one() -> None:
    result = bench_here("init", cwd=Path.cwd())
    assert "no network was found: name yours in pixbench.toml" in result.stderr
    assert find().names == {}
    text = Path("pixbench.toml").read_text()
    # What is commented out can be read as well.
    lines = [line.removeprefix("# ") for line in text.splitlines() if "=" in line or line.lstrip("# ").startswith("[")]
    assert tomllib.loads("\n".join(lines))["workloads"][0]["model"] == "mine"


def test_nothing_that_is_there_is_overwritten() -> None:
    Path("pixbench.toml").write_text("[models]\n")
    result = bench_here("init", cwd=Path.cwd())
    assert (result.returncode, result.stderr) == (2, "bench: pixbench.toml is there already; edit it\n")
    assert Path("pixbench.toml").read_text() == "[models]\n"
