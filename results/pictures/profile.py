"""Pictures of a profile: time by layer as a flame graph, and operators under the roof."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from results.pictures.style import COLOURS, colour, label_axes, new_figure, plain_logarithms, styled
from results.profile import OUTSIDE, OVERHEAD, Profile, plain_name
from results.tables import percent, quantity, unit_for

DEPTH = 6
NARROW = 0.012  # share of the width below which a box has no room for a name
LABELLED = 6  # operators named in the roofline


@dataclass
class Node:
    """A layer with its time, all below it included."""

    name: str
    seconds: float = 0.0
    children: dict[str, Node] = field(default_factory=dict)


def tree(profile: Profile) -> Node:
    """Layers by their paths; what lies outside the network stands beside it."""
    root = Node(profile.label)
    for module in profile.modules:
        if module.seconds <= 0:
            continue
        root.seconds += module.seconds
        node = root
        parts = [module.path] if module.path.startswith(OUTSIDE) else module.path.split(".")
        for part in parts:
            node = node.children.setdefault(part, Node(part))
            node.seconds += module.seconds
    left = profile.profiled_seconds - root.seconds
    if left > 0 and profile.idle is None:
        root.children[OVERHEAD] = Node(OVERHEAD, left)
        root.seconds += left
    return root


@styled()
def flame(profile: Profile) -> Figure | None:
    """Boxes as wide as the time of a layer, its parts below it; None where nothing is known of layers."""
    root = tree(profile)
    if not root.seconds or not profile.modules:
        return None
    depth = min(DEPTH, _depth(root))
    figure, axes = new_figure(10, 0.9 + 0.42 * depth)
    _boxes(axes, root, 0.0, 0, root.seconds, depth, _fork(root), 0)
    axes.set_xlim(0, 1)
    axes.set_ylim(depth, 0)
    axes.set_axis_off()
    layers = [module for module in profile.tree(1) if not module.path.startswith(OUTSIDE)]
    if layers:
        widest = max(layers, key=lambda module: module.seconds)
        share, step = percent(widest.seconds / root.seconds), quantity(profile.seconds, "s")
        axes.set_title(f"{widest.path} takes {share} of a step of {step}: {profile.label}")
    return figure


def _depth(node: Node) -> int:
    return 1 + max((_depth(child) for child in node.children.values()), default=0)


def _fork(root: Node) -> int:
    """The level below which boxes get colours of their own: where the time first spreads over several layers."""
    node, level = root, 0
    while node.children:
        if sum(child.seconds > 0.03 * root.seconds for child in node.children.values()) >= 3:
            break
        node, level = max(node.children.values(), key=lambda child: child.seconds), level + 1
    return level


def _boxes(axes: Axes, node: Node, left: float, level: int, total: float, depth: int, fork: int, number: int) -> None:
    """Draw a layer and what is in it; the boxes of level `fork` and what is in them are coloured by their number."""
    width = node.seconds / total
    face = "#cccccc" if node.name.startswith(OUTSIDE) else COLOURS[number % 6]
    look: dict[str, Any] = {"facecolor": face, "alpha": 0.85 - 0.07 * level, "edgecolor": "white", "linewidth": 0.6}
    axes.add_patch(Rectangle((left, level + 0.03), width, 0.94, **look))
    if width > NARROW:
        letters = int(width * 150)
        text = node.name if len(node.name) <= letters else node.name[: max(1, letters - 1)] + "…"
        share = f"  {100 * width:.0f} %" if letters > len(node.name) + 6 else ""
        axes.text(left + width / 2, level + 0.5, text + share, ha="center", va="center", fontsize=7, clip_on=True)
    if level + 1 >= depth:
        return
    place = left
    for i, child in enumerate(node.children.values()):
        _boxes(axes, child, place, level + 1, total, depth, fork, i if level == fork else number)
        place += child.seconds / total


@styled()
def roofline(profile: Profile) -> Figure | None:
    """FLOP/s of each operator against FLOPs a byte, under the two ceilings; None where no work is known."""
    known = [o for o in profile.operators if o.flops and o.bytes and o.seconds]
    if not known:
        return None
    ridge = profile.flops_ceiling / profile.bandwidth
    intensities = [(o.flops or 0) / (o.bytes or 1) for o in known]
    low, high = min([*intensities, ridge]) / 4, max([*intensities, ridge]) * 4
    factor, unit = unit_for([profile.flops_ceiling], "FLOP/s")
    figure, axes = new_figure(6.4, 4.2)
    axes.plot(
        [low, ridge, high],
        [low * profile.bandwidth / factor, profile.flops_ceiling / factor, profile.flops_ceiling / factor],
        color="#444444",
    )
    if profile.ceilings:
        # From the lowest reading of each ceiling up to the best, which is the roof.
        flops, bandwidth = (min(readings) for readings in zip(*profile.ceilings, strict=True))
        places = sorted((low, ridge, flops / bandwidth, high))
        lowest = [min(place * bandwidth, flops) / factor for place in places]
        best = [min(place * profile.bandwidth, profile.flops_ceiling) / factor for place in places]
        axes.fill_between(places, lowest, best, color="#444444", alpha=0.15, linewidth=0)
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5}
    product = f"{quantity(profile.flops_ceiling, 'FLOP/s')} ({profile.precision} product)"
    axes.annotate(product, (high, profile.flops_ceiling / factor), xytext=(-4, 4), ha="right", **small)
    copy = f"{quantity(profile.bandwidth, 'bytes/s')} (copy)"
    axes.annotate(copy, (low, low * profile.bandwidth / factor), xytext=(6, 0), va="top", **small)
    for number, (operator, intensity) in enumerate(zip(known, intensities, strict=True)):
        reached = (operator.flops or 0) / operator.seconds / factor
        share = operator.seconds / profile.profiled_seconds
        size = 4 + 16 * share**0.5
        axes.plot([intensity], [reached], "o", color=colour(number), markersize=size, alpha=0.75)
        if number < LABELLED:
            label = f"{plain_name(operator.name)[:34]}, {100 * share:.1f} % of the time"
            axes.plot([], [], "o", color=colour(number), label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_logarithms(axes.xaxis)
    plain_logarithms(axes.yaxis)
    axes.margins(y=0.12)
    title = f"{profile.label} ({profile.task.replace('_', ' ')}) {profile.limit()}"
    label_axes(axes, title, "FLOPs a byte", unit)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
