"""Muon: how far from orthogonal its updates are, that layouts and batching change nothing, and what stays SGD."""

from dataclasses import replace

import pytest
import torch
from batches import Feed, Heard, recipe, training
from torch import Tensor, nn
from torch.nn import functional

from models import zoo
from models.errors import ModelError
from models.training.checkpoint import digest, weights_of
from models.training.muon import Muon, orthogonalized
from models.training.optimizers import build
from models.training.recipe import Recipe


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_singular_values_come_to_lie_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.4, 1.0, left.shape[2])
    found = torch.linalg.svdvals(orthogonalized(left * values @ right))
    assert found.min() > 0.5
    assert found.max() < 1.3


def test_directions_stay_and_zeros_stay_zeros() -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(1, 5, 9), full_matrices=False)
    made = orthogonalized(left * torch.linspace(0.4, 1.0, 5) @ right)
    between = left.mT @ made @ right.mT
    torch.testing.assert_close(between, torch.diag_embed(between.diagonal(dim1=1, dim2=2)), atol=1e-5, rtol=0)
    assert not orthogonalized(torch.zeros(2, 3, 4)).any()


def layers(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape)) for shape in ((8, 4, 3, 3), (8, 4, 3, 3), (6, 8, 1, 1), (5, 7))]


def updated(parameters: list[nn.Parameter], steps: int = 3) -> list[Tensor]:
    optimizer = Muon(
        [{"params": parameters[:3], "orthogonal": True}, {"params": parameters[3:]}], lr=0.1, momentum=0.6, fused=True
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator)
            channels_last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
            parameter.grad = gradient.contiguous(memory_format=torch.channels_last) if channels_last else gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def expected(parameters: list[nn.Parameter], steps: int = 3) -> list[Tensor]:
    """The same by the book: one filter bank after the other, the momentum written out."""
    weights = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for number, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=generator)
            momenta[number] = 0.6 * momenta[number] + gradient
            direction = gradient + 0.6 * momenta[number]
            if weight.ndim == 4:
                weight *= len(weight) ** 0.5 / weight.norm()
                direction = orthogonalized(direction.flatten(1)[None])[0].view_as(weight)
            weight -= 0.1 * direction
    return weights


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_updates_are_those_of_one_filter_bank_after_the_other(layout: torch.memory_format) -> None:
    parameters = layers()
    if layout == torch.channels_last:
        parameters = [
            nn.Parameter(p.detach().contiguous(memory_format=layout)) if p.ndim == 4 else p for p in parameters
        ]
    wanted = expected(parameters)
    for found, weight in zip(updated(parameters), wanted, strict=True):
        torch.testing.assert_close(found, weight)


def test_filters_are_muons_and_the_rest_has_its_rates() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    chosen = Recipe(
        "lenet", optimizer="muon", lr=0.2, momentum=0.6, weight_decay=0.1, decay_all=True, bias_lr_factor=8,
        head_lr_factor=2,
    )  # fmt: skip
    groups = {group["name"]: group for group in build(model, chosen, True).param_groups}
    assert groups["filters"]["params"] == [model[0].weight]
    assert groups["weights"]["params"] == [model[3].weight]
    assert [groups[name]["lr"] for name in ("filters", "weights", "rest", "norm_biases")] == [0.2, 0.4, 1.6, 1.6]
    # All but the filters, whose norm is fixed, decay by the same share a step.
    shares = [group["lr"] * group["weight_decay"] for group in groups.values()]
    assert shares == pytest.approx([0.0, 0.02, 0.02, 0.02])
    with pytest.raises(ModelError, match="muon orthogonalises the momentum"):
        Recipe("lenet", optimizer="muon", momentum=0.0)


def test_filters_keep_their_norm() -> None:
    parameters = layers()
    updated(parameters, 1)
    before = [parameter.detach().norm() for parameter in parameters[:3]]
    # One update of rate 0.1 moves a norm of sqrt(8) or sqrt(6) by less than 0.1 times the root of its rank, times 1.3.
    for norm, parameter in zip(before, parameters, strict=False):
        assert abs(norm - len(parameter) ** 0.5) < 0.1 * 1.3 * len(parameter) ** 0.5


def test_what_has_no_gradient_stays() -> None:
    model = nn.Conv2d(3, 4, 3)
    optimizer = Muon([{"params": [model.weight], "orthogonal": True}, {"params": [model.bias]}], lr=0.1, momentum=0.6)
    model.weight.requires_grad_(False)
    before = model.weight.clone()
    functional.mse_loss(model(torch.ones(1, 3, 4, 4)), torch.zeros(1, 4, 2, 2)).backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert model.bias is not None


def test_the_rest_learns_for_its_epochs_only() -> None:
    chosen = recipe(
        model="airbench94", optimizer="muon", lr=0.05, momentum=0.6, epochs=3, rest_epochs=2, bias_lr_factor=2.0
    )
    made = training(chosen)
    biases: list[Tensor] = []

    class Watch(Heard):
        def epoch(self, row: object, best: bool) -> None:
            biases.append(made.raw.whiten.bias.detach().clone())

    made.run(Watch())
    assert biases[0].any()
    assert not torch.equal(biases[0], biases[1])
    assert torch.equal(biases[1], biases[2])
    assert not made.raw.whiten.bias.requires_grad


def test_started_anew_a_training_is_that_of_its_seed() -> None:
    chosen = recipe(epochs=1, optimizer="muon", momentum=0.6, lr=0.05, ema=0.9)
    made = training(replace(chosen, seed=5))
    made.run(None)
    other = digest(weights_of(made.raw))
    torch.manual_seed(chosen.seed)
    made.restart(chosen, zoo.build(chosen.model, chosen.classes, **chosen.arguments), Feed(chosen.batch))
    made.run(None)
    fresh = training(chosen)
    fresh.run(None)
    assert digest(weights_of(made.raw)) == digest(weights_of(fresh.raw))
    assert digest(weights_of(made.raw)) != other
