"""Whether two sides' facts and outputs are the same, and where they differ."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.gate import Fact

if TYPE_CHECKING:
    from torch import Tensor

# Orders of summation round differently, so the head's distance from plain fp32 may be this many times the base's,
ROUNDING = 2.0
# plus this share of the output's spread, by which any two orders may differ in fp32.
FLOOR = 1e-4
# The share of the weights' movement in three updates that may differ: gradients of early layers add up many roundings.
# Losses would not show a missing momentum or another learning rate: so early they hardly depend on either.
MOVEMENT_FLOOR = 0.02
# How far means and deviations of two batches drawn with other random numbers may differ, as shares of the deviation.
DRAWN = 0.1


def same_output(workload: str, task: str, base: Path, head: Path) -> Fact:
    """Whether two files of bench.inspecting.exact.outputs agree; the fact holds each side's error.

    The error of logits and losses is their root mean square distance from the base's fp32 reference, as a share of its
    standard deviation, and the head's may be twice the base's. So no tolerance has to be guessed for a network or a
    dtype, and a network whose logits hardly vary is judged by how they do.

    Args:
        workload: its id.
    """
    from safetensors.torch import load_file

    sides = load_file(base), load_file(head)
    shapes = [str(list(side["result"].shape)) for side in sides]
    if shapes[0] != shapes[1]:
        return Fact(workload, "output", shapes[0], shapes[1], False, (f"shapes differ: {shapes[0]} and {shapes[1]}",))
    if task == "loading":
        return _same_batch(workload, *sides)
    training = task == "training"
    reference = sides[0]["reference"].double()
    # Losses of three updates vary little; their size is the scale that matters.
    scale = reference.abs().mean().item() if training else reference.std(correction=0).item()
    errors = [_distance(side["result"], reference) / (scale or 1.0) for side in sides]
    allowed = ROUNDING * errors[0] + FLOOR
    text = "losses of three updates differ from those in plain fp32 by {} of their size"
    if not training:
        text = "logits differ from those in plain fp32 by {} of their spread"
    movement = _movement_errors(*sides) if training and errors[1] <= allowed else None
    if movement and movement[1] > ROUNDING * movement[0] + MOVEMENT_FLOOR:
        errors, allowed = movement, ROUNDING * movement[0] + MOVEMENT_FLOOR
        text = "three updates move the weights elsewhere than plain fp32 does, by {} of their movement"
    same = errors[1] <= allowed
    figures = [f"{error:.2g}" for error in errors]
    difference = f"{text.format(figures[1])}; the base's by {figures[0]}, and {allowed:.2g} is allowed"
    return Fact(workload, "output", figures[0], figures[1], same, () if same else (difference,))


def _distance(result: "Tensor", reference: "Tensor") -> float:
    """Root mean square distance."""
    return float((result.double() - reference).square().mean().sqrt())


def _movement_errors(base: "Mapping[str, Tensor]", head: "Mapping[str, Tensor]") -> list[float] | None:
    """How far each side's updates moved the weights from where plain fp32 does, as a share of that movement.

    None where older code does not say, and where the parameters differ, which the state dict shows.
    """
    if "moved" not in head or "reference_moved" not in base:
        return None
    reference = base["reference_moved"].double()
    if head["moved"].shape != reference.shape:
        return None
    movement = reference.square().mean().sqrt().item() or 1.0
    return [_distance(side["moved"], reference) / movement for side in (base, head)]


def _same_batch(workload: str, base: "Mapping[str, Tensor]", head: "Mapping[str, Tensor]") -> Fact:
    differences: list[str] = []
    if not base["layout"].equal(head["layout"]):
        differences.append("the images' layout in memory differs")
    a, b = base["result"].double(), head["result"].double()
    deviation = a.std().item() or 1.0
    if base["labels"].equal(head["labels"]):
        distance = _distance(b, a) / deviation
        if distance > DRAWN:
            differences.append(f"the same images differ by {distance:.2g} of their deviation")
        figures = ("0", f"{distance:.2g}")
    else:
        mean, spread = (b.mean() - a.mean()).abs().item() / deviation, abs(b.std().item() / deviation - 1)
        differences.append("the order of the images differs")
        if max(mean, spread) > DRAWN:
            differences.append(f"mean and deviation differ by {mean:.2g} and {spread:.2g} of the deviation")
        figures = (f"{a.mean():.3g} +- {a.std():.3g}", f"{b.mean():.3g} +- {b.std():.3g}")
    return Fact(workload, "output", *figures, not differences, tuple(differences))


def compare_facts(workload: str, base: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[Fact]:
    """Every fact that either side has; of tables the number of entries.

    Args:
        workload: its id.
        base, head: as bench.inspecting.exact.facts gives them.
    """
    for name in dict.fromkeys([*base, *head]):
        old, new = base.get(name), head.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            differences = tuple(_differences(old or {}, new or {}))
            yield Fact(workload, name, _size(old), _size(new), old == new, differences)
        else:
            yield Fact(workload, name, old, new, old == new, () if old == new else (f"{_text(old)} -> {_text(new)}",))


def _size(table: Mapping[str, Any] | None) -> int | None:
    """Operators count by their calls, a state dict by its entries."""
    if table is None:
        return None
    return sum(table.values()) if all(isinstance(n, int) for n in table.values()) else len(table)


def _differences(base: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*base, *head]):
        old, new = base.get(name), head.get(name)
        if old is None:
            yield f"+ {name} {_text(new)}"
        elif new is None:
            yield f"- {name} {_text(old)}"
        elif old != new:
            yield f"  {name} {_text(old)} -> {_text(new)}"


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
