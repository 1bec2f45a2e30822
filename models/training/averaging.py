"""Exponential moving average of the weights, kept beside them and swapped in for evaluation."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ModelError


class Ema:
    """The moving average of a model's parameters and floating-point buffers.

    The running statistics of batch norm are averaged as the weights are: the averaged network's activations are not
    those of the latest weights, and neither are their statistics. Integer buffers stay the model's own.

    Weights of fewer bits than float32 are averaged in float32: a share of 0.001 is lost in bfloat16's 8 bits.

    Args:
        model: placed and cast already; it keeps its tensors from here on. The average begins with them.
        decay: share of the average that a step keeps, above 0 and below 1.
        every: steps between two updates; each keeps decay ** every, so the average reaches equally far back.
        warmup: update n (from 0) keeps at most (1 + n) / (10 + n), so that the random start is soon forgotten
            (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1, warmup: bool = True) -> None:
        if not 0 < decay < 1:
            raise ModelError(f"ema is {decay!r}; give the share of the average a step keeps, between 0 and 1")
        if every < 1:
            raise ModelError(f"ema_every is {every!r}; give 1 or more steps")
        self.decay, self.every, self.warmup = decay, every, warmup
        self.updates = 0
        # References, so that no step has to walk through the modules.
        self._current = _floating(model)
        self._averages: dict[str, Tensor] = {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for name, tensor in self._current.items()
        }

    def update(self, step: int) -> bool:
        """Take in the weights after step number `step` (0-based, counted over the whole training) if it is its turn.

        Returns:
            Whether it was: after every `every`th step.
        """
        if (step + 1) % self.every:
            return False
        keep = self.decay**self.every
        if self.warmup:
            keep = min(keep, (1 + self.updates) / (10 + self.updates))
        averages = list(self._averages.values())
        with torch.no_grad():
            current = [
                tensor if tensor.dtype == average.dtype else tensor.to(average.dtype)
                for tensor, average in zip(self._current.values(), averages, strict=True)
            ]
            torch._foreach_lerp_(averages, current, 1 - keep)
        self.updates += 1
        return True

    def reset(self, model: nn.Module) -> None:
        """Begin again with the weights of `model` as they are now."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._averages.values()), self._matching(model))
        self.updates = 0

    @contextlib.contextmanager
    def swap(self, model: nn.Module) -> Iterator[None]:
        """Within it `model` has the averaged weights; after it its own again, bit for bit.

        Values are copied into the model's own memory, so compiled programs and CUDA graphs stay valid.
        """
        current = self._matching(model)
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
        return {"updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored average.

        Raises:
            ModelError: it is of a model with other tensors.
        """
        stored = state["averages"]
        self._check_shapes(stored, "the stored weight average")
        with torch.no_grad():
            for name, average in self._averages.items():
                average.copy_(stored[name])
        self.updates = int(state["updates"])

    def _matching(self, model: nn.Module) -> list[Tensor]:
        tensors = _floating(model)
        self._check_shapes(tensors, "the model given to the weight average")
        return [tensors[name] for name in self._averages]

    def _check_shapes(self, tensors: Mapping[str, Tensor], what: str) -> None:
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: tensor.shape for name, tensor in self._averages.items()
        }:
            raise ModelError(f"{what} has tensors of other names or shapes than the average in this run")


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach()
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
        if tensor.is_floating_point()
    }
