"""Code of other folders, imported beside packages of the same names that this process has already.

`beside("base", FOLDER, {"models"})` makes FOLDER's `models` importable as `base.models`. Its modules import each other
by their usual names (`from models import zoo`); such an import is answered with the module of their own folder, whoever
asks and whenever, since what counts is the name of the module that imports.
"""

import builtins
import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# Name that stands before a folder's modules -> the names that they are called by among themselves.
_beside: dict[str, frozenset[str]] = {}
_import = builtins.__import__
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
    builtins.__import__ = _importing
    importlib.import_module = _importing_module


def _renamed(name: str, importer: Mapping[str, Any] | None) -> str:
    """The name to import in place of `name`, by who imports it."""
    alias = str((importer or {}).get("__name__", "")).partition(".")[0]
    return f"{alias}.{name}" if name.partition(".")[0] in _beside.get(alias, ()) else name


def _importing(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """As builtins.__import__."""
    new = _renamed(name, globals) if level == 0 else name
    if new == name:
        return _import(name, globals, locals, fromlist or (), level)
    found = _import(new, globals, locals, fromlist or ("",), 0)
    # `import models.zoo` binds `models`.
    return found if fromlist else sys.modules[".".join(new.split(".")[:2])]


def _importing_module(name: str, package: str | None = None) -> ModuleType:
    """As importlib.import_module."""
    importer = sys._getframe(1).f_globals
    return _import_module(_renamed(name, importer), package and _renamed(package, importer))
