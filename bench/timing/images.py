"""The images a measurement reads: the user's folder or the generated set, checked before any timing."""

import random
from pathlib import Path

from bench.defaults import IMAGES
from bench.errors import WorkloadError
from bench.screen import Say
from bench.timing.workload import Conditions
from loaders.datasets import Dataset, open_dataset
from loaders.soundness import left_out

LISTED = 20


def find_data(root: Path | None, say: Say) -> tuple[str, Path]:
    """Name and folder of the images: `root`, of which it says what is left out, or the generated set.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if root is None:
        from loaders.sample import default_sample

        root = default_sample(IMAGES, lambda: say("generating the sample images (once)"))
    dataset = open_dataset(root, "train")
    for line in left_out(dataset):
        say(line)
    return dataset.name, root


def data_name(root: Path | None, images: int) -> str:
    """The name of the image set, without making it: of a folder, or of the generated set.

    Raises:
        DataError: there is no image in `root`.
    """
    if root is None:
        from loaders.sample import VERSION

        return f"sample-{VERSION}-{images}"
    return open_dataset(root, "train").name


def open_images(conditions: Conditions) -> Dataset:
    """The data set as a step reads it: a seeded choice of `images` files, without the excluded ones."""
    dataset = open_dataset(conditions.data_root, "train")
    chosen = list(range(len(dataset)))
    if conditions.images and conditions.images < len(dataset):
        chosen = sorted(random.Random(conditions.seed).sample(chosen, conditions.images))
    exclude = set(conditions.exclude)
    chosen = [i for i in chosen if not exclude or dataset.files[i] not in exclude]
    return dataset if len(chosen) == len(dataset) else dataset.select(chosen, dataset.name)


def unreadable(conditions: Conditions) -> tuple[int, list[tuple[str, str]]]:
    """Decode each file once: (how many there are, path and reason of those that fail).

    Besides finding them before a measuring process meets one, this leaves all files in the page cache, so that
    every side reads from memory.
    """
    from loaders.images import check

    dataset = open_images(conditions)
    if not dataset.files:
        return 0, []
    return len(dataset.files), [(image.path, image.reason) for image in check(dataset, conditions.threads)]


def describe_bad(bad: list[tuple[str, str]], files: int) -> str:
    """The unreadable files, the first of them by name."""
    lines = [
        f"{len(bad)} of {files} images cannot be read:",
        *(f"  {path}: {reason}" for path, reason in bad[:LISTED]),
    ]
    if len(bad) > LISTED:
        lines.append(f"  ... and {len(bad) - LISTED} more; `bench data check` lists all")
    return "\n".join(lines)


def refuse_bad(bad: list[tuple[str, str]], files: int) -> None:
    """Raise WorkloadError with the list and what to do about it."""
    raise WorkloadError(describe_bad(bad, files) + "\nrepair or remove them, or skip them with --on-bad-image skip")
