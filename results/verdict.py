"""Whether two things differ by enough to matter: margins, the looks of a check, and the words for it.

Pure functions. `look` decides the sequential test that gates a commit (two versions of the same thing, log time
ratios of blocks, at each of `LOOKS`); `compare_verdict` and `sentence` describe two different things side by side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from results.errors import RecordError
from results.record import Metric, Ratio
from results.stats import hodges_lehmann, rank_sum_bounds, shift, signed_rank_bounds, supported_decimals
from results.tables import duration, percent, plural, signed_percent

REGRESSED = "REGRESSED"
IMPROVED = "IMPROVED"
CLEAN = "CLEAN"
UNSURE = "UNSURE"

LOOKS = (8, 16, 24, 32)
"""How many blocks there are when the test may stop.

Of the designs that were simulated (other looks and errors, and betting on signs, which may stop after any block) this
is the simplest of the best. Looks closer together save a block or two and are fooled more often by drift, which lasts
for a few blocks; fewer looks find less. Betting finds fewer small changes and says CLEAN less often.
"""

ALPHAS = (0.01,) * len(LOOKS)
"""One-sided error of each look, where a second run with the same looks has to agree.

All looks of one run together err in at most 4 % of cases, two runs that know nothing of each other in 0.2 %. What is
promised is the rate of both runs as it is measured, since drift of the machine may mislead both. An estimate beyond the
margin is asked for besides, so that most blocks that err say nothing.
"""

STRICT_ALPHAS = (0.001,) * len(LOOKS)
"""The same where no second run is a witness: it is left out, or compared with the same blocks as the first.

8 pairs reach no more than 2**-8, so that the first look at pairs says CLEAN or nothing.
"""

CLEAN_ALPHA = 0.01

DEVICE_MARGIN = 0.02
WHOLE_MARGIN = 0.03
BYTES_MARGIN = 0.01
# What a step of hundreds takes is decided by what else the machine did: nobody chooses a network by 2 % of that.
TAIL_MARGINS = {"inference_latency_p90": 0.05, "inference_latency_p99": 0.1}

_COUNTED = ("params", "weight_bytes", "macs", "flops", "activations", "step_flops")
_MARGINS = {
    **dict.fromkeys(_COUNTED, 0.0),
    **dict.fromkeys(("inference_peak_bytes", "training_peak_bytes", "step_peak_bytes"), BYTES_MARGIN),
    **TAIL_MARGINS,
    **dict.fromkeys(
        ("end_to_end_throughput", "loader_throughput", "compile_seconds", "energy_per_image"), WHOLE_MARGIN
    ),
}


def margin_of(metric: str) -> float:
    """The smallest relative change of a metric that matters.

    0 for what is counted, 1 % for peak memory, 3 % end to end and for loaders (and for compilation and energy, whose
    sensors are coarser), 5 and 10 % for the 90th and 99th percentile of latency, 2 % for other device time.
    """
    return _MARGINS.get(metric, DEVICE_MARGIN)


@dataclass(frozen=True)
class Decision:
    """What one look at the blocks says. Ratios are time new / time base, so above 1 is slower.

    `low` and `high` are the one-sided bounds that decide REGRESSED and IMPROVED at this look (None: out of
    reach), `clean_low` and `clean_high` the 99 % ones that decide CLEAN. `visible` is the smallest relative
    change that this many blocks with this scatter would have reported, None when no change could have been.
    `next_look` is how many blocks to have before looking again; None when the verdict stands.
    """

    verdict: str
    margin: float
    blocks: int
    estimate: float
    low: float | None
    high: float | None
    clean_low: float | None
    clean_high: float | None
    visible: float | None
    next_look: int | None

    @property
    def final(self) -> bool:
        return self.next_look is None

    @property
    def aim(self) -> float:
        """The change that more blocks should show: the margin; half of it where doubt is about a change near it."""
        if self.visible is None or self.visible > self.margin * 1.001:
            return self.margin
        return self.margin / 2

    def blocks_needed(self, change: float | None = None) -> int | None:
        """About how many blocks would show `change`, from the scatter seen here.

        `change` is relative and by default the margin. The half width of a bound shrinks with the root of the
        number of blocks. None when nothing is known yet.
        """
        target = self.margin if change is None else change
        if self.visible is None or target <= 0:
            return None
        shrink = math.log1p(self.visible) / math.log1p(target)
        return max(LOOKS[0], math.ceil(self.blocks * shrink**2))

    def sentence(self, name: str, seconds_per_block: float | None = None) -> str:
        """The verdict in words; an UNSURE says how small a change could have shown and what a smaller one takes."""
        bounds = ""
        if self.clean_low is not None and self.clean_high is not None:
            low, high = signed_percent(self.clean_low - 1), signed_percent(self.clean_high - 1)
            bounds = f" ({low} to {high}, 98 %)"
        change = f"{signed_percent(self.estimate - 1)} time{bounds}, {plural(self.blocks, 'block')}"
        text = f"{self.verdict} {name}: {change}"
        if self.verdict != UNSURE:
            return text
        if self.visible is None:
            return f"{text}; too few blocks to show any change, which takes {LOOKS[0]}"
        text += f"; only a change of {percent(self.visible)} or more could have shown"
        needed = self.blocks_needed(self.aim)
        if needed is None:
            return text
        cost = "" if seconds_per_block is None else f", {duration(needed * seconds_per_block)} in all"
        return f"{text}; one of {percent(self.aim)} takes about {plural(needed, 'block')}{cost}"


def look(
    block_values: Sequence[float], margin: float, looks: Sequence[int] = LOOKS, alphas: Sequence[float] = ALPHAS
) -> Decision:
    """Judges the blocks so far; `block_values` are log(time new / time base), one a block.

    Call it once when each number of blocks in `looks` is reached, and stop at the first verdict other than
    UNSURE. REGRESSED and IMPROVED: the bound of this look excludes no change and the estimate exceeds the
    margin. CLEAN: both 99 % bounds lie inside the margin, so a change that matters is ruled out in either
    direction.
    """
    if not block_values:
        raise RecordError("no block was measured; measure again")
    bounds = partial(signed_rank_bounds, block_values)
    return _decide(hodges_lehmann(block_values), bounds, len(block_values), margin, looks, alphas)


def look_unpaired(
    new: Sequence[float],
    base: Sequence[float],
    margin: float,
    looks: Sequence[int] = LOOKS,
    alphas: Sequence[float] = STRICT_ALPHAS,
) -> Decision:
    """The same for blocks of two separate runs, log(time) each: a shift with rank sum bounds in place of pairs.

    What differs between the two runs' conditions is not in the bounds; divide times by those of a pinned reference
    measured beside them. A second run against the same stored blocks proves less than a pair of its own, hence the
    stricter errors.
    """
    if not new or not base:
        raise RecordError("no block was measured; measure again")
    return _decide(shift(new, base), partial(rank_sum_bounds, new, base), len(new), margin, looks, alphas)


def _decide(
    estimate: float,
    bounds: Callable[[float], tuple[float, float]],
    blocks: int,
    margin: float,
    looks: Sequence[int],
    alphas: Sequence[float],
) -> Decision:
    """The verdict from the estimate and the bounds that each hold but for an error `alpha`, all of them logarithms."""
    if margin < 0:
        raise RecordError(f"a margin is a relative change from 0 up, not {margin}")
    low, high = bounds(alphas[max(sum(blocks >= size for size in looks), 1) - 1])
    clean_low, clean_high = bounds(CLEAN_ALPHA)
    threshold = math.log1p(margin)
    if blocks < min(looks):
        verdict = UNSURE
    elif low > 0 and estimate > threshold:
        verdict = REGRESSED
    elif high < 0 and estimate < -threshold:
        verdict = IMPROVED
    else:
        verdict = CLEAN if -threshold < clean_low and clean_high < threshold else UNSURE
    # Moving these very blocks until the rule fires takes as much as the bound lies from the estimate.
    reach = max(estimate - low, high - estimate, threshold)
    coming = next((size for size in looks if size > blocks), None)
    return Decision(
        verdict=verdict,
        margin=margin,
        blocks=blocks,
        estimate=math.exp(estimate),
        low=_bound(low),
        high=_bound(high),
        clean_low=_bound(clean_low),
        clean_high=_bound(clean_high),
        visible=math.expm1(reach) if math.isfinite(reach) else None,
        next_look=coming if verdict == UNSURE else None,
    )


def instrument_faults(base_against_base: Decision, slowed: Decision) -> list[str]:
    """The wrong answers of the self-test, one text each; any of them voids the run.

    Base against base is CLEAN and the side slowed by 5 % is REGRESSED. UNSURE is not a wrong answer: on a busy machine
    small changes do not show.
    """
    faults: list[str] = []
    if base_against_base.verdict not in (CLEAN, UNSURE):
        faults.append(base_against_base.sentence("base against itself") + "; expected CLEAN")
    if slowed.verdict not in (REGRESSED, UNSURE):
        faults.append(slowed.sentence("base slowed by 5 % on purpose") + "; expected REGRESSED")
    return faults


BETTER = "better"
WORSE = "worse"
SAME = "same"
# Lower case on purpose: a comparison describes, only a gate shouts.
DOUBT = "unsure"

PROCESS_ALLOWANCE = 0.05
"""What a verdict from one pair of processes leaves for the difference between processes, unseen there."""

_STUDENT_RANGE = {2: 6.35, 3: 1.43, 4: 0.92, 5: 0.68}
"""Half width of Student's 95 % interval over 2..5 values, in units of their range, for the widest scatter:
t(0.975, n - 1) / sqrt(n) times the largest standard deviation that n values within a range of 1 can have."""


def compare_verdict(ratio: Ratio, better: str, margin: float) -> str:
    """ "better", "worse", "same" or "unsure": how ratio.of does against ratio.to.

    better and worse need a 95 % interval that excludes 1 and an estimate beyond the margin; same needs the
    interval inside the margin. Two to five blocks cannot reach 95 % by ranks, so their range is widened to
    Student's, taken at its most doubtful. One pair of processes says nothing of how processes differ: it
    never shows sameness, and a difference only when the interval clears the margin and `PROCESS_ALLOWANCE`.
    Counted numbers have no noise: they are the same within the margin, which is 0 for most of them.
    """
    if ratio.estimate is None or ratio.estimate <= 0:
        return DOUBT
    up, down = (BETTER, WORSE) if better == "higher" else (WORSE, BETTER)
    estimate, threshold = math.log(ratio.estimate), math.log1p(_threshold(ratio, margin))
    if ratio.counted:
        return SAME if abs(estimate) <= threshold else up if estimate > 0 else down
    bounds = _bounds_for_verdict(ratio)
    if bounds is None:
        return DOUBT
    low, high = bounds
    clear = threshold if ratio.within_process else 0.0
    if low > clear and estimate > threshold:
        return up
    if high < -clear and estimate < -threshold:
        return down
    inside = -threshold < low and high < threshold
    return SAME if inside and not ratio.within_process else DOUBT


def speed_up(metric: Metric) -> Ratio | None:
    """How many times as fast the second operand is as the first: the metric's ratio, turned over for times."""
    ratio = next(iter(metric.comparisons), None)
    if ratio is None or metric.better == "higher":
        return ratio
    turned = ratio.inverse()
    return dataclasses.replace(turned, of=ratio.of, to=ratio.to)


def at_least(ratio: Ratio, times: float) -> str:
    """Whether a ratio is `times` or more: "better" if it is, "worse" if it is less, else "same" or "unsure"."""
    scaled = [x and x / times for x in (ratio.estimate, ratio.low, ratio.high)]
    return compare_verdict(
        dataclasses.replace(ratio, estimate=scaled[0], low=scaled[1], high=scaled[2]), "higher", margin=0.0
    )


def sentence(metric: Metric, ratio: Ratio | None = None, with_batch: bool = False) -> str:
    """The comparison of two operands as a person would put it, the faster or larger one first.

    "inference: resnet34 is 2.4x as fast as efficientnet_b0 (2.3x to 2.5x)", and where the interval allows no answer
    "training: too close to call (resnet34 0.92x to 1.15x efficientnet_b0)".

    Args:
        ratio: one of the metric's; default: its first.
        with_batch: whether the batch size is named.
    """
    ratio = metric.ratio if ratio is None else ratio
    about = topic(metric, with_batch)
    if ratio is None or ratio.estimate is None or ratio.estimate <= 0:
        missing = "; ".join(f"{o}: {v.missing}" for o, v in metric.values.items() if v.missing)
        return f"{about}: not compared ({missing or 'no numbers'})"
    verdict = compare_verdict(ratio, metric.better, margin_of(metric.name))
    wording = _WORDS.get(metric.name, ("", _MUCH))[1]
    if wording == _FAST and metric.better == "lower":
        # A time is told as the speed that it stands for.
        ratio = replace(ratio.inverse(), of=ratio.of, to=ratio.to)
    if (ratio.estimate or 1) < 1:
        ratio = ratio.inverse()
    a, b = ratio.of, ratio.to
    figure, interval = _figures(ratio)
    if verdict == DOUBT:
        if ratio.low is None or ratio.high is None:
            return f"{about}: too few measurements to compare ({a} {figure} {b}, from {_basis(ratio)})"
        # An interval beside 1 looks like an answer; where it comes from is why it is none.
        basis = f" from {_basis(ratio)}" if ratio.low > 1 else ""
        return f"{about}: too close to call{basis} ({a} {interval} {b})"
    counted = metric.name in _COUNTED or all(metric.memory.get(o, {}).get("counted") for o in (a, b))
    evidence = f" ({interval})" if interval else "" if counted else " (measured once)"
    if verdict == SAME:
        return f"{about}: {a} and {b} are {'equally fast' if wording == _FAST else 'equal'}{evidence}"
    return f"{about}: {a} {wording.format(figure)} {b}{evidence}"


def topic(metric: Metric, with_batch: bool = False) -> str:
    """What a metric is called at the head of a sentence: "peak memory in training at batch 8"."""
    name = _WORDS[metric.name][0] if metric.name in _WORDS else metric.name.replace("_", " ")
    return f"{name} at batch {metric.batch}" if with_batch and metric.batch is not None else name


_FAST, _MANY, _MUCH, _SHARE = "is {} as fast as", "has {} as many as", "needs {} as much as", "reaches {} as much as"
_WORDS = {
    "params": ("parameters", _MANY),
    "weight_bytes": ("bytes of weights", _MANY),
    "macs": ("multiply-accumulates", _MANY),
    "flops": ("floating point operations", _MANY),
    "activations": ("activations", _MANY),
    "inference_latency_p50": ("median latency of one image", _FAST),
    "inference_latency_p90": ("90th percentile latency of one image", _FAST),
    "inference_latency_p99": ("99th percentile latency of one image", _FAST),
    "inference_throughput": ("inference", _FAST),
    "training_throughput": ("training", _FAST),
    "end_to_end_throughput": ("training from files", _FAST),
    "loader_throughput": ("loading images", _FAST),
    "kernel_throughput": ("kernel", _FAST),
    "step_time": ("time of a call", _FAST),
    "step_throughput": ("rate of a step", _FAST),
    "step_flops": ("floating point operations", _MANY),
    "step_peak_bytes": ("peak memory of a call", _MUCH),
    "inference_peak_bytes": ("peak memory in inference", _MUCH),
    "training_peak_bytes": ("peak memory in training", _MUCH),
    "compile_seconds": ("compilation", _FAST),
    "roof_fraction": ("share of the measured ceiling", _SHARE),
    "mfu": ("share of the device's FLOP/s", _SHARE),
    "energy_per_image": ("energy for one image", _MUCH),
}
"""Metric name -> what a sentence calls it, and how it relates the two operands."""


def _threshold(ratio: Ratio, margin: float) -> float:
    return (1 + margin) * (1 + PROCESS_ALLOWANCE) - 1 if ratio.within_process else margin


def _bounds_for_verdict(ratio: Ratio) -> tuple[float, float] | None:
    if not ratio.estimate or not ratio.low or not ratio.high:
        return None
    low, high, middle = math.log(ratio.low), math.log(ratio.high), math.log(ratio.estimate)
    n = ratio.pairs if ratio.within_process else ratio.blocks
    if ratio.confidence is not None and ratio.confidence >= 0.95:
        return low, high
    if n not in _STUDENT_RANGE:
        return None
    half = _STUDENT_RANGE[n] * (high - low)
    return min(low, middle - half), max(high, middle + half)


def _figures(ratio: Ratio) -> tuple[str, str | None]:
    """The ratio and its interval, "2.07x" and "1.98x to 2.15x"; None where it is counted or has no bounds."""
    assert ratio.estimate is not None
    if ratio.counted:
        # As many digits as tell it from 1.
        digits = next((n for n in (3, 5, 8) if float(f"{ratio.estimate:.{n}g}") != 1), 3)
        return f"{ratio.estimate:.{digits}g}x", None
    decimals = max(supported_decimals(ratio.estimate, ratio.low, ratio.high), 0)
    figure = f"{ratio.estimate:.{decimals}f}x"
    if ratio.low is None or ratio.high is None:
        return figure, None
    return figure, f"{ratio.low:.{decimals}f}x to {ratio.high:.{decimals}f}x"


def _basis(ratio: Ratio) -> str:
    if ratio.unpaired:
        return "separate runs"
    return "one pair of processes" if ratio.within_process else f"{ratio.blocks} pairs of processes"


def _bound(log: float) -> float | None:
    return math.exp(log) if math.isfinite(log) else None
