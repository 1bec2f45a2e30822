"""`bench tune`: finds a model's fastest configuration on this machine by successive halving with duels.

Every challenger is measured in turns with the preset `fast`, so that what counts is a ratio and drift falls on both.
The challengers are the other engines that are installed and torch's own configurations. In the first rung they have a
few turns each: engines first, then what runs eagerly, then what is compiled, with one lever changed before several.
What cannot win any more by what is measured by then is not even built. From the second rung on each challenger has a
fresh process and more turns, and the slower half drops out. The last engine and the last configuration of torch's own
meet `fast` in several groups of fresh processes, and only a difference beyond what processes differ by anyway replaces
it. Karnin et al. 2013 (sequential halving) for the scheme.

A configuration whose logits differ from plain fp32's more than twice as much as those of `fast` is no challenger.
"""

import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from bench.comparing.operands import Operand
from bench.comparing.plan import Settings, homes, loader_workload, network_workloads
from bench.errors import BenchError, OutOfMemoryError, WorkloadError, on_side
from bench.inspecting.sameness import FLOOR, ROUNDING
from bench.machine.cpu import usable_cores
from bench.machine.tuned import Resolved, Winner, fields
from bench.screen import Say
from bench.sides.crew import Crew, Entrant, enter
from bench.timing.duel import Round, Rounds, log_ratios, pairs_of
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import LAYOUTS, MODES, PEERS, PRECISIONS, Configuration, Device, check
from models.errors import ModelError
from results.record import Ratio, utc_now
from results.stats import ratio_of
from results.verdict import BETTER, WORSE, compare_verdict

MARGIN = 0.02
HOPELESS = 0.95  # times as fast with one lever changed: no configuration with that change is tried
# Times as fast with another precision or layout, both run eagerly: it is not compiled either. Compiling changes what a
# precision is worth, but not that much.
HOPELESS_EAGER = 0.75
# Changes that are made together may gain this many times as much as the changes one by one.
TOGETHER = 1.1
# Seconds of turns in the first rung, in later ones, and in a block of the last duel.
FIRST, LATER, LAST = 1.5, 3.0, 3.0
BLOCKS = 6  # fresh processes of the last duel, if the time is there
LARGEST = 1024  # images a step that are tried
# Shares of the whole time that a task may have, when all are asked for.
SHARES = {"inference": 0.5, "latency": 0.2, "training": 0.2, "loading": 0.1}
BACKWARD = 2.0  # times as long as inference's it takes to compile a training step
OVERTIME = 1.5  # times what was left of the first rung's time a challenger may take to be built
# Shares of a task's time, counted from its start, after which no more is begun: compiled challengers and others in the
# first rung, later rungs and blocks of the last duel, counts of threads, batches.
COMPILED, QUICK, DUEL, THREADS, BATCHES = 0.6, 0.7, 0.85, 0.9, 0.95
NEAR = 0.9  # times as fast as `fast` in inference: what is slower there is not tried for latency
LEVERS = ("precision", "layout", "compile", "freeze", "fused", "mm", "keep")


@dataclass(frozen=True)
class Result:
    """What became of one challenger.

    Attributes:
        configuration: what was tried.
        ratio: how many times as fast as the reference, in the last rung it was in; None without a number.
        low, high: 95 % interval of the pairs in that rung, within one pair of processes.
        rung: that rung, from 1.
        error: of its logits, see Winner; None where it is no number of the task.
        reason: why it went no further; "" for those that were merely slower.

    The bounds are the ratio itself where there were too few pairs.
    """

    configuration: Configuration | LoaderOutput
    ratio: float | None
    rung: int
    error: float | None = None
    reason: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def least(self) -> float:
        """How many times as fast it is at least."""
        return (self.ratio if self.low is None else self.low) or 0.0

    @property
    def most(self) -> float:
        """How many times as fast it may be."""
        return (self.ratio if self.high is None else self.high) or 0.0

    @property
    def foreign(self) -> bool:
        """Whether another engine than torch runs it."""
        return isinstance(self.configuration, Configuration) and self.configuration.peer is not None


@dataclass(frozen=True)
class Lever:
    """What one lever of the winner is worth: the winner over the winner without it, in turns.

    Of another engine, which has no levers of ours: over the fastest configuration without that engine.
    """

    lever: str
    without: str
    ratio: float | None
    low: float | None
    high: float | None
    reason: str = ""


@dataclass
class Tuning:
    """Everything found for one task.

    Attributes:
        task, model: what was tuned.
        reference: what `fast` stands for.
        winner: None where nothing could be measured.
        results: of each challenger, the best first.
        batches: (batch, images/s, ratio to the starting batch) of the winner; a reason in place of the numbers.
        levers: worth of each of the winner's levers.
        threads: (threads, ratio to all of them, low, high) of the winner on fewer threads.
        verdict: of the last duel, in words.
        untried: configurations for which there was no time.
        hopeless: configurations that were not tried, because what was measured of others shows that they cannot win.
        unsteady: configurations that were still getting faster when their warm-up was ended.
        seconds: how long it took.
    """

    task: str
    model: str
    reference: str
    winner: Winner | None = None
    results: list[Result] = field(default_factory=list)
    batches: list[tuple[int, float | None, float | None, str]] = field(default_factory=list)
    levers: list[Lever] = field(default_factory=list)
    threads: list[tuple[int, float | None, float | None, float | None]] = field(default_factory=list)
    verdict: str = ""
    untried: list[str] = field(default_factory=list)
    hopeless: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain types; configurations as texts."""
        results = [{**asdict(one), "configuration": one.configuration.text} for one in self.results]
        return {**asdict(self), "results": results}


def challengers(
    reference: Configuration, device: Device, training: bool, engines: Sequence[str] = ()
) -> list[Configuration]:
    """What is tried: other engines first, then those with the fewest levers changed, quickly built ones first.

    Every configuration that can work here and does with freed memory what the reference does; and the reference with
    one of the other levers alone changed, each of which helps or does not whatever the others are. What keeps no memory
    comes first: the first rung has one process for torch's own, in which that cannot be taken back.

    Args:
        engines: keys of PEERS that are tried.
    """
    modes = list(MODES)
    precisions = [
        name for name, one in PRECISIONS.items() if device.kind in (one.searched_training if training else one.searched)
    ]
    found = []
    for precision, layout, mode, freeze in product(precisions, sorted(LAYOUTS, reverse=True), modes, (False, True)):
        found.append(Configuration(precision, layout, mode, freeze, keep=reference.keep))
    found += [replace(reference, keep=False), replace(reference, fused=True)]
    if device.kind == "cuda":
        found.append(replace(reference, mm=True))
    own = sorted(
        (one for one in found if one != reference and works(one, device, training)),
        key=lambda one: (one.keep, one.compiles, distance(one, reference), modes.index(one.compile), one.text),
    )
    # The smaller numbers first. bfloat16 that a CPU has no instructions for gains nothing anywhere.
    peers = [
        Configuration(precision, peer=name)
        for name in engines
        for precision in reversed(PEERS[name].precisions)
        if device.bf16 or precision != "bf16"
    ]
    return [*(one for one in peers if works(one, device, training)), *own]


def missing_engines(device: Device) -> list[str]:
    """The engines that could be tried for inference on this device, if they were installed."""
    return [
        name
        for name, peer in PEERS.items()
        if not peer.installed and works(Configuration(peer.precisions[0], peer=name), device, training=False)
    ]


def works(one: Configuration, device: Device, training: bool) -> bool:
    """Whether a configuration can be had here."""
    try:
        check(one, device, training)
    except ModelError:
        return False
    return True


def distance(a: Configuration, b: Configuration) -> int:
    """Levers that differ."""
    return sum(getattr(a, name) != getattr(b, name) for name in LEVERS)


def one_off(winner: Configuration, device: Device, training: bool) -> list[tuple[str, Configuration]]:
    """The winner with one lever put back to what a first script has, for each lever that it has."""
    plain = Configuration()
    found = []
    for name in LEVERS:
        value = getattr(winner, name)
        if value == getattr(plain, name):
            continue
        changed = replace(winner, **{name: getattr(plain, name)})
        if works(changed, device, training):
            found.append((name if value is True else value, changed))
    return found


def builder(workload: Workload) -> tuple[str, bool]:
    """What builds it, which is what decides how long that takes: an engine, a compiler or neither; and if it trains."""
    one = workload.configuration
    if not isinstance(one, Configuration):
        return "", workload.training
    # The compiler's own matrix products take longer to compile.
    own = one.mm and workload.device == "cpu"
    return one.peer or ("compile-mm" if own else "compile" if one.compiles else ""), workload.training


class Outlook:
    """What the results so far say of configurations that are not built yet.

    Args:
        reference: what every ratio is to.
    """

    def __init__(self, reference: Configuration) -> None:
        self.reference = reference
        self.seen: dict[Configuration, Result] = {}
        self.ahead = 1.0  # times as fast as the reference, at least: the fastest so far that is accurate enough

    def add(self, one: Result, accurate: bool) -> None:
        """Take a result into account."""
        assert isinstance(one.configuration, Configuration)
        self.seen[one.configuration] = one
        if accurate:
            self.ahead = max(self.ahead, one.least)

    def hopeless(self, one: Configuration) -> bool:
        """Whether it cannot win: a change of its is slower by itself, or all its changes together gain too little."""
        if one.peer is not None:
            return False
        eager = replace(self.reference, compile="eager")
        scouts = [replace(eager, **{name: getattr(one, name)}) for name in ("precision", "layout")]
        if self.reference.compiles:
            # It tells at little cost what need not be compiled.
            if one in scouts:
                return False
            plain = self.seen.get(eager)
            for scout in scouts if plain is not None and one.compiles else ():
                known = self.seen.get(scout)
                if plain is not None and known is not None and known.most < HOPELESS_EAGER * (plain.ratio or 0.0):
                    return True
        changed = [name for name in LEVERS if getattr(one, name) != getattr(self.reference, name)]
        alone = [self.seen.get(replace(self.reference, **{name: getattr(one, name)})) for name in changed]
        if any(known is not None and (known.ratio or 0.0) < HOPELESS for known in alone):
            return True
        return None not in alone and TOGETHER * math.prod(known.most for known in alone if known) < self.ahead


class Tuner:
    """Tunes one model.

    Args:
        base: workload of each task as `fast` has it, by their names in TUNED_TASKS.
        device: its facts.
        conditions: of every process.
        say: progress, one short line at a time.
        crew: starts measuring processes; whoever made it ends them.
        engines: the keys of PEERS that are installed.
    """

    def __init__(
        self,
        base: Mapping[str, Workload],
        device: Device,
        conditions: Conditions,
        machine: Mapping[str, Any],
        say: Say,
        crew: Crew,
        engines: Sequence[str] = (),
    ) -> None:
        self.base = dict(base)
        self.engines = engines
        self.device = device
        self.conditions = conditions
        self.machine = machine
        self.say = say
        self.crew = crew
        self.rng = random.Random(conditions.seed)
        # Configurations that inference showed not to be hopeless for latency; None before.
        self.near: list[Configuration | LoaderOutput] | None = None
        # Seconds that building and warming took at most, by what builds it and whether it trains.
        self.longest: dict[tuple[str, bool], float] = {}
        # Of the task at hand: see Tuning; and what is built and warm, by its text.
        self.unsteady: list[str] = []
        self.standing: dict[str, Entrant] = {}

    def start(self, *names: str, homes: Mapping[str, str] | None = None) -> None:
        """Fresh processes that have imported what any of the tasks needs."""
        self.crew.start(names, self.crew.needs, homes)

    def clear(self) -> None:
        """End every process but those that others are forked from."""
        self.standing = {}
        self.crew.end_block()

    def enter(self, name: str, workload: Workload, threads: int = 0, within: float = 900.0) -> Entrant:
        """Build and warm a workload in a process, on all threads or fewer; see bench.sides.crew.enter.

        Args:
            within: seconds that building may take.
        """
        conditions = replace(self.conditions, threads=threads) if threads else self.conditions
        begin = time.monotonic()
        entrant = enter(self.crew, name, workload, conditions, within)
        kind = builder(workload)
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - begin)
        text = workload.configuration.text
        if not entrant.warm.steady and text not in self.unsteady:
            self.unsteady.append(text)
        return entrant

    def expected(self, workload: Workload) -> float:
        """About how many seconds building and measuring a workload takes, 0 where nothing like it was built before."""
        kind, training = builder(workload)
        known = self.longest.get((kind, training), 0.0)
        if kind == "compile" and training:
            known = max(known, BACKWARD * self.longest.get((kind, False), 0.0))
        return FIRST + known if known else 0.0

    def error(self, name: str, workload: Workload) -> float | None:
        """How much the logits of a workload that is built differ from plain fp32's; None where that says nothing."""
        if workload.task not in ("inference", "latency"):
            return None
        answer = self.crew[name].ask("parity", 300, id=workload.id, conditions=self.conditions.to_json())
        return None if answer["blind"] else float(answer["rms"])

    def rounds(self, entrants: Mapping[str, Entrant], seconds: float, least: int = 3) -> list[Round]:
        """The pairs of rounds in which all of them have turns."""
        if any(one.rest for one in entrants.values()):
            # Threads that still spin after one's turn would take the other's cores.
            entrants = {name: replace(one, rest=True) for name, one in entrants.items()}
        return pairs_of(self.crew.take_turns(self.crew.settled(entrants), Rounds(seconds, least=least), self.rng))

    def turns(self, reference: Entrant, other: Entrant, seconds: float) -> list[float]:
        """log(how many times as fast as the reference) of each pair, per image."""
        entrants = {"reference": reference, "other": other}
        images = {name: one.workload.batch for name, one in entrants.items()}
        return log_ratios(self.rounds(entrants, seconds), "reference", "other", images)

    def tune(self, task: str, seconds: float) -> Tuning:
        """Find the fastest configuration of a task within about this many seconds.

        Raises:
            BenchError: `fast` itself cannot be measured.
        """
        begin = time.monotonic()
        base = self.base[task]
        if task == "loading" and base.device == "cuda":
            self.share_decoding(base)
        self.unsteady = []
        found = Tuning(task, base.subject, base.configuration.text, unsteady=self.unsteady)
        try:
            self.start("fast")
            reference, error = self.enter("fast", base), self.error("fast", base)
            self.standing = {base.configuration.text: reference}
            left = self.first_rung(found, base, reference, error, begin, seconds)
            rung = 2
            while rivals := [one for one in left if sum(other.foreign == one.foreign for other in left) > 1]:
                building = sum(self.expected(replace(base, configuration=one.configuration)) for one in rivals)
                if time.monotonic() + building > begin + DUEL * seconds:
                    break
                alone = [one for one in left if one not in rivals]
                left = alone + self.later_rung(found, base, reference, rivals, rung)
                rung += 1
            found.winner = self.last_duel(found, base, left, error, begin + DUEL * seconds)
            if task != "loading":
                self.around(found, begin, seconds)
        finally:
            self.clear()
        found.results.sort(key=lambda one: (one.reason != "", -one.rung, -(one.ratio or 0.0)))
        found.seconds = time.monotonic() - begin
        return found

    def share_decoding(self, base: Workload) -> None:
        """Have the share of the GPU's JPEG engine measured and remembered; every loader here uses it from then on."""
        self.say("loading: the share of images that the JPEG engine decodes")
        self.start("hw_decoder_load")
        self.crew["hw_decoder_load"].ask("sweep", 600, workload=base.to_json(), conditions=self.conditions.to_json())
        self.crew.end("hw_decoder_load")

    def pool(self, task: str, base: Workload) -> list[Workload]:
        """The challengers, the likeliest first."""
        found: Sequence[Configuration | LoaderOutput]
        if isinstance(base.configuration, LoaderOutput):
            found = loader_configurations(base.configuration)
        elif task == "latency" and self.near is not None:
            found = self.near
        else:
            found = challengers(base.network, self.device, base.training, self.engines)
        if task == "latency" and self.device.kind == "cpu":
            # The calls of convolutions cost most where they compute least: of this inference says nothing.
            single = replace(base.network, mm=True)
            engines = [one for one in found if isinstance(one, Configuration) and one.peer]
            if works(single, self.device, base.training):
                found = [*engines, single, *(one for one in found if one not in engines)]
        return [replace(base, configuration=one) for one in found]

    def first_rung(
        self, found: Tuning, base: Workload, reference: Entrant, error: float | None, start: float, seconds: float
    ) -> list[Result]:
        """A few turns of each, torch's own in one process; what the time does not reach is named.

        Args:
            error: of the reference.
            start, seconds: when the task began, and how long it may take.
        """
        pool, name = self.pool(base.task, base), "challengers"
        left: list[Result] = []
        own = isinstance(base.configuration, Configuration)
        outlook = Outlook(base.network) if own else None
        for number, workload in enumerate(pool):
            begin = time.monotonic()
            configuration = workload.configuration
            assert isinstance(configuration, Configuration | LoaderOutput)
            levers = configuration if isinstance(configuration, Configuration) else None
            # Compiling takes most of the time, and what needs none must not go short of it; least of all the likeliest.
            share = COMPILED if levers is not None and levers.compiles else QUICK if number else 1.0
            deadline = start + share * seconds
            if levers is not None and outlook is not None and outlook.hopeless(levers):
                found.hopeless.append(levers.text)
                continue
            if begin + self.expected(workload) > deadline:
                found.untried.append(configuration.text)
                continue
            self.say(f"{base.task}: {configuration.text} ({number + 1} of {len(pool)})")
            # An engine's threads stay with its process.
            home = levers.text if levers is not None and levers.peer else name
            try:
                if home not in self.crew:
                    self.start(home)
                entrant = self.enter(home, workload, within=OVERTIME * (deadline - begin))
                one = judged(Result(configuration, None, 1), self.turns(reference, entrant, FIRST))
                if one.most > 1 + MARGIN:
                    one = self.accurate(replace(one, error=self.error(home, workload)), error)
                if outlook is not None:
                    outlook.add(one, not one.reason)
                if one.reason:
                    found.results.append(one)
                else:
                    left.append(one)
                self.crew.release({home: [workload]})
            except BenchError as failure:
                found.results.append(Result(configuration, None, 1, reason=failure.summary))
                # What a failed attempt left behind must not affect the next.
                if home in self.crew:
                    self.crew.end(home)
            if home != name and home in self.crew:
                self.crew.end(home)
        if name in self.crew:
            self.crew.end(name)
        if base.task == "inference":
            near = sorted(left, key=lambda one: (not one.foreign, -(one.ratio or 0.0)))
            self.near = [one.configuration for one in near if (one.ratio or 0.0) > NEAR]
            # An engine for which there was no time may still be the quickest to answer.
            self.near += [w.network for w in pool if w.network.peer and w.network.text in found.untried]
        return self.halved(found, left)

    def accurate(self, one: Result, fast: float | None) -> Result:
        """With the reason why it goes no further, if it trades accuracy for speed; `fast`: the reference's error."""
        if fast is None or one.error is None or one.error <= (allowed := ROUNDING * fast + FLOOR):
            return one
        why = f"logits differ from plain fp32's by {one.error:.2g} of their spread; {allowed:.2g} is allowed"
        return replace(one, reason=why)

    def later_rung(
        self, found: Tuning, base: Workload, reference: Entrant, left: Sequence[Result], rung: int
    ) -> list[Result]:
        """More turns, each in a fresh process."""
        again: list[Result] = []
        for one in left:
            name = one.configuration.text
            workload = replace(base, configuration=one.configuration)
            self.say(f"{base.task}: rung {rung}, {name}")
            self.start(name)
            try:
                entrant = self.enter(name, workload)
                again.append(judged(replace(one, rung=rung), self.turns(reference, entrant, LATER)))
            except BenchError as error:
                found.results.append(replace(one, reason=error.summary))
            finally:
                self.crew.end(name)
        return self.halved(found, again)

    def halved(self, found: Tuning, left: Sequence[Result]) -> list[Result]:
        """The better half of the engines, and of torch's own; the others' results are kept.

        One that cannot be faster than the reference, or than the best of its half, goes no further.
        """
        kept: list[Result] = []
        for foreign in (True, False):
            ranked = sorted((one for one in left if one.foreign == foreign), key=lambda one: -(one.ratio or 0.0))
            lead = max([1 + MARGIN, *(one.least for one in ranked)])
            kept += [one for one in ranked if one.most >= lead][: max(1, len(ranked) // 2)]
        found.results += [one for one in left if one not in kept]
        return kept

    def last_duel(
        self, found: Tuning, base: Workload, left: Sequence[Result], error: float | None, deadline: float
    ) -> Winner:
        """`fast`, unless another is shown to be faster in groups of fresh processes."""
        kept = Winner(
            base.subject, base.task, base.configuration.text, base.batch, 1.0, None, None, error,
            fields(self.machine), utc_now(),
        )  # fmt: skip
        finalists = [
            next(one for one in left if one.foreign == foreign) for foreign in sorted({one.foreign for one in left})
        ]
        found.results += [one for one in left if one not in finalists]
        if not finalists:
            tried = any(one.ratio is not None for one in found.results)
            found.verdict = (
                "no other configuration is faster than fast" if tried else "nothing else was measured; fast stays"
            )
            return kept
        fast = base.configuration.text
        try:
            blocks = self.blocks(base, finalists, deadline)
        except BenchError as failure:
            lost = next((one for one in finalists if one.configuration.text == failure.side), finalists[0])
            found.results.append(replace(lost, reason=failure.summary))
            others = [one for one in finalists if one is not lost]
            if others and failure.side != fast:
                return self.last_duel(found, base, others, error, deadline)
            found.results += others
            found.verdict = f"{lost.configuration.text} failed in the last duel: {failure.summary}"
            return kept

        judged = {one.configuration.text: over(one.configuration.text, fast, blocks) for one in finalists}
        found.results += [replace(one, ratio=judged[one.configuration.text].estimate) for one in finalists]
        better = [
            one for one in finalists if compare_verdict(judged[one.configuration.text], "higher", MARGIN) == BETTER
        ]
        if not better:
            name = max(judged, key=lambda name: judged[name].estimate or 0.0)
            found.verdict = duel_words(name, fast, judged[name], "")
            return kept
        # Another engine has to be worth it.
        best = max(
            better, key=lambda one: (judged[one.configuration.text].estimate or 0.0) / (1 + MARGIN * one.foreign)
        )
        name = best.configuration.text
        found.verdict = duel_words(name, fast, judged[name], BETTER)
        alone = next((one.configuration.text for one in better if not one.foreign), fast) if best.foreign else ""
        if alone:
            worth = over(name, alone, blocks)
            engine = name.split("-")[0]
            found.levers.append(Lever(engine, alone, worth.estimate, worth.low, worth.high))
        return replace(
            kept, configuration=name, ratio=judged[name].estimate or 1.0, low=judged[name].low, high=judged[name].high,
            error=best.error, alone=alone,
        )  # fmt: skip

    def blocks(self, base: Workload, finalists: Sequence[Result], deadline: float) -> list[list[Round]]:
        """The rounds of `fast` and the last challengers, by their texts, in each group of fresh processes.

        Raises:
            BenchError: one of them failed; its `side` is its text.
        """
        fast = base.configuration.text
        sides = {fast: base, **{o.configuration.text: replace(base, configuration=o.configuration) for o in finalists}}
        names, places = list(sides), homes(sides)
        who = " and ".join(names[1:])
        found: list[list[Round]] = []
        longest = 0.0
        self.say(f"{base.task}: last duel of {who}")
        self.clear()
        for side, workload in sides.items():
            # What cannot be compiled ahead of the forks is built in each process.
            with suppress(BenchError):
                self.crew.prepare(side, workload, self.conditions, places.get(side, side))
        while len(found) < BLOCKS:
            begin = time.monotonic()
            # Of two groups of processes the interval is so wide that one, with what processes differ by, says more.
            if len(found) == 1 and (begin + 2 * longest > deadline or all(decided(n, fast, found) for n in names[1:])):
                break
            if len(found) > 2 and begin + longest > deadline:
                break
            self.say(f"{base.task}: last duel of {who}, block {len(found) + 1}")
            self.clear()
            self.start(*self.rng.sample(names, len(names)), homes=places)
            entrants = {}
            for side, workload in sides.items():
                with on_side(side):
                    entrants[side] = self.enter(side, workload)
            # The fewest pairs that have a 95 % interval, since there may be no other group.
            found.append(self.rounds(entrants, LAST * len(names) / 2, least=6))
            self.standing = entrants
            longest = max(longest, time.monotonic() - begin)
        return found

    def around(self, found: Tuning, begin: float, seconds: float) -> None:
        """What the winner does on fewer threads, at other batches, and without each of its levers."""
        assert found.winner is not None
        winner = Configuration.from_text(found.winner.configuration)
        base = replace(self.base[found.task], configuration=winner)
        on_fewer = [] if base.training or self.device.kind != "cpu" else fewer(self.conditions.threads)
        unknown = self.known_worth(found, winner)
        batched = found.task != "latency"
        if not (on_fewer or unknown or batched):
            return
        reference = self.standing.get(winner.text)
        if reference is None:
            self.say(f"{found.task}: {winner.text} once more")
            self.clear()
            self.start("winner")
            reference = self.enter("winner", base)
        self.threads(found, reference, on_fewer, begin + THREADS * seconds)
        if batched:
            self.batches(found, reference, begin + BATCHES * seconds)
        self.worth(found, reference, unknown, begin + seconds)

    def threads(self, found: Tuning, reference: Entrant, counts: Sequence[int], deadline: float) -> None:
        """The winner with itself on fewer threads, in processes of their own: a small network's threads mostly wait."""
        assert found.winner is not None
        for count in counts:
            name = f"{count} threads"
            if time.monotonic() + self.expected(reference.workload) > deadline:
                return
            self.say(f"{found.task}: the winner on {name}")
            self.start(name)
            try:
                ratio = ratio_of(
                    name, "all", [self.turns(reference, self.enter(name, reference.workload, count), LATER)]
                )
            except BenchError:
                # A figure beside the search, not of it.
                continue
            finally:
                self.crew.end(name)
            found.threads.append((count, ratio.estimate, ratio.low, ratio.high))
            best = max((one[1] or 0.0 for one in found.threads[:-1]), default=0.0)
            if compare_verdict(ratio, "higher", MARGIN) == BETTER and (ratio.estimate or 0.0) > best:
                found.winner = replace(found.winner, threads=count)

    def batches(self, found: Tuning, reference: Entrant, deadline: float) -> None:
        """The winner at other batches, per image, up to the largest that fits or gains nothing."""
        assert found.winner is not None
        start, name = reference.workload, "other batches"
        best = (1.0, start.batch)
        found.batches.append((start.batch, None, 1.0, "where the search began"))
        self.start(name)
        for ladder in (_up(start.batch), _down(start.batch)):
            behind = 0
            for batch in ladder:
                if time.monotonic() + self.expected(start) > deadline or behind == 2:
                    break
                self.say(f"{found.task}: batch {batch}")
                workload = replace(start, batch=batch)
                try:
                    entrant = self.enter(name, workload)
                    ratio = math.exp(statistics.median(self.turns(reference, entrant, LATER)))
                    self.crew.release({name: [workload]})
                except OutOfMemoryError as error:
                    found.batches.append((batch, None, None, error.summary))
                    self.crew.replace(name)
                    break
                found.batches.append((batch, None, ratio, ""))
                behind = behind + 1 if ratio < best[0] * (1 + MARGIN) else 0
                # More than the noise of a few turns in one process.
                if ratio > best[0] * (1 + MARGIN):
                    best = (ratio, batch)
        self.crew.end(name)
        found.batches.sort()
        found.winner = replace(found.winner, batch=best[1])

    def known_worth(self, found: Tuning, winner: Configuration) -> list[tuple[str, Configuration]]:
        """The winner with each of its levers put back, without those of which it is known what the lever is worth.

        Where `fast` won, the first rungs have measured most of them already.
        """
        if winner.peer is not None:
            return []
        same = winner.text == found.reference
        known = {one.configuration: one for one in found.results if one.ratio and same}
        wanted = one_off(winner, self.device, found.task == "training")
        found.levers += [inverse(lever, known[changed]) for lever, changed in wanted if changed in known]
        return [pair for pair in wanted if pair[1] not in known]

    def worth(
        self, found: Tuning, reference: Entrant, wanted: Sequence[tuple[str, Configuration]], deadline: float
    ) -> None:
        """Each lever of the winner put back, one at a time, in turns with the winner."""
        for lever, changed in wanted:
            workload = replace(reference.workload, configuration=changed)
            if time.monotonic() + self.expected(workload) > deadline:
                found.levers.append(Lever(lever, changed.text, None, None, None, "no time was left"))
                continue
            self.say(f"{found.task}: what {lever} is worth")
            self.start(changed.text)
            try:
                entrant = self.enter(changed.text, workload)
                logs = [-x for x in self.turns(reference, entrant, LATER)]
                ratio = ratio_of("with", "without", [logs])
                found.levers.append(Lever(lever, changed.text, ratio.estimate, ratio.low, ratio.high))
            except BenchError as error:
                found.levers.append(Lever(lever, changed.text, None, None, None, error.summary))
            finally:
                self.crew.end(changed.text)


def over(of: str, to: str, blocks: Sequence[Sequence[Round]]) -> Ratio:
    """How many times as fast one is as another in the same rounds of each group of processes."""
    return ratio_of(of, to, [log_ratios(rounds, to, of) for rounds in blocks])


def decided(of: str, to: str, blocks: Sequence[Sequence[Round]]) -> bool:
    """Whether these rounds show which is faster."""
    return compare_verdict(over(of, to, blocks), "higher", MARGIN) in (BETTER, WORSE)


def judged(one: Result, logs: Sequence[float]) -> Result:
    """A result with what its last turns gave; `logs` are of how many times as fast as the reference."""
    ratio = ratio_of("one", "reference", [logs])
    return replace(one, ratio=ratio.estimate, low=ratio.low, high=ratio.high)


def inverse(lever: str, one: Result) -> Lever:
    """What a lever is worth, from how fast it went without."""
    low, high = (None if bound is None else 1 / bound for bound in (one.high, one.low))
    return Lever(lever, one.configuration.text, 1 / (one.ratio or 1.0), low, high)


def duel_words(best: str, fast: str, ratio: Ratio, shown: str) -> str:
    """The last duel in a sentence."""
    from results.tables import ratio_text

    of = f"{ratio.blocks} pairs of processes" if ratio.blocks > 1 else "one pair of processes"
    if shown == BETTER:
        return f"{best} is {ratio_text(ratio)} times as fast as {fast} ({of})"
    return f"{best} is not shown to be faster than {fast}: {ratio_text(ratio)} ({of}); fast stays"


def loader_configurations(base: LoaderOutput) -> list[LoaderOutput]:
    """Other numbers of threads, and of batches made ahead, one of the two changed at a time."""
    cores = usable_cores()
    counts = [(n, 2) for n in sorted({max(1, cores // 2), cores, cores + 1, 2 * cores})] + [(cores, 1), (cores, 4)]
    found = [replace(base, workers=workers, ahead=ahead) for workers, ahead in counts]
    return [one for one in found if one != base]


def fewer(threads: int) -> list[int]:
    """Half as many, as cores with two threads each would have, and one."""
    return sorted({threads // 2, 1} - {0, threads}, reverse=True)


def _up(batch: int) -> Iterator[int]:
    while batch < LARGEST:
        batch *= 2
        yield batch


def _down(batch: int) -> Iterator[int]:
    while batch > 1:
        batch //= 2
        yield batch


def base_workloads(
    operand: Operand, settings: Settings, resolved: Resolved, cost: Mapping[str, int], tasks: Sequence[str]
) -> dict[str, Workload]:
    """What `fast` is for each task.

    Args:
        resolved: what `fast` stands for.
        cost: counts of the network, see bench.inspecting.cost.Cost.

    Raises:
        WorkloadError: the model cannot be trained here although that was asked for.
    """
    found = {}
    for task in tasks:
        workloads = network_workloads(operand, ["training" if task == "loading" else task], settings, resolved, cost)
        if not workloads:
            raise WorkloadError(resolved.training_missing)
        [found[task]] = workloads
        if task == "loading":
            output = replace(LoaderOutput.feeding(workloads[0].network), workers=settings.threads, ahead=2)
            found[task] = replace(loader_workload(settings, settings.loader, output), size=cost["size"])
    return found
