"""A measuring process from inside: the sides that it holds, their turns, and the processes forked from it."""

import contextlib
import gc
import json
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from bench.errors import MEMORY_WORDS, foreseen, out_of_memory
from bench.machine.allocator import choose_memory, scatter_heap
from bench.machine.gpu import THROTTLING
from bench.processes import end_with_parent
from bench.sides.adopted import adopt
from bench.sides.session import Session, forget_compiled
from bench.timing.clock import CLOCKS, Slice, time_slice
from bench.timing.duel import Asked, Rounds, SlicePlan, Turn, switching_drop, take_turns
from bench.timing.steady import settle, slowed
from bench.timing.workload import Workload
from models.project import rooted

# The roots of errors that a user can mend, by name: another tree's classes are not this one's.
MENDED = {"BenchError", "DataError", "ModelError", "RecordError"}


def serve() -> None:
    """Answer the parent's questions until it goes away."""
    end_with_parent(signal.SIGKILL)
    with contextlib.suppress(OSError):
        # Where memory runs out, a measuring process is to end before what the user works with.
        Path("/proc/self/oom_score_adj").write_text("1000")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    host = Host()
    forked = answer_all(host, sys.stdin, answers)
    while forked is not None:
        # The child of a fork goes on from here, on a line of its own.
        forked = answer_all(host, *forked)
    host.close()
    # Skip the interpreter's teardown: loader threads and CUDA may hang in it, and there is nothing to save.
    os._exit(0)


def answer_all(host: "Host", questions: Iterable[str], answers: IO[str]) -> tuple[IO[str], IO[str]] | None:
    """Answer until the questions end; in a process that one of them forked, give its own line at once."""
    for line in questions:
        request = json.loads(line)
        try:
            answer = host.answer(request.pop("command"), request)
        except Exception as error:
            answer = describe(error)
        if host.line is not None:
            own, host.line = host.line, None
            return own
        try:
            print(json.dumps(answer), file=answers, flush=True)
        except OSError:
            break
    return None


def describe(error: Exception) -> dict[str, str]:
    """An error as an answer: its kind, its words, and the side that it happened on."""
    side = getattr(error, "side", "")
    text = str(error).strip() or type(error).__name__
    classes = {one.__name__ for one in type(error).__mro__}
    if out_of_memory(error):
        return {"kind": "memory", "error": f"out of memory: {_one_line(text)}", "side": side}
    if classes & MENDED:
        return {"kind": "workload", "error": text, "side": side}
    if words := foreseen(error):
        return {"kind": "workload", "error": words, "side": side}
    import traceback

    traceback.print_exc()
    return {"kind": "internal", "error": f"{type(error).__name__}: {_one_line(text)}", "side": side}


def _one_line(text: str) -> str:
    line = next(
        (line for line in text.splitlines() if any(word in line for word in MEMORY_WORDS)),
        text.splitlines()[0],
    )
    return line[:300]


class Host:
    """The sessions of a process, one for each side, and what concerns all of them.

    Attributes:
        sessions: side -> what it holds; "" where the process has one side only.
        roots: side -> the folder of the user's code that it measures, where that is not the process's own.
        prepared: (side, workload id) -> what building it answered, of steps that were built before a fork.
        renewed: the constants of compiled code were moved in this process.
        examples: steps for which code was compiled that others use too.
        line: of a process just forked, the line to its parent.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Any] = {}
        self.roots: dict[str, Path] = {}
        self.prepared: dict[tuple[str, str], dict[str, Any]] = {}
        self.examples: list[Any] = []
        self.renewed = False
        self.line: tuple[IO[str], IO[str]] | None = None

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a question is answered with: a method of this class, or of the session of the side that is asked."""
        if command in ("fork", "reap", "switching", "turns"):
            arguments.pop("side", None)
        if command in ("adopt", "build", "fork", "prepare", "reap", "release", "settle", "switching", "turns"):
            answer: dict[str, Any] = getattr(self, command)(**arguments)
            return answer
        side = arguments.pop("side", "")
        with rooted(self.roots.get(side)):
            found: dict[str, Any] = getattr(self.session(side), command)(**arguments)
        return found

    def session(self, side: str) -> Any:
        """A side's session: of this code, unless it adopted another tree's."""
        if side not in self.sessions:
            self.sessions[side] = Session()
        return self.sessions[side]

    def settle(self, side: str, root: str) -> dict[str, Any]:
        """Have a side look for code of the user's in this folder."""
        self.roots[side] = Path(root)
        return {}

    def adopt(self, side: str, root: str) -> dict[str, Any]:
        """Have a side run the code of the tree in this folder."""
        self.sessions[side] = adopt(side, Path(root))
        return {}

    def build(
        self, workloads: Sequence[dict[str, Any]], conditions: dict[str, Any], ids: Sequence[str] = (), side: str = ""
    ) -> dict[str, Any]:
        """Build steps that belong together, unless they were prepared before the fork."""
        if len(ids) == 1 and (side, ids[0]) in self.prepared:
            import torch

            # Both are the process's or the thread's that runs them, and were not set where they were prepared.
            torch.set_num_threads(conditions["threads"])
            choose_memory(Workload.from_id(ids[0]).keeps_memory)
            if not self.renewed:
                renew_constants()
                self.renewed = True
            return self.prepared[side, ids[0]]
        with rooted(self.roots.get(side)):
            answer: dict[str, Any] = self.session(side).build(workloads=workloads, conditions=conditions)
        return answer

    def prepare(
        self,
        workloads: Sequence[dict[str, Any]],
        conditions: dict[str, Any],
        ids: Sequence[str],
        reuse: bool,
        side: str = "",
    ) -> dict[str, Any]:
        """Build a step here, so that every process forked from this one has it compiled.

        In a thread of its own: the team of threads that its first call starts ends with that thread, and a process
        whose main thread never had one can be forked. No backward pass: autograd forbids it after a fork.

        Args:
            reuse: forked processes use this very step. Otherwise they build their own, with weights in memory of their
                own, and find the compiler's work done.
        """
        found: list[dict[str, Any] | Exception] = []
        session = self.session(side)

        def work() -> None:
            try:
                with rooted(self.roots.get(side)):
                    found.append(session.build(workloads=workloads, conditions=conditions))
            except Exception as error:
                found.append(error)

        # What is chosen here, every process forked from this one would have.
        session.chooses_memory = False
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        session.chooses_memory = True
        if isinstance(found[0], Exception):
            raise found[0]
        [id] = ids
        if reuse:
            self.prepared[side, id] = found[0]
        else:
            # Kept alive: what was compiled is forgotten with the network that it was compiled for.
            self.examples.append(session.steps.pop(id))
        gc.collect()
        gc.freeze()
        return found[0]

    def fork(self, path: str) -> dict[str, Any]:
        """A process like this one, which answers on the socket of this name."""
        pid = os.fork()
        if pid:
            return {"pid": pid}
        try:
            os.setsid()
            end_with_parent(signal.SIGKILL, forked=True)
            # Its two files keep the line open.
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(path)
                self.line = (line.makefile("r", encoding="utf-8"), line.makefile("w", encoding="utf-8"))
        except OSError:
            os._exit(1)
        scatter_heap()
        forget_threads()
        return {}

    def reap(self, pid: int) -> dict[str, Any]:
        """How a forked process ended: its exit code, negative for a signal; None while it runs."""
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return {"code": 0}
        return {"code": os.waitstatus_to_exitcode(status) if done else None}

    def release(self, ids: Sequence[str], side: str = "") -> dict[str, Any]:
        """Close steps of a side, and forget what was compiled once no compiled step is left."""
        steps = self.session(side).steps
        for id in ids:
            self.prepared.pop((side, id), None)
            if id in steps:
                steps.pop(id).close()
        left = [*self.examples, *(step for session in self.sessions.values() for step in session.steps.values())]
        if not any(step.compiled for step in left):
            forget_compiled()
        return {}

    def switching(self, turns: Sequence[dict[str, Any]], seconds: Mapping[str, float]) -> dict[str, Any]:
        """Untimed steps that each turn needs; see bench.timing.duel.switching_drop."""

        def run(asked: Asked) -> Callable[[int], Sequence[float]]:
            step = self.session(asked.side).steps[asked.id]

            def take(steps: int) -> Sequence[float]:
                with _blamed(asked.name):
                    return time_slice(step.call, steps, 0, CLOCKS[step.workload.device], True).samples

            return take

        return {"drop": switching_drop({one.name: run(one) for one in map(read_asked, turns)}, seconds)}

    def turns(self, turns: Sequence[dict[str, Any]], rounds: dict[str, Any], seed: int) -> dict[str, Any]:
        """Rounds of turns of steps that were built here; see bench.timing.duel.take_turns."""
        asked = list(map(read_asked, turns))
        steps = [self.session(one.side).steps[one.id] for one in asked]
        # Queues go on being filled and threads of foreign engines go on spinning after a turn: then the other side
        # has to wait. Steps of torch leave nothing running that the next step does not use itself.
        rest = any(step.prefetch or step.converted for step in steps)
        sides = {one.name: self._turn(one, step, rest) for one, step in zip(asked, steps, strict=True)}
        # Collecting garbage in the middle of a turn would be timed as work of the network.
        gc.collect()
        gc.disable()
        try:
            taken = take_turns(sides, Rounds(**rounds), random.Random(seed))
        finally:
            gc.enable()
        return {"rounds": [[asdict(row[one.name]) for one in asked] for row in taken]}

    def _turn(self, asked: Asked, step: Any, rest: bool) -> Turn:
        clock = CLOCKS[step.workload.device]
        call = slowed(step.call, asked.slower, step.workload.device) if asked.slower else step.call
        plan, each = asked.plan, asked.each

        def take() -> Slice:
            with _blamed(asked.name):
                turn = time_slice(call, plan.steps, plan.drop, clock, each)
            if step.workload.device == "cuda":
                # A CPU's reading is one core's at one moment; a GPU's clock is the whole device's.
                now = self.session(asked.side).sensor("cuda").sample()
                turn = replace(turn, clock_hertz=now.clock_hertz, throttled=bool((now.throttle or 0) & THROTTLING))
            if rest:
                settle()
            return turn

        return take

    def close(self) -> None:
        """Close every step."""
        for session in self.sessions.values():
            session.close()


@contextlib.contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Errors inside, also torch's, say whose turn it was."""
    try:
        yield
    except Exception as error:
        error.side = name  # type: ignore[attr-defined]
        raise


def renew_constants() -> None:
    """Copy the constants of all compiled code, frozen weights above all, to other memory, in random order.

    Where its weights lie makes a network faster or slower by a percent or two. In processes forked from one they would
    lie at the same places, and a difference between two sides that is only theirs would look like one of the sides.
    """
    import torch
    from torch._inductor.codecache import PyCodeCache

    found = []
    for module in PyCodeCache.modules:
        # Weights that MKL has packed for its own linear layer are no tensor that can be copied.
        packed = "_mkl_linear" in Path(module.__file__ or "").read_text(encoding="utf-8")
        found += [
            (module, name)
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor) and not (packed and value.is_mkldnn and value.dim() == 2)
        ]
    # Not the generator that was forked: it would give every process the same order.
    random.SystemRandom().shuffle(found)
    for module, name in found:
        setattr(module, name, getattr(module, name).clone())


def forget_threads() -> None:
    """Have the compiler start threads of its own: a fork has none of those that it would wait for.

    torch forgets its other pools after a fork, but not this one (torch 2.15).
    """
    if "torch._inductor.async_compile" in sys.modules:
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.pool.cache_clear()


def read_asked(data: Mapping[str, Any]) -> Asked:
    """A turn as it came over the line."""
    return Asked(**{**data, "plan": SlicePlan(**data["plan"])})
