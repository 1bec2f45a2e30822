"""Squeeze-and-excitation: a gate for each channel, computed from the whole image."""

from torch import Tensor, nn
from torch.nn import functional


class SqueezeExcite(nn.Module):
    """Hu, Shen and Sun 2018, Squeeze-and-Excitation Networks: [B, C, H, W] -> [B, C, H, W].

    Global average, a fully connected pair C -> C // ratio -> C with ReLU between, sigmoid, and a product.
    The gate's own activation stays ReLU whatever the network around it uses.
    """

    def __init__(self, channels: int, ratio: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, max(1, channels // ratio), bias=bias)
        self.fc2 = nn.Linear(max(1, channels // ratio), channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(functional.relu(self.fc1(x.mean((2, 3))))).sigmoid()
        result: Tensor = x * gate[:, :, None, None]
        return result
