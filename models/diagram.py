"""A picture of a network as SVG or PNG: blocks from top to bottom, with shapes and shortcuts."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from models.blocks import Block, blocks
from models.errors import ModelError
from models.summary import on_meta

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All lengths are in points, 1/72 inch.
_FONT, _LEADING, _PADDING, _GAP, _LANE, _MARGIN = 11.0, 17.0, 10.0, 34.0, 14.0, 24.0
_MOST = 12  # boxes in a column
_INK, _FAINT, _SHORTCUT = "#1f2933", "#66727f", "#b5480f"
_PLAIN, _RESIDUAL, _EDGE, _SHADOW = "#eef2f6", "#e3eefb", "#8a97a5", "#c9d6e4"


def write(
    path: str | Path,
    network: str | nn.Module,
    classes: int | None = None,
    size: int | None = None,
    arguments: Mapping[str, object] | None = None,
) -> None:
    """Write the diagram of a network to an `.svg` or `.png` file. Other arguments as in `models.summary.summarise`.

    Raises:
        ModelError: another file name, a file that cannot be written, or as in `models.summary.summarise`.
    """
    import matplotlib

    suffix = Path(path).suffix
    if suffix not in (".svg", ".png"):
        raise ModelError(f"a diagram is an .svg or .png file, not {Path(path).name!r}")
    module, title, pixels = on_meta(network, classes, size, arguments)
    figure = draw(module, title, pixels)
    # Without a date and with fixed ids the same network gives the same file. Text stays text.
    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    draft = Path(path).with_name(f".{Path(path).stem}.{os.getpid()}{suffix}")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        try:
            try:
                figure.savefig(draft, dpi=144, metadata=metadata)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(f"cannot write the diagram {path}: {error.strerror}") from error


def draw(module: nn.Module, title: str, size: int) -> "Figure":
    """The diagram of a network on the meta device, for images of 3 x size x size."""
    from matplotlib.figure import Figure

    boxes = blocks(module, title, size)
    params = sum(parameter.numel() for parameter in module.parameters())
    head = [f"{title}: {params:,} parameters, image {_shape((3, size, size))}"]
    outside = params - sum(box.params for box in boxes)
    if outside:
        head.append(f"{outside:,} of them belong to no block")
    count = math.ceil(len(boxes) / _MOST)
    columns = [boxes[len(boxes) * i // count : len(boxes) * (i + 1) // count] for i in range(count)]
    width = max(map(_width, boxes))
    across = 2 * _MARGIN + max(len(columns) * (width + _GAP) - _GAP, *(_length(line, _FONT + 2) for line in head))
    top = _MARGIN + _LEADING * len(head)
    down = top + _GAP + max(sum(_height(box) + _GAP for box in column) for column in columns) + _MARGIN / 2

    # Without pyplot, which would change global state and look for a display.
    figure = Figure(figsize=(across / 72, down / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.axis("off")
    for row, line in enumerate(head):
        _text(axes, _MARGIN, _MARGIN + row * _LEADING, line, size=_FONT + 2, bold=row == 0)
    shape = _shape((3, size, size))
    for number, column in enumerate(columns):
        x, y = _MARGIN + number * (width + _GAP), top
        for box in column:
            _arrow(axes, x + width / 2, y, shape)
            y += _GAP
            _box(axes, box, x, y, width)
            y += _height(box)
            shape = _shape(box.output_shape)
        # Continued at the top of the next column, with the same shape.
        _arrow(axes, x + width / 2, y, shape)
    return figure


def _height(box: Block) -> float:
    return _LEADING * (len(box.lines) + 2) + _PADDING


def _width(box: Block) -> float:
    labels = max((_length(cut.label) + _LANE * (len(box.shortcuts) + 1) for cut in box.shortcuts), default=0.0)
    heads = (_length(box.heading) * 1.1, _length(_count(box)), _lines_width(box) + labels)
    return 2 * _PADDING + max(heads)


def _lines_width(box: Block) -> float:
    return max(map(_length, box.lines))


def _length(text: str, size: float = _FONT) -> float:
    """Width of a text, generously: a viewer of the SVG may have another font."""
    return len(text) * size * 0.6


def _shape(shape: Sequence[int]) -> str:
    return "\u00d7".join(map(str, shape)) or "scalar"


def _count(box: Block) -> str:
    times = len(box.names)
    each = f", {box.params // times:,} each" if times > 1 and box.params and not box.grows else ""
    return f"{box.params:,} parameters{' in all' * (times > 1)}{each}" if box.params else "no parameters"


def _box(axes: "Axes", box: Block, x: float, y: float, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    for shift in (6, 3, 0) if len(box.names) > 1 else (0,):
        fill = _SHADOW if shift else _RESIDUAL if box.shortcuts else _PLAIN
        corner = (x + shift, y + shift)
        style = "round,pad=0,rounding_size=5"
        axes.add_patch(FancyBboxPatch(corner, width, _height(box), style, fc=fill, ec=_EDGE, lw=0.8, zorder=2))
    rows = [y + _PADDING + _LEADING * (row + 0.25) for row in range(len(box.lines) + 2)]
    _text(axes, x + _PADDING, rows[0], box.heading, bold=True)
    for row, line in zip(rows[1:], box.lines, strict=False):
        _text(axes, x + _PADDING, row, line)
    _text(axes, x + _PADDING, rows[-1], _count(box), color=_FAINT)
    # Shortcuts run to the right of the lines, each in a lane of its own.
    ways: dict[tuple[int, int], list[str]] = {}
    for cut in box.shortcuts:
        ways.setdefault((cut.start, cut.end), []).append(cut.label)
    left = x + _PADDING + _lines_width(box)
    for lane, ((start, end), labels) in enumerate(ways.items(), 1):
        first, last, out = rows[start] + _LEADING / 2, rows[end + 1], left + lane * _LANE
        axes.plot([left, out, out], [first, first, last], color=_SHORTCUT, lw=1, zorder=3)
        axes.annotate("", (left, last), (out, last), arrowprops=_head(_SHORTCUT), zorder=3)
        _text(axes, left + (len(ways) + 0.5) * _LANE, (first + last) / 2, "\n".join(labels), color=_SHORTCUT)


def _arrow(axes: "Axes", x: float, y: float, shape: str) -> None:
    """An arrow over the gap below `y`, with the shape of what passes there."""
    axes.annotate("", (x, y + _GAP), (x, y), arrowprops=_head(_INK), zorder=3)
    _text(axes, x + 6, y + _GAP / 2, shape, color=_FAINT)


def _head(color: str) -> dict[str, object]:
    return {"arrowstyle": "-|>", "color": color, "lw": 1, "shrinkA": 0, "shrinkB": 0}


def _text(
    axes: "Axes", x: float, y: float, text: str, size: float = _FONT, color: str = _INK, bold: bool = False
) -> None:
    # Not parsed as formulas: a dollar sign or an underscore means itself.
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, fontsize=size, color=color, weight=weight, va="center", zorder=4, parse_math=False)
