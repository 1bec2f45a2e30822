"""Decisions drawn from recorded traces: ours as the check takes them, other tools' as they are used.

Identical code ran on both sides, so every REGRESSED or IMPROVED of an unchanged trace is a false alarm. For power the
times of head are multiplied: a step that takes 5 % longer does so in every slice.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.selfcheck.traces import Trace
from bench.timing.duel import Round, log_ratios, steady_rounds
from bench.timing.workload import METRIC, Workload
from results.gate import CONFIRMED, row_verdict
from results.stats import ratio_of
from results.verdict import BETTER, DOUBT, IMPROVED, LOOKS, REGRESSED, WORSE, Decision, compare_verdict, look, margin_of

if TYPE_CHECKING:
    from bench.selfcheck.judges import Rule, Run

LEVELS = (0.0, 0.02, 0.03, 0.05, 0.10)
"""Slowdowns of head that our rule is judged at; 0 is identical code."""
RULE_LEVELS = (0.0, 0.03, 0.05)
RANDOM, RECORDED, SWAPPED = "at random", "as recorded", "swapped"
"""Which side is called head: in each block another, drawn at random; as it was recorded; the other one throughout."""
KEPT_LEVELS = (0.0, 0.05)
"""Slowdowns at which our rule is judged with names that do not change from block to block."""
INTERVAL_BLOCKS = (6, 8, 10, 16)
"""Numbers of blocks that intervals of `bench compare` are judged at; fewer than 6 have no 95 % interval."""
INTERVAL_LEVEL = 0.05
CONFIDENCE = 0.95
AS_USED = "as used"
SAME_TIME = "same time"
NORMAL = 1.4826  # standard deviation of a normal distribution by its median absolute deviation


@dataclass(frozen=True)
class Tally:
    """How our decisions about one workload of one trace came out, or about several together.

    Attributes:
        trace: the file's name; "" over several.
        load: of the header; "all" over several.
        workload: its id; "all", or "all of margin 2%", over several.
        margin: of the workload's metric; None over several margins.
        level: how much slower head was made, 0.05 for +5 %.
        names: RANDOM, RECORDED or SWAPPED.
        blocks: how many there were to draw from.
        decisions: how many were drawn.
        verdicts: how many decisions had each verdict, after confirmation.
        alarms, better_alarms: how many were REGRESSED or IMPROVED by their first run alone.
        used: median blocks of a decision, without its confirmation.
        disjoint, disjoint_regressed: decisions that share no block, and how many of them were REGRESSED; named as
            recorded where names are drawn at random.
    """

    trace: str
    load: str
    workload: str
    margin: float | None
    level: float
    names: str
    blocks: int
    decisions: int
    verdicts: dict[str, int]
    alarms: int
    better_alarms: int
    used: float
    disjoint: int
    disjoint_regressed: int

    def share(self, verdict: str) -> float:
        """Of the decisions, 0..1."""
        return self.verdicts.get(verdict, 0) / self.decisions

    @property
    def regressed(self) -> int:
        """Decisions whose verdict was REGRESSED."""
        return self.verdicts.get(REGRESSED, 0)

    @property
    def improved(self) -> int:
        """Decisions whose verdict was IMPROVED."""
        return self.verdicts.get(IMPROVED, 0)

    @property
    def bound(self) -> float:
        """95 % upper bound of the share of REGRESSED, as if the decisions were independent."""
        return upper_bound(self.regressed, self.decisions)

    @property
    def disjoint_bound(self) -> float:
        """The same of the decisions that share no block: wider, and the honest one."""
        return upper_bound(self.disjoint_regressed, self.disjoint)

    def to_json(self) -> dict[str, Any]:
        """Plain types, with the bounds."""
        return {
            **vars(self),
            "regressed": self.regressed,
            "bound": self.bound,
            "improved": self.improved,
            "improved_bound": upper_bound(self.improved, self.decisions),
            "disjoint_bound": self.disjoint_bound,
        }


@dataclass(frozen=True)
class RuleTally:
    """How often another tool's rule called head slower.

    Attributes:
        rule: its name.
        trace, load, workload, level: as in Tally.
        span: "as used" (as many processes as the tool takes), or "same time" as our median decision.
        processes: of a side, one after another; the median over several.
        runs: how many were judged.
        found: in how many of them the rule fired.
    """

    rule: str
    trace: str
    load: str
    workload: str
    level: float
    span: str
    processes: float
    runs: int
    found: int

    @property
    def share(self) -> float:
        """Of the runs, 0..1."""
        return self.found / self.runs

    def to_json(self) -> dict[str, Any]:
        """Plain types, with the share."""
        return {**vars(self), "share": self.share}


@dataclass(frozen=True)
class Coverage:
    """How often the 95 % interval of `bench compare` holds the truth, and what its words say.

    Attributes:
        trace, load, workload: as in Tally.
        names: RANDOM or RECORDED; swapping both sides mirrors an interval and changes none of these counts.
        size: blocks of an interval, neighbours in the trace.
        intervals: how many there were.
        covered: how many held 1 where both sides ran identical code; a slowdown moves interval and truth alike.
        wrong: how many said "better" or "worse" of identical code.
        found: how many said "worse" of code made `INTERVAL_LEVEL` slower.
        missed: how many said "better" or "same" of that.
        width: the median of (high - low) / 2, as a share.
    """

    trace: str
    load: str
    workload: str
    names: str
    size: int
    intervals: int
    covered: int
    wrong: int
    found: int
    missed: int
    width: float

    def to_json(self) -> dict[str, Any]:
        """Plain types, with the coverage."""
        return {**vars(self), "coverage": self.covered / self.intervals}


@dataclass(frozen=True)
class Noise:
    """How much identical code scatters, as shares of the time.

    Attributes:
        trace, load, workload: as in Tally.
        pairs: of a block, the median.
        pair: standard deviation of one pair within its block, from the median absolute deviation; the median block's.
        block: standard deviation of the blocks' values.
        mean: of the blocks' values: how much slower head seemed.
    """

    trace: str
    load: str
    workload: str
    pairs: float
    pair: float
    block: float
    mean: float


def upper_bound(hits: int, tries: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of a share (Clopper and Pearson 1934); 1 without any try."""
    from scipy.stats import beta

    return 1.0 if hits >= tries else float(beta.ppf(confidence, hits + 1, tries - hits))


def lower_bound(hits: int, tries: int, confidence: float = CONFIDENCE) -> float:
    """One-sided lower bound of a share; 0 without any hit."""
    return 1 - upper_bound(tries - hits, tries, confidence)


def pair_values(blocks: Sequence[Sequence[Round]]) -> list[list[float]]:
    """log(time of head / time of base) of each pair of each block that has any, after dropping disturbed rounds."""
    return [log_ratios(rounds, "head", "base") for rounds in map(steady_rounds, blocks) if rounds]


def block_values(blocks: Sequence[Sequence[Round]]) -> list[float]:
    """The value of each block, as the check takes it: the median of its pairs."""
    return [statistics.median(pairs) for pairs in pair_values(blocks)]


def decide(values: Sequence[float], margin: float, looks: int = len(LOOKS)) -> Decision:
    """The check's rule: the first `looks` of `LOOKS`, until one is final."""
    decision = look(values[: LOOKS[0]], margin)
    for size in LOOKS[1:looks]:
        if decision.final:
            break
        decision = look(values[:size], margin)
    return decision


def noise(trace: Trace, workload: str) -> Noise:
    """The scatter of one workload of a trace."""
    blocks = pair_values(trace.of(workload))
    values = [statistics.median(pairs) for pairs in blocks]
    within = [
        NORMAL * statistics.median(abs(pair - value) for pair in pairs)
        for pairs, value in zip(blocks, values, strict=True)
    ]
    return Noise(
        trace=trace.path.name,
        load=trace.header.load,
        workload=workload,
        pairs=statistics.median(map(len, blocks)),
        pair=statistics.median(within),
        block=statistics.stdev(values),
        mean=statistics.fmean(values),
    )


class Draws:
    """Draws decisions from one workload's blocks.

    A decision is a stretch of neighbours from a random start, continued at the beginning after the last, so that slow
    drift of the machine stays in it; its confirmation is another stretch that shares no block with the first.

    Names `RANDOM`: in each block the two sides change names at random, since both ran the same code and either could
    have been head. That imposes what a test of our rule has to assume, that identical code is as often faster as
    slower, and makes many different decisions of one recording. Names `RECORDED` and `SWAPPED` stay the same in all
    blocks of a decision and of its confirmation, so that an instrument which favours one side is found out; but few
    such decisions differ, and since the blocks of the first stretch are missing from the second, a chance excess of
    one side is missing there too.

    Args:
        values: log ratios, one for each block, oldest first.
        margin: of the workload's metric.
        looks: how many of the check's looks are taken.

    Raises:
        UsageError: fewer blocks than two decisions take.
    """

    def __init__(self, values: Sequence[float], margin: float, looks: int = len(LOOKS)) -> None:
        self.values = list(values)
        self.margin = margin
        self.looks = looks
        self.most = LOOKS[looks - 1]
        if len(values) < 2 * self.most:
            fits = sum(2 * size <= len(values) for size in LOOKS[:looks]) or 1
            fewer = f", or judge with --looks {fits}, for which {2 * LOOKS[fits - 1]} do" if looks > 1 else ""
            raise UsageError(
                f"a decision and its confirmation need {2 * self.most} blocks, here are {len(values)}; record on{fewer}"
            )

    def draw(self, rng: random.Random, shift: float, names: str = RANDOM) -> tuple[Decision, Decision | None]:
        """A decision, and its confirmation where it takes one; `shift` is added to each log ratio."""
        start = rng.randrange(len(self.values))
        first = self._stretch(start, rng, shift, names)
        # Drawn whether it is needed or not: the same decisions at each slowdown.
        again = rng.randrange(len(self.values) - 2 * self.most + 1)
        second = self._stretch(start + self.most + again, rng, shift, names)
        return first, second if first.verdict in CONFIRMED else None

    def disjoint(self, shift: float, names: str = RECORDED) -> list[tuple[Decision, Decision | None]]:
        """The trace as one check after another: each block is used once, confirmations included.

        A last alarm that has too few blocks left for its confirmation takes the first ones again.
        """
        decisions: list[tuple[Decision, Decision | None]] = []
        ring = [sign_of(names) * value for value in (*self.values, *self.values)]
        place = 0
        while place + self.most <= len(self.values):
            first = self._judge(ring[place : place + self.most], shift)
            place += first.blocks
            again = None
            if first.verdict in CONFIRMED:
                again = self._judge(ring[place : place + self.most], shift)
                place += again.blocks
            decisions.append((first, again))
        return decisions

    def _stretch(self, start: int, rng: random.Random, shift: float, names: str) -> Decision:
        places = ((start + offset) % len(self.values) for offset in range(self.most))
        return self._judge([sign_of(names, rng) * self.values[place] for place in places], shift)

    def _judge(self, values: Sequence[float], shift: float) -> Decision:
        return decide([value + shift for value in values], self.margin, self.looks)


def sign_of(names: str, rng: random.Random | None = None) -> int:
    """1 where the side recorded as head is called so, -1 where the other one is; drawn if `rng` is given."""
    if names == RANDOM and rng is not None:
        return rng.choice((-1, 1))
    return -1 if names == SWAPPED else 1


def outcome(first: Decision, again: Decision | None) -> str:
    """The verdict of a row, as the check gives it."""
    return row_verdict(first, again)[0]


def tally_check(
    trace: Trace,
    workload: str,
    decisions: int,
    seed: int,
    levels: Sequence[float] = LEVELS,
    looks: int = len(LOOKS),
) -> list[Tally]:
    """Our rule on one workload of a trace: at each level with names at random, then as recorded and swapped.

    Raises:
        UsageError: too few blocks.
    """
    margin = margin_of(METRIC[Workload.from_id(workload).task])
    values = block_values(trace.of(workload))
    try:
        draws = Draws(values, margin, looks)
    except UsageError as error:
        raise UsageError(f"{trace.path}, {workload}: {error}") from None
    tallies = []
    kept = [level for level in levels if level in KEPT_LEVELS]
    for names, level in [(RANDOM, level) for level in levels] + [
        (n, level) for n in (RECORDED, SWAPPED) for level in kept
    ]:
        # The same draws at each level, and others for each workload of each file.
        rng = random.Random(f"{seed} {trace.path.name} {workload}")
        shift = math.log1p(level)
        drawn = [draws.draw(rng, shift, names) for _ in range(decisions)]
        disjoint = draws.disjoint(shift, names)
        tallies.append(
            Tally(
                trace=trace.path.name,
                load=trace.header.load,
                workload=workload,
                margin=margin,
                level=level,
                names=names,
                blocks=len(values),
                decisions=decisions,
                verdicts=dict(Counter(outcome(*pair) for pair in drawn)),
                alarms=sum(first.verdict == REGRESSED for first, _ in drawn),
                better_alarms=sum(first.verdict == IMPROVED for first, _ in drawn),
                used=statistics.median(first.blocks for first, _ in drawn),
                disjoint=len(disjoint),
                disjoint_regressed=sum(outcome(*pair) == REGRESSED for pair in disjoint),
            )
        )
    return tallies


def tally_intervals(trace: Trace, workload: str, most: int, seed: int) -> list[Coverage]:
    """The interval and the words of `bench compare` from blocks of one workload, for each of `INTERVAL_BLOCKS`.

    Names at random: `most` stretches from random starts. Names as recorded: every stretch that the trace has.
    """
    margin = margin_of(METRIC[Workload.from_id(workload).task])
    values = block_values(trace.of(workload))
    rng = random.Random(f"{seed} {trace.path.name} {workload} intervals")
    found = []
    for names, size in [
        (names, size) for names in (RANDOM, RECORDED) for size in INTERVAL_BLOCKS if size <= len(values)
    ]:
        last = len(values) - size
        starts = range(last + 1) if names == RECORDED else [rng.randint(0, last) for _ in range(most)]
        told: Counter[str] = Counter()
        widths = []
        for start in starts:
            logs = [[sign_of(names, rng) * value] for value in values[start : start + size]]
            ratio = ratio_of("head", "base", logs)
            assert ratio.estimate is not None
            assert ratio.low is not None
            assert ratio.high is not None
            factor = 1 + INTERVAL_LEVEL
            slower = replace(ratio, estimate=ratio.estimate * factor, low=ratio.low * factor, high=ratio.high * factor)
            widths.append((ratio.high - ratio.low) / 2)
            told["covered"] += ratio.low <= 1 <= ratio.high
            told["wrong"] += compare_verdict(ratio, "lower", margin) in (BETTER, WORSE)
            word = compare_verdict(slower, "lower", margin)
            told["found"] += word == WORSE
            told["missed"] += word not in (WORSE, DOUBT)
        found.append(
            Coverage(
                trace=trace.path.name,
                load=trace.header.load,
                workload=workload,
                names=names,
                size=size,
                intervals=len(starts),
                covered=told["covered"],
                wrong=told["wrong"],
                found=told["found"],
                missed=told["missed"],
                width=statistics.median(widths),
            )
        )
    return found


def tally_rules(
    trace: Trace,
    workload: str,
    used: float,
    most: int,
    seed: int,
    rules: "Sequence[Rule] | None" = None,
    levels: Sequence[float] = RULE_LEVELS,
) -> list[RuleTally]:
    """Other tools' rules on one workload of a trace: base's slices of some blocks, then head's of the next ones.

    Every start that the trace has is one run, `most` of them at random where there are more. "As used" takes the
    processes that the tool takes by default, and all the time that we gave each; "same time" as many processes as our
    median decision has blocks, or half the trace's where it is shorter.

    Args:
        used: median blocks of our decisions on the unchanged trace.

    Raises:
        UsageError: the trace holds no single times, or too few.
    """
    from bench.selfcheck.judges import RULES, run_of

    blocks = trace.of(workload)
    rng = random.Random(f"{seed} {trace.path.name} {workload} others")
    runs: dict[int, list[tuple[Run, Run]]] = {}

    def drawn(processes: int) -> "list[tuple[Run, Run]]":
        if processes not in runs:
            starts: Sequence[int] = range(len(blocks) - 2 * processes + 1)
            if len(starts) > most:
                starts = sorted(rng.sample(starts, most))
            runs[processes] = [
                (
                    run_of(blocks[start : start + processes], "base"),
                    run_of(blocks[start + processes : start + 2 * processes], "head"),
                )
                for start in starts
            ]
        return runs[processes]

    tallies = []
    for rule in RULES if rules is None else rules:
        for span, wanted in ((AS_USED, rule.processes), (SAME_TIME, round(used))):
            processes = min(max(1, wanted), len(blocks) // 2)
            pairs = drawn(processes)
            for level in levels:
                found = sum(rule.slower(base, head.slowed(1 + level)) for base, head in pairs)
                of = (trace.path.name, trace.header.load, workload)
                tallies.append(RuleTally(rule.name, *of, level, span, processes, len(pairs), found))
    return tallies


def totals(tallies: Sequence[Tally], load: str) -> list[Tally]:
    """All tallies as one for each level; before that those of each margin, where there are several.

    A slowdown of 3 % lies on a loader's margin and beyond that of device time, so their mean says little.
    """
    margins = list(dict.fromkeys(tally.margin for tally in tallies))
    groups = [(f"all of margin {margin:.0%}", [t for t in tallies if t.margin == margin]) for margin in margins]
    if len(margins) == 1:
        groups = []
    return [
        _together([tally for tally in group if (tally.names, tally.level) == of], load, name)
        for name, group in (*groups, ("all", tallies))
        for of in dict.fromkeys((tally.names, tally.level) for tally in group)
    ]


def _together(tallies: Sequence[Tally], load: str, name: str) -> Tally:
    """Several tallies of one level as one; `used` is the median of medians."""
    margins = {tally.margin for tally in tallies}
    return Tally(
        trace="",
        load=load,
        workload=name,
        margin=margins.pop() if len(margins) == 1 else None,
        level=tallies[0].level,
        names=tallies[0].names,
        blocks=sum(tally.blocks for tally in tallies),
        decisions=sum(tally.decisions for tally in tallies),
        verdicts=dict(sum((Counter(tally.verdicts) for tally in tallies), Counter())),
        alarms=sum(tally.alarms for tally in tallies),
        better_alarms=sum(tally.better_alarms for tally in tallies),
        used=statistics.median(tally.used for tally in tallies),
        disjoint=sum(tally.disjoint for tally in tallies),
        disjoint_regressed=sum(tally.disjoint_regressed for tally in tallies),
    )


def rule_totals(tallies: Sequence[RuleTally], load: str) -> list[RuleTally]:
    """All tallies as one for each rule, span and level; `processes` is the median."""
    groups: dict[tuple[str, str, float], list[RuleTally]] = {}
    for tally in tallies:
        groups.setdefault((tally.rule, tally.span, tally.level), []).append(tally)
    return [
        RuleTally(
            rule=rule,
            trace="",
            load=load,
            workload="all",
            level=level,
            span=span,
            processes=statistics.median(tally.processes for tally in group),
            runs=sum(tally.runs for tally in group),
            found=sum(tally.found for tally in group),
        )
        for (rule, span, level), group in groups.items()
    ]


@dataclass(frozen=True)
class Judgement:
    """What `judge` found.

    Attributes:
        decisions: how many were drawn for each workload of each trace and each level.
        seed: of the draws.
        ours, others: by workload and trace, then together by load, then over all loads where there are several.
        looks: how many of the check's looks our decisions had.
        scatter: of each workload of each trace.
        intervals: of each workload of each trace.
        notes: what a reader must know of the traces.
    """

    decisions: int
    seed: int
    ours: tuple[Tally, ...]
    others: tuple[RuleTally, ...]
    looks: int
    scatter: tuple[Noise, ...]
    intervals: tuple[Coverage, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "decisions": self.decisions,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "looks": list(LOOKS[: self.looks]),
            "noise": [vars(noise) for noise in self.scatter],
            "ours": [tally.to_json() for tally in self.ours],
            "others": [tally.to_json() for tally in self.others],
            "intervals": [coverage.to_json() for coverage in self.intervals],
            "notes": list(self.notes),
        }


def judge(
    traces: Sequence[Trace],
    decisions: int,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
    rules: "Sequence[Rule] | None" = None,
    looks: int = len(LOOKS),
) -> Judgement:
    """Our rule and the others', and intervals of comparisons, on every workload of every trace.

    Args:
        looks: how many of the check's looks our rule has: a check whose budget ends early has one.

    Raises:
        UsageError: too few blocks, or no single times.
    """
    ours: list[Tally] = []
    others: list[RuleTally] = []
    scatter: list[Noise] = []
    intervals: list[Coverage] = []
    notes: list[str] = []
    for trace in traces:
        notes.append(
            f"{trace.path.name}: {len(trace.blocks)} blocks, load {trace.header.load}, single times of the first "
            f"{trace.header.sampled_rounds} rounds, steps below {trace.header.sample_seconds:g} s averaged up to that"
            + (f"; {trace.torn} bytes of a torn last line were skipped" if trace.torn else "")
        )
        for workload in trace.header.workloads:
            say(f"{trace.path.name}: {workload}")
            tallies = tally_check(trace, workload, decisions, seed, looks=looks)
            scatter.append(noise(trace, workload))
            intervals += tally_intervals(trace, workload, decisions, seed)
            ours += tallies
            others += tally_rules(trace, workload, tallies[0].used, decisions, seed, rules)
    loads = list(dict.fromkeys(trace.header.load for trace in traces))
    together: list[Tally] = []
    rules_together: list[RuleTally] = []
    for load in [*loads, *(["all"] if len(loads) > 1 else [])]:
        together += totals([tally for tally in ours if load in ("all", tally.load)], load)
        rules_together += rule_totals([tally for tally in others if load in ("all", tally.load)], load)
    everything = (*ours, *together), (*others, *rules_together)
    return Judgement(decisions, seed, *everything, looks, tuple(scatter), tuple(intervals), tuple(notes))
