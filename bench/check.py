"""`bench check`: two trees against each other; exact facts first, then a duel with looks, then what fails once more.

Each side's processes run that side's code. Many workloads share the processes of a block, so start-up and compilation
are paid once a block; compile caches last from block to block and from check to check, and each side has its own.
"""

import contextlib
import fcntl
import math
import os
import random
import re
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import reference
from bench.cache import cache_folder
from bench.clock import Slice
from bench.comparison import WARM_UP_CAP, worker_environment
from bench.duel import PAIRS, Plan, Round, SideError, keep, log_ratios, plan, take_turns
from bench.errors import BenchError, OutOfMemoryError, UsageError, WorkerError, WorkloadError
from bench.machine import CpuTimes, Roots, cpu_times
from bench.trees import Tree, two_commits
from bench.worker import Worker
from bench.workload import Conditions, Workload
from results.gate import ERROR, NEW, VANISHED, CheckReport, Fact, Row, SelfTest, row_verdict
from results.record import Metric, Record, utc_now
from results.stats import interval, summarise
from results.verdict import (
    ALPHAS,
    LOOKS,
    REGRESSED,
    UNSURE,
    Decision,
    instrument_faults,
    look,
    margin_of,
)

# Far shorter than a comparison's: sides that are nearly alike are told apart by many pairs rather than by long slices,
# because what disturbs a shared machine lasts longer than either.
SLICE_SECONDS = 0.04
# A loader's batches come in bursts, and as many as it holds ready are taken out untimed at each turn.
LOADER_SLICE_SECONDS = 0.3
PAUSE_SECONDS = 0.01  # between two slices: what ran has to come to rest
TURNS_SECONDS = 4.0
MOST_PAIRS = 64
WARM_UP_SECONDS = 0.3
SELF_TEST_SLOWDOWN = 20  # every 20th step is done twice: 5 %
SELF_TEST_SECONDS = 1.0  # the longest slice of so many steps; there are 32 of them in a block
CACHE_BYTES = 4 << 30
METRIC = {
    "latency": "inference_latency_p50",
    "inference": "inference_throughput",
    "training": "training_throughput",
    "loading": "loader_throughput",
    "end_to_end": "end_to_end_throughput",
    "kernel": "kernel_throughput",
}

Say = Callable[[str], None]
Spawn = Callable[[str, Mapping[str, str], Path, str], Any]


def default_workloads(device: str, data: str) -> list[Workload]:
    """Small enough for two cores: inference, training step and loading around ResNet-18 and EfficientNet-B0.

    Args:
        data: name of the image set that the loaders read.
    """
    cuda = device == "cuda"
    batch, size = (128, 128) if cuda else (4, 64)
    # Without freezing: graphs of frozen weights are compiled anew in each process. On two cores one compiled network
    # has to do: every process of every block traces it again, code that is kept or not.
    inference = "bf16-nhwc-compile"
    training = "amp-nhwc-compile" if cuda else "amp-nhwc-eager"
    networks = [
        Workload(task, model, configuration, batch, size, 1000, device=device)
        for task, model, configuration in (
            ("inference", "resnet18", inference),
            ("inference", "efficientnet_b0", inference if cuda else "bf16-nhwc-eager"),
            ("training", "resnet18", training),
            ("training", "efficientnet_b0", training),
        )
    ]
    return [*networks, Workload("loading", "dali", "bfloat16-nhwc", 32, size, data=data, device=device)]


def small(device: str) -> Workload:
    """What the instrument is tested with where every workload's steps are long, or the one chosen fails."""
    return Workload("inference", "lenet", "fp32-nchw-eager", 4, 32, 10, device=device)


def may_compile(workload: Workload) -> bool:
    """Whether making it ready may need torch's compiler."""
    return "eager" not in workload.configuration.split("-") and not workload.reads_files


def turns_of(seconds_per_step: float, prefetch: int) -> tuple[Plan, int]:
    """A workload's slice, and the rounds of two slices that fill four seconds; at least 8.

    Args:
        seconds_per_step: of the slower side.
        prefetch: batches that a loader holds ready; 0 for everything else.
    """
    how = plan(seconds_per_step, LOADER_SLICE_SECONDS if prefetch else SLICE_SECONDS, prefetch)
    if not prefetch and seconds_per_step >= SLICE_SECONDS:
        # What an untimed step cures is a small part of so long a step, the same for both sides; and it costs half the
        # pairs.
        how = replace(how, drop=0)
    pair = 2 * ((how.steps + how.drop) * seconds_per_step + PAUSE_SECONDS)
    return how, min(MOST_PAIRS, max(PAIRS, round(TURNS_SECONDS / pair)))


@dataclass
class Series:
    """What is measured of one workload.

    Attributes:
        blocks: kept rounds of each block, sides by name.
        seconds: what each block cost, both sides together.
        decision: of the latest look.
        reason: why it was given up.
    """

    blocks: list[list[Round]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    decision: Decision | None = None
    reason: str | None = None

    @property
    def latest(self) -> float:
        return self.seconds[-1] if self.seconds else 0.0

    @property
    def typical(self) -> float:
        return statistics.median(self.seconds) if self.seconds else 0.0

    def values(self, of: str, to: str) -> list[float]:
        """log(time of `of` / time of `to`) a block: the median over its pairs."""
        found = [[turns for turns in block if of in turns and to in turns] for block in self.blocks]
        return [statistics.median(log_ratios(block, of, to)) for block in found if block]


class Duel:
    """Blocks of fresh processes until every workload is judged.

    Args:
        base, head: the trees.
        workloads: what is timed.
        conditions: threads and data.
        self_test: a workload that base also does against itself, and slowed by 5 %; None without one.
        looks, alphas: after how many blocks is judged, and with which one-sided error.
        seed: of the order of turns.
        budget: seconds; no look is gone for that would end beyond them, what is in doubt then stays UNSURE.
        say: one line for each thing begun.
        spawn: (name, environment, source, interpreter) -> a worker.
    """

    def __init__(
        self,
        base: Tree,
        head: Tree,
        workloads: Sequence[Workload],
        conditions: Conditions,
        *,
        self_test: Workload | None = None,
        looks: Sequence[int] = LOOKS,
        alphas: Sequence[float] = ALPHAS,
        seed: int = 0,
        budget: float = math.inf,
        say: Say = lambda text: None,
        spawn: Spawn = Worker,
    ) -> None:
        self.trees = {"base": base, "head": head}
        self.workloads = list(workloads)
        self.conditions = conditions
        self.self_test = self_test
        self.looks = tuple(looks)
        self.alphas = tuple(alphas)
        self.rng = random.Random(seed)
        self.budget = budget
        self.say = say
        self.spawn = spawn
        self.workers: dict[str, Any] = {}
        self.series = {workload.id: Series() for workload in workloads}
        self.instrument = Series()
        self.same: Decision | None = None
        self.slowed: Decision | None = None
        self.load: list[float | None] = []
        self.references: list[float] = []
        self.ended_early = False

    def run(self) -> None:
        """Measure until the last look, until nothing is left in doubt, or until the next look is beyond the budget."""
        begin = time.monotonic()
        overheads: list[float] = []
        for block in range(self.looks[-1]):
            open_ = [w for w in self.workloads if self.undecided(w)]
            testing = self.self_test is not None and self.testing()
            if not open_ and not testing:
                return
            if testing and self.self_test not in open_:
                assert self.self_test is not None
                open_ = [*open_, self.self_test]
            if block in self.looks:
                blocks = next(number for number in self.looks if number > block) - block
                each = statistics.median(overheads) + sum(self.series[w.id].typical for w in open_)
                if time.monotonic() - begin + blocks * each > self.budget:
                    self.ended_early = True
                    return
            self.say(f"block {block + 1}, at most {self.looks[-1]}: {len(open_)} workloads")
            before, block_begin = Busy.now(), time.monotonic()
            try:
                self.start(["base", "head", *(["again"] if testing else [])], open_)
                for workload in open_:
                    self.measure(workload, testing and workload == self.self_test)
                if testing and self.self_test not in open_:
                    # It was given up for a small one in this very block, which still needs its pairs.
                    assert self.self_test is not None
                    open_ = [*open_, self.self_test]
                    self.series.setdefault(self.self_test.id, Series())
                    self.measure(self.self_test, True)
            finally:
                self.close()
            self.load.append(Busy.now().foreign(before))
            spent = time.monotonic() - block_begin
            overheads.append(spent - sum(self.series[w.id].latest for w in open_))
            if block == 0 and spent * self.looks[0] > 1.5 * self.budget:
                # No look would mean no answer at all, so the first one is gone for whatever it takes.
                self.say(
                    f"a block takes {spent:.0f} s: the first look, after {self.looks[0]}, comes in about "
                    f"{spent * self.looks[0] / 60:.0f} min, beyond --budget; choose fewer or smaller --workloads"
                )
            if block + 1 in self.looks:
                self.judge()

    def undecided(self, workload: Workload) -> bool:
        series = self.series[workload.id]
        return series.reason is None and (series.decision is None or not series.decision.final)

    def testing(self) -> bool:
        """Whether the self-test still lacks an answer."""
        assert self.self_test is not None
        series = self.series.setdefault(self.self_test.id, Series())
        return series.reason is None and not all(d is not None and d.final for d in (self.same, self.slowed))

    def judge(self) -> None:
        for workload in self.workloads:
            series = self.series[workload.id]
            if self.undecided(workload):
                series.decision = self.decide(workload)
        if self.self_test is not None:
            margin = margin_of(METRIC[self.self_test.task])
            same, slowed = (self.instrument.values(*pair) for pair in (("again", "base"), ("slowed", "beside")))
            if same and (self.same is None or not self.same.final):
                self.same = look(same, margin, self.looks, self.alphas)
            if slowed and (self.slowed is None or not self.slowed.final):
                self.slowed = look(slowed, margin, self.looks, self.alphas)

    def decide(self, workload: Workload) -> Decision | None:
        """What a workload's blocks say; None without any."""
        values = self.series[workload.id].values("head", "base")
        return look(values, margin_of(METRIC[workload.task]), self.looks, self.alphas) if values else None

    # ---- processes ----

    def start(self, names: Sequence[str], workloads: Sequence[Workload]) -> None:
        """Fresh processes; they import at the same time, nothing is timed yet."""
        compiler = any(map(may_compile, workloads))
        # Whoever starts first gets other memory.
        for name in self.rng.sample(names, len(names)):
            self.workers[name] = open_side(self.tree(name), name, self.conditions.threads, self.spawn)
        for name in names:
            self.workers[name].send("hello", compiler=compiler)
            self.workers[name].send("imports", **imports(workloads))
        for name in names:
            greet(self.workers[name], self.tree(name))
        for name in names:
            imported(self.workers[name])
        # Says how fast the machine is in this very block, for comparisons with other runs. All do it, since it leaves
        # threads and memory behind; the head's counts.
        device, threads = self.workloads[0].device, self.conditions.threads
        for name in self.rng.sample(names, len(names)):
            try:
                seconds = self.workers[name].ask("reference", 120, device=device, threads=threads)["seconds"]
            except BenchError:
                if name == "head":
                    raise
                continue  # older code does not know the question
            if name == "head":
                self.references.append(seconds)

    def tree(self, name: str) -> Tree:
        return self.trees["head" if name == "head" else "base"]

    def restart(self) -> None:
        names = list(self.workers)
        self.close()
        self.start(names, self.workloads)
        self.references.pop()

    def close(self) -> None:
        while self.workers:
            self.workers.popitem()[1].close()

    # ---- one workload in one block ----

    def measure(self, workload: Workload, testing: bool) -> None:
        """Build it on both sides, warm it, let the sides take turns; a side that fails ends this workload only."""
        series = self.series[workload.id]
        begin = time.monotonic()
        asked = workload in self.workloads
        # What only tests the instrument is the base's alone.
        names = [name for name in self.workers if (name != "again" or testing) and (name != "head" or asked)]
        kept: list[Round] = []
        try:
            seconds, prefetch = self.ready(workload, names)
            how, rounds = turns_of(seconds, prefetch)
            if asked:
                turns = {name: self.turn(name, workload, how) for name in ("base", "head")}
                kept = keep(take_turns(turns, rounds, self.rng))
            if testing and asked and seconds * SELF_TEST_SLOWDOWN > SELF_TEST_SECONDS:
                self.self_test = small(workload.device)
            elif testing:
                self.ask_instrument(workload, how)
        except BenchError as error:
            side = error.side if isinstance(error, SideError) else getattr(error, "side", None)
            series.reason = f"{side}: {first_line(error)}" if side else first_line(error)
            self.say(f"{workload.id}: {series.reason}")
            if testing and asked:
                # The row says what is wrong with the workload; the instrument may still be sound.
                self.self_test = small(workload.device)
            self.restart()
            return
        if kept:
            series.blocks.append(kept)
        if kept or not asked:
            series.seconds.append(time.monotonic() - begin)
        try:
            # All at the same time: each collects its garbage, and nothing is timed.
            for name in names:
                self.workers[name].send("release", ids=[workload.id])
            for name in names:
                self.workers[name].receive(60)
        except BenchError:
            # An answer that comes late would be taken for the next one's.
            self.restart()

    def ask_instrument(self, workload: Workload, how: Plan) -> None:
        """The self-test's rounds, of slices in which at least one step is done twice.

        The two processes strictly take turns: one that also had the turn before would find its caches warm.
        """
        how = replace(how, steps=-(-how.steps // SELF_TEST_SLOWDOWN) * SELF_TEST_SLOWDOWN)
        base, again = (self.turn(name, workload, how) for name in ("base", "again"))
        slowed = self.turn("again", workload, how, SELF_TEST_SLOWDOWN)
        pairs = [{"base": base, "again": again}, {"beside": base, "slowed": slowed}]
        rounds: list[Round] = []
        for _ in range(PAIRS):
            taken: dict[str, Slice] = {}
            for pair in self.rng.sample(pairs, 2):
                for name, take in pair.items():
                    try:
                        taken[name] = take()
                    except BenchError as error:
                        raise SideError("base", error) from error  # whose code both processes run
            rounds.append(taken)
        kept = keep(rounds)
        if kept:
            self.instrument.blocks.append(kept)

    def ready(self, workload: Workload, names: Sequence[str]) -> tuple[float, int]:
        """Seconds a step of the slowest side, and batches that a loader holds ready."""
        seconds, prefetch = 0.0, 0
        # Whoever builds first gets other memory: that too falls on all sides alike.
        names = self.rng.sample(names, len(names))
        # Nothing is timed yet, and compiling is one core's work: all sides at once. What is not compiled runs its first
        # step right away, and its threads would wait for those of the other sides.
        for crew in [list(names)] if may_compile(workload) else [[name] for name in names]:
            for name in crew:
                with of_side(name):
                    self.workers[name].begin_build([workload], self.conditions)
            for name in crew:
                with of_side(name):
                    built = self.workers[name].built()
                    prefetch = max(prefetch, built["prefetch"][workload.id])
        for name in names:
            with of_side(name):
                cap = min(WARM_UP_SECONDS, WARM_UP_CAP[workload.task])
                seconds = max(seconds, self.workers[name].warm(workload, cap=cap)["seconds_per_step"])
        return seconds, prefetch

    def turn(self, name: str, workload: Workload, how: Plan, twice_every: int = 0) -> Callable[[], Any]:
        def take() -> Any:
            return self.workers[name].slice(
                workload,
                how.steps,
                how.drop,
                each=False,
                timeout=120,
                **({"twice_every": twice_every} if twice_every else {}),
            )

        return take

    # ---- results ----

    def row(self, workload: Workload) -> Row:
        series = self.series[workload.id]
        raw = tuple(
            tuple({side: turns[side].seconds_per_step for side in ("base", "head")} for turns in block)
            for block in series.blocks
        )
        medians = {
            side: statistics.median(turns[side] for block in raw for turns in block) if raw else None
            for side in ("base", "head")
        }
        decision = series.decision
        if series.reason is None and decision is None:
            series.reason = "no pair of slices was steady: a side throttled or its clock moved"
        return Row(
            workload=workload.id,
            verdict=ERROR if series.reason else decision.verdict if decision else ERROR,
            decision=None if series.reason else decision,
            base_seconds=medians["base"],
            head_seconds=medians["head"],
            images=workload.batch,
            seconds_per_block=statistics.median(series.seconds) if series.seconds else None,
            reason=series.reason,
            blocks=raw,
        )


def confirmed(first: Sequence[Row], measure_again: Callable[[list[str]], Mapping[str, Row]]) -> list[Row]:
    """Rows after what is REGRESSED was measured in a new run; both runs must agree."""
    doubtful = [row.workload for row in first if row.verdict == REGRESSED]
    if not doubtful:
        return list(first)
    second = measure_again(doubtful)
    rows = []
    for row in first:
        again = second.get(row.workload)
        if row.decision is None or again is None:
            rows.append(row)
        elif again.decision is None:
            rows.append(replace(row, verdict=ERROR, reason=f"the second run gave no number: {again.reason}"))
        else:
            verdict, reason = row_verdict(row.decision, again.decision)
            rows.append(replace(row, verdict=verdict, again=again.decision, reason=reason, again_blocks=again.blocks))
    return rows


# ---- both sides' processes, untimed ----


class Question:
    """One process a side, asked the same at the same time, since nothing is timed; a side may fail on its own.

    The threads are shared out among the two: two teams on the same cores would spend their time waiting for each other.
    """

    def __init__(
        self, base: Tree, head: Tree, threads: int, spawn: Spawn = Worker, workloads: Sequence[Workload] = ()
    ) -> None:
        self.trees = {"base": base, "head": head}
        self.workloads = workloads
        self.threads = threads
        self.spawn = spawn
        self.workers: dict[str, Any] = {}

    def __enter__(self) -> "Question":
        try:
            for name, tree in self.trees.items():
                with of_side(name):
                    self.workers[name] = open_side(tree, name, self.threads, self.spawn)
                    self.workers[name].send("hello")
                    self.workers[name].send("imports", **imports(self.workloads))
            for name, tree in self.trees.items():
                with of_side(name):
                    greet(self.workers[name], tree)
                imported(self.workers[name])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        while self.workers:
            self.workers.popitem()[1].close()

    def ask(self, command: str, timeout: float, **arguments: Any) -> dict[str, dict[str, Any] | BenchError]:
        """Side -> its answer, or what it could not do."""
        answers: dict[str, dict[str, Any] | BenchError] = {}
        for name, worker in self.workers.items():
            try:
                worker.send(command, **arguments)
            except BenchError as error:
                answers[name] = error
        for name, worker in list(self.workers.items()):
            try:
                if name not in answers:
                    answers[name] = worker.receive(timeout)
            except BenchError as error:
                answers[name] = error
            # It may be dead or out of step (who was killed for memory is): the next question needs a fresh one.
            if isinstance(answers[name], (WorkerError, OutOfMemoryError)):
                worker.close()
                with of_side(name):
                    self.workers[name] = open_side(self.trees[name], name, self.threads, self.spawn)
                    self.workers[name].send("hello")
                    greet(self.workers[name], self.trees[name])
        return answers

    def of(self, conditions: Conditions) -> dict[str, Any]:
        """With this side's share of the threads; what a process says of its machine before is of all of them."""
        return asdict(replace(conditions, threads=max(1, conditions.threads // 2)))

    def one(self, name: str, command: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """One side's answer; raises what it raised, with the side."""
        with of_side(name):
            answer: dict[str, Any] = self.workers[name].ask(command, timeout, **arguments)
        return answer


def exact(
    question: Question,
    workloads: Sequence[Workload],
    conditions: Conditions,
    say: Say,
    quick: bool = False,
    sides: Sequence[str] = ("base", "head"),
) -> tuple[list[Fact], list[Row]]:
    """Every fact of every workload, and a row for each workload that one of `sides` does not have or cannot run."""
    from bench.exact import compare_facts

    found: list[Fact] = []
    gone: list[Row] = []
    for workload in workloads:
        say(f"counting {workload.id}")
        words = {"workload": workload.to_json(), "conditions": question.of(conditions), "quick": quick}
        answers = question.ask("facts", 600, **words)
        failed = {name: answers[name] for name in sides if isinstance(answers[name], BenchError)}
        if failed:
            gone.append(absent(workload, failed))
            continue
        base, head = (answers[name] for name in ("base", "head"))
        if isinstance(base, BenchError) or isinstance(head, BenchError):
            continue
        for name, old, new, same, detail in compare_facts(base, head):
            found.append(Fact(workload.id, name, old, new, same, detail))
    return found, gone


# How every version words a name that it does not know. Other reasons, such as a package that is not installed, are not
# absence: a side that can run nothing must not pass because all of it is new.
UNKNOWN = re.compile(
    r"unknown (model|loader|kernel)\b|no \w+( \w+)? is called |kernel \S+ cannot run here: no kernel is "
)


def absent(workload: Workload, failed: Mapping[str, Any]) -> Row:
    """The row of a workload that a side could not do; absent is only what a side itself says it does not have."""
    reasons = "; ".join(f"{name}: {first_line(error)}" for name, error in failed.items())
    known = all(type(error) is WorkloadError and UNKNOWN.match(str(error)) for error in failed.values())
    verdict = ERROR
    if known and len(failed) == 1:
        verdict = VANISHED if "head" in failed else NEW
    return Row(workload.id, verdict, images=workload.batch, reason=reasons)


def computed(
    question: Question,
    workloads: Sequence[Workload],
    conditions: Conditions,
    folder: Path,
    say: Say,
    quick: bool = False,
) -> tuple[list[Fact], list[Row]]:
    """Whether both sides compute the same, one fact a workload, and a row for each that a side could not compute."""
    from bench.exact import NETWORKS, same_output

    facts: list[Fact] = []
    failed: list[Row] = []
    for number, workload in enumerate(workloads):
        if workload.task not in (*NETWORKS, "loading"):
            continue
        say(f"comparing what {workload.id} computes")
        files = {name: folder / f"{name}-{number}.safetensors" for name in ("base", "head")}
        words: dict[str, Any] = {"workload": workload.to_json(), "conditions": question.of(conditions), "quick": quick}
        try:
            question.one("base", "outputs", 600, given="", save=str(files["base"]), **words)
            answer = question.one("head", "outputs", 600, given=str(files["base"]), save=str(files["head"]), **words)
        except SideError as error:
            # Not an output that differs: there is none, and no --allow makes one of it.
            failed.append(Row(workload.id, ERROR, images=workload.batch, reason=f"{error.side}: {first_line(error)}"))
            question.close()
            question.__enter__()
            continue
        if answer["differs"]:
            facts.append(Fact(workload.id, "output", None, None, False, (answer["differs"],)))
            continue
        same, base, head, detail = same_output(files["base"], files["head"], workload.task)
        facts.append(Fact(workload.id, "output", base, head, same, detail))
        for file in files.values():
            file.unlink(missing_ok=True)
    return facts, failed


# ---- sides ----


def open_side(tree: Tree, name: str, threads: int, spawn: Spawn) -> Any:
    """A process that runs a tree's code, with compile caches that no other side reads."""
    cache = side_cache("head" if name == "head" else "base")
    environment = {
        **worker_environment(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    return spawn(name, environment, tree.root, tree.python)


def greet(worker: Any, tree: Tree) -> None:
    """The answer to "hello"; a process that runs other code than its tree's would compare a tree with itself."""
    answer = worker.receive(300)
    source = answer.get("source")
    if source is not None and Path(source).resolve() != tree.root.resolve():
        raise WorkerError(
            f"{tree.side.name} runs the code of {source} and not its own; is pixbench installed in a way that "
            "goes before PYTHONPATH?"
        )


def imports(workloads: Sequence[Workload]) -> dict[str, Any]:
    """What a process is told that it will need."""
    return {
        "models": sorted({w.subject for w in workloads if w.task not in ("loading", "kernel")}),
        "loaders": sorted({w.loader or w.subject for w in workloads if w.reads_files}),
        "training": any(w.training for w in workloads),
    }


def imported(worker: Any) -> None:
    """Wait for the answer to "imports"; who could not answer it, such as older code, imports while it builds."""
    with contextlib.suppress(BenchError):
        worker.receive(300)


def side_cache(name: str) -> Path:
    """Folder of a side's compiled code, kept for the next check: the compilers look up what they know by content."""
    return check_folder() / name


def check_folder() -> Path:
    """Where checks keep compiled code and their lock."""
    return cache_folder() / "check"


def open_caches(limit: int = CACHE_BYTES) -> Path:
    """The sides' folders; one that has grown beyond `limit` bytes begins anew. Returns a folder for files in passing.

    Raises:
        UsageError: the place cannot be written.
    """
    with _writable():
        for name in ("base", "head"):
            place = side_cache(name)
            place.mkdir(parents=True, exist_ok=True)
            if sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) > limit:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
    return check_folder()


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or check_folder()}: {error.strerror}; free some space or set "
            "XDG_CACHE_HOME to another place"
        ) from error


@contextlib.contextmanager
def only_one(device: str, wait: bool, say: Say) -> Iterator[None]:
    """Hold a device alone: two checks at once would measure each other.

    Raises:
        UsageError: another check is running and `wait` is off.
    """
    with _writable():
        check_folder().mkdir(parents=True, exist_ok=True)
        file = (check_folder() / f"{device}.lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read().strip() or "unknown"
            if not wait:
                raise UsageError(
                    f"another check (process {who}) is measuring on this {device}; let it end, or leave out --no-wait"
                ) from None
            say(f"waiting for another check (process {who}) on this {device} to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def of_side(name: str) -> Iterator[None]:
    """Errors inside say whose they are."""
    try:
        yield
    except BenchError as error:
        raise SideError("base" if name == "again" else name, error) from error


def first_line(error: Exception) -> str:
    """An error as a table's cell takes it."""
    reason = error.reason if isinstance(error, SideError) else error
    return (str(reason).splitlines() or [type(reason).__name__])[0].split("; its last output")[0]


@dataclass(frozen=True)
class Busy:
    """How busy the machine was up to now, and how much of that was this process and those it has ended.

    Attributes:
        ticks: of all cores since boot; None where the system does not say.
        own: seconds of CPU.
    """

    ticks: CpuTimes | None
    own: float

    @classmethod
    def now(cls) -> "Busy":
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(cpu_times(Roots()), sum(use.ru_utime + use.ru_stime for use in used))

    def foreign(self, before: "Busy") -> float | None:
        """Share of the machine that others had since `before`: other processes and other guests of its host."""
        if self.ticks is None or before.ticks is None or self.ticks.total <= before.ticks.total:
            return None
        total = self.ticks.total - before.ticks.total
        busy = total - (self.ticks.idle - before.ticks.idle)
        own = (self.own - before.own) * os.sysconf("SC_CLK_TCK")
        return max(0.0, (busy - own) / total)


def duel_refs(repository: Path, base_ref: str, head_ref: str, workload: Workload, say: Say) -> Row:
    """One workload of two commits, with confirmation; for looking back through a history."""
    from bench.data import find_data
    from bench.machine import usable_cores

    root = ""
    if workload.reads_files:
        name, folder = find_data(None, say)
        if name != workload.data:
            raise WorkloadError(f"{workload.id} reads {workload.data}, and only {name} is here")
        root = str(folder.absolute())
    conditions = Conditions(data_root=root, threads=usable_cores())
    with only_one(workload.device, True, say), two_commits(repository, base_ref, head_ref) as (base, head):
        open_caches()

        def once(seed: int) -> Row:
            duel = Duel(base, head, [workload], conditions, seed=seed, say=say)
            duel.run()
            return duel.row(workload)

        return confirmed([once(0)], lambda names: {workload.id: once(1)})[0]


def check(
    base: Tree,
    head: Tree,
    workloads: Sequence[Workload],
    conditions: Conditions,
    *,
    exact_only: bool = False,
    allow: Sequence[str] = (),
    fail_on_unsure: bool = False,
    looks: Sequence[int] = LOOKS,
    seed: int = 0,
    budget: float = math.inf,
    say: Say = lambda text: None,
    spawn: Spawn = Worker,
) -> tuple[CheckReport, dict[str, Any]]:
    """The whole check.

    Args:
        budget: seconds after which no further look is gone for; what looks slower is still measured a second time.

    Returns:
        the report, and what else a record keeps: {"reference": {"id", "seconds", "blocks"}}, empty with exact_only.
    """
    begin = time.monotonic()
    folder = open_caches()
    notes: list[str] = []
    if head.side.dirty:
        notes.append("the working tree has uncommitted changes; they were measured")
    if base.digest == head.digest:
        notes.append("base and head have the same code")
    extra: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    facts: list[Fact] = []
    rows: list[Row] = []
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix="outputs-") as place,
            Question(base, head, conditions.threads, spawn, workloads) as question,
        ):
            machine = question.one("head", "machine", 60)
            facts, rows = exact(question, workloads, conditions, say, exact_only)
            known = [w for w in workloads if w.id not in {row.workload for row in rows}]
            found, failed = computed(question, known, conditions, Path(place), say, exact_only)
            facts, rows = [*facts, *found], [*rows, *failed]
    except SideError as error:
        # A side that does not even start (it does not import, it does not install) can do none of them.
        reason = f"{error.side}: {first_line(error)}"
        done = {row.workload for row in rows}
        rows += [Row(w.id, ERROR, images=w.batch, reason=reason) for w in workloads if w.id not in done]
    known = [w for w in workloads if w.id not in {row.workload for row in rows}]
    self_test = None
    if not exact_only and known:
        tested = subject_of_self_test(known)
        duel = Duel(
            base, head, known, conditions, self_test=tested, looks=looks, seed=seed,
            budget=budget - (time.monotonic() - begin), say=say, spawn=spawn,
        )  # fmt: skip
        duel.run()

        def again(names: list[str]) -> dict[str, Row]:
            wanted = [w for w in known if w.id in names]
            say(f"measuring again what is slower: {', '.join(names)}")
            second = Duel(base, head, wanted, conditions, looks=looks, seed=seed + 1, say=say, spawn=spawn)
            second.run()
            return {w.id: second.row(w) for w in wanted}

        self_test = judged_self_test(duel)
        first = [duel.row(workload) for workload in known]
        # A void run's regressions are not worth a second one.
        rows = [*(first if self_test.faults else confirmed(first, again)), *rows]
        notes += doubts(duel, rows, self_test)
        extra = {"reference": reference.kept(duel.references)}
    order = {workload.id: number for number, workload in enumerate(workloads)}
    rows.sort(key=lambda row: order[row.workload])
    report = CheckReport(
        base=base.side,
        head=head.side,
        facts=tuple(facts),
        rows=tuple(rows),
        self_test=self_test,
        notes=tuple(notes),
        allow=tuple(allow),
        seconds=time.monotonic() - begin,
        machine=machine,
        created=utc_now(),
        fail_on_unsure=fail_on_unsure,
    )
    return report, extra


def record_of(report: CheckReport, extra: Mapping[str, Any], command: str) -> Record:
    """The check as a stored record: a metric for each workload with a number, and the whole report beside them.

    Against a stored run both processes ran the head's code: only its times are kept, and no ratio of the two.
    """
    sides = ("head",) if "baseline" in extra else ("base", "head")
    metrics = []
    for row in report.rows:
        if not row.blocks:
            continue
        workload = Workload.from_id(row.workload)
        name = METRIC[workload.task]
        per_block = {
            side: [statistics.median(turns[side] for turns in block) for block in row.blocks] for side in sides
        }
        values = {
            side: summarise(seconds if workload.task == "latency" else [workload.batch / s for s in seconds])
            for side, seconds in per_block.items()
        }
        logs = [[math.log(t["base"] / t["head"]) for t in block] for block in row.blocks]
        if workload.task == "latency":
            logs = [[-value for value in block] for block in logs]
        # Only the head has this record's commit, so only its times belong to a series.
        metric = Metric.named(
            name,
            values,
            batch=workload.batch,
            ratio=interval(logs).ratio("head", "base") if len(sides) == 2 else None,
            verdict=row.verdict,
            workloads={"head": row.workload},
            notes=(row.reason,) if row.reason else (),
            pairs=[[{side: turns[side] for side in sides} for turns in block] for block in row.blocks],
        )
        metrics.append(metric)
    told = report.to_json()
    # Raw times stand in the metrics already.
    told["rows"] = [{**row, "blocks": (), "again_blocks": ()} for row in told["rows"]]
    commit = {"sha": report.head.commit, "dirty": report.head.dirty} if report.head.commit else None
    machine = {k: v for k, v in told.pop("machine").items() if k != "commit"}
    return Record(
        kind="check",
        created=utc_now(),
        command=command,
        commit=commit,
        machine=machine,
        operands=sides,
        metrics=tuple(metrics),
        settings={**extra, "check": told},
    )


def subject_of_self_test(workloads: Sequence[Workload]) -> Workload:
    """The one with the shortest steps, since 20 of them make a slice: the first that is no training step, no loader."""
    return min(workloads, key=lambda w: (w.reads_files, w.training))


def judged_self_test(duel: Duel) -> SelfTest:
    """Wrong answers are faults; no answer is none, but is said."""
    workload = duel.self_test
    assert workload is not None
    reason = duel.series[workload.id].reason
    if duel.same is None or duel.slowed is None:
        return SelfTest(workload.id, duel.same, duel.slowed, (f"the self-test gave no number: {reason or 'no look'}",))
    return SelfTest(workload.id, duel.same, duel.slowed, tuple(instrument_faults(duel.same, duel.slowed)))


# Share of the machine that others had, above which it is named as a reason for doubt.
FOREIGN = 0.05


def doubts(duel: Duel, rows: Sequence[Row], self_test: SelfTest) -> list[str]:
    """Why a machine could not see more, where something stayed UNSURE."""
    said = []
    if duel.ended_early:
        said.append(f"ended after {len(duel.load)} blocks: the next look was beyond --budget")
    unsure = [d for d in (self_test.same, self_test.slowed) if d is not None and d.verdict == UNSURE]
    if unsure:
        said.append("the self-test stayed UNSURE: a change of 5 % could not be seen surely on this machine now")
    shares = [share for share in duel.load if share is not None]
    if shares and (unsure or self_test.faults or any(row.verdict == UNSURE for row in rows)):
        foreign = statistics.median(shares)
        if foreign > FOREIGN:
            said.append(f"other work had {foreign:.0%} of this machine while it was measured; a quiet one sees more")
    return said
