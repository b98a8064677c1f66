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
    path.write_bytes(png_header(1500, 1500) + b"\0" * (size_bytes - 33 - 12))
    return inspect(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has hardly more."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(body)) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
