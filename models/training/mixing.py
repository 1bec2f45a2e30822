"""Images of a batch mixed with one another, and their labels: mixup, CutMix and RICAP.

The partners of an image are a random number of places further on in its batch. Training batches are already shuffled,
so these are random partners, and no list of indices has to be copied to the device: all copies are slices.

Random numbers are drawn on the host and depend on (seed, epoch, step, shard) alone, so a resumed training mixes the
same images in the same way. Call `mix` outside of compiled code: it slices at Python numbers. Shapes never change.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Ways of mixing that are on, with the parameter of their symmetric Beta distribution: mixup (Zhang et al. 2018,
# arXiv 1710.09412), cutmix (Yun et al. 2019, arXiv 1905.04899), ricap (Takahashi et al. 2018, arXiv 1811.09030, which
# uses 0.3). Each batch is mixed in one of them, all equally likely.
Ways = Mapping[str, float]
WAYS = ("mixup", "cutmix", "ricap")
# The third word of the counter: the loaders draw with the same seed and epoch and small numbers there.
STREAM = 1 << 32


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
        images: [B, 3, H, W], dtype and memory format of what was mixed.
        labels: int64 [K, B], on the device.
        weights: float32 [K], on the device, summing to 1.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor


class Plan(NamedTuple):
    """How one batch is mixed.

    Attributes:
        way: mixup, cutmix, ricap or "none".
        shifts: K numbers: part k of image i comes from image i - shifts[k] of the batch.
        weights: K shares summing to 1.
        boxes: K (top, left, height, width) in pixels, the place of each part in the mixed image (cutmix, ricap).
        origins: K (top, left) in pixels, the place of each part in its source (cutmix, ricap).
    """

    way: str
    shifts: tuple[int, ...]
    weights: tuple[float, ...]
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    origins: tuple[tuple[int, int], ...] = ()


def plan(batch: int, height: int, width: int, ways: Ways, key: tuple[int, int, int], shard: int = 0) -> Plan:
    """Decide how a batch is mixed; the same arguments always decide the same. A batch of one image is not mixed.

    Args:
        key: seed, epoch, step; none negative.
        shard: which of several processes this is.
    """
    seed, epoch, step = key
    philox = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, step, STREAM + shard, 0], np.uint64)
    )
    generator = np.random.Generator(philox)
    # Not used any more, but drawn so that runs stored when it was used continue with the same numbers.
    generator.random()
    # K is the same for every batch of a training, so that nothing is compiled twice.
    parts = 4 if "ricap" in ways else 2
    if batch < 2:
        return _padded(Plan("none", (0,), (1.0,)), parts)
    way = tuple(ways)[int(generator.integers(len(ways)))]
    if way == "ricap":
        return _ricap(generator, batch, height, width, ways[way])
    shift = int(generator.integers(1, batch))
    if way == "mixup":
        share = float(generator.beta(ways[way], ways[way]))
        return _padded(Plan("mixup", (0, shift), (share, 1 - share)), parts)
    return _padded(_cutmix(generator, shift, height, width, ways[way]), parts)


def mix(images: Tensor, labels: Tensor, ways: Ways, key: tuple[int, int, int], shard: int = 0) -> Mixed:
    """Mix a batch as `plan` decides, into new memory; a batch of one image is returned as it is.

    Args:
        images: [B, 3, H, W], floating point, already normalised.
        labels: int64 [B].
        ways, key, shard: see `plan`.
    """
    batch, _, height, width = images.shape
    chosen = plan(batch, height, width, ways, key, shard)
    with torch.no_grad():
        return Mixed(
            _mixed_images(images, chosen),
            torch.stack([labels.roll(shift) if shift else labels for shift in chosen.shifts]),
            _on_device(chosen.weights, images),
        )


def dominant(mixed: Mixed) -> Tensor:
    """The label of each image with the greatest weight, int64 [B]; parts of the same class count together."""
    same = mixed.labels[:, None] == mixed.labels[None]
    totals = (same * mixed.weights[:, None]).sum(1)
    return mixed.labels.gather(0, totals.argmax(0, keepdim=True))[0]


def _mixed_images(images: Tensor, chosen: Plan) -> Tensor:
    if chosen.way == "none":
        return images
    if chosen.way == "mixup":
        result = torch.empty_like(images)
        for target, source in _pairs(len(images), chosen.shifts[1]):
            # Written directly into the result; roll would copy the batch once more and lose channels_last.
            torch.lerp(images[target], images[source], chosen.weights[1], out=result[target])
        return result
    # CutMix leaves most pixels where they are; RICAP's four parts cover all.
    result = images.clone() if chosen.way == "cutmix" else torch.empty_like(images)
    for shift, box, origin in zip(chosen.shifts, chosen.boxes, chosen.origins, strict=True):
        top, left, height, width = box
        if height == 0 or width == 0:
            continue
        rows, columns = slice(top, top + height), slice(left, left + width)
        from_rows, from_columns = slice(origin[0], origin[0] + height), slice(origin[1], origin[1] + width)
        for target, source in _pairs(len(images), shift):
            result[target, :, rows, columns] = images[source, :, from_rows, from_columns]
    return result


def _pairs(batch: int, shift: int) -> tuple[tuple[slice, slice], ...]:
    """Slices (to, from) that shift a batch cyclically by `shift` places."""
    if shift == 0:
        return ((slice(None), slice(None)),)
    return (slice(shift, None), slice(None, batch - shift)), (slice(None, shift), slice(batch - shift, None))


def _on_device(weights: tuple[float, ...], images: Tensor) -> Tensor:
    host = torch.tensor(weights, dtype=torch.float32)
    if images.device.type != "cuda":
        return host.to(images.device)
    # From pinned memory the copy is queued; from ordinary memory the host would wait for it.
    return host.pin_memory().to(images.device, non_blocking=True)


def _padded(chosen: Plan, parts: int) -> Plan:
    """The plan with parts of weight 0 added up to `parts`."""
    missing = parts - len(chosen.shifts)
    return chosen._replace(
        shifts=chosen.shifts + (0,) * missing,
        weights=chosen.weights + (0.0,) * missing,
        boxes=chosen.boxes + ((0, 0, 0, 0),) * missing,
        origins=chosen.origins + ((0, 0),) * missing,
    )


def _cutmix(generator: np.random.Generator, shift: int, height: int, width: int, alpha: float) -> Plan:
    """A rectangle of the partner at the same place, clipped at the image's edge; weights are the visible areas."""
    cut = math.sqrt(1 - float(generator.beta(alpha, alpha)))
    tall, wide = int(height * cut), int(width * cut)
    centre_y, centre_x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = max(centre_y - tall // 2, 0), min(centre_y + tall // 2, height)
    left, right = max(centre_x - wide // 2, 0), min(centre_x + wide // 2, width)
    area = (bottom - top) * (right - left)
    box = (top, left, bottom - top, right - left)
    weights = ((height * width - area) / (height * width), area / (height * width))
    return Plan("cutmix", (0, shift), weights, ((0, 0, 0, 0), box), ((0, 0), (top, left)))


def _ricap(generator: np.random.Generator, batch: int, height: int, width: int, beta: float) -> Plan:
    """Four random crops around a random point; each has the size of its quarter, its weight is its area."""
    split_y = round(height * float(generator.beta(beta, beta)))
    split_x = round(width * float(generator.beta(beta, beta)))
    boxes = (
        (0, 0, split_y, split_x),
        (0, split_x, split_y, width - split_x),
        (split_y, 0, height - split_y, split_x),
        (split_y, split_x, height - split_y, width - split_x),
    )
    origins = tuple(
        (int(generator.integers(height - tall + 1)), int(generator.integers(width - wide + 1)))
        for _, _, tall, wide in boxes
    )
    # The batch is shuffled, so the first partner is random; the others may coincide, as the paper's permutations may.
    shifts = (0, *(int(shift) for shift in generator.integers(batch, size=3)))
    weights = tuple(tall * wide / (height * width) for _, _, tall, wide in boxes)
    return Plan("ricap", shifts, weights, boxes, origins)
