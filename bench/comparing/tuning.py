"""`bench tune`: finds a model's fastest configuration on this machine by successive halving with duels.

Every challenger is measured in turns with the preset `fast`, so that what counts is a ratio and drift falls on both.
In the first rung one process takes the challengers one after another, a few turns each, those with one lever changed
first: a change that alone is clearly slower is not tried together with others. From the second rung on each challenger
has a fresh process and more turns. The last one standing meets `fast` in several pairs of fresh processes, and only a
difference beyond what processes differ by anyway replaces it. Karnin et al. 2013 (sequential halving) for the scheme.

A configuration whose logits differ from plain fp32's more than twice as much as those of `fast` is no challenger.
"""

import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from bench.comparing.operands import Operand
from bench.comparing.plan import Settings, homes, loader_workload, network_workloads
from bench.errors import BenchError, OutOfMemoryError, WorkloadError
from bench.inspecting.sameness import FLOOR, ROUNDING
from bench.machine.cpu import usable_cores
from bench.machine.tuned import Resolved, Winner, fields
from bench.screen import Say
from bench.sides.crew import Crew, Entrant, Needs, Spawn, enter, spawner
from bench.sides.process import Worker
from bench.timing.duel import Rounds, log_ratios, pairs_of
from bench.timing.workload import Conditions, LoaderOutput, Workload
from models.configuration import LAYOUTS, MODES, PRECISIONS, Configuration, Device, check
from models.errors import ModelError
from results.record import Ratio, utc_now
from results.stats import ratio_of
from results.verdict import BETTER, compare_verdict

MARGIN = 0.02
HOPELESS = 0.95  # times as fast with one lever changed: no configuration with that change is tried
# Seconds of turns in the first rung, in later ones, and in a block of the last duel.
FIRST, LATER, LAST = 1.5, 3.0, 3.0
BLOCKS = 6  # fresh processes of the last duel, if the time is there
LARGEST = 1024  # images a step that are tried
# Shares of the whole time that a task may have, when all are asked for.
SHARES = {"inference": 0.42, "training": 0.3, "latency": 0.16, "loading": 0.12}
NEAR = 0.9  # times as fast as `fast` in inference: what is slower there is not tried for latency
LEVERS = ("precision", "layout", "compile", "freeze", "keep")


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
    """

    configuration: Configuration | LoaderOutput
    ratio: float | None
    rung: int
    error: float | None = None
    reason: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Lever:
    """What one lever of the winner is worth: the winner over the winner without it, in turns."""

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
        verdict: of the last duel, in words.
        untried: configurations for which there was no time.
        hopeless: configurations with a change that alone was clearly slower.
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
    verdict: str = ""
    untried: list[str] = field(default_factory=list)
    hopeless: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain types; configurations as texts."""
        results = [{**asdict(one), "configuration": one.configuration.text} for one in self.results]
        return {**asdict(self), "results": results}


def challengers(reference: Configuration, device: Device, training: bool) -> list[Configuration]:
    """What is tried: those with the fewest levers changed first, quickly built ones first.

    Every configuration that can work here and does with freed memory what the reference does; and the reference with
    that lever alone changed, since it helps or it does not whatever the others are. What keeps no memory comes first:
    the first rung has one process, in which that cannot be taken back.
    """
    modes = list(MODES)
    precisions = [
        name for name, one in PRECISIONS.items() if device.kind in (one.searched_training if training else one.searched)
    ]
    found = []
    for precision, layout, mode, freeze in product(precisions, sorted(LAYOUTS, reverse=True), modes, (False, True)):
        found.append(Configuration(precision, layout, mode, freeze, keep=reference.keep))
    return sorted(
        (one for one in [*found, replace(reference, keep=False)] if one != reference and works(one, device, training)),
        key=lambda one: (one.keep, distance(one, reference), modes.index(one.compile), one.text),
    )


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


def shares(one: Configuration, other: Configuration, reference: Configuration) -> bool:
    """Whether `one` has every lever that `other` has otherwise than the reference."""
    changed = [name for name in LEVERS if getattr(other, name) != getattr(reference, name)]
    return all(getattr(one, name) == getattr(other, name) for name in changed)


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


class Tuner:
    """Tunes one model.

    Args:
        base: workload of each task as `fast` has it, by their names in TUNED_TASKS.
        device: its facts.
        conditions: of every process.
        say: progress, one short line at a time.
        spawn: starts a measuring process, see bench.sides.crew.
    """

    def __init__(
        self,
        base: Mapping[str, Workload],
        device: Device,
        conditions: Conditions,
        machine: Mapping[str, Any],
        say: Say,
        spawn: Spawn = Worker,
    ) -> None:
        self.base = dict(base)
        self.device = device
        self.conditions = conditions
        self.machine = machine
        self.say = say
        self.crew = Crew(spawner(conditions.threads, spawn), forks=device.kind == "cpu")
        self.rng = random.Random(conditions.seed)
        # Configurations that inference showed not to be hopeless for latency; None before.
        self.near: list[Configuration | LoaderOutput] | None = None
        # Of the task at hand, see Tuning.
        self.unsteady: list[str] = []

    def start(self, name: str, *workloads: Workload) -> None:
        """A fresh process that has imported what these workloads need."""
        self.crew.start([name], Needs.of(workloads))

    def enter(self, name: str, workload: Workload) -> Entrant:
        """Build and warm a workload in a process; see bench.sides.crew.enter."""
        entrant = enter(self.crew, name, workload, self.conditions)
        text = workload.configuration.text
        if not entrant.warm.steady and text not in self.unsteady:
            self.unsteady.append(text)
        return entrant

    def error(self, name: str, workload: Workload) -> float | None:
        """How much the logits of a workload that is built differ from plain fp32's; None where that says nothing."""
        if workload.task not in ("inference", "latency"):
            return None
        answer = self.crew[name].ask("parity", 300, id=workload.id, conditions=self.conditions.to_json())
        return None if answer["blind"] else float(answer["rms"])

    def turns(self, reference: Entrant, other: Entrant, seconds: float) -> list[float]:
        """log(how many times as fast as the reference) of each pair, per image."""
        entrants = self.crew.settled({"reference": reference, "other": other})
        done = pairs_of(self.crew.take_turns(entrants, Rounds(seconds, least=3), self.rng))
        images = {name: one.workload.batch for name, one in entrants.items()}
        return log_ratios(done, "reference", "other", images)

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
        pool = self.pool(task, base)
        with self.crew:
            self.start("fast", base)
            reference, error = self.enter("fast", base), self.error("fast", base)
            left = self.first_rung(found, base, reference, pool, begin + (0.7 if task == "loading" else 0.45) * seconds)
            allowed = None if error is None else ROUNDING * error + FLOOR
            left = self.accurate(found, left, allowed)
            rung = 2
            while len(left) > 1 and time.monotonic() - begin < 0.5 * seconds:
                left = self.later_rung(found, base, reference, left, rung)
                rung += 1
        found.winner = self.last_duel(found, base, left, error, begin + 0.65 * seconds)
        if task in ("inference", "training"):
            self.batches(found, begin + 0.8 * seconds)
        if task != "loading":
            self.worth(found, begin + seconds)
        found.results.sort(key=lambda one: (one.reason != "", -one.rung, -(one.ratio or 0.0)))
        found.seconds = time.monotonic() - begin
        return found

    def share_decoding(self, base: Workload) -> None:
        """Have the share of the GPU's JPEG engine measured and remembered; every loader here uses it from then on."""
        self.say("loading: the share of images that the JPEG engine decodes")
        self.start("hw_decoder_load", base)
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
            found = challengers(base.network, self.device, base.training)
        return [replace(base, configuration=one) for one in found]

    def first_rung(
        self, found: Tuning, base: Workload, reference: Entrant, pool: Sequence[Workload], deadline: float
    ) -> list[Result]:
        """A few turns of each, in one process; what the time does not reach is named."""
        name = "challengers"
        self.start(name, *pool)
        left: list[Result] = []
        # Building takes most of the time, and how long depends on what is compiled.
        longest: dict[str, float] = {}
        slower: list[Configuration] = []
        for number, workload in enumerate(pool):
            begin = time.monotonic()
            configuration = workload.configuration
            assert isinstance(configuration, Configuration | LoaderOutput)
            levers = configuration if isinstance(configuration, Configuration) else None
            if levers is not None and any(shares(levers, bad, base.network) for bad in slower):
                found.hopeless.append(levers.text)
                continue
            mode = levers.compile if levers is not None else ""
            if begin + longest.get(mode, 0.0) > deadline:
                found.untried.append(configuration.text)
                continue
            self.say(f"{base.task}: {configuration.text} ({number + 1} of {len(pool)})")
            try:
                entrant, error = self.enter(name, workload), self.error(name, workload)
                one = judged(Result(configuration, None, 1, error), self.turns(reference, entrant, FIRST))
                left.append(one)
                if levers is not None and distance(levers, base.network) == 1 and (one.ratio or 0.0) < HOPELESS:
                    slower.append(levers)
                self.crew.release({name: [workload]})
            except BenchError as failure:
                found.results.append(Result(configuration, None, 1, reason=failure.summary))
                # What a failed attempt left behind must not affect the next.
                self.crew.replace(name)
            longest[mode] = max(longest.get(mode, 0.0), time.monotonic() - begin)
        self.crew.end(name)
        if base.task == "inference":
            self.near = [one.configuration for one in left if (one.ratio or 0.0) > NEAR]
        return self.halved(found, left)

    def accurate(self, found: Tuning, left: Sequence[Result], allowed: float | None) -> list[Result]:
        """Those that do not trade accuracy for speed."""
        kept = []
        for one in left:
            if allowed is not None and one.error is not None and one.error > allowed:
                why = f"logits differ from plain fp32's by {one.error:.2g} of their spread; {allowed:.2g} is allowed"
                found.results.append(replace(one, reason=why))
            else:
                kept.append(one)
        return kept

    def later_rung(
        self, found: Tuning, base: Workload, reference: Entrant, left: Sequence[Result], rung: int
    ) -> list[Result]:
        """More turns, each in a fresh process."""
        again: list[Result] = []
        for one in left:
            name = one.configuration.text
            workload = replace(base, configuration=one.configuration)
            self.say(f"{base.task}: rung {rung}, {name}")
            self.start(name, workload)
            try:
                entrant = self.enter(name, workload)
                again.append(judged(replace(one, rung=rung), self.turns(reference, entrant, LATER)))
            except BenchError as error:
                found.results.append(replace(one, reason=error.summary))
            finally:
                self.crew.end(name)
        return self.halved(found, again)

    def halved(self, found: Tuning, left: Sequence[Result]) -> list[Result]:
        """The better half; the others' results are kept. One that is slower than the reference goes no further."""
        ranked = sorted(left, key=lambda one: -(one.ratio or 0.0))
        ahead = [one for one in ranked if (one.ratio or 0.0) > 1 - MARGIN]
        kept = ahead[: max(1, len(ranked) // 2)]
        found.results += [one for one in ranked if one not in kept]
        return kept

    def last_duel(
        self, found: Tuning, base: Workload, left: Sequence[Result], error: float | None, deadline: float
    ) -> Winner:
        """`fast`, unless the last challenger is shown to be faster in pairs of fresh processes."""
        kept = Winner(
            base.subject,
            base.task,
            base.configuration.text,
            base.batch,
            1.0,
            None,
            None,
            error,
            fields(self.machine),
            utc_now(),
        )
        if not left:
            tried = any(one.ratio is not None for one in found.results)
            found.verdict = (
                "no other configuration came near fast" if tried else "nothing else was measured; fast stays"
            )
            return kept
        best = left[0]
        fast, name = base.configuration.text, best.configuration.text
        sides = {fast: base, name: replace(base, configuration=best.configuration)}
        needs = Needs.of(sides.values())
        blocks: list[list[float]] = []
        longest = 0.0
        with self.crew:
            while len(blocks) < BLOCKS and (not blocks or time.monotonic() + longest < deadline):
                begin = time.monotonic()
                self.say(f"{base.task}: last duel of {name}, block {len(blocks) + 1}")
                try:
                    self.crew.start(self.rng.sample(list(sides), 2), needs, homes(sides))
                    entrants = [self.enter(side, workload) for side, workload in sides.items()]
                    blocks.append(self.turns(entrants[0], entrants[1], LAST))
                    self.crew.end_block()
                except BenchError as failure:
                    found.verdict = f"{name} failed in the last duel: {failure.summary}"
                    found.results.append(replace(best, reason=failure.summary))
                    return kept
                longest = max(longest, time.monotonic() - begin)
        ratio = ratio_of(name, fast, blocks)
        found.results += [replace(best, ratio=ratio.estimate), *left[1:]]
        shown = compare_verdict(ratio, "higher", MARGIN)
        found.verdict = duel_words(name, fast, ratio, shown)
        if shown != BETTER:
            return kept
        return replace(
            kept, configuration=name, ratio=ratio.estimate or 1.0, low=ratio.low, high=ratio.high,
            error=best.error,
        )  # fmt: skip

    def batches(self, found: Tuning, deadline: float) -> None:
        """The winner at other batches, per image, up to the largest that fits or gains nothing."""
        assert found.winner is not None
        base = self.base[found.task]
        start = replace(base, configuration=Configuration.from_text(found.winner.configuration))
        name = "other batches"
        best = (1.0, start.batch)
        with self.crew:
            self.start("batch", start)
            reference = self.enter("batch", start)
            found.batches.append((start.batch, None, 1.0, "where the search began"))
            self.start(name, start)
            for ladder in (_up(start.batch), _down(start.batch)):
                behind = 0
                longest = 0.0
                for batch in ladder:
                    begin = time.monotonic()
                    if begin + longest > deadline or behind == 2:
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
                    longest = max(longest, time.monotonic() - begin)
        found.batches.sort()
        found.winner = replace(found.winner, batch=best[1])

    def worth(self, found: Tuning, deadline: float) -> None:
        """Each lever of the winner put back, one at a time, in turns with the winner.

        Where `fast` won, the first rungs have measured most of them already.
        """
        assert found.winner is not None
        training = found.task == "training"
        winner = Configuration.from_text(found.winner.configuration)
        base = replace(self.base[found.task], configuration=winner)
        longest = 0.0
        same = winner.text == found.reference
        known = {one.configuration: one for one in found.results if one.ratio and same}
        wanted = one_off(winner, self.device, training)
        for lever, changed in wanted:
            if changed in known:
                found.levers.append(inverse(lever, known[changed]))
        wanted = [pair for pair in wanted if pair[1] not in known]
        if not wanted:
            return
        with self.crew:
            self.start("winner", base)
            reference = self.enter("winner", base)
            for lever, changed in wanted:
                begin = time.monotonic()
                if begin + longest > deadline:
                    found.levers.append(Lever(lever, changed.text, None, None, None, "no time was left"))
                    continue
                self.say(f"{found.task}: what {lever} is worth")
                workload = replace(base, configuration=changed)
                self.start(changed.text, workload)
                try:
                    entrant = self.enter(changed.text, workload)
                    logs = [-x for x in self.turns(reference, entrant, LATER)]
                    ratio = ratio_of("with", "without", [logs])
                    found.levers.append(Lever(lever, changed.text, ratio.estimate, ratio.low, ratio.high))
                except BenchError as error:
                    found.levers.append(Lever(lever, changed.text, None, None, None, error.summary))
                finally:
                    self.crew.end(changed.text)
                longest = max(longest, time.monotonic() - begin)


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
