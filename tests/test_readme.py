"""The tree of the documentation names every file with its caption, from the docstrings; `make texts` writes it."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "kernels", "loaders", "models", "results")
# Folders that have one line, whatever is in them.
FOLDERS = {
    "models/recipes": "One TOML file a run, published and corrected",
    "results/published": "Measured results that texts refer to",
    "tests": "Mirrors the tree; needs no GPU, no network, no data set",
}
WIDTH = 120
PAGE = ROOT / "docs/tree.md"
BLOCK = re.compile(r"(# Where things are\n\n```\n).*?(\n```\n)", re.DOTALL)


def caption(path: Path) -> str:
    """The first sentence of a module's docstring, without its period; of a folder, that of its `__init__.py`."""
    name = path.relative_to(ROOT).as_posix()
    if name in FOLDERS:
        return FOLDERS[name]
    source = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(source.read_text("utf-8")))
    assert text, f"{source.relative_to(ROOT)} has no docstring to take its line from"
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z`])", paragraph)[0].removesuffix(".")


def children(folder: Path) -> list[Path]:
    """What has a line below a folder's own: its modules, then the folders with modules in them."""
    if folder.relative_to(ROOT).as_posix() in FOLDERS:
        return []
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    shown = [path for path in folders if path.relative_to(ROOT).as_posix() in FOLDERS or any(path.glob("*.py"))]
    return modules + shown


def lines(paths: list[Path], indent: str = "") -> Iterator[str]:
    """A line for each path and for everything below it; captions of neighbours begin in the same column."""
    names = [path.name + "/" * path.is_dir() for path in paths]
    column = max(map(len, names), default=0) + 2
    for path, name in zip(paths, names, strict=True):
        yield f"{indent}{name:{column}}{caption(path)}"
        if path.is_dir():
            yield from lines(children(path), indent + "  ")


def tree() -> str:
    """The block below the page's heading."""
    return "\n".join(lines([ROOT / name for name in (*PACKAGES, "tests")]))


def too_long() -> list[str]:
    return [line.strip() for line in tree().splitlines() if len(line) > WIDTH]


def test_captions_are_short() -> None:
    found = too_long()
    assert not found, f"the tree is {WIDTH} characters wide: shorten the first sentences of these docstrings"


def test_every_file_has_its_line() -> None:
    found = BLOCK.search(PAGE.read_text("utf-8"))
    assert found is not None
    written, expected = found[0].splitlines()[3:-1], tree().splitlines()
    assert written == expected, "the tree is out of date: make texts"


def main() -> None:
    """Write the tree."""
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + tree() + found[2], PAGE.read_text("utf-8"), count=1), "utf-8")
    if found := too_long():
        sys.exit("\n".join(["these first sentences of docstrings are too long:", *found]))


if __name__ == "__main__":
    main()
