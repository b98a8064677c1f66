"""Real image files for the tests, made on the spot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image

from submitter.images import inspect
from submitter.vocabulary import Picture


def small_picture(
    folder: Path, *, kind: str = "PNG", size: tuple[int, int] = (80, 70), url: str | None = None
) -> Picture:
    path = folder / f"small.{kind.lower()}"
    Image.new("RGB", size, "teal").save(path, kind)
    return inspect(path, url=url)


def big_picture(folder: Path, size_bytes: int = 8 << 20) -> Picture:
    """A picture whose file is larger than any socket's buffers."""
    path = folder / "big.png"
    padding = chunk(b"teXt", bytes(size_bytes - len(png(1500, 1500)) - 12))
    path.write_bytes(png(1500, 1500, extra=padding))
    return inspect(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, extra: bytes = b"", idat: bytes = b"") -> bytes:
    """A PNG that is whole in structure, with *extra* chunks before its data; its pixels are never decoded."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", idat) + chunk(b"IEND", b"")
