"""Depthwise convolutions in fp32 within autocast: which ones, and what comes out."""

import pytest
import torch
from torch import nn

from models import zoo
from models.configuration import Configuration
from models.depthwise import SingleDepthwiseConv2d, adapt_depthwise, suits
from models.prepare import prepare


def test_only_large_windows_and_long_strides_are_taken() -> None:
    assert suits(nn.Conv2d(8, 8, 5, padding=2, groups=8))
    assert suits(nn.Conv2d(8, 16, 3, stride=2, groups=8))
    for layer in (
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, groups=4),
        nn.Conv2d(1, 8, 5),
        nn.Conv1d(8, 8, 5, groups=8),
    ):
        assert not suits(layer)


def test_under_autocast_it_is_computed_in_fp32_forward_and_backward() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    images = torch.randn(2, 8, 9, 9, requires_grad=True)
    expected = layer(images)
    gradients = torch.autograd.grad(expected.square().mean(), (images, layer.weight, layer.bias))
    [adapted] = adapt_depthwise(nn.Sequential(layer))
    assert isinstance(adapted, SingleDepthwiseConv2d)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapted(images)
    assert found.dtype == torch.bfloat16
    # Rounded once, at its end: what bfloat16 sums would give lies further away.
    assert torch.equal(found, expected.to(torch.bfloat16))
    for a, b in zip(
        torch.autograd.grad(found.float().square().mean(), (images, layer.weight, layer.bias)), gradients, strict=True
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)


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
    assert sum(isinstance(layer, SingleDepthwiseConv2d) for layer in prepared.module.modules()) == taken
    assert list(prepared.module.state_dict()) == names
