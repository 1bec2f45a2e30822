"""Convolutions on small maps: the products are the convolution, forward and backward."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import small_maps, zoo
from models.small_maps import SmallMapConv2d, adapt_small_maps, pixelwise, suits, windows

SHAPES = [
    # height, width, kernel, stride, padding
    (2, 2, 3, 1, 1),
    (4, 4, 3, 2, 1),
    (1, 1, 3, 1, 1),
    (3, 3, 3, 2, 1),
    (4, 2, 3, 2, 1),
    (2, 2, 5, 1, 2),
    (5, 5, 5, 1, 0),
    (7, 7, 7, 4, 3),
]


@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_output_and_gradients_are_the_convolutions(
    height: int, width: int, kernel: int, stride: int, padding: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 5, height, width, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(4, 5, kernel, kernel, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    expected = functional.conv2d(images, weight, bias, stride, padding)
    found = pixelwise(images, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    coming = torch.randn_like(expected)
    inputs = (images, weight, bias)
    for a, b in zip(
        torch.autograd.grad(found, inputs, coming), torch.autograd.grad(expected, inputs, coming), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_under_autocast_the_result_is_rounded_alike() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3, padding=1, bias=False)
    images = torch.randn(8, 64, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(images)
        adapted = adapt_small_maps(nn.Sequential(layer))(images)
    assert adapted.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(adapted, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("size", "stride"), [(7, 1), (14, 2), (3, 1)])
def test_between_many_channels_a_product_gives_the_weights_gradient(
    size: int, stride: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []
    monkeypatch.setattr(small_maps, "has_amx", lambda: True)
    monkeypatch.setattr(small_maps, "windows", lambda *words: calls.append(windows(*words)) or calls[-1])
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 264, 3, stride, padding=1)
    images = torch.randn(2, 256, size, size).to(memory_format=layout).requires_grad_()
    inputs = (images, *layer.parameters())
    wanted = layer(images)
    coming = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, inputs, coming)
    [adapted] = adapt_small_maps(nn.Sequential(layer))
    assert torch.equal(adapted(images), wanted), "fp32 stays a convolution"
    with torch.autocast("cpu", torch.bfloat16):
        found = adapted(images)
    gradients = torch.autograd.grad(found, inputs, coming.bfloat16())
    assert len(calls) == 1
    assert [one.dtype for one in (found, *gradients)] == [torch.bfloat16] + [torch.float32] * 3
    for one, right in zip((found, *gradients), (wanted, *expected), strict=True):
        assert (one - right).norm() <= 2**-7 * right.norm()


@pytest.mark.parametrize(("channels", "size", "kernel"), [(128, 7, 3), (256, 8, 3), (256, 7, 5)])
def test_with_few_channels_many_pixels_or_a_large_window_the_gradient_is_the_convolutions(
    channels: int, size: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_maps, "has_amx", lambda: True)
    monkeypatch.setattr(small_maps, "windows", lambda *words: pytest.fail("called"))
    [layer] = adapt_small_maps(nn.Sequential(nn.Conv2d(channels, 256, kernel, padding=kernel // 2)))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, channels, size, size)).sum().backward()


def test_only_plain_square_convolutions_are_taken() -> None:
    assert suits(nn.Conv2d(3, 4, 3, padding=1))
    for layer in (
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(3, 4, (3, 5)),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, dilation=2),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(3, 4, 3),
    ):
        assert not suits(layer)


def test_a_network_keeps_its_parameters_and_its_answers() -> None:
    torch.manual_seed(0)
    model = zoo.build("res_512").eval()
    keys, images = list(model.state_dict()), torch.randn(2, 3, 32, 32)
    expected = model(images)
    adapt_small_maps(model)
    assert list(model.state_dict()) == keys
    assert any(isinstance(module, SmallMapConv2d) for module in model.modules())
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
