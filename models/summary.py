"""The layers of a network in the order in which they run, with shapes, parameters and MACs.

They are read off one forward pass of one image on the meta device, so that no weights are drawn and nothing is
computed. MACs are those of `torch.utils.flop_counter`, the counter of `bench cost`, and add up to its figure.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import zoo
from models.dry_run import answer, sizes_taken, without_weights
from models.errors import ModelError
from models.exported import Foreign
from models.project import named


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a layer.

    Attributes:
        name: its path in the network, as in the state dict; "(network)" for parameters of the network itself.
        type: its class.
        output_shape: of one image, without the batch axis; of the first tensor if there are several.
        params: its parameters, counted at its first call only, and only once if layers share them.
        macs: multiply-adds of convolutions and matrix products in this call.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    params: int
    macs: int


def summarise(
    network: str | nn.Module,
    classes: int | None = None,
    size: int | None = None,
    arguments: Mapping[str, object] | None = None,
) -> tuple[Layer, ...]:
    """The layers of a network, one row for each call of a module without children, in execution order.

    A module with children has a row, at its start, only for what it does itself: for parameters that it holds (the
    class token of a vision transformer) and products that it computes (attention). Identities have no row.

    Args:
        network: a name of `models.zoo`, or a module, which is not changed.
        classes: outputs of a named network; None for its default.
        size: height and width of the image in pixels; None for a named network's default.
        arguments: of a named network, as in `models.zoo.build`.

    Raises:
        ModelError: no such network or argument, a module without a size, or an image that does not fit.
    """
    module, title, pixels = on_meta(network, classes, size, arguments)
    recorder = _Recorder(module)
    with hooked(module, recorder.before, recorder.after), recorder.counter:
        run(module, title, pixels)
    return recorder.layers()


def totals(layers: Iterable[Layer]) -> tuple[int, int]:
    """Parameters and MACs of all layers together."""
    rows = tuple(layers)
    return sum(row.params for row in rows), sum(row.macs for row in rows)


def on_meta(
    network: str | nn.Module,
    classes: int | None,
    size: int | None,
    arguments: Mapping[str, object] | None = None,
) -> tuple[nn.Module, str, int]:
    """The network without weights, ready for evaluation; its name; the size of its images.

    One of the user's that does not run without weights has them.

    Raises:
        ModelError: no such network or argument, a module without a size, or a network of the user's that takes no image
            of this size.
    """
    if isinstance(network, nn.Module):
        if classes is not None or arguments:
            raise ModelError("classes and arguments are for a network built by its name, not for a module")
        if size is None:
            raise ModelError("a module has no default size of images; give size in pixels")
        module, title, pixels = without_weights(network), type(network).__name__, size
    else:
        pixels = zoo.default_size(network) if size is None else size
        with torch.device("meta"):
            module = zoo.build(network, classes, **(arguments or {}))
        title = network
    if pixels < 1:
        raise ModelError(f"size is {pixels}; give the height and width of the image in pixels")
    module = module.eval()
    if isinstance(module, Foreign):
        raise ModelError(f"{title} is a file for another engine, whose layers torch does not know")
    if isinstance(network, str) and (named(network).is_code or zoo.is_exported(network)):
        module = _running(module, network, classes, pixels, arguments or {})
    return module, title, pixels


def _running(
    module: nn.Module, name: str, classes: int | None, size: int, arguments: Mapping[str, object]
) -> nn.Module:
    """A network of the user's on the meta device if it runs there, else with its weights.

    Raises ModelError: it runs neither there nor elsewhere; says which sizes it takes.
    """
    try:
        with torch.no_grad():
            answer(module, name, size)
    except ModelError:
        module = zoo.build(name, classes, **arguments).eval()
        try:
            with torch.no_grad():
                answer(module, name, size)
        except ModelError as error:
            if "takes no image" not in str(error):
                raise
            others = sizes_taken(module, name)
            advice = f"of the usual sizes it takes {', '.join(map(str, others))}: --size {others[0]}" if others else ""
            raise ModelError(f"{error}; {advice or 'and none of the usual sizes either'}") from None
    return module


def run(module: nn.Module, title: str, size: int) -> Tensor:
    """One forward pass of one image where the module is.

    Gradients are on: without them attention is one fused kernel, whose products are not counted.

    Raises:
        ModelError: the network takes no image of this size.
    """
    with torch.enable_grad():
        return answer(module, title, size)


@contextlib.contextmanager
def hooked(
    network: nn.Module,
    before: Callable[[nn.Module, object], None],
    after: Callable[[nn.Module, object, object], None],
) -> Iterator[None]:
    """Within it `before` (module, inputs) and `after` (module, inputs, output) see every call of every module."""
    handles = [module.register_forward_pre_hook(before) for module in network.modules()]
    handles += [module.register_forward_hook(after) for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shape_of(value: object) -> tuple[int, ...]:
    """The shape of the first tensor in what a module takes or returns, without the batch axis."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:])
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        shapes = [shape_of(item) for item in value if item is not None]
        return next((shape for shape in shapes if shape), ())
    return ()


@dataclass(slots=True)
class _Call:
    """A module that is running: number of its row, FLOPs counted before it, and FLOPs of its children."""

    row: int
    before: int
    children: int = 0


class _Recorder:
    """Records the calls of a network's modules during one forward pass, with the FLOPs of each."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._names = {module: name for name, module in network.named_modules()}
        self.counter = FlopCounterMode(display=False)
        self._rows: list[tuple[nn.Module, tuple[int, ...], int]] = []
        self._open: list[_Call] = []

    def before(self, module: nn.Module, inputs: object) -> None:
        self._open.append(_Call(len(self._rows), self.counter.get_total_flops()))
        self._rows.append((module, (), 0))

    def after(self, module: nn.Module, inputs: object, output: object) -> None:
        call = self._open.pop()
        flops = self.counter.get_total_flops() - call.before
        if self._open:
            self._open[-1].children += flops
        self._rows[call.row] = (module, shape_of(output), (flops - call.children) // 2)

    def layers(self) -> tuple[Layer, ...]:
        owned = self._owned()
        layers = []
        for module, shape, macs in self._rows:
            params = owned.pop(module, 0)
            leaf = not any(module.children()) and not isinstance(module, nn.Identity)
            if leaf or params or macs:
                name = self._names[module] or "(network)"
                layers.append(Layer(name, type(module).__name__, shape, params, macs))
        return tuple(layers)

    def _owned(self) -> dict[nn.Module, int]:
        """Module -> parameters that are counted in its first row.

        Parameters of a module that is never called itself, such as the output layer of nn.MultiheadAttention, belong
        to the nearest module around it that is called.
        """
        called = {module for module, _, _ in self._rows}
        owned: dict[nn.Module, int] = {}
        seen: set[int] = set()
        for name, module in self._network.named_modules():
            own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
            seen.update(map(id, own))
            while module not in called:
                name = name.rpartition(".")[0]
                module = self._network.get_submodule(name)
            owned[module] = owned.get(module, 0) + sum(parameter.numel() for parameter in own)
        return owned
