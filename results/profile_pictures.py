"""Pictures of a profile: time by layer as a flame graph, and operators under the roof."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from results.plots import COLOURS, style_context
from results.profile import OVERHEAD, Profile, plain_name
from results.tables import quantity, unit_for

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
        parts = [module.path] if module.path.startswith("(") else module.path.split(".")
        for part in parts:
            node = node.children.setdefault(part, Node(part))
            node.seconds += module.seconds
    left = profile.profiled_seconds - root.seconds
    if left > 0 and profile.idle is None:
        root.children[OVERHEAD] = Node(OVERHEAD, left)
        root.seconds += left
    return root


def flame(profile: Profile) -> Figure | None:
    """Boxes as wide as the time of a layer, its parts below it; None where nothing is known of layers."""
    root = tree(profile)
    if not root.seconds or not profile.modules:
        return None
    depth = min(DEPTH, _depth(root))
    with style_context():
        figure = Figure(figsize=(10, 0.9 + 0.42 * depth), layout="constrained")
        axes = figure.subplots()
        _boxes(axes, root, 0.0, 0, root.seconds, depth, _fork(root), 0)
        axes.set_xlim(0, 1)
        axes.set_ylim(depth, 0)
        axes.set_axis_off()
        top = profile.tree(1)
        widest = max(
            (module for module in top if not module.path.startswith("(")), key=lambda m: m.seconds, default=None
        )
        if widest is not None:
            share = 100 * widest.seconds / root.seconds
            axes.set_title(
                f"{widest.path} takes {share:.0f} % of a step of {quantity(profile.seconds, 's')}: {profile.label}"
            )
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


def _boxes(axes: Axes, node: Node, left: float, level: int, total: float, depth: int, fork: int, colour: int) -> None:
    """Draw a layer and what is in it."""
    width = node.seconds / total
    outside = node.name.startswith("(")
    face = "#cccccc" if outside else COLOURS[colour % 6]
    axes.add_patch(
        Rectangle(
            (left, level + 0.03),
            width,
            0.94,
            facecolor=face,
            alpha=0.85 - 0.07 * level,
            edgecolor="white",
            linewidth=0.6,
        )
    )
    if width > NARROW:
        letters = int(width * 150)
        text = node.name if len(node.name) <= letters else node.name[: max(1, letters - 1)] + "…"
        share = f"  {100 * width:.0f} %" if letters > len(node.name) + 6 else ""
        axes.text(left + width / 2, level + 0.5, text + share, ha="center", va="center", fontsize=7, clip_on=True)
    if level + 1 >= depth:
        return
    place = left
    for number, child in enumerate(node.children.values()):
        _boxes(axes, child, place, level + 1, total, depth, fork, number if level == fork else colour)
        place += child.seconds / total


def roofline(profile: Profile) -> Figure | None:
    """FLOP/s of each operator against FLOPs a byte, under the two ceilings; None where no work is known."""
    known = [o for o in profile.operators if o.flops and o.bytes and o.seconds]
    if not known:
        return None
    ridge = profile.flops_ceiling / profile.bandwidth
    intensities = [(o.flops or 0) / (o.bytes or 1) for o in known]
    low, high = min([*intensities, ridge]) / 4, max([*intensities, ridge]) * 4
    factor, unit = unit_for([profile.flops_ceiling], "FLOP/s")
    with style_context():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [low, ridge, high],
            [low * profile.bandwidth / factor, profile.flops_ceiling / factor, profile.flops_ceiling / factor],
            color="#444444",
        )
        axes.annotate(
            f"{quantity(profile.flops_ceiling, 'FLOP/s')} ({profile.precision} product)",
            (high, profile.flops_ceiling / factor), xytext=(-4, 4), textcoords="offset points", ha="right",
            fontsize=7.5,
        )  # fmt: skip
        axes.annotate(
            f"{quantity(profile.bandwidth, 'bytes/s')} (copy)",
            (low, low * profile.bandwidth / factor), xytext=(6, 0), textcoords="offset points", va="top", fontsize=7.5,
        )  # fmt: skip
        for number, (operator, intensity) in enumerate(zip(known, intensities, strict=True)):
            reached = (operator.flops or 0) / operator.seconds / factor
            share = operator.seconds / profile.profiled_seconds
            axes.plot(
                [intensity], [reached], "o", color=COLOURS[number % len(COLOURS)],
                markersize=4 + 16 * share**0.5, alpha=0.75,
            )  # fmt: skip
            if number < LABELLED:
                said = f"{plain_name(operator.name)[:34]}, {100 * share:.1f} % of time"
                axes.plot([], [], "o", color=COLOURS[number % len(COLOURS)], label=said)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.12)
        axes.set_xlabel("FLOPs a byte")
        axes.set_ylabel(unit)
        axes.grid(True)
        axes.set_title(f"{profile.label} ({profile.task.replace('_', ' ')}) {profile.limit()}")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
