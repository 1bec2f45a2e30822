"""Two states of a repository as two folders, from which measuring processes take their code.

Snapshots, not `git worktree`: nothing is registered in the repository, so a killed check leaves nothing in it, and
editing files while a check runs changes nothing that it measures.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from results.gate import Side

# What a side must have, by its name of today or of before, so that it answers to the same commands.
NEEDED = (("bench/worker.py",), ("bench/inspecting/exact.py", "bench/exact.py"))

PACKAGES = ("bench", "kernels", "loaders", "models", "results")


@dataclass(frozen=True)
class Tree:
    """A snapshot.

    Attributes:
        side: which it is, as the report names it.
        root: folder that holds the five packages.
        digest: of every file's content, hexadecimal: equal code has equal digests.
        python: interpreter that runs it.
    """

    side: Side
    root: Path
    digest: str
    python: str


@contextlib.contextmanager
def trees(repository: Path, base: str, base_environment: Path | None = None) -> Iterator[tuple[Tree, Tree]]:
    """Base and head: `base` as committed, and the working tree with its uncommitted changes.

    Args:
        repository: any folder of a git repository.
        base: a commit, branch or tag.
        base_environment: a virtual environment whose interpreter and packages run the base.

    Raises:
        UsageError: no repository, no such commit, a base too old to be measured, no interpreter, a full disk.
    """
    top = top_of(repository)
    with _scratch() as folder:
        old = committed(top, "base", base, folder, interpreter(base_environment))
        yield old, working(top, folder)


@contextlib.contextmanager
def two_commits(repository: Path, base: str, head: str) -> Iterator[tuple[Tree, Tree]]:
    """Two commits, for looking back through a history; raises what `trees` raises."""
    top = top_of(repository)
    with _scratch() as folder:
        yield (
            committed(top, "base", base, folder, sys.executable),
            committed(top, "head", head, folder, sys.executable),
        )


def running() -> Tree:
    """The code that runs now, where it lies."""
    from bench.machine.software import commit
    from bench.processes import SOURCE

    found = commit(SOURCE / "bench") or {}
    side = Side("head", "", found.get("sha"), bool(found.get("dirty")))
    return Tree(side, SOURCE, _digest(SOURCE), sys.executable)


def top_of(repository: Path) -> Path:
    """The folder a repository begins in. Raises UsageError where there is none."""
    done = _run(repository, "rev-parse", "--show-toplevel")
    if b"dubious ownership" in done.stderr:
        raise UsageError(
            f"{repository} belongs to another user, so git refuses it; accept it with: "
            f"git config --global --add safe.directory {repository}"
        )
    if done.returncode:
        raise UsageError(
            f"{repository} is not in a git repository; run this inside one, or compare with a stored run by --baseline"
        )
    return Path(os.fsdecode(done.stdout).strip())


def commit_of(top: Path, ref: str) -> str:
    """The full hash of a commit. Raises UsageError where there is none."""
    found = None if ref.startswith("-") else _answer(top, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if not found:
        shallow = _answer(top, "rev-parse", "--is-shallow-repository")
        advice = (
            "this clone is shallow: fetch its history first (git fetch --unshallow)"
            if shallow and shallow.strip() == "true"
            else "git log --oneline shows what there is"
        )
        raise UsageError(f"no commit is called {ref!r} in {top}; {advice}")
    return found.strip()


def committed(top: Path, name: str, ref: str, folder: Path, python: str) -> Tree:
    """A commit's files in folder/name."""
    commit = commit_of(top, ref)
    root = folder / name
    _check_out(top, commit, root)
    _refuse_old(root, f"{ref} ({commit[:10]})")
    return Tree(Side(name, ref, commit), root, _digest(root), python)


def working(top: Path, folder: Path) -> Tree:
    """HEAD's files with every uncommitted change, also files not yet tracked, in folder/head."""
    commit = commit_of(top, "HEAD")
    root = folder / "head"
    _check_out(top, commit, root)
    changed = _names(top, "diff", "--name-only", "-z", "--no-renames", "HEAD")
    # Of untracked files only those that may be code: data sets and results may lie in the folder too.
    added = _names(top, "ls-files", "--others", "--exclude-standard", "-z", "--", *PACKAGES)
    with _full_disk():
        for name in [*changed, *added]:
            here, there = top / name, root / name
            if here.is_symlink() or here.is_file():
                there.parent.mkdir(parents=True, exist_ok=True)
                there.unlink(missing_ok=True)
                shutil.copy2(here, there, follow_symlinks=False)
            elif not here.exists():
                there.unlink(missing_ok=True)
    _refuse_old(root, "the working tree")
    # A new file that is not code (a log, a picture) does not make the tree dirty.
    dirty = bool(changed) or any(name.endswith(".py") for name in added)
    return Tree(Side("head", "", commit, dirty), root, _digest(root), sys.executable)


def interpreter(environment: Path | None) -> str:
    """Of a virtual environment; this one's where none is named. Raises UsageError where there is none."""
    if environment is None:
        return sys.executable
    for place in ("bin/python", "Scripts/python.exe"):
        if os.access(environment / place, os.X_OK):
            # Not resolved: a virtual environment is known by the place its interpreter is called at.
            return str((environment / place).absolute())
    raise UsageError(f"{environment} is not a virtual environment (it has no bin/python); name its folder")


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with _full_disk():
        folder = Path(tempfile.mkdtemp(prefix="bench-check-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        raise UsageError(
            f"cannot write a snapshot{place}: {error.strerror or error}; free some space or set TMPDIR to another place"
        ) from error


def _check_out(top: Path, commit: str, root: Path) -> None:
    with _full_disk():
        root.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="bench-index-") as place:
            # An index of its own: the repository's stays as it is.
            environment = {"GIT_INDEX_FILE": str(Path(place) / "index")}
            for words in (("read-tree", commit), ("checkout-index", "--all", f"--prefix={root}/")):
                git(top, *words, environment=environment)


def _refuse_old(root: Path, what: str) -> None:
    missing = [names for names in NEEDED if not any((root / name).is_file() for name in names)]
    if missing:
        raise UsageError(
            f"{what} has no {missing[0][-1]}, so it cannot be measured by this version; choose a later base, "
            "or compare with a stored run by --baseline"
        )


def _digest(root: Path) -> str:
    seen = hashlib.sha256()
    for path in sorted(path for name in PACKAGES for path in (root / name).rglob("*.py")):
        seen.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return seen.hexdigest()[:16]


def _names(top: Path, *words: str) -> list[str]:
    return [os.fsdecode(name) for name in git(top, *words).split(b"\0") if name]


def _answer(place: Path, *words: str) -> str | None:
    """What a git command prints, None where it fails."""
    done = _run(place, *words)
    return None if done.returncode else os.fsdecode(done.stdout)


def git(place: Path, *words: str, environment: Mapping[str, str] | None = None, fine: Sequence[int] = (0,)) -> bytes:
    """What a git command prints.

    Args:
        fine: exit codes that are an answer.

    Raises:
        UsageError: it failed, with git's reason; or git is not installed.
    """
    done = _run(place, *words, environment=environment)
    if done.returncode not in fine:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
        raise UsageError(f"git {words[0]} failed in {place}: {reason[-1]}")
    return done.stdout


def _run(
    place: Path, *words: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(place), *words],
            # Nothing is fetched, not even what a partial clone or an attribute leaves on a server.
            env={**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_LFS_SKIP_SMUDGE": "1", **(environment or {})},
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UsageError("git is not installed, and --base needs it; install it, or use --baseline") from error
