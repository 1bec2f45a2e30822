"""What docstrings name is there: every attribute of an "Attributes:" section is a field or property of its class."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "kernels", "loaders", "models", "results")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def documented(docstring: str) -> list[str]:
    """Names of the section "Attributes:": those before the colon of lines that are indented once."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    heads = re.findall(r"^ {4}([a-z_]\w*(?:, \w+)*):", section[1], re.MULTILINE) if section else []
    return [name for head in heads for name in head.split(", ")]


def members(node: ast.ClassDef) -> set[str]:
    """Fields, properties and attributes set by methods."""
    found = {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            found.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            found.add(part.attr)
    return found


CLASSES = {
    f"{path.relative_to(ROOT)}:{node.name}": node
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef)
}
BY_NAME = {node.name: node for node in CLASSES.values()}


@pytest.mark.parametrize("package", PACKAGES)
def test_documented_attributes_exist(package: str) -> None:
    unknown = []
    for place, node in CLASSES.items():
        if place.startswith(f"{package}/"):
            bases = [BY_NAME[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in BY_NAME]
            known = members(node).union(*map(members, bases))
            unknown += [f"{place}.{name}" for name in documented(ast.get_docstring(node) or "") if name not in known]
    assert unknown == []


def test_the_section_is_read() -> None:
    attributes = "Attributes:\n    one, two: said here:\n        further: on.\n    three: x.\n"
    text = f"A line.\n\n{attributes}\nRaises:\n    Error: y.\n"
    assert documented(text) == ["one", "two", "three"]
    assert sum(len(documented(ast.get_docstring(node) or "")) for node in CLASSES.values()) > 300
