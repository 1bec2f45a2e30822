"""Code of other folders, imported beside packages of the same names that this process has already.

`beside("base", FOLDER, {"models"})` makes FOLDER's `models` importable as `base.models`. Its modules import each other
by their usual names (`from models import zoo`): in what is compiled of them, those names have `base.` before them. So
they mean the same to Python, to torch's compiler, which imports by name what it finds in a function, and at any time.
"""

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

OURS = ("bench", "kernels", "loaders", "models", "results")
"""The packages that this process has already, whoever started it."""

_under_way: ContextVar[str] = ContextVar("under_way", default="")
# Name that stands before a folder's modules -> what they call a module -> the name that stands before that one.
_beside: dict[str, dict[str, str]] = {}
_import_module = importlib.import_module


def beside(alias: str, folder: Path, names: Collection[str], others: Mapping[str, str] | None = None) -> None:
    """Have the modules and packages `names` of a folder importable as `alias.NAME`.

    Args:
        others: modules of other folders that those of this one import -> the alias before them.

    Raises:
        ValueError: the alias is taken, or is no name.
    """
    if alias in sys.modules or not alias.isidentifier():
        raise ValueError(f"no folder can be imported as {alias!r} here")
    package = ModuleType(alias)
    package.__path__ = [str(folder)]
    sys.modules[alias] = package
    _beside[alias] = {**(others or {}), **dict.fromkeys(names, alias)}
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    importlib.import_module = _importing_module


@contextlib.contextmanager
def importing(what: str) -> Iterator[None]:
    """Within it, `under_way` says that `what` is being imported."""
    token = _under_way.set(what)
    try:
        yield
    finally:
        _under_way.reset(token)


def under_way() -> str:
    """The file or module of the user's that is just being imported for a name; "" if none is."""
    return _under_way.get()


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
        tree = ast.parse(data, path)
        renamed = ast.fix_missing_locations(_Renaming(_beside[self.name.partition(".")[0]]).visit(tree))
        code: CodeType = compile(renamed, path, "exec", dont_inherit=True, optimize=_optimize)
        return code


class _Renaming(ast.NodeTransformer):
    """Puts its alias before each of these names that an import statement holds."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.aliases = aliases

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:  # noqa: N802 - ast's name
        if node.level == 0:
            node.module = _renamed(node.module or "", self.aliases)
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:  # noqa: N802 - ast's name
        found: list[ast.stmt] = []
        for one in node.names:
            new = _renamed(one.name, self.aliases)
            if new != one.name and one.asname is None:
                # `import models.zoo` binds `models`, and imports models.zoo besides.
                top = one.name.partition(".")[0]
                found.append(ast.Import([ast.alias(new, f"_{self.aliases[top]}")]))
                found.append(ast.Import([ast.alias(_renamed(top, self.aliases), top)]))
            else:
                found.append(ast.Import([ast.alias(new, one.asname)]))
        return [ast.copy_location(one, node) for one in found]


def _importing_module(name: str, package: str | None = None) -> ModuleType:
    """As importlib.import_module; names are those of the folder of the module that calls it."""
    importer = str(sys._getframe(1).f_globals.get("__name__", ""))
    aliases = _beside.get(importer.partition(".")[0], {})
    return _import_module(_renamed(name, aliases), package and _renamed(package, aliases))


def _renamed(name: str, aliases: Mapping[str, str]) -> str:
    alias = aliases.get(name.partition(".")[0])
    return f"{alias}.{name}" if alias else name
