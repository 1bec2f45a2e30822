"""Another tree's packages under another name in this process, beside this tree's own: see models.imports."""

import importlib
from pathlib import Path
from typing import Any

from bench.errors import WorkloadError
from models.imports import beside

PACKAGES = ("bench", "kernels", "loaders", "models", "results")
# Where a tree keeps what a side needs, the newest place first.
SESSIONS = ("bench.sides.session", "bench.worker")


def adopt(alias: str, root: Path) -> Any:
    """A session that runs the code of the tree in `root`, whose packages are imported as `alias.bench` and so on.

    Raises:
        WorkloadError: the tree has no session, or the name is taken.
    """
    try:
        beside(alias, root, PACKAGES)
    except ValueError as error:
        raise WorkloadError(str(error)) from None
    for name in SESSIONS:
        try:
            found = importlib.import_module(f"{alias}.{name}")
        except ModuleNotFoundError:
            continue
        if hasattr(found, "Session"):
            return found.Session()
    raise WorkloadError(f"the code in {root} cannot share a process: it has no session")
