"""A picture of a network: its blocks from top to bottom, the shapes between them, shortcuts beside them.

The drawing is a list of strokes and words, written as SVG with the standard library and as PNG with matplotlib.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from torch import nn

from models.blocks import Block, Shape, Shortcut, read
from models.errors import ModelError
from models.summary import on_meta


def svg(
    network: str | nn.Module,
    classes: int | None = None,
    size: int | None = None,
    arguments: Mapping[str, object] | None = None,
) -> str:
    """The diagram of a network as an SVG document. Arguments and errors as in `models.blocks.blocks`."""
    drawing = _drawing(network, classes, size, arguments)
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.Element(
        f"{{{_SVG}}}svg",
        {
            "width": f"{drawing.width:g}",
            "height": f"{drawing.height:g}",
            "viewBox": f"0 0 {drawing.width:g} {drawing.height:g}",
            "font-family": "DejaVu Sans, Verdana, sans-serif",
        },
    )
    ElementTree.SubElement(root, f"{{{_SVG}}}title").text = drawing.title
    _element(root, _Rect(0, 0, drawing.width, drawing.height, "#ffffff", "none", 0))
    for mark in drawing.marks:
        _element(root, mark)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def write(
    path: str | Path,
    network: str | nn.Module,
    classes: int | None = None,
    size: int | None = None,
    arguments: Mapping[str, object] | None = None,
) -> None:
    """Write the diagram of a network to a `.svg` or `.png` file. Other arguments as in
    `models.blocks.blocks`.

    Raises:
        ModelError: another file name, a file that cannot be written, or as in `models.blocks.blocks`.
    """
    check_path(path)
    target = Path(path)
    try:
        if target.suffix == ".svg":
            target.write_text(svg(network, classes, size, arguments), encoding="utf-8")
        else:
            _write_png(target, _drawing(network, classes, size, arguments))
    except OSError as error:
        raise ModelError(f"cannot write the diagram {path}: {error.strerror}") from error


def check_path(path: str | Path) -> None:
    """Refuse a file name that `write` could not write a diagram to.

    Raises:
        ModelError: it ends neither in .svg nor in .png.
    """
    if Path(path).suffix not in (".svg", ".png"):
        raise ModelError(f"a diagram is an .svg or .png file, not {Path(path).name!r}")


# Strokes and words


@dataclass(frozen=True, slots=True)
class _Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str
    radius: float


@dataclass(frozen=True, slots=True)
class _Line:
    points: tuple[tuple[float, float], ...]
    stroke: str
    arrow: bool = False


@dataclass(frozen=True, slots=True)
class _Text:
    x: float
    y: float
    text: str
    size: float
    fill: str
    anchor: str = "start"
    bold: bool = False


_Mark = _Rect | _Line | _Text


@dataclass(frozen=True, slots=True)
class _Drawing:
    title: str
    width: float
    height: float
    marks: tuple[_Mark, ...]


_SVG = "http://www.w3.org/2000/svg"
_FONT = 11.0
_LEADING = 17.0
_PADDING = 10.0
_GAP = 34.0
_MARGIN = 24.0
_LANE = 14.0
_TALLEST = 1000.0
_INK, _FAINT, _SHORTCUT = "#1f2933", "#66727f", "#b5480f"
_PLAIN, _RESIDUAL, _EDGE, _SHADOW = "#eef2f6", "#e3eefb", "#8a97a5", "#c9d6e4"


def _long(text: str, size: float = _FONT, bold: bool = False) -> float:
    """Width of a text, generously: what draws it may have another font."""
    return len(text) * size * (0.66 if bold else 0.6)


def _shape_text(shape: Shape) -> str:
    return "\u00d7".join(map(str, shape)) or "scalar"


def _count_text(count: int) -> str:
    return f"{count:,} parameters" if count else "no parameters"


def _drawing(
    network: str | nn.Module,
    classes: int | None,
    size: int | None,
    arguments: Mapping[str, object] | None,
) -> _Drawing:
    module, title, pixels = on_meta(network, classes, size, arguments)
    boxes = read(module, title, pixels)
    params = sum(parameter.numel() for parameter in module.parameters())
    inside = sum(box.params for box in boxes)
    lines = [f"{title}: {params:,} parameters, image {_shape_text((3, pixels, pixels))}"]
    if inside != params:
        lines.append(f"{params - inside:,} of them belong to no block")
    untraced = sorted({box.title for box in boxes if not box.traced})
    if untraced:
        lines.append(f"not followed inside, shortcuts not shown: {', '.join(untraced)}")
    return _laid_out(title, lines, boxes, (3, pixels, pixels))


def _laid_out(title: str, head: Sequence[str], boxes: Sequence[Block], image: Shape) -> _Drawing:
    """Boxes from top to bottom, in as many columns as keep the picture from being taller than a page."""
    width = max(_box_width(box) for box in boxes)
    top = _MARGIN + _LEADING * len(head) + _GAP
    total = sum(_box_height(box) + _GAP for box in boxes)
    columns = max(1, round(total / _TALLEST + 0.3))
    limit = total / columns
    marks: list[_Mark] = []
    for index, line in enumerate(head):
        marks.append(_Text(_MARGIN, _MARGIN + _LEADING * (index + 0.6), line, _FONT + 2, _INK, bold=index == 0))
    gutter = _GAP * 1.6
    x, y, used, tallest = _MARGIN, top, 0.0, top
    before: tuple[float, float] | None = None
    shape = image
    for box in boxes:
        height = _box_height(box)
        if used and used + (height + _GAP) / 2 > limit:
            x, y, used = x + width + gutter, top, 0.0
        centre = x + width / 2
        text = _shape_text(box.input_shape)
        if shape != box.input_shape:
            text = f"{_shape_text(shape)} \u2192 {text}"
        if before is None or before[0] != centre:
            if before is not None:
                # Out at the bottom of the last column, up between the columns, in at the top of this one.
                between = x - gutter / 2
                low, high = before[1] + _GAP / 2, y - _GAP * 0.75
                marks.append(
                    _Line(
                        (before, (before[0], low), (between, low), (between, high), (centre, high), (centre, y)),
                        _INK,
                        True,
                    )
                )
            else:
                marks.append(_Line(((centre, y - _GAP * 0.75), (centre, y)), _INK, True))
        else:
            marks.append(_Line((before, (centre, y)), _INK, True))
        marks.append(_Text(centre + 6, y - _GAP / 2 + 4, text, _FONT - 1, _FAINT))
        marks += _box(box, x, y, width, height)
        before, shape = (centre, y + height), box.output_shape
        y += height + _GAP
        used += height + _GAP
        tallest = max(tallest, y)
    assert before is not None
    marks.append(_Line((before, (before[0], before[1] + _GAP * 0.75)), _INK, True))
    marks.append(_Text(before[0] + 6, before[1] + _GAP / 2 + 4, _shape_text(shape), _FONT - 1, _FAINT))
    across = max(
        x + width + _MARGIN, *(_MARGIN * 2 + _long(line, _FONT + 2, index == 0) for index, line in enumerate(head))
    )
    return _Drawing(title, across, tallest + _MARGIN / 2, tuple(marks))


def _arcs(box: Block) -> list[tuple[Shortcut, list[str], int]]:
    """Shortcuts as they are drawn: one arc for those over the same lines, with all their labels, and its lane.

    Arcs that pass the same line run in different lanes.
    """
    labels: dict[tuple[int, int], list[str]] = {}
    for cut in box.shortcuts:
        labels.setdefault((cut.start, cut.end), []).append(cut.label)
    arcs: list[tuple[Shortcut, list[str], int]] = []
    for (start, end), texts in labels.items():
        taken = {lane for other, _, lane in arcs if other.start < end and start < other.end}
        lane = next(lane for lane in range(len(labels)) if lane not in taken)
        arcs.append((Shortcut(start, end, texts[0]), texts, lane))
    return arcs


def _shortcut_width(box: Block) -> float:
    if not box.shortcuts:
        return 0.0
    lanes = 1 + max(lane for _, _, lane in _arcs(box))
    return _LANE * (lanes + 1) + max(_long(cut.label, _FONT - 1) for cut in box.shortcuts)


def _box_width(box: Block) -> float:
    heading = _long(box.heading, _FONT, bold=True) + _PADDING * 2
    lines = max((_long(line) for line in box.lines), default=0.0) + _PADDING * 2 + _shortcut_width(box)
    return max(heading, lines, _long(_params_text(box), _FONT - 1) + _PADDING * 2)


def _box_height(box: Block) -> float:
    return _PADDING * 1.6 + _LEADING * (2 + len(box.lines))


def _params_text(box: Block) -> str:
    times = len(box.names)
    if times == 1 or not box.params:
        return _count_text(box.params)
    each = f", {box.params // times:,} each" if box.params % times == 0 and not box.grows else ""
    return f"{_count_text(box.params)} in all{each}"


def _box(box: Block, x: float, y: float, width: float, height: float) -> list[_Mark]:
    fill = _RESIDUAL if box.shortcuts else _PLAIN
    marks: list[_Mark] = []
    if len(box.names) > 1:
        marks += [_Rect(x + shift, y + shift, width, height, _SHADOW, _EDGE, 5) for shift in (6.0, 3.0)]
    marks.append(_Rect(x, y, width, height, fill, _EDGE, 5))
    row = y + _PADDING * 0.8 + _LEADING * 0.7
    marks.append(_Text(x + _PADDING, row, box.heading, _FONT, _INK, bold=True))
    rows = [row + _LEADING * (index + 1) for index in range(len(box.lines))]
    for at, line in zip(rows, box.lines, strict=True):
        marks.append(_Text(x + _PADDING, at, line, _FONT, _INK))
    marks.append(_Text(x + _PADDING, row + _LEADING * (len(box.lines) + 1), _params_text(box), _FONT - 1, _FAINT))
    # Shortcuts run to the right of the lines they pass and end at the word that says how they join.
    right = x + _PADDING + max((_long(line) for line in box.lines), default=0.0) + 4
    arcs = _arcs(box)
    beside = right + _LANE * (1 + max((lane for _, _, lane in arcs), default=0)) + 4
    for cut, labels, lane in arcs:
        out = right + _LANE * (lane + 1)
        start, end = rows[cut.start] - _LEADING * 0.75, rows[cut.end] - 4
        inward = x + _PADDING + _long(box.lines[cut.end]) + 4
        left = x + _PADDING + (_long(box.lines[cut.start - 1]) if cut.start else _long(box.heading, bold=True)) + 4
        marks.append(_Line(((min(left, right), start), (out, start), (out, end), (inward, end)), _SHORTCUT, True))
        first = (start + end) / 2 + 4 - (len(labels) - 1) * _LEADING * 0.4
        for index, label in enumerate(labels):
            marks.append(_Text(beside, first + index * _LEADING * 0.8, label, _FONT - 1, _SHORTCUT))
    return marks


def _arrow(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The three corners of an arrow's head at the end of a line that runs along an axis."""
    (x0, y0), (x1, y1) = points[-2:]
    length = max(abs(x1 - x0), abs(y1 - y0)) or 1.0
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    return (
        (x1, y1),
        (x1 - 7 * dx - 3.2 * dy, y1 - 7 * dy - 3.2 * dx),
        (x1 - 7 * dx + 3.2 * dy, y1 - 7 * dy + 3.2 * dx),
    )


def _coordinates(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _element(parent: ElementTree.Element, mark: _Mark) -> None:
    def add(tag: str, **attributes: str) -> ElementTree.Element:
        named = {key.replace("_", "-"): value for key, value in attributes.items()}
        return ElementTree.SubElement(parent, f"{{{_SVG}}}{tag}", named)

    if isinstance(mark, _Rect):
        where = {key: f"{getattr(mark, key):.1f}" for key in ("x", "y", "width", "height")}
        add("rect", **where, rx=f"{mark.radius:g}", fill=mark.fill, stroke=mark.stroke)
    elif isinstance(mark, _Line):
        add("polyline", points=_coordinates(mark.points), fill="none", stroke=mark.stroke, stroke_width="1.2")
        if mark.arrow:
            add("polygon", points=_coordinates(_arrow(mark.points)), fill=mark.stroke)
    else:
        weight = {"font_weight": "bold"} if mark.bold else {}
        place = {"x": f"{mark.x:.1f}", "y": f"{mark.y:.1f}", "text_anchor": mark.anchor}
        add("text", **place, font_size=f"{mark.size:g}", fill=mark.fill, **weight).text = re.sub(
            " {2,}", "  ", mark.text
        )


def _write_png(path: Path, drawing: _Drawing, scale: float = 2.0) -> None:
    # The figure alone, without pyplot: nothing global is touched and no display is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyBboxPatch, Polygon

    # A point of matplotlib is 1/72 inch, so that a unit of the drawing is one point.
    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), dpi=72 * scale, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    for order, mark in enumerate(drawing.marks):
        if isinstance(mark, _Rect):
            style = f"round,pad=0,rounding_size={mark.radius}"
            corner = (mark.x, mark.y)
            axes.add_patch(
                FancyBboxPatch(
                    corner, mark.width, mark.height, style, fc=mark.fill, ec=mark.stroke, lw=0.8, zorder=order
                )
            )
        elif isinstance(mark, _Line):
            across, down = zip(*mark.points, strict=True)
            axes.add_line(Line2D(across, down, color=mark.stroke, lw=1.0, zorder=order))
            if mark.arrow:
                axes.add_patch(Polygon(_arrow(mark.points), color=mark.stroke, lw=0, zorder=order))
        else:
            # Words are not formulas: a dollar sign or an underscore means itself.
            axes.text(
                mark.x,
                mark.y,
                mark.text,
                fontsize=mark.size,
                color=mark.fill,
                ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
                va="baseline",
                weight="bold" if mark.bold else "normal",
                zorder=order,
                parse_math=False,
            )
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})  # type: ignore[no-untyped-call]
