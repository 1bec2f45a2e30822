"""Files of every kind that folders of images hold besides plain JPEGs, with the pixels that all readers have to see."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as transform

SIDE = 48
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Odd:
    """A file.

    Attributes:
        name: what is odd about it.
        rule: what a reader does with it.
        ending: of its name.
        content: its bytes.
        pixels: uint8 [SIDE, SIDE, 3] of the whole image, resized where it has another size; None if it is refused.
        exif: whether the reader is asked to apply the orientation that the file stores.
    """

    name: str
    rule: str
    ending: str
    content: bytes
    pixels: Pixels | None
    exif: str = "ignore"


def _base() -> Pixels:
    """Red grows to the right, green upwards, blue along the diagonal: nothing is like its mirror image."""
    down, right = np.mgrid[0:SIDE, 0:SIDE]
    planes = (right, SIDE - 1 - down, (down + right) / 2)
    return np.stack([20 + 200 * plane / (SIDE - 1) for plane in planes], -1).round().astype(np.uint8)


BASE = _base()
GREY = np.asarray(Image.fromarray(BASE).convert("L"))
ALPHA = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).round().astype(np.uint8)
BITS = np.add.outer(np.arange(SIDE) // 6, np.arange(SIDE) // 9) % 2 == 0


def _grey(plane: NDArray[Any]) -> Pixels:
    return np.repeat(plane.astype(np.uint8)[..., None], 3, -1)


def _deep(plane: NDArray[Any]) -> NDArray[np.uint16]:
    """16-bit samples whose upper byte is given and whose lower byte is 0 to 255."""
    low = np.arange(plane.size, dtype=np.uint16).reshape(plane.shape) % 256
    return plane.astype(np.uint16) * 256 + low


def saved(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    data = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(data, kind, **options)
    return data.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# Adam7, the order of an interlaced PNG: first row and column of each pass, and the steps between them.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(samples: NDArray[Any], chunks: bytes = b"", interlaced: bool = False, rows: float = 1) -> bytes:
    """A PNG of bool, uint8 or uint16 [h, w] or [h, w, channels], with more chunks before the pixels.

    Args:
        rows: the share of the rows' bytes that it has.
    """
    tall, wide = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    depth = {"bool": 1, "uint8": 8, "uint16": 16}[str(samples.dtype)]
    packed = np.packbits(samples, 1) if depth == 1 else samples.astype(f">u{depth // 8}")
    passes = [packed[top::down, left::right] for top, left, down, right in _PASSES] if interlaced else [packed]
    pixels = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    pixels = pixels[: round(rows * len(pixels))]
    header = struct.pack(">IIBBBBB", wide, tall, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    parts = (_chunk(b"IHDR", header), chunks, _chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(samples: NDArray[Any], photometric: int = 1, orientation: int = 1, signed: bool = False) -> bytes:
    """A little-endian TIFF of one strip: uint8, uint16, int32, uint32 or float32 [h, w] or [h, w, 3]."""
    tall, wide = samples.shape[:2]
    channels, size = samples.shape[2] if samples.ndim == 3 else 1, samples.dtype.itemsize
    form = 3 if samples.dtype.kind == "f" else 2 if signed else 1
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    entries = 10
    after = 8 + 2 + 12 * entries + 4
    bits = (3, channels, after if channels == 3 else 8 * size)
    strip = after + 6 * (channels == 3)
    tags = {
        256: (4, 1, wide),
        257: (4, 1, tall),
        258: bits,
        259: (3, 1, 1),
        262: (3, 1, 2 if channels == 3 else photometric),
        273: (4, 1, strip),
        274: (3, 1, orientation),
        277: (3, 1, channels),
        279: (4, 1, len(data)),
        339: (3, 1, form),
    }
    # Three values do not fit into an entry; one value of a sample format stands for all.
    body = b"".join(struct.pack("<HHII", tag, *values) for tag, values in sorted(tags.items()))
    lengths = struct.pack("<3H", *[8 * size] * 3) if channels == 3 else b""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + body + b"\0\0\0\0" + lengths + data


def _without_segment(jpeg: bytes, marker: int) -> bytes:
    """A JPEG without its segments of one kind."""
    place, kept = 2, jpeg[:2]
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] != marker:
            kept += jpeg[place:end]
        place = end
    return kept + jpeg[place:]


def _resized(pixels: Pixels) -> Pixels:
    """Shorter side to SIDE and the centre cut out, as an evaluation does."""
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    tall, wide = pixels.shape[:2]
    shape = [SIDE, SIDE * wide // tall] if tall <= wide else [SIDE * tall // wide, SIDE]
    return np.asarray(
        transform.center_crop(transform.resize(planes, shape, antialias=True), [SIDE, SIDE]).permute(1, 2, 0)
    )


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen turned clockwise
    return exif


def _jpegs() -> Iterator[Odd]:
    image = Image.fromarray(BASE)
    fine: dict[str, Any] = {"quality": 95, "subsampling": 0}
    plain = saved(image, "JPEG", **fine)
    cmyk = image.convert("CMYK")
    inverted = Image.fromarray(255 - np.asarray(cmyk), "CMYK")
    upright = np.rot90(BASE, -1)
    yield Odd("JPEG", "as it is", ".jpg", plain, BASE)
    yield Odd("JPEG, progressive", "as it is", ".jpg", saved(image, "JPEG", progressive=True, **fine), BASE)
    yield Odd("JPEG, grey", "repeated", ".jpg", saved(GREY, "JPEG", quality=95), _grey(GREY))
    yield Odd("JPEG, CMYK as Adobe writes it", "converted", ".jpg", saved(cmyk, "JPEG", **fine), BASE)
    bare = _without_segment(saved(inverted, "JPEG", **fine), 0xEE)
    yield Odd("JPEG, CMYK without Adobe's mark", "converted", ".jpg", bare, BASE)
    turned = saved(image, "JPEG", exif=_turned(), **fine)
    yield Odd("JPEG, EXIF orientation 6", "ignored", ".jpg", turned, BASE)
    yield Odd('JPEG, EXIF orientation 6, exif = "apply"', "turned", ".jpg", turned, upright, "apply")
    yield Odd('JPEG without EXIF, exif = "apply"', "as it is", ".jpg", plain, BASE, "apply")
    second = saved(image, "MPO", save_all=True, append_images=[Image.fromarray(255 - BASE)], **fine)
    yield Odd("JPEG, two pictures (MPO)", "first picture", ".jpg", second, BASE)
    yield Odd("JPEG named .png", "as it is", ".png", plain, BASE)
    yield Odd("JPEG, zeros behind its end", "as it is", ".jpg", plain + b"\0" * 64, BASE)
    film = np.random.default_rng(0).integers(0, 256, 3 * len(plain), np.uint8).tobytes()
    yield Odd("JPEG, a film behind its end", "as it is", ".jpg", plain + film, BASE)
    yield Odd("JPEG, another one behind its end", "first picture", ".jpg", plain + saved(255 - BASE, "JPEG"), BASE)
    wide = np.repeat(BASE[:8, :1], 2000, 1) + np.linspace(0, 30, 2000).astype(np.uint8)[:, None]
    yield Odd("JPEG of 2000 x 8 pixels", "as it is", ".jpg", saved(wide, "JPEG", **fine), _resized(wide))
    dot = np.full((1, 1, 3), (200, 100, 50), np.uint8)
    yield Odd("JPEG of 1 x 1 pixel", "as it is", ".jpg", saved(dot, "JPEG", **fine), np.tile(dot, (SIDE, SIDE, 1)))
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    noisy = saved(noise, "JPEG", quality=95)
    yield Odd("JPEG cut in the middle", "refused", ".jpg", noisy[: len(noisy) // 2], None)
    yield Odd("JPEG cut near its end", "refused", ".jpg", noisy[: len(noisy) * 19 // 20], None)
    yield Odd("JPEG without its end marker", "refused", ".jpg", noisy[:-2], None)
    yield Odd("JPEG cut in its header", "refused", ".jpg", noisy[:20], None)


def _pngs() -> Iterator[Odd]:
    image, palette = Image.fromarray(BASE), Image.fromarray(BASE).quantize(64)
    indexed = np.asarray(palette.convert("RGB"))
    upright = np.rot90(BASE, -1)
    yield Odd("PNG", "as it is", ".png", png(BASE), BASE)
    yield Odd("PNG named .jpg", "as it is", ".jpg", png(BASE), BASE)
    yield Odd("PNG, interlaced", "as it is", ".png", png(BASE, interlaced=True), BASE)
    yield Odd("PNG, grey", "repeated", ".png", png(GREY), _grey(GREY))
    yield Odd("PNG, 16 bits", "upper byte", ".png", png(_deep(BASE)), BASE)
    yield Odd("PNG, grey, 16 bits", "upper byte", ".png", png(_deep(GREY)), _grey(GREY))
    deep = _deep(np.dstack([GREY, ALPHA]))
    yield Odd("PNG, grey and alpha, 16 bits", "upper byte, alpha dropped", ".png", png(deep), _grey(GREY))
    yield Odd("PNG, alpha, 16 bits", "upper byte, alpha dropped", ".png", png(_deep(np.dstack([BASE, ALPHA]))), BASE)
    yield Odd("PNG, one bit", "0 or 255", ".png", png(BITS), _grey(255 * BITS))
    yield Odd("PNG, alpha", "alpha dropped", ".png", png(np.dstack([BASE, ALPHA])), BASE)
    yield Odd("PNG, grey and alpha", "alpha dropped", ".png", png(np.dstack([GREY, ALPHA])), _grey(GREY))
    yield Odd("PNG, palette", "looked up", ".png", saved(palette, "PNG"), indexed)
    clear = saved(palette, "PNG", transparency=bytes(range(0, 256, 4)))
    yield Odd("PNG, palette with transparency", "looked up, alpha dropped", ".png", clear, indexed)
    key = struct.pack(">3H", *BASE[5, 5].tolist())
    yield Odd("PNG, a transparent colour", "alpha dropped", ".png", png(BASE, _chunk(b"tRNS", key)), BASE)
    gamma = _chunk(b"gAMA", struct.pack(">I", 100_000))
    yield Odd("PNG, gamma", "gamma ignored", ".png", png(BASE, gamma), BASE)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - BASE)], "duration": 100}
    yield Odd("PNG, animated", "first frame", ".png", saved(image, "PNG", **frames), BASE)
    turned = saved(image, "PNG", exif=_turned())
    yield Odd("PNG, EXIF orientation 6", "ignored", ".png", turned, BASE)
    yield Odd('PNG, EXIF orientation 6, exif = "apply"', "turned", ".png", turned, upright, "apply")
    whole = png(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    yield Odd("PNG, bytes behind its end", "as it is", ".png", png(BASE) + bytes(range(256)) * 90, BASE)
    yield Odd("PNG cut in the middle", "refused", ".png", whole[: len(whole) // 2], None)
    yield Odd("PNG cut near its end", "refused", ".png", whole[:-20], None)
    yield Odd("PNG without its end", "refused", ".png", whole[:-12], None)
    yield Odd("PNG without half of its rows", "refused", ".png", png(BASE, rows=0.5), None)
    yield Odd("PNG, interlaced, without a few pixels", "refused", ".png", png(BASE, interlaced=True, rows=0.99), None)
    at = whole.index(b"IDAT")
    damaged = whole[: at + 9] + bytes([whole[at + 9] ^ 1]) + whole[at + 10 :]
    yield Odd("PNG, a damaged byte", "refused", ".png", damaged, None)
    yield Odd("PNG, a wrong checksum of its pixels", "refused", ".png", whole[:-16] + bytes(4) + whole[-12:], None)
    text = _chunk(b"tEXt", b"Title\0odd")[:-4] + bytes(4)
    yield Odd("PNG, a wrong checksum of a text", "refused", ".png", png(BASE, text), None)
    yield Odd("PNG, a wrong checksum of a text, named .jpg", "refused", ".jpg", png(BASE, text), None)


def _others() -> Iterator[Odd]:
    image = Image.fromarray(BASE)
    indexed = image.quantize(64)
    looked_up = np.asarray(indexed.convert("RGB"))
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - BASE)], "duration": 100}
    upright = np.rot90(BASE, -1)
    yield Odd("GIF", "looked up", ".gif", saved(indexed, "GIF"), looked_up)
    moving = saved(indexed, "GIF", save_all=True, append_images=[Image.fromarray(255 - BASE).quantize(64)])
    yield Odd("GIF, animated", "first frame", ".gif", moving, looked_up)
    yield Odd("WebP", "as it is", ".webp", saved(image, "WEBP", quality=95), BASE)
    yield Odd("WebP, lossless", "as it is", ".webp", saved(image, "WEBP", lossless=True), BASE)
    clear = Image.fromarray(np.dstack([BASE, np.maximum(ALPHA, 1)]))
    yield Odd("WebP, alpha", "alpha dropped", ".webp", saved(clear, "WEBP", lossless=True, exact=True), BASE)
    yield Odd("WebP, animated", "first frame", ".webp", saved(image, "WEBP", lossless=True, **frames), BASE)
    turned = saved(image, "WEBP", lossless=True, exif=_turned())
    yield Odd("WebP, EXIF orientation 6", "ignored", ".webp", turned, BASE)
    yield Odd('WebP, EXIF orientation 6, exif = "apply"', "turned", ".webp", turned, upright, "apply")
    yield Odd("BMP", "as it is", ".bmp", saved(image, "BMP"), BASE)
    yield Odd("BMP, palette", "looked up", ".bmp", saved(indexed, "BMP"), looked_up)
    yield Odd("BMP, grey", "repeated", ".bmp", saved(GREY, "BMP"), _grey(GREY))
    yield Odd("PPM", "as it is", ".ppm", saved(image, "PPM"), BASE)
    yield Odd("PGM", "repeated", ".pgm", saved(GREY, "PPM"), _grey(GREY))
    deep = b"P5 %d %d 65535\n" % (SIDE, SIDE) + _deep(GREY).astype(">u2").tobytes()
    yield Odd("PGM, 16 bits", "upper byte", ".pgm", deep, _grey(GREY))
    dim = (BASE / 255 * 100).round().astype(np.uint8)
    scaled = (dim / 100 * 255).round().astype(np.uint8)
    few = b"P6 %d %d 100\n" % (SIDE, SIDE) + dim.tobytes()
    yield Odd("PPM, white is 100", "scaled", ".ppm", few, scaled)
    yield Odd("PPM, white is 100, named .jpg", "scaled", ".jpg", few, scaled)
    text = b"P3 # a remark\n%d %d 100\n" % (SIDE, SIDE) + " ".join(map(str, dim.flat)).encode()
    yield Odd("PPM in text, white is 100", "scaled", ".ppm", text, scaled)
    levels = (GREY / 255 * 1000).round().astype(">u2")
    many = b"P5 %d %d 1000\n" % (SIDE, SIDE) + levels.tobytes()
    yield Odd("PGM, white is 1000", "scaled", ".pgm", many, _grey(levels / 1000 * 255))
    yield Odd("PPM cut near its end", "refused", ".ppm", saved(image, "PPM")[:-5], None)
    yield Odd("PBM", "0 or 255", ".pbm", saved(BITS, "PPM"), _grey(255 * BITS))


def _tiffs() -> Iterator[Odd]:
    image = Image.fromarray(BASE)
    upright = np.rot90(BASE, -1)
    yield Odd("TIFF", "as it is", ".tif", tiff(BASE), BASE)
    yield Odd("TIFF, compressed", "as it is", ".tif", saved(image, "TIFF", compression="tiff_lzw"), BASE)
    pages = saved(image, "TIFF", save_all=True, append_images=[Image.fromarray(255 - BASE)])
    yield Odd("TIFF, two pages", "first page", ".tif", pages, BASE)
    yield Odd("TIFF of 64 bits (BigTIFF)", "as it is", ".tif", saved(image, "TIFF", big_tiff=True), BASE)
    yield Odd("TIFF, grey", "repeated", ".tif", tiff(GREY), _grey(GREY))
    yield Odd("TIFF, grey, white is zero", "inverted", ".tif", tiff(255 - GREY, 0), _grey(GREY))
    yield Odd("TIFF, 16 bits", "upper byte", ".tif", tiff(_deep(BASE)), BASE)
    yield Odd("TIFF, grey, 16 bits", "upper byte", ".tif", tiff(_deep(GREY)), _grey(GREY))
    yield Odd(
        "TIFF, grey, 16 bits, white is zero", "inverted, upper byte", ".tif", tiff(_deep(255 - GREY), 0), _grey(GREY)
    )
    yield Odd("TIFF, float, 0 to 1", "times 255", ".tif", tiff((GREY / 255).astype(np.float32)), _grey(GREY))
    yield Odd("TIFF, float, 0 to 255", "refused", ".tif", tiff(GREY.astype(np.float32)), None)
    yield Odd("TIFF, 32-bit integers", "refused", ".tif", tiff(GREY.astype(np.uint32)), None)
    yield Odd("TIFF, signed 16 bits", "refused", ".tif", tiff(_deep(GREY // 2), signed=True), None)
    yield Odd("TIFF, CMYK", "converted", ".tif", saved(image.convert("CMYK"), "TIFF"), BASE)
    yield Odd("TIFF, palette", "looked up", ".tif", *_palette_tiff(image))
    yield Odd("TIFF, one bit", "0 or 255", ".tif", saved(BITS, "TIFF"), _grey(255 * BITS))
    yield Odd("TIFF, orientation 6", "ignored", ".tif", tiff(BASE, orientation=6), BASE)
    yield Odd('TIFF, orientation 6, exif = "apply"', "turned", ".tif", tiff(BASE, orientation=6), upright, "apply")


def _palette_tiff(image: Image.Image) -> tuple[bytes, Pixels]:
    indexed = image.quantize(64)
    return saved(indexed, "TIFF"), np.asarray(indexed.convert("RGB"))


def _no_images() -> Iterator[Odd]:
    yield Odd("text named .jpg", "refused", ".jpg", b"<html>404 Not Found</html>\n" * 9, None)
    yield Odd("empty file", "refused", ".jpg", b"", None)
    yield Odd("AVIF or another format", "refused", ".png", b"\0\0\0\x20ftypavif" + bytes(300), None)


def _large() -> Iterator[Odd]:
    """Headers that promise more pixels than are read; the files are small."""
    wide, tall = 14_000, 13_000
    image = Image.fromarray(BASE)
    jpeg, webp = saved(image, "JPEG"), saved(image, "WEBP")
    frame = jpeg.index(b"\xff\xc0") + 5
    name = "of 182 million pixels"
    header = struct.pack(">HH", tall, wide)
    yield Odd(f"JPEG {name}", "refused", ".jpg", jpeg[:frame] + header + jpeg[frame + 4 :], None)
    parts = (_chunk(b"IHDR", struct.pack(">IIBBBBB", wide, tall, 8, 2, 0, 0, 0)), _chunk(b"IDAT", b""))
    yield Odd(f"PNG {name}", "refused", ".png", png(BASE)[:8] + b"".join(parts) + _chunk(b"IEND", b""), None)
    little = struct.pack("<HH", wide, tall)
    yield Odd(f"WebP {name}", "refused", ".webp", webp[:26] + little + webp[30:], None)
    gif = saved(image.quantize(64), "GIF")
    yield Odd(f"GIF {name}", "refused", ".gif", gif[:6] + little + gif[10:], None)
    bmp = saved(image, "BMP")
    yield Odd(f"BMP {name}", "refused", ".bmp", bmp[:18] + struct.pack("<ii", wide, tall) + bmp[26:], None)
    yield Odd(f"PPM {name}", "refused", ".ppm", b"P6 %d %d 255\n" % (wide, tall) + bytes(99), None)
    strip = tiff(BASE)
    sides = [struct.pack("<I", side) for side in (wide, tall)]
    large = strip[:18] + sides[0] + strip[22:30] + sides[1] + strip[34:]
    yield Odd(f"TIFF {name}", "refused", ".tif", large, None)


def all_files() -> list[Odd]:
    """Every file, in the order of the table."""
    kinds: tuple[Callable[[], Iterator[Odd]], ...] = (_jpegs, _pngs, _others, _tiffs, _large, _no_images)
    return [odd for make in kinds for odd in make()]
