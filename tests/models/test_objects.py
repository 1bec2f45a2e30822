"""Names that lead from a fresh process to what this one has at hand, and a reason where none does."""

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torchvision
from torch import nn

from models.errors import ModelError
from models.lenet import LeNet
from models.objects import label_of, name_of

SOURCE = """
class Net:
    class Inner: ...
    @classmethod
    def small(cls): return cls()
def build(classes=10, width=8): ...
def made(): return lambda: None
replaced = build
def build(classes=10, width=8): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def module(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module made of SOURCE, forgotten after the test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCE)
    importlib.invalidate_caches()
    found = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    sys.modules[name] = found
    return found


def script(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What `python FILE` makes of SOURCE, or a session into which it was typed."""
    main = ModuleType("__main__")
    if path is not None:
        path.write_text(SOURCE)
        main.__file__ = str(path)
    exec(SOURCE, main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def test_a_text_is_a_name_already() -> None:
    assert name_of("resnet18@naive") == "resnet18@naive"


def test_modules_of_the_working_directory_and_installed_ones_are_named_as_modules(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = module(folder / "pixnets_one.py", "pixnets_one", monkeypatch)
    assert name_of(found.Net) == "pixnets_one:Net"
    assert name_of(found.Net.Inner) == "pixnets_one:Net.Inner"
    assert name_of(found.Net.small) == "pixnets_one:Net.small"
    below = module(folder / "pixpackage" / "nets.py", "pixpackage.nets", monkeypatch)
    assert name_of(below.build) == "pixpackage.nets:build"
    assert name_of(LeNet) == "models.lenet:LeNet"
    assert name_of(torchvision.models.resnet18) == "torchvision.models.resnet:resnet18"


def test_modules_from_elsewhere_are_named_by_their_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.syspath_prepend(elsewhere)
    found = module(elsewhere / "pixnets_two.py", "pixnets_two", monkeypatch)
    assert name_of(found.Net) == f"{elsewhere}/pixnets_two.py:Net"


def test_a_script_is_named_by_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(script(folder / "run.py", monkeypatch).Net) == "run.py:Net"


def test_arguments_are_part_of_the_name() -> None:
    given = functools.partial(torchvision.models.resnet18, num_classes=7, weights=None)
    assert name_of(given) == label_of(given) == "torchvision.models.resnet:resnet18[num_classes=7,weights=None]"


def test_what_was_typed_into_a_session_has_no_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"build was defined in an interactive session .* name it nets.py:build"):
        name_of(script(None, monkeypatch).build)
    # A session may go on after a script.
    main = script(folder / "run.py", monkeypatch)
    exec("def typed(): ...", main.__dict__)
    with pytest.raises(ModelError, match="typed was defined in an interactive session"):
        name_of(main.typed)


def test_what_cannot_be_imported_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = module(folder / "pixnets_three.py", "pixnets_three", monkeypatch)
    for thing, words in [
        (found.made(), "made inside a function or replaced"),
        (found.replaced, "made inside a function or replaced"),
        (script(folder / "run.py", monkeypatch).made(), "made inside a function"),
        (nn.Linear(2, 2), r"built already \(here a Linear\)"),
        (functools.partial(LeNet, 10), "by position"),
        (functools.partial(LeNet, classes=object()), "cannot be written"),
        (3, "int is nothing to measure"),
    ]:
        with pytest.raises(ModelError, match=words):
            name_of(thing)
