"""LeNet-5 in its modern form: ReLU and max pooling, colour images of 32 x 32 pixels."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from models.activation import activation_layer
from models.dropout import dropout_layer
from models.errors import check_counts


class LeNet(nn.Sequential):
    """After LeCun et al. 1998: images [B, 3, 32, 32] -> logits [B, classes].

    Args:
        classes: outputs.
        widths: channels of the two 5x5 convolutions.
        hidden: widths of the two hidden fully connected layers.
        activation: relu, leaky_relu, gelu, tanh or silu.
        head_dropout: probability of dropout before the last layer.

    Only 32 x 32 images fit its first fully connected layer. Activation and dropout change no parameter count.

    Raises:
        ModelError: an argument that does not exist or is out of range.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        widths: Sequence[int] = (6, 16),
        hidden: Sequence[int] = (120, 84),
        activation: str = "relu",
        head_dropout: float = 0.0,
    ) -> None:
        check_counts(2, widths=widths, hidden=hidden)
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, widths[0], 5),
                activation1=activation_layer(activation),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(widths[0], widths[1], 5),
                activation2=activation_layer(activation),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(widths[1] * 5 * 5, hidden[0]),
                activation3=activation_layer(activation),
                fc2=nn.Linear(hidden[0], hidden[1]),
                activation4=activation_layer(activation),
                dropout=dropout_layer("head_dropout", head_dropout),
                fc3=nn.Linear(hidden[1], classes),
            )
        )
