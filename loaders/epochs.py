"""The order of images and their random numbers, which all engines share.

Order and random numbers depend on (seed, epoch, batch) alone, through the counter-based Philox generator (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). A loader can therefore continue at any batch of any epoch
without replaying what came before, and two engines with the same seed cut the same windows out of the same images. Of
N shards, each takes every Nth row of what one process with the batches of all shards together would draw: the number
of processes changes neither the images of a training step nor what is done to them.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loaders.errors import DataError
from loaders.options import EVAL_MARGIN, LoaderOptions

if TYPE_CHECKING:
    import torch

ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten windows that do not fit
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)

Batch = tuple["torch.Tensor", "torch.Tensor"]


class Epochs:
    """Order of the images and random numbers of every batch of one shard.

    Training shards all have images // shards images, so that every process makes the same number of steps; the order
    is a new permutation of the whole set each epoch, so the few images left over differ from epoch to epoch.
    Evaluation shards divide the set exactly.
    """

    def __init__(self, images: int, options: LoaderOptions) -> None:
        if images < 1:
            raise DataError("the data set has no images")
        self._total = images
        self._options = options
        if options.train:
            self.images = images // options.shards
            # A set smaller than a batch is repeated to fill one: dropping it would leave nothing.
            self.batches = max(1, self.images // options.batch)
        else:
            self.images = len(range(options.shard, images, options.shards))
            self.batches = -(-self.images // options.batch)
        if self.images == 0:
            raise DataError(f"{images} images cannot be shared among {options.shards} shards; use fewer shards")
        self._from_part = False
        self._cached: tuple[int, NDArray[np.int64]] | None = None
        # One generator, set to a key and counter each time: a new one asks the system for entropy that it never uses,
        # which takes longer than the drawing.
        self._philox = np.random.Philox(key=[0, 0])

    def draw_from_part(self) -> None:
        """From now on train on every Nth image of the set alone, those that an evaluation gives this shard.

        The order is a permutation of these, and which images meet in a step depends on the number of shards. Counts
        stay as they are. Before the first batch.
        """
        self._from_part = True

    def after(self, epoch: int, batch: int) -> tuple[int, int]:
        """Epoch and number of the batch that follows this one."""
        return (epoch, batch + 1) if batch + 1 < self.batches else (epoch + 1, 0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of this shard's images in the order of `epoch`, shape [images]."""
        options = self._options
        part = np.arange(options.shard, self._total, options.shards)
        if not options.train:
            return part
        if self._cached is None or self._cached[0] != epoch:
            if self._from_part:
                drawn = self._generator(epoch, 0, 0, options.shard).permutation(part)
            else:
                drawn = self._generator(epoch, 0, 0).permutation(self._total)[options.shard :: options.shards]
            self._cached = (epoch, drawn[: self.images])
        return self._cached[1]

    def indices(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Indices into the data set of one batch, shape [batch] (less for the last one of an evaluation)."""
        order, size = self.order(epoch), self._options.batch
        if self._options.train and self.images < size:
            return np.resize(order, size)
        return order[batch * size : (batch + 1) * size]

    def draws(self, epoch: int, batch: int) -> NDArray[np.float64]:
        """Uniform random numbers in 0..1 for one batch, shape [images in the batch, 2 * ATTEMPTS + 3].

        A row holds ATTEMPTS areas, ATTEMPTS aspect ratios, the window's vertical and horizontal place, the flip.
        """
        # The order of the epoch is drawn with 0 in the counter's third word, these with 1: they never meet.
        return self._rows(epoch, batch, 2 * ATTEMPTS + 3, 0)

    def extras(self, epoch: int, batch: int, columns: int, stream: int) -> NDArray[np.float64]:
        """More uniform random numbers in 0..1, [images in the batch, columns]; every `stream` has its own.

        They are separate from `draws`, so that adding an operation to a policy changes no window and no flip.
        """
        return self._rows(epoch, batch, columns, 1 + stream)

    def _rows(self, epoch: int, batch: int, columns: int, stream: int) -> NDArray[np.float64]:
        options = self._options
        count = options.batch
        if not options.train:
            count = min(count, self.images - batch * count)
        rows = self._generator(epoch, batch, 1, stream).random((options.batch * options.shards, columns))
        return rows[options.shard :: options.shards][:count]

    def mirrored(self, flip: str, epoch: int, batch: int) -> NDArray[np.bool_]:
        """Which images of a batch `flip` or `alternating_flip` mirrors, shape [images in the batch]."""
        return flips(self.draws(epoch, batch)) if flip == "flip" else self.mirrors(epoch, batch)

    def mirrors(self, epoch: int, batch: int) -> NDArray[np.bool_]:
        """Which images of a batch `alternating_flip` mirrors, shape [images in the batch].

        A coin tossed once for each image decides the first epoch; from then on each image changes sides every epoch,
        so that two epochs show every image both ways (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").
        """
        start = np.uint64(self._options.seed * 0x9E3779B97F4A7C15 % 2**64)
        word = self.indices(epoch, batch).astype(np.uint64) + start
        # The finishing steps of SplitMix64: neighbours get unrelated bits.
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(((word >> np.uint64(40)) + np.uint64(epoch)) % np.uint64(2) == 1)

    def _generator(self, epoch: int, batch: int, kind: int, stream: int = 0) -> np.random.Generator:
        counter = np.array([0, batch, kind, stream], np.uint64)
        words: Any = {"counter": counter, "key": np.array([self._options.seed, epoch], np.uint64)}
        # With an empty buffer (its position at the end) the next number comes from the counter.
        self._philox.state = {**self._philox.state, "state": words, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
        return np.random.Generator(self._philox)


def windows(
    draws: NDArray[np.float64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> NDArray[np.int64]:
    """Random windows with the distribution of torchvision's RandomResizedCrop.

    The share of the image's area and the logarithm of the aspect ratio are uniform; the first of ten tries that fits
    is taken, otherwise the largest centred window within the aspect limits (Szegedy et al. 2015, "Going deeper with
    convolutions").

    Args:
        draws: rows of `Epochs.draws`, shape [n, 2 * ATTEMPTS + 3].
        heights, widths: pixels, shape [n].
        area, aspect: smallest and largest share of the area, width over height.

    Returns:
        top, left, height, width in pixels, shape [n, 4].
    """
    rows = np.arange(len(draws))
    tall, wide = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    areas = (area[0] + (area[1] - area[0]) * draws[:, :ATTEMPTS]) * tall * wide
    low, high = np.log(aspect[0]), np.log(aspect[1])
    aspects = np.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    width, height = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (width >= 1) & (height >= 1) & (width <= wide) & (height <= tall)
    first = fits.argmax(axis=1)
    width, height = width[rows, first], height[rows, first]
    place = draws[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2]
    top = np.floor(place[:, 0] * (heights - height + 1))
    left = np.floor(place[:, 1] * (widths - width + 1))
    none = ~fits.any(axis=1)
    if none.any():
        width = np.where(none, np.minimum(widths, np.rint(heights * aspect[1])), width)
        height = np.where(none, np.minimum(heights, np.rint(widths / aspect[0])), height)
        top = np.where(none, (heights - height) // 2, top)
        left = np.where(none, (widths - width) // 2, left)
    return np.stack([top, left, height, width], axis=1).astype(np.int64)


def flips(draws: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which images of a batch are mirrored: half of them, shape [n]."""
    return np.asarray(draws[:, -1] < 0.5)


def shifts(draws: NDArray[np.float64], border: int) -> NDArray[np.int64]:
    """Top and left of windows out of images with a border, 0..2 * border, shape [n, 2]."""
    return np.floor(draws[:, -3:-1] * (2 * border + 1)).astype(np.int64)


def evaluation_shape(height: int, width: int, size: int, margin: float = EVAL_MARGIN) -> tuple[int, int, int, int]:
    """The evaluation transform in numbers: (resized height, resized width, top, left) for a centre crop of `size`.

    As torchvision's Resize(round(size * margin)) and CenterCrop(size) compute them.
    """
    shorter = round(size * margin)
    tall = shorter if height <= width else int(shorter * height / width)
    wide = shorter if height > width else int(shorter * width / height)
    return tall, wide, round((tall - size) / 2), round((wide - size) / 2)


class Engine(Protocol):
    """What makes the batches of a loader; created from (dataset, options, epochs).

    Attributes:
        ahead: batches it holds ready at most.
    """

    ahead: int = 0

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of `epoch` from number `first` on."""
        ...

    def close(self) -> None:
        """Stop threads and processes; a second call does nothing."""


class Loader:
    """An iterable of (images, labels) on the device; every iter() is the next epoch.

    images: [batch, 3, size, size] in the requested dtype and memory order, normalised; labels: [batch] int64.
    A batch belongs to the caller: no engine writes to it again. Only synthetic returns the same batch every time.

    Attributes:
        name: the engine.
        batch: images a batch.
        images: images of a full epoch of this shard (training: full batches only).
    """

    def __init__(self, name: str, images: int, options: LoaderOptions, open_engine: Callable[[Epochs], Engine]) -> None:
        self.name = name
        self.options = options
        self.batch = options.batch
        self._epochs = Epochs(images, options)
        self.images = self._epochs.batches * options.batch if options.train else self._epochs.images
        self._epoch, self._next, self._restored = 0, 0, False
        self._engine = open_engine(self._epochs)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._epochs.batches

    def __iter__(self) -> Iterator[Batch]:
        if self._next and not self._restored:
            self._epoch, self._next = self._epoch + 1, 0
        self._restored = False
        for batch in self._engine.batches(self._epoch, self._next):
            self._epoch, self._next = self._epochs.after(self._epoch, self._next)
            yield batch

    @property
    def prefetch(self) -> int:
        """Batches that may lie ready after a pause: this many come out faster than the engine makes them."""
        return self._engine.ahead

    def state(self) -> dict[str, int]:
        """Where the loader is: the epoch and the number of the batch that comes next."""
        return {"epoch": self._epoch, "batch": self._next}

    def restore(self, state: dict[str, int]) -> None:
        """Make the next iter() continue at `state`.

        Raises:
            DataError: the state does not belong to a loader with this many batches.
        """
        if set(state) != {"epoch", "batch"} or not 0 <= state["batch"] < len(self) or state["epoch"] < 0:
            raise DataError(f"loader state {state} does not fit a loader with {len(self)} batches an epoch")
        self._epoch, self._next, self._restored = state["epoch"], state["batch"], True

    def close(self) -> None:
        """Stop the engine's threads and processes; a second call does nothing."""
        self._engine.close()
