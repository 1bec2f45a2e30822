"""Two trees in a sequential duel: blocks of fresh processes until a look decides, and the self-test."""

import math
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.checking.sides import Spawn, open_side, said_by
from bench.checking.trees import Tree
from bench.errors import BenchError, on_side
from bench.machine.cpu import CpuTimes, Roots, cpu_times
from bench.screen import Say
from bench.sides.crew import Crew, Needs
from bench.sides.process import Worker
from bench.timing.clock import Slice
from bench.timing.duel import PAIRS, Round, SlicePlan, Turn, log_ratios, plan_slice, steady_rounds, take_turns
from bench.timing.steady import WARM_UP_CAP
from bench.timing.workload import METRIC, Conditions, Workload
from models.configuration import Configuration, has_glibc
from results.gate import CONFIRMED, ERROR, Row, SelfTest, row_verdict
from results.verdict import ALPHAS, LOOKS, STRICT_ALPHAS, UNSURE, Decision, instrument_faults, look, margin_of

# Far shorter than a comparison's: many pairs tell nearly equal sides apart better than long slices do, because what
# disturbs a shared machine lasts longer than either.
SLICE_SECONDS = 0.04
# A loader's batches come in bursts, and as many as it holds ready are taken out untimed at each turn.
LOADER_SLICE_SECONDS = 0.3
PAUSE_SECONDS = 0.01  # between two slices: what ran has to come to rest
TURNS_SECONDS = 4.0
MOST_PAIRS = 64
WARM_UP_SECONDS = 0.3
SELF_TEST_SLOWDOWN = 20  # every 20th step is done twice: 5 %
SELF_TEST_SECONDS = 1.0  # the longest slice of that many steps; there are 32 of them in a block


def small(device: str) -> Workload:
    """What the instrument is tested with where every workload's steps are long, or the one chosen fails."""
    configuration = Configuration(keep=device == "cpu" and has_glibc())
    return Workload("inference", "lenet", configuration, 4, 32, 10, device=device)


def turns_of(seconds_per_step: float, prefetch: int) -> tuple[SlicePlan, int]:
    """A workload's slice, and the rounds of two slices that fill four seconds; at least 8.

    Args:
        seconds_per_step: of the slower side.
        prefetch: batches that a loader holds ready; 0 for everything else.
    """
    how = plan_slice(seconds_per_step, LOADER_SLICE_SECONDS if prefetch else SLICE_SECONDS, prefetch)
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
        budget: seconds; after the first look no block is begun for a look that would end later, and what is still in
            doubt stays UNSURE.
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
        self.crew = Crew(lambda name: open_side(self.tree(name), name, conditions.threads, spawn))
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
            # A process that keeps freed memory goes on doing so.
            open_.sort(key=lambda workload: workload.keeps_memory)
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
                self.crew.close()
            self.load.append(Busy.now().foreign(before))
            spent = time.monotonic() - block_begin
            overheads.append(spent - sum(self.series[w.id].latest for w in open_))
            if block == 0 and spent * self.looks[0] > 1.5 * self.budget:
                # Without a look there is no answer at all, so the first one is reached whatever it takes.
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
                # A wrong answer voids the run, and no second run is asked whether it agrees.
                self.same = look(same, margin, self.looks, STRICT_ALPHAS)
            if slowed and (self.slowed is None or not self.slowed.final):
                self.slowed = look(slowed, margin, self.looks, self.alphas)

    def decide(self, workload: Workload) -> Decision | None:
        """What a workload's blocks say; None without any."""
        values = self.series[workload.id].values("head", "base")
        return look(values, margin_of(METRIC[workload.task]), self.looks, self.alphas) if values else None

    def start(self, names: Sequence[str], workloads: Sequence[Workload]) -> None:
        """Fresh processes; they import at the same time, nothing is timed yet."""
        # Whoever starts first gets other memory.
        self.crew.start(self.rng.sample(names, len(names)), Needs.of(workloads))
        # Says how fast the machine is in this very block, for comparisons with other runs. All do it, since it leaves
        # threads and memory behind; the head's counts.
        device, threads = self.workloads[0].device, self.conditions.threads
        for name in self.rng.sample(names, len(names)):
            try:
                seconds = self.crew[name].ask("reference", 120, device=device, threads=threads)["seconds"]
            except BenchError:
                if name == "head":
                    raise
                continue  # older code does not know the question
            if name == "head":
                self.references.append(seconds)

    def tree(self, name: str) -> Tree:
        return self.trees["head" if name == "head" else "base"]

    def restart(self) -> None:
        """Fresh processes in the middle of a block."""
        names = list(self.crew)
        self.crew.close()
        self.start(names, self.workloads)
        self.references.pop()

    def measure(self, workload: Workload, testing: bool) -> None:
        """Build it on both sides, warm it, let the sides take turns; a side that fails ends this workload only."""
        series = self.series[workload.id]
        begin = time.monotonic()
        asked = workload in self.workloads
        # What only tests the instrument is the base's alone.
        names = [name for name in self.crew if (name != "again" or testing) and (name != "head" or asked)]
        kept: list[Round] = []
        try:
            seconds, prefetch = self.ready(workload, names)
            how, rounds = turns_of(seconds, prefetch)
            if asked:
                turns = {name: self.turn(name, workload, how) for name in ("base", "head")}
                kept = steady_rounds(take_turns(turns, rounds, self.rng))
            if testing and asked and seconds * SELF_TEST_SLOWDOWN > SELF_TEST_SECONDS:
                self.self_test = small(workload.device)
            elif testing:
                self.ask_instrument(workload, how)
        except BenchError as error:
            series.reason = said_by(error)
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
            self.crew.release({name: [workload] for name in names})
        except BenchError:
            # An answer that comes late would be taken for the next one's.
            self.restart()

    def ask_instrument(self, workload: Workload, how: SlicePlan) -> None:
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
                    with on_side("base"):  # whose code both processes run
                        taken[name] = take()
            rounds.append(taken)
        kept = steady_rounds(rounds)
        if kept:
            self.instrument.blocks.append(kept)

    def ready(self, workload: Workload, names: Sequence[str]) -> tuple[float, int]:
        """Seconds a step of the slowest side, and batches that a loader holds ready."""
        seconds, prefetch = 0.0, 0
        # Whoever builds first gets other memory: that too falls on all sides alike.
        names = self.rng.sample(names, len(names))
        for built in self.crew.build(names, [workload], self.conditions, together=workload.may_compile).values():
            prefetch = max(prefetch, built.prefetch[workload.id])
        cap = min(WARM_UP_SECONDS, WARM_UP_CAP[workload.task])
        for name in names:
            with on_side(name):
                seconds = max(seconds, self.crew[name].warm(workload, cap))
        return seconds, prefetch

    def turn(self, name: str, workload: Workload, length: SlicePlan, twice_every: int = 0) -> Turn:
        """A turn of a side."""
        return self.crew.turn(name, workload, length, twice_every=twice_every)

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


def measured_twice(
    make: Callable[[Sequence[Workload], int, float, Workload | None], Duel],
    workloads: Sequence[Workload],
    seed: int,
    budget: float,
    say: Say,
) -> tuple[Duel, SelfTest, list[Row]]:
    """A duel, its self-test and its rows; what is REGRESSED or IMPROVED is measured in a second duel: both must agree.

    Args:
        make: (workloads, seed, budget, workload of the self-test) -> a duel that has not run.
    """
    duel = make(workloads, seed, budget, subject_of_self_test(workloads))
    duel.run()
    self_test = judged_self_test(duel)
    rows = [duel.row(workload) for workload in workloads]

    def again(names: list[str]) -> dict[str, Row]:
        say(f"measuring again what is slower or faster: {', '.join(names)}")
        wanted = [workload for workload in workloads if workload.id in names]
        second = make(wanted, seed + 1, math.inf, None)
        second.run()
        return {workload.id: second.row(workload) for workload in wanted}

    # What a void run found is not worth a second one.
    return duel, self_test, rows if self_test.faults else confirmed(rows, again)


def confirmed(first: Sequence[Row], measure_again: Callable[[list[str]], Mapping[str, Row]]) -> list[Row]:
    """Rows after what is REGRESSED or IMPROVED was measured in a new run; both runs must agree."""
    doubtful = [row.workload for row in first if row.verdict in CONFIRMED]
    second = measure_again(doubtful) if doubtful else {}
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


def subject_of_self_test(workloads: Sequence[Workload]) -> Workload:
    """The one with the shortest steps, since 20 of them make a slice: the first that is no training step, no loader."""
    return min(workloads, key=lambda w: (w.reads_files, w.training))


def judged_self_test(duel: Duel) -> SelfTest:
    """The self-test of a duel that has run: a wrong answer is a fault, and so is no answer."""
    workload = duel.self_test
    assert workload is not None
    reason = duel.series[workload.id].reason
    if duel.same is None or duel.slowed is None:
        return SelfTest(workload.id, duel.same, duel.slowed, (f"the self-test gave no number: {reason or 'no look'}",))
    return SelfTest(workload.id, duel.same, duel.slowed, tuple(instrument_faults(duel.same, duel.slowed)))


# Share of the machine that others had, above which it is named as a reason for doubt.
FOREIGN = 0.05


def doubts(duel: Duel, rows: Sequence[Row], self_test: SelfTest) -> list[str]:
    """Why this machine could not show more, where something stayed UNSURE."""
    said = []
    if duel.ended_early:
        said.append(f"ended after {len(duel.load)} blocks: the next look was beyond --budget")
    unsure = [d for d in (self_test.same, self_test.slowed) if d is not None and d.verdict == UNSURE]
    if unsure:
        said.append("the self-test stayed UNSURE: right now this machine is too noisy to show a change of 5 %")
    shares = [share for share in duel.load if share is not None]
    if shares and (unsure or self_test.faults or any(row.verdict == UNSURE for row in rows)):
        foreign = statistics.median(shares)
        if foreign > FOREIGN:
            said.append(f"other work had {foreign:.0%} of this machine while it was measured; a quiet one sees more")
    return said
