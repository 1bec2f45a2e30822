"""Several images of a batch mixed into one, with their labels: mixup, CutMix and RICAP, on the images' device.

Each image meets partners that lie a random number of places further on in its batch. Training batches are shuffled
already, so these are random partners, and no index list has to reach the device: all copies are slices.

Random numbers are drawn on the host and depend on (seed, epoch, step, shard) alone, so a resumed training mixes the
same images in the same way. Call `mix` outside compiled code: places are Python numbers there, and shapes never change.

Imports no torch until a batch is mixed, so that a mistyped option is answered at once.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from models.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# The third word of the counter: the loaders draw with the same seed and epoch and small numbers there.
STREAM = 1 << 32


@dataclass(frozen=True)
class MixOptions:
    """Which ways of mixing are on; of several each batch gets one, all equally likely.

    Attributes:
        mixup: alpha of Beta(alpha, alpha), 0 = off (Zhang et al. 2018, arXiv 1710.09412).
        cutmix: likewise (Yun et al. 2019, arXiv 1905.04899).
        ricap: beta of Beta(beta, beta), 0 = off (Takahashi et al. 2018, arXiv 1811.09030, which uses 0.3).
        probability: share of the batches that are mixed at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    ricap: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "ricap"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ModelError(f"{name} is {value!r}; give the Beta distribution's parameter, or 0 for off")
        if not 0 <= self.probability <= 1:
            raise ModelError(f"mixing probability is {self.probability!r}; give a share of the batches from 0 to 1")

    @property
    def ways(self) -> tuple[str, ...]:
        """The names of what is on."""
        return tuple(name for name in ("mixup", "cutmix", "ricap") if getattr(self, name) > 0)

    @property
    def parts(self) -> int:
        """K, how many labels an image has: the same for every batch, so that nothing is compiled twice."""
        return 4 if self.ricap > 0 else 2 if self.ways else 1


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
        images: [B, 3, H, W], dtype and memory format of what was mixed.
        labels: int64 [K, B], on the device.
        weights: float32 [K], or [K, B] if each image has its own; on the device, summing to 1 over K.
    """

    images: "Tensor"
    labels: "Tensor"
    weights: "Tensor"


class Plan(NamedTuple):
    """What the random numbers of one batch come to.

    Attributes:
        way: mixup, cutmix, ricap or "none".
        shifts: K numbers: part k of image i comes from image i - shifts[k] of the batch.
        weights: K shares summing to 1.
        boxes: K (top, left, height, width) in pixels, where a part lies in the mixed image (cutmix, ricap).
        origins: K (top, left) in pixels, where it is cut from (cutmix, ricap).
    """

    way: str
    shifts: tuple[int, ...]
    weights: tuple[float, ...]
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    origins: tuple[tuple[int, int], ...] = ()


def plan(
    batch: int, height: int, width: int, options: MixOptions, generator_key: tuple[int, int, int], shard: int = 0
) -> Plan:
    """Decide how a batch is mixed; the same arguments always decide the same.

    Args:
        generator_key: seed, epoch, step within the epoch; none negative.
        shard: which of several processes this is.
    """
    import numpy as np

    seed, epoch, step = generator_key
    philox = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, step, STREAM + shard, 0], np.uint64)
    )
    generator = np.random.Generator(philox)
    mixed = generator.random() < options.probability
    ways = options.ways
    way = ways[int(generator.integers(len(ways)))] if ways and mixed and batch > 1 else "none"
    if way == "none":
        return _padded(Plan("none", (0,), (1.0,)), options.parts)
    if way == "ricap":
        return _ricap(generator, batch, height, width, options.ricap)
    shift = int(generator.integers(1, batch))
    if way == "mixup":
        share = float(generator.beta(options.mixup, options.mixup))
        return _padded(Plan("mixup", (0, shift), (share, 1 - share)), options.parts)
    return _padded(_cutmix(generator, shift, height, width, options.cutmix), options.parts)


def mix(
    images: "Tensor", labels: "Tensor", options: MixOptions, generator_key: tuple[int, int, int], shard: int = 0
) -> Mixed:
    """Mix a batch as `plan` decides, into new memory; a batch that is not mixed is returned as it is.

    Args:
        images: [B, 3, H, W], floating point, already normalised.
        labels: int64 [B].
        generator_key, shard: see `plan`.
    """
    import torch

    batch, _, height, width = images.shape
    chosen = plan(batch, height, width, options, generator_key, shard)
    with torch.no_grad():
        return Mixed(
            _mixed_images(images, chosen),
            torch.stack([labels.roll(shift) if shift else labels for shift in chosen.shifts]),
            _on_device(chosen.weights, images),
        )


def dominant(mixed: Mixed) -> "Tensor":
    """The label of greatest weight of each image, int64 [B]; parts of one class count together."""
    weights = mixed.weights if mixed.weights.ndim == 2 else mixed.weights[:, None]
    same = mixed.labels[:, None] == mixed.labels[None]
    totals = (same * weights[None]).sum(1)
    return mixed.labels.gather(0, totals.argmax(0, keepdim=True))[0]


def _mixed_images(images: "Tensor", chosen: Plan) -> "Tensor":
    import torch

    if chosen.way == "none":
        return images
    if chosen.way == "mixup":
        result = torch.empty_like(images)
        for target, source in _pairs(len(images), chosen.shifts[1]):
            # Written straight into its place; roll would copy the batch once more and lose channels_last.
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
    """Slices (to, from) that move a batch on by `shift` places, what falls off the end coming in at the start."""
    if shift == 0:
        return ((slice(None), slice(None)),)
    return (slice(shift, None), slice(None, batch - shift)), (slice(None, shift), slice(batch - shift, None))


def _on_device(weights: tuple[float, ...], images: "Tensor") -> "Tensor":
    import torch

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


def _cutmix(generator: "np.random.Generator", shift: int, height: int, width: int, alpha: float) -> Plan:
    """A rectangle of the partner at the same place, cut off at the image's edge; weights are the areas that show."""
    cut = math.sqrt(1 - float(generator.beta(alpha, alpha)))
    tall, wide = int(height * cut), int(width * cut)
    centre_y, centre_x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = max(centre_y - tall // 2, 0), min(centre_y + tall // 2, height)
    left, right = max(centre_x - wide // 2, 0), min(centre_x + wide // 2, width)
    area = (bottom - top) * (right - left)
    box = (top, left, bottom - top, right - left)
    weights = ((height * width - area) / (height * width), area / (height * width))
    return Plan("cutmix", (0, shift), weights, ((0, 0, 0, 0), box), ((0, 0), (top, left)))


def _ricap(generator: "np.random.Generator", batch: int, height: int, width: int, beta: float) -> Plan:
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
    # Shuffling made the first partner random already; the others may coincide, as the paper's permutations may.
    shifts = (0, *(int(shift) for shift in generator.integers(batch, size=3)))
    weights = tuple(tall * wide / (height * width) for _, _, tall, wide in boxes)
    return Plan("ricap", shifts, weights, boxes, origins)
