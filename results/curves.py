"""What was measured over batch, size or threads: a curve of each operand, its best value and its knee."""

from __future__ import annotations

import re
from dataclasses import dataclass

from results.record import Metric, Ratio, Record, Value
from results.tables import percent
from results.verdict import topic

OVER = ("batch", "size", "threads")
"""What can be varied."""
ENOUGH = 0.95
"""Share of the best rate from which on more is hardly worth having: the smallest value that reaches it is the knee."""

_POINT = re.compile(rf"(?P<subject>.+) (?P<key>{'|'.join(OVER)})=(?P<value>\d+)")


def point_label(label: str, key: str, value: int) -> str:
    """The name of an operand at one value of what is varied: "resnet50 batch=8"."""
    return f"{label} {key}={value}"


def point_of(label: str) -> tuple[str, str, int] | None:
    """The inverse of `point_label`; None for an operand of which nothing is varied."""
    found = _POINT.fullmatch(label)
    return (found["subject"], found["key"], int(found["value"])) if found else None


def has_knee(metric: Metric) -> bool:
    """Whether a metric is a rate, or the time that most calls take."""
    return metric.name.endswith("_throughput") or metric.name in ("inference_latency_p50", "step_time")


@dataclass(frozen=True)
class Curve:
    """One rate or time of one operand at every value of what was varied.

    Attributes:
        subject: the operand.
        key: what was varied, one of OVER.
        metric: the metric.
        values: value of the key -> the number measured there, in ascending order.
        shares: value of the key -> its share of the best rate, times counting as the rates they stand for; without the
            best itself.
    """

    subject: str
    key: str
    metric: Metric
    values: dict[int, Value]
    shares: dict[int, Ratio]

    @property
    def best(self) -> int | None:
        """Where the rate is highest; None where there are no two numbers to choose from."""
        known = {at: value.median for at, value in self.values.items() if value.median is not None}
        choose = max if self.metric.better == "higher" else min
        return choose(known, key=lambda at: known[at]) if len(known) > 1 else None

    @property
    def knee(self) -> int | None:
        """The smallest value that reaches `ENOUGH` of the best rate."""
        best = self.best
        if best is None:
            return None
        return min([best, *(at for at, share in self.shares.items() if (share.estimate or 0.0) >= ENOUGH)])

    def seconds(self, at: int) -> Value | None:
        """How long a batch takes while others wait, from the rate; None where that is not known."""
        rate, images = self.values[at], at if self.key == "batch" else self.metric.batch
        if self.metric.better == "lower" or not rate.median or not images:
            return None
        low, high = (images / x if x else None for x in (rate.high, rate.low))
        return Value(images / rate.median, low, high, rate.samples, confidence=rate.confidence)

    def sentence(self) -> str:
        """What the curve says in words, with the evidence; "" where there are no two numbers."""
        best, below = self.best, max((at for at in self.shares if at < (self.best or 0)), default=None)
        if best is None:
            return ""
        rest = ""
        if self.key != "size" and self.knee == best and below is not None:
            rest = f"; {below} reaches {_text(self.shares[below])} of its rate"
            if self.key == "batch" and best == max(self.values):
                rest += ", and a larger one may be faster still"
        once = "" if all(share.low is not None for share in self.shares.values()) else " (measured once)"
        return f"{topic(self.metric)} of {self.subject}: {self.verdict()}{rest}{once}"

    def verdict(self) -> str:
        """The knee in a few words, or of sizes what the largest costs; "" where there are no two numbers."""
        best, knee = self.best, self.knee
        if best is None or knee is None:
            return ""
        if self.key == "size":
            # Fewer pixels are less work: what is asked is how much more ones cost.
            other = max(self.shares)
            return f"size {other} reaches {_text(self.shares[other])} of the rate of {best}"
        smallest = ", the smallest that was tried," if knee == min(self.values) else ""
        if knee == best:
            return f"fastest at {self.key} {best}{smallest[:-1]}"
        return f"{self.key} {knee}{smallest} reaches {_text(self.shares[knee])} of the best rate, that of {best}"


def _text(share: Ratio) -> str:
    if share.estimate is None or share.low is None or share.high is None:
        return percent(share.estimate or 0.0)
    return f"{percent(share.estimate)} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def curves_of(record: Record, metric: Metric) -> list[Curve]:
    """A metric's curves, one an operand, in the order of the operands; none where nothing was varied."""
    found: dict[str, Curve] = {}
    for label in record.operands:
        point = point_of(label)
        if point is not None and label in metric.values:
            subject, key, value = point
            curve = found.setdefault(subject, Curve(subject, key, metric, {}, {}))
            curve.values[value] = metric.values[label]
    for ratio in metric.comparisons:
        of, to = point_of(ratio.of), point_of(ratio.to)
        if of and to and of[0] == to[0] and of[0] in found:
            found[of[0]].shares[of[2]] = _as_rates(metric, ratio)
    return list(found.values())


def _as_rates(metric: Metric, ratio: Ratio) -> Ratio:
    if metric.better == "higher":
        return ratio
    turned = ratio.inverse()
    return Ratio(
        ratio.of, ratio.to, turned.estimate, turned.low, turned.high, ratio.confidence, ratio.blocks, ratio.pairs
    )


def beside(metric: Metric, label: str) -> Ratio | None:
    """The ratio of an operand to the first one at the same value; None for the first itself."""
    of = point_of(label)
    for ratio in metric.comparisons:
        to = point_of(ratio.to)
        if ratio.of == label and of and to and to[0] != of[0]:
            return ratio
    return None
