"""The parent's end of a measuring process: asks it for something, waits for the answer, and ends it.

Parent and child speak one JSON object a line. The child's stdout is a private copy of the pipe, so that nothing a
library prints can be taken for an answer; everything printed goes to a log whose end is shown if the child fails.
The child lives in a session of its own (Ctrl-C in the terminal reaches only the parent, which then ends it) and
dies with its parent, so no orphan is left however the parent ends.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError, OutOfMemoryError, WorkerError, WorkloadError
from bench.processes import PARENT, SOURCE
from bench.timing.clock import Slice
from bench.timing.workload import Conditions, KernelVariant, Workload
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
        assert not isinstance(configuration, KernelVariant)
        return replace(workload, configuration=replace(configuration, keep=False))
    foreign = isinstance(configuration, Configuration) and configuration.peer is not None
    if (workload.device == "cpu" and not foreign) or workload.task == "loading":
        raise WorkloadError(
            f"no configuration is called {configuration.text} in code of that age: it always keeps freed memory, "
            "as the lever keep does now"
        )
    return workload


class Worker:
    """The parent's handle on a measuring process.

    Args:
        name: the operand it measures, for messages.
        environment: variables for the child on top of this process's.
        source: folder that holds the packages the child runs.
        python: its interpreter.

    Raises:
        WorkerError: from every method, if the process died or did not answer in time; with its last output.
        OutOfMemoryError: from `build`, `warm` and `slice`.
        BenchError: what the child reported as something the user can act on.
    """

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        source: Path = SOURCE,
        python: str = sys.executable,
    ) -> None:
        self.name = name
        self.source = source
        self._levers: frozenset[str] = frozenset()
        # Ids of workloads that code of older commits calls otherwise.
        self._ids: dict[str, str] = {}
        # This process's own packages must not be found where the child's tree lacks one.
        elsewhere = [
            place
            for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if place and (source == SOURCE or Path(place).resolve() != SOURCE)
        ]
        self._log = tempfile.TemporaryFile(prefix="bench-worker-")  # noqa: SIM115 - closed in close()
        self._pending = b""
        self._process = subprocess.Popen(
            # -P: a folder named models in the user's working directory must not be taken for ours.
            [python, "-u", "-P", "-c", "from bench.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
            env={
                **os.environ,
                **(environment or {}),
                PARENT: str(os.getpid()),
                "PYTHONPATH": os.pathsep.join([str(source), *elsewhere]),
            },
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: str, **arguments: Any) -> None:
        """Ask for something; `receive` gets the answer."""
        if "id" in arguments:
            arguments["id"] = self._ids.get(arguments["id"], arguments["id"])
        if "ids" in arguments:
            arguments["ids"] = [self._ids.get(id, id) for id in arguments["ids"]]
        line = json.dumps({"command": command, **arguments}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except OSError as error:
            raise self._failure("closed its input") from error

    def receive(self, timeout: float) -> dict[str, Any]:
        """The answer to the oldest question not yet answered, within `timeout` seconds."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failure(f"did not answer within {timeout:.0f} s")
            if select.select([descriptor], [], [], left)[0]:
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    raise self._failure("ended")
                self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = {"memory": OutOfMemoryError, "workload": WorkloadError}.get(answer["kind"], WorkerError)
            message = str(answer["error"])
            if kind is WorkerError:
                raise WorkerError(f"{self.name}: {message}", self._tail())
            raise kind(message)
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
        self._levers = frozenset(answer.get("levers", ()))
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
        """A workload in the form that the process reads.

        Code from before the lever `keep` reads configurations as text, and keeps freed memory whatever it measures.

        Raises:
            WorkloadError: such code would measure something else.
        """
        if "keep" in self._levers:
            return workload.to_json()
        theirs = before_keep(workload)
        self._ids[workload.id] = theirs.id
        return {**theirs.to_json(), "configuration": theirs.configuration.text}

    def build(self, workloads: Sequence[Workload], conditions: Conditions, timeout: float = 900.0) -> Built:
        """Build steps that belong together and call each once."""
        self.begin_build(workloads, conditions)
        return self.built(timeout)

    def begin_build(self, workloads: Sequence[Workload], conditions: Conditions) -> None:
        """Have it build while others do; `built` waits for it."""
        self.send("build", workloads=[self.described(w) for w in workloads], conditions=asdict(conditions))

    def built(self, timeout: float = 900.0) -> Built:
        """What `build` answers."""
        answer = self.receive(timeout)
        ours = {theirs: id for id, theirs in self._ids.items()}
        prefetch = {ours.get(id, id): count for id, count in answer["prefetch"].items()}
        return Built(**{**answer, "notes": tuple(answer["notes"]), "prefetch": prefetch})

    def warm(self, workload: Workload, cap: float, timeout: float = 600.0) -> float:
        """Warm up for at most about `cap` seconds; returns seconds a step."""
        return float(self.ask("warm", timeout, id=workload.id, cap=cap)["seconds_per_step"])

    def slice(
        self, workload: Workload, steps: int, drop: int, each: bool, timeout: float, twice_every: int = 0
    ) -> Slice:
        """One turn of `steps` timed steps; every `twice_every`-th does its work twice, if that is not 0."""
        more = {"twice_every": twice_every} if twice_every else {}
        answer = self.ask("slice", timeout, id=workload.id, steps=steps, drop=drop, each=each, **more)
        return Slice.from_json(answer)

    def close(self) -> None:
        """End the process and everything it started. Never raises, also when called twice."""
        process = self._process
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5 if process.poll() is None else 0)
        with contextlib.suppress(OSError):
            # The whole group: loaders have worker processes of their own.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()
        self._log.close()

    def _tail(self, lines: int = 6) -> str:
        """The end of what the process printed."""
        try:
            self._log.seek(0)
            text = self._log.read().decode(errors="replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return "\n".join(f"  {line}" for line in text[-lines:])

    def _failure(self, what: str) -> BenchError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        code = self._process.poll()
        if code == -signal.SIGKILL:
            return OutOfMemoryError(
                f"the process measuring {self.name} was killed: most likely the machine ran out of memory"
            )
        how = (
            "" if code is None else (f" (signal {signal.Signals(-code).name})" if code < 0 else f" (exit code {code})")
        )
        return WorkerError(f"the process measuring {self.name} {what}{how}", self._tail())
