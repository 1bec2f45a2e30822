"""Runs the jobs of `make gpu`, those that measure one after another, and keeps how each ended."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from bench.errors import UsageError
from bench.gpu.parts import FILE, ROWS, Job
from results.store import GrowingFile

OUTCOMES = "jobs.jsonl"
NOT_RUN = "not run"
PATIENCE = 10.0  # seconds between being asked to end and being killed


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        part, name: of the job.
        command: as it was run.
        file: what it wrote, "" if it wrote nothing.
        exit_code: of the process; None if it was ended or not begun.
        seconds: it took.
        reason: why there is no file, or the last line of what it said where it failed.
    """

    part: str
    name: str
    command: tuple[str, ...]
    file: str
    exit_code: int | None
    seconds: float
    reason: str = ""


class OutcomeFile(GrowingFile):
    """A JSON line each, on the disk before the next job begins."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, binary=True)

    def add(self, outcome: Outcome) -> None:
        """Store how a job ended."""
        with self._writing():
            self._file.write((json.dumps(asdict(outcome)) + "\n").encode())
        self.flush()


def outcomes(folder: Path) -> list[Outcome]:
    """What was run into a folder; of a job that was run twice the latest that left a file.

    Raises:
        UsageError: there is no such record in it, or it is none of ours.
    """
    path = folder / OUTCOMES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [Outcome(**{**row, "command": tuple(row["command"])}) for row in map(json.loads, filter(None, lines))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    kept: dict[str, Outcome] = {}
    for one in found:
        if one.file or one.name not in kept or not kept[one.name].file:
            kept[one.name] = one
    return list(kept.values())


def run(jobs: Sequence[Job], folder: Path, seconds: float, say: Callable[[str], None]) -> list[Outcome]:
    """Run the jobs in their order into `folder`; those that would begin after `seconds` are left out and named.

    Neighbours that measure nothing run at the same time.
    """
    begin = time.monotonic()
    done = []
    with OutcomeFile(folder / OUTCOMES) as record:
        for group in _groups(jobs):
            left = seconds - (time.monotonic() - begin)
            say(", ".join(job.name for job in group))
            ended = _together(group, folder, left) if left > 0 else (_left_out(job, seconds) for job in group)
            with contextlib.closing(ended):
                for outcome in ended:
                    record.add(outcome)
                    done.append(outcome)
                    say(f"{outcome.name}: {outcome.reason or f'{outcome.seconds:.0f} s'}")
    return done


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that measure alone, neighbours that do not together."""
    for timed, part in groupby(jobs, key=lambda job: job.timed):
        together = list(part)
        yield from ([job] for job in together) if timed else [together]


def _together(jobs: Sequence[Job], folder: Path, left: float) -> Generator[Outcome, None, None]:
    """How each ended, as they end."""
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            futures = [pool.submit(_one, job, folder, min(job.seconds, left), running) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # Ctrl-C reaches the first thread alone; the others wait for their processes.
            for process in list(running):
                _end(process)
            raise


def _left_out(job: Job, seconds: float) -> Outcome:
    return Outcome(job.part, job.name, job.command, "", None, 0.0, f"{NOT_RUN}: {seconds:.0f} s were over")


def _one(job: Job, folder: Path, seconds: float, running: "set[subprocess.Popen[bytes]]") -> Outcome:
    ending = "xml" if job.part == "tests" else "json"
    target = folder / f"{job.name}.{ending}"
    # Under another name until it has ended: what an earlier run measured stays if this one gives nothing.
    draft, rows = folder / f"{job.name}.draft.{ending}", folder / f"{job.name}.rows"
    draft.unlink(missing_ok=True)
    shutil.rmtree(rows, ignore_errors=True)
    command = tuple(word.replace(FILE, str(target)).replace(ROWS, str(rows)) for word in job.command)
    drafted = tuple(word.replace(FILE, str(draft)).replace(ROWS, str(rows)) for word in job.command)
    begin = time.monotonic()
    log = folder / f"{job.name}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            drafted, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        running.add(process)
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            # A comparison has processes of its own; SIGINT lets it keep what it has measured.
            _end(process)
            code = None
        finally:
            running.discard(process)
    took = time.monotonic() - begin
    if not draft.exists():
        # A comparison stores its record after every row.
        for path in sorted(rows.glob("*.json"), key=lambda path: path.stat().st_mtime)[-1:]:
            shutil.copyfile(path, draft)
    shutil.rmtree(rows, ignore_errors=True)
    file = ""
    if draft.exists():
        draft.replace(target)
        file = target.name
    reason = ""
    if code is None:
        reason = f"ended after {seconds:.0f} s"
    elif code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        reason = f"exit code {code}: {last[0] if last else 'it said nothing'}"
    return Outcome(job.part, job.name, command, file, code, took, reason)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=PATIENCE)
    # Also when it has ended: what it started may not have.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
