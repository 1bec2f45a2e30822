"""A network as a list of blocks: in the order in which they run, with the shapes around them and shortcuts inside.

Blocks and shapes are read off one forward pass of one image on the meta device; what happens inside a block (which
layer follows which, where a shortcut starts and ends) is read off its graph, traced by torch.fx. Blocks that repeat
are one entry.
"""

import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

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
    return read(module, title, pixels)


# Which modules are boxes


@dataclass(slots=True)
class _Unit:
    """A module that ran, with the shapes around it."""

    name: str
    module: nn.Module
    input_shape: Shape
    output_shape: Shape
    gathers: bool


def read(network: nn.Module, title: str, size: int) -> tuple[Block, ...]:
    """The same for a network that lies on the meta device, with the name that errors give it."""
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
    return (value, value) if isinstance(value, int) else tuple(value)


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
