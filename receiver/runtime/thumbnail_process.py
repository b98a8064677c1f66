"""
A process of its own that makes one thumbnail: `python -I thumbnail_process.py SOURCE TARGET SIDE`.

Hostile pictures attack decoders, so decoding is done here, where the system limits memory and time, and none of our
modules is loaded: no settings, no key, no database. It imports Pillow and the standard library, and nothing else. Exit
status 3: the picture would take too much memory; 1: it can't be decoded.
"""

from __future__ import annotations

import contextlib
import os
import sys

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 30
MAX_DECODED_BYTES = 400 << 20
"""The limit for the decoded picture: JPEG is decoded at a fraction of its size, other formats in full."""
TOO_LARGE = 3
_NICENESS = 15
"""Downloads and callbacks have priority over thumbnails."""


def main(source: str, target: str, side: int) -> int:
    """Write a WEBP of at most *side* by *side* pixels, upright."""
    _limit()
    from PIL import Image, ImageOps, PngImagePlugin  # after the limits, so that they hold for all of it

    Image.MAX_IMAGE_PIXELS = None  # memory is the limit
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20
    with Image.open(source) as opened:
        opened.draft("RGB", (side, side))
        if opened.width * opened.height * 4 > MAX_DECODED_BYTES:
            return TOO_LARGE
        opened.thumbnail((side, side))
        upright = ImageOps.exif_transpose(opened)
        alpha = upright.has_transparency_data
        upright.convert("RGBA" if alpha else "RGB").save(target, "WEBP", quality=80)
    return 0


def _limit() -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICENESS)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except MemoryError:
        sys.exit(TOO_LARGE)
    except Exception:  # noqa: BLE001 - decoders raise nearly anything on hostile bytes
        sys.exit(1)
