"""Exponential moving average of the weights, kept beside them and swapped in for evaluation.

Imports no torch until an average is made, so that a mistyped option is answered at once.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class AveragingOptions:
    """How the average is taken.

    Attributes:
        decay: share of the average that a step keeps, 0 = no averaging.
        every: steps between two updates; each keeps decay ** every, so the average reaches equally far back.
        warmup: update n (from 0) keeps at most (1 + n) / (10 + n), so that the random start is soon forgotten
            (the rule of TensorFlow's ExponentialMovingAverage).
    """

    decay: float = 0.0
    every: int = 1
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ModelError(f"ema is {self.decay!r}; give the share a step keeps, 0 up to, but not including, 1")
        if self.every < 1:
            raise ModelError(f"ema_every is {self.every!r}; give 1 or more steps")


class WeightAverage:
    """The moving average of a model's parameters and floating-point buffers.

    The running statistics of batch norm are averaged as the weights are: the averaged network's activations are not
    those of the latest weights, and neither are their statistics. Integer buffers stay the model's own.

    Weights of fewer bits than float32 are averaged in float32: a share of 0.001 is lost in bfloat16's 8 bits.
    """

    def __init__(self, model: "nn.Module", options: AveragingOptions) -> None:
        """Begin with the weights as they are. `model` must be placed and cast already, and keep its tensors after."""
        import torch

        if options.decay == 0:
            raise ModelError("ema is 0, which is no averaging; make no WeightAverage")
        self._options = options
        # References, not a walk through the modules at every step.
        self._current: dict[str, Tensor] = {
            name: tensor.detach()
            for named in (model.named_parameters(), model.named_buffers())
            for name, tensor in named
            if tensor.is_floating_point()
        }
        self._averages: dict[str, Tensor] = {
            # A copy of its own even where the dtype stays, and in the same memory format.
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for name, tensor in self._current.items()
        }
        self._updates = 0

    def update(self, step: int) -> bool:
        """Take in the weights after step number `step` (0-based over the whole training) if it is an update's turn.

        Returns:
            Whether it was: after every `every`th step.
        """
        import torch

        if (step + 1) % self._options.every:
            return False
        keep = self._options.decay**self._options.every
        if self._options.warmup:
            keep = min(keep, (1 + self._updates) / (10 + self._updates))
        averages = list(self._averages.values())
        with torch.no_grad():
            current = [
                tensor if tensor.dtype == average.dtype else tensor.to(average.dtype)
                for tensor, average in zip(self._current.values(), averages, strict=True)
            ]
            torch._foreach_lerp_(averages, current, 1 - keep)
        self._updates += 1
        return True

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Within it the model has the averaged weights; after it its own again, bit for bit.

        Values are copied into the model's own memory, so compiled programs and CUDA graphs stay valid.
        """
        import torch

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
        """Go on from a stored average.

        Raises:
            ModelError: it is of a model with other tensors.
        """
        import torch

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
