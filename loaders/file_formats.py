"""Formats of image files: first bytes, endings of names, and the engines with a decoder for them.

This is the one list of what can be read. Every engine reads all of it: a file that an engine's own decoder does not
read is decoded by Pillow for it (loaders.images). The ending of a name decides only whether a file in a folder is taken
for an image; what is in it is told by its first bytes, since ImageNet has a PNG named .JPEG.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileFormat:
    """One format.

    Attributes:
        pillow: what Pillow calls it.
        signature: matches the first bytes of a file.
        endings: of names, in lower case; the usual one first.
        native: engines whose own decoder reads the format.
    """

    name: str
    pillow: str
    signature: re.Pattern[bytes]
    endings: tuple[str, ...]
    native: tuple[str, ...]


_ALL = ("dali", "nvjpeg", "packed", "pil", "resident", "spdl", "torchvision")
# DALI reads more, but wrong where float samples are clipped, 0 is white in 16 bits, or white is not 255.
FORMATS = (
    FileFormat("JPEG", "JPEG", re.compile(rb"\xff\xd8\xff"), (".jpg", ".jpeg", ".jfif"), _ALL),
    FileFormat("PNG", "PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), (".png", ".apng"), _ALL),
    FileFormat("WebP", "WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), (".webp",), _ALL),
    FileFormat("BMP", "BMP", re.compile(rb"BM"), (".bmp",), ("pil",)),
    FileFormat("TIFF", "TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), (".tif", ".tiff"), ("pil",)),
    FileFormat("PNM", "PPM", re.compile(rb"P[1-6]\s"), (".ppm", ".pgm", ".pbm", ".pnm"), ("pil",)),
    FileFormat("GIF", "GIF", re.compile(rb"GIF8[79]a"), (".gif",), ("pil",)),
)
LONGEST = 12
"""Bytes from the beginning of a file that tell its format."""

ENDINGS = tuple(ending for kind in FORMATS for ending in kind.endings)
PILLOW = tuple(kind.pillow for kind in FORMATS)
_BY_ENDING = {ending: kind for kind in FORMATS for ending in kind.endings}


def format_of(head: bytes) -> FileFormat | None:
    """The format of a file, by its first bytes (`LONGEST` or more); None if it is none of these."""
    return next((kind for kind in FORMATS if kind.signature.match(head)), None)


def handed_to_pillow(engine: str, files: Iterable[str]) -> Counter[str]:
    """How many files of which formats an engine's own decoder does not read, judged by their names alone."""
    if engine not in _ALL:
        return Counter()
    endings = Counter(os.path.splitext(path)[1].lower() for path in files)
    found: Counter[str] = Counter()
    for ending, count in endings.items():
        kind = _BY_ENDING.get(ending)
        if kind is not None and engine not in kind.native:
            found[kind.name] += count
    return found


def all_named_jpeg(files: Iterable[str]) -> bool:
    """Whether every file is a JPEG, judged by its name alone."""
    jpeg = FORMATS[0].endings
    return all(path.lower().endswith(jpeg) for path in files)
