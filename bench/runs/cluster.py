"""The runs of a study as jobs of Slurm or Ray: each is trained once, and goes on when its node is lost.

All nodes share the study's folder. `.tasks/RUN/` in it holds, for every attempt at a run, what says whose it is:

    1.json   the claim: written before the job is submitted, by the one command that does so
    1.began  the job that trains it, and how often it was queued again; of two jobs with one claim the first goes on
    1.ended  how it ended; nothing there while a job is queued, runs, or was lost with its node
    1.seen   a command has shown its end

A lost attempt is followed by the next one, and a job that finds a later one than its own ends itself. So nothing here
relies on locks, which many shared file systems lack, nor on the command that submitted being alive.
"""

import contextlib
import importlib.util
import math
import os
import platform
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bench.errors import BenchError, UsageError
from bench.locks import holder
from bench.processes import bench_environment, take_interrupts
from bench.runs.engines import End, Job, last_line, log_of
from bench.runs.folder import LOCK
from bench.runs.plan import StudyError
from bench.screen import Say, Screen
from models.errors import install
from results.errors import RecordError
from results.reading import read
from results.store import read_json, write_whole
from results.tables import to_json

TASKS = ".tasks"
RETRIES = 3
"""How often a command submits a run again whose node was lost."""
PATIENCE = 30.0  # seconds, for a file to be seen on another machine, and a job in its cluster's list
LOOK = 2.0  # seconds between two looks of a job at whether it is still the one
INTERRUPTED = 130
TIMEOUTS = 100  # how often Slurm's time limit may end a job, which is then queued again

State = Literal["queued", "running", "over", "lost", "stopped"]
"""What a cluster says of a job: "over" ended by itself, "lost" with its node or for another job, "stopped" by a user or
at a limit."""
UNSETTLED = "its job was lost; the same command without --attach submits it again"


@dataclass(frozen=True)
class Claim:
    """An attempt at a run.

    Attributes:
        job: the command lines of the run.
        engine: that was to train it.
        name: of its job; there is no other of that name.
    """

    job: Job
    engine: str
    name: str


@dataclass(frozen=True)
class Attempts:
    """What is known of the attempts at a run: `place` is the folder of their files."""

    place: Path

    @classmethod
    def at(cls, folder: Path, run: str) -> "Attempts":
        return cls(folder / TASKS / run)

    def newest(self) -> int:
        """Number of the newest attempt, 0 for none."""
        return max((int(path.stem) for path in self.place.glob("*.json")), default=0)

    def claim(self, attempt: int) -> Claim:
        """Raises RecordError: it cannot be read."""
        path = self.place / f"{attempt}.json"
        return read(Claim, read_json(path), str(path))

    def add(self, attempt: int, claim: Claim) -> bool:
        """Whether this command has made the attempt its own; False where another one was first."""
        self.place.mkdir(parents=True, exist_ok=True)
        return self._once(f"{attempt}.json", to_json(asdict(claim)))

    def begin(self, attempt: int, job: str, times: str) -> bool:
        """Whether the job may train: it is the first that comes with this claim, or the same one queued again."""
        if self._once(f"{attempt}.began", f"{job} {times}"):
            return True
        if self.began(attempt).split()[0] != job:
            return False
        write_whole(self.place / f"{attempt}.began", f"{job} {times}".encode())
        return True

    def began(self, attempt: int) -> str:
        """Which job trains it, and how often that was queued again; "" for none."""
        try:
            return (self.place / f"{attempt}.began").read_text()
        except FileNotFoundError:
            return ""

    def end(self, attempt: int, end: End) -> None:
        write_whole(self.place / f"{attempt}.ended", to_json(asdict(end)).encode())

    def ended(self, attempt: int) -> End | None:
        with contextlib.suppress(RecordError):
            path = self.place / f"{attempt}.ended"
            return read(End, read_json(path), str(path))
        return None

    def see(self, attempt: int) -> None:
        (self.place / f"{attempt}.seen").touch()

    def open(self) -> Claim | None:
        """The newest attempt's claim, if no command has shown the end of that."""
        attempt = self.newest()
        if attempt == 0 or (self.place / f"{attempt}.seen").exists():
            return None
        return self.claim(attempt)

    def _once(self, name: str, text: str) -> bool:
        """Make a file with its content in one step, which also on network file systems only one process can do."""
        temporary = self.place / f".{secrets.token_hex(8)}"
        temporary.write_text(text)
        try:
            os.link(temporary, self.place / name)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True


class Cluster(Protocol):
    """What takes jobs.

    Attributes:
        name: as in --on.
    """

    name: str

    def submit(self, folder: Path, attempt: int, claim: Claim) -> None:
        """Raises StudyError: it was refused."""

    def states(self, names: Sequence[str]) -> Mapping[str, tuple[State, str]]:
        """Name of a job -> what became of it, also in the cluster's words; those it does not know are missing.

        Raises OSError: it does not answer.
        """

    def last_words(self, folder: Path, attempt: int, claim: Claim) -> str:
        """The last line that a job printed itself."""

    def stop_line(self, names: Sequence[str]) -> str:
        """The command line that ends jobs."""


@dataclass
class Submitting:
    """The engine that gives runs to a cluster, all at once: that has a queue of its own.

    Attributes:
        watching: never submit.
    """

    cluster: Cluster
    say: Say
    watching: bool = False
    interval: float = 5.0
    room: int = sys.maxsize
    _tasks: list["Task"] = field(default_factory=list)
    _known: Mapping[str, tuple[State, str]] | None = None
    _asked: float = -math.inf
    _answers: bool = True

    @property
    def name(self) -> str:
        return self.cluster.name

    def start(self, job: Job, folder: Path, lock: int) -> "Task":
        task = Task(self, job, folder, Attempts.at(folder, job.run))
        self._tasks.append(task)
        if task.attempts.open() is None:
            task.submit()
        return task

    def leave(self, screen: Screen) -> dict[str, End]:
        living = [task for task in self._tasks if not task.over and task.attempts.open()]
        if living:
            screen.say(
                f"{', '.join(task.job.run for task in living)} go on in {self.name}: the same command comes back to "
                "them, with --attach it only watches; to end them: "
                + self.cluster.stop_line([task.claim.name for task in living])
            )
        return {}

    def state(self, name: str) -> tuple[State, str] | None:
        """What became of a job; ("queued", "") while its cluster does not answer, None if that does not know it."""
        if time.monotonic() - self._asked >= self.interval:
            self._asked = time.monotonic()
            try:
                self._known = self.cluster.states([task.claim.name for task in self._tasks if not task.over])
                self._answers = True
            except OSError as error:
                if self._answers:
                    self.say(f"note: {self.name} does not answer ({error}); asking again")
                self._answers, self._known = False, None
        return ("queued", "no answer") if self._known is None else self._known.get(name)


@dataclass
class Task:
    """A run that was given to a cluster, whatever jobs become of it."""

    engine: Submitting
    job: Job
    folder: Path
    attempts: Attempts
    over: bool = False
    retries: int = 0
    _words: str = ""
    _gone: float | None = None

    @property
    def claim(self) -> Claim:
        return self.attempts.claim(self.attempts.newest())

    def submit(self) -> None:
        attempt, label = self.attempts.newest() + 1, re.sub(r"[^\w.-]", "-", f"{self.folder.name}-{self.job.run}")
        claim = Claim(self.job, self.engine.name, f"bench-{label}-{secrets.token_hex(4)}")
        self._gone = None
        # Before it is submitted: a command that comes after a kill here then knows what to look for.
        if not self.attempts.add(attempt, claim):
            return
        try:
            self.engine.cluster.submit(self.folder, attempt, claim)
        except StudyError:
            self.attempts.end(attempt, End(1, 0.0, False, "refused"))
            self.attempts.see(attempt)
            raise

    def line(self) -> str:
        return last_line(log_of(self.folder, self.job.run)) if self._words == "running" else self._words

    def poll(self) -> End | None:
        # Another command may have submitted it again.
        attempt = self.attempts.newest()
        end = self.attempts.ended(attempt) or self._unsaid_end(attempt)
        if end is not None:
            self.over = True
            if end.reason != UNSETTLED:
                self.attempts.see(attempt)
        return end

    def _unsaid_end(self, attempt: int) -> End | None:
        """What to make of an attempt that has not said how it ended."""
        state, words = self.engine.state(self.claim.name) or ("lost", "not in its list")
        self._words = words or state
        if state in ("queued", "running"):
            self._words, self._gone = state, None
            return None
        now = time.monotonic()
        self._gone = now if self._gone is None else self._gone
        if now - self._gone < PATIENCE:
            return None
        began, name = bool(self.attempts.began(attempt)), self.engine.name
        if state == "stopped" or (state == "over" and not began):
            reason = f"{name}: {words}"
            if state == "over":
                said = self.engine.cluster.last_words(self.folder, attempt, self.claim)
                reason += f", and never began: {said or f'does its node see {self.folder} and {sys.executable}?'}"
            end = End(1, 0.0, False, reason)
            self.attempts.end(attempt, end)
            return end
        return self._lost(words)

    def _lost(self, words: str) -> End | None:
        if self.engine.watching:
            # The command that has the study submits it again, if there is one.
            return None if holder(self.folder / LOCK) else End(1, 0.0, False, UNSETTLED)
        if self.retries == RETRIES:
            return End(1, 0.0, False, f"{self.engine.name}: lost {RETRIES + 1} times ({words})")
        where = "last checkpoint" if self.job.resumes(self.folder) else "beginning"
        self.engine.say(f"run {self.job.run}: its job was lost ({words}); submitting it again, from its {where}")
        self.retries += 1
        self.submit()
        return None


class Slurm:
    """Slurm, through submitit.

    Args:
        asked: options of sbatch by their long names, such as partition.
    """

    name = "slurm"

    def __init__(self, threads: int, gpus: int, asked: Mapping[str, str]) -> None:
        self._threads, self._gpus, self._asked = threads, gpus, dict(asked)
        _need("submitit", install("slurm"))

    def submit(self, folder: Path, attempt: int, claim: Claim) -> None:
        import submitit

        class Executor(submitit.SlurmExecutor):  # type: ignore[misc, unused-ignore]
            """One that leaves the time limit to the partition where none is asked for: submitit has its own."""

            def _make_submission_file_text(self, command: str, uid: str) -> str:
                text: str = super()._make_submission_file_text(command, uid)
                return text if "time" in more else text.replace("#SBATCH --time=1\n", "")

        more = {"requeue": True, **({"gres": f"gpu:{self._gpus}"} if self._gpus else {}), **self._asked}
        try:
            executor = Executor(_logs(folder, attempt, claim), max_num_timeout=TIMEOUTS)
            executor.update_parameters(
                job_name=claim.name,
                # What submitit takes a job for that was asked to end: one that reached its limit.
                time=1,
                wckey=None,
                cpus_per_task=self._threads,
                # Not inherited from the job since Slurm 22.05.
                srun_args=[f"--cpus-per-task={self._threads}"],
                setup=[f"export PYTHONPATH={shlex.quote(bench_environment()['PYTHONPATH'])}"],
                additional_parameters=more,
            )
            executor.submit(Work(str(folder), claim.job.run, attempt))
        except RuntimeError as error:
            raise StudyError(f"slurm did not take run {claim.job.run}: {_first_line(error)}") from None

    def states(self, names: Sequence[str]) -> Mapping[str, tuple[State, str]]:
        named = f"--name={','.join(names)}"
        listed = _ask("squeue", "--noheader", "--states=all", "--format=%j|%T", named)
        if any(f"{name}|" not in listed for name in names):
            with contextlib.suppress(OSError):
                # Known for good, where the cluster keeps accounts.
                listed = _ask("sacct", "-X", "-n", "-P", "-S", "now-60days", "-o", "JobName,State", named) + listed
        pairs = (line.rpartition("|") for line in listed.splitlines() if "|" in line)
        return {name: (_SLURM.get(words.split()[0], "running"), words) for name, _, words in pairs if words}

    def last_words(self, folder: Path, attempt: int, claim: Claim) -> str:
        return next(filter(None, map(last_line, sorted(_logs(folder, attempt, claim).glob("*.err")))), "")

    def stop_line(self, names: Sequence[str]) -> str:
        return f"scancel --name={','.join(names)}"


# States that are not here are stages of a job that has its node.
_SLURM: Mapping[str, State] = {
    "PENDING": "queued", "CONFIGURING": "queued", "REQUEUED": "queued", "REQUEUE_FED": "queued",
    "REQUEUE_HOLD": "queued", "SUSPENDED": "queued", "COMPLETED": "over", "FAILED": "over",
    "NODE_FAIL": "lost", "PREEMPTED": "lost", "BOOT_FAIL": "lost", "REVOKED": "lost",
    "CANCELLED": "stopped", "TIMEOUT": "stopped", "DEADLINE": "stopped", "OUT_OF_MEMORY": "stopped",
}  # fmt: skip


class Ray:
    """Ray, through its jobs.

    Args:
        asked: `address` of the cluster, `memory` in bytes, and resources of its own, such as L4=1.
    """

    name = "ray"

    def __init__(self, threads: int, gpus: int, asked: Mapping[str, str]) -> None:
        _need("ray", install("ray"))
        from ray.job_submission import JobSubmissionClient

        more = dict(asked)
        address, memory = more.pop("address", None), more.pop("memory", None)
        try:
            self._needs: dict[str, Any] = {
                "entrypoint_num_cpus": threads,
                "entrypoint_num_gpus": gpus or None,
                "entrypoint_memory": int(memory) if memory else None,
                "entrypoint_resources": {key: float(value) for key, value in more.items()} or None,
            }
        except ValueError as error:
            raise UsageError(f"--job with --on ray: {error}; resources are numbers") from None
        try:
            self._client = JobSubmissionClient(address)
        except (OSError, RuntimeError) as error:
            raise StudyError(f"no Ray cluster answers: {_first_line(error)}; give --job address=URL") from None

    def submit(self, folder: Path, attempt: int, claim: Claim) -> None:
        words = (sys.executable, "-P", "-c", _WORK, str(folder), claim.job.run, str(attempt), claim.name)
        variables = {"PYTHONPATH": bench_environment()["PYTHONPATH"]}
        try:
            self._client.submit_job(
                entrypoint=f"exec {shlex.join(words)}",
                submission_id=claim.name,
                runtime_env={"env_vars": variables},
                **self._needs,
            )
        except (OSError, RuntimeError) as error:
            raise StudyError(f"ray did not take run {claim.job.run}: {_first_line(error)}") from None

    def states(self, names: Sequence[str]) -> Mapping[str, tuple[State, str]]:
        try:
            jobs = self._client.list_jobs()
        except RuntimeError as error:
            raise OSError(_first_line(error)) from None
        return {job.submission_id: _ray_state(job) for job in jobs if job.submission_id in names}

    def last_words(self, folder: Path, attempt: int, claim: Claim) -> str:
        try:
            lines = self._client.get_job_logs(claim.name).splitlines()
        except (OSError, RuntimeError):
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop_line(self, names: Sequence[str]) -> str:
        return f"for job in {' '.join(names)}; do ray job stop $job; done"


def _ray_state(job: Any) -> tuple[State, str]:
    states: dict[str, State] = {"PENDING": "queued", "RUNNING": "running", "STOPPED": "stopped", "SUCCEEDED": "over"}
    words = str(job.status.value)
    # A job that ended by itself has an exit code, one whose node died has none.
    otherwise: State = "lost" if job.driver_exit_code is None else "over"
    state = states.get(words, otherwise)
    return state, f"{words}: {_first_line(job.message)}" if state == "lost" else words


CLUSTERS: Mapping[str, Callable[[int, int, Mapping[str, str]], Cluster]] = {"slurm": Slurm, "ray": Ray}


def _need(module: str, advice: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise StudyError(f"this needs {module}, which is not installed; {advice}")


def _logs(folder: Path, attempt: int, claim: Claim) -> Path:
    return Attempts.at(folder, claim.job.run).place / f"{attempt}.slurm"


def _first_line(error: object) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), "no reason given")


def _ask(*words: str) -> str:
    """What a command prints. Raises OSError: it fails, or does not answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.SubprocessError as error:
        raise OSError(_first_line(getattr(error, "stderr", "") or error)) from None


# What follows runs on a node.


_WORK = "from bench.runs.cluster import main; main()"


def main() -> None:
    """A job of Ray: folder, run, attempt and its own name are the arguments."""
    folder, run, attempt, job = sys.argv[1:]
    take_interrupts()
    try:
        sys.exit(Work(folder, run, int(attempt)).train(job))
    except BenchError as error:
        sys.exit(f"bench: {error}")


@dataclass
class Work:
    """What a job does: the run's `bench train`, from its last checkpoint if it has one. submitit pickles it."""

    folder: str
    run: str
    attempt: int
    process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        return self.train(os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0"))

    def checkpoint(self) -> Any:
        """Called shortly before Slurm ends the job for its time limit or for another job: it is queued again."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        return DelayedSubmission(Work(self.folder, self.run, self.attempt))

    def train(self, job: str, times: str = "0") -> int:
        """Train the run and store how it ended, unless it was interrupted; returns the exit code.

        Args:
            job, times: the number of this job, and how often it was queued again.

        Raises StudyError: this is not the job that may, or the folder is not seen here.
        """
        folder, node = Path(self.folder), platform.node()
        attempts = Attempts.at(folder, self.run)
        if not (attempts.place / f"{self.attempt}.json").is_file():
            raise StudyError(f"{node} does not see {attempts.place}: runs need a folder that all nodes share (--runs)")
        before = attempts.began(self.attempt) or attempts.began(self.attempt - 1)
        if not attempts.begin(self.attempt, job, times):
            raise StudyError(f"another job trains attempt {self.attempt} at run {self.run}: {before}")

        def is_mine() -> bool:
            return attempts.newest() == self.attempt and attempts.began(self.attempt) == f"{job} {times}"

        if before:
            # Should its process still live, on a node that only the cluster has lost, it now looks and ends.
            time.sleep(2 * LOOK)
        while holder(folder / self.run / LOCK) is not None and is_mine():
            time.sleep(LOOK)
        if not is_mine() or attempts.ended(self.attempt) is not None:
            return 0
        claim = attempts.claim(self.attempt)
        begin, resumed = time.monotonic(), claim.job.resumes(folder)
        print(f"{node}: {shlex.join(('bench', *(claim.job.resume if resumed else claim.job.new)))}", flush=True)
        # Slurm sends the signal for `checkpoint` to all processes of a job; it would end those that do not know it.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self.process = claim.job.start(folder)
        signal.signal(signal.SIGUSR2, handler)
        while (code := self.process.poll()) is None:
            if not is_mine():
                os.killpg(self.process.pid, signal.SIGKILL)
                raise StudyError(f"run {self.run} was given to another job meanwhile; this one leaves it")
            time.sleep(LOOK)
        if code != INTERRUPTED and is_mine():
            attempts.end(self.attempt, End(code, time.monotonic() - begin, resumed))
        return code
