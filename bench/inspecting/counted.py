"""Operators and layers of an eager step: FLOPs, bytes and calls."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from bench.inspecting.cost import convolution_backward_flops
from bench.timing.step import Step

MODULE = "module: "
# What stands in a layer's place where time belongs to none.
LOSS, OPTIMISER, AUTOGRAD, UNKNOWN = "(loss)", "(optimiser)", "(autograd)", "(no layer named)"


@dataclass
class Tally:
    """Sums over a step; `flops` and `bytes` stay None while nothing is known of them."""

    calls: float = 0.0
    seconds: float = 0.0
    flops: float | None = None
    bytes: float | None = None

    def work(self, flops: float | None, moved: float | None) -> None:
        """Add an amount of work."""
        if flops is not None:
            self.flops = (self.flops or 0.0) + flops
        if moved is not None:
            self.bytes = (self.bytes or 0.0) + moved


@dataclass
class Times:
    """Seconds of one layer's own operators over a step."""

    forward: float = 0.0
    backward: float = 0.0


@dataclass
class Found:
    """What the passes gathered."""

    operators: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    times: dict[str, Times] = field(default_factory=lambda: defaultdict(Times))
    work: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))


@contextlib.contextmanager
def ranges(module: nn.Module | None, push: Callable[[str], object] | None = None, pop: Any = None) -> Iterator[None]:
    """A named range around every forward call of a layer while this lasts.

    Args:
        push, pop: begin and end a range; torch.profiler's own by default.
    """
    if module is None:
        yield
        return
    open_: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if push is not None:
                push(name)
                return
            one: Any = torch.autograd.profiler.record_function(MODULE + name)
            one.__enter__()
            open_.append(one)

        return hook

    def leave(*_: Any) -> None:
        if pop is not None:
            pop()
        elif open_:
            open_.pop().__exit__(None, None, None)

    handles = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(enter(name)))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FLOPs and bytes of every operator that computes, by operator and by layer."""

    def __init__(self, found: Found) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.inside: list[str] = []
        self.by_number: dict[int, str] = {}
        self.optimising = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if not computes(func):
            return result
        flops = flops_of(func, args, given, result)
        moved = float(sum(map(_bytes, _tensors((args, given)))) + sum(map(_bytes, _tensors(result))))
        name = operator_name(func)
        tally = self.found.operators[name]
        tally.calls += 1
        tally.work(flops, moved)
        self.found.work[self._path()].work(flops, moved)
        return result

    def _path(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            # Of the backward pass: an autograd node carries the number that its forward operator was given.
            return self.by_number.get(node._sequence_nr(), AUTOGRAD)
        if not self.inside:
            return OPTIMISER if self.optimising else LOSS
        path = self.inside[-1] or "(network)"
        # A node is made, and takes its number, before its operator runs; operators without one that follow find the
        # number of the node before them.
        self.by_number.setdefault(torch.autograd._get_sequence_nr() - 1, path)
        return path


def counted(step: Step, found: Found) -> None:
    """One call of a step, counted."""
    counter = Counter(found)
    with contextlib.ExitStack() as stack:
        if step.optimizer is not None:
            stack.callback(_watch(step.optimizer, counter))
        stack.enter_context(ranges(step.module, counter.inside.append, counter.inside.pop))
        stack.enter_context(counter)
        step.call()


def _watch(optimizer: torch.optim.Optimizer, counter: Counter) -> Callable[[], None]:
    """Tells the counter when the optimiser works; the returned function ends that."""

    def begin(*_: Any) -> None:
        counter.optimising = True

    def end(*_: Any) -> None:
        counter.optimising = False

    handles = [optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end)]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


def operator_name(func: Any) -> str:
    """aten.convolution.default -> aten::convolution, as the profiler writes it."""
    return str(func._overloadpacket).replace(".", "::", 1)


def computes(func: Any) -> bool:
    """Whether an operator reads or writes elements: no view, no allocation."""
    name = operator_name(func).rpartition("::")[2]
    if name.startswith(("empty", "new_empty", "detach", "_local_scalar", "is_", "record_stream")):
        return False
    returns = func._schema.returns
    return not (returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns))


def flops_of(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> float | None:
    """By torch's formula, with ours for a convolution's backward pass (bench.inspecting.cost); None for others."""
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        wrapped: Any = shape_wrapper
        return float(wrapped(convolution_backward_flops)(*args, **kwargs, out_val=result))
    if packet not in flop_registry:
        return None
    return float(flop_registry[packet](*args, **kwargs, out_val=result))


def _tensors(tree: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
