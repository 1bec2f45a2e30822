"""Residual networks: one class for all those of the zoo that torchvision does not have.

Blocks follow He et al. 2015 (arXiv:1512.03385), with the stride of a bottleneck on its 3x3 convolution as in
torchvision; ResNeXt is a bottleneck with groups (Xie et al. 2016, arXiv:1611.05431). Parameters have torchvision's
names, so that checkpoints of equal shape can be exchanged.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, fx, nn
from torch.nn import functional

from models.activation import activation_layer
from models.dropout import dropout_layer
from models.errors import ModelError, check_counts, unknown
from models.squeeze_excite import SqueezeExcite

# kernel sizes of the convolutions of a residual branch
BLOCKS: dict[str, tuple[int, ...]] = {"basic": (3, 3), "three_conv": (3, 3, 3), "bottleneck": (1, 3, 1)}
SHORTCUTS = ("projection", "pad")


@fx.wrap
def subsample_and_pad(x: Tensor, extra: int, stride: int) -> Tensor:
    """Every `stride`-th pixel of [B, C, H, W] and `extra` channels of zeros, in the memory format of `x`.

    A single node for torch.fx, which could not trace the choice between the formats.
    """
    x = x[:, :, ::stride, ::stride]
    # Channels that are last in memory are padded as the last axis: a pad of [B, C, H, W] always returns NCHW, and the
    # addition that follows would convert it in every block.
    if x.stride(1) == 1:
        return functional.pad(x.permute(0, 2, 3, 1), (0, extra)).permute(0, 3, 1, 2)
    return functional.pad(x, (0, 0, 0, 0, 0, extra))


class PadShortcut(nn.Module):
    """The shortcut without parameters, option A of He et al.: every `stride`-th pixel, new channels are zero.

    [B, C, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)], in the memory format of the input.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.extra = channels - inputs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return subsample_and_pad(x, self.extra, self.stride)


class Block(nn.Module):
    """A residual block, activation(shortcut(x) + branch(x)).

    [B, inputs, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]. The branch is two or three
    convolutions, each followed by batch normalisation and all but the last by the activation; dropout
    follows the first normalisation, squeeze-and-excitation the last.
    """

    def __init__(
        self,
        kind: str,
        inputs: int,
        width: int,
        channels: int,
        stride: int,
        *,
        groups: int,
        shortcut: str,
        activation: str,
        dropout: float,
        se_ratio: int,
        se_bias: bool,
    ) -> None:
        super().__init__()
        kernels = BLOCKS[kind]
        edges = [inputs, *[width] * (len(kernels) - 1), channels]
        # The first 3x3 convolution of the branch strides: a strided 1x1 would discard pixels unread.
        convolutions = [
            nn.Conv2d(
                edges[index],
                edges[index + 1],
                kernel,
                stride if index == kernels.index(3) else 1,
                kernel // 2,
                groups=groups if kernel > 1 else 1,
                bias=False,
            )
            for index, kernel in enumerate(kernels)
        ]
        self.conv1, self.bn1 = convolutions[0], nn.BatchNorm2d(edges[1])
        self.conv2, self.bn2 = convolutions[1], nn.BatchNorm2d(edges[2])
        self.conv3 = convolutions[2] if len(kernels) == 3 else None
        self.bn3 = nn.BatchNorm2d(edges[3]) if len(kernels) == 3 else None
        self.activation = activation_layer(activation)
        self.dropout = dropout_layer("block_dropout", dropout)
        self.se = SqueezeExcite(channels, se_ratio, se_bias) if se_ratio else None
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != channels:
            self.downsample = (
                PadShortcut(inputs, channels, stride)
                if shortcut == "pad"
                else nn.Sequential(
                    nn.Conv2d(inputs, channels, 1, stride, bias=False),
                    nn.BatchNorm2d(channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.dropout(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(self.activation(y)))
        if self.se is not None:
            y = self.se(y)
        y += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.activation(y)
        return result


class ResNet(nn.Sequential):
    """A residual classifier: images [B, 3, H, W] -> logits [B, classes].

    Args:
        classes: outputs.
        block: `basic` (3x3, 3x3), `three_conv` (3x3, 3x3, 3x3) or `bottleneck` (1x1, 3x3, 1x1).
        depths: blocks of each stage.
        widths: channels of each stage; a bottleneck's output has `expansion` times as many.
        strides: stride of each stage's first block.
        expansion: output channels of a bottleneck over its width; the other blocks do not expand.
        groups: groups of the 3x3 convolutions (the cardinality of ResNeXt).
        shortcut: where shapes change: `projection` (1x1 convolution and normalisation, option B of the
            paper) or `pad` (subsampling and zero channels, option A).
        stem_width, stem_kernel, stem_stride, stem_pool: the first convolution, and whether a 3x3 max pool of
            stride 2 follows it.
        activation: relu, leaky_relu, gelu, tanh or silu.
        se_ratio: reduction of squeeze-and-excitation at the end of every branch (its paper: 16); 0 for none.
        se_bias: whether its two layers have biases.
        block_dropout: probability of dropout after the first normalisation of each block.
        head_dropout: probability of dropout before the last layer.
        softmax_output: fidelity switch: a softmax at the end, which is a mistake before cross-entropy (the loss
            cannot fall below 1.46 nats at 10 classes); one of the studies trained that way.

    Activation and dropout change no parameter count.

    Raises:
        ModelError: an argument that does not exist, or values that do not fit together.
    """

    def __init__(
        self,
        classes: int = 1000,
        *,
        block: str = "basic",
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (1, 2, 2, 2),
        expansion: int = 4,
        groups: int = 1,
        shortcut: str = "projection",
        stem_width: int = 64,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        stem_pool: bool = True,
        activation: str = "relu",
        se_ratio: int = 0,
        se_bias: bool = True,
        block_dropout: float = 0.0,
        head_dropout: float = 0.0,
        softmax_output: bool = False,
    ) -> None:
        if block not in BLOCKS:
            raise unknown("block", block, BLOCKS)
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        if not depths or not len(depths) == len(widths) == len(strides):
            raise ModelError(
                f"depths {tuple(depths)}, widths {tuple(widths)} and strides {tuple(strides)} "
                "differ in length; give each of them one value per stage"
            )
        check_counts(depths=depths, widths=widths, strides=strides, expansion=expansion, groups=groups)
        check_counts(stem_width=stem_width, stem_kernel=stem_kernel, stem_stride=stem_stride)
        if not isinstance(se_ratio, int) or se_ratio < 0:
            raise ModelError(f"se_ratio is {se_ratio!r}; give a whole number that channels are divided by, or 0")
        if groups > 1 and (block != "bottleneck" or any(width % groups for width in widths)):
            raise ModelError(f"groups {groups} needs bottleneck blocks and widths that it divides, not {tuple(widths)}")
        outputs = [width * expansion if block == "bottleneck" else width for width in widths]
        if shortcut == "pad" and [stem_width, *outputs] != sorted([stem_width, *outputs]):
            raise ModelError(f"shortcut 'pad' can only add channels, unlike from {stem_width} to {outputs}")

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(3, stem_width, stem_kernel, stem_stride, stem_kernel // 2, bias=False)
        layers["bn1"] = nn.BatchNorm2d(stem_width)
        layers["activation"] = activation_layer(activation)
        if stem_pool:
            layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
        inputs = stem_width
        for stage, channels in enumerate(outputs):
            blocks = []
            for index in range(depths[stage]):
                blocks.append(
                    Block(
                        block,
                        inputs,
                        widths[stage],
                        channels,
                        strides[stage] if index == 0 else 1,
                        groups=groups,
                        shortcut=shortcut,
                        activation=activation,
                        dropout=block_dropout,
                        se_ratio=se_ratio,
                        se_bias=se_bias,
                    )
                )
                inputs = channels
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["dropout"] = dropout_layer("head_dropout", head_dropout)
        layers["fc"] = nn.Linear(inputs, classes)
        if softmax_output:
            layers["softmax"] = nn.Softmax(1)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
