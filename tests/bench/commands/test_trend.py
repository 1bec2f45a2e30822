"""`bench trend` as a user runs it; what it shows is tested in tests/results/test_trend.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fabricated_history import LOADING, NAMES, TRAINING, fill, record

from bench import cli
from bench.commands.trend import command
from bench.errors import BenchError, UsageError, WorkloadError
from results import store
from results.gate import Row
from results.verdict import CLEAN, REGRESSED, Decision


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("runs"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_its_options_reach_the_list_and_the_series(runs: Path, tmp_path: Path) -> None:
    listed = invoke("--store", str(runs))
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == list(NAMES)
    drawn = invoke("--store", str(runs), "loading", "--since", "2026-01-25")
    assert drawn.stdout.startswith(f"{LOADING}\n16 runs")
    path = tmp_path / "page.html"
    assert invoke("--store", str(runs), "--format", "html", "-o", str(path)).stdout == ""
    assert path.read_text().count("<svg") == 3


def test_files_that_are_no_runs_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "half.json").write_text('{"schema": 1, "kin')
    (tmp_path / "notes.txt").write_text("")
    result = invoke("--store", str(tmp_path))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"skipped {tmp_path / 'half.json'}: ends in the middle of its JSON; copy it again or measure again",
        f"skipped {tmp_path / 'notes.txt'}: not a .json file",
    ]
    assert "half" not in result.stdout
    again = invoke("--store", str(tmp_path))
    assert (again.stdout, again.stderr) == (result.stdout, result.stderr)


def test_bad_words_are_one_line(runs: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--store", str(tmp_path / "none")], "holds no run of a workload"),
        (["--store", str(runs), "--since", "2030-01-01"], "since 2030-01-01"),
        (["--store", str(runs), "--since", "yesterday"], "--since yesterday: write a date"),
        (["--store", str(runs), "--format", "svg"], "name it"),
        (["--store", str(runs), "-o", str(tmp_path / "no" / "file")], "there is no folder"),
        (["--store", str(runs), "bisect", "a", "b", "c"], "come after the word bisect"),
    ):
        result = invoke(*arguments)
        assert isinstance(result.exception, UsageError), arguments
        assert words in str(result.exception)
        assert result.stdout == ""
    assert invoke("--format", "pdf").exit_code == 2


def decide(verdict: str, estimate: float) -> Decision:
    return Decision(verdict, 0.02, 10, estimate, None, None, None, None, None, None)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A history of five commits in the working directory; their hashes."""
    monkeypatch.chdir(tmp_path)
    settings = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")

    def git(*words: str) -> str:
        return subprocess.run(["git", *settings, *words], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    hashes = []
    for number in range(5):
        git("commit", "-q", "--allow-empty", "-m", f"change {number}")
        hashes.append(git("rev-parse", "HEAD"))
    return hashes


def test_bisect_beside_an_id(repository: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.checking import check

    def duel_refs(folder: Path, base: str, head: str, workload: Any, say: Any) -> Row:
        assert folder == Path.cwd()
        assert base == repository[0]
        slow = repository.index(head) >= 2
        decision = decide(REGRESSED, 1.1) if slow else decide(CLEAN, 1.0)
        return Row(workload.id, decision.verdict, decision)

    monkeypatch.setattr(check, "duel_refs", duel_refs)
    result = invoke("bisect", "HEAD~4", "HEAD", TRAINING)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{TRAINING} became slower with {repository[2][:10]}")
    assert "change 2" in result.stdout
    assert "4 commits after" in result.stderr
    data = json.loads(invoke("bisect", "HEAD~4", "HEAD", TRAINING, "--format", "json").stdout)
    assert data["first_bad"]["hash"] == repository[2]
    for error, arguments in (
        (UsageError, ("HEAD~4", "HEAD", "training")),
        (WorkloadError, ("HEAD~4", "HEAD", "no-such-workload")),
        (UsageError, ("none", "HEAD", TRAINING)),
        (BenchError, ("HEAD~4", "HEAD~3", TRAINING)),
    ):
        assert isinstance(invoke("bisect", *arguments).exception, error)


def test_both_commands_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["trend", "--help"], ("Usage: bench trend [OPTIONS] [ID]", "bench trend bisect GOOD BAD ID")),
        (["trend", "bisect", "--help"], ("Usage: bench trend bisect [OPTIONS] GOOD BAD ID",)),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words)


def test_listing_imports_nothing_heavy(tmp_path: Path) -> None:
    store.save(record(1, {TRAINING: 0.02}), tmp_path / "a.json")
    code = (
        "import sys; from bench.commands.trend import command\n"
        f"command.main(['--store', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    root = Path(cli.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60, stdout=subprocess.DEVNULL)
