"""A repository's own settings: `pixbench.toml`, or the table [tool.pixbench] of pyproject.toml.

    data = "data/train"                          # default of --data
    [models]                                     # names for networks; [loaders] and [steps] likewise
    mine = "mypackage.nets:build[width=64]"
    [options.compare]                            # defaults of a command's options
    budget = 60
    [check]
    setup = "pip install --no-deps --target {target} ."
    [[workloads]]                                # what `bench check` and `pytest bench` measure
    task = "inference"
    model = "mine"
    batch = 8

It also knows the folder in which files and modules of the user's are looked for. Imports no torch.
"""

import contextlib
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.names import Name

OWN_FILE = "pixbench.toml"
SHARED_FILE = "pyproject.toml"
ROOT = "BENCH_WORKER_ROOT"
"""Variable of a measuring process: the folder of the code that it measures."""
OTHERWISE = "BENCH_WORKER_PROJECT"
"""Variable of a measuring process: the file whose settings hold where that folder has none of its own."""
KINDS = {"models": "model", "loaders": "loader", "steps": "step"}
"""Table of names -> what they stand for."""
WORKLOAD_KEYS = {
    "task": str, "model": str, "loader": str, "step": str, "configuration": str, "batch": int, "size": int,
    "classes": int, "margin": float,
}  # fmt: skip
"""Key of a workload -> its type."""
CHECK_KEYS = {"setup": str}
TABLES = {"data": str, "options": dict, "check": dict, "workloads": list}
"""What the file may hold besides names -> its type."""

_root: ContextVar[Path | None] = ContextVar("root", default=None)


@contextlib.contextmanager
def rooted(folder: Path | None) -> Iterator[None]:
    """Within it, files, modules and settings are looked for in this folder instead of the working directory."""
    token = _root.set(folder)
    try:
        yield
    finally:
        _root.reset(token)


def elsewhere() -> bool:
    """Whether another folder than the process's own was set by `rooted`."""
    return _root.get() is not None


def root() -> Path:
    """The folder in which files and modules are looked for."""
    return _root.get() or Path(os.environ.get(ROOT) or Path.cwd())


@dataclass(frozen=True)
class Project:
    """The settings of a repository.

    Attributes:
        folder: that holds the file; relative paths in it begin there.
        file: the file; None where there is none, and nothing is set.
        names: a name -> (what it is, what it stands for), over all of KINDS.
        data: default of --data, "" for none.
        options: command -> option -> default.
        setup: command that makes a side's code ready to be imported, "" for none.
        workloads: tables with WORKLOAD_KEYS.
    """

    folder: Path
    file: Path | None = None
    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    data: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    setup: str = ""
    workloads: tuple[Mapping[str, Any], ...] = ()

    def kind(self, name: str) -> str:
        """What a name is: "model", "loader" or "step"; "" where it is none of this file's."""
        return self.names.get(name, ("", ""))[0]


def find(folder: Path | None = None) -> Project:
    """The settings that hold in a folder: of it, or of the nearest one above it in the same repository.

    Raises:
        ModelError: the file cannot be read, or holds what means nothing.
    """
    start = (folder or root()).absolute()
    for place in (start, *start.parents):
        for path in (place / OWN_FILE, place / SHARED_FILE):
            if path.is_file() and (found := _read(path, path.stat().st_mtime_ns)) is not None:
                return found
        # A repository ends here.
        if (place / ".git").exists():
            break
    other = Path(os.environ.get(OTHERWISE) or start / OWN_FILE)
    if other.is_file() and (found := _read(other, other.stat().st_mtime_ns)) is not None:
        return replace(found, folder=start)
    return Project(start)


def named(text: str) -> Name:
    """A name taken apart, with what a name of this project's stands for in its place.

    Raises:
        ModelError: it cannot be read.
    """
    given = Name.from_text(text)
    if given.is_code or not given.base.isidentifier():
        return given
    project = find()
    if given.base not in project.names:
        return given
    meant = Name.from_text(project.names[given.base][1])
    base = meant.base
    if project.folder != root():
        if meant.is_code and meant.is_file:
            base = f"{project.folder / meant.place}:{meant.attribute}"
        elif (inside := Name(str(project.folder / meant.base))).has_weights:
            base = inside.base
    return Name(base, {**meant.arguments, **given.arguments})


@cache
def _read(path: Path, changed: int) -> Project | None:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if path.name == SHARED_FILE:
            # Other tools say what is wrong with it.
            return None
        raise ModelError(f"{path} cannot be read: {error}") from error
    if path.name == SHARED_FILE:
        table = table.get("tool", {}).get("pixbench")
        if table is None:
            return None
    where = path.name if path.name == OWN_FILE else f"[tool.pixbench] in {path.name}"
    kinds: dict[str, Any] = {
        "data": str,
        "options": dict,
        "check": dict,
        "workloads": list,
        **dict.fromkeys(KINDS, dict),
    }
    _check(table, kinds, where)
    names: dict[str, tuple[str, str]] = {}
    for group, kind in KINDS.items():
        for name, meant in table.get(group, {}).items():
            if not name.isidentifier():
                raise ModelError(f"{where}: {name!r} in [{group}] is no name: use letters, digits and _")
            if not isinstance(meant, str):
                raise ModelError(f"{where}: {name} in [{group}] is {meant!r}; write what it stands for in quotes")
            if name in names:
                raise ModelError(f"{where}: {name} stands for two things")
            if Name.from_text(meant).base == name:
                raise ModelError(f"{where}: {name} stands for itself; write what it is, such as mynet.py:Net")
            names[name] = (kind, meant)
    check = table.get("check", {})
    _check(check, CHECK_KEYS, f"{where}, [check]")
    workloads = table.get("workloads", [])
    for number, workload in enumerate(workloads, 1):
        if not isinstance(workload, dict):
            raise ModelError(f"{where}: write each workload as a table, [[workloads]]")
        _check(workload, WORKLOAD_KEYS, f"{where}, workload {number}")
    for command, options in table.get("options", {}).items():
        if not isinstance(options, dict):
            raise ModelError(f"{where}: write the options of a command as a table, [options.{command}]")
    return Project(
        folder=path.parent,
        file=path,
        names=names,
        data=table.get("data", ""),
        options=table.get("options", {}),
        setup=check.get("setup", ""),
        workloads=tuple(workloads),
    )


def _check(table: Mapping[str, Any], known: Mapping[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ModelError(
                f"{where} has no {key!r}{f', did you mean {near[0]}?' if near else ''}; known: {', '.join(known)}"
            )
        wanted = known[key]
        if not isinstance(value, (int, float) if wanted is float else wanted) or (wanted is int and value is True):
            raise ModelError(f"{where}: {key} is {value!r}, and should be of type {wanted.__name__}")
