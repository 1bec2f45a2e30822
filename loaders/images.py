"""Decodes image files, and finds unreadable ones in a data set before they stop a run."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.datasets import Dataset
from loaders.errors import DataError, reason, undecodable
from loaders.threads import in_threads

if TYPE_CHECKING:
    import torch

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


def decode(path: str) -> "torch.Tensor":
    """A file through torchvision, uint8 [3, height, width].

    Raises:
        DataError: it cannot be decoded.
    """
    from torchvision.io import ImageReadMode, decode_image

    try:
        image: torch.Tensor = decode_image(path, ImageReadMode.RGB)
    except Exception as error:
        raise undecodable(path, error) from None
    return image


def _reason(path: str) -> str | None:
    """Why a file cannot be decoded, or None. Decodes it: a truncated JPEG has a perfect header."""
    import torch
    from PIL import Image
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
        return "truncated: the end-of-image marker is missing"
    try:
        if kind in ("JPEG", "PNG", "WebP"):
            decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        else:
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
        The unreadable files: missing, empty, truncated, not an image, or damaged inside.
    """
    files = dataset.files if isinstance(dataset, Dataset) else tuple(dataset)
    reasons = in_threads(_reason, files, threads)
    return [BadImage(path, reason) for path, reason in zip(files, reasons, strict=True) if reason is not None]


def require_readable(dataset: Dataset, threads: int | None = None) -> None:
    """Decode every file once before a data set is used.

    Raises:
        DataError: some cannot be decoded; names the first few and counts all.
    """
    bad = check(dataset, threads)
    if bad:
        few = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{len(bad)} of {len(dataset)} images cannot be decoded: {few}{more}; skip or replace them")
