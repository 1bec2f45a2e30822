"""Code of other folders, imported beside packages of the same names that this process has already.

`beside("base", FOLDER, {"models"})` makes FOLDER's `models` importable as `base.models`. Its modules import each other
by their usual names (`from models import zoo`): in what is compiled of them, those names have `base.` before them. So
they mean the same to Python, to torch's compiler, which imports by name what it finds in a function, and at any time.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

# Name that stands before a folder's modules -> the names that they are called by among themselves.
_beside: dict[str, frozenset[str]] = {}
_import_module = importlib.import_module


def beside(alias: str, folder: Path, names: Collection[str]) -> None:
    """Have the modules and packages `names` of a folder importable as `alias.NAME`.

    Raises:
        ValueError: the alias is taken, or is no name.
    """
    if alias in sys.modules or not alias.isidentifier():
        raise ValueError(f"no folder can be imported as {alias!r} here")
    package = ModuleType(alias)
    package.__path__ = [str(folder)]
    sys.modules[alias] = package
    _beside[alias] = frozenset(names)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    importlib.import_module = _importing_module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of those folders as Python does, and has their imports renamed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        alias = fullname.partition(".")[0]
        if alias not in _beside:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its imports renamed; compiled files in __pycache__ are of the code as it is written."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(  # type: ignore[override]
        self, data: Any, path: str, *, _optimize: int = -1
    ) -> CodeType:
        alias = self.name.partition(".")[0]
        tree = ast.parse(data, path)
        renamed = ast.fix_missing_locations(_Renaming(alias, _beside[alias]).visit(tree))
        code: CodeType = compile(renamed, path, "exec", dont_inherit=True, optimize=_optimize)
        return code


class _Renaming(ast.NodeTransformer):
    """Puts the alias before each name of its folder that an import statement holds."""

    def __init__(self, alias: str, names: Collection[str]) -> None:
        self.alias = alias
        self.names = names

    def theirs(self, name: str | None) -> bool:
        return (name or "").partition(".")[0] in self.names

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:  # noqa: N802 - ast's name
        if node.level == 0 and self.theirs(node.module):
            node.module = f"{self.alias}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:  # noqa: N802 - ast's name
        found: list[ast.stmt] = []
        for one in node.names:
            new = f"{self.alias}.{one.name}" if self.theirs(one.name) else one.name
            if new != one.name and one.asname is None:
                # `import models.zoo` binds `models`, and imports models.zoo besides.
                top = one.name.partition(".")[0]
                found.append(ast.Import([ast.alias(new, f"_{self.alias}")]))
                found.append(ast.Import([ast.alias(f"{self.alias}.{top}", top)]))
            else:
                found.append(ast.Import([ast.alias(new, one.asname)]))
        return [ast.copy_location(one, node) for one in found]


def _importing_module(name: str, package: str | None = None) -> ModuleType:
    """As importlib.import_module; names are those of the folder of the module that calls it."""
    importer: dict[str, Any] = sys._getframe(1).f_globals
    return _import_module(_renamed(name, importer), package and _renamed(package, importer))


def _renamed(name: str, importer: dict[str, Any]) -> str:
    alias = str(importer.get("__name__", "")).partition(".")[0]
    return f"{alias}.{name}" if name.partition(".")[0] in _beside.get(alias, ()) else name
