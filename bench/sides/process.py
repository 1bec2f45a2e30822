"""The parent's end of a measuring process: asks it for something, waits for the answer, and ends it.

Parent and child speak one JSON object a line. The child's stdout is a private copy of the pipe, so that nothing a
library prints can be taken for an answer; everything printed goes to a log whose end is shown if the child fails.
The child lives in a session of its own (Ctrl-C in the terminal reaches only the parent, which then ends it) and
dies with its parent, so no orphan is left however the parent ends.

One process may hold several sides of a comparison, each with its own networks: `seat` gives the handle of one of them.
"""

import contextlib
import copy
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

from bench.errors import BenchError, OutOfMemoryError, WorkerError, WorkloadError
from bench.processes import PARENT, SOURCE
from bench.timing.clock import Slice
from bench.timing.duel import Asked, Rounds, SlicePlan
from bench.timing.steady import WARM_UP_CAP
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import Configuration


@dataclass(frozen=True)
class Built:
    """What a process says of the steps that it has built.

    Attributes:
        compile_seconds: spent compiling, 0 where nothing is compiled.
        cache: "cold", "bypassed" or "warm": what the compiler's cache held; "none" without a compiler.
        notes: what a reader of the numbers must know.
        prefetch: workload id -> batches that its loader holds ready.
    """

    compile_seconds: float
    cache: str
    notes: tuple[str, ...]
    prefetch: Mapping[str, int]


def before_keep(workload: Workload) -> Workload:
    """What code from before the lever `keep`, which always kept freed memory, calls a workload.

    Raises:
        WorkloadError: the workload does not keep it.
    """
    configuration = workload.configuration
    if workload.keeps_memory:
        assert isinstance(configuration, Configuration | LoaderOutput)
        return replace(workload, configuration=replace(configuration, keep=False))
    foreign = isinstance(configuration, Configuration) and configuration.peer is not None
    if (workload.device == "cpu" and not foreign) or workload.task == "loading":
        raise WorkloadError(
            f"no configuration is called {configuration.text} in code of that age: it always keeps freed memory, "
            "as the lever keep does now"
        )
    return workload


@dataclass(frozen=True)
class Warm:
    """How a step was after its warm-up.

    Attributes:
        seconds_per_step: of its last slices.
        steady: it had stopped getting faster.
    """

    seconds_per_step: float
    steady: bool = True


class Running(Protocol):
    """What is asked of a process that was started or forked, as of subprocess.Popen."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Forked:
    """A process forked by another measuring process, which alone learns how it ended."""

    def __init__(self, pid: int, parent: "Worker") -> None:
        self.pid = pid
        self.parent = parent
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.code is None:
            try:
                self.code = self.parent.ask("reap", 10, pid=self.pid)["code"]
            except BenchError:
                # Its parent ended, and so did it.
                self.code = -signal.SIGTERM
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        begin = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - begin >= timeout:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.005)
        return code


@dataclass
class Channel:
    """The line to a process, shared by the handles of all its sides.

    Attributes:
        process: the child.
        writer, reader: file descriptors.
        log: holds what it printed; None where another process's log does.
        pending: bytes received and not yet read as an answer.
        hosts: the child can hold several sides and fork.
        levers: side -> those that its code knows, "" for the process itself.
        ids: side -> ids of workloads that code of an older commit calls otherwise.
    """

    process: Running
    writer: int
    reader: int
    log: IO[bytes]
    owns_log: bool = True
    pending: bytes = b""
    hosts: bool = False
    levers: dict[str, frozenset[str]] = field(default_factory=dict)
    ids: dict[str, dict[str, str]] = field(default_factory=dict)
    closed: bool = field(default=False, init=False)


class Worker:
    """The parent's handle on a measuring process, or on one side of several that it holds.

    Args:
        name: the operand it measures, for messages.
        environment: variables for the child on top of this process's.
        source: folder that holds the packages the child runs.
        python: its interpreter.

    Raises:
        WorkerError: from every method, if the process died or did not answer in time; with its last output.
        OutOfMemoryError: from `build`, `warm` and `slice`.
        BenchError: what the child reported as something the user can act on; its `side` where it said which.
    """

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        source: Path = SOURCE,
        python: str = sys.executable,
    ) -> None:
        self.name = name
        self.side = ""
        self.source = source
        # This process's own packages must not be found where the child's tree lacks one.
        elsewhere = [
            place
            for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if place and (source == SOURCE or Path(place).resolve() != SOURCE)
        ]
        log = tempfile.TemporaryFile(prefix="bench-worker-")  # noqa: SIM115 - closed in close()
        process = subprocess.Popen(
            # -P: a folder named models in the user's working directory must not be taken for ours.
            [python, "-u", "-P", "-c", "from bench.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,
            env={
                **os.environ,
                **(environment or {}),
                PARENT: str(os.getpid()),
                "PYTHONPATH": os.pathsep.join([str(source), *elsewhere]),
            },
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # Copies, which stay open however the object of the process goes.
        writer, reader = os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())
        process.stdin.close()
        process.stdout.close()
        self._channel = Channel(process, writer, reader, log)

    @property
    def pid(self) -> int:
        return self._channel.process.pid

    @property
    def hosts(self) -> bool:
        """Whether it can hold several sides, which take turns inside it, and fork: code of an older commit cannot."""
        return self._channel.hosts

    def seat(self, side: str) -> Self:
        """The handle of one side of this process: what it builds is apart from what the others build."""
        handle = copy.copy(self)
        handle.name = handle.side = side
        return handle

    def fork(self, name: str) -> Self:
        """A fresh process that has everything which this one has imported and prepared; it ends with this one.

        Importing takes seconds, forking milliseconds. Only for a process that has not run a thread pool or CUDA in its
        main thread: neither survives a fork.
        """
        # A name that is in no folder (Linux): one in TMPDIR may be longer than a socket's name can be.
        name_of_line = f"\0bench-{os.getpid()}-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(name_of_line)
            listening.listen(1)
            listening.settimeout(60)
            pid = self.ask("fork", 60, path=name_of_line)["pid"]
            try:
                line, _ = listening.accept()
            except OSError as error:
                raise self._failure("did not fork") from error
        line.setblocking(True)
        writer = line.detach()
        forked = copy.copy(self)
        forked.name = name
        own = self._channel
        forked._channel = Channel(
            Forked(pid, self), writer, os.dup(writer), own.log, False, b"", own.hosts, own.levers, own.ids
        )
        return forked

    def send(self, command: str, **arguments: Any) -> None:
        """Ask for something; `receive` gets the answer."""
        if self._channel.closed:
            # Its descriptor may be another process's by now.
            raise self._failure("was ended")
        if self.side:
            arguments["side"] = self.side
        ids = self._channel.ids.get(self.side, {})
        if "id" in arguments:
            arguments["id"] = ids.get(arguments["id"], arguments["id"])
        if "ids" in arguments:
            arguments["ids"] = [ids.get(id, id) for id in arguments["ids"]]
        self._write({"command": command, **arguments})

    def _write(self, question: Mapping[str, Any]) -> None:
        line = (json.dumps(question) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._channel.writer, line) :]
        except OSError as error:
            raise self._failure("closed its input") from error

    def receive(self, timeout: float) -> dict[str, Any]:
        """The answer to the oldest question not yet answered, within `timeout` seconds."""
        channel = self._channel
        deadline = time.monotonic() + timeout
        while b"\n" not in channel.pending:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failure(f"did not answer within {timeout:.0f} s")
            if select.select([channel.reader], [], [], left)[0]:
                try:
                    chunk = os.read(channel.reader, 1 << 16)
                except ConnectionError:
                    chunk = b""
                if not chunk:
                    raise self._failure("ended")
                channel.pending += chunk
        line, channel.pending = channel.pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = {"memory": OutOfMemoryError, "workload": WorkloadError}.get(answer["kind"], WorkerError)
            message = str(answer["error"])
            error = WorkerError(f"{self.name}: {message}", self._tail()) if kind is WorkerError else kind(message)
            error.side = answer.get("side", "")
            raise error
        return answer

    def ask(self, command: str, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
        """send and receive."""
        self.send(command, **arguments)
        return self.receive(timeout)

    def greet(self, needs: Mapping[str, Any]) -> None:
        """Ask it to import what it will need; `greeted` waits for it.

        Args:
            needs: arguments of Session.imports, and "compiler": whether torch's compiler is among them.
        """
        self.send("hello", compiler=needs["compiler"])
        self.send("imports", **{name: value for name, value in needs.items() if name != "compiler"})

    def greeted(self, timeout: float = 300.0) -> None:
        """Wait for a process that was greeted.

        Raises:
            WorkerError: it runs other code than it was started for: a tree would be compared with itself.
        """
        answer = self.receive(timeout)
        self._channel.levers[self.side] = frozenset(answer.get("levers", ()))
        self._channel.hosts = self._channel.hosts or bool(answer.get("hosts"))
        source = answer.get("source")
        if source is not None and Path(source).resolve() != self.source.resolve():
            raise WorkerError(
                f"{self.name} runs the code of {source} and not that of {self.source}; is pixbench installed in a way "
                "that goes before PYTHONPATH?"
            )
        # Code of an older commit may not know this question; it then imports while it builds.
        with contextlib.suppress(BenchError):
            self.receive(timeout)

    def described(self, workload: Workload) -> dict[str, Any]:
        """A workload in a form that code of any commit reads: its configuration as text.

        A table of its fields would name levers that older code does not have. Code from before the lever `keep` keeps
        freed memory whatever it measures.

        Raises:
            WorkloadError: such code would measure something else.
        """
        levers = self._channel.levers
        theirs = workload
        if "keep" not in levers.get(self.side, levers.get("", ())):
            theirs = before_keep(workload)
            self._channel.ids.setdefault(self.side, {})[workload.id] = theirs.id
        return {**theirs.to_json(), "configuration": theirs.configuration.text}

    def build(self, workloads: Sequence[Workload], conditions: Conditions, timeout: float = 900.0) -> Built:
        """Build steps that belong together and call each once."""
        self.begin_build(workloads, conditions)
        return self.built(timeout)

    def begin_build(self, workloads: Sequence[Workload], conditions: Conditions) -> None:
        """Have it build while others do; `built` waits for it."""
        self.send("build", **self._to_build(workloads, conditions))

    def prepare(self, workload: Workload, conditions: Conditions, timeout: float = 900.0) -> Built:
        """Build a step in a process that others will be forked from, so that all of them have it compiled."""
        frozen = bool(getattr(workload.configuration, "freeze", False))
        answer = self.ask("prepare", timeout, reuse=frozen, **self._to_build([workload], conditions))
        return Built(**{**answer, "notes": tuple(answer["notes"])})

    def _to_build(self, workloads: Sequence[Workload], conditions: Conditions) -> dict[str, Any]:
        words = {"workloads": [self.described(w) for w in workloads], "conditions": conditions.to_json()}
        return {**words, "ids": [w.id for w in workloads]} if self.hosts else words

    def built(self, timeout: float = 900.0) -> Built:
        """What `build` answers."""
        answer = self.receive(timeout)
        ours = {theirs: id for id, theirs in self._channel.ids.get(self.side, {}).items()}
        prefetch = {ours.get(id, id): count for id, count in answer["prefetch"].items()}
        return Built(**{**answer, "notes": tuple(answer["notes"]), "prefetch": prefetch})

    def warm(self, workload: Workload, cap: float = WARM_UP_CAP, timeout: float = 600.0) -> Warm:
        """Warm up until the step is steady, for at most about `cap` seconds."""
        answer = self.ask("warm", timeout, id=workload.id, cap=cap)
        return Warm(float(answer["seconds_per_step"]), bool(answer.get("stable", True)))

    def slice(
        self,
        workload: Workload,
        plan: SlicePlan,
        each: bool = False,
        slower: float = 0.0,
        rest: bool = True,
        timeout: float = 300.0,
    ) -> Slice:
        """One turn.

        Args:
            slower: share of its time that each step is made to take longer.
            rest: wait afterwards until nothing of the process runs any more.
        """
        steps = plan.steps
        more: dict[str, Any] = {}
        if self.hosts:
            more = {"slower": slower, "rest": rest}
        elif slower:
            # Code of an older commit does every so many steps twice.
            every = round(1 / slower)
            steps = -(-steps // every) * every
            more = {"twice_every": every}
        answer = self.ask("slice", timeout, id=workload.id, steps=steps, drop=plan.drop, each=each, **more)
        return Slice.from_json(answer)

    def switching(self, turns: Sequence[Asked], seconds: Mapping[str, float]) -> dict[str, int]:
        """Untimed steps that each turn needs; see bench.timing.duel.switching_drop."""
        answer = self.ask("switching", 300, turns=self._to_take(turns), seconds=dict(seconds))
        return dict(answer["drop"])

    def turns(self, turns: Sequence[Asked], rounds: Rounds, seed: int) -> list[dict[str, Slice]]:
        """Rounds of turns of sides that this process holds, taken inside it: nothing passes between two steps.

        Raises:
            BenchError: what a side raised in its turn; its `side` is the turn's name.
        """
        limit = min(3600.0, 300 + 4 * rounds.seconds)
        answer = self.ask("turns", limit, turns=self._to_take(turns), rounds=asdict(rounds), seed=seed)
        names = [one.name for one in turns]
        return [
            {name: Slice.from_json(turn) for name, turn in zip(names, row, strict=True)} for row in answer["rounds"]
        ]

    def _to_take(self, turns: Sequence[Asked]) -> list[dict[str, Any]]:
        theirs = self._channel.ids
        return [{**asdict(one), "id": theirs.get(one.side, {}).get(one.id, one.id)} for one in turns]

    def close(self) -> None:
        """End the process and everything it started. Never raises, also when called twice."""
        channel = self._channel
        if channel.closed:
            return
        channel.closed = True
        # Both ends: of a socket, one alone would keep it open.
        os.close(channel.writer)
        os.close(channel.reader)
        with contextlib.suppress(subprocess.TimeoutExpired):
            channel.process.wait(timeout=0.5)
        with contextlib.suppress(OSError):
            # The whole group: loaders have worker processes of their own.
            os.killpg(channel.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            channel.process.wait(timeout=10)
        if channel.owns_log:
            channel.log.close()

    def _tail(self, lines: int = 200) -> str:
        """The end of what the process printed."""
        try:
            self._channel.log.seek(0)
            text = self._channel.log.read().decode(errors="replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return "\n".join(f"  {line}" for line in text[-lines:])

    def _failure(self, what: str) -> BenchError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._channel.process.wait(timeout=1)
        code = self._channel.process.poll()
        if code == -signal.SIGKILL:
            return OutOfMemoryError(
                f"the process measuring {self.name} was killed: most likely the machine ran out of memory"
            )
        how = (
            "" if code is None else (f" (signal {signal.Signals(-code).name})" if code < 0 else f" (exit code {code})")
        )
        return WorkerError(f"the process measuring {self.name} {what}{how}", self._tail())
