"""From an image file to 8-bit RGB: the one rule of all engines and commands, and a check of whole sets.

- 16-bit samples become the upper byte; float samples must be in 0..1 and are multiplied by 255; 32-bit integers are
  refused, because nothing says which value is white.
- Grey is repeated, one bit is 0 or 255, a palette is looked up, CMYK is converted as Pillow does; in a JPEG it is
  Adobe's inverted form if the file has Adobe's mark, otherwise not.
- Alpha is dropped without blending, as by torchvision's RGB mode and Pillow's convert("RGB"). A colour that a file
  calls transparent, and gamma, are ignored.
- Of an animation the first frame counts.
- EXIF orientation is ignored, as by torchvision's ImageFolder, or applied: `exif`. That of a TIFF counts as EXIF.

Plain JPEG and WebP files (`is_plain`) are left to the fast decoders, which read them alike. Pillow decodes all others,
also for engines with a decoder of their own, so that there is one answer: most of a PNG's time is zlib's in any case.
No decoder gets an image of more than MOST_PIXELS, nor a PNG of which a part is missing or damaged.
"""

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from loaders.datasets import Dataset
from loaders.errors import DataError, LargeError, reason, undecodable
from loaders.file_formats import LONGEST, PILLOW, format_of
from loaders.packed_images import PIXELS, PackedImages
from loaders.threads import in_threads
from loaders.wholeness import Content, jpeg_ends, png_chunks, png_has_all_rows

if TYPE_CHECKING:
    import torch

MOST_PIXELS = 2**29 // 3
"""Of one image: half a GiB in RGB, and what Pillow takes by itself."""

# A JPEG's frame headers: baseline, extended and progressive, each with Huffman codes. Other coding is rare.
_FRAMES = (0xC0, 0xC1, 0xC2)
_ORIENTATION = 0x0112
# How an image is turned whose first row and column are where its EXIF orientation says.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {**_TURNS, 6: _TURNS[8], 8: _TURNS[6]}
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True, slots=True)
class BadImage:
    """A file that cannot be decoded, and why."""

    path: str
    reason: str


def decode(path: str, exif: str = "ignore") -> "torch.Tensor":
    """A file as uint8 [3, height, width]: plain ones through torchvision, others through Pillow.

    Args:
        exif: "ignore" or "apply" the orientation that the file stores.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        return decoded(read(path), exif)
    except Exception as error:
        raise undecodable(path, error) from None


def read(path: str) -> bytearray:
    """The bytes of a file. Raises OSError."""
    # Faster than torchvision's read_file, which maps the file, and than a tensor's bytes as seen from Python.
    with open(path, "rb", buffering=0) as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(content)
    return content


def decoded(content: bytearray, exif: str) -> "torch.Tensor":
    """The bytes of a file as uint8 [3, height, width]; raises whatever a decoder raises."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    if is_plain(content, exif):
        image: torch.Tensor = decode_image(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB)
    elif not content:
        raise DataError("empty file")
    elif format_of(bytes(content[:LONGEST])) is None:
        raise DataError(f"not an image: starts with {bytes(content[:8])!r}")
    else:
        image = torch.from_numpy(np.array(open_rgb(io.BytesIO(content), exif))).permute(2, 0, 1)
    # A decoder may hand out what it finds, as torchvision's does with 16 bits, and torch would convert that silently.
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise DataError(f"it decodes to {list(image.shape)} of {image.dtype}, not to three planes of bytes")
    return image


def is_plain(content: Content, exif: str = "ignore") -> bool:
    """Whether a file is, by its structure, what all decoders read alike.

    That is one picture of 8-bit grey or RGB samples without alpha, as JPEG or WebP, of up to MOST_PIXELS; with exif
    "apply" one that cannot have an orientation.
    """
    head = bytes(content[:32])
    kind = format_of(head)
    if kind is None:
        return False
    if kind.name == "JPEG":
        return _is_plain_jpeg(content, exif)
    # The extended form, VP8X, has alpha, frames or EXIF; the lossless one may have alpha, which a bit of it says.
    if kind.name == "WebP" and len(head) == 32:
        if head[12:16] == b"VP8 ":
            width, height = (int.from_bytes(head[place : place + 2], "little") & 0x3FFF for place in (26, 28))
            return width * height <= MOST_PIXELS
        if head[12:16] == b"VP8L":
            sides = int.from_bytes(head[21:25], "little")
            return not head[24] & 0x10 and ((sides & 0x3FFF) + 1) * ((sides >> 14 & 0x3FFF) + 1) <= MOST_PIXELS
    return False


def is_plain_png(content: Content) -> bool:
    """Whether a file is a whole PNG of one picture of 8-bit grey or RGB samples without alpha, of up to MOST_PIXELS.

    libpng reads these, and refuses those that lack rows. FFmpeg does not refuse them, and torchvision's use of libpng
    (0.29) ends the process at one damaged byte: an error is reported by a jump into a frame that is gone.
    """
    head = bytes(content[:32])
    # IHDR comes first: width, height, bits a sample, then grey (0) or RGB (2).
    width, height = (int.from_bytes(head[place : place + 4], "big") for place in (16, 20))
    if head[:4] != b"\x89PNG" or head[24:26] not in (b"\x08\0", b"\x08\2") or width * height > MOST_PIXELS:
        return False
    try:
        return all(name != b"acTL" for name, _ in png_chunks(content))  # which announces an animation
    except DataError:
        return False


def _is_plain_jpeg(content: Content, exif: str) -> bool:
    """Walks from segment to segment to the frame header, which has the bits a sample and the number of components."""
    # FFmpeg fills what a truncated file lacks without a word.
    if b"\xff\xd9" not in bytes(content[-64:]):
        return False
    place, end = 2, len(content) - 10
    while place < end and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # any number of these may stand before a marker
            place += 1
            continue
        if marker in _FRAMES:
            height, width = (content[at] << 8 | content[at + 1] for at in (place + 5, place + 7))
            return content[place + 4] == 8 and content[place + 9] in (1, 3) and width * height <= MOST_PIXELS
        if marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
            return False
        if exif == "apply" and marker == 0xE1:
            return False
        if marker == 0xE2 and bytes(content[place + 4 : place + 8]) == b"MPF\0":  # more pictures follow
            return False
        place += 2 + (content[place + 2] << 8) + content[place + 3]
    return False


def open_rgb(source: "str | io.BytesIO", exif: str = "ignore") -> Image.Image:
    """A file in RGB by Pillow, following the rule; raises whatever Pillow raises, or DataError."""
    with opened(source) as image:
        return rgb(image, exif)


def opened(source: "str | io.BytesIO", most: int = MOST_PIXELS) -> Image.Image:
    """A file opened by Pillow, of which no more than the header has been read.

    Raises:
        LargeError: it has more than `most` pixels.
        DataError: it is no image; and whatever Pillow raises.
    """
    # Pillow warns from half of the pixels on that it takes. Once is enough: a new filter lets all else be said again.
    concerned = (entry[0] for entry in warnings.filters if issubclass(Image.DecompressionBombWarning, entry[2]))
    if next(concerned, None) != "ignore":
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        image = Image.open(source, formats=PILLOW)
    except Image.DecompressionBombError:
        raise LargeError(f"more pixels than the {most:,} that are allowed") from None
    except UnidentifiedImageError:
        # Pillow's message has the address of a buffer in it.
        raise DataError("it is no image, or its header is damaged") from None
    try:
        refuse_large(*image.size, most)
    except LargeError:
        image.close()
        raise
    return image


def refuse_large(width: int, height: int, most: int = MOST_PIXELS) -> None:
    """Raise LargeError if an image has more than `most` pixels."""
    if width * height > most:
        raise LargeError(f"{width} x {height} pixels, more than the {most:,} that are allowed")


def rgb(image: Image.Image, exif: str = "ignore") -> Image.Image:
    """An image that Pillow opened, in RGB, following the rule.

    Raises:
        DataError: float samples outside 0..1, 32-bit integers, or a PNG that is not whole.
    """
    if isinstance(image, PngImageFile) and image.fp is not None:
        _load_png(image)
    turn = None
    if image.format == "TIFF":
        # Pillow turns a TIFF itself while loading it, and forgets the tag.
        turn = _BACK.get(orientation(image)) if exif == "ignore" else None
    elif exif == "apply":
        image.load()  # a PNG may have its EXIF behind the pixels
        turn = _TURNS.get(orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bits(image)
    elif image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's inverted form, also those that do not say so.
        image = ImageChops.invert(image)
    elif image.mode in ("P", "PA"):
        image.load()
        # Otherwise Pillow warns that transparency gets lost, which is the rule.
        image.info.pop("transparency", None)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _load_png(image: PngImageFile) -> None:
    """Load a PNG that is whole.

    Pillow looks at no checksum of the pixels, and leaves memory as it was where rows are missing. Counting them would
    take half as long as decoding, so the memory is marked before, and they are counted where the mark is in the last
    row afterwards. The rows of an interlaced image end at different places.

    Raises:
        DataError: a part is missing or damaged.
    """
    assert image.fp is not None
    image.fp.seek(0)
    content = image.fp.read()
    interlaced = dict(png_chunks(content))[b"IHDR"][12]
    image.im = Image.new(image.mode, image.size, 1).im
    image.load()
    last = image.crop((0, image.height - 1, *image.size))
    marked = last.tobytes() == Image.new(image.mode, last.size, 1).tobytes()
    if (interlaced or marked) and not png_has_all_rows(content):
        raise DataError("truncated: rows of pixels are missing")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1, as it is stored, also if there is none or it is damaged."""
    try:
        if image.format == "TIFF":
            found = image.tag_v2.get(_ORIENTATION)  # type: ignore[attr-defined]
        else:
            data = Image.Exif()
            data.load(image.info.get("exif") or b"")
            found = data.get(_ORIENTATION)
    except Exception:
        return 1  # Pillow reads the entries of a damaged block as whatever they happen to be
    return found if found in _TURNS else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8-bit grey."""
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    bits = max(tags.get(_BITS, (16,)))
    # Of a TIFF this has to be read before the pixels are: nothing else says which end is white.
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    samples = np.asarray(image)
    if image.mode == "F":
        low, high = float(samples.min()), float(samples.max())
        if not 0 <= low <= high <= 1:
            raise DataError(f"its float samples go from {low:g} to {high:g}; 0 (black) to 1 (white) is understood")
        values = np.rint(255 * samples)
    elif image.mode != "I" or image.format != "TIFF":
        # A PGM of more than 255 levels is stretched by Pillow to 16 bits, in a 32-bit image.
        values = samples.astype(np.int64) >> (bits - 8)
    else:
        raise DataError("its samples are 32-bit or signed integers, and nothing says which value is white")
    values = values.astype(np.uint8)
    return Image.fromarray(255 - values if inverted else values)


def as_pnm(content: Content, exif: str = "ignore") -> bytes:
    """A file decoded by Pillow and written as a PPM, which every decoder reads without loss.

    Raises:
        whatever Pillow raises, or DataError.
    """
    image = open_rgb(io.BytesIO(content), exif)
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def _reason(path: str) -> str | None:
    """Why a file cannot be decoded, or None. Decodes it: a truncated JPEG has a perfect header."""
    try:
        content = read(path)
    except OSError as error:
        return error.strerror or str(error)
    kind = format_of(bytes(content[:LONGEST]))
    # libjpeg fills what is missing with grey and only warns.
    if kind is not None and kind.name == "JPEG" and not jpeg_ends(content):
        return "truncated: the end-of-image marker is missing"
    try:
        decoded(content, "ignore")
    except Exception as error:
        return reason(error) if kind is None else f"{kind.name} does not decode: {reason(error)}"
    return None


def check(dataset: Dataset | Sequence[str], threads: int | None = None) -> list[BadImage]:
    """Decode every file and list the ones that fail, in the order given; never stops at the first.

    Of a packed set, the images that do not have the checksum they were packed with.

    Args:
        dataset: a data set, or paths.
        threads: decoding threads; by default one for each core this process may use.

    Returns:
        The unreadable files: missing, empty, truncated, not an image, or damaged inside.
    """
    if isinstance(dataset, Dataset) and isinstance(dataset.pixels, PackedImages):
        place = os.path.join(dataset.pixels.folder, PIXELS)
        return [
            BadImage(f"{place}, image {number}", "its checksum is not the one that it was packed with")
            for number in dataset.pixels.damaged(threads)
        ]
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
