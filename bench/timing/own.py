"""What the user's own code gives to measure besides networks: loaders and steps.

A loader is a function of (batch, size, device), as far as it takes them, that returns an iterable of (images, labels),
or such an iterable itself. A step is any callable without arguments; a generator function sets up, yields the step, and
tears down.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.errors import WorkloadError
from models import code
from models.lively import VISIBLE
from models.project import named

OFFERED = ("batch", "batch_size", "size", "image_size", "device")
"""What a function that makes a loader may take."""
QUEUED = 4
"""Batches that a loader of unknown kind is taken to hold ready."""


def kind(name: str) -> str:
    """What FILE.py:NAME or package.module:NAME is: "model", "loader" or "step". A function is called to see.

    Raises:
        ModelError: it cannot be imported or called, or is none of these.
    """
    parsed = named(name)
    found = code.load(parsed.base)
    if isinstance(found, nn.Module) or (inspect.isclass(found) and issubclass(found, nn.Module)):
        return "model"
    if not callable(found):
        if isinstance(found, Iterable):
            return "loader"
        raise WorkloadError(
            f"{name} is of type {type(found).__name__}; what can be measured is a network, a loader of batches, or a "
            "step, which is called without arguments"
        )
    known = code.known_arguments(parsed.base)
    loads = bool({"batch", "batch_size"} & known.keys())
    if inspect.isgeneratorfunction(found):
        return "loader" if loads else "step"
    if loads:
        return "loader"
    offered = dict.fromkeys(code.CLASSES, 1000) | {"size": 224, "image_size": 224, "device": "cpu"}
    made = code.call(parsed.base, offered, parsed.arguments)
    if isinstance(made, nn.Module):
        return "model"
    return "loader" if isinstance(made, torch.utils.data.DataLoader) else "step"


@dataclass
class OwnLoader:
    """A loader of the user's.

    Attributes:
        name: FILE.py:NAME or package.module:NAME.
        batch: images in each of its batches.
        size: height and width, in pixels, that it is asked for.
        device: that it is asked for.
        prefetch: batches it holds ready.
        source: the iterable that it was made as.
    """

    name: str
    batch: int
    size: int
    device: str
    prefetch: int = QUEUED
    source: Any = field(init=False)

    def __post_init__(self) -> None:
        self.source = self._made()
        if isinstance(self.source, torch.utils.data.DataLoader):
            self.prefetch = self.source.num_workers * (self.source.prefetch_factor or 1)

    def _made(self) -> Any:
        parsed = named(self.name)
        found = code.load(parsed.base)
        if not callable(found):
            return found
        values = (self.batch, self.batch, self.size, self.size, self.device)
        made = code.call(parsed.base, dict(zip(OFFERED, values, strict=True)), parsed.arguments)
        if not isinstance(made, Iterable) or isinstance(made, Tensor | Mapping | str):
            raise WorkloadError(f"{self.name} returns a {type(made).__name__}, not an iterable of (images, labels)")
        return made

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch after epoch: an epoch ends where the iterable does, and is begun by iterating, or calling, again.

        Raises:
            WorkloadError: a batch that is none, or an iterator that ended and cannot be begun again.
        """
        while True:
            batches = 0
            for batch in self.source:
                yield self._checked(batch, batches)
                batches += 1
            if not batches:
                raise WorkloadError(f"{self.name} gave no batch in an epoch")
            if iter(self.source) is self.source:
                if not callable(code.load(named(self.name).base)):
                    raise WorkloadError(
                        f"{self.name} ended after {batches} batches and cannot be begun again; name a function that "
                        "makes it, or an iterable such as a DataLoader"
                    )
                self.source = self._made()

    def _checked(self, batch: Any, number: int) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Mapping):
            raise WorkloadError(
                f"{self.name} gives dicts of {', '.join(map(str, batch))}; what is measured here are pairs "
                "(images, labels): yield those two"
            )
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            what = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
            raise WorkloadError(f"{self.name} gives a {what}; what is measured here are pairs (images, labels)")
        images, labels = batch
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            raise WorkloadError(
                f"{self.name} gives ({type(images).__name__}, {type(labels).__name__}); both must be tensors of torch"
            )
        if len(images) != self.batch or len(labels) != self.batch:
            if number:
                raise WorkloadError(
                    f"batches of {self.name} differ in size: {self.batch} images, then {len(images)}; drop the last "
                    "one of an epoch (drop_last=True)"
                )
            raise WorkloadError(
                f"{self.name} gives batches of {len(images)} images and not {self.batch}; give --batch {len(images)}, "
                "or let its function take batch"
            )
        return images, labels

    def fed(
        self, size: int, classes: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Its batches as a network takes them: on its device, in its dtype and layout. Raises as iterating."""
        for images, labels in self:
            # Speed does not depend on which label an image has, only on there being a logit for it.
            yield (
                self.taken(images, size, device, dtype, layout),
                labels.to(device, non_blocking=True).long() % classes,
            )

    def taken(
        self, images: Tensor, size: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> Tensor:
        """Images as a network takes them. Raises WorkloadError: they have another shape."""
        if list(images.shape[1:]) != [3, size, size]:
            raise WorkloadError(f"{self.name} gives images {list(images.shape)}, and the network takes {size} px")
        return images.to(device, dtype, non_blocking=True).contiguous(memory_format=layout)

    def close(self) -> None:
        """Let go of it: its own threads and processes end with it."""
        self.source = ()


@dataclass
class OwnStep:
    """A step of the user's, set up.

    Attributes:
        name: FILE.py:NAME or package.module:NAME.
        call: does it once.
    """

    name: str
    call: Callable[[], object] = field(init=False)
    _generator: Any = None

    def __post_init__(self) -> None:
        parsed = named(self.name)
        found = code.load(parsed.base)
        if not inspect.isgeneratorfunction(found):
            # Checks the arguments, and is the first call.
            code.call(parsed.base, {}, parsed.arguments)
            assert callable(found)
            arguments, bare = dict(parsed.arguments), found
            self.call = (lambda: bare(**arguments)) if arguments else bare
            return
        self._generator = code.call(parsed.base, {}, parsed.arguments)
        step = next(self._generator, None)
        if not callable(step):
            what = "nothing" if step is None else f"a {type(step).__name__}"
            raise WorkloadError(f"{self.name} yields {what}; after its set-up it must yield the step, a callable")
        self.call = step

    def count(self, units: str) -> int:
        """How many `units` a call works through: an attribute of that name, or the number that it returns.

        Raises:
            WorkloadError: there is neither.
        """
        if not units:
            return 1
        holders = (self.call, code.load(named(self.name).base))
        for found in (*(getattr(holder, units, None) for holder in holders), self.call()):
            if isinstance(found, int | float) and not isinstance(found, bool) and found >= 1 and found == int(found):
                return int(found)
        raise WorkloadError(
            f"--units {units}: {self.name} neither has an attribute {units} nor returns a whole number above 0"
        )

    def close(self) -> None:
        """Tear down."""
        if self._generator is not None:
            for _ in self._generator:
                pass


def step_facts(names: list[str], units: str, seed: int) -> list[dict[str, Any]]:
    """What is known of steps before they are timed, and how far their results lie from those of the first.

    Returns:
        for each {"units": of a call, "flops": that torch counts in one, 0 for none, "differs": root mean square
        distance of its tensors from the first's, as a share of their standard deviation, None where nothing can be
        said, "why": the reason}.
    """
    found: list[dict[str, Any]] = []
    first: list[Tensor] = []
    for number, name in enumerate(names):
        torch.manual_seed(seed)
        step = OwnStep(name)
        try:
            results = _tensors(step.call())
            again = _tensors(step.call())
            counter = FlopCounterMode(display=False)
            with counter:
                step.call()
            facts = {"units": step.count(units), "flops": int(counter.get_total_flops())}
        finally:
            step.close()
        if not number:
            first = results
        found.append({**facts, **_difference(first, results, again, number > 0)})
    return found


def _tensors(result: object) -> list[Tensor]:
    leaves = [leaf.detach() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.numel()]
    return [leaf.cpu().double().clone() for leaf in leaves if not leaf.is_complex()]


def _difference(first: list[Tensor], results: list[Tensor], again: list[Tensor], compared: bool) -> dict[str, Any]:
    if not compared:
        return {"differs": None, "why": ""}
    shapes = [[list(one.shape) for one in side] for side in (first, results)]
    if not first or not results:
        return {"differs": None, "why": "" if not first and not results else "only one of both returns tensors"}
    if shapes[0] != shapes[1]:
        return {"differs": None, "why": f"the shapes differ: {shapes[1]} and {shapes[0]}"}
    a, b, c = (torch.cat([one.flatten() for one in side]) for side in (first, results, again))
    spread = a.std(correction=0).item() if a.numel() > 1 else 0.0
    if not spread > 0:
        return {"differs": None, "why": "all values are the same, so that two results could not differ"}
    distance = (a - b).square().mean().sqrt().item() / spread
    if len(b) == len(c) and (b - c).square().mean().sqrt().item() > VISIBLE * spread:
        return {"differs": None, "why": "its result differs from call to call"}
    return {"differs": distance, "why": ""}
