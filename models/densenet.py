"""Densely connected networks for small images: each layer reads the outputs of all earlier ones.

Huang et al. 2016 (arXiv:1608.06993), in the bottleneck form with compression (DenseNet-BC) and a 3x3 stem
without normalisation or pooling. torchvision has the ImageNet form.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.activation import activation_layer
from models.dropout import dropout_layer
from models.errors import ModelError, check_counts


class DenseLayer(nn.Module):
    """[B, C, H, W] -> [B, C + growth, H, W]: `growth` new channels, then the input."""

    def __init__(self, inputs: int, growth: int, bottleneck: int, activation: str, dropout: float) -> None:
        super().__init__()
        width = bottleneck * growth
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth, 3, padding=1, bias=False)
        self.activation = activation_layer(activation)
        self.dropout = dropout_layer("block_dropout", dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.activation(self.bn1(x)))
        y = self.conv2(self.activation(self.bn2(y)))
        return torch.cat((self.dropout(y), x), 1)


class DenseNet(nn.Sequential):
    """A densely connected classifier: images [B, 3, H, W] -> logits [B, classes].

    Args:
        classes: outputs.
        depths: layers of each block; after every block but the last, channels and pixels are reduced.
        growth: channels that a layer adds.
        bottleneck: width of a layer's 1x1 convolution, in growths.
        compression: the fraction of channels that a transition keeps.
        activation: relu, leaky_relu, gelu, tanh or silu.
        block_dropout: probability of dropout at the end of each layer.
        head_dropout: probability of dropout before the last layer.

    The stem has 2 * growth channels. Activation and dropout change no parameter count.

    Raises:
        ModelError: an argument that does not exist or is out of range.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        depths: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        bottleneck: int = 4,
        compression: float = 0.5,
        activation: str = "relu",
        block_dropout: float = 0.0,
        head_dropout: float = 0.0,
    ) -> None:
        check_counts(depths=depths, growth=growth, bottleneck=bottleneck)
        if not 0 < compression <= 1:
            raise ModelError(f"compression is {compression!r}; give a fraction above 0 and up to 1")
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for stage, depth in enumerate(depths, 1):
            dense = []
            for _ in range(depth):
                dense.append(DenseLayer(channels, growth, bottleneck, activation, block_dropout))
                channels += growth
            layers[f"block{stage}"] = nn.Sequential(*dense)
            if stage < len(depths):
                kept = int(channels * compression)
                layers[f"transition{stage}"] = nn.Sequential(
                    OrderedDict(
                        bn=nn.BatchNorm2d(channels),
                        activation=activation_layer(activation),
                        conv=nn.Conv2d(channels, kept, 1, bias=False),
                        pool=nn.AvgPool2d(2),
                    )
                )
                channels = kept
        layers["bn"] = nn.BatchNorm2d(channels)
        layers["activation"] = activation_layer(activation)
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = dropout_layer("head_dropout", head_dropout)
        layers["fc"] = nn.Linear(channels, classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
