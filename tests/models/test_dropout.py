"""The quick dropout drops as often and scales as exactly as nn.Dropout."""

import pytest
import torch
from torch import nn

from models.dropout import QuickDropout, quicken_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_mean_and_layout(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.ones(64, 16, 16, 17, dtype=dtype).to(memory_format=torch.channels_last)
    out = QuickDropout(p)(images)
    dropped = (out == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / images.numel()) ** 0.5)
    assert out.double().mean().item() == pytest.approx(1, abs=0.01)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == dtype
    values = out.unique().tolist()
    assert values[0] == 0
    assert values[1] == pytest.approx(1 / (1 - p), rel=0.004)


def test_each_of_the_four_values_of_a_number_is_dropped_alike() -> None:
    torch.manual_seed(0)
    out = QuickDropout(0.25)(torch.ones(400_000))
    for lane in range(4):
        assert (out[lane::4] == 0).double().mean().item() == pytest.approx(0.25, abs=0.006)
    # Neighbours fall independently.
    zero = (out == 0).double()
    assert (zero[1:] * zero[:-1]).mean().item() == pytest.approx(0.0625, abs=0.004)


def test_the_gradient_passes_where_the_value_did() -> None:
    images = torch.ones(1000, requires_grad=True)
    out = QuickDropout(0.3)(images)
    out.sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, out.detach())


def test_nothing_is_dropped_outside_training() -> None:
    layer = QuickDropout(0.5).eval()
    images = torch.ones(10)
    assert layer(images) is images


def test_a_seed_repeats_it() -> None:
    layer = QuickDropout(0.5)
    torch.manual_seed(1)
    first = layer(torch.ones(101))
    torch.manual_seed(1)
    assert torch.equal(first, layer(torch.ones(101)))


def test_every_dropout_of_a_network_is_replaced_and_its_state_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.4)))
    keys = list(model.state_dict())
    quicken_dropout(model)
    assert [type(m) for m in model.modules() if isinstance(m, nn.Dropout)] == [QuickDropout, QuickDropout]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.4]
    assert list(model.state_dict()) == keys
