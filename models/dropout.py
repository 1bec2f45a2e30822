"""Dropout as an option of a network: absent, not idle, when its probability is 0."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError


def check_probability(name: str, probability: float) -> None:
    """Refuse what is not a probability below 1; `name` is the argument it was given for.

    Raises:
        ModelError: `probability` is not a number from 0 up to, but not including, 1.
    """
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability < 1:
        raise ModelError(f"{name} is {probability!r}; give a probability from 0 up to, but not including, 1")


def dropout_layer(name: str, probability: float) -> nn.Module:
    """A dropout layer, or an identity for 0; `name` is the argument that an error names.

    Raises:
        ModelError: not a probability below 1.
    """
    check_probability(name, probability)
    return nn.Dropout(probability) if probability else nn.Identity()


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
