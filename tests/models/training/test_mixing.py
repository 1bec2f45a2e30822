"""Mixing against a slow twin, exact areas, and random numbers that depend on the place in training alone."""

import warnings

import pytest
import torch
from torch import Tensor

from models.training.losses import cross_entropy
from models.training.mixing import Mixed, Plan, Ways, dominant, mix, plan

SIZE = (6, 3, 12, 20)
KEYS = [(7, epoch, step) for epoch in range(3) for step in range(20)]
MIXUP, CUTMIX, RICAP = {"mixup": 0.4}, {"cutmix": 1.0}, {"ricap": 0.3}
WAYS = [MIXUP, CUTMIX, RICAP]


def batch(layout: torch.memory_format = torch.contiguous_format) -> tuple[Tensor, Tensor]:
    images = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    return images, torch.arange(SIZE[0])


def planned(ways: Ways, key: tuple[int, int, int]) -> Plan:
    return plan(SIZE[0], SIZE[2], SIZE[3], ways, key)


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
@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_equals_the_slow_twin(ways: Ways, layout: torch.memory_format) -> None:
    images, labels = batch(layout)
    before = images.clone()
    for key in KEYS:
        mixed, chosen = mix(images, labels, ways, key), planned(ways, key)
        torch.testing.assert_close(mixed.images, slow(images, chosen))
        assert mixed.images.is_contiguous(memory_format=layout)
        for part, shift in zip(mixed.labels, chosen.shifts, strict=True):
            assert torch.equal(part, (labels - shift) % SIZE[0])
        assert mixed.weights.tolist() == pytest.approx(chosen.weights)
    assert torch.equal(images, before)


@pytest.mark.parametrize("ways", [CUTMIX, RICAP], ids=str)
def test_weights_are_exact_areas(ways: Ways) -> None:
    pixels = SIZE[2] * SIZE[3]
    for key in KEYS:
        chosen = planned(ways, key)
        areas = [height * width for _, _, height, width in chosen.boxes]
        if "cutmix" in ways:
            areas[0] = pixels - areas[1]
        assert sum(areas) == pixels
        assert chosen.weights == tuple(area / pixels for area in areas)
        # Counted in the picture itself: every image a constant of its own.
        images = torch.arange(SIZE[0], dtype=torch.float32)[:, None, None, None].expand(SIZE).contiguous()
        mixed = mix(images, torch.arange(SIZE[0]), ways, key)
        counted = [(mixed.images[0, 0] == label).sum().item() for label in range(SIZE[0])]
        stated = [0] * SIZE[0]
        for label, area in zip(mixed.labels[:, 0].tolist(), areas, strict=True):
            stated[label] += area
        assert counted == stated


def test_ricap_covers_the_image_with_crops_inside_their_sources() -> None:
    for key in KEYS:
        chosen = planned(RICAP, key)
        covered = torch.zeros(SIZE[2:])
        for (top, left, height, width), (y, x) in zip(chosen.boxes, chosen.origins, strict=True):
            covered[top : top + height, left : left + width] += 1
            assert 0 <= y <= SIZE[2] - height
            assert 0 <= x <= SIZE[3] - width
        assert torch.equal(covered, torch.ones(SIZE[2:]))


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_weights_sum_to_one_and_the_loss_is_their_sum(ways: Ways) -> None:
    images, labels = batch()
    logits = torch.randn(SIZE[0], 10, generator=torch.Generator().manual_seed(2))
    for key in KEYS[:10]:
        mixed = mix(images, labels, ways, key)
        assert mixed.weights.dtype == torch.float32
        assert mixed.weights.sum().item() == pytest.approx(1, abs=1e-6)
        parts = [torch.nn.functional.cross_entropy(logits, part) for part in mixed.labels]
        expected = sum(weight * part for weight, part in zip(mixed.weights, parts, strict=True))
        torch.testing.assert_close(cross_entropy(logits, mixed), expected)


def test_the_same_key_mixes_the_same_and_others_do_not() -> None:
    ways = {**MIXUP, **CUTMIX, **RICAP}
    plans = [planned(ways, key) for key in KEYS]
    assert plans == [planned(ways, key) for key in KEYS]
    assert {chosen.way for chosen in plans} == {"mixup", "cutmix", "ricap"}
    assert len(set(plans)) == len(plans)
    assert plan(*SIZE[::2], 20, ways, (7, 0, 0), shard=1) != plan(*SIZE[::2], 20, ways, (7, 0, 0))


def test_shapes_never_change() -> None:
    images, labels = batch()
    ways = {**MIXUP, **CUTMIX, **RICAP}
    for key in KEYS:
        mixed = mix(images, labels, ways, key)
        assert (mixed.labels.shape, mixed.weights.shape) == ((4, SIZE[0]), (4,))
    assert mix(images, labels, {**MIXUP, **CUTMIX}, KEYS[0]).labels.shape == (2, SIZE[0])
    alone = mix(images[:1], labels[:1], ways, KEYS[0])
    assert alone.images.data_ptr() == images.data_ptr()
    assert alone.labels.shape == (4, 1)
    assert torch.equal(dominant(alone), labels[:1])


@pytest.mark.parametrize(
    ("ways", "shifts", "weights"),
    [
        (MIXUP, (0, 3), (0.9820416529623208, 0.01795834703767918)),
        (CUTMIX, (0, 3), (0.9, 0.1)),
        (RICAP, (0, 3, 5, 2), (0, 1 / 3, 0, 2 / 3)),
    ],
)
def test_numbers_are_those_that_stored_runs_began_with(
    ways: Ways, shifts: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    found = plan(6, 12, 20, ways, (7, 1, 3))
    assert found.shifts == shifts
    assert found.weights == pytest.approx(weights)


def test_mixup_share_has_the_mean_of_its_distribution() -> None:
    shares = torch.tensor([planned(MIXUP, (1, 0, step)).weights[0] for step in range(500)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.06)
    # Var of Beta(a, a) is 1 / (4 (2a + 1)).
    assert shares.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.02)


def test_dominant_counts_parts_of_one_class_together() -> None:
    images = torch.zeros(3, 3, 1, 1)
    labels = torch.tensor([[1, 1, 1], [2, 2, 1], [1, 3, 3], [2, 4, 3]])
    assert dominant(Mixed(images, labels, torch.tensor([0.3, 0.4, 0.2, 0.1]))).tolist() == [1, 2, 1]


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_reduced_precision(ways: Ways) -> None:
    images, labels = batch(torch.channels_last)
    mixed = mix(images.bfloat16(), labels, ways, (0, 0, 0))
    assert mixed.images.dtype == torch.bfloat16
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert mixed.weights.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_cuda_is_the_cpu_and_nobody_waits(ways: Ways) -> None:
    images, labels = batch(torch.channels_last)
    expected = mix(images, labels, ways, (3, 1, 4))
    images, labels = images.cuda(), labels.cuda()
    mix(images, labels, ways, (3, 1, 4))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        mixed = mix(images, labels, ways, (3, 1, 4))
        leading = dominant(mixed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(mixed.images.cpu(), expected.images)
    assert torch.equal(mixed.labels.cpu(), expected.labels)
    assert torch.equal(leading.cpu(), dominant(expected))
