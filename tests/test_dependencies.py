"""What is installed with the product is what the product imports."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[1]
PACKAGES = ("bench", "kernels", "loaders", "models", "results")
# Distributions whose module is called otherwise, or that are a part of another one's use.
MODULES = {"nvidia-dali-cuda130": "nvidia", "nvidia-ml-py": "pynvml", "pillow": "PIL", "markdown-it-py": "markdown_it"}


def project() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def sources() -> list[Path]:
    return [path for name in PACKAGES for path in (TOP / name).rglob("*.py")]


def required() -> list[str]:
    return [re.split(r"[ ;<>=~!\[]", line, maxsplit=1)[0] for line in project()["dependencies"]]


@cache
def imported() -> frozenset[str]:
    """Names of the modules that the five packages import."""
    found: set[str] = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Constant) and str(node.value).startswith("nvidia.dali"):
                found.add("nvidia")  # imported by name, where it is installed
    return frozenset(found)


@pytest.mark.parametrize("distribution", required())
def test_every_dependency_is_imported_by_the_product(distribution: str) -> None:
    assert MODULES.get(distribution, distribution.replace("-", "_")) in imported()


def test_advice_names_optional_parts_that_exist_and_has_one_wording() -> None:
    texts = {path.relative_to(TOP).as_posix(): path.read_text(encoding="utf-8") for path in sources()}
    named = {extra for text in texts.values() for extra in re.findall(r"""\binstall\(['"](\w+)['"]\)""", text)}
    assert named == {"peers", "demo", "slurm", "ray"} <= set(project()["optional-dependencies"])
    assert [name for name, text in texts.items() if "pixbench[" in text] == ["models/errors.py"]
