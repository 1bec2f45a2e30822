"""The activations that a network can be built with, by name."""

from collections.abc import Callable

from torch import nn

from models.errors import unknown

# ReLU and leaky ReLU work in place: their backward pass needs only their output, so no copy of their input is kept. The
# others need that input.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def activation_layer(name: str) -> nn.Module:
    """A new layer for one of relu, leaky_relu (slope 0.01), gelu (exact), tanh and silu; none has parameters.

    Raises:
        ModelError: no such activation.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
