"""Finds the files of a data set that cannot be decoded, all of them, before they stop a run."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from loaders.datasets import Dataset
from loaders.errors import DataError, reason

BAD_IMAGE_CHOICES = ("stop", "skip")

# First bytes of the formats every engine decodes; the name's ending plays no part (ImageNet has a PNG named .JPEG).
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"P5", "PNM"),
    (b"P6", "PNM"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that cannot be decoded, and why."""

    path: str
    reason: str


def _reason(path: str) -> str | None:
    """Why a file cannot be decoded, or None. Decodes it: a cut-off JPEG has a perfect header."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return error.strerror or str(error)
    if not content:
        return "empty file"
    kind = next((name for start, name in _SIGNATURES if content.startswith(start)), None)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "WebP"
    if kind is None:
        return f"not an image: starts with {content[:8]!r}"
    if kind == "JPEG" and content.rstrip(b"\0\r\n").rfind(b"\xff\xd9") < len(content) * 3 // 4:
        # libjpeg fills what is missing with grey and only warns.
        return "cut off: the end-of-image marker is missing"
    try:
        if kind in ("JPEG", "PNG", "WebP"):
            decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        else:
            import io

            from PIL import Image

            with Image.open(io.BytesIO(content)) as image:
                image.convert("RGB")
    except Exception as error:
        return f"{kind} does not decode: {reason(error)}"
    return None


def check(dataset: Dataset | Sequence[str], threads: int | None = None) -> list[BadImage]:
    """Decode every file and list the ones that fail, in the order given; never stops at the first.

    Args:
        dataset: a data set, or paths.
        threads: decoding threads; by default one for each core this process may use.

    Returns:
        The unreadable files: missing, empty, cut off, not an image, or damaged inside.
    """
    files = dataset.files if isinstance(dataset, Dataset) else tuple(dataset)
    workers = threads or len(os.sched_getaffinity(0))
    # Decoding leaves the interpreter lock, so threads scale and nothing has to be copied between processes.
    with ThreadPoolExecutor(workers) as pool:
        reasons = pool.map(_reason, files)
        return [BadImage(path, reason) for path, reason in zip(files, reasons, strict=True) if reason is not None]


def select_readable(
    dataset: Dataset, on_bad_image: str = "stop", threads: int | None = None
) -> tuple[Dataset, list[BadImage]]:
    """Check a data set before it is used.

    Args:
        dataset: what to check.
        on_bad_image: "stop" refuses a set with unreadable files, "skip" leaves them out and reports them.
        threads: decoding threads; by default one for each core this process may use.

    Raises:
        DataError: with "stop", when any file is unreadable (the first few and the count are named); always, when no
            readable file is left.
    """
    if on_bad_image not in BAD_IMAGE_CHOICES:
        raise DataError(f"on_bad_image is {on_bad_image!r}; known: {', '.join(BAD_IMAGE_CHOICES)}")
    bad = check(dataset, threads)
    if not bad:
        return dataset, []
    few = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    if on_bad_image == "stop":
        raise DataError(f"{len(bad)} of {len(dataset)} images cannot be decoded: {few}{more}; skip or replace them")
    if len(bad) == len(dataset):
        raise DataError(f"none of the {len(dataset)} images can be decoded: {few}{more}")
    unreadable = {image.path for image in bad}
    return dataset.select([i for i, path in enumerate(dataset.files) if path not in unreadable]), bad
