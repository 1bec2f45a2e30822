"""How things are named: what is read out of a name, and what cannot be one."""

from pathlib import Path

import pytest

from models.errors import ModelError
from models.names import Name, file_name, split


def test_a_name_without_arguments_is_its_base() -> None:
    name = Name.from_text("resnet34")
    assert (name.base, dict(name.arguments), name.is_code) == ("resnet34", {}, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("0.5", 0.5),
        ("gelu", "gelu"),
        ("'a,b]'", "a,b]"),
        ("(1, 2)", (1, 2)),
        ("[1,[2,3]]", [1, [2, 3]]),
        ("true", True),
        ("False", False),
        ("none", None),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_pythons_or_words(text: str, value: object) -> None:
    assert Name.from_text(f"net.py:build[width={text},depth=3]").arguments == {"width": value, "depth": 3}


def test_code_is_told_from_names_of_tables() -> None:
    file = Name.from_text("nets/mine.py:Net.small")
    assert (file.is_code, file.is_file, file.place, file.attribute) == (True, True, "nets/mine.py", "Net.small")
    module = Name.from_text("package.nets:build")
    assert (module.is_code, module.is_file, module.place) == (True, False, "package.nets")
    assert not Name.from_text("timm:resnet18[drop_path_rate=0.1]").is_code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net.py:build[", "cannot be read"),
        ("[a=1]", "cannot be read"),
        ("net.py:build[3]", "is no argument"),
        ("net.py:build[a=1,a=2]", "says twice what a is"),
        ("net.py:build[a-b=1]", "is no argument"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Name.from_text(text)


def test_a_file_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").touch()
    with pytest.raises(ModelError, match=r"nets/main.py does not exist; nets has mine.py"):
        Name.from_text("nets/main.py:Net").check(tmp_path)
    with pytest.raises(ModelError, match=r"gone/mine.py does not exist$"):
        Name.from_text("gone/mine.py:Net").check(tmp_path)
    Name.from_text("nets/mine.py:Net").check(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine.py:", "no name stands behind the colon"),
        ("mine.py:3d", "is no name"),
        ("a@b.py:Net", "holds an @"),
        ("my-package:Net", "neither a file"),
    ],
)
def test_what_cannot_name_code_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Name.from_text(text).check(tmp_path)


def test_lists_are_split_outside_brackets_and_quotes() -> None:
    assert split("a,b[c=1,d=(2,3)],'e,f',") == ["a", "b[c=1,d=(2,3)]", "'e,f'"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lenet", "lenet"),
        ("mynet.py:build", "mynet-build"),
        ("nets/my net.py:build[width=64,depths=(1, 2)]@fast", "nets-my-net-build-width-64-depths-1-2-@fast"),
        ("timm:resnet18.a1_in1k", "timm-resnet18.a1_in1k"),
        ("../a", "a"),
        ("runs/a@fp32-nchw", "runs-a@fp32-nchw"),
    ],
)
def test_a_name_becomes_the_name_of_a_file(name: str, file: str) -> None:
    assert file_name(name) == file
