"""What was found, as tables: false alarms, power, and other tools' rules beside ours."""

import textwrap
from collections.abc import Sequence

from bench.selfcheck.resample import AS_USED, RULE_LEVELS, SAME_TIME, Found, Judgement, Noise, Tally, lower_bound
from results.tables import WIDTH, Cell, render, to_json
from results.verdict import CLEAN, IMPROVED, LOOKS, REGRESSED, UNSURE

FORMATS = ("text", "markdown", "json")

EXPLANATION = (
    "Identical code on both sides: every REGRESSED is a false alarm. A decision is a stretch of recorded blocks, in "
    "each of which the sides change names at random, played as the check plays it, a REGRESSED confirmed by other "
    "blocks. Bounds are one-sided, 95 % (Clopper-Pearson). Decisions drawn from one trace share blocks, so their bound "
    "is too narrow; the bound of disjoint decisions, each block used once and as it was, does not have that flaw. "
    "Workloads of one block still share a pair of processes and a moment."
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
OTHERS = (
    "Other tools' rules on the same times: base's slices of some processes, then head's of the next ones. As used: as "
    "many processes a side as the tool takes. Same time: as many as our median decision has blocks. Ours is after "
    "confirmation, which takes time only when it is needed."
)


def report(found: Judgement, format: str = "text") -> str:
    """The whole judgement. Raises RecordError for an unknown format."""
    if format == "json":
        return to_json(found.to_json())
    same = [one for one in found.ours if one.level == 0]
    slower = [one for one in found.ours if one.level > 0]
    looks = f" Looks after {' and '.join(map(str, LOOKS[: found.looks]))} blocks."
    parts = [
        _headed("Noise", NOISE, NOISE_HEADERS, [_noise_row(one) for one in found.scatter], format),
        _headed("False alarms", EXPLANATION + looks, ALARM_HEADERS, [_alarm_row(one) for one in same], format),
        _headed("Power", POWER, POWER_HEADERS, [_power_row(one) for one in slower], format),
        _headed("Beside other rules", OTHERS, OTHER_HEADERS, _other_rows(found), format),
        "\n".join(("- " if format == "markdown" else "") + note for note in found.notes) + "\n",
    ]
    return "\n".join(parts)


NOISE_HEADERS = ("load", "workload", "pairs a block", "scatter of a pair", "scatter of a block", "mean")
ALARM_HEADERS = (
    "load",
    "workload",
    "blocks",
    "decisions",
    "REGRESSED",
    "at most",
    "before confirmation",
    "IMPROVED",
    "UNSURE",
    "CLEAN",
    "median blocks",
    "disjoint",
    "at most (disjoint)",
)
POWER_HEADERS = (
    "load",
    "workload",
    "slower by",
    "decisions",
    "found",
    "at least",
    "UNSURE",
    "CLEAN",
    "median blocks",
    "disjoint found",
)
OTHER_HEADERS = (
    "load",
    "rule",
    "span",
    "processes a side",
    "runs",
    "false alarms",
    *(f"found at +{level:.0%}" for level in RULE_LEVELS if level),
)


def _headed(title: str, text: str, headers: Sequence[str], rows: Sequence[Sequence[Cell]], format: str) -> str:
    head = f"## {title}\n\n{text}\n\n" if format == "markdown" else f"{title}\n\n{textwrap.fill(text, WIDTH)}\n\n"
    return head + render(headers, rows, format)


def _noise_row(one: Noise) -> list[Cell]:
    return [one.load, one.workload, f"{one.pairs:g}", *map(_percent, (one.pair, one.block, one.mean))]


def _alarm_row(one: Tally) -> list[Cell]:
    return [
        one.load,
        one.workload,
        one.blocks,
        one.decisions,
        one.verdicts.get(REGRESSED, 0),
        _percent(one.bound),
        one.alarms,
        one.verdicts.get(IMPROVED, 0),
        _percent(one.share(UNSURE)),
        _percent(one.share(CLEAN)),
        f"{one.used:g}",
        f"{one.disjoint_regressed} of {one.disjoint}",
        _percent(one.disjoint_bound),
    ]


def _power_row(one: Tally) -> list[Cell]:
    hits = one.verdicts.get(REGRESSED, 0)
    return [
        one.load,
        one.workload,
        f"{one.level:.0%}",
        one.decisions,
        _percent(hits / one.decisions),
        _percent(lower_bound(hits, one.decisions)),
        _percent(one.share(UNSURE)),
        one.verdicts.get(CLEAN, 0),
        f"{one.used:g}",
        f"{one.disjoint_regressed} of {one.disjoint}",
    ]


def _other_rows(found: Judgement) -> list[list[Cell]]:
    """Over all workloads, a row for each load, rule and span; ours first."""
    rows: list[list[Cell]] = []
    ours = [one for one in found.ours if one.workload == "all"]
    others = [one for one in found.others if one.workload == "all"]
    for load in dict.fromkeys(one.load for one in ours):
        mine = {one.level: one for one in ours if one.load == load}
        same = mine[0.0]
        rows.append(
            [
                load,
                "bench check",
                "",
                f"{same.used:g}",
                same.decisions,
                *(_percent(mine[level].share(REGRESSED)) for level in RULE_LEVELS),
            ]
        )
        for rule in dict.fromkeys(one.rule for one in others):
            for span in (AS_USED, SAME_TIME):
                part = [one for one in others if (one.load, one.rule, one.span) == (load, rule, span)]
                if part:
                    rows.append([load, rule, span, f"{part[0].processes:g}", part[0].runs, *_shares(part)])
    return rows


def _shares(part: Sequence[Found]) -> list[Cell]:
    by_level = {one.level: one for one in part}
    return [_percent(by_level[level].found / by_level[level].runs) for level in RULE_LEVELS]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
