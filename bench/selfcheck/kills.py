"""Commands killed at random moments: what they stored stays, nobody is left, and the next start works.

Each command is run to its end once, which says how long it takes and what it leaves. Then it is started again and
again, and ended by a signal at a moment drawn evenly from that time. After each kill its files are read, its processes
are looked for, and it is started once more, to its end.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.errors import REPORTED, BenchError, UsageError
from bench.locks import holder
from bench.processes import SOURCE
from bench.runs.folder import HISTORY, LOCK, RECIPE, RUN, STEPS, RunRecord
from bench.screen import Say
from bench.selfcheck.live import scratch
from loaders import separable
from models.training import checkpoint
from models.training.recipe import load as load_recipe
from results import store
from results.history import History, load_steps
from results.lines import LineFile, read_lines
from results.runs import FILE as SUMMARY
from results.runs import RunSummary
from results.tables import Cell, render, to_json

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Names the processes of a trial: all that a command starts inherit it.
MARK = "PIXBENCH_KILLED"
PATIENCE = 60.0  # seconds in which processes end by themselves
TIMEOUT = 900.0  # seconds, of a command that is not killed

PYTHON_STARTING = "Fatal Python error: init_import_site: Failed to import the site module"

EPOCHS = 3
TINY = ("--device", "cpu", "--threads", "1")


@dataclass(frozen=True)
class Outcome:
    """One kill.

    Attributes:
        command: which was killed.
        signal: its name.
        moment: seconds after the start at which it was sent.
        exit_code: of the killed process, negative for a signal.
        again: exit code of the next start; None where there was none.
        faults: what was wrong afterwards.
    """

    command: str
    signal: str
    moment: float
    exit_code: int
    again: int | None
    faults: tuple[str, ...] = ()


class Trial:
    """A command on tiny inputs: what is killed, what is started afterwards, and what must hold.

    Args:
        folder: for all that it reads and writes; it stays for the next trials of the same command.
    """

    name = ""
    # Exit codes of a run to its end: a check of equal code may raise a false alarm.
    fine: tuple[int, ...] = (0,)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    def words(self) -> list[str]:
        """The command that is killed."""
        raise NotImplementedError

    def again(self) -> list[str] | None:
        """The command that must work after the kill; None where there is nothing left to do."""
        return self.words()

    def faults(self) -> Iterator[str]:
        """What is wrong with the files, whatever moment they are read at."""
        return iter(())

    def faults_at_end(self) -> Iterator[str]:
        """What is wrong after a run to its end."""
        return iter(())

    @property
    def place(self) -> Path:
        """The working directory."""
        return self.folder


class Train(Trial):
    """A training, which is resumed to the weights that an undisturbed one has."""

    name = "train"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        separable.make(folder / "data", "folder", 48, classes=4)
        self.digest = ""

    @property
    def run(self) -> Path:
        return self.folder / "runs" / f"run-{self.number}"

    def words(self) -> list[str]:
        words = ["train", "--model", "lenet", "--size", "32", "--batch", "8", "--lr", "0.05", "--config", "naive"]
        words += ["--loader", "pil", "--epochs", str(EPOCHS), "--data", "data", "--name", self.run.name, *TINY]
        return words if self.number % 4 == 3 else [*words, "--no-report"]

    def again(self) -> list[str]:
        if (self.run / RUN).exists():
            return ["train", "--resume", str(self.run), "--no-report"]
        return self.words()

    def faults(self) -> Iterator[str]:
        yield from unreadable(self.run)

    def faults_at_end(self) -> Iterator[str]:
        epochs = [row.epoch for row in History.load(self.run / HISTORY).epochs]
        if epochs != list(range(1, EPOCHS + 1)):
            yield f"the history has epochs {epochs}"
        if RunSummary.load(self.run).status != "finished":
            yield "its summary does not say that it has finished"
        card, _ = checkpoint.load_weights(self.run / checkpoint.LAST)
        self.digest = self.digest or card.digest
        if card.digest != self.digest:
            yield "its weights are not those of an undisturbed run"


class Study(Trial):
    """Two runs in processes of their own."""

    name = "study"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        separable.make(folder / "data", "folder", 48, classes=4)
        recipe = 'model = "lenet"\nsize = 32\nbatch = 8\nepochs = 2\nlr = 0.05\n'
        recipe += 'configuration = "naive"\nloader = "pil"\n'
        (folder / "small.toml").write_text(recipe, encoding="utf-8")

    @property
    def study(self) -> Path:
        return self.folder / "runs" / f"study-{self.number}"

    def words(self) -> list[str]:
        words = ["study", "small.toml", "--over", "lr=0.05,0.01", "--data", "data", "--name", self.study.name]
        return [*words, "--no-charts", *TINY]

    def faults(self) -> Iterator[str]:
        for run in self.study.glob("*/"):
            yield from unreadable(run)

    def faults_at_end(self) -> Iterator[str]:
        found = json.loads((self.study / "results.json").read_text(encoding="utf-8"))
        status = [run["status"] for run in found["runs"]]
        if status != ["finished", "finished"]:
            yield f"its runs are {status}"


class Stored(Trial):
    """A command that adds to a folder of records, none of which may get lost."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: dict[str, set[str]] = {}

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def faults(self) -> Iterator[str]:
        stored, skipped = store.list_records(self.store)
        for path, reason in skipped:
            if not path.name.endswith(".tmp"):
                yield f"{path.name}: {reason}"
        found = {path.name: {metric.name for metric in record.metrics} for path, record in stored}
        for name, metrics in self.known.items():
            if lost := metrics - found.get(name, set()):
                yield f"{name} has lost {', '.join(sorted(lost)) or 'its file'}"
        self.known |= found

    def faults_at_end(self) -> Iterator[str]:
        stored, _ = store.list_records(self.store)
        unfinished = [path.name for path, record in stored if not record.complete]
        if unfinished:
            yield f"{', '.join(unfinished)}: not continued"


class Compare(Stored):
    """A comparison, which goes on with --resume."""

    name = "compare"

    def words(self) -> list[str]:
        words = ["compare", "lenet@naive", "lenet@nhwc", "--tasks", "inference,training", "--rounds", "2"]
        words += ["--budget", "0", "--batch", "4", "--training-batch", "2", "--no-energy", "--store", "store"]
        return [*words, *TINY]

    def again(self) -> list[str]:
        return [*self.words(), "--resume"]


class Check(Stored):
    """A check of equal code in a repository of its own."""

    name = "check"
    fine = (0, 1)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root, self.base, _ = scratch(folder, 0)

    @property
    def place(self) -> Path:
        return self.root

    def words(self) -> list[str]:
        words = ["check", "--base", self.base, "--workloads", "inference/lenet@fp32-nchw-eager-keep/b4/s32/c10/cpu"]
        return [*words, "--looks", "1", "--budget", "1", "--no-wait", "--store", str(self.store), *TINY]

    def again(self) -> list[str]:
        # It takes the same lock and adds to the same store, in a third of the time.
        return [*self.words(), "--exact"]


class Tune(Trial):
    """A search that remembers its winner beside those of others."""

    name = "tune"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file.parent.mkdir(parents=True)
        self.file.write_text(json.dumps({"another": {}}), encoding="utf-8")

    @property
    def file(self) -> Path:
        return self.folder / "cache" / "pixbench" / "tuned.json"

    def words(self) -> list[str]:
        return ["tune", "lenet", "--tasks", "latency", "--budget", "5", *TINY]

    def faults(self) -> Iterator[str]:
        if "another" not in json.loads(self.file.read_text(encoding="utf-8")):
            yield "tuned.json has lost what was remembered before"

    def faults_at_end(self) -> Iterator[str]:
        if len(json.loads(self.file.read_text(encoding="utf-8"))) < 2:
            yield "tuned.json does not have the winner"


class Export(Trial):
    """An export over an earlier one, which stays until the new one is whole."""

    name = "export"

    def words(self) -> list[str]:
        return ["export", "lenet", "--to", "torch-export", "-o", "lenet.pt2"]

    def faults(self) -> Iterator[str]:
        import torch

        try:
            torch.export.load(self.folder / "lenet.pt2")
        except Exception as error:
            yield f"lenet.pt2 cannot be loaded: {error}"


class Make(Trial):
    """A data set, which is there as a whole or not at all."""

    name = "data make"

    @property
    def data(self) -> Path:
        return self.folder / f"data-{self.number}"

    def words(self) -> list[str]:
        return ["data", "make", self.data.name, "--like", "folder", "--images", "600"]

    def again(self) -> list[str] | None:
        return None if self.data.exists() else self.words()

    def faults(self) -> Iterator[str]:
        images = sum(1 for _ in self.data.rglob("*.JPEG"))
        if self.data.exists() and images != 600:
            yield f"{self.data.name} has {images} of 600 images"


_ALL: tuple[type[Trial], ...] = (Train, Compare, Check, Study, Tune, Export, Make)
TRIALS = {trial.name: trial for trial in _ALL}


def unreadable(run: Path) -> Iterator[str]:
    """What cannot be read of a run's folder, at whatever moment its training ended."""
    readers: dict[str, Callable[[Path], object]] = {
        RUN: lambda path: RunRecord.load(run),
        RECIPE: load_recipe,
        HISTORY: History.load,
        STEPS: load_steps,
        SUMMARY: RunSummary.load,
        checkpoint.LAST: lambda path: checkpoint.load_run(run),
        checkpoint.BEST: checkpoint.load_weights,
    }
    for name, read in readers.items():
        path = run / name
        if path.exists():
            try:
                read(path)
            except REPORTED as error:
                yield f"{path.name}: {error}"
    if (run / RUN).exists() and not (run / RECIPE).exists():
        yield f"{run.name} has no recipe to start again from"


@dataclass
class Started:
    """A command under way."""

    process: "subprocess.Popen[bytes]"
    mark: str
    printed: Path

    def wait(self, timeout: float, end: bool = True) -> int | None:
        """Its exit code; None where it has none in time, and it is ended if it should be."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            if end:
                self.process.kill()
                self.process.wait()
            return None
        except BaseException:
            # This program is interrupted: the command, which has a session of its own, does not notice.
            os.killpg(self.process.pid, signal.SIGTERM)
            raise

    def said(self) -> list[str]:
        """The lines that it printed."""
        text = self.printed.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()]


def start(trial: Trial, words: Sequence[str]) -> Started:
    """Start a command with this code."""
    mark = secrets.token_hex(8)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BENCH_", "GITHUB_"))}
    environment |= {
        "PYTHONPATH": str(SOURCE),
        "XDG_CACHE_HOME": str(trial.folder / "cache"),
        "OMP_NUM_THREADS": "1",
        MARK: mark,
    }
    printed = trial.folder / "printed.txt"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench", *words],
            cwd=trial.place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            # What a shell runs in the background ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    return Started(process, mark, printed)


def processes(mark: str) -> list[int]:
    """The processes that carry a mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def held(folder: Path) -> list[str]:
    """The locks below a folder that somebody holds."""
    return [f"{path} is held by {who}" for path in folder.rglob(f"*{LOCK}") if (who := holder(path))]


def run_to_end(trial: Trial, words: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command undisturbed: its exit code and what was wrong."""
    started = start(trial, words)
    code = started.wait(TIMEOUT)
    if code is None:
        return 124, [f"did not end within {TIMEOUT:.0f} s"]
    if code not in trial.fine:
        return code, [f"exit code {code}: {(started.said() or [''])[-1]}"]
    return code, _asked(trial.faults_at_end) + _asked(trial.faults)


def _asked(question: Callable[[], Iterator[str]]) -> list[str]:
    """What is wrong; a file that cannot be read is."""
    try:
        return list(question())
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def kill(trial: Trial, number: signal.Signals, moment: float) -> Outcome:
    """Start a command, end it by a signal, look at what it left, and start it again."""
    started = start(trial, trial.words())
    faults = []
    if started.wait(moment, end=False) is None:
        # Ctrl-C reaches all of a terminal's processes, a signal of `kill` one.
        (os.killpg if number == signal.SIGINT else os.kill)(started.process.pid, number)
    code = started.wait(PATIENCE)
    said = started.said()
    if code is None:
        faults.append(f"did not end within {PATIENCE:.0f} s")
    # To a shell, an end by SIGINT is 130 too: Python ends so where an interrupt meets code that it has compiled itself.
    # And where it meets Python's own start, before anything of ours has run, Python calls that a fatal error.
    elif code not in (*trial.fine, 130, -signal.SIGINT, -number) and said[:1] != [PYTHON_STARTING]:
        faults.append(f"exit code {code}: {(said or [''])[-1]}")
    if any(line.startswith("Traceback") for line in said) and not said[-1].startswith("KeyboardInterrupt"):
        faults.append(f"printed a traceback: {said[-1]}")
    deadline = time.monotonic() + PATIENCE
    # A process that ends loses its name before its locks.
    while ((left := processes(started.mark)) or held(trial.folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        faults.append(f"{len(left)} processes were left behind")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    faults += held(trial.folder)
    faults += _asked(trial.faults)
    words, again = trial.again(), None
    if words is not None:
        again, more = run_to_end(trial, words)
        faults += [f"the next start: {fault}" for fault in more]
    return Outcome(trial.name, number.name, round(moment, 3), 124 if code is None else code, again, tuple(faults))


def loop(path: Path, times: int, commands: Sequence[str], seed: int, say: Say) -> list[Outcome]:
    """Kill until `path` holds `times` outcomes, the commands and signals in turn; all outcomes in it.

    Raises:
        UsageError: there is no such command.
        BenchError: a command does not even run undisturbed.
        RecordError: `path` holds something else, or cannot be written.
    """
    for name in commands:
        if name not in TRIALS:
            raise UsageError(f"no command {name!r} is killed here; there are {', '.join(TRIALS)}")
    outcomes = read_lines(Outcome, path) if path.exists() else []
    with (
        tempfile.TemporaryDirectory(prefix="bench-selfcheck-", ignore_cleanup_errors=True) as folder,
        LineFile(path) as file,
    ):
        trials: dict[str, tuple[Trial, float]] = {}
        for number in range(len(outcomes), times):
            name, signalled = commands[number % len(commands)], SIGNALS[number // len(commands) % len(SIGNALS)]
            if name not in trials:
                trials[name] = _prepared(name, Path(folder), say)
            trial, seconds = trials[name]
            trial.number += 1
            outcome = kill(trial, signalled, random.Random(f"{seed} {number}").uniform(0, seconds))
            file.add(outcome)
            outcomes.append(outcome)
            result = "; ".join(outcome.faults) or "fine"
            say(f"kill {number + 1} of {times}: {name}, {outcome.signal} after {outcome.moment:.1f} s: {result}")
    return outcomes


def _prepared(name: str, folder: Path, say: Say) -> tuple[Trial, float]:
    """A command that ran undisturbed once, and how many seconds that took."""
    place = folder / name.replace(" ", "-")
    place.mkdir()
    trial = TRIALS[name](place)
    # Twice: the first time fills caches.
    for _ in range(2):
        begin = time.monotonic()
        _, faults = run_to_end(trial, trial.words())
        seconds = time.monotonic() - begin
        if faults:
            raise BenchError(f"bench {name} does not run here even undisturbed: {'; '.join(faults)}")
        trial.number += 1
    say(f"{name}: {seconds:.1f} s undisturbed")
    return trial, seconds


HEADERS = ("command", "signal", "kills", "faults")


def summary(outcomes: Sequence[Outcome], format: str = "text") -> str:
    """A row for each command and signal, and below the table every fault."""
    if format == "json":
        return to_json([asdict(outcome) for outcome in outcomes])
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(outcome.command for outcome in outcomes):
        for number in SIGNALS:
            part = [one for one in outcomes if (one.command, one.signal) == (name, number.name)]
            if part:
                rows.append([name, number.name, len(part), sum(bool(one.faults) for one in part)])
    rows.append(["all", "", len(outcomes), sum(bool(one.faults) for one in outcomes)])
    faults = [
        f"- {one.command}, {one.signal} after {one.moment:g} s: {'; '.join(one.faults)}"
        for one in outcomes
        if one.faults
    ]
    return "\n".join([render(HEADERS, rows, format).rstrip("\n"), *([""] if faults else []), *faults]) + "\n"
