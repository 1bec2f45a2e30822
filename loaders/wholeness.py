"""Whether all bytes of a JPEG or PNG are there, which some decoders do not notice and others end for.

Of a PNG the chunks and their checksums are looked at, which takes 1 % of the time that decoding takes (photographs of
500 x 375 and 1600 x 1200 pixels). Inflating the pixels to count them takes 45 %, so that is left to whoever has a
reason to (see loaders.images).
"""

import re
import struct
import zlib
from collections.abc import Iterator

from loaders.errors import DataError

Content = bytes | bytearray | memoryview

_SIGNATURE = 8  # bytes of a PNG before its first chunk
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by a PNG's type of colour
# First column and row of each pass of an interlaced PNG, and the steps between them.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_AT_ONCE = 1 << 20  # bytes that are inflated at once: a small file may hold gigabytes

# In a JPEG's pixels 0xFF is followed by 0 or the number of a restart; by anything else it is a marker.
_MARKER = re.compile(rb"\xff+([^\0\xd0-\xd7\xff])")
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment behind them
_PIXELS, _END = 0xDA, 0xD9


def jpeg_ends(content: Content) -> bool:
    """Whether a JPEG has its end-of-image marker. A preview has one of its own, and so may what is appended."""
    if bytes(content[-64:]).rstrip(b"\0\r\n").endswith(bytes((0xFF, _END))):
        return True  # nothing is appended: no need to walk through all of it
    place = 2
    while (found := _MARKER.search(content, place)) is not None:
        marker, place = found[1][0], found.end()
        if marker == _END:
            return True
        if marker not in _ALONE:
            place += int.from_bytes(content[place : place + 2], "big")
    return False


def png_chunks(content: Content) -> Iterator[tuple[bytes, memoryview]]:
    """Name and data of every chunk of a PNG, to its end; what is appended is left out.

    Raises:
        DataError: a part is missing or a checksum is wrong.
    """
    view, place, name = memoryview(content), _SIGNATURE, b""
    while name != b"IEND":
        length = int.from_bytes(view[place : place + 4], "big")
        data, end = place + 8, place + 8 + length
        if end + 4 > len(view):
            raise DataError("truncated: the end of the file is missing")
        name = bytes(view[place + 4 : data])
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DataError(f"damaged: the checksum of its chunk {name.decode('ascii', 'replace')} is wrong")
        yield name, view[data:end]
        place = end + 4


def png_has_all_rows(content: Content) -> bool:
    """Whether a PNG's compressed pixels are as many as its header says.

    Raises:
        DataError: a part is missing or a checksum is wrong.
    """
    inflating, missing = zlib.decompressobj(), 0
    for name, data in png_chunks(content):
        if name == b"IHDR":
            missing = _inflated_bytes(data)
        waiting: Content = data if name == b"IDAT" else b""
        while waiting and missing > 0:
            try:
                missing -= len(inflating.decompress(waiting, _AT_ONCE))
            except zlib.error:
                return False
            waiting = inflating.unconsumed_tail
    return missing <= 0


def _inflated_bytes(header: memoryview) -> int:
    """Bytes of a PNG's pixels, every row with one more in front for its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _SAMPLES.get(colour, 0)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - left) // right), -(-(height - top) // down)) for left, top, right, down in passes)
    return sum(tall * (1 + -(-wide * bits // 8)) for wide, tall in sizes if wide > 0 and tall > 0)
