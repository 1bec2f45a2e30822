"""Two trees in a sequential duel: blocks of fresh processes until a look decides, and the self-test.

A block's process runs this very code and imports both trees beside it, under the names of the sides, so that their
steps alternate within one process. A tree that cannot be imported so gets processes of its own code.
"""

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from bench.checking.sides import Spawn, open_host, open_side, said_by
from bench.checking.trees import Tree
from bench.errors import BenchError
from bench.machine.cpu import Busy
from bench.screen import Say
from bench.sides.crew import Crew, Entrant, Needs
from bench.sides.process import Worker
from bench.timing.duel import Round, Rounds, log_ratios, pairs_of
from bench.timing.workload import METRIC, Conditions, Workload
from models.configuration import Configuration, has_glibc
from results.gate import CONFIRMED, ERROR, Row, SelfTest, row_verdict
from results.verdict import ALPHAS, LOOKS, STRICT_ALPHAS, UNSURE, Decision, instrument_faults, look, margin_of

TURNS_SECONDS = 2.0  # of a workload in a block
SELF_TEST_SLOWDOWN = 0.05
SELF_TEST_SECONDS = 1.0  # of each of its two pairs in a block
# The longest step that the instrument is tested with.
SELF_TEST_STEP = 0.05
HOST = "both"  # name of the process that holds all sides
SIDES = ("base", "head", "again")


def small(device: str) -> Workload:
    """What the instrument is tested with where every workload's steps are long, or the one chosen fails."""
    configuration = Configuration(keep=device == "cpu" and has_glibc())
    return Workload("inference", "lenet", configuration, 4, 32, 10, device=device)


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
        margins: workload id -> the smallest relative change that matters, in place of the usual one of its metric.
        seed: of the order of turns.
        budget: seconds; after the first look no block is begun for a look that would end later, and what is still in
            doubt stays UNSURE.
        say: one line for each thing begun.
        spawn: (name, environment, source, interpreter) -> a worker.
    """

    each = False
    """Whether each step is timed on its own."""

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
        margins: Mapping[str, float] | None = None,
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
        self.margins = dict(margins or {})
        self.rng = random.Random(seed)
        self.budget = budget
        self.say = say
        self.spawn = spawn
        # Why the sides have processes of their own; "" where they share one.
        self.apart = "" if base.python == head.python else "the two trees have different interpreters"
        self.crew = self.hired()
        self.prepared: set[tuple[str, Workload]] = set()
        self.series = {workload.id: Series() for workload in workloads}
        self.instrument = Series()
        self.same: Decision | None = None
        self.slowed: Decision | None = None
        self.load: list[float] = []
        # Workloads that were still getting faster when a warm-up was ended.
        self.unsteady: list[str] = []
        self.references: list[float] = []
        self.ended_early = False
        self.blocks = 0

    def run(self) -> None:
        """Measure until the last look, until nothing is left in doubt, or until the next look is beyond the budget."""
        with contextlib.closing(self):
            self._run()

    def close(self) -> None:
        """End every process."""
        self.crew.close()

    def _run(self) -> None:
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
            block_begin = time.monotonic()
            try:
                self.refer()
                for workload in open_:
                    self.measure(workload, testing and workload == self.self_test)
                if testing and self.self_test not in open_:
                    # It was given up for a small one in this very block, which still needs its pairs.
                    assert self.self_test is not None
                    open_ = [*open_, self.self_test]
                    self.series.setdefault(self.self_test.id, Series())
                    self.measure(self.self_test, True)
            finally:
                self.crew.end_block()
            self.blocks += 1
            spent = time.monotonic() - block_begin
            overheads.append(spent - sum(self.series[w.id].latest for w in open_))
            left = spent * (self.looks[0] - self.blocks)
            if block == 1 and time.monotonic() - begin + left > 1.5 * self.budget:
                # Told by the second block: the first one also compiles. Without a look there is no answer at all, so
                # the first look is reached whatever it takes.
                self.say(
                    f"a block takes {spent:.0f} s: the first look, after {self.looks[0]}, comes in about "
                    f"{left / 60:.0f} min, beyond --budget; choose fewer or smaller --workloads"
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
        return look(values, self.margin(workload), self.looks, self.alphas) if values else None

    def margin(self, workload: Workload) -> float:
        """The smallest relative change that matters."""
        return self.margins.get(workload.id, margin_of(METRIC[workload.task]))

    def hired(self) -> Crew:
        """No process yet: one for all sides, or one for each."""
        threads, fork = self.conditions.threads, self.workloads[0].device == "cpu"
        if self.apart:
            kind = {"again": "base"}
            return Crew(
                lambda name: open_side(self.tree(name), name, threads, self.spawn),
                fork,
                lambda name: kind.get(name, name),
            )
        settings = self.tree("head").settings
        return Crew(lambda name: open_host(threads, self.spawn, settings), fork, furnish=self.adopt)

    def adopt(self, host: Worker) -> None:
        """Have a process import the trees; what they need of it they import before it is forked."""
        for side in SIDES:
            seat, tree = host.seat(side), self.tree(side)
            host.ask("adopt" if tree.ours else "settle", 120, side=side, root=str(tree.root))
            seat.source = tree.source
            seat.greet(asdict(Needs.of(self.workloads)))
            seat.greeted()

    def start(self, names: Sequence[str], workload: Workload) -> None:
        """Fresh processes for one workload; nothing is timed yet."""
        # Whoever starts first gets other memory.
        names = self.rng.sample(names, len(names))
        if not self.apart and shares_kernels(workload):
            self.keep_apart("kernels of two trees cannot be registered beside each other")
        if not self.apart:
            # What a side is built from comes out of its own folder, which the process learns of afterwards.
            needs = Needs.of(self.workloads)
            needs = needs if self.tree("head").ours else replace(needs, models=(), loaders=())
            try:
                self.crew.start(names, needs, dict.fromkeys(names, HOST))
                return
            except BenchError as error:
                self.keep_apart(error.summary)
        self.crew.start(names, Needs.of(self.workloads))

    def prepare(self, names: Sequence[str], workload: Workload) -> None:
        """Have a workload compiled, once for all blocks; the processes just started are replaced by some that have it.

        What fails here fails again, and is reported, where it is measured.
        """
        new = [name for name in names if (name, workload) not in self.prepared]
        self.prepared |= {(name, workload) for name in new}
        with contextlib.suppress(BenchError):
            built = [self.crew.prepare(name, workload, self.conditions, HOST) for name in new]
            if any(built):
                self.crew.replace(names[0])

    def keep_apart(self, reason: str) -> None:
        """Give each side processes of its own from now on."""
        self.say(f"each side has a process of its own: {reason}")
        self.apart = reason
        self.crew.close()
        self.crew = self.hired()

    def refer(self) -> None:
        """Time the pinned reference in a process of the head: how fast the machine is in this very block."""
        device, threads = self.workloads[0].device, self.conditions.threads
        self.crew.end_block()
        self.start(["head"], self.workloads[0])
        worker = self.crew["head"] if self.apart else self.crew["head"].seat("")
        self.references.append(worker.ask("reference", 120, device=device, threads=threads)["seconds"])
        self.crew.end_block()

    def tree(self, name: str) -> Tree:
        return self.trees["head" if name == "head" else "base"]

    def measure(self, workload: Workload, testing: bool) -> None:
        """Build it on both sides, warm it, let the sides take turns; a side that fails ends this workload only."""
        series = self.series[workload.id]
        begin = time.monotonic()
        asked = workload in self.workloads
        # What only tests the instrument is the base's alone.
        names = [name for name in SIDES if (name != "again" or testing) and (name != "head" or asked)]
        kept: list[Round] = []
        try:
            self.crew.end_block()
            self.start(names, workload)
            if not self.apart:
                self.prepare(names, workload)
            entrants = self.ready(workload, names)
            if asked:
                kept = self.turns({name: entrants[name] for name in ("base", "head")}, TURNS_SECONDS)
            if testing and asked and entrants["base"].warm.seconds_per_step > SELF_TEST_STEP:
                self.self_test = small(workload.device)
            elif testing:
                self.ask_instrument(entrants)
        except BenchError as error:
            if not self.apart and error.side not in names:
                # The process died under all sides: in processes of their own it shows whose fault it was.
                self.keep_apart(error.summary)
                self.measure(workload, testing)
                return
            series.reason = said_by(error)
            self.say(f"{workload.id}: {series.reason}")
            if testing and asked:
                # The row says what is wrong with the workload; the instrument may still be sound.
                self.self_test = small(workload.device)
        if kept:
            series.blocks.append(kept)
        if kept or not asked:
            series.seconds.append(time.monotonic() - begin)

    def ready(self, workload: Workload, names: Sequence[str]) -> dict[str, Entrant]:
        """The workload built and warm on each side."""
        # Whoever builds first gets other memory: that too falls on all sides alike.
        names = self.rng.sample(names, len(names))
        built = self.crew.build(names, [workload], self.conditions, together=workload.may_compile)
        prefetch = max(one.prefetch[workload.id] for one in built.values())
        warm = {name: self.crew.warm(name, workload, prefetch) for name in names}
        if not all(one.warm.steady for one in warm.values()) and workload.id not in self.unsteady:
            self.unsteady.append(workload.id)
        # Slices of the same length, that of the slower side.
        longest = max(warm.values(), key=lambda one: one.warm.seconds_per_step).plan
        return self.crew.settled({name: replace(one, plan=longest, each=self.each) for name, one in warm.items()})

    def turns(self, entrants: Mapping[str, Entrant], seconds: float) -> list[Round]:
        """Rounds of about so many seconds, and what else the machine did meanwhile."""
        processes = {self.crew[name].pid for name in self.crew}
        before = Busy.now(processes)
        rounds = pairs_of(self.crew.take_turns(entrants, Rounds(seconds), self.rng))
        load = Busy.now(processes).since(before)
        if load is not None:
            self.load.append(load.foreign)
        return rounds

    def ask_instrument(self, entrants: Mapping[str, Entrant]) -> None:
        """The self-test: the base against itself, then against itself slowed, by a second copy of the base."""
        base, again = entrants["base"], entrants["again"]
        slowed = replace(again, slower=SELF_TEST_SLOWDOWN)
        same = self.turns({"base": base, "again": again}, SELF_TEST_SECONDS)
        beside = self.turns({"beside": base, "slowed": slowed}, SELF_TEST_SECONDS)
        # Two lots of pairs of one block, side by side.
        kept: list[Round] = [{**first, **second} for first, second in zip(same, beside, strict=False)]
        if kept:
            self.instrument.blocks.append(kept)

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


def shares_kernels(workload: Workload) -> bool:
    """Whether it runs kernels of a tree, which torch knows by names that only one tree can have."""
    return workload.task == "kernel" or bool(getattr(workload.configuration, "kernels", False))


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
    """Why this machine could not show more, where something stayed UNSURE, and what was not warm when it was timed."""
    said = [f"{name} was still getting faster when its warm-up ended" for name in duel.unsteady]
    if duel.apart:
        said.append(f"each side had processes of its own, which see less than one that both share: {duel.apart}")
    if duel.ended_early:
        said.append(f"ended after {duel.blocks} blocks: the next look was beyond --budget")
    unsure = [d for d in (self_test.same, self_test.slowed) if d is not None and d.verdict == UNSURE]
    if unsure:
        said.append("the self-test stayed UNSURE: right now this machine is too noisy to show a change of 5 %")
    if duel.load and (unsure or self_test.faults or any(row.verdict == UNSURE for row in rows)):
        foreign = statistics.median(duel.load)
        if foreign > FOREIGN:
            said.append(f"other work had {foreign:.0%} of this machine while it was measured; a quiet one sees more")
    return said
