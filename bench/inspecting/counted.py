"""The work of an eager step by operator and by layer: how often each runs, and what that adds up to."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from bench.inspecting.cost import convolution_backward_flops
from bench.timing.step import Step
from models.batch_norm import MARK

NETWORK = "(network)"
# These take the place of a layer's path where time or work belongs to no layer.
LOSS, OPTIMISER, AUTOGRAD, UNKNOWN = "(loss)", "(optimiser)", "(autograd)", "(no layer named)"


@dataclass
class Tally:
    """Sums of an operator or a layer over a step; `flops` and `bytes` stay None while nothing is known of them."""

    calls: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    flops: float | None = None
    bytes: float | None = None

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds

    def add_time(self, seconds: float, backward: bool = False) -> None:
        """Add an amount of time."""
        if backward:
            self.backward_seconds += seconds
        else:
            self.forward_seconds += seconds

    def add_work(self, flops: float | None, moved: float | None) -> None:
        """Add an amount of work: FLOPs, and bytes read and written."""
        if flops is not None:
            self.flops = (self.flops or 0.0) + flops
        if moved is not None:
            self.bytes = (self.bytes or 0.0) + moved


def _tallies() -> dict[str, Tally]:
    return defaultdict(Tally)


@dataclass
class Tallies:
    """The sums over a step: by name of operators, by path of layers."""

    operators: dict[str, Tally] = field(default_factory=_tallies)
    layers: dict[str, Tally] = field(default_factory=_tallies)


@contextlib.contextmanager
def ranges(module: nn.Module | None, push: Callable[[str], object], pop: Callable[[], object]) -> Iterator[None]:
    """Call `push` with a layer's path before each of its forward passes, and `pop` after, while this lasts."""
    with contextlib.ExitStack() as hooks:
        for name, layer in module.named_modules() if module is not None else ():
            hooks.enter_context(layer.register_forward_pre_hook(_calling(push, name)))
            hooks.enter_context(layer.register_forward_hook(_calling(pop), always_call=True))
        yield


def _calling(function: Callable[..., object], *arguments: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        function(*arguments)

    # What runs is what runs without it, so that what is measured is what was timed.
    setattr(hook, MARK, True)
    return hook


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up FLOPs and bytes of every operator that computes, by operator and by layer."""

    def __init__(self, tallies: Tallies) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tallies = tallies
        self.running: list[str] = []
        self.path_by_number: dict[int, str] = {}
        self.updating = False

    def begin_update(self, *_: object) -> None:
        """The optimiser begins its work."""
        self.updating = True

    def end_update(self, *_: object) -> None:
        """The optimiser has ended its work."""
        self.updating = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        result = func(*args, **keywords)
        if not computes(func):
            return result
        flops = flops_of(func, args, keywords, result)
        moved = float(bytes_in((args, keywords, result)))
        operator = self.tallies.operators[operator_name(func)]
        operator.calls += 1
        operator.add_work(flops, moved)
        self.tallies.layers[self._path()].add_work(flops, moved)
        return result

    def _path(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            # In the backward pass: an autograd node carries the number that its forward operator was given.
            return self.path_by_number.get(node._sequence_nr(), AUTOGRAD)
        if not self.running:
            return OPTIMISER if self.updating else LOSS
        path = self.running[-1] or NETWORK
        # A node is made, and takes its number, before its operator runs. Operators without a node that follow see the
        # number of the node before them.
        self.path_by_number.setdefault(torch.autograd._get_sequence_nr() - 1, path)
        return path


def count_work(step: Step, tallies: Tallies) -> None:
    """Call a step once and count its work."""
    counter = WorkCounter(tallies)
    with contextlib.ExitStack() as stack:
        if step.optimizer is not None:
            stack.enter_context(step.optimizer.register_step_pre_hook(counter.begin_update))
            stack.enter_context(step.optimizer.register_step_post_hook(counter.end_update))
        stack.enter_context(ranges(step.module, counter.running.append, counter.running.pop))
        stack.enter_context(counter)
        step.call()


def operator_name(func: Any) -> str:
    """aten.convolution.default -> aten::convolution, as the profiler writes it."""
    return str(func._overloadpacket).replace(".", "::", 1)


def computes(func: Any) -> bool:
    """Whether an operator reads or writes elements, unlike a view or an allocation."""
    name = operator_name(func).rpartition("::")[2]
    if name.startswith(("empty", "new_empty", "detach", "_local_scalar", "is_", "record_stream")):
        return False
    returns = func._schema.returns
    return not (returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns))


def flops_of(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> float | None:
    """FLOPs of an operator's call by torch's formulas, and ours for a convolution's backward pass; None for others."""
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        wrapped: Any = shape_wrapper
        return float(wrapped(convolution_backward_flops)(*args, **kwargs, out_val=result))
    if packet not in flop_registry:
        return None
    return float(flop_registry[packet](*args, **kwargs, out_val=result))


def bytes_in(tree: object) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
