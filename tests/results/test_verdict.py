"""The gate's error rates under simulated noise, and the words in which a comparison is told."""

import math
import random
import re
from pathlib import Path

import pytest

from results import verdict
from results.errors import RecordError
from results.record import METRICS, Metric, Ratio, Value
from results.verdict import CLEAN, IMPROVED, REGRESSED, UNSURE, Decision, look


def blocks_of(rng: random.Random, shift: float, spread: float = 0.01) -> list[float]:
    """As many blocks as a check has at most, on a shared machine: one in ten scatters three times as much."""
    tails = [3.0 if rng.random() < 0.1 else 1.0 for _ in range(verdict.LOOKS[-1])]
    return [shift + rng.gauss(0, spread * tail) for tail in tails]


def decide(blocks: list[float], margin: float = 0.02) -> Decision:
    for n in verdict.LOOKS:
        decision = look(blocks[:n], margin)
        if decision.final:
            break
    return decision


def test_false_alarms_without_a_change() -> None:
    rng = random.Random(0)
    found = [decide(blocks_of(rng, 0.0)).verdict for _ in range(1500)]
    assert found.count(REGRESSED) + found.count(IMPROVED) == 0
    assert found.count(CLEAN) / len(found) > 0.95


def test_error_rate_holds_without_the_margin() -> None:
    # Without a margin to hide behind the errors of the looks are on trial: 4 x 0.01 at most in each direction.
    rng = random.Random(1)
    pairs = [[decide(blocks_of(rng, 0.0), margin=0.0).verdict for _ in range(2)] for _ in range(1500)]
    for wrong in (REGRESSED, IMPROVED):
        assert 0.01 < sum(pair[0] == wrong for pair in pairs) / 1500 < 0.04
        # Two runs that have to agree: 0.2 % expected at most, 3 of 1,500.
        assert sum(pair == [wrong, wrong] for pair in pairs) <= 5


def test_strict_errors_are_for_what_no_second_run_confirms() -> None:
    rng = random.Random(6)
    found = []
    for _ in range(1500):
        blocks = blocks_of(rng, 0.0)
        looks = (look(blocks[:n], 0.0, alphas=verdict.STRICT_ALPHAS) for n in verdict.LOOKS)
        found.append(next(decision.verdict for decision in looks if decision.final))
    assert found.count(REGRESSED) + found.count(IMPROVED) <= 14
    slower = look([0.05] * 16, 0.02, alphas=verdict.STRICT_ALPHAS)
    assert slower.verdict == REGRESSED
    assert look([0.05] * 8, 0.02, alphas=verdict.STRICT_ALPHAS).verdict == UNSURE


def test_power_and_no_slowdown_called_clean() -> None:
    rng = random.Random(2)
    at_three = [decide(blocks_of(rng, math.log(1.03), 0.005)).verdict for _ in range(300)]
    at_five = [decide(blocks_of(rng, math.log(1.05))).verdict for _ in range(300)]
    assert at_three.count(REGRESSED) / 300 >= 0.95
    assert at_five.count(REGRESSED) / 300 >= 0.99
    assert at_three.count(CLEAN) + at_five.count(CLEAN) == 0


@pytest.mark.parametrize("name", ["docs/guard.md"])
def test_texts_name_the_looks(name: str) -> None:
    text = " ".join((Path(__file__).parents[2] / name).read_text("utf-8").split())
    *first, last = map(str, verdict.LOOKS)
    assert re.findall(r"after (\d+, [\d, and]+?) blocks", text) == [f"{', '.join(first)} and {last}"]


def test_improvement_is_the_mirror_image() -> None:
    blocks = blocks_of(random.Random(3), math.log(1.05))
    worse, better = decide(blocks), decide([-b for b in blocks])
    assert (worse.verdict, better.verdict) == (REGRESSED, IMPROVED)
    assert worse.estimate * better.estimate == pytest.approx(1)


def test_a_sure_change_below_the_margin_is_no_regression() -> None:
    blocks = [0.01 + 1e-4 * i for i in range(10)]
    decision = look(blocks, 0.02)
    assert decision.low is not None
    assert decision.low > 1
    assert decision.verdict == CLEAN


def test_noise_is_unsure_and_says_what_it_could_see() -> None:
    rng = random.Random(4)
    decision = decide(blocks_of(rng, 0.0, spread=0.1))
    assert decision.verdict == UNSURE
    assert decision.final
    assert decision.visible is not None
    needed = decision.blocks_needed()
    assert needed is not None
    assert needed > verdict.LOOKS[-1]
    # The smallest change seen: the rule fires on these blocks moved by a hair more, not by a hair less.
    values = blocks_of(random.Random(4), 0.0, spread=0.1)
    centre = math.log(decision.estimate)
    shift = math.log1p(decision.visible)
    fired = [look([v - centre + s * shift * f for v in values], 0.02).verdict for s in (1, -1) for f in (1.001, 0.999)]
    assert fired[0] == REGRESSED or fired[2] == IMPROVED
    assert UNSURE in (fired[1], fired[3])
    text = decision.sentence("inference:resnet34", seconds_per_block=20)
    assert text.startswith("UNSURE inference:resnet34: ")
    assert "or more could have shown; one of 2 % takes about" in text
    assert text.endswith(" in all")


def test_before_the_first_look() -> None:
    decision = look([0.2, 0.2, 0.2], 0.02)
    assert (decision.verdict, decision.next_look, decision.visible) == (UNSURE, 8, None)
    assert "to show any change, which takes 8" in decision.sentence("x")
    assert decision.blocks_needed() is None
    assert look([0.0, 0.1] * 4, 0.02).next_look == 16
    assert look([0.0, 0.3] * 16, 0.02).next_look is None
    with pytest.raises(RecordError, match="no block"):
        look([], 0.02)
    with pytest.raises(RecordError, match="margin"):
        look([0.1], -0.02)


def test_sentences_of_verdicts() -> None:
    slow = look([0.05 + 0.001 * i for i in range(10)], 0.02)
    assert slow.sentence("w") == "REGRESSED w: +5.6 % time (+5.3 % to +5.9 %, 98 %), 10 blocks"


def test_the_instrument_is_judged() -> None:
    slow, same = look([0.05] * 10, 0.02), look([0.0] * 10, 0.02)
    assert verdict.instrument_faults(same, slow) == []
    faults = verdict.instrument_faults(slow, same)
    assert [f.split("; expected ")[1] for f in faults] == [CLEAN, REGRESSED]
    # A busy machine gives no answer, which is not a wrong one.
    doubt = verdict.look([0.2 * (-1) ** i for i in range(24)], 0.02)
    assert doubt.verdict == UNSURE
    assert verdict.instrument_faults(doubt, doubt) == []


def test_unpaired_looks_compare_two_runs() -> None:
    old = [math.log(0.01) + 0.002 * (i % 5) for i in range(10)]
    new = [value + 0.001 for value in old]
    assert verdict.look_unpaired(new, old, 0.02).verdict == CLEAN
    slow = verdict.look_unpaired([value + math.log(1.05) for value in old], old, 0.02)
    assert slow.verdict == REGRESSED
    assert slow.estimate == pytest.approx(1.05)
    assert verdict.look_unpaired([value - math.log(1.05) for value in old], old, 0.02).verdict == "IMPROVED"
    assert verdict.look_unpaired(new[:5], old, 0.02).verdict == UNSURE
    with pytest.raises(RecordError, match="no block"):
        verdict.look_unpaired([], old, 0.02)


@pytest.mark.parametrize(
    ("name", "margin"),
    [
        ("params", 0),
        ("training_peak_bytes", 0.01),
        ("inference_throughput", 0.02),
        ("inference_latency_p50", 0.02),
        ("inference_latency_p90", 0.05),
        ("inference_latency_p99", 0.1),
        ("end_to_end_throughput", 0.03),
        ("loader_throughput", 0.03),
    ],
)
def test_margins(name: str, margin: float) -> None:
    assert verdict.margin_of(name) == margin


def ratio(estimate: float, low: float | None, high: float | None, blocks: int = 10, pairs: int = 80) -> Ratio:
    reached = 0.95 if blocks >= 6 or blocks == 1 else 1 - 2.0 ** (1 - blocks)
    return Ratio("a", "b", estimate, low, high, 1.0 if blocks == 0 else reached, blocks, pairs)


@pytest.mark.parametrize(
    ("given", "higher"),
    [
        (ratio(2.0, 1.9, 2.1), "better"),
        (ratio(0.5, 0.4, 0.6), "worse"),
        (ratio(1.001, 0.99, 1.01), "same"),
        (ratio(1.05, 0.99, 1.11), "unsure"),
        (ratio(1.015, 1.005, 1.025), "unsure"),
        (ratio(2.0, None, None, 1, 1), "unsure"),
        # One pair of processes: a difference must be larger than processes themselves may differ.
        (ratio(1.04, 1.035, 1.045, 1, 8), "unsure"),
        (ratio(1.001, 0.999, 1.002, 1, 8), "unsure"),
        (ratio(1.3, 1.25, 1.35, 1, 8), "better"),
        # Two to five: the range is no 95 % interval.
        (ratio(1.05, 1.04, 1.06, 2, 16), "unsure"),
        (ratio(2.0, 1.98, 2.02, 2, 16), "better"),
        (ratio(0.5, 0.49, 0.51, 3, 24), "worse"),
        # Counted.
        (ratio(1.0000001, 1, 1, 0, 0), "better"),
        (ratio(1.0, 1, 1, 0, 0), "same"),
    ],
)
def test_compare_verdict(given: Ratio, higher: str) -> None:
    mirrored = {"better": "worse", "worse": "better"}.get(higher, higher)
    margin = 0.0 if given.counted else 0.02
    assert verdict.compare_verdict(given, "higher", margin) == higher
    assert verdict.compare_verdict(given, "lower", margin) == mirrored
    assert verdict.compare_verdict(given.inverse(), "higher", margin) == mirrored


def test_counted_within_a_margin_is_the_same() -> None:
    assert verdict.compare_verdict(ratio(1.005, 1.005, 1.005, 0, 0), "lower", 0.01) == "same"


def test_few_blocks_seldom_mislead() -> None:
    rng = random.Random(5)
    for n in (2, 3, 5):
        wrong = 0
        for _ in range(1000):
            logs = sorted(rng.gauss(0, 0.05) for _ in range(n))
            given = ratio(math.exp(sum(logs) / n), math.exp(logs[0]), math.exp(logs[-1]), n, 8 * n)
            wrong += verdict.compare_verdict(given, "higher", 0.0) != "unsure"
        assert wrong / 1000 <= 0.07


def metric(name: str, given: Ratio | None, batch: int | None = None) -> Metric:
    values = {"a": Value(1.0, 1.0, 1.0, 8), "b": Value(1.0, 1.0, 1.0, 8)}
    return Metric.named(name, values, batch=batch, ratio=given)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("inference_throughput", ratio(2.07, 1.98, 2.15, 1, 8), "inference: a is 2.07x as fast as b (1.98x to 2.15x)"),
        ("training_throughput", ratio(0.5, 0.4, 0.625), "training: b is 2.0x as fast as a (1.6x to 2.5x)"),
        (
            "loader_throughput",
            ratio(2.0, 1.98, 2.02, 3, 24),
            "loading images: a is 2.000x as fast as b (1.980x to 2.020x)",
        ),
        # A time is told as the speed that it stands for.
        (
            "inference_latency_p50",
            ratio(0.5, 0.45, 0.55),
            "median latency of one image: a is 2.00x as fast as b (1.82x to 2.22x)",
        ),
        (
            "inference_latency_p50",
            ratio(2.0, 1.9, 2.1),
            "median latency of one image: b is 2.00x as fast as a (1.90x to 2.10x)",
        ),
        ("compile_seconds", ratio(2.0, 2.0, 2.0, 0, 0), "compilation: b is 2x as fast as a (measured once)"),
        ("params", ratio(0.25, 0.25, 0.25, 0, 0), "parameters: b has 4x as many as a"),
        ("params", ratio(1.00004, 1.00004, 1.00004, 0, 0), "parameters: a has 1.00004x as many as b"),
        ("macs", ratio(1, 1, 1, 0, 0), "multiply-accumulates: a and b are equal"),
        (
            "training_peak_bytes",
            ratio(1.5, 1.5, 1.5, 0, 0),
            "peak memory in training: a needs 1.5x as much as b (measured once)",
        ),
        ("training_throughput", ratio(1.001, 0.995, 1.006), "training: a and b are equally fast (0.995x to 1.006x)"),
        ("inference_throughput", ratio(1.01, 0.97, 1.05), "inference: too close to call (a 0.97x to 1.05x b)"),
        (
            "training_throughput",
            ratio(0.99557, 0.86647, 1.08842, 1, 8),
            "training: too close to call (b 0.92x to 1.15x a)",
        ),
        # The interval excludes 1, yet processes may differ by more than that.
        (
            "inference_throughput",
            ratio(1.04, 1.03, 1.05, 1, 8),
            "inference: too close to call from one pair of processes (a 1.030x to 1.050x b)",
        ),
        (
            "inference_throughput",
            ratio(1.04, 1.03, 1.05, 1, 0),
            "inference: too close to call from separate runs (a 1.030x to 1.050x b)",
        ),
        (
            "inference_throughput",
            ratio(1.05, 1.04, 1.06, 2, 16),
            "inference: too close to call from 2 pairs of processes (a 1.040x to 1.060x b)",
        ),
        (
            "inference_throughput",
            ratio(1.02, None, None, 1, 1),
            "inference: too few measurements to compare (a 1.02x b, from one pair of processes)",
        ),
    ],
)
def test_sentences_as_a_person_would_put_them(name: str, given: Ratio, said: str) -> None:
    assert verdict.sentence(metric(name, given)) == said


def test_the_batch_is_named_on_request() -> None:
    found = metric("inference_throughput", ratio(2.0, 1.9, 2.1), 32)
    assert verdict.sentence(found, with_batch=True).startswith("inference at batch 32: a is ")
    assert verdict.topic(metric("params", None), with_batch=True) == "parameters"


def test_sentence_without_a_ratio() -> None:
    values = {"a": Value(1.0, 1.0, 1.0, 8), "b": Value.none("out of memory: 2 GiB")}
    text = verdict.sentence(Metric.named("training_throughput", values, batch=8))
    assert text == "training: not compared (b: out of memory: 2 GiB)"


def test_every_metric_has_words() -> None:
    for name in METRICS:
        for given in (ratio(2.0, 1.9, 2.1), ratio(1.0, 0.999, 1.001), ratio(1.0, 0.5, 2.0)):
            assert name not in verdict.sentence(metric(name, given)) or "_" not in name
