"""The network of the CIFAR-10 speed records: a fixed whitening layer and three plain blocks.

After Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498): 2x2 whitening convolution,
blocks of two 3x3 convolutions with pooling after the first, normalisation without scale, GELU, identity (dirac)
initialisation of the convolutions, logits divided by 9.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.activation import activation_layer
from models.dropout import dropout_layer
from models.errors import ModelError, check_counts


def normalization(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with a learnt shift and a scale fixed at 1; its statistics adapt fast, for a short run."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def convolution(inputs: int, channels: int) -> nn.Conv2d:
    """3x3; the first `inputs` channels begin as copies of the input, so that depth does not drown the signal."""
    layer = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:inputs])
    return layer


class Block(nn.Sequential):
    """[B, inputs, H, W] -> [B, channels, H // 2, W // 2]."""

    def __init__(self, inputs: int, channels: int, activation: str) -> None:
        super().__init__(
            convolution(inputs, channels),
            # Pooled before normalisation, which leaves a quarter of the values to normalise and activate.
            nn.MaxPool2d(2),
            normalization(channels),
            activation_layer(activation),
            convolution(channels, channels),
            normalization(channels),
            activation_layer(activation),
        )


class Airbench(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes]; made for 32 x 32.

    Args:
        classes: outputs.
        widths: channels of the three blocks.
        activation: relu, leaky_relu, gelu, tanh or silu.
        head_dropout: probability of dropout before the last layer.
        logit_scale: factor on the logits.

    `initialize_from` sets the whitening layer from training images; until then it is a random projection.

    Raises:
        ModelError: an argument that does not exist or is out of range.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        widths: Sequence[int] = (64, 256, 256),
        activation: str = "gelu",
        head_dropout: float = 0.0,
        logit_scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        check_counts(3, widths=widths)
        # Twice the 12 values of a 2x2 patch: every eigenvector with both signs, since the activation passes only one.
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        with torch.no_grad():
            self.whiten.bias.zero_()  # type: ignore[union-attr]
        self.activation = activation_layer(activation)
        inputs = 24
        blocks = []
        for width in widths:
            if width < inputs:
                raise ModelError(f"widths must not decrease: a block of {width} channels follows {inputs}")
            blocks.append(Block(inputs, width, activation))
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.dropout = dropout_layer("head_dropout", head_dropout)
        self.fc = nn.Linear(inputs, classes, bias=False)
        self.logit_scale = logit_scale

    def initialize_from(self, images: Tensor) -> None:
        """Set the first layer to the whitening of 2x2 patches: eigenvectors over root eigenvalues.

        Args:
            images: normalised training images, [N, 3, H, W], a few thousand.
        """
        patches = nn.functional.unfold(images, 2).transpose(1, 2).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        # The smallest directions are sensor noise; without a floor they would be amplified most.
        rows = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(12, 3, 2, 2)
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([rows, -rows]))

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.activation(self.whiten(images)))
        logits: Tensor = self.fc(self.dropout(self.pool(features).flatten(1))) * self.logit_scale
        return logits
