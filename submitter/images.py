"""
What an image is to a provider: a local copy, streamed as base64, as a multipart file, or named by a URL.

Nothing here reads a whole file into memory: bodies are streamed with their Content-Length known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """
    An input image, sniffed. `path` is our local copy (None where only a URL is known); `url` is a public address of
    the same bytes (None where there is none). Width and height are in pixels, `size` in bytes.
    """

    path: Path | None
    url: str | None
    content_type: str
    width: int
    height: int
    size: int
    sha256: str
