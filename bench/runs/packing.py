"""Whether a training decodes its images once or anew in every epoch: both are tried on some of them.

On a CPU, where images are read by the cores that train: what reading saves, training gets. On a GPU reading costs
nothing as long as it keeps up, which only a running network shows.
"""

import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from loaders import engines
from loaders.datasets import Dataset
from loaders.epochs import Batch, Loader
from loaders.errors import DataError
from loaders.options import LoaderOptions
from loaders.packed import cached_at, shorter_side
from loaders.packed_images import PackedImages, is_packed
from loaders.packing import pack, size_text
from results.tables import duration

FEW = 50_000
"""Images over all epochs up to which nothing is tried: what could be saved is not much more than trying takes."""
SAMPLE = 96
"""Images to try with."""
BATCH = 32
"""Images a batch in the trial."""
SECONDS = 0.7
"""Of a turn."""
TURNS = 4
"""Of each loader."""
WORTH = 1.25
"""How many times what packing costs must be saved: the sample is not the set, and rates change."""


@dataclass(frozen=True)
class Trial:
    """What was measured on a sample.

    Attributes:
        decoding, packed: images a second of the loader that decodes, and of the loader packed.
        packing: images a second when they are packed.
        image_bytes: of a packed image, on average.
    """

    decoding: float
    packed: float
    packing: float
    image_bytes: float

    def saved(self, images: int) -> float:
        """Seconds that reading so many images packed saves."""
        return images / self.decoding - images / self.packed


def read_packed(engine: str, train: Dataset, other: int, epochs: float, options: LoaderOptions) -> str | None:
    """Why the engine packed takes the place of `engine` in a training, in words; None where it does not.

    Args:
        other: images beside the training images that will be packed too.
        epochs: how often each training image will be read.
        options: of the training's loader, on a CPU.
    """
    images = round(epochs * len(train))
    if images <= FEW or not train.files:
        return None
    place = cached_at(train, options)
    there = is_packed(place)
    try:
        trial = measured(engine, train, options)
    except DataError:
        # An image that cannot be decoded, or no room: the training itself says it, with the file's name.
        return None
    needed = 0 if there else round(trial.image_bytes * (len(train) + other))
    cost = 0.0 if there else (len(train) + other) / trial.packing
    saved = trial.saved(images)
    if saved < WORTH * cost or saved <= 0 or needed > 0.9 * shutil.disk_usage(_present(place)).free:
        return None
    rates = f"{trial.packed:,.0f} images/s here, {engine} {trial.decoding:,.0f}"
    once = "the set is packed already" if there else f"packing takes about {duration(cost)} and {size_text(needed)}"
    return (
        f"{rates}; {once}, {epochs:g} epochs save about {duration(saved)}. Windows are cut from images of "
        f"{shorter_side(options)} px; --loader {engine} decodes the files anew"
    )


def measured(engine: str, train: Dataset, options: LoaderOptions) -> Trial:
    """Both loaders on a sample of the images, taking turns. Raises DataError: an image cannot be decoded."""
    chosen = sorted(random.Random(0).sample(range(len(train)), min(SAMPLE, len(train))))
    sample = train.select(chosen)
    options = replace(options, batch=min(BATCH, len(sample)))
    with tempfile.TemporaryDirectory(prefix="bench-packing-") as scratch:
        folder = Path(scratch, "packed")
        begin = time.perf_counter()
        parts, short = [(sample, ("all",))], shorter_side(options)
        pack(parts, folder, short, options.exif, options.threads, strict=True)
        packing = len(sample) / (time.perf_counter() - begin)
        size = sum(path.stat().st_size for path in folder.iterdir()) / len(sample)
        # Longer than what loaders hold ready, which is not what they make in a turn.
        order = [i % len(sample) for i in range(40 * options.batch)]
        kept = replace(sample, files=(), pixels=PackedImages(str(folder)))
        with (
            closing(engines.build(engine, sample.select(order), options)) as anew,
            closing(engines.build("packed", kept.select(order), options)) as once,
        ):
            decoding, packed = _rates(anew, once)
    return Trial(decoding, packed, packing, size)


def _rates(*loaders: Loader) -> list[float]:
    """Images a second of each loader: nothing else runs in its turns but what others have begun to prepare."""
    streams = [_forever(loader) for loader in loaders]
    images, seconds = [0] * len(loaders), [0.0] * len(loaders)
    for _ in range(TURNS):
        for number, (loader, stream) in enumerate(zip(loaders, streams, strict=True)):
            # What lies ready from before the turn comes at no cost.
            for _ in range(loader.prefetch + 1):
                next(stream)
            begin = time.perf_counter()
            while time.perf_counter() - begin < SECONDS:
                images[number] += len(next(stream)[0])
            seconds[number] += time.perf_counter() - begin
    return [count / spent for count, spent in zip(images, seconds, strict=True)]


def _forever(loader: Loader) -> Iterator[Batch]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _present(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())
