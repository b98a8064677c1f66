"""
A process of its own that measures a picture: `python -I compare_process.py SOURCE WIDTH HEIGHT [PREVIEW]`.

Writes the sharpness at WIDTH by HEIGHT pixels to standard output, as a number or `null`, and a smaller WEBP to PREVIEW
if that is named. Decoding is done here, where the system limits memory and time. It imports Pillow and the standard
library, and nothing else. Exit status 3: the picture would take too much memory; 1: it can't be decoded.

Sharpness is the variance of the Laplacian of the luminance after a Gaussian blur of one pixel. Pictures of different
sizes are scaled to one size first, and of that at most `SIDE` by `SIDE` pixels in the middle are used; the blur takes
away what scaling itself would change. Turning or mirroring a picture does not change it, so it needs no orientation.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from PIL import Image as images
from PIL import ImageMath, ImageOps, PngImagePlugin
from PIL.Image import Image, Resampling

SIDE = 1536
PREVIEW_SIDE = 2400
MEMORY_BYTES = 1 << 30
CPU_SECONDS = 60
MAX_DECODED_BYTES = 400 << 20
TOO_LARGE = 3
_FEWEST_PIXELS = 7
"""What blur and Laplacian leave at least a pixel of."""


def main(source: str, width: int, height: int, preview: str | None = None) -> int:
    _limit()
    images.MAX_IMAGE_PIXELS = None  # memory is the limit
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20
    with images.open(source) as opened:
        if opened.width * opened.height * 4 > MAX_DECODED_BYTES:
            return TOO_LARGE
        sys.stdout.write(json.dumps(sharpness(opened, width, height)))
        if preview is not None:
            opened.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
            upright = ImageOps.exif_transpose(opened)
            alpha = upright.has_transparency_data
            upright.convert("RGBA" if alpha else "RGB").save(preview, "WEBP", quality=90)
    return 0


def sharpness(picture: Image, width: int, height: int) -> float | None:
    """The sharpness of *picture* as if it had *width* by *height* pixels; None for samples of more than 8 bits."""
    if picture.mode[0] in "IF" or min(width, height) < _FEWEST_PIXELS:
        return None
    if (picture.width > picture.height) != (width > height):
        width, height = height, width
    window = min(width, SIDE), min(height, SIDE)
    across, down = picture.width / width, picture.height / height
    left, top = (width - window[0]) / 2 * across, (height - window[1]) / 2 * down
    right, bottom = left + window[0] * across, top + window[1] * down
    whole = (
        math.floor(left),
        math.floor(top),
        min(math.ceil(right), picture.width),
        min(math.ceil(bottom), picture.height),
    )
    part = picture.crop(whole).convert("RGB").convert("L").convert("F")
    box = (
        left - whole[0],
        top - whole[1],
        min(right - whole[0], part.width),
        min(bottom - whole[1], part.height),
    )
    return _variance_of_laplacian(part.resize(window, Resampling.LANCZOS, box=box))


def _variance_of_laplacian(luminance: Image) -> float:
    """*luminance* has float samples: neither the blur nor the Laplacian is rounded or cut."""
    for _ in range(2):  # (1 2 1) / 4 both ways, twice: the standard deviation of this blur is one pixel
        luminance = _combined(luminance, lambda a, b, c: (a + b * 2 + c) / 4, across=True)
        luminance = _combined(luminance, lambda a, b, c: (a + b * 2 + c) / 4, across=False)
    bends = [_combined(luminance, lambda a, b, c: b * 2 - a - c, across=across) for across in (True, False)]
    width, height = luminance.width - 2, luminance.height - 2
    inside = bends[0].crop((0, 1, width, height + 1)), bends[1].crop((1, 0, width + 1, height))
    laplacian = ImageMath.lambda_eval(lambda of: of["x"] + of["y"], x=inside[0], y=inside[1])
    squares = ImageMath.lambda_eval(lambda of: of["x"] * of["x"], x=laplacian)
    return _mean(squares) - _mean(laplacian) ** 2


def _combined(picture: Image, formula: Callable[[Any, Any, Any], Any], *, across: bool) -> Image:
    """*formula* of each pixel (second) and its two neighbours; those without two are left out."""
    x, y = (1, 0) if across else (0, 1)
    width, height = picture.width - 2 * x, picture.height - 2 * y
    a, b, c = (picture.crop((n * x, n * y, n * x + width, n * y + height)) for n in range(3))
    combined: Image = ImageMath.lambda_eval(lambda of: formula(of["a"], of["b"], of["c"]), a=a, b=b, c=c)
    return combined


def _mean(picture: Image) -> float:
    value = picture.resize((1, 1), Resampling.BOX).getpixel((0, 0))
    return float(value) if isinstance(value, int | float) else 0.0


def _limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
    except MemoryError:
        sys.exit(TOO_LARGE)
    except Exception:  # noqa: BLE001 - decoders raise nearly anything on hostile bytes
        sys.exit(1)
