"""What trains the runs of a study: this machine, one run a device at a time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from bench.errors import UsageError
from bench.machine.devices import choose_device
from bench.machine.gpu import open_nvml, visible_handles
from bench.processes import start, stop_requests
from bench.screen import Screen
from models.training import checkpoint
from results.runs import FILE as SUMMARY

Starter = Callable[[Sequence[str], IO[bytes], Sequence[int], Mapping[str, str]], subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Job:
    """A run to train, as two command lines of `bench`: from its beginning, and from its last checkpoint."""

    run: str
    new: tuple[str, ...]
    resume: tuple[str, ...]

    def resumes(self, folder: Path) -> bool:
        """Whether it has a checkpoint to go on from; `folder` is the study's."""
        return (folder / self.run / checkpoint.LAST).is_file()

    def start(
        self,
        folder: Path,
        starter: Starter = start,
        locks: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `bench train` as a process of its own, all it prints going to RUN.log."""
        resumes = self.resumes(folder)
        # What an earlier one wrote of itself would be taken for what this one does.
        (folder / self.run / SUMMARY).unlink(missing_ok=True)
        with log_of(folder, self.run).open("ab" if resumes else "wb") as file:
            return starter(self.resume if resumes else self.new, file, locks, variables or {})


def log_of(folder: Path, run: str) -> Path:
    """What a run printed."""
    return folder / f"{run}.log"


@dataclass(frozen=True)
class End:
    """How the process of a run ended.

    Attributes:
        code: its exit code, negative for a signal.
        seconds: how long it lived.
        resumed: whether it went on from a checkpoint.
        reason: why it ended, where that is not in its log.
    """

    code: int
    seconds: float
    resumed: bool
    reason: str = ""


class Training(Protocol):
    """A run that an engine has taken."""

    def poll(self) -> End | None:
        """How it ended; None while it has not."""

    def line(self) -> str:
        """What it is doing."""


class Engine(Protocol):
    """Trains runs.

    Attributes:
        name: "" for this machine.
        watching: takes none but those that it has already.
        room: how many it takes at a time.
        interval: seconds between two looks at what became of them.
    """

    watching: bool
    interval: float

    @property
    def name(self) -> str: ...

    @property
    def room(self) -> int: ...

    def start(self, job: Job, folder: Path, lock: int) -> Training:
        """Take a run; `lock` is a descriptor to keep open while it is trained."""

    def leave(self, screen: Screen) -> dict[str, End]:
        """The user has interrupted the command. Returns how runs ended by that."""


def last_line(log: Path) -> str:
    """The last line that a run printed, blank ones aside."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def local_devices(count: int, device: str) -> Sequence[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each of so many runs at a time; None where that is of no matter.

    Raises UsageError: fewer GPUs are visible.
    """
    if count == 1 or choose_device(device) == "cpu":
        return [None] * count
    nvml = open_nvml()
    seen = len(visible_handles(nvml, os.environ)) if nvml is not None else 0
    if seen < count:
        raise UsageError(f"--devices {count}: {seen} GPUs are visible here; each run at a time needs one of its own")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(named.split(",") if named else map(str, range(count)))[:count]


@dataclass
class Local:
    """This machine: each run has one of its devices, and its share of the cores.

    Attributes:
        devices: what CUDA_VISIBLE_DEVICES is for each place; None leaves it as it is.
        starter: makes the processes.
    """

    devices: Sequence[str | None] = (None,)
    starter: Starter = start
    name: str = ""
    watching: bool = False
    interval: float = 0.2
    _taken: dict[int, "Child"] = field(default_factory=dict)

    @property
    def room(self) -> int:
        return len(self.devices)

    def start(self, job: Job, folder: Path, lock: int) -> "Child":
        place = next(i for i in range(self.room) if i not in self._taken or self._taken[i].end is not None)
        device = self.devices[place]
        variables = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        resumed, begin = job.resumes(folder), time.monotonic()
        # A signal that arrives while the process starts must not leave it running with nobody to stop it.
        with stop_requests() as asked:
            process = job.start(folder, self.starter, (lock,), variables)
            child = self._taken[place] = Child(job.run, log_of(folder, job.run), process, begin, resumed)
        if asked():
            raise KeyboardInterrupt
        return child

    def leave(self, screen: Screen) -> dict[str, End]:
        """Ask every run to store its state, and wait for them; a second Ctrl-C ends them at once."""
        living = [child for child in self._taken.values() if child.end is None]
        if not living:
            return {}
        how = "it stores its state" if len(living) == 1 else "they store their states"
        screen.say(f"stopping {', '.join(child.run for child in living)}: {how} first; Ctrl-C again ends at once")
        try:
            for child in living:
                child.process.send_signal(signal.SIGINT)
            for child in living:
                child.process.wait()
        except KeyboardInterrupt:
            for child in living:
                # The whole group: loaders have worker processes of their own.
                with contextlib.suppress(OSError):
                    os.killpg(child.process.pid, signal.SIGKILL)
            for child in living:
                child.process.wait()
        return {child.run: end for child in living if (end := child.poll()) is not None}


@dataclass
class Child:
    """A run that this machine trains."""

    run: str
    log: Path
    process: subprocess.Popen[bytes]
    begin: float
    resumed: bool
    end: End | None = None

    def poll(self) -> End | None:
        code = self.process.poll()
        if self.end is None and code is not None:
            self.end = End(code, time.monotonic() - self.begin, self.resumed)
        return self.end

    def line(self) -> str:
        return last_line(self.log)
