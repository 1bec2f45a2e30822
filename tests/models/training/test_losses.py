"""Losses against torch's, against closed forms, and their dtypes."""

import math

import pytest
import torch
from torch.nn import functional

from models.errors import ModelError
from models.training.losses import cross_entropy, distillation, loss
from models.training.mixing import Mixed
from models.training.recipe import Recipe


def logits(batch: int = 6, classes: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed)) * 3


LABELS = torch.tensor([0, 3, 3, 9, 1, 2])


def mixed(weights: torch.Tensor) -> Mixed:
    labels = torch.stack([LABELS.roll(shift) for shift in range(len(weights))])
    return Mixed(torch.zeros(6, 3, 2, 2), labels, weights)


def test_smoothing_has_a_floor_at_half_a_nat() -> None:
    # Smoothing 0.1 over 10 classes asks for 0.91 and nine times 0.01; the best logits are their logarithms.
    wanted = torch.full((1, 10), 0.01)
    wanted[0, 4] = 0.91
    best = wanted.log().requires_grad_()
    floor = cross_entropy(best, torch.tensor([4]), 0.1)
    assert floor.item() == pytest.approx(-(0.91 * math.log(0.91) + 0.09 * math.log(0.01)), abs=1e-6)
    assert floor.item() == pytest.approx(0.500, abs=5e-4)
    floor.backward()
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-6
    # More confidence than that costs.
    assert cross_entropy(10 * best.detach(), torch.tensor([4]), 0.1) > floor


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_mixed_labels_are_the_weighted_sum(parts: int, smoothing: float) -> None:
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])[:parts]
    weights = weights / weights.sum()
    targets = mixed(weights)
    expected = sum(
        weight * functional.cross_entropy(logits(), labels, label_smoothing=smoothing)
        for weight, labels in zip(weights, targets.labels, strict=True)
    )
    torch.testing.assert_close(cross_entropy(logits(), targets, smoothing), expected)


def test_distillation_is_the_divergence_times_temperature_squared() -> None:
    student, teacher = logits(), logits(seed=1)
    for temperature in (1.0, 4.0):
        p = (teacher / temperature).softmax(1)
        q = (student / temperature).softmax(1)
        expected = (p * (p / q).log()).sum(1).mean() * temperature**2
        torch.testing.assert_close(distillation(student, teacher, temperature), expected, rtol=1e-4, atol=1e-5)
    assert distillation(student, student, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_the_teachers_term_gets_its_share() -> None:
    recipe = Recipe("lenet", label_smoothing=0.1, distill_weight=0.3, temperature=2.0)
    student, teacher = logits().requires_grad_(), logits(seed=1).requires_grad_()
    result = loss(student, LABELS, recipe, teacher)
    labels = functional.cross_entropy(student, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(result, 0.7 * labels + 0.3 * distillation(student, teacher, 2))
    torch.testing.assert_close(loss(student, LABELS, recipe), labels)
    result.backward()
    assert teacher.grad is None
    assert student.grad is not None
    with pytest.raises(ModelError, match="there is a teacher"):
        loss(logits(), LABELS, Recipe("lenet", distill_weight=0.0), logits())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_whatever_autocast_says(dtype: torch.dtype) -> None:
    recipe, targets = Recipe("lenet", label_smoothing=0.1), mixed(torch.tensor([0.7, 0.3]))
    low = logits().to(dtype)
    with torch.autocast("cpu", dtype):
        found = loss(low, targets, recipe, low * 0.5)
        assert cross_entropy(low, targets, 0.1).item() == cross_entropy(low.float(), targets, 0.1).item()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(low.float(), targets, recipe, low.float() * 0.5), rtol=1e-3, atol=1e-3)
