"""The blocks of a network in execution order: the layers in each, shortcuts and repetitions.

They are read off one forward pass of one image on the meta device: hooks see the layers, a torch function mode sees
the additions and concatenations between them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.summary import hooked, run, shape_of

# Functions that are shown besides layers -> how they are called.
_FUNCTIONS = {"__add__": "add", "__iadd__": "add", "add": "add", "add_": "add", "cat": "concatenate", "relu": "ReLU"}
_JOINS = ("add", "concatenate")
_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WEIGHTED = (nn.Conv2d, nn.Linear)


class Shortcut(NamedTuple):
    """A way around lines of a block; `label` names the layers on it.

    It leaves before line `start` and joins at line `end`.
    """

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Block:
    """A box of the diagram.

    Attributes:
        names: paths in the network of all repetitions, in execution order.
        title: class of the block; empty for layers outside of blocks.
        lines: layers and functions in order; the line of a weighted layer also holds what follows it.
        shortcuts: residual, dense and parallel paths inside.
        output_shape: of one image; that of the last repetition.
        params: parameters of all repetitions together.
    """

    names: tuple[str, ...]
    title: str
    lines: tuple[str, ...]
    shortcuts: tuple[Shortcut, ...]
    output_shape: tuple[int, ...]
    params: int

    @property
    def heading(self) -> str:
        """Class, path in the network and number of repetitions."""
        last = self.names[-1].rpartition(".")[2]
        repeated = f" to .{last}  \u00d7 {len(self.names)}" if len(self.names) > 1 else ""
        return f"{self.title}  {self.names[0]}{repeated}".strip()

    @property
    def grows(self) -> bool:
        """Whether each repetition has more channels than the one before it."""
        return any(line.startswith("concatenate") for line in self.lines)

    @property
    def kind(self) -> tuple[object, ...]:
        """What a block has in common with its repetitions."""
        size = self.output_shape[1:] if self.grows else (self.output_shape, self.params / len(self.names))
        return self.title, self.lines, self.shortcuts, size


def blocks(network: nn.Module, title: str, size: int) -> tuple[Block, ...]:
    """The blocks of a network in execution order, repetitions folded into one.

    Takes what `models.summary.on_meta` returns.

    Raises:
        ModelError: the network takes no image of this size.
    """
    recorder = _Recorder(network)
    with hooked(network, recorder.before, recorder.after), recorder:
        run(network, title, size)
    folded: list[Block] = []
    for block in recorder.blocks():
        if folded and folded[-1].kind == block.kind:
            last = folded.pop()
            block = replace(block, names=last.names + block.names, params=last.params + block.params)
        folded.append(block)
    return tuple(folded)


class _Step(NamedTuple):
    """A layer or function that ran.

    `sources` are the numbers of the steps whose results it takes. `way` and `behind` are steps of its own block, itself
    included: the longest way that leads to it, and all that lead to it.
    """

    name: str
    layer: nn.Module | None
    text: str
    leads: bool
    shape: tuple[int, ...]
    sources: list[int]
    way: list[int]
    behind: set[int]

    @property
    def weighted(self) -> bool:
        return isinstance(self.layer, _WEIGHTED)


class _Recorder(TorchFunctionMode):
    """Records the steps of a forward pass, grouped by block."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {module: name for name, module in network.named_modules()}
        self._block_modules = _block_modules(network)
        self._steps: list[_Step] = []
        # A block, or None for layers outside of blocks, and the numbers of its steps.
        self._groups: list[tuple[nn.Module | None, list[int]]] = [(None, [])]
        # id of a tensor -> the tensor, kept alive so that no id is used again, and the step that made it.
        self._makers: dict[int, tuple[Tensor, int]] = {}
        self._running: list[nn.Module] = []
        self._layer: tuple[nn.Module, list[int]] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Looked up before the call: a function that works in place makes its operand anew.
        sources = self._sources(args)
        result = func(*args, **(kwargs or {}))
        if self._layer is None and sources:
            text = _FUNCTIONS.get(getattr(func, "__name__", ""), "")
            self._record(None, "" if text == "add" and len(sources) < 2 else text, text in _JOINS, sources, result)
        return result

    def before(self, module: nn.Module, inputs: object) -> None:
        if not self._running:
            self._makers = {id(image): (image, -1) for image in _tensors(inputs)}
        self._running.append(module)
        if self._layer is None and _is_layer(module):
            self._layer = module, self._sources(inputs)
        elif module in self._block_modules:
            self._groups.append((module, []))

    def after(self, module: nn.Module, inputs: object, output: object) -> None:
        if self._layer is not None and module is self._layer[0]:
            sources, self._layer = self._layer[1], None
            text = _words(module)
            leads = isinstance(module, _WEIGHTED) or any(module.children()) or "Pool" in text
            self._record(module, text, leads, sources, output)
        elif module in self._block_modules:
            self._groups.append((None, []))
        self._running.pop()

    def _record(self, layer: nn.Module | None, text: str, leads: bool, sources: list[int], result: object) -> None:
        """Note a step; without a text its result stands for the latest of its sources."""
        if text:
            block, numbers = self._groups[-1]
            if isinstance(layer, _WEIGHTED) and block is None and any(self._steps[n].weighted for n in numbers):
                # Layers outside of blocks share a box, with at most one weighted layer.
                numbers = []
                self._groups.append((None, numbers))
            number = len(self._steps)
            numbers.append(number)
            inside = [self._steps[source] for source in sources if source >= numbers[0]]
            way = [*max((step.way for step in inside), key=len, default=[]), number]
            behind = {number}.union(*(step.behind for step in inside))
            name = self._names[self._running[-1]]
            self._steps.append(_Step(name, layer, text, leads, shape_of(result), sources, way, behind))
            sources = [number]
        for tensor in _tensors(result) if sources else ():
            self._makers[id(tensor)] = (tensor, max(sources))

    def _sources(self, values: object) -> list[int]:
        return sorted({self._makers[id(t)][1] for t in _tensors(values) if id(t) in self._makers})

    def blocks(self) -> list[Block]:
        """A block for each group that has any steps; parameters are counted where they are used first."""
        blocks = []
        counted: set[nn.Parameter] = set()
        for block, numbers in self._groups:
            steps = [self._steps[number] for number in numbers]
            if not steps:
                continue
            if block is None:
                name, title = steps[0].name or "(network)", ""
                modules = [step.layer for step in steps if step.layer is not None]
            else:
                name, title, modules = self._names[block], type(block).__name__, [block]
            params = {parameter for module in modules for parameter in module.parameters()} - counted
            counted |= params
            lines, shortcuts = self._read(numbers)
            blocks.append(Block((name,), title, lines, shortcuts, steps[-1].shape, sum(p.numel() for p in params)))
        return blocks

    def _read(self, numbers: Sequence[int]) -> tuple[tuple[str, ...], tuple[Shortcut, ...]]:
        """Lines and shortcuts of a block: the longest way through it is its own path, all others are shortcuts."""
        path = self._steps[numbers[-1]].way
        # Step before the fork (-1: the block's input), step of the join, label.
        shortcuts: list[tuple[int, int, str]] = []
        for previous, join in zip(path, path[1:], strict=False):
            for source in self._steps[join].sources:
                if self._steps[join].text in _JOINS and source != previous:
                    behind = self._steps[source].behind if source >= numbers[0] else set()
                    label = " \u00b7 ".join(self._steps[number].text for number in sorted(behind.difference(path)))
                    shortcuts.append((max(behind.intersection(path), default=-1), join, label or "identity"))
        lines: list[str] = []
        place = {-1: -1}
        for previous, number in zip([-1, *path], path, strict=False):
            step = self._steps[number]
            if not lines or step.leads or any(fork == previous for fork, _, _ in shortcuts):
                lines.append(step.text)
            else:
                lines[-1] += f" \u00b7 {step.text}"
            place[number] = len(lines) - 1
        return tuple(lines), tuple(Shortcut(place[fork] + 1, place[join], label) for fork, join, label in shortcuts)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _block_modules(network: nn.Module) -> set[nn.Module]:
    """The modules that are one box each. Sequences and modules that repeat a block are opened."""
    found: set[nn.Module] = set()
    for child in network.children():
        parts = [
            inner for part in child.children() for inner in (part.children() if type(part) in _SEQUENCES else [part])
        ]
        kinds = [type(part) for part in parts if sum(isinstance(layer, _WEIGHTED) for layer in part.modules()) > 1]
        listed = isinstance(child, _SEQUENCES) and bool(kinds)
        if type(child) in _SEQUENCES or listed or len(kinds) > len(set(kinds)):
            found |= _block_modules(child)
        elif not _is_layer(child):
            found.add(child)
    return found


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is shown as one layer: it has no children, or is an attention or squeeze-and-excitation."""
    name = type(module).__name__.lower().removesuffix("v2")
    return (
        not any(module.children()) or name.endswith("attention") or name.startswith(("squeezeex", "seblock", "semod"))
    )


def _words(layer: Any) -> str:
    """A layer in words, such as "3\u00d73 Conv 64 /2" or "BatchNorm"; empty for one that does nothing."""
    if isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and not layer.p):
        return ""
    text = type(layer).__name__.removesuffix("2d")
    if isinstance(layer, nn.Conv2d):
        text = f"{layer.kernel_size[0]}\u00d7{layer.kernel_size[1]} {text} {layer.out_channels}"
        if layer.groups > 1:
            text += ", depthwise" if layer.groups == layer.in_channels else f", {layer.groups} groups"
    elif isinstance(layer, nn.Linear):
        text += f" {layer.out_features}"
    elif isinstance(layer, nn.Dropout):
        text += f" {layer.p:g}"
    elif hasattr(layer, "num_heads"):
        text += f", {layer.num_heads} heads"
    stride = getattr(layer, "stride", 1)
    stride = stride if isinstance(stride, int) else max(stride)
    return f"{text} /{stride}" if stride > 1 else text
