"""Runs as jobs of a cluster: each is trained once, whatever is killed; on fabricated clusters, and in Slurm's words."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from bench.commands.study import command
from bench.errors import UsageError
from bench.locks import hold
from bench.runs import cluster, study
from bench.runs.cluster import Attempts, Claim, Slurm, State, Submitting, Work, _ray_state
from bench.runs.engines import End, Job, Local
from bench.runs.folder import LOCK, DataFolders
from bench.runs.plan import StudyError, plan_runs
from bench.runs.study import Conductor, condition
from bench.screen import Screen
from loaders import separable
from loaders.datasets import Dataset
from results.lines import read_lines
from results.runs import RunSummary

DATA = DataFolders("/data")
OPENED = [Dataset(f"cifar10/{split}", "", split, (), (0,) * 20, ("a",)) for split in ("train", "test")]
PLAN = plan_runs("optimizers", {"optimizer": ("sgd", "adam")})


class Cluster:
    """One that does at once what `jobs` says: (run, attempt) -> what becomes of the job; others train and finish."""

    name = "slurm"

    def __init__(self, jobs: Mapping[tuple[str, int], State | Callable[[], None]] | None = None) -> None:
        self.jobs = dict(jobs or {})
        self.submitted: list[tuple[str, int]] = []
        self.known: dict[str, tuple[State, str]] = {}

    def submit(self, folder: Path, attempt: int, claim: Claim) -> None:
        key = (claim.job.run, attempt)
        self.submitted.append(key)
        what = self.jobs.get(key, "over")
        if callable(what):
            what()
        elif what == "over":
            Work(str(folder), *key).train(claim.name)
            self.known[claim.name] = ("over", "COMPLETED")
        else:
            self.known[claim.name] = (what, "NODE_FAIL" if what == "lost" else "CANCELLED by 0")

    def states(self, names: Sequence[str]) -> Mapping[str, tuple[State, str]]:
        return {name: self.known[name] for name in names if name in self.known}

    def last_words(self, folder: Path, attempt: int, claim: Claim) -> str:
        return "bench: node9 does not see it"

    def stop_line(self, names: Sequence[str]) -> str:
        return f"scancel {len(names)}"


class Lines(Screen):
    """Keeps the lines that stay."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Ended:
    pid = 0

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """In place of `bench train`: a run ends with the exit code here, 0 where none is; and nobody is waited for."""
    codes: dict[str, int] = {}

    def start(job: Job, folder: Path, *_: object) -> Ended:
        place, code = folder / job.run, codes.get(job.run, 0)
        place.mkdir(exist_ok=True)
        (folder / f"{job.run}.log").write_text("bench: the loss is nan\n")
        if code == 0:
            RunSummary(job.run, "lenet", "cifar10", job.run, "test", "finished", epochs=50, top1=0.5).save(place)
        return Ended(code)

    monkeypatch.setattr(Job, "start", start)
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    monkeypatch.setattr(cluster, "LOOK", 0.01)
    return codes


def conduct(folder: Path, on: Any, watching: bool = False) -> tuple[list[RunSummary], list[str]]:
    screen = Lines()
    engine = Submitting(on, screen.say, watching, interval=0.0)
    return Conductor(PLAN, folder, DATA, OPENED, (), screen, engine).train(), screen.lines


def claim_of(folder: Path, run: str = "sgd") -> Claim:
    return Claim(Job(run, ("train",), ("train", "--resume")), "slurm", f"bench-{run}")


def test_every_run_is_a_job_and_is_trained_once(tmp_path: Path) -> None:
    on = Cluster()
    runs, _ = conduct(tmp_path, on)
    assert on.submitted == [("sgd", 1), ("adam", 1)]
    assert [run.status for run in runs] == ["finished", "finished"]
    assert {took.run for took in read_lines(study.Took, tmp_path / study.TIMES)} == {"sgd", "adam"}
    job = Attempts.at(tmp_path, "sgd").claim(1).job
    assert job.new == ("train", f"{tmp_path}/sgd.toml", "--name", "sgd", "--runs", str(tmp_path), "--data", "/data")
    assert job.resume == ("train", "--resume", f"{tmp_path}/sgd")
    again, said = conduct(tmp_path, on)
    assert again == runs
    assert said == ["run 1 of 2: sgd: finished before", "run 2 of 2: adam: finished before"]
    assert len(on.submitted) == 2


def test_a_run_whose_node_was_lost_is_submitted_again_and_one_that_failed_is_not(
    tmp_path: Path, trained: dict[str, int]
) -> None:
    trained["adam"] = 2
    on = Cluster({("sgd", 1): "lost", ("sgd", 2): "lost"})
    runs, said = conduct(tmp_path, on)
    assert on.submitted == [("sgd", 1), ("adam", 1), ("sgd", 2), ("sgd", 3)]
    assert [(run.status, run.reason) for run in runs] == [("finished", None), ("failed", "the loss is nan")]
    assert "run sgd: its job was lost (NODE_FAIL); submitting it again, from its beginning" in said
    # As on one machine, the next command tries a failed run again.
    trained.clear()
    assert [run.status for run in conduct(tmp_path, on)[0]] == ["finished", "finished"]
    assert on.submitted[4:] == [("adam", 2)]


def test_a_run_is_not_submitted_for_ever_and_not_at_all_where_a_user_ended_its_job(tmp_path: Path) -> None:
    on = Cluster({("adam", 1): "stopped", **{("sgd", attempt): "lost" for attempt in range(1, 9)}})
    runs, _ = conduct(tmp_path, on)
    assert len(on.submitted) == 2 + cluster.RETRIES
    assert [run.reason for run in runs] == ["slurm: lost 4 times (NODE_FAIL)", "slurm: CANCELLED by 0"]


def test_a_job_that_never_began_says_why(tmp_path: Path) -> None:
    on = Cluster()

    def refuse() -> None:
        on.known[Attempts.at(tmp_path, "sgd").claim(1).name] = ("over", "FAILED")

    on.jobs["sgd", 1] = refuse
    runs, _ = conduct(tmp_path, on)
    assert runs[0].reason == "slurm: FAILED, and never began: bench: node9 does not see it"
    assert on.submitted.count(("sgd", 1)) == 1


def test_a_command_killed_before_it_submitted_loses_no_run_and_trains_none_twice(tmp_path: Path) -> None:
    folder, attempts = tmp_path / "s", Attempts.at(tmp_path / "s", "sgd")
    attempts.place.mkdir(parents=True)
    study.write_whole(folder / "sgd.toml", study.recipes.to_toml(PLAN.runs[0].recipe).encode())
    assert attempts.add(1, claim_of(folder))
    assert not attempts.add(1, claim_of(folder))
    assert condition(folder, PLAN.runs[0], DATA, "slurm") == "submitted"
    with pytest.raises(StudyError, match="was given to slurm, job bench-sgd; see how it ended with --on slurm"):
        Conductor(PLAN, folder, DATA, OPENED, (), Lines(), Local()).train()
    on = Cluster()
    runs, said = conduct(folder, on)
    assert on.submitted == [("adam", 1), ("sgd", 2)]
    assert said[0].startswith("run 1 of 2: sgd, with slurm already")
    assert [run.status for run in runs] == ["finished", "finished"]
    # The first job turns up after all.
    before = (folder / "sgd" / "summary.json").stat().st_mtime_ns
    assert Work(str(folder), "sgd", 1).train("17") == 0
    assert (folder / "sgd" / "summary.json").stat().st_mtime_ns == before
    assert attempts.ended(1) is None


def test_of_two_jobs_with_one_claim_the_first_trains_and_one_that_is_queued_again_goes_on(tmp_path: Path) -> None:
    attempts = Attempts.at(tmp_path, "sgd")
    with pytest.raises(StudyError, match="does not see"):
        Work(str(tmp_path), "sgd", 1).train("17")
    attempts.add(1, claim_of(tmp_path))
    assert attempts.begin(1, "17", "0")
    with pytest.raises(StudyError, match="another job trains attempt 1 at run sgd: 17 0"):
        Work(str(tmp_path), "sgd", 1).train("18")
    assert Work(str(tmp_path), "sgd", 1).train("17", "1") == 0
    assert attempts.began(1) == "17 1"
    assert attempts.ended(1) is not None


def test_a_process_that_outlives_its_node_for_the_cluster_is_ended_by_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts.at(tmp_path, "sgd")
    attempts.add(1, claim_of(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)

    def start(*_: object) -> subprocess.Popen[bytes]:
        attempts.begin(1, "17", "1")
        return process

    monkeypatch.setattr(Job, "start", start)
    with pytest.raises(StudyError, match="given to another job meanwhile"):
        Work(str(tmp_path), "sgd", 1).train("17", "0")
    assert process.wait() == -signal.SIGKILL
    assert attempts.ended(1) is None


def test_a_job_that_was_interrupted_has_not_ended_the_run(tmp_path: Path, trained: dict[str, int]) -> None:
    attempts = Attempts.at(tmp_path, "sgd")
    attempts.add(1, claim_of(tmp_path))
    trained["sgd"] = 130
    assert Work(str(tmp_path), "sgd", 1).train("17") == 130
    assert attempts.ended(1) is None


def test_attach_watches_and_never_submits(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="leave out --attach"):
        conduct(tmp_path, Cluster(), watching=True)
    on = Cluster({("sgd", 1): "lost", ("adam", 1): interrupt})
    with pytest.raises(KeyboardInterrupt):
        conduct(tmp_path, on)
    attempts = Attempts.at(tmp_path, "adam")
    attempts.end(1, End(0, 60.0, False))
    RunSummary("adam", "lenet", "cifar10", "adam", "test", "finished", epochs=50, top1=0.5).save(tmp_path / "adam")
    before = len(on.submitted)
    runs, _ = conduct(tmp_path, on, watching=True)
    assert len(on.submitted) == before
    assert [(run.name, run.status) for run in runs] == [("sgd", "failed"), ("adam", "finished")]
    assert runs[0].reason == cluster.UNSETTLED
    # What it said of the lost one leaves that open.
    del on.jobs["sgd", 1]
    assert [run.status for run in conduct(tmp_path, on)[0]] == ["finished", "finished"]
    assert on.submitted[before:] == [("sgd", 2)]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_ctrl_c_leaves_the_jobs_and_says_how_to_come_back(tmp_path: Path) -> None:
    screen, on = Lines(), Cluster({("adam", 1): interrupt})
    with pytest.raises(KeyboardInterrupt):
        Conductor(PLAN, tmp_path, DATA, OPENED, (), screen, Submitting(on, screen.say)).train()
    assert screen.lines[-1] == (
        "sgd, adam go on in slurm: the same command comes back to them, with --attach it only watches; "
        "to end them: scancel 2"
    )


def test_a_second_command_is_told_to_watch(tmp_path: Path) -> None:
    with hold(tmp_path / LOCK), pytest.raises(StudyError, match="watch it with --attach"):
        conduct(tmp_path, Cluster())


def test_a_refused_submission_is_said_and_claims_nothing(tmp_path: Path) -> None:
    def refuse() -> None:
        raise StudyError("slurm did not take run sgd: invalid partition")

    with pytest.raises(StudyError, match="invalid partition"):
        conduct(tmp_path, Cluster({("sgd", 1): refuse}))
    assert Attempts.at(tmp_path, "sgd").open() is None


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [("RUNNING", None, "running"), ("FAILED", 2, "over"), ("FAILED", None, "lost"), ("STOPPED", None, "stopped")],
)
def test_a_job_of_ray_that_has_no_exit_code_was_lost(status: str, code: int | None, state: State) -> None:
    job = SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code, message="node died\nat ...")
    assert _ray_state(job)[0] == state


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attach"], "belong to a cluster"),
        (["--on", "slurm"], "--threads how many CPUs"),
        (["--on", "slurm", "--threads", "1", "--devices", "2"], "--devices belongs to this machine"),
        (["--on", "slurm", "--threads", "1", "--job", "time"], "write KEY=VALUE"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(command, ["optimizers", "--data", "nowhere", *words])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"needs submitit, which is not installed; pip install 'pixbench\[slurm\]'"):
        Slurm(1, 0, {})


SLURM = '''#!{python}
"""Slurm's commands for one machine: a job is a process of its own; jobs are lines of a file."""
import os, re, subprocess, sys
from pathlib import Path
me, place = Path(sys.argv[0]).name, Path("{place}")
if me == "sbatch":
    text = Path(sys.argv[1]).read_text()
    number = len(list(place.glob("*.job"))) + 1
    (place / "sbatch.txt").write_text(text)
    name = re.search("--job-name=(.*)", text)[1]
    (place / f"{{number}}.job").write_text(name)
    with open(os.devnull) as nothing:
        subprocess.Popen(["bash", sys.argv[1]], env={{**os.environ, "SLURM_JOB_ID": str(number)}}, stdin=nothing,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    print("Submitted batch job", number)
elif me == "srun":
    words = sys.argv[1:]
    words = words[words.index("--cpus-per-task=1") + 1:]
    with open(place / "srun.log", "ab") as log:
        code = subprocess.call(words, stdout=log, stderr=log)
    (place / f"{{os.environ['SLURM_JOB_ID']}}.over").touch()
elif me == "squeue":
    for path in place.glob("*.job"):
        if not path.with_suffix(".over").exists():
            print(f"{{path.read_text()}}|RUNNING")
else:
    for path in place.glob("*.over"):
        print(f"{{path.with_suffix('.job').read_text()}}|COMPLETED")
'''


def test_a_study_on_slurm_from_its_command_to_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed; pip install 'pixbench[slurm]'")
    monkeypatch.undo()
    place = tmp_path / "slurm"
    place.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct"):
        (place / name).write_text(SLURM.format(python=sys.executable, place=place))
        (place / name).chmod(0o755)
    separable.make(tmp_path / "cifar10", "cifar10", 120, 0, None)
    words = ["four-families-lenet", "--over", "lr=0.1", "--over", "batch=32", "--scale", "0.01", "--on", "slurm"]
    words += ["--data", str(tmp_path / "cifar10"), "--runs", str(tmp_path), "--device", "cpu", "--threads", "1"]
    words += ["--seeds", "0", "--job", "partition=short", "--no-charts", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "study", *words],
        env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr + (place / "srun.log").read_text()
    (run,) = json.loads(done.stdout)["runs"]
    assert run["status"] == "finished"
    asked = (place / "sbatch.txt").read_text()
    for line in ("--requeue", "--partition=short", "--cpus-per-task=1", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in asked
    for line in ("--time", "--gres", "--wckey"):
        assert line not in asked
    assert len(list(place.glob("*.job"))) == 1
