"""`bench check` as its user meets it; the last test runs real processes of two real commits."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from command_line import ROOT, bench, bench_here

from bench.checking import looks, sides
from bench.checking.check import confirmed
from bench.checking.looks import Duel
from bench.checking.trees import trees
from bench.commands import check
from bench.selfcheck.__main__ import judge
from bench.timing.workload import Conditions, Workload
from results.gate import Row
from results.verdict import LOOKS, REGRESSED

LENET = "inference/lenet@fp32-nchw-eager/b64/s32/c10/cpu"


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for tests that change nothing in it."""
    return repository(tmp_path_factory.mktemp("unchanged"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name either --base REF or --baseline"),
        (("--base", "HEAD", "--baseline", "x"), "not both"),
        (("--baseline", "x", "--exact"), "--exact and --base-env go with --base"),
        (("--base", "HEAD", "--allow", "speed"), "there is no such fact or verdict; there are parameters"),
        (("--base", "HEAD", "--workloads", "resnet34"), "is no workload's id"),
        (("--base", "HEAD", "--workloads", LENET.replace("/cpu", "/cuda")), "this check runs on cpu"),
        (("--base", "HEAD", "--workloads", f"{LENET},{LENET}"), "named twice"),
        (("--base", "nowhere", "--workloads", LENET), "no commit is called 'nowhere'"),
        (("--base", "HEAD", "--workloads", LENET, "--base-env", "/nowhere"), "is not a virtual environment"),
        (("--base", "HEAD", "-o", "/nowhere/x.json"), "there is no folder /nowhere"),
        (("--baseline", "/nowhere.json", "--workloads", LENET), "cannot read /nowhere.json"),
    ],
)
def test_bad_words(words: tuple[str, ...], said: str, unchanged: Path, tmp_path: Path) -> None:
    done = bench_here("check", "--device", "cpu", *words, cwd=unchanged, XDG_CACHE_HOME=str(tmp_path))
    done.refused(said)


@pytest.mark.parametrize("command", [check.command, judge])
def test_as_many_looks_may_be_asked_for_as_there_are(command: click.Command) -> None:
    [option] = [parameter for parameter in command.params if parameter.name == "looks"]
    assert isinstance(option.type, click.IntRange)
    assert (option.type.max, option.default) == (len(LOOKS), len(LOOKS))


def test_workloads_come_from_files_too(tmp_path: Path) -> None:
    from bench.checking.check import ids

    file = tmp_path / "ids"
    file.write_text(f"# what matters\n{LENET}\n\n")
    assert ids((str(file), "a,b")) == [LENET, "a", "b"]


def repository(place: Path) -> Path:
    """This project's packages as the first commit of a repository."""
    made = place / "it"
    for name in ("bench", "kernels", "loaders", "models", "results"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__", "published"))
    commit(made, "first", new=True)
    return made


def commit(made: Path, message: str, new: bool = False) -> None:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    for words in (*((["init", "-q"],) if new else ()), ["add", "-A"], ["commit", "-qm", message]):
        subprocess.run(["git", "-C", str(made), *words], check=True, env={**os.environ, **identity})


def test_a_wrong_change_is_caught_without_any_timing(tmp_path: Path) -> None:
    """Fast but wrong: another pooling has the same parameters, MACs and shapes, and computes something else."""
    made = repository(tmp_path)
    file = made / "models" / "lenet.py"
    assert "pool2=nn.MaxPool2d(2)" in file.read_text()
    file.write_text(file.read_text().replace("pool2=nn.MaxPool2d(2)", "pool2=nn.AvgPool2d(2)"))
    out = tmp_path / "check.json"
    words = ("--exact", "--device", "cpu", "--threads", "1", "--workloads", LENET, "--format", "json", "-o", out)
    environment = {"PYTHONPATH": str(made), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = bench("check", "--base", "HEAD", *words, cwd=made, environment=environment)
    assert done.returncode == 1, done.stderr
    report = json.loads(out.read_text())
    assert report["verdict"] == "CHANGED"
    assert report["head"]["dirty"]
    assert {fact["name"] for fact in report["facts"] if not fact["same"]} == {"operators", "output"}


@pytest.mark.slow
def test_a_slowdown_on_a_branch_is_caught_and_what_it_does_not_touch_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At small scale: three blocks and a quarter more work in inference, so that no busy machine can hide it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(looks, "TURNS_SECONDS", 0.5)
    sides.open_caches()
    made = repository(tmp_path)
    file = made / "bench" / "timing" / "step.py"
    line = "        lambda: forward(images),\n"
    assert line in file.read_text()
    file.write_text(file.read_text().replace(line, "        slower(lambda: forward(images)),\n") + SLOWER)
    commit(made, "slower")
    slow, untouched = Workload.from_id(LENET), Workload.from_id(LENET.replace("inference", "training"))

    with trees(made, "HEAD~1") as (base, head):
        assert base.digest != head.digest
        assert not head.side.dirty

        def measured(workloads: list[Workload], seed: int) -> list[Row]:
            duel = Duel(base, head, workloads, Conditions(threads=1), looks=(3,), alphas=(0.13,), seed=seed)
            duel.run()
            return [duel.row(workload) for workload in workloads]

        def again(names: list[str]) -> dict[str, Row]:
            return {row.workload: row for row in measured([Workload.from_id(name) for name in names], 1)}

        rows = confirmed(measured([slow, untouched], 0), again)
    assert [row.verdict == REGRESSED for row in rows] == [True, False]
    assert rows[0].again is not None
    assert rows[0].decision is not None
    assert 1.1 < rows[0].decision.estimate < 1.5


SLOWER = '''

def slower(call):
    """A quarter more work in every step."""
    from time import perf_counter

    def step():
        begin = perf_counter()
        result = call()
        end = perf_counter()
        while perf_counter() < end + (end - begin) / 4:
            pass
        return result

    return step
'''
