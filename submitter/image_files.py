"""
Inspection of image files: type, size in pixels, and whether the file is whole.

Nothing is decoded and nothing is decompressed. A file is walked from structure to structure with reads of a few
kilobytes, so a result of 500 megapixels costs as much as a thumbnail, and a metadata chunk that would swell to
gigabytes is skipped. Work is bounded by counting steps (`MAX_STEPS`), not by a clock: the verdict on a file never
depends on how busy the machine is.

A file is whole when its end is there: EOI in JPEG, IEND in PNG, the trailer in GIF, and in WEBP, TIFF, BMP and AVIF
every byte that the headers promise. Data after the end is tolerated: phones and editors append to JPEG, PNG and GIF.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

MAX_STEPS = 1 << 17
"""The limit for chunks, segments, boxes or pages in a file. PNG encoders write 8 KiB chunks: enough for 1 GB."""
MAX_GIF_BLOCKS = 5 << 19
"""GIF data is stored in blocks of at most 255 bytes: enough for 650 MB."""
_WINDOW_BYTES = 4096
_TAIL_BYTES = 256 * 1024


SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/tiff": ".tiff",
    "image/bmp": ".bmp",
    "image/avif": ".avif",
}
"""The file extension of each type."""


class NotAnImage(ValueError):
    """The bytes are not an image of a supported type, or break that type's rules."""


class CutOff(NotAnImage):
    """The headers are complete, but data that they promise is missing."""


class Bytes(Protocol):
    """Random access to a file's bytes; reads past the end return fewer bytes."""

    size: int

    def at(self, offset: int, count: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """Type and size in pixels of a whole image."""

    content_type: str
    width: int
    height: int


class FileBytes:
    """An open file; *descriptor* stays the caller's. Small reads near each other cost one system call."""

    def __init__(self, descriptor: int) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._start, self._window = 0, b""

    def at(self, offset: int, count: int) -> bytes:
        if count > _WINDOW_BYTES:
            return os.pread(self._descriptor, count, offset)
        if not self._start <= offset <= offset + count <= self._start + len(self._window):
            self._start, self._window = offset, os.pread(self._descriptor, _WINDOW_BYTES, offset)
        begin = offset - self._start
        return self._window[begin : begin + count]


class MemoryBytes:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data

    def at(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


def magic_type(head: bytes) -> str | None:
    """Return the image type that the first bytes (32 are enough) indicate; None if it is unknown."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "image/tiff"
    if head[4:8] == b"ftyp" and any(head[at : at + 4] in (b"avif", b"avis") for at in (8, 16, 20, 24, 28)):
        return "image/avif"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "image/bmp"
    return None


def measure(data: Bytes) -> Measured:
    """Measure the image in *data*; raises `CutOff` or `NotAnImage` and nothing else."""
    if data.size == 0:
        raise NotAnImage("the file is empty")
    content_type = magic_type(data.at(0, 32))
    if content_type is None:
        raise NotAnImage("the file is not an image of a known type")
    try:
        width, height = _READERS[content_type](data)
    except struct.error as exc:
        raise NotAnImage("the image's header is broken or ends too early") from exc
    if width < 1 or height < 1:
        raise NotAnImage("the image's header is broken")
    return Measured(content_type, width, height)


class _Steps:
    """Counts steps; too many of them mean a file that was made to waste time."""

    def __init__(self, limit: int = MAX_STEPS) -> None:
        self._left = limit

    def take(self, count: int = 1) -> None:
        self._left -= count
        if self._left < 0:
            raise NotAnImage("the image consists of too many parts")


def _unpack(layout: str, data: Bytes, offset: int) -> tuple[Any, ...]:
    return struct.unpack(layout, data.at(offset, struct.calcsize(layout)))


def _must_reach(data: Bytes, end: int) -> None:
    if end > data.size:
        raise CutOff(f"the file has {data.size} bytes of {end}")


# --- JPEG -------------------------------------------------------------------------------------------------------------

_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def _jpeg(data: Bytes) -> tuple[int, int]:
    """
    Walk to the first scan, then search for EOI from the end backwards.

    Within a scan 0xFF is followed by zero or a restart number, so FF D9 after its start can only be an end mark; the
    end mark of a thumbnail comes before it, in a segment that is skipped.
    """
    steps, offset, size = _Steps(), 2, None
    while True:
        steps.take()
        mark, kind = _unpack(">BB", data, offset)
        if mark != 0xFF:
            raise NotAnImage("the JPEG's segments are broken")
        if kind == 0xFF:  # fill byte
            offset += 1
            continue
        if kind in _BARE:
            offset += 2
            continue
        if kind < 0xC0:  # reserved
            raise NotAnImage("the JPEG's segments are broken")
        if kind == 0xD9:
            raise NotAnImage("the JPEG holds no picture")
        (length,) = _unpack(">H", data, offset + 2)
        if length < 2:
            raise NotAnImage("the JPEG's segments are broken")
        if kind in _SIZES and size is None:
            height, width = _unpack(">HH", data, offset + 5)
            size = width, height
        offset += 2 + length
        if kind == 0xDA:
            break
    if size is None:
        raise NotAnImage("the JPEG does not say how large it is")
    end = data.size
    while end > offset:
        start = max(offset, end - _TAIL_BYTES)
        if b"\xff\xd9" in data.at(start, end - start):
            return size
        end = start + 1 if start > offset else offset  # the mark may lie across two reads
    raise CutOff("the JPEG has no end mark")


# --- PNG --------------------------------------------------------------------------------------------------------------


def _png(data: Bytes) -> tuple[int, int]:
    length, kind, width, height = _unpack(">I4sII", data, 8)
    if (length, kind) != (13, b"IHDR"):
        raise NotAnImage("the PNG does not begin with its header")
    steps, offset, has_data = _Steps(), 33, False
    while True:
        steps.take()
        length, kind = _unpack(">I4s", data, offset)
        if length > 0x7FFFFFFF or not kind.isalpha():
            raise NotAnImage("the PNG's chunks are broken")
        offset += 12 + length
        _must_reach(data, offset)
        if kind == b"IEND":
            break
        has_data = has_data or kind == b"IDAT"
    if not has_data:
        raise NotAnImage("the PNG holds no picture")
    return width, height


# --- WEBP -------------------------------------------------------------------------------------------------------------


def _webp(data: Bytes) -> tuple[int, int]:
    (promised,) = _unpack("<I", data, 4)
    _must_reach(data, 8 + promised - 1)  # some writers count a padding byte that they do not write
    size, offset, steps = None, 12, _Steps()
    while offset + 8 <= min(data.size, 8 + promised):
        steps.take()
        kind = data.at(offset, 4)
        (length,) = _unpack("<I", data, offset + 4)
        _must_reach(data, offset + 8 + length)
        head = data.at(offset + 8, 10)
        if kind in (b"VP8 ", b"VP8L"):
            return size or _webp_frame(kind, head)
        if kind == b"VP8X" and len(head) == 10:
            size = int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
        elif kind == b"ANMF" and size is not None:
            return size
        offset += 8 + length + (length & 1)
    raise NotAnImage("the WEBP holds no picture")


def _webp_frame(kind: bytes, head: bytes) -> tuple[int, int]:
    if kind == b"VP8L" and head[:1] == b"\x2f" and len(head) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a" and len(head) == 10:
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise NotAnImage("the WEBP's frame is broken")


# --- GIF --------------------------------------------------------------------------------------------------------------


def _gif(data: Bytes) -> tuple[int, int]:
    width, height, flags = _unpack("<HHB", data, 6)
    offset, steps, has_frame = 13 + _gif_colours(flags), _Steps(MAX_GIF_BLOCKS), False
    while True:
        steps.take()
        (kind,) = _unpack("B", data, offset)
        if kind == 0x3B:
            break
        if kind == 0x21:
            offset += 2
        elif kind == 0x2C:
            (flags,) = _unpack("B", data, offset + 9)
            offset += 11 + _gif_colours(flags)
            has_frame = True
        elif kind == 0:  # stray terminators between blocks are common, many of them are not
            offset += 1
            steps.take(16)
            continue
        else:
            raise NotAnImage("the GIF's blocks are broken")
        offset = _gif_blocks_end(data, offset, steps)
    if not has_frame:
        raise NotAnImage("the GIF holds no picture")
    return width, height


def _gif_colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_blocks_end(data: Bytes, offset: int, steps: _Steps) -> int:
    """Return the end of the data blocks that begin at *offset*. A tight loop: a large GIF has millions of them."""
    while True:
        window = data.at(offset, _WINDOW_BYTES)
        if not window:
            raise CutOff("the GIF ends within its data")
        at, walked, length = 0, 0, len(window)
        while at < length:
            block = window[at]
            at += block + 1
            walked += 1
            if block == 0:
                steps.take(walked)
                return offset + at
        steps.take(walked)
        offset += at


# --- TIFF -------------------------------------------------------------------------------------------------------------

_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8, 18: 8}
_TIFF_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_WIDTH, _HEIGHT = 256, 257
_EXTENTS = ((273, 279), (324, 325))  # offsets and byte counts: of strips, of tiles
_DECODING = (258, 320, 347)  # bits per sample, colour map, JPEG tables


@dataclass(frozen=True, slots=True)
class _Field:
    kind: int
    count: int
    at: int
    """The offset of its values in the file."""


def _tiff(data: Bytes) -> tuple[int, int]:
    """Check that every page's strips or tiles lie within the file, and what decodes them."""
    order = "<" if data.at(0, 2) == b"II" else ">"
    big = b"+" in data.at(2, 2)
    (offset,) = _unpack(order + ("Q" if big else "I"), data, 8 if big else 4)
    steps, size, seen = _Steps(), None, set[int]()
    while offset and offset not in seen:
        seen.add(offset)
        steps.take()
        _must_reach(data, offset + 2)
        fields, offset = _tiff_page(data, offset, order, big=big)
        if size is None:
            values = [next(_tiff_values(data, fields.get(tag), order), 0) for tag in (_WIDTH, _HEIGHT)]
            size = values[0], values[1]
        for field in filter(None, map(fields.get, _DECODING)):
            _must_reach(data, field.at + _TIFF_SIZES[field.kind] * field.count)
        for offsets, counts in _EXTENTS:
            starts = _tiff_values(data, fields.get(offsets), order)
            lengths = _tiff_values(data, fields.get(counts), order)
            for walked, start in enumerate(starts):
                if walked % 64 == 0:
                    steps.take()
                _must_reach(data, start + next(lengths, 1))
    if size is None:
        raise NotAnImage("the TIFF holds no picture")
    return size


def _tiff_page(data: Bytes, offset: int, order: str, *, big: bool) -> tuple[dict[int, _Field], int]:
    """Return the fields of the page at *offset*, and the offset of the next page (0: none)."""
    head, entry, inline, word = (8, 20, 8, "Q") if big else (2, 12, 4, "I")
    (count,) = _unpack(order + ("Q" if big else "H"), data, offset)
    if count > 0xFFFF:
        raise NotAnImage("the TIFF's directory is broken")
    fields = {}
    for number in range(count):
        at = offset + head + number * entry
        tag, kind, values = _unpack(f"{order}HH{word}", data, at)
        if kind in _TIFF_SIZES:
            place = at + entry - inline
            if values * _TIFF_SIZES[kind] > inline:
                (place,) = _unpack(order + word, data, place)
            fields[tag] = _Field(kind, values, place)
    (following,) = _unpack(order + word, data, offset + head + count * entry)
    return fields, following


def _tiff_values(data: Bytes, field: _Field | None, order: str) -> Iterator[int]:
    if field is None:
        return
    width = _TIFF_SIZES[field.kind]
    _must_reach(data, field.at + width * field.count)
    for first in range(0, field.count, 512):
        count = min(512, field.count - first)
        yield from _unpack(f"{order}{count}{_TIFF_CODES[width]}", data, field.at + first * width)


# --- BMP --------------------------------------------------------------------------------------------------------------


def _bmp(data: Bytes) -> tuple[int, int]:
    start, header = _unpack("<II", data, 10)
    if header == 12:
        width, height, _, depth = _unpack("<HHHH", data, 18)
        packed, promised = 0, 0
    elif 40 <= header <= 1024:
        width, height, _, depth, packed, promised = _unpack("<iiHHII", data, 18)
    else:
        raise NotAnImage("the BMP's header is broken")
    if width < 1 or depth not in (1, 2, 4, 8, 16, 24, 32):
        raise NotAnImage("the BMP's header is broken")
    plain = packed in (0, 3, 6)
    _must_reach(data, start + ((width * depth + 31) // 32 * 4 * abs(height) if plain else promised))
    return width, abs(height)


# --- AVIF -------------------------------------------------------------------------------------------------------------


def _avif(data: Bytes) -> tuple[int, int]:
    """Return the size of the largest item: the whole picture, if there are tiles or a thumbnail as well."""
    steps, sizes = _Steps(), []
    for kind, start, end in _boxes(data, 0, data.size, steps):
        if kind != b"meta":
            continue
        for path in _inside(data, start + 4, end, (b"iprp", b"ipco", b"ispe"), steps):
            sizes.append(_unpack(">II", data, path + 4))
    if not sizes:
        raise NotAnImage("the AVIF does not say how large it is")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return width, height


def _inside(data: Bytes, start: int, end: int, path: tuple[bytes, ...], steps: _Steps) -> Iterator[int]:
    for kind, body, body_end in _boxes(data, start, end, steps):
        if kind != path[0]:
            continue
        if len(path) == 1:
            yield body
        else:
            yield from _inside(data, body, body_end, path[1:], steps)


def _boxes(data: Bytes, start: int, end: int, steps: _Steps) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes between *start* and *end*: kind, and start and end of the content."""
    while start < end:
        steps.take()
        (length,) = _unpack(">I", data, start)
        kind, head = data.at(start + 4, 4), 8
        if length == 1:
            (length,), head = _unpack(">Q", data, start + 8), 16
        elif length == 0:
            length = end - start
        if length < head:
            raise NotAnImage("the AVIF's boxes are broken")
        _must_reach(data, start + length)
        yield kind, start + head, start + length
        start += length


_READERS = {
    "image/jpeg": _jpeg,
    "image/png": _png,
    "image/webp": _webp,
    "image/gif": _gif,
    "image/tiff": _tiff,
    "image/bmp": _bmp,
    "image/avif": _avif,
}
