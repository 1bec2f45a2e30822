"""A `bench check` in sentences: its verdict, timed workloads, counted facts and self-test."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from results.gate import CHANGED, ERROR, GRAVITY, NEW, VANISHED, VOID, CheckReport, Fact, Row, SelfTest, Side
from results.tables import percent, plural, signed_percent
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE, Decision

DETAIL_LINES = 40
"""Lines of one fact's difference in the forms that people read; JSON holds all."""
DIFF_LINES = 400
"""The same of all facts together: GitHub refuses a summary of more than 1 MiB."""


@dataclass(frozen=True)
class Markup:
    """How a form writes what it did not word itself: `name` an id, `text` a reason, `strong` the verdict."""

    name: Callable[[str], str]
    text: Callable[[str], str]
    strong: Callable[[str], str] = str


def one_line(text: str) -> str:
    """Without line ends and control characters, which a table, an annotation or a terminal would obey."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]", "\ufffd", " ".join(text.split()))


def _code(text: str) -> str:
    text = one_line(text)
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>&#|~])", r"\\\1", one_line(text))


PLAIN = Markup(one_line, one_line)
MARKDOWN = Markup(_code, _escaped, lambda word: f"**{word}**")


def verdict_line(report: CheckReport, markup: Markup = PLAIN) -> str:
    """The outcome in one line: the gravest finding in full, all others counted."""
    verdict, test = report.verdict, report.self_test
    grave = [row for row in report.rows if row.verdict == verdict and verdict not in report.allow]
    if verdict == VOID and test is not None:
        lead = f"{_void(test, markup)}, so no time here counts; check again on a quieter machine"
    elif verdict == CHANGED:
        lead = _first([fact_sentence(fact, markup) for fact in report.changed], "fact")
    elif verdict == UNSURE and not grave and test is not None:
        lead = self_test_sentence(test, markup)
    elif verdict == UNSURE and len(grave) > 2 and all(row.reason is None and _visible(row) for row in grave):
        seen = [visible for row in grave if (visible := _visible(row)) is not None]
        lead = (
            f"too close to call for {len(grave)} of {plural(len(report.rows), 'workload')}; only changes of "
            f"{percent(min(seen))} (at best) to {percent(max(seen))} (at worst) or more could have shown"
        )
    elif grave and verdict != CLEAN:
        # The whole of a long reason stands below the table.
        brief = [replace(row, reason=row.reason and textwrap.shorten(row.reason, 160)) for row in grave]
        lead = _first([row_sentence(row, markup) for row in brief], "workload")
    else:
        lead = _nothing_wrong(report)
    # A sentence of Decision's begins with its verdict.
    return "; ".join([f"{markup.strong(verdict)}: {lead.removeprefix(f'{verdict} ')}", *_others(report)])


def row_sentence(row: Row, markup: Markup = PLAIN) -> str:
    """One timed workload in words."""
    name = markup.name(row.workload)
    why = "" if row.reason is None else f"; {markup.text(row.reason)}"
    if row.verdict == VANISHED:
        return f"{name} is in the base but not in the head{why}"
    if row.verdict == NEW:
        return f"{name} is new: the base has nothing to compare it with{why}"
    decision = row.decision
    if row.verdict == ERROR or decision is None:
        return f"{name} could not be measured{why.replace('; ', ': ', 1) or ', for no known reason'}"
    if row.verdict in (REGRESSED, IMPROVED):
        return f"{name} takes {_change(decision)}{_confirmation(row)}{why}"
    # Where two runs disagree the first still says REGRESSED or IMPROVED, and the row does not.
    return replace(decision, verdict=row.verdict).sentence(name, row.seconds_per_block) + why


def fact_sentence(fact: Fact, markup: Markup = PLAIN) -> str:
    """One counted fact in words."""
    name = f"{markup.text(fact.name)} of {markup.name(fact.workload)}"
    if fact.same:
        return f"{name} is the same"
    if fact.base != fact.head:
        return f"{name}: {markup.text(_shown(fact.base))} in the base, {markup.text(_shown(fact.head))} in the head"
    return f"{name} differs" + (f": {markup.text(fact.detail[0].strip())}" if fact.detail else "")


def self_test_sentence(test: SelfTest, markup: Markup = PLAIN) -> str:
    """What the instrument answered to the two questions whose answers are known."""
    name = markup.name(test.workload)
    if test.faults:
        return f"self-test FAILED on {name}: {'; '.join(markup.text(fault) for fault in test.faults)}"
    asked = [
        f"{what} is {answer.verdict} ({signed_percent(answer.estimate - 1)}, {plural(answer.blocks, 'block')})"
        for what, answer in (("base against base", test.same), ("base slowed by 5 % on purpose", test.slowed))
        if answer is not None
    ]
    answers = ", ".join(asked) or "nothing was asked"
    if any(answer is not None and answer.verdict == UNSURE for answer in (test.same, test.slowed)):
        return f"self-test inconclusive on {name}: {answers}; this machine is too noisy"
    return f"self-test passed on {name}: {answers}"


def facts_sentence(report: CheckReport) -> str:
    """How many facts of how many workloads are the same, or how many are not."""
    facts, differ = report.facts, sum(not fact.same for fact in report.facts)
    if not facts:
        return "nothing was counted"
    count = f"{plural(len(facts), 'fact')} of {plural(len({fact.workload for fact in facts}), 'workload')}"
    if differ:
        allowed = differ - len(report.changed)
        said = f"{differ} of {count} {'differs' if differ == 1 else 'differ'}"
        return f"{said} ({allowed} allowed)" if allowed else said
    # An output within its tolerance is the same, but not to the bit.
    how = "exactly" if all(fact.base == fact.head for fact in facts) else "(outputs within their tolerance)"
    return f"{count} {'agrees' if len(facts) == 1 else 'agree'} {how}"


def side_sentence(side: Side, markup: Markup = PLAIN) -> str:
    """ "base main, commit 0123456789", dirty trees marked."""
    parts = [f"{side.name} {markup.name(side.ref)}" if side.ref else f"{side.name} working tree"]
    if side.commit and not side.commit.startswith(side.ref or " "):
        parts.append(f"commit {one_line(side.commit)[:10]}")
    return ", ".join(parts) + (" with uncommitted changes" if side.dirty else "")


def diff_lines(facts: Iterable[Fact], allow: Sequence[str] = ()) -> list[str]:
    """The facts that differ in the notation of a diff: a line @@ for each, then -, + and its details."""
    lines: list[str] = []
    for fact in facts:
        if fact.same:
            continue
        allowed = " (allowed)" if fact.name in allow else ""
        lines.append(f"@@ {one_line(fact.workload)} {one_line(fact.name)} @@{allowed}")
        base, head = _shown(fact.base), _shown(fact.head)
        if fact.base != fact.head:
            lines += [f"-{one_line(base)}", f"+{one_line(head)}"]
        details = [line for text in fact.detail for line in text.splitlines() if line.strip() != f"{base} -> {head}"]
        lines += _cut([_detail(line) for line in details], DETAIL_LINES)
    return _cut(lines, DIFF_LINES)


def _cut(lines: list[str], most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    return [*lines[:most], f"  ... and {plural(len(lines) - most, 'more line')}; JSON holds all"]


def _detail(line: str) -> str:
    body = one_line(line)
    return f"{body[0]} {body[1:].strip()}" if body[:1] in ("+", "-") else f"  {body}"


def _shown(value: int | float | str | None) -> str:
    """One side of a fact."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value


def _visible(row: Row) -> float | None:
    return None if row.decision is None else row.decision.visible


def _first(sentences: Sequence[str], noun: str, most: int = 2) -> str:
    more = len(sentences) - most
    return "; ".join([*sentences[:most], *([f"and {plural(more, f'more {noun}')}"] if more > 0 else [])])


def _void(test: SelfTest, markup: Markup) -> str:
    wrong: list[str] = []
    if test.same is not None and test.same.verdict not in (CLEAN, UNSURE):
        wrong.append(f"base against itself was judged {test.same.verdict}")
    if test.slowed is not None and test.slowed.verdict not in (REGRESSED, UNSURE):
        wrong.append(f"a slowdown of 5 % on purpose was judged {test.slowed.verdict}")
    return f"the self-test failed ({' and '.join(wrong) or '; '.join(markup.text(fault) for fault in test.faults)})"


def _nothing_wrong(report: CheckReport) -> str:
    clean = [row.decision.margin for row in report.rows if row.verdict == CLEAN and row.decision is not None]
    if clean:
        within = " to ".join(f"{100 * margin:.2g}" for margin in dict.fromkeys((min(clean), max(clean))))
        takes = "takes" if len(clean) == 1 else "take"
        return f"{plural(len(clean), 'workload')} {takes} the same time, within {within} %"
    if report.rows:
        return "nothing that fails"
    return f"{facts_sentence(report)}; nothing was timed" if report.facts else "nothing was counted, nothing was timed"


def _others(report: CheckReport) -> Iterator[str]:
    """What the lead of the verdict's line leaves out."""
    verdict = report.verdict
    if verdict != VOID and report.rows:
        allowed = [row for row in report.rows if row.verdict in report.allow]
        rest = [row for row in report.rows if row.verdict != verdict and row not in allowed]
        counts = [(sum(row.verdict == v for row in rest), v.lower()) for v in GRAVITY]
        parts = [f"{count} {word}" for count, word in counts if count]
        if parts:
            number, word = parts[0].split(" ", 1)
            other = "workload" if verdict == CHANGED or len(rest) == len(report.rows) else "other workload"
            yield ", ".join([f"{plural(int(number), other)} {word}", *parts[1:]])
        if allowed:
            counted = ", ".join(f"{sum(r.verdict == v for r in allowed)} {v}" for v in GRAVITY if v in report.allow)
            yield f"allowed: {counted}"
    if report.facts and (report.rows or verdict != CLEAN) and verdict != CHANGED:
        yield facts_sentence(report)


def _change(decision: Decision) -> str:
    sign, word = (1, "longer") if decision.estimate >= 1 else (-1, "less time")
    text = f"{100 * sign * (decision.estimate - 1):.1f} % {word}"
    if decision.clean_low is None or decision.clean_high is None:
        return text
    low, high = sorted(100 * sign * (bound - 1) for bound in (decision.clean_low, decision.clean_high))
    return f"{text} ({low:.1f} to {high:.1f} %)"


def _confirmation(row: Row) -> str:
    return ", not measured again" if row.again is None else ", confirmed by a second run"
