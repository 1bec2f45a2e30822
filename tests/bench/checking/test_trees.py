import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.checking.trees import commit_of, interpreter, running, top_of, trees, two_commits
from bench.errors import UsageError
from bench.processes import SOURCE


def git(place: Path, *words: str) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["git", "-C", str(place), *words], check=True, capture_output=True, text=True, env={**os.environ, **identity}
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "it"
    (place / "bench").mkdir(parents=True)
    git(place, "init", "-q", "-b", "main")
    (place / "readme").write_text("before the check was there")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "old")
    for name in ("worker.py", "exact.py", "gone.py"):
        (place / "bench" / name).write_text(f"# {name}\n")
    (place / ".gitignore").write_text("*.log\n")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "new")
    return place


def test_both_sides_are_snapshots_and_leave_nothing_behind(repository: Path) -> None:
    before = git(repository, "status", "--porcelain"), git(repository, "worktree", "list")
    with trees(repository, "HEAD") as (base, head):
        assert (base.side.name, head.side.name) == ("base", "head")
        assert base.side.commit == head.side.commit == git(repository, "rev-parse", "HEAD")
        assert not head.side.dirty
        assert base.digest == head.digest
        assert base.root != head.root
        assert len(str(base.root)) == len(str(head.root)), "a longer path is a larger environment"
        assert base.python == sys.executable
        (repository / "bench" / "worker.py").write_text("# edited while it runs\n")
        assert (head.root / "bench" / "worker.py").read_text() == "# worker.py\n"
        roots = base.root, head.root
    assert not any(root.exists() for root in roots)
    git(repository, "checkout", "-q", "--", ".")
    assert (git(repository, "status", "--porcelain"), git(repository, "worktree", "list")) == before


def test_uncommitted_changes_are_measured_and_said(repository: Path) -> None:
    (repository / "bench" / "worker.py").write_text("# slower\n")
    (repository / "bench" / "extra.py").write_text("# not yet tracked\n")
    (repository / "bench" / "noise.log").write_text("ignored\n")
    (repository / "bench" / "gone.py").unlink()
    with trees(repository / "bench", "main") as (base, head):
        assert head.side.dirty
        assert base.digest != head.digest
        assert (head.root / "bench" / "worker.py").read_text() == "# slower\n"
        assert (head.root / "bench" / "extra.py").is_file()
        assert not (head.root / "bench" / "noise.log").exists()
        assert not (head.root / "bench" / "gone.py").exists()
        assert (base.root / "bench" / "gone.py").is_file()


def test_a_staged_change_is_a_change_too(repository: Path) -> None:
    (repository / "bench" / "worker.py").write_text("# staged\n")
    git(repository, "add", "-A")
    with trees(repository, "HEAD") as (_, head):
        assert head.side.dirty
        assert (head.root / "bench" / "worker.py").read_text() == "# staged\n"


def test_a_picture_that_is_not_tracked_makes_nothing_dirty(repository: Path) -> None:
    (repository / "curves.png").write_bytes(b"x")
    with trees(repository, "HEAD") as (_, head):
        assert not head.side.dirty


def test_two_commits(repository: Path) -> None:
    (repository / "bench" / "worker.py").write_text("# third\n")
    git(repository, "commit", "-qam", "third")
    with two_commits(repository, "HEAD~1", "HEAD") as (base, head):
        assert (base.root / "bench" / "worker.py").read_text() == "# worker.py\n"
        assert (head.root / "bench" / "worker.py").read_text() == "# third\n"


@pytest.mark.parametrize("ref", ["nowhere", "--all", "HEAD:bench", ""])
def test_a_base_that_does_not_exist(repository: Path, ref: str) -> None:
    with pytest.raises(UsageError, match="no commit is called"), trees(repository, ref):
        pass


def test_a_shallow_clone_is_named_as_the_cause(repository: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{repository}", str(tmp_path / "clone")], check=True)
    with pytest.raises(UsageError, match="shallow"):
        commit_of(tmp_path / "clone", "HEAD~1")


def test_a_base_older_than_the_command(repository: Path) -> None:
    with pytest.raises(UsageError, match=r"HEAD~1 .* has no bench/worker.py"), trees(repository, "HEAD~1"):
        pass


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not in a git repository"):
        top_of(tmp_path)


def test_interpreter(tmp_path: Path) -> None:
    assert interpreter(None) == sys.executable
    with pytest.raises(UsageError, match="not a virtual environment"):
        interpreter(tmp_path)
    place = tmp_path / "bin" / "python"
    place.parent.mkdir()
    place.symlink_to(sys.executable)
    assert interpreter(tmp_path) == str(place), "resolved, it would lose its packages"


def test_a_full_disk_is_one_line(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*unused: object, **also: object) -> str:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr("bench.checking.trees.tempfile.mkdtemp", full)
    with pytest.raises(UsageError, match="No space left on device.*free some space"), trees(repository, "HEAD"):
        pass


def test_the_running_code() -> None:
    tree = running()
    assert (tree.root / "bench" / "worker.py").is_file()
    assert tree.side.name == "head"


# Another repository: its code is measured by the packages that run now.


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "theirs"
    (place / "sub" / "package").mkdir(parents=True)
    git(place, "init", "-q", "-b", "main")
    (place / "sub" / "package" / "nets.py").write_text("WIDTH = 3\n")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "old")
    monkeypatch.chdir(place / "sub")
    return place


def test_another_repositorys_code_begins_where_its_settings_are(another: Path) -> None:
    (another / "sub" / "pixbench.toml").write_text("[models]\nmine = 'package.nets:Net'\n")
    (another / "sub" / "package" / "new.py").write_text("NEW = True\n")
    (another / "picture.png").write_bytes(b"large")
    with trees(another / "sub", "HEAD") as (base, head):
        assert (base.ours, head.ours) == (False, False)
        assert base.source == head.source == SOURCE
        assert (base.root.name, head.root.name) == ("sub", "sub")
        # Not yet committed: code and settings are measured, pictures are not copied.
        assert (head.root / "package" / "new.py").is_file()
        assert not (head.root.parent / "picture.png").exists()
        assert head.side.dirty
        assert base.digest != head.digest
        # The base has no settings, so those of the head hold.
        assert base.settings == head.settings == str(head.root / "pixbench.toml")
        assert base.environment == {"BENCH_WORKER_ROOT": str(base.root), "BENCH_WORKER_PROJECT": base.settings}
    with two_commits(another / "sub", "HEAD", "HEAD") as (base, head):
        assert base.digest == head.digest


def test_each_side_is_made_ready_once(another: Path) -> None:
    settings = "[check]\nsetup = 'mkdir {target} && cp package/nets.py {target}/built.py'\n"
    (another / "sub" / "pixbench.toml").write_text(settings)
    (another / "sub" / "package" / "nets.py").write_text("WIDTH = 4\n")
    with trees(another / "sub", "HEAD") as (base, head):
        assert (base.root / ".pixbench" / "built.py").read_text() == "WIDTH = 3\n"
        assert (head.root / ".pixbench" / "built.py").read_text() == "WIDTH = 4\n"
    assert not (another / "sub" / ".pixbench").exists()


def test_a_setup_that_fails_says_what_it_said(another: Path) -> None:
    (another / "sub" / "pixbench.toml").write_text("[check]\nsetup = 'echo no compiler; exit 3'\n")
    with (
        pytest.raises(UsageError, match=r"setup of the base failed \(echo no compiler; exit 3\): no compiler"),
        trees(another / "sub", "HEAD"),
    ):
        pass


def test_a_base_without_the_folder_says_so(another: Path) -> None:
    (another / "later").mkdir()
    (another / "later" / "pixbench.toml").write_text("")
    with (
        pytest.raises(UsageError, match="HEAD has no folder later, where the settings are"),
        trees(another / "later", "HEAD"),
    ):
        pass
