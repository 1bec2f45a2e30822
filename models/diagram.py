"""A picture of a network: its blocks in the order in which they run, the shapes between them, shortcuts beside them.

Blocks and shapes are read off one forward pass of one image on the meta device; what happens inside a block (which
layer follows which, where a shortcut starts and ends) is read off its graph, traced by torch.fx. Blocks that repeat
are drawn once. The drawing is a list of strokes and words, written as SVG with the standard library and as PNG with
matplotlib.
"""

import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import fx, nn

from models.errors import ModelError
from models.summary import on_meta, run, shape_of

Shape = tuple[int, ...]

_GATHERED = "concatenate all before"


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What leaves a block's path before one line and joins it again at a later one.

    Attributes:
        start, end: lines of the block; it leaves before `start` and joins at `end`, which says how.
        label: what lies on it, "identity" for nothing.
    """

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Block:
    """A box of the diagram.

    Attributes:
        names: paths of the folded blocks in the network, in execution order; one if nothing is folded.
        title: its class; nothing for plain layers.
        lines: what runs in it, in order; words for those layers that follow a convolution stand in its line.
        shortcuts: residual and dense connections inside.
        input_shape, output_shape: without the batch axis; of the first and of the last of folded blocks.
        params: parameters of all folded blocks together.
        traced: False if torch.fx could not follow it, so that shortcuts, if it has any, are not shown.
    """

    names: tuple[str, ...]
    title: str
    lines: tuple[str, ...]
    shortcuts: tuple[Shortcut, ...]
    input_shape: Shape
    output_shape: Shape
    params: int
    traced: bool = True

    @property
    def heading(self) -> str:
        """Title, which of the network's modules it is, and how often it repeats."""
        which = self.names[0]
        if len(self.names) > 1:
            which += f" to .{self.names[-1].rpartition('.')[2]}  \u00d7 {len(self.names)}"
        return f"{self.title}  {which}" if self.title else which

    @property
    def grows(self) -> bool:
        """Whether its output holds its input, so that the next of its kind sees more channels."""
        gathers = self.lines[0] == _GATHERED
        return gathers or any(
            self.lines[cut.end].startswith("concatenate") and cut.label == "identity" for cut in self.shortcuts
        )


def blocks(
    network: str | nn.Module,
    classes: int | None = None,
    size: int | None = None,
    arguments: Mapping[str, object] | None = None,
) -> tuple[Block, ...]:
    """The boxes of a network's diagram, in execution order, repetitions folded. Arguments as in `summarise`.

    Raises:
        ModelError: no such network or argument, a module without a size, or an image that does not fit.
    """
    module, title, pixels = on_meta(network, classes, size, arguments)
    return _blocks(module, title, pixels)


def svg(
    network: str | nn.Module,
    classes: int | None = None,
    size: int | None = None,
    arguments: Mapping[str, object] | None = None,
) -> str:
    """The diagram of a network as an SVG document. Arguments and errors as in `blocks`."""
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
    """Write the diagram of a network to a `.svg` or `.png` file. Other arguments as in `blocks`.

    Raises:
        ModelError: another file name, a file that cannot be written, or as in `blocks`.
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


# Which modules are boxes


@dataclass(slots=True)
class _Unit:
    """A module that ran, with the shapes around it."""

    name: str
    module: nn.Module
    input_shape: Shape
    output_shape: Shape
    gathers: bool


def _blocks(network: nn.Module, title: str, size: int) -> tuple[Block, ...]:
    units: list[_Unit] = []
    handles = []
    for name, module in _unit_modules(network):

        def note(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
            given, gathers = shape_of(inputs), False
            if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], list):
                # torchvision's DenseNet hands its layers a list of all outputs before them.
                parts = [shape_of(part) for part in inputs[0]]
                given, gathers = (sum(part[0] for part in parts), *given[1:]), True
            units.append(_Unit(name, module, given, shape_of(output), gathers))

        handles.append(module.register_forward_hook(note))
    try:
        run(network, title, size)
    finally:
        for handle in handles:
            handle.remove()
    return _folded(_boxes(network, units))


def _unit_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that become boxes, or parts of one: what is left when containers are opened."""
    found: list[tuple[str, nn.Module]] = []

    def visit(name: str, module: nn.Module) -> None:
        for key, child in module.named_children():
            path = f"{name}.{key}" if name else key
            if _is_container(child):
                visit(path, child)
            elif not isinstance(child, nn.Identity):
                found.append((path, child))

    visit("", network)
    return found


def _is_container(module: nn.Module) -> bool:
    """A module that only holds blocks: a plain sequence, a list of blocks, or the same block again and again."""
    if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        return True
    inner = [type(child) for child in _opened(module) if _weighty(child) > 1]
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return bool(inner)
    return len(inner) != len(set(inner))


def _opened(module: nn.Module) -> list[nn.Module]:
    found = []
    for child in module.children():
        if type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
            found += _opened(child)
        else:
            found.append(child)
    return found


def _weighty(module: nn.Module) -> int:
    """Convolutions and linear layers below a module; none for a plain layer."""
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules() if layer is not module)


def _boxes(network: nn.Module, units: Sequence[_Unit]) -> list[Block]:
    """A box for each block; plain layers in a row share one, which holds one convolution or linear layer at most."""
    boxes: list[Block] = []
    group: list[_Unit] = []

    def close() -> None:
        if group:
            modules = [unit.module for unit in group]
            lines = _lines([_words(module) for module in modules], [_leads(module) for module in modules])
            params = sum(parameter.numel() for module in modules for parameter in module.parameters(recurse=False))
            name = _name_of(network, group)
            boxes.append(Block((name,), "", tuple(lines), (), group[0].input_shape, group[-1].output_shape, params))
            group.clear()

    for unit in units:
        plain = not any(unit.module.children()) and not _is_leaf(unit.module)
        if not plain or (_weighs(unit.module) and any(_weighs(other.module) for other in group)):
            close()
        if plain:
            group.append(unit)
        else:
            boxes.append(_block(unit))
    close()
    return boxes


def _name_of(network: nn.Module, group: Sequence[_Unit]) -> str:
    """The module that holds just these layers, or the first of them."""
    parent = group[0].name.rpartition(".")[0]
    if parent:
        inside = [child for child in network.get_submodule(parent).children() if not isinstance(child, nn.Identity)]
        if inside == [unit.module for unit in group]:
            return parent
    return group[0].name


def _weighs(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _folded(boxes: Sequence[Block]) -> tuple[Block, ...]:
    """Neighbours that do the same as one box. Dense blocks do the same on ever more channels."""
    folded: list[Block] = []
    last_key: object = None
    for box in boxes:
        if box.grows:
            key: object = (box.title, box.lines, box.shortcuts, box.input_shape[1:], box.output_shape[1:])
        else:
            key = (box.title, box.lines, box.shortcuts, box.input_shape, box.output_shape, box.params)
        if key == last_key:
            last = folded[-1]
            names = (*last.names, *box.names)
            folded[-1] = replace(last, names=names, output_shape=box.output_shape, params=last.params + box.params)
        else:
            folded.append(box)
        last_key = key
    return tuple(folded)


# What happens inside a block


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m) or not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _is_leaf(module: nn.Module) -> bool:
    """Modules with children that are one thing to a reader."""
    return _is_gate(module) or isinstance(module, nn.MultiheadAttention)


def _is_gate(module: nn.Module) -> bool:
    return type(module).__name__.lower().startswith(("squeezeexcit", "seblock", "semodule"))


_JOINS: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    "add": "add",
    "add_": "add",
    torch.cat: "concatenate",
    torch.concat: "concatenate",
}
_FUNCTIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "sigmoid": "sigmoid", "softmax": "softmax"}


def _block(unit: _Unit) -> Block:
    params = sum(parameter.numel() for parameter in unit.module.parameters())
    title = type(unit.module).__name__
    lines: list[str]
    shortcuts: tuple[Shortcut, ...] = ()
    traced = True
    if _is_leaf(unit.module):
        lines = [_words(unit.module)]
    else:
        try:
            graph = _Tracer().trace(unit.module)
        except Exception:
            # torch.fx gives up in as many ways as there are forward passes; the block's layers are known without it.
            traced = False
            leaves = [m for m in unit.module.modules() if not any(m.children()) and not isinstance(m, nn.Identity)]
            lines = _lines([_words(leaf) for leaf in leaves], [_leads(leaf) for leaf in leaves])
        else:
            lines, shortcuts = _read(graph, unit.module)
    if unit.gathers:
        lines.insert(0, _GATHERED)
        shortcuts = tuple(replace(cut, start=cut.start + 1, end=cut.end + 1) for cut in shortcuts)
    return Block(
        (unit.name,), title, tuple(lines), shortcuts, unit.input_shape, unit.output_shape, params, traced=traced
    )


def _read(graph: fx.Graph, module: nn.Module) -> tuple[list[str], tuple[Shortcut, ...]]:
    """Lines and shortcuts of a traced block.

    Where paths join, the one with most layers is the block's own; the others are shortcuts.
    """
    nodes = [node for node in graph.nodes if node.op in ("call_module", "call_function", "call_method")]
    texts = {node: _node_words(node, module) for node in nodes}
    aside: set[fx.Node] = set()
    cuts: list[tuple[fx.Node | None, fx.Node, str]] = []
    for node in nodes:
        operands = _operands(node) if _join(node) else []
        if len(operands) < 2:
            continue
        behind = [_behind(operand) for operand in operands]
        shared = set.intersection(*behind)
        weights = [sum(bool(texts.get(n)) for n in own - shared) for own in behind]
        main = max(range(len(operands)), key=lambda index: weights[index])
        # The point where the paths part: the last node that is behind all of them.
        fork = max((n for n in shared if n in texts), key=nodes.index, default=None)
        for index, own in enumerate(behind):
            if index == main:
                continue
            side = [n for n in nodes if n in own - shared and texts[n]]
            aside.update(n for n in nodes if n in own - shared)
            cuts.append((fork, node, " \u00b7 ".join(texts[n] for n in side) or "identity"))
    shown = [node for node in nodes if texts[node] and node not in aside]
    leads = [_join(node) is not None or _node_leads(node, module) for node in shown]
    place: dict[fx.Node, int] = {}
    line = -1
    for node, lead in zip(shown, leads, strict=True):
        line += lead or line < 0
        place[node] = line
    lines = _lines([texts[node] for node in shown], leads)
    shortcuts = []
    for fork, join, label in cuts:
        if join in place:
            start = 0 if fork is None else _after(fork, nodes, place)
            shortcuts.append(Shortcut(min(start, place[join]), place[join], label))
    return lines, tuple(shortcuts)


def _after(fork: fx.Node, nodes: Sequence[fx.Node], place: Mapping[fx.Node, int]) -> int:
    """The line after that of the last shown node up to `fork`."""
    before = [place[node] for node in nodes[: nodes.index(fork) + 1] if node in place]
    return before[-1] + 1 if before else 0


def _join(node: fx.Node) -> str | None:
    word = _JOINS.get(node.target) if node.op in ("call_function", "call_method") else None
    return word if word and len(_operands(node)) > 1 else None


def _operands(node: fx.Node) -> list[fx.Node]:
    found = node.args[0] if node.args and isinstance(node.args[0], list | tuple) else node.args
    return [operand for operand in found if isinstance(operand, fx.Node)]


def _behind(node: fx.Node) -> set[fx.Node]:
    """A node and everything that it was computed from."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return seen


def _node_words(node: fx.Node, module: nn.Module) -> str:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return "" if isinstance(layer, nn.Identity) else _words(layer)
    join = _join(node)
    if join:
        return join
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return _FUNCTIONS.get(name.rstrip("_"), "")


def _node_leads(node: fx.Node, module: nn.Module) -> bool:
    return node.op == "call_module" and _leads(module.get_submodule(str(node.target)))


# A layer in words


def _words(module: nn.Module) -> str:
    """A layer as a reader would say it: "3\u00d73 conv 64 /2", "batch norm", "ReLU"."""
    if _is_gate(module):
        widths = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        inner = widths[0].weight.shape[0] if widths else 0
        return f"squeeze-excite {inner}"
    for kind, words in _WORDS.items():
        if isinstance(module, kind):
            return words(module)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", type(module).__name__).lower()


def _leads(module: nn.Module) -> bool:
    """Whether a layer starts a line; the others are said in the line of what they follow."""
    return (
        isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d)
        or _is_leaf(module)
        or type(module).__name__ in ("PadShortcut",)
    )


def _lines(words: Sequence[str], leads: Sequence[bool]) -> list[str]:
    lines: list[str] = []
    for word, lead in zip(words, leads, strict=True):
        if word and (lead or not lines):
            lines.append(word)
        elif word:
            lines[-1] += f" \u00b7 {word}"
    return lines


def _both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def _window(module: Any, word: str) -> str:
    height, width = _both(module.kernel_size)
    stride = max(_both(module.stride))
    return f"{height}\u00d7{width} {word}" + (f" /{stride}" if stride > 1 else "")


def _conv(module: Any) -> str:
    height, width = _both(module.kernel_size)
    stride = max(_both(module.stride))
    text = f"{height}\u00d7{width} conv {module.out_channels}"
    if module.groups > 1:
        text = f"{height}\u00d7{width} " + (
            f"depthwise conv {module.out_channels}"
            if module.groups == module.in_channels
            else f"conv {module.out_channels}, {module.groups} groups"
        )
    return text + (f" /{stride}" if stride > 1 else "")


_WORDS: "OrderedDict[type[nn.Module], Callable[[Any], str]]" = OrderedDict(
    {
        nn.Conv2d: _conv,
        nn.Linear: lambda m: f"linear {m.out_features}",
        nn.BatchNorm2d: lambda m: "batch norm",
        nn.LayerNorm: lambda m: "layer norm",
        nn.Dropout: lambda m: f"dropout {m.p:g}" if m.p else "",
        nn.ReLU6: lambda m: "ReLU6",
        nn.ReLU: lambda m: "ReLU",
        nn.LeakyReLU: lambda m: "leaky ReLU",
        nn.GELU: lambda m: "GELU",
        nn.SiLU: lambda m: "SiLU",
        nn.Tanh: lambda m: "tanh",
        nn.Softmax: lambda m: "softmax",
        nn.MaxPool2d: lambda m: _window(m, "max pool"),
        nn.AvgPool2d: lambda m: _window(m, "average pool"),
        nn.AdaptiveAvgPool2d: lambda m: "global average pool" if m.output_size in (1, (1, 1)) else "average pool",
        nn.Flatten: lambda m: "flatten",
        nn.MultiheadAttention: lambda m: f"attention, {m.num_heads} heads",
    }
)


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
    boxes = _blocks(module, title, pixels)
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
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
