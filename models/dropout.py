"""Dropout layers of the networks, and a faster dropout for CPUs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError


def check_probability(name: str, probability: float) -> None:
    """Check the argument `name`, the probability of a dropout.

    Raises:
        ModelError: `probability` is not a number from 0 up to, but not including, 1.
    """
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability < 1:
        raise ModelError(f"{name} is {probability!r}; give a probability from 0 up to, but not including, 1")


def dropout_layer(name: str, probability: float) -> nn.Module:
    """A dropout layer, or an identity if the argument `name` is 0.

    Raises:
        ModelError: not a probability below 1.
    """
    check_probability(name, probability)
    return nn.Dropout(probability) if probability else nn.Identity()


class QuickDropout(nn.Dropout):
    """Dropout that draws one 64-bit number for four values: on a CPU, drawing takes longer than the rest of it.

    The probability is rounded to a multiple of 1/65536, and the values that stay are scaled accordingly. The numbers
    come from torch's generator, but differ from those that nn.Dropout would draw from the same seed.
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(self.p * 65536)
        if not self.training or dropped == 0:
            return input
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64, device=input.device)
        # The full range: by default random_ leaves the sign bit 0, and it is the sign of every fourth value.
        words.random_(-(2**63), None)
        kept = words.view(torch.int16)[: input.numel()] >= dropped - 32768
        mask = (kept.to(input.dtype) * (65536 / (65536 - dropped))).as_strided(input.shape, _dense(input))
        return input * mask


def _dense(input: Tensor) -> tuple[int, ...]:
    """Strides of a dense tensor in the memory order of `input`, so that a mask is read in the same order."""
    return torch.empty_like(input, device="meta").stride()


def quicken_dropout(model: nn.Module) -> nn.Module:
    """Make every nn.Dropout of a network a QuickDropout, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = QuickDropout
    return model


class DropoutLinear(nn.Linear):
    """A linear layer that drops out its input, [..., in] -> [..., out].

    It has the parameters, and so the checkpoint keys, of the linear layer it replaces.
    """

    dropout: float = 0.0

    @classmethod
    def replacing(cls, layer: nn.Linear, dropout: float) -> "DropoutLinear":
        """`layer` with dropout before it; the parameters are shared, not copied."""
        with torch.device("meta"):
            replacement = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        replacement.weight, replacement.bias = layer.weight, layer.bias
        replacement.dropout = dropout
        return replacement

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.dropout(input, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"
