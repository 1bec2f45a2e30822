"""Mixing against a slow twin, exact areas, and random numbers that depend on the place in training alone."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.training.losses import cross_entropy
from models.training.mixing import Mixed, MixOptions, Plan, dominant, mix, plan

SIZE = (6, 3, 12, 20)
KEYS = [(7, epoch, step) for epoch in range(3) for step in range(20)]
WAYS = [MixOptions(mixup=0.4), MixOptions(cutmix=1.0), MixOptions(ricap=0.3)]


def batch(layout: torch.memory_format = torch.contiguous_format) -> tuple[Tensor, Tensor]:
    images = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    return images, torch.arange(SIZE[0])


def planned(options: MixOptions, key: tuple[int, int, int]) -> Plan:
    return plan(SIZE[0], SIZE[2], SIZE[3], options, key)


def slow(images: Tensor, chosen: Plan) -> Tensor:
    """Image by image and part by part, as the papers write it."""
    result = images.clone()
    for number in range(len(images)):
        sources = [images[(number - shift) % len(images)] for shift in chosen.shifts]
        if chosen.way == "mixup":
            result[number] = sum(weight * source for weight, source in zip(chosen.weights, sources, strict=True))
            continue
        for source, (top, left, height, width), (y, x) in zip(sources, chosen.boxes, chosen.origins, strict=True):
            result[number, :, top : top + height, left : left + width] = source[:, y : y + height, x : x + width]
    return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", WAYS)
def test_equals_the_slow_twin(options: MixOptions, layout: torch.memory_format) -> None:
    images, labels = batch(layout)
    before = images.clone()
    for key in KEYS:
        mixed, chosen = mix(images, labels, options, key), planned(options, key)
        torch.testing.assert_close(mixed.images, slow(images, chosen))
        assert mixed.images.is_contiguous(memory_format=layout)
        for part, shift in zip(mixed.labels, chosen.shifts, strict=True):
            assert torch.equal(part, (labels - shift) % SIZE[0])
        assert mixed.weights.tolist() == pytest.approx(chosen.weights)
    assert torch.equal(images, before)


@pytest.mark.parametrize("options", [MixOptions(cutmix=1.0), MixOptions(ricap=0.3)])
def test_weights_are_exact_areas(options: MixOptions) -> None:
    pixels = SIZE[2] * SIZE[3]
    for key in KEYS:
        chosen = planned(options, key)
        areas = [height * width for _, _, height, width in chosen.boxes]
        if options.cutmix:
            areas[0] = pixels - areas[1]
        assert sum(areas) == pixels
        assert chosen.weights == tuple(area / pixels for area in areas)
        # Counted in the picture itself: every image a constant of its own.
        images = torch.arange(SIZE[0], dtype=torch.float32)[:, None, None, None].expand(SIZE).contiguous()
        mixed = mix(images, torch.arange(SIZE[0]), options, key)
        counted = [(mixed.images[0, 0] == label).sum().item() for label in range(SIZE[0])]
        stated = [0] * SIZE[0]
        for label, area in zip(mixed.labels[:, 0].tolist(), areas, strict=True):
            stated[label] += area
        assert counted == stated


def test_ricap_covers_the_image_with_crops_inside_their_sources() -> None:
    for key in KEYS:
        chosen = planned(MixOptions(ricap=0.3), key)
        covered = torch.zeros(SIZE[2:])
        for (top, left, height, width), (y, x) in zip(chosen.boxes, chosen.origins, strict=True):
            covered[top : top + height, left : left + width] += 1
            assert 0 <= y <= SIZE[2] - height
            assert 0 <= x <= SIZE[3] - width
        assert torch.equal(covered, torch.ones(SIZE[2:]))


@pytest.mark.parametrize("options", WAYS)
def test_weights_sum_to_one_and_the_loss_is_their_sum(options: MixOptions) -> None:
    images, labels = batch()
    logits = torch.randn(SIZE[0], 10, generator=torch.Generator().manual_seed(2))
    for key in KEYS[:10]:
        mixed = mix(images, labels, options, key)
        assert mixed.weights.dtype == torch.float32
        assert mixed.weights.sum().item() == pytest.approx(1, abs=1e-6)
        parts = [torch.nn.functional.cross_entropy(logits, part) for part in mixed.labels]
        expected = sum(weight * part for weight, part in zip(mixed.weights, parts, strict=True))
        torch.testing.assert_close(cross_entropy(logits, mixed), expected)


def test_the_same_key_mixes_the_same_and_others_do_not() -> None:
    options = MixOptions(mixup=0.4, cutmix=1.0, ricap=0.3)
    plans = [planned(options, key) for key in KEYS]
    assert plans == [planned(options, key) for key in KEYS]
    assert {chosen.way for chosen in plans} == {"mixup", "cutmix", "ricap"}
    assert len(set(plans)) == len(plans)
    assert plan(*SIZE[::2], 20, options, (7, 0, 0), shard=1) != plan(*SIZE[::2], 20, options, (7, 0, 0))


def test_shapes_never_change() -> None:
    images, labels = batch()
    options = MixOptions(mixup=0.4, cutmix=1.0, ricap=0.3, probability=0.5)
    ways = set()
    for key in KEYS:
        mixed = mix(images, labels, options, key)
        assert (mixed.labels.shape, mixed.weights.shape) == ((4, SIZE[0]), (4,))
        ways.add(planned(options, key).way)
    assert ways == {"none", "mixup", "cutmix", "ricap"}
    assert [MixOptions().parts, MixOptions(mixup=1).parts, MixOptions(ricap=1).parts] == [1, 2, 4]


def test_probability_is_the_share_of_mixed_batches() -> None:
    options = MixOptions(mixup=1.0, probability=0.25)
    mixed = sum(planned(options, (1, 0, step)).way != "none" for step in range(400))
    assert 70 <= mixed <= 130
    images, labels = batch()
    untouched = mix(images, labels, MixOptions(mixup=1.0, probability=0.0), (0, 0, 0))
    assert untouched.images is images
    assert torch.equal(dominant(untouched), labels)
    alone = mix(images[:1], labels[:1], MixOptions(ricap=1.0), (0, 0, 0))
    assert torch.equal(alone.images, images[:1])


def test_mixup_share_has_the_mean_of_its_distribution() -> None:
    shares = torch.tensor([planned(MixOptions(mixup=0.4), (1, 0, step)).weights[0] for step in range(500)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.06)
    # Var of Beta(a, a) is 1 / (4 (2a + 1)).
    assert shares.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.02)


def test_dominant_counts_parts_of_one_class_together() -> None:
    images = torch.zeros(3, 3, 1, 1)
    labels = torch.tensor([[1, 1, 1], [2, 2, 1], [1, 3, 3], [2, 4, 3]])
    assert dominant(Mixed(images, labels, torch.tensor([0.3, 0.4, 0.2, 0.1]))).tolist() == [1, 2, 1]
    each = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    assert dominant(Mixed(images[:2], torch.tensor([[5, 6], [7, 8]]), each)).tolist() == [7, 6]


@pytest.mark.parametrize("options", WAYS)
def test_reduced_precision(options: MixOptions) -> None:
    images, labels = batch(torch.channels_last)
    mixed = mix(images.bfloat16(), labels, options, (0, 0, 0))
    assert mixed.images.dtype == torch.bfloat16
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert mixed.weights.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", WAYS)
def test_cuda_is_the_cpu_and_nobody_waits(options: MixOptions) -> None:
    images, labels = batch(torch.channels_last)
    expected = mix(images, labels, options, (3, 1, 4))
    images, labels = images.cuda(), labels.cuda()
    mix(images, labels, options, (3, 1, 4))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        mixed = mix(images, labels, options, (3, 1, 4))
        leading = dominant(mixed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(mixed.images.cpu(), expected.images)
    assert torch.equal(mixed.labels.cpu(), expected.labels)
    assert torch.equal(leading.cpu(), dominant(expected))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"mixup": -1}, "mixup is -1"), ({"ricap": float("inf")}, "ricap"), ({"probability": 2}, "probability is 2")],
)
def test_options_are_checked(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        MixOptions(**wrong)
