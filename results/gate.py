"""The outcome of a `bench check`: counted facts, timed rows, the self-test, and the verdict.

Only the shape, its JSON form, and the rules that turn rows into a verdict and an exit code. gate_words.py says it in
sentences, gate_report.py and junit.py show it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from results.reading import read
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE, Decision

CHANGED = "CHANGED"
"""A counted fact, or the output, is not what it was."""
VANISHED = "VANISHED"
"""The base has the workload and the head does not."""
NEW = "NEW"
"""The head has the workload and the base does not."""
ERROR = "ERROR"
"""A side gave no number."""
VOID = "VOID"
"""The instrument failed its own test, so nothing it said counts."""


FACTS = (
    *("parameters", "macs", "activations", "state_dict", "operators", "saved_bytes"),
    *("graphs", "graph_breaks", "compiled_kernels", "recompiles", "output"),
)
"""Names that a `Fact` may have."""


@dataclass(frozen=True)
class Side:
    """One of the two trees.

    Attributes:
        name: "base" or "head".
        ref: as the user wrote it; "" for the working tree, a file's name for a stored run.
        commit: its full hash, None outside a repository.
        dirty: whether files differ from that commit.
    """

    name: str
    ref: str
    commit: str | None
    dirty: bool = False


@dataclass(frozen=True)
class Fact:
    """Something without noise, on both sides.

    Attributes:
        workload: its id.
        name: "parameters", "operators", "state_dict", "output", ...
        base, head: the numbers; for a set of things or an output texts.
        same: whether they agree (an output within its tolerance).
        detail: the difference, a line each; empty where they agree.
    """

    workload: str
    name: str
    base: int | float | str | None
    head: int | float | str | None
    same: bool
    detail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One timed workload.

    Attributes:
        workload: its id.
        verdict: REGRESSED, IMPROVED, CLEAN, UNSURE, VANISHED, NEW or ERROR.
        decision: of the run that found it, None without a number.
        again: of the second run, of what was REGRESSED or IMPROVED.
        base_seconds, head_seconds: median seconds a step over the blocks.
        images: images a step.
        seconds_per_block: what another block of this workload costs, both sides, in seconds.
        reason: why there is no number, or what made it doubtful.
        blocks: raw seconds a step: for each block its rounds, each {"base": s, "head": s}.
        again_blocks: the same of the second run.
    """

    workload: str
    verdict: str
    decision: Decision | None = None
    again: Decision | None = None
    base_seconds: float | None = None
    head_seconds: float | None = None
    images: int = 0
    seconds_per_block: float | None = None
    reason: str | None = None
    blocks: tuple[tuple[dict[str, float], ...], ...] = ()
    again_blocks: tuple[tuple[dict[str, float], ...], ...] = ()


@dataclass(frozen=True)
class SelfTest:
    """The instrument's answers to two questions whose answers are known.

    Attributes:
        workload: its id.
        same: base against base, which is CLEAN; None without a number.
        slowed: base slowed by 5 % against base, which is REGRESSED.
        faults: wrong answers, a text each; an UNSURE is none.
    """

    workload: str
    same: Decision | None
    slowed: Decision | None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """A whole `bench check`.

    Attributes:
        base, head: the trees.
        facts: everything counted, agreeing or not.
        rows: everything timed; empty with --exact.
        self_test: None with --exact.
        notes: what a reader must know: foreign load, a dirty tree, what was not measured.
        allow: verdicts and fact names that may not fail the check ("VANISHED", "state_dict", ...).
        seconds: how long it took.
        machine: as in a record.
        created: when it ended, ISO 8601, UTC.
        fail_on_unsure: whether UNSURE was asked to fail.
    """

    base: Side
    head: Side
    facts: tuple[Fact, ...]
    rows: tuple[Row, ...]
    self_test: SelfTest | None = None
    notes: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    fail_on_unsure: bool = False

    @property
    def changed(self) -> tuple[Fact, ...]:
        """The facts that differ and were not allowed to."""
        return tuple(fact for fact in self.facts if not fact.same and fact.name not in self.allow)

    @property
    def verdict(self) -> str:
        """Of the whole: the gravest of GRAVITY that is there."""
        if self.self_test is not None and self.self_test.faults:
            return VOID
        said = {row.verdict for row in self.rows if row.verdict not in self.allow}
        if self.changed:
            said.add(CHANGED)
        # An instrument that could not find 5 % has not shown that nothing is there.
        tests = (self.self_test.same, self.self_test.slowed) if self.self_test is not None else ()
        if any(decision is not None and decision.verdict == UNSURE for decision in tests):
            said.add(UNSURE)
        return next((verdict for verdict in GRAVITY if verdict in said), CLEAN)

    @property
    def only_noise(self) -> bool:
        """Whether there is no verdict for the instrument's answers alone, and nothing else failed.

        A busy machine can make it so. Facts, workloads that vanish and sides that crash do not depend on how busy it
        is, and what was confirmed to be slower is no noise either.
        """
        grave = {ERROR, VANISHED} - set(self.allow)
        return self.verdict == VOID and not self.changed and not any(row.verdict in grave for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 fine (also UNSURE and NEW: listed, but no proof), 1 worse, 2 no answer."""
        verdict = self.verdict
        return 1 if verdict == UNSURE and self.fail_on_unsure else EXIT_CODES[verdict]

    def to_json(self) -> dict[str, Any]:
        """Plain types, with what follows from them (`DERIVED`)."""
        return {**{name: getattr(self, name) for name in DERIVED}, **asdict(self)}

    @classmethod
    def from_json(cls, data: object, where: str = "check") -> CheckReport:
        """The inverse of to_json. Raises RecordError on unknown, missing and mistyped keys, naming them."""
        return read(cls, data, where, ignore=DERIVED)


DERIVED = ("verdict", "exit_code", "only_noise")
"""Properties of a report that its JSON holds for other programs."""


EXIT_CODES = {
    **dict.fromkeys((VOID, ERROR), 2),
    **dict.fromkeys((REGRESSED, CHANGED, VANISHED), 1),
    **dict.fromkeys((UNSURE, NEW, IMPROVED, CLEAN), 0),
}
"""Verdict -> what the process exits with, the gravest first."""
GRAVITY = tuple(EXIT_CODES)


CONFIRMED = (REGRESSED, IMPROVED)
"""Verdicts that stand only if a second run gives the same."""


def row_verdict(first: Decision, again: Decision | None) -> tuple[str, str | None]:
    """Verdict of a row and, where two runs disagree, why it is UNSURE."""
    if first.verdict not in CONFIRMED or again is None or again.verdict == first.verdict:
        return first.verdict, None
    return UNSURE, f"the first run said {first.verdict}, the second {again.verdict}"
