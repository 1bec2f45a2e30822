"""Runs the jobs of `make gpu`, those that measure one after another, and records how each ended."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

from bench.gpu.parts import FILE, ROWS, Job
from bench.screen import Say
from results.lines import LineFile, read_lines

OUTCOMES = "jobs.jsonl"
PATIENCE = 10.0  # seconds between an interrupt and a kill


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        part, name: of the job.
        command: as it was run.
        file: what it wrote; "" if it wrote nothing.
        exit_code: of the process; None if it was ended or did not begin.
        seconds: how long it took.
        reason: why it was ended or did not begin, or its exit code and the last line it printed; "" if it ended well.
    """

    part: str
    name: str
    command: tuple[str, ...]
    file: str
    exit_code: int | None
    seconds: float
    reason: str = ""


def outcomes(folder: Path) -> list[Outcome]:
    """How the jobs of a folder ended; of a job that was run twice the latest that left a file.

    Raises:
        RecordError: the folder holds no run of `make gpu`.
    """
    latest: dict[str, Outcome] = {}
    for outcome in read_lines(Outcome, folder / OUTCOMES):
        if outcome.file or outcome.name not in latest or not latest[outcome.name].file:
            latest[outcome.name] = outcome
    return list(latest.values())


def run(jobs: Sequence[Job], folder: Path, limits: Mapping[str, float], say: Say) -> list[Outcome]:
    """Run the jobs in their order into `folder`, neighbours that measure nothing at the same time.

    Args:
        limits: part -> seconds. What a part leaves, the next ones may use; a job that would begin later than all of
            them together allow is skipped and recorded.
    """
    begin = time.monotonic()
    done = []
    # Part -> when its last job must have ended.
    ends = dict(zip(limits, accumulate(limits.values()), strict=True))
    with LineFile(folder / OUTCOMES) as file:
        for group in _groups(jobs):
            left = ends[group[0].part] - (time.monotonic() - begin)
            say(", ".join(job.name for job in group))
            late = (_skipped(job, limits[job.part]) for job in group)
            ended = _together(group, folder, left) if left > 0 else late
            with contextlib.closing(ended):
                for outcome in ended:
                    file.add(outcome)
                    done.append(outcome)
                    say(f"{outcome.name}: {outcome.reason or f'{outcome.seconds:.0f} s'}")
    return done


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Each job that measures alone, and neighbours that do not as one group."""
    for (timed, _), part in groupby(jobs, key=lambda job: (job.timed, job.part)):
        together = list(part)
        yield from ([job] for job in together) if timed else [together]


def _together(jobs: Sequence[Job], folder: Path, left: float) -> Generator[Outcome, None, None]:
    """Run jobs at the same time; how each ended, as they end."""
    running: set[subprocess.Popen[bytes]] = set()
    interrupted = threading.Event()
    with ThreadPoolExecutor(len(jobs)) as pool:
        try:
            futures = [pool.submit(_run_one, job, folder, min(job.seconds, left), running, interrupted) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # Ctrl-C reaches the main thread alone; the others wait for their processes, or are about to start them.
            interrupted.set()
            for process in list(running):
                _end(process)
            raise


def _skipped(job: Job, seconds: float) -> Outcome:
    return Outcome(
        job.part, job.name, job.command, "", None, 0.0, f"not run: the {seconds:.0f} s of {job.part} were over"
    )


def _run_one(
    job: Job, folder: Path, seconds: float, running: "set[subprocess.Popen[bytes]]", interrupted: threading.Event
) -> Outcome:
    ending = "xml" if job.part == "tests" else "json"
    target = folder / f"{job.name}.{ending}"
    # It writes to another name until it has ended: an earlier run's file stays if this one leaves none.
    draft, rows = folder / f"{job.name}.draft.{ending}", folder / f"{job.name}.rows"
    draft.unlink(missing_ok=True)
    shutil.rmtree(rows, ignore_errors=True)
    command = tuple(word.replace(FILE, str(target)).replace(ROWS, str(rows)) for word in job.command)
    drafted = tuple(word.replace(FILE, str(draft)).replace(ROWS, str(rows)) for word in job.command)
    begin = time.monotonic()
    log = folder / f"{job.name}.log"
    with log.open("wb") as printed:
        process = subprocess.Popen(
            drafted, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        running.add(process)
        if interrupted.is_set():
            _end(process)
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
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
        reason = f"exit code {code}: {last[0] if last else 'it printed nothing'}"
    return Outcome(job.part, job.name, command, file, code, took, reason)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a job, so that a comparison keeps what it has measured; then kill what is left of it."""
    # What a shell runs in the background without job control ignores Ctrl-C, and so do the jobs it starts.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM if ignored else signal.SIGINT)
        process.wait(timeout=PATIENCE)
    # Even if it has ended: processes it started may not have.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
