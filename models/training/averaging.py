"""Exponential moving average of the weights, swapped in for evaluation."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError


class WeightAverage:
    """The moving average of a model's parameters and floating-point buffers.

    The running statistics of batch norm are averaged as the weights are: the averaged network's activations are not
    those of the latest weights, and neither are their statistics. Integer buffers stay the model's own.

    Weights of fewer bits than float32 are averaged in float32: a share of 0.001 is lost in bfloat16's 8 bits.

    Args:
        model: placed and cast already; its tensors must stay the same objects. The average begins with its weights.
        decay: share of the average that a step keeps, above 0 and below 1.
        every: steps between two updates; each keeps decay ** every, so the average reaches equally far back.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1) -> None:
        self._decay, self._every = decay, every
        # References, so that no step walks through the modules.
        self._current: dict[str, Tensor] = {
            name: tensor.detach()
            for named in (model.named_parameters(), model.named_buffers())
            for name, tensor in named
            if tensor.is_floating_point()
        }
        self._averages: dict[str, Tensor] = {
            # A copy even where the dtype stays, and in the same memory format.
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for name, tensor in self._current.items()
        }
        self._updates = 0

    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (0-based over the whole training) if it is an `every`th step."""
        if (step + 1) % self._every:
            return
        # Early updates keep less, so that the random start is soon forgotten (the rule of TensorFlow's
        # ExponentialMovingAverage).
        keep = min(self._decay**self._every, (1 + self._updates) / (10 + self._updates))
        averages = list(self._averages.values())
        with torch.no_grad():
            current = [
                tensor if tensor.dtype == average.dtype else tensor.to(average.dtype)
                for tensor, average in zip(self._current.values(), averages, strict=True)
            ]
            torch._foreach_lerp_(averages, current, 1 - keep)
        self._updates += 1

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Within it the model has the averaged weights; after it its own again, bit for bit.

        Values are copied into the model's own memory, so compiled programs and CUDA graphs stay valid.
        """
        current = list(self._current.values())
        with torch.no_grad():
            own = [tensor.clone() for tensor in current]
            torch._foreach_copy_(current, list(self._averages.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(current, own)

    def state_dict(self) -> dict[str, Any]:
        """The averages themselves, not copies, and how many updates made them."""
        return {"updates": self._updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a stored average.

        Raises:
            ModelError: it belongs to a model with other tensors.
        """
        stored = state["averages"]
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        if shapes != {name: tensor.shape for name, tensor in self._averages.items()}:
            raise ModelError(
                "the stored weight average belongs to another model; its tensors have other names or shapes"
            )
        with torch.no_grad():
            for name, average in self._averages.items():
                average.copy_(stored[name])
        self._updates = int(state["updates"])
