"""Real upscaling with Pillow, off the event loop. Results are cached, since load tests repeat inputs and targets."""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

LARGEST_OUTPUT_PIXELS = 200_000_000
"""Our own limit where a provider documents none: it has to fit into a laptop's memory."""

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

_KEPT_RESULTS = 24


class NotAnImage(Exception):
    """The bytes can't be decoded."""


class TooLarge(Exception):
    """The result would be larger than a stand-in is willing to produce."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of an input; `format` in Pillow's terms (`JPEG`, `PNG`, `WEBP`, ...)."""

    format: str
    width: int
    height: int
    alpha: bool


@dataclass(frozen=True, slots=True)
class Target:
    """The desired result; `format` is `JPEG`, `PNG` or `WEBP`."""

    width: int
    height: int
    format: str


class Studio:
    """Two threads that decode, enlarge and encode."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._known: OrderedDict[tuple[str, Target | None], asyncio.Future[Any]] = OrderedDict()

    async def inspect(self, data: bytes) -> Shape:
        """Decode all of *data* and return its shape; raises `NotAnImage`."""
        shape: Shape = await self._once(data, None, lambda: _inspect(data))
        return shape

    async def upscale(self, data: bytes, target: Target) -> bytes:
        """Return the encoded result; raises `NotAnImage` or `TooLarge`."""
        if target.width * target.height > LARGEST_OUTPUT_PIXELS:
            raise TooLarge
        result: bytes = await self._once(data, target, lambda: _upscale(data, target))
        return result

    def close(self) -> None:
        self._known.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def _once(self, data: bytes, target: Target | None, work: Callable[[], Any]) -> Any:
        key = (hashlib.sha256(data).hexdigest(), target)
        future = self._known.get(key)
        if future is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sandbox-upscaling")
            future = self._known[key] = asyncio.get_running_loop().run_in_executor(self._pool, work)
            while len(self._known) > _KEPT_RESULTS:
                self._known.popitem(last=False)
        return await asyncio.shield(future)


def _inspect(data: bytes) -> Shape:
    try:
        with Image.open(io.BytesIO(data)) as image:
            shape = Shape(image.format or "", image.width, image.height, image.has_transparency_data)
            if image.width * image.height <= LARGEST_OUTPUT_PIXELS:
                image.load()
            return shape
    except _UNDECODABLE as exc:
        raise NotAnImage from exc


def _upscale(data: bytes, target: Target) -> bytes:
    try:
        with Image.open(io.BytesIO(data)) as image:
            alpha = image.has_transparency_data and target.format != "JPEG"
            plain = image.convert("RGBA" if alpha else "RGB")
        large = plain.resize((target.width, target.height), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        large.save(out, target.format, **_ENCODING[target.format])
        return out.getvalue()
    except _UNDECODABLE as exc:
        raise NotAnImage from exc


_ENCODING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90},
    "PNG": {"compress_level": 1},
    "WEBP": {"quality": 85, "method": 0},
}

_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
