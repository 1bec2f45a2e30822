"""The speed-record network: whitening whitens, and identity starts let a signal through."""

import pytest
import torch
from torch import nn

from models import zoo
from models.airbench import Airbench
from models.errors import ModelError


def test_its_parameters() -> None:
    model = zoo.build("airbench94")
    # 2x2 whitening with a bias; six 3x3 convolutions; a scale (fixed) and a shift for each; the last layer.
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    expected = 24 * 12 + 24 + convolutions + 2 * 2 * (64 + 256 + 256) + 256 * 10
    assert sum(p.numel() for p in model.parameters()) == expected == 1_972_792
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed[0] == "whiten.weight"
    assert len(fixed) == 7


def test_the_first_layer_whitens_patches() -> None:
    torch.manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(64, 3, 36, 36), 5, 1)
    model = Airbench()
    model.initialize_from(images)
    responses = model.whiten(images).transpose(0, 1).flatten(1)[:12]
    covariance = responses @ responses.T / responses.shape[1]
    off = covariance - torch.diag(covariance.diag())
    assert off.abs().max() < 0.02
    # The strongest direction has unit variance; weak ones stay below it because of the floor.
    assert covariance[0, 0].item() == pytest.approx(1, abs=0.01)
    assert covariance.diag().max() < 1.01


def test_both_signs_of_each_direction() -> None:
    model = Airbench()
    model.initialize_from(torch.randn(16, 3, 32, 32))
    torch.testing.assert_close(model.whiten.weight[:12], -model.whiten.weight[12:])


def test_convolutions_begin_by_passing_their_input_on() -> None:
    block = Airbench().blocks[0]
    features = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(block[0](features)[:, :24], features)


@pytest.mark.parametrize("widths", [(64, 256), (64, 32, 256), (8, 256, 256), (64, 0, 1)])
def test_widths_that_cannot_be_built(widths: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="widths"):
        zoo.build("airbench94", 10, widths=widths)
