"""A whole update (forward, backward, optimiser) captured once as a CUDA graph and replayed.

Launching the kernels of a step one by one costs the host some microseconds each, longer than many of them run: networks
of many small layers, small images and small batches are limited by it. A replay launches them all at once.

A capture requires tensors that stay where they are (images and labels are copied into buffers of the graph, gradients
come from its memory, learning rates are tensors that are filled), and nothing that waits for the device. Capturing runs
the update a few times first; weights, batch norm statistics, optimiser state and random numbers are restored after it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.captured import Captured, capture
from models.errors import ModelError

Update = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class GraphedUpdate:
    """`update`, captured at its first call with a shape of images, and again when the shape changes.

    Only graphs for one shape are kept: at large batches the memory of one for each size of a training whose images
    grow would not fit beside one another. Parameters that stop learning need another graph of the same shape.

    Args:
        update: (images, labels) -> results. It zeroes the gradients (to None), computes them and steps `optimizer`,
            and never waits for the device.
        model: the network that it changes.
        optimizer: the fused optimiser that it steps; its learning rates become tensors.
        capture: captures an update; a test may pass a stand-in.

    Raises:
        ModelError: the optimiser is not a fused one.
    """

    def __init__(
        self,
        update: Update,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        capture: Callable[[Callable[[], tuple[Tensor, ...]]], Captured] = capture,
    ) -> None:
        if not all(group.get("fused") for group in optimizer.param_groups):
            name = type(optimizer).__name__
            raise ModelError(f"CUDA graphs need a fused optimiser, which {name} is not; use compile")
        self._update, self._model, self._optimizer, self._capture = update, model, optimizer, capture
        self._shape: Any = None
        # Which parameters learn -> the graph
        self._graphs: dict[tuple[bool, ...], tuple[Tensor, Tensor, Callable[[], object], tuple[Tensor, ...]]] = {}
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                device = group["params"][0].device
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
            if "capturable" in group and group["params"][0].is_cuda:
                # Adam and AdamW require it, and would warn about the warm-ups, which are not captured.
                group["capturable"] = True
                optimizer._warned_capturable_if_run_uncaptured = True

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The results of one update; they are overwritten by the next one of the same shape."""
        held_images, held_labels, replay, results = self.ready(images, labels)
        # A loader reuses its buffers, and a graph reads where it read when it was captured.
        held_images.copy_(images, non_blocking=True)
        held_labels.copy_(labels, non_blocking=True)
        replay()
        return results

    def ready(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Callable[[], object], tuple[Tensor, ...]]:
        """The graph for images and labels like these, captured if there is none; nothing is updated."""
        shape = (images.shape, images.dtype, images.stride(), labels.shape, labels.dtype)
        if shape != self._shape:
            # Their memory is free before the next one is captured.
            self._graphs.clear()
            self._shape = shape
        learning = tuple(parameter.requires_grad for parameter in self._model.parameters())
        if learning not in self._graphs:
            self._graphs[learning] = self._captured(images, labels)
        return self._graphs[learning]

    def _captured(
        self, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[], object], tuple[Tensor, ...]]:
        held_images, held_labels = images.clone(), labels.clone()
        before = {name: tensor.detach().clone() for name, tensor in _state(self._model, self._optimizer)}
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            replay, results = self._capture(lambda: self._update(held_images, held_labels))
        with torch.no_grad():
            for name, tensor in _state(self._model, self._optimizer):
                # What the optimiser made in its first step begins with zeros: momenta, averages, step counters.
                if name in before:
                    tensor.copy_(before[name])
                else:
                    tensor.zero_()
        return held_images, held_labels, replay, results


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """All tensors that an update changes, each with a name."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            yield (kind, name), tensor
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield (group_number, number, name), value
