"""Loss, top-1, top-5 and the confusion matrix of a network, each image counted exactly once."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Forward = Callable[[Tensor], Tensor]

SURE = 0.5  # difference of two probabilities


@dataclass(frozen=True)
class Evaluation:
    """Figures of one pass over a data set.

    Attributes:
        loss: mean cross-entropy in nats.
        top1, top5: fractions; top5 is None for five classes or fewer, where it is always 1.
        images: number of images.
        confusion: int64 [classes, classes], rows true, columns predicted.
        seconds: of the pass.
        loader_seconds: of these, spent waiting for the loader.
        predicted: most likely class of every image in the order of the data set; empty without `keep`.
        confidence: probability of that class, likewise.
    """

    loss: float
    top1: float
    top5: float | None
    images: int
    confusion: NDArray[np.int64]
    seconds: float
    loader_seconds: float
    predicted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    confidence: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


def averaged(forward: Forward, tta: str) -> Forward:
    """`forward` with the test-time augmentation that a recipe or a checkpoint names."""
    return {"none": forward, "flip": mirrored(forward), "translate": translated(forward)}[tta]


def mirrored(forward: Forward) -> Forward:
    """Logits averaged over an image and its mirror image."""
    return lambda images: (forward(images) + forward(images.flip(-1))) / 2


def translated(forward: Forward) -> Forward:
    """`mirrored`, and for images it is not sure of averaged with `mirrored` of these moved by a pixel.

    Up to the left and down to the right, with reflected borders, each a quarter of the result. Images whose two most
    likely classes are at least `SURE` apart hardly ever change theirs, so these are not computed six times. What an
    image gives depends on no other one.
    """
    both = mirrored(forward)

    def augmented(images: Tensor) -> Tensor:
        logits = both(images)
        likely = logits.float().softmax(1).topk(min(2, logits.shape[1]), 1).values
        unsure = (likely[:, 0] - likely[:, -1] < SURE).nonzero().flatten()
        if not len(unsure):
            return logits
        height, width = images.shape[2:]
        framed = functional.pad(images[unsure], (1, 1, 1, 1), "reflect")
        moved = torch.cat([framed[:, :, :height, :width], framed[:, :, 2:, 2:]])
        moved = moved.contiguous(memory_format=_format(images))
        # In batches of the usual size, because a compiled network would be compiled anew for others.
        parts = [both(_filled(part, len(images)))[: len(part)] for part in torch.split(moved, len(images))]
        first, second = torch.cat(parts).chunk(2)
        return logits.index_copy(0, unsure, logits[unsure] / 2 + (first + second) / 4)

    return augmented


class Counts:
    """Sums on the device; nothing is copied to the host while images are counted."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        # loss, top-1 hits, top-5 hits, images: float64 counts exactly up to 2**53.
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        """Count a batch and return its predictions [B]: logits [B, C], labels [B], real [B] (1 image, 0 padding)."""
        logits = logits.float()
        losses = functional.cross_entropy(logits, labels, reduction="none")
        best = logits.topk(min(5, self.classes), dim=1).indices
        hits = best == labels[:, None]
        row = torch.stack([losses, hits[:, 0].float(), hits.any(1).float(), torch.ones_like(losses)])
        # A product would let a padding image's infinite loss through as NaN.
        self.sums += torch.where(real.bool(), row, 0).sum(1, dtype=torch.float64)
        self.confusion.index_add_(0, labels * self.classes + best[:, 0], real)
        return best[:, 0]


def evaluate(
    forward: Forward,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    device: torch.device,
    batch: int,
    keep: bool = False,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Evaluation:
    """Evaluate a network that is in evaluation mode.

    Args:
        forward: images [B, 3, H, W] -> logits [B, classes].
        batches: (images, labels) on the device; the last one may be smaller.
        batch: smaller batches are padded to it, because a compiled network would be compiled anew for them.
        keep: also return every prediction.
        total: sums a tensor over all processes, each of which evaluates its own part.
    """
    counts = Counts(classes, device)
    kept: list[Tensor] = []
    waited, begin = 0.0, time.perf_counter()
    iterator = iter(batches)
    everything, part = torch.ones(batch, dtype=torch.int64, device=device), torch.arange(batch, device=device)
    with torch.no_grad():
        while True:
            asked = time.perf_counter()
            item = next(iterator, None)
            waited += time.perf_counter() - asked
            if item is None:
                break
            images, labels = item
            count = len(images)
            real = everything
            if count < batch:
                real = (part < count).long()
                images, labels = _filled(images, batch), functional.pad(labels, (0, batch - count))
            logits = forward(images)
            predicted = counts.add(logits, labels, real)
            if keep:
                confidence = logits.float().softmax(1).amax(1)
                kept.append(torch.stack([predicted.double(), confidence.double()])[:, :count])
    total(counts.sums)
    total(counts.confusion)
    loss, top1, top5, images_ = counts.sums.tolist()
    seconds = time.perf_counter() - begin
    rows = torch.cat(kept, 1).cpu().numpy() if kept else np.zeros((2, 0))
    return Evaluation(
        loss=loss / images_,
        top1=top1 / images_,
        top5=top5 / images_ if classes > 5 else None,
        images=int(images_),
        confusion=counts.confusion.view(classes, classes).cpu().numpy(),
        seconds=seconds,
        loader_seconds=waited,
        predicted=rows[0].astype(np.int64),
        confidence=rows[1].astype(np.float32),
    )


def _filled(images: Tensor, batch: int) -> Tensor:
    """The images, followed by copies of the first up to `batch` ones."""
    if len(images) == batch:
        return images
    # Instead of expand and cat, which lose the channels_last strides.
    filled = torch.empty_like(images[:1].expand(batch, -1, -1, -1), memory_format=_format(images))
    filled[: len(images)] = images
    filled[len(images) :] = images[:1]
    return filled


def _format(images: Tensor) -> torch.memory_format:
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
