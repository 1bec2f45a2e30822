"""Whether two sides' facts and outputs are the same, and where they differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# How many times as far from plain fp32 as the base the head may be: rounding differs from one order of sums to another.
ROUNDING = 2.0


# Share of the output's spread that any two orders of summation may differ by, in fp32.
FLOOR = 1e-4


# Share of the way the weights went in three updates that may differ: gradients of early layers add up many roundings.
# Losses would not show a momentum that is missing, or another learning rate: they hardly depend on it so soon.
ASTRAY = 0.02


# Means and deviations of two batches drawn with other random numbers, as shares of the deviation.
DRAWN = 0.1


def same_output(base: Path, head: Path, task: str) -> tuple[bool, str, str, tuple[str, ...]]:
    """Whether two files of `outputs` agree: (same, figure of base, figure of head, how they differ).

    Logits and losses: the root mean square distance from the base's fp32 reference, as a share of its standard
    deviation; the head's may be twice the base's. So no tolerance has to be guessed for a network or a dtype, and a
    network whose logits hardly vary is judged by how they do.
    """
    from safetensors.torch import load_file

    ours, theirs = load_file(head), load_file(base)
    if ours["result"].shape != theirs["result"].shape:
        shapes = [str(list(side["result"].shape)) for side in (theirs, ours)]
        return False, shapes[0], shapes[1], (f"shapes differ: {shapes[0]} and {shapes[1]}",)
    if task == "loading":
        return _same_batch(theirs, ours)
    reference = theirs["reference"].double()
    # Losses of three updates vary little; their size is the scale that matters.
    spread = reference.std(correction=0).item() if task != "training" else reference.abs().mean().item()
    spread = spread or 1.0
    errors = [((side["result"].double() - reference).square().mean().sqrt() / spread).item() for side in (theirs, ours)]
    allowed = ROUNDING * errors[0] + FLOOR
    figures = [f"{error:.2g}" for error in errors]
    if errors[1] <= allowed:
        return _same_way(theirs, ours) or (True, figures[0], figures[1], ())
    what = "losses of three updates" if task == "training" else "logits"
    unit = "their size" if task == "training" else "their spread"
    return (
        False,
        figures[0],
        figures[1],
        (
            f"{what} lie {figures[1]} of {unit} from plain fp32; "
            f"the base's lie {figures[0]}, and {allowed:.2g} is allowed",
        ),
    )


def _same_way(base: dict[str, Tensor], head: dict[str, Tensor]) -> tuple[bool, str, str, tuple[str, ...]] | None:
    """The difference, if the updates moved the weights otherwise; None if not, and where older code does not say."""
    if "moved" not in head or "reference_moved" not in base:
        return None
    reference = base["reference_moved"].double()
    if head["moved"].shape != reference.shape:
        return None  # other parameters, which the state dict shows
    way = reference.square().mean().sqrt().item() or 1.0
    errors = [((side["moved"].double() - reference).square().mean().sqrt() / way).item() for side in (base, head)]
    allowed = ROUNDING * errors[0] + ASTRAY
    if errors[1] <= allowed:
        return None
    figures = [f"{error:.2g}" for error in errors]
    told = (
        f"three updates move the weights elsewhere: {figures[1]} of their way from where plain fp32 goes; "
        f"the base's lie {figures[0]}, and {allowed:.2g} is allowed"
    )
    return False, figures[0], figures[1], (told,)


def _same_batch(base: dict[str, Tensor], head: dict[str, Tensor]) -> tuple[bool, str, str, tuple[str, ...]]:
    differences: list[str] = []
    if not torch.equal(base["layout"], head["layout"]):
        differences.append("the images' layout in memory differs")
    a, b = base["result"].double(), head["result"].double()
    deviation = a.std().item() or 1.0
    if torch.equal(base["labels"], head["labels"]):
        distance = (a - b).square().mean().sqrt().item() / deviation
        if distance > DRAWN:
            differences.append(f"the same images differ by {distance:.2g} of their deviation")
        figures = ("0", f"{distance:.2g}")
    else:
        mean, spread = (b.mean() - a.mean()).abs().item() / deviation, abs(b.std().item() / deviation - 1)
        differences.append("the order of the images differs")
        if max(mean, spread) > DRAWN:
            differences.append(f"mean and deviation differ by {mean:.2g} and {spread:.2g} of the deviation")
        figures = (f"{a.mean():.3g} +- {a.std():.3g}", f"{b.mean():.3g} +- {b.std():.3g}")
    return not differences, figures[0], figures[1], tuple(differences)


def compare_facts(base: dict[str, Any], head: dict[str, Any]) -> Iterator[tuple[str, Any, Any, bool, tuple[str, ...]]]:
    """(name, base, head, same, differences) of every fact that either side has; of tables the number of entries."""
    for name in dict.fromkeys([*base, *head]):
        old, new = base.get(name), head.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            yield (name, _size(old), _size(new), old == new, tuple(_differences(old or {}, new or {})))
        else:
            yield (name, old, new, old == new, () if old == new else (f"{_shown(old)} -> {_shown(new)}",))


def _size(table: dict[str, Any] | None) -> int | None:
    """Operators count by their calls, a state dict by its entries."""
    if table is None:
        return None
    return sum(table.values()) if all(isinstance(n, int) for n in table.values()) else len(table)


def _differences(base: dict[str, Any], head: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*base, *head]):
        old, new = base.get(name), head.get(name)
        if old == new:
            continue
        if old is None:
            yield f"+ {name} {_shown(new)}"
        elif new is None:
            yield f"- {name} {_shown(old)}"
        else:
            yield f"  {name} {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
