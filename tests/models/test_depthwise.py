"""Depthwise convolutions with fp32 gradients within autocast: which ones, and what comes out."""

import pytest
import torch
from torch import nn

from models import zoo
from models.configuration import Configuration
from models.depthwise import DepthwiseConv2d, adapt_depthwise, suits
from models.prepare import prepare


def test_only_large_windows_and_long_strides_are_taken() -> None:
    assert suits(nn.Conv2d(8, 8, 5, padding=2, groups=8))
    assert suits(nn.Conv2d(8, 16, 3, stride=2, groups=8))
    for layer in (
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, groups=4),
        nn.Conv2d(1, 8, 5),
        nn.Conv1d(8, 8, 5, groups=8),
        nn.Conv2d(8, 8, 5, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode="reflect"),
    ):
        assert not suits(layer)


@pytest.mark.parametrize("bias", [True, False])
def test_within_autocast_the_gradients_are_those_of_fp32(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=bias)
    # Values that bfloat16 holds, so that nothing is rounded before the sums.
    images = torch.randn(2, 8, 9, 9).bfloat16().float().requires_grad_()
    coming = torch.randn(2, 8, 9, 9).bfloat16()
    of = [images, *layer.parameters()]
    expected = torch.autograd.grad(layer(images), of, coming.float())
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(images)
        [adapted] = adapt_depthwise(nn.Sequential(layer))
        found = adapted(images)
    assert isinstance(adapted, DepthwiseConv2d)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain)
    gradients = torch.autograd.grad(found, of, coming)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * len(of)
    # The images' own gradient goes back through a bfloat16.
    torch.testing.assert_close(gradients[0], expected[0], atol=0, rtol=2**-8)
    for a, b in zip(gradients[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_without_autocast_or_gradients_it_is_the_convolution() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    images = torch.randn(2, 8, 9, 9)
    plain = layer(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = layer(images)
    adapt_depthwise(nn.Sequential(layer))
    assert torch.equal(layer(images), plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(images), rounded)


@pytest.mark.parametrize(("text", "training", "taken"), [("amp-nhwc", True, 11), ("", True, 0), ("amp-nhwc", False, 0)])
def test_a_network_that_trains_eagerly_has_it(text: str, training: bool, taken: int) -> None:
    model = zoo.build("efficientnet_b0", 10)
    names = list(model.state_dict())
    configuration = Configuration.from_text(text) if text else Configuration()
    prepared = prepare(model, configuration, torch.device("cpu"), training, (1, 3, 64, 64))
    assert sum(isinstance(layer, DepthwiseConv2d) for layer in prepared.module.modules()) == taken
    assert list(prepared.module.state_dict()) == names
