"""Losses against torch's, against closed forms, and their dtypes."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.errors import ModelError
from models.training.losses import LossOptions, cross_entropy, distillation, loss
from models.training.mixing import Mixed


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
    each = targets._replace(weights=weights[:, None].expand(parts, 6))
    torch.testing.assert_close(cross_entropy(logits(), each, smoothing), expected)


def test_weights_of_each_image() -> None:
    weights = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    weights = weights / weights.sum(0)
    targets = mixed(weights)
    parts = [functional.cross_entropy(logits(), labels, reduction="none") for labels in targets.labels]
    expected = (weights[0] * parts[0] + weights[1] * parts[1]).mean()
    torch.testing.assert_close(cross_entropy(logits(), targets), expected)


def test_distillation_is_the_divergence_times_temperature_squared() -> None:
    student, teacher = logits(), logits(seed=1)
    for temperature in (1.0, 4.0):
        p = (teacher / temperature).softmax(1)
        q = (student / temperature).softmax(1)
        expected = (p * (p / q).log()).sum(1).mean() * temperature**2
        torch.testing.assert_close(distillation(student, teacher, temperature), expected, rtol=1e-4, atol=1e-5)
    assert distillation(student, student, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_total_and_its_parts() -> None:
    options = LossOptions(label_smoothing=0.1, distill_weight=0.3, temperature=2)
    student, teacher = logits().requires_grad_(), logits(seed=1).requires_grad_()
    result = loss(student, LABELS, options, teacher)
    assert result.distillation is not None
    torch.testing.assert_close(result.total, 0.7 * result.labels + 0.3 * result.distillation)
    torch.testing.assert_close(result.labels, functional.cross_entropy(student, LABELS, label_smoothing=0.1))
    result.total.backward()
    assert teacher.grad is None
    assert student.grad is not None
    plain = loss(logits(), LABELS, LossOptions())
    assert plain.distillation is None
    assert plain.total is plain.labels


def test_distillation_needs_weight_and_teacher() -> None:
    with pytest.raises(ModelError, match="no teacher"):
        loss(logits(), LABELS, LossOptions(distill_weight=0.5))
    with pytest.raises(ModelError, match="a teacher"):
        loss(logits(), LABELS, LossOptions(), logits())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_whatever_autocast_says(dtype: torch.dtype) -> None:
    low = logits().to(dtype)
    with torch.autocast("cpu", dtype):
        result = loss(low, mixed(torch.tensor([0.7, 0.3])), LossOptions(0.1, 0.5), low * 0.5)
    assert all(part is not None and part.dtype == torch.float32 for part in result)
    expected = loss(low.float(), mixed(torch.tensor([0.7, 0.3])), LossOptions(0.1, 0.5), low.float() * 0.5)
    torch.testing.assert_close(result.total, expected.total, rtol=1e-3, atol=1e-3)
    assert result.labels.item() == expected.labels.item()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"distill_weight": 1.5}, "distill_weight"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        LossOptions(**wrong)
