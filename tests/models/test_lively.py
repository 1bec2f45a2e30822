import pytest
import torch
from torch import Tensor, nn

from models import zoo
from models.lively import blindness, enliven, has_statistics


def logits(model: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = model(images)
    return found


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("vit_b_32", "all its logits are the same"), ("googlenet", "its logits hardly depend on the image")],
)
@pytest.mark.slow
def test_fresh_networks_that_answer_the_same_to_everything_do_not_after(name: str, reason: str) -> None:
    model = zoo.build(name, 10).eval()
    images = torch.randn(2, 3, 224, 224)
    assert blindness(logits, model, images) == reason
    enliven(model, images)
    assert blindness(logits, model, images) == ""


def test_what_begins_as_nothing_is_drawn_and_the_rest_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).eval()
    nn.init.zeros_(model[3].weight)
    nn.init.constant_(model[3].bias, 1e-6)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = 2 + torch.randn(8, 3, 8, 8)
    enliven(model)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(kept[name]) == (name not in ("3.weight", "3.bias", "1.bias")), name
    enliven(model, images)
    passed = model[:2](images).detach()
    means, deviations = passed.mean((0, 2, 3)), passed.std((0, 2, 3))
    assert means == pytest.approx(model[1].bias.detach(), abs=0.01)
    assert deviations == pytest.approx(torch.ones(4), abs=0.1)
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_weights_are_back_after_looking() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    kept = [parameter.clone() for parameter in model.parameters()]
    assert blindness(logits, model, torch.randn(2, 3, 2, 2)) == ""
    assert all(a.equal(b) for a, b in zip(kept, model.parameters(), strict=True))


def test_answers_that_differ_from_call_to_call_say_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).train()
    assert blindness(logits, model, torch.randn(2, 3, 2, 2)) == "its logits differ from call to call"


def test_what_runs_elsewhere_has_no_weights_to_change() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, affine=False)).eval()
    assert blindness(logits, model, torch.randn(2, 3, 2, 2), weights=False) == ""


def test_a_network_that_was_trained_has_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert not has_statistics(model)
    model(torch.randn(2, 3, 8, 8))
    assert has_statistics(model)
    model[1].num_batches_tracked.zero_()
    assert has_statistics(model)


def test_an_answer_without_weights_depends_on_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, affine=False)).eval()
    assert blindness(logits, model, torch.randn(2, 3, 2, 2)) == "its logits hardly depend on the weights"
