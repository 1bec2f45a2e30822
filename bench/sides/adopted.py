"""Another tree's packages under another name in this process, beside this tree's own.

`adopt("base", FOLDER)` makes FOLDER's `models` importable as `base.models`, and so on for each of the five packages.
Its modules import each other by their usual names (`from models import zoo`); such an import is answered with the
adopted module, whoever asks and whenever, since what counts is the name of the module that imports.
"""

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import WorkloadError

PACKAGES = ("bench", "kernels", "loaders", "models", "results")
# Where a tree keeps what a side needs, the newest place first.
SESSIONS = ("bench.sides.session", "bench.worker")

_adopted: set[str] = set()
_import = builtins.__import__
_import_module = importlib.import_module


def adopt(alias: str, root: Path) -> Any:
    """A session that runs the code of the tree in `root`, whose packages are imported as `alias.bench` and so on.

    Raises:
        WorkloadError: the tree has no session, or the name is taken.
    """
    if alias in sys.modules or not alias.isidentifier():
        raise WorkloadError(f"no tree can be imported as {alias!r} here")
    package = ModuleType(alias)
    package.__path__ = [str(root)]
    sys.modules[alias] = package
    _adopted.add(alias)
    builtins.__import__ = _importing
    importlib.import_module = _importing_module
    for name in SESSIONS:
        try:
            found = _import_module(f"{alias}.{name}")
        except ModuleNotFoundError:
            continue
        if hasattr(found, "Session"):
            return found.Session()
    raise WorkloadError(f"the code in {root} cannot share a process: it has no session")


def _renamed(name: str, importer: Mapping[str, Any] | None) -> str:
    """The name to import in place of `name`, by who imports it."""
    alias = str((importer or {}).get("__name__", "")).partition(".")[0]
    return f"{alias}.{name}" if alias in _adopted and name.partition(".")[0] in PACKAGES else name


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
