"""A repository's own settings: where they are found, what they name, and what is wrong with them."""

from pathlib import Path

import pytest

from models import zoo
from models.errors import ModelError
from models.project import OTHERWISE, find, named, rooted

SETTINGS = """
data = "photos"

[models]
mine = "nets.py:build[width=64]"

[loaders]
mydata = "package.data:train"

[options.compare]
budget = 60

[check]
setup = "make"

[[workloads]]
model = "mine"
margin = 0.05
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)


def test_nothing_is_set_without_a_file() -> None:
    project = find()
    assert (project.file, project.folder, dict(project.names)) == (None, Path.cwd(), {})
    assert named("mine").base == "mine"


@pytest.mark.parametrize("file", ["pixbench.toml", "pyproject.toml"])
def test_settings_hold_in_their_folder_and_below(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SETTINGS
    if file == "pyproject.toml":
        text = "[tool.pixbench]\n" + text.replace("[[", "[[tool.pixbench.").replace("\n[", "\n[tool.pixbench.")
        text = text.replace("[tool.pixbench.[tool", "[[tool")
    Path(file).write_text(text)
    top = Path.cwd()
    (top / "deep" / "er").mkdir(parents=True)
    for place in (top, top / "deep" / "er"):
        monkeypatch.chdir(place)
        project = find()
        assert (project.file, project.folder, project.data) == (top / file, top, "photos")
        assert (project.kind("mine"), project.kind("mydata"), project.kind("other")) == ("model", "loader", "")
        assert project.options == {"compare": {"budget": 60}}
        assert (project.setup, project.workloads) == ("make", ({"model": "mine", "margin": 0.05},))
    assert named("mydata").base == "package.data:train"
    # Where another folder is the working directory, the file's path is given in full.
    assert named("mine").base == f"{top}/nets.py:build"
    monkeypatch.chdir(top)
    assert named("mine").base == "nets.py:build"


def test_arguments_go_before_those_of_the_settings() -> None:
    Path("pixbench.toml").write_text(SETTINGS)
    assert named("mine").arguments == {"width": 64}
    assert named("mine[width=8,depth=2]").arguments == {"width": 8, "depth": 2}


def test_settings_above_a_repository_do_not_hold_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pixbench.toml").write_text(SETTINGS)
    Path("inner/.git").mkdir(parents=True)
    monkeypatch.chdir("inner")
    assert find().file is None


def test_another_folder_has_its_own_settings_or_those_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pixbench.toml").write_text(SETTINGS)
    bare = Path.cwd() / "bare"
    (bare / ".git").mkdir(parents=True)
    with rooted(bare):
        assert named("mine").base == "mine"
        monkeypatch.setenv(OTHERWISE, str(Path.cwd() / "pixbench.toml"))
        assert named("mine").base == "nets.py:build"
        assert find().folder == bare


def test_a_name_of_the_table_means_the_network_in_the_table() -> None:
    Path("pixbench.toml").write_text('[models]\nlenet = "nets.py:other"\n')
    assert zoo.default_size("lenet") == 32
    Path("pixbench.toml").write_text(SETTINGS + "\n")
    with pytest.raises(ModelError, match="did you mean mine"):
        zoo.check("minne")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3", "models is 3, and should be of type dict"),
        ("[modles]", "has no 'modles', did you mean models"),
        ("[models]\n'a-b' = 'x.py:y'", "'a-b' in .models. is no name"),
        ("[models]\na = 3", "a in .models. is 3; write what it stands for in quotes"),
        ("[models]\na = 'x.py:y'\n[steps]\na = 'x.py:z'", "a stands for two things"),
        ("[models]\na = 'x.py:y['", "cannot be read"),
        ("[models]\na = 'a[width=3]'", "a stands for itself"),
        ("[[workloads]]\nmodle = 'a'", "workload 1 has no 'modle', did you mean model"),
        ("[[workloads]]\nbatch = true", "batch is True, and should be of type int"),
        ("[check]\nsetup = ['make']", "setup is .'make'., and should be of type str"),
        ("[options]\ncompare = 3", "write the options of a command as a table"),
        ("models = [", "cannot be read"),
    ],
)
def test_what_is_wrong_with_settings_is_said(text: str, message: str) -> None:
    Path("pixbench.toml").write_text(text)
    with pytest.raises(ModelError, match=message):
        find()
