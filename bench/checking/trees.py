"""Two states of a repository as two folders, from which measuring processes take their code.

Of this project's repository, and its forks, each side is run by its own packages; of any other, the packages that run
now measure each side's code.

Snapshots, not `git worktree`: nothing is registered in the repository, so a killed check leaves nothing in it, and
editing files while a check runs changes nothing that it measures.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UsageError
from bench.processes import SOURCE
from models.names import TARGET
from models.project import OTHERWISE, ROOT, find
from results.gate import Side

# What a side must have, by its name of today or of before, so that it answers to the same commands.
NEEDED = (("bench/worker.py",), ("bench/inspecting/exact.py", "bench/exact.py"))

PACKAGES = ("bench", "kernels", "loaders", "models", "results")
# Of another repository: untracked files that may belong to its code, and how large they may be.
CODE = (
    ".py",
    ".pyi",
    ".pyx",
    ".c",
    ".cc",
    ".cpp",
    ".h",
    ".hpp",
    ".cu",
    ".cuh",
    ".toml",
    ".cfg",
    ".json",
    ".yaml",
    ".yml",
)
CODE_BYTES = 1 << 20
SETUP_SECONDS = 1800  # that making a side's code ready may take


@dataclass(frozen=True)
class Tree:
    """A snapshot.

    Attributes:
        side: which it is, as the report names it.
        root: folder that holds the five packages, or another repository's code.
        digest: of every file's content, hexadecimal: equal code has equal digests.
        python: interpreter that runs it.
        ours: it holds the five packages.
        settings: of another repository: the file whose settings hold where the tree has none of its own.
    """

    side: Side
    root: Path
    digest: str
    python: str
    ours: bool = True
    settings: str = ""

    @property
    def source(self) -> Path:
        """Folder of the packages that run it."""
        return self.root if self.ours else SOURCE

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that runs it alone."""
        return {} if self.ours else {ROOT: str(self.root), OTHERWISE: self.settings}


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
        new = working(top, folder)
        yield (old, new) if is_ours(top) else _of_another(repository, top, old, new)


@contextlib.contextmanager
def two_commits(repository: Path, base: str, head: str) -> Iterator[tuple[Tree, Tree]]:
    """Two commits, for looking back through a history; raises what `trees` raises."""
    top = top_of(repository)
    with _scratch() as folder:
        old = committed(top, "base", base, folder, sys.executable)
        new = committed(top, "head", head, folder, sys.executable)
        yield (old, new) if is_ours(top) else _of_another(repository, top, old, new)


def is_ours(top: Path) -> bool:
    """Whether a repository is this project's, or a fork."""
    return all(any((top / name).is_file() for name in names) for names in NEEDED)


def _of_another(repository: Path, top: Path, base: Tree, head: Tree) -> tuple[Tree, Tree]:
    """Both sides of another repository: where its code begins, which settings hold, and its code made ready."""
    project = find(repository)
    begins = (project.folder if project.file else repository.absolute()).resolve().relative_to(top.resolve())
    settings = str(head.root / begins / project.file.name) if project.file else ""
    return _made_ready(base, begins, settings), _made_ready(head, begins, settings)


def _made_ready(tree: Tree, begins: Path, settings: str) -> Tree:
    root = tree.root / begins
    if not root.is_dir():
        raise UsageError(f"{tree.side.ref or 'the working tree'} has no folder {begins}, where the settings are")
    command = find(root).setup or (find(Path(settings).parent).setup if settings else "")
    if command:
        words = command.replace("{target}", shlex.quote(str(root / TARGET)))
        try:
            done = subprocess.run(words, shell=True, cwd=root, capture_output=True, timeout=SETUP_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"setup of the {tree.side.name} took more than {SETUP_SECONDS // 60} minutes: {command}"
            ) from None
        if done.returncode:
            said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UsageError(f"setup of the {tree.side.name} failed ({command}): {said[-1]}")
    return replace(tree, root=root, ours=False, settings=settings)


def running() -> Tree:
    """The code that runs now, where it lies: this project's, or that of the repository whose settings hold here."""
    from bench.machine.software import measured_commit

    project, found = find(), measured_commit() or {}
    side = Side("head", "", found.get("sha"), bool(found.get("dirty")))
    place = project.folder if project.file else SOURCE
    return Tree(side, place, _digest(place), sys.executable, ours=not project.file)


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
    if is_ours(top):
        _refuse_old(root, f"{ref} ({commit[:10]})")
    return Tree(Side(name, ref, commit), root, _digest(root), python)


def working(top: Path, folder: Path) -> Tree:
    """HEAD's files with every uncommitted change, also files not yet tracked, in folder/head."""
    commit = commit_of(top, "HEAD")
    root = folder / "head"
    _check_out(top, commit, root)
    changed = _names(top, "diff", "--name-only", "-z", "--no-renames", "HEAD")
    # Of untracked files only those that may be code: data sets and results may lie in the folder too.
    within = PACKAGES if is_ours(top) else ()
    added = _names(top, "ls-files", "--others", "--exclude-standard", "-z", "--", *within)
    if not within:
        added = [name for name in added if name.endswith(CODE) and (top / name).stat().st_size <= CODE_BYTES]
    with _full_disk():
        for name in [*changed, *added]:
            here, there = top / name, root / name
            if here.is_symlink() or here.is_file():
                there.parent.mkdir(parents=True, exist_ok=True)
                there.unlink(missing_ok=True)
                shutil.copy2(here, there, follow_symlinks=False)
            elif not here.exists():
                there.unlink(missing_ok=True)
    if is_ours(top):
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
    places = [root / name for name in PACKAGES] if is_ours(root) else [root]
    for path in sorted(path for place in places for path in place.rglob("*") if path.suffix in CODE and path.is_file()):
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
