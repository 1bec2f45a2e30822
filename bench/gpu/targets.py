"""What this project wants of a GPU, and whether a measured folder has it.

Rates are images per second, latencies seconds. Those of an A100 and an H200 were set before anything was measured, as
shares of the devices' memory bandwidth and from the best published figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from results.record import Metric, Record

BASE = "amp-nhwc-compile"


@dataclass(frozen=True)
class Target:
    """One thing wanted.

    Attributes:
        what: in words.
        record: name of the file that holds it, without the ending; for a rate also of those at other batches (-b512).
        metric: in that record.
        operand: whose value, or the upper side of a ratio; a tuple means the best of them.
        to: the lower side of a ratio, "" for a value; for a percentile the other percentile's metric.
        better: "higher" or "lower".
        wanted: by a part of the GPU's name.
    """

    what: str
    record: str
    metric: str
    operand: tuple[str, ...]
    wanted: Mapping[str, float]
    to: str = ""
    better: str = "higher"


@dataclass(frozen=True)
class Finding:
    """A target beside its measured figure.

    Attributes:
        target: what was wanted.
        value: measured, None without.
        low, high: bounds of the value; None for ratios, which are those of two medians, and where there are none.
        operand: that reached it.
        wanted: for this device, None where nothing was set.
        met: None where one of the two is missing.
        missing: why there is no value.
    """

    target: Target
    value: float | None
    low: float | None
    high: float | None
    operand: str
    wanted: float | None
    met: bool | None
    missing: str = ""


def _both(h200: float, a100: float | None = None) -> dict[str, float]:
    return {"H200": h200} if a100 is None else {"H200": h200, "A100": a100}


def _ratio(factor: float) -> dict[str, float]:
    return {"": factor}


def _of(network: str, *configurations: str) -> tuple[str, ...]:
    return tuple(f"{network}@{one}" for one in configurations)


OURS = ("fast", "amp-nhwc-graphs", "amp-nhwc-graphs-kernels", "amp-nhwc-compile-kernels", "bf16-nhwc-compile-freeze")


def targets(networks: tuple[str, ...]) -> list[Target]:
    """The list, for those of its networks that were measured."""
    rates = {"resnet50": _both(7300, 3000), "efficientnet_b0": _both(9000, 3700)}
    inferred = {"resnet50": 40_000, "efficientnet_b0": 45_000, "resnet18": 110_000}
    answered = {"resnet50": 0.45e-3, "resnet18": 0.25e-3, "efficientnet_b0": 0.60e-3}
    found: list[Target] = []
    for name in networks:
        ours, base = _of(name, *OURS), f"{name}@{BASE}"
        training, inference, latency = (f"{part}-{name}" for part in ("training", "inference", "latency"))
        if name in rates:
            found.append(
                Target(
                    f"{name}, JPEG to step, images/s",
                    f"end_to_end-{name}",
                    "end_to_end_throughput",
                    ours,
                    rates[name],
                )
            )
        else:
            found.append(Target(f"{name} training, share of the roof", training, "roof_fraction", ours, _ratio(0.4)))
        over = {"resnet50": 1.10, "efficientnet_b0": 1.3}.get(name, 1.0)
        words = f"{name} training, ours / default torch.compile"
        found.append(Target(words, training, "training_throughput", ours, _ratio(over), base))
        if name == "resnet50":
            for other, words, factor in (("naive", "naive", 8.0), ("amp-nhwc-eager", "eager amp channels_last", 1.5)):
                text = f"{name} training, ours / {words}"
                found.append(Target(text, training, "training_throughput", ours, _ratio(factor), f"{name}@{other}"))
        words = f"{name} JPEG to step / the same step on a constant batch"
        found.append(
            Target(words, f"end_to_end-{name}", "end_to_end_throughput", ours, _ratio(0.97), "training_throughput")
        )
        if name in inferred:
            words = f"{name} inference, images/s"
            found.append(Target(words, inference, "inference_throughput", ours, _both(inferred[name])))
        over = 1.3 if name == "efficientnet_b0" else 1.2
        words = f"{name} inference, ours / default torch.compile"
        found.append(Target(words, inference, "inference_throughput", ours, _ratio(over), base))
        if name in answered:
            words = f"{name}, one image, p50, seconds"
            found.append(Target(words, latency, "inference_latency_p50", ours, _both(answered[name]), better="lower"))
            words = f"{name}, one image, p99 / p50"
            found.append(
                Target(words, latency, "inference_latency_p99", ours, _ratio(1.05), "inference_latency_p50", "lower")
            )
    words = "loader alone: JPEG to normalised batch, images/s"
    found.append(Target(words, "loaders", "loader_throughput", ("dali",), _both(10_000)))
    return found


def find(target: Target, records: Mapping[str, Record], device: str, missing: Mapping[str, str]) -> Finding:
    """The measured figure of a target.

    Args:
        records: by name of their file.
        device: the GPU's name.
        missing: name of a file that is not there -> why.
    """
    wanted = next((number for part, number in target.wanted.items() if part in device), None)
    if "MIG" in device and "" not in target.wanted:
        wanted = None  # a slice of a GPU owes no whole one's rates

    def none(reason: str) -> Finding:
        return Finding(target, None, None, None, "", wanted, None, reason)

    others = [] if target.to else [name for name in records if name.startswith(f"{target.record}-b")]
    there = [records[name] for name in (target.record, *others) if name in records]
    if not there:
        return none(missing.get(target.record, "not run"))
    best: Finding | None = None
    reasons = []
    for record in there:
        metric = record.metric(target.metric)
        for operand in target.operand:
            if metric is None or operand not in metric.values:
                continue
            one = _figure(target, metric, record, operand, wanted)
            if one.value is None:
                reasons.append(f"{operand}: {one.missing}")
            elif best is None or best.value is None or (one.value > best.value) == (target.better == "higher"):
                best = one
    return best or none("; ".join(reasons) or "not measured")


def _figure(target: Target, metric: Metric, record: Record, operand: str, wanted: float | None) -> Finding:
    value = metric.values[operand]
    if value.median is None:
        return Finding(target, None, None, None, operand, wanted, None, value.missing or "not measured")
    number, low, high = float(value.median), value.low, value.high
    if target.to:
        # Of another operand in this metric, or of the same operand in another metric.
        other = metric.values.get(target.to)
        beside = record.metric(target.to)
        if other is None and beside is not None:
            other = beside.values.get(operand)
        if other is None or not other.median:
            reason = (other.missing if other else None) or f"no {target.to}"
            return Finding(target, None, None, None, operand, wanted, None, reason)
        number, low, high = number / float(other.median), None, None
    met = None
    if wanted is not None:
        met = number >= wanted if target.better == "higher" else number <= wanted
    return Finding(target, number, low, high, operand, wanted, met)
