"""A judgement as tables: noise, false alarms, power, other tools' rules, intervals of comparisons."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from bench.selfcheck.resample import (
    AS_USED,
    INTERVAL_LEVEL,
    RANDOM,
    RULE_LEVELS,
    SAME_TIME,
    Coverage,
    Judgement,
    Noise,
    Tally,
    lower_bound,
)
from results.tables import WIDTH, Cell, render, to_json
from results.verdict import CLEAN, LOOKS, REGRESSED, UNSURE

FORMATS = ("text", "markdown", "json")

EXPLANATION = (
    "Identical code on both sides: every REGRESSED is a false alarm, and every IMPROVED is false as well. A decision "
    "is a stretch of recorded blocks, played as the check plays it: what its first run finds (by one run) counts only "
    "if other blocks of the recording say the same. So REGRESSED is what both runs got wrong together, which is what "
    "the check promises, and drift that misleads both is in it. In each block the sides change names at random. That "
    "makes neither side slower than the other, as the rule assumes: the table says whether the rule errs as rarely as "
    "it should on such noise, and cannot show an instrument that favours one side. Bounds are one-sided, 95 % "
    "(Clopper-Pearson), as if decisions were independent; those of one trace share blocks, so the bound is too narrow."
)
KEPT = (
    "The same without drawing names: in all blocks of a decision the sides are called what they were called when they "
    "were recorded, or the other way round. If the instrument favours one side, always or for a while, identical code "
    "is REGRESSED here and not in the table above. Few such decisions differ from each other. Disjoint ones use each "
    "block once, and their bound is the honest one: wide, because a recording holds few. Workloads of one block still "
    "share a pair of processes and a moment."
)
INTERVALS = (
    "The 95 % interval of bench compare, from so many neighbouring blocks of identical code: how often it held 1 "
    f"(covered; 93 to 97 % is the aim), and how often the words were wrong (better or worse). At +{INTERVAL_LEVEL:.0%} "
    "head was made so much slower: found is worse, missed is better or same, anything else is unsure. Names as in the "
    "tables of false alarms: drawn at random they test the rule, as recorded the instrument as well."
)
NOISE = (
    "How much equal code scatters, as standard deviations. A pair is one slice of each side, in random order (by the "
    "median absolute deviation within a block); a block is the median of its pairs, in processes of its own; the mean "
    "is how much slower head seemed over all blocks."
)
POWER = (
    "Head's times multiplied. Found: REGRESSED and confirmed. A slowdown of 5 % called CLEAN must not happen. One that "
    "is no larger than the margin (2 % of device time, 3 % of loaders and end to end) is not meant to be found."
)
KEPT_POWER = "The same with names as recorded, and swapped: what an instrument that favours one side can hide."
OTHERS = (
    "Other tools' rules on the same times: base's slices of some processes, then head's of the next ones. As used: as "
    "many processes a side as the tool takes. Same time: as many as our median decision has blocks. Ours is after "
    "confirmation, which takes time only when it is needed."
)


T = TypeVar("T")
Columns = Mapping[str, Callable[[T], Cell]]
"""Header -> the cell of a row."""


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


NOISE_COLUMNS: Columns[Noise] = {
    "load": lambda noise: noise.load,
    "workload": lambda noise: noise.workload,
    "pairs a block": lambda noise: f"{noise.pairs:g}",
    "scatter of a pair": lambda noise: _percent(noise.pair),
    "scatter of a block": lambda noise: _percent(noise.block),
    "mean": lambda noise: _percent(noise.mean),
}
ALARM_COLUMNS: Columns[Tally] = {
    "load": lambda tally: tally.load,
    "workload": lambda tally: tally.workload,
    "blocks": lambda tally: tally.blocks,
    "decisions": lambda tally: tally.decisions,
    "REGRESSED": lambda tally: tally.regressed,
    "at most": lambda tally: _percent(tally.bound),
    "REGRESSED by one run": lambda tally: tally.alarms,
    "IMPROVED": lambda tally: tally.improved,
    "IMPROVED by one run": lambda tally: tally.better_alarms,
    "UNSURE": lambda tally: _percent(tally.share(UNSURE)),
    "CLEAN": lambda tally: _percent(tally.share(CLEAN)),
    "median blocks": lambda tally: f"{tally.used:g}",
}
KEPT_COLUMNS: Columns[Tally] = {
    "load": lambda tally: tally.load,
    "workload": lambda tally: tally.workload,
    "names": lambda tally: tally.names,
    "decisions": lambda tally: tally.decisions,
    "REGRESSED": lambda tally: tally.regressed,
    "REGRESSED by one run": lambda tally: tally.alarms,
    "CLEAN": lambda tally: _percent(tally.share(CLEAN)),
    "disjoint": lambda tally: f"{tally.disjoint_regressed} of {tally.disjoint}",
    "at most (disjoint)": lambda tally: _percent(tally.disjoint_bound),
}
POWER_COLUMNS: Columns[Tally] = {
    "load": lambda tally: tally.load,
    "workload": lambda tally: tally.workload,
    "slower by": lambda tally: f"{tally.level:.0%}",
    "decisions": lambda tally: tally.decisions,
    "found": lambda tally: _percent(tally.share(REGRESSED)),
    "at least": lambda tally: _percent(lower_bound(tally.regressed, tally.decisions)),
    "UNSURE": lambda tally: _percent(tally.share(UNSURE)),
    "CLEAN": lambda tally: tally.verdicts.get(CLEAN, 0),
    "median blocks": lambda tally: f"{tally.used:g}",
    "disjoint found": lambda tally: f"{tally.disjoint_regressed} of {tally.disjoint}",
}
KEPT_POWER_COLUMNS: Columns[Tally] = {
    "load": lambda tally: tally.load,
    "workload": lambda tally: tally.workload,
    "names": lambda tally: tally.names,
    **{name: POWER_COLUMNS[name] for name in ("slower by", "found", "UNSURE", "CLEAN", "disjoint found")},
}
COVERAGE_COLUMNS: Columns[Coverage] = {
    "load": lambda coverage: coverage.load,
    "workload": lambda coverage: coverage.workload,
    "names": lambda coverage: coverage.names,
    "blocks": lambda coverage: coverage.size,
    "intervals": lambda coverage: coverage.intervals,
    "covered": lambda coverage: f"{100 * coverage.covered / coverage.intervals:.1f} %",
    "half width": lambda coverage: _percent(coverage.width),
    "better or worse": lambda coverage: coverage.wrong,
    f"found at +{INTERVAL_LEVEL:.0%}": lambda coverage: f"{100 * coverage.found / coverage.intervals:.1f} %",
    f"missed at +{INTERVAL_LEVEL:.0%}": lambda coverage: coverage.missed,
}
RULE_HEADERS = (
    "load",
    "rule",
    "span",
    "processes a side",
    "runs",
    "false alarms",
    *(f"found at +{level:.0%}" for level in RULE_LEVELS if level),
)


def report(judgement: Judgement, format: str = "text") -> str:
    """The whole judgement. Raises RecordError for an unknown format."""
    if format == "json":
        return to_json(judgement.to_json())
    same, kept, slower, kept_slower = (
        [tally for tally in judgement.ours if (tally.level > 0) == changed and (tally.names == RANDOM) == drawn]
        for changed in (False, True)
        for drawn in (True, False)
    )
    *first, last = map(str, LOOKS[: judgement.looks])
    looks = f" Looks after {', '.join(first)}{' and ' if first else ''}{last} blocks."
    bullet = "- " if format == "markdown" else ""
    parts = [
        _section("Noise", NOISE, _table(NOISE_COLUMNS, judgement.scatter, format), format),
        _section("False alarms", EXPLANATION + looks, _table(ALARM_COLUMNS, same, format), format),
        _section("False alarms with names kept", KEPT, _table(KEPT_COLUMNS, kept, format), format),
        _section("Power", POWER, _table(POWER_COLUMNS, slower, format), format),
        _section("Power with names kept", KEPT_POWER, _table(KEPT_POWER_COLUMNS, kept_slower, format), format),
        _section("Beside other rules", OTHERS, render(RULE_HEADERS, _rule_rows(judgement), format), format),
        _section("Intervals", INTERVALS, _table(COVERAGE_COLUMNS, judgement.intervals, format), format),
        "\n".join(bullet + note for note in judgement.notes) + "\n",
    ]
    return "\n".join(parts)


def _section(title: str, text: str, table: str, format: str) -> str:
    if format == "markdown":
        return f"## {title}\n\n{text}\n\n{table}"
    return f"{title}\n\n{textwrap.fill(text, WIDTH)}\n\n{table}"


def _table(columns: Columns[T], rows: Sequence[T], format: str) -> str:
    return render(list(columns), [[cell(row) for cell in columns.values()] for row in rows], format)


def _rule_rows(judgement: Judgement) -> list[list[Cell]]:
    """Over all workloads, a row for each load, rule and span; ours first."""
    rows: list[list[Cell]] = []
    ours = [tally for tally in judgement.ours if tally.workload == "all" and tally.names == RANDOM]
    others = [tally for tally in judgement.others if tally.workload == "all"]
    for load in dict.fromkeys(tally.load for tally in ours):
        check = {tally.level: tally for tally in ours if tally.load == load}
        shares = [_percent(check[level].share(REGRESSED)) for level in RULE_LEVELS]
        rows.append([load, "bench check", "", f"{check[0.0].used:g}", check[0.0].decisions, *shares])
        for rule in dict.fromkeys(tally.rule for tally in others):
            for span in (AS_USED, SAME_TIME):
                part = {t.level: t for t in others if (t.load, t.rule, t.span) == (load, rule, span)}
                if part:
                    shares = [_percent(part[level].share) for level in RULE_LEVELS]
                    rows.append([load, rule, span, f"{part[0.0].processes:g}", part[0.0].runs, *shares])
    return rows
