"""
The `Content-Encoding` of an answer: decoded within a limit, and ignored where the bytes say otherwise.

We never request a compressed answer. Some arrive anyway, and storage hosts leave labels that are no compression at all
(`aws-chunked`, `utf-8`, `none`), or label plain bytes as gzip. So a label is a hint: gzip and zlib are recognised by
their first bytes, everything else is taken as it is. The limit counts decoded bytes as they are produced, a piece at a
time: a stack of codings can swell a kilobyte to gigabytes, and is refused.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterator

PIECE_BYTES = 64 * 1024
_EITHER = zlib.MAX_WBITS | 32  # gzip or zlib, as the first bytes say
_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})


class ContentRefused(ValueError):
    """The body can't be decoded as sent. `permanent`: another try won't help (it is encoded more than once)."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class ContentTooLarge(ContentRefused):
    """The body is larger than allowed, once decoded."""


def codings(content_encoding: str) -> list[str]:
    """Return the real content codings in a header's value, without others (`identity`, `aws-chunked`, `utf-8`)."""
    names = [name.strip().lower() for name in content_encoding.split(",")]
    return [name for name in names if name in _CODINGS]


async def decoded(parts: AsyncIterable[bytes], content_encoding: str, *, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """
    Decode the body in *parts*; yields decoded pieces of at most `PIECE_BYTES`.

    Raises `ContentTooLarge` beyond *max_bytes*, counted as they are made, and `ContentRefused`.
    """
    applied = codings(content_encoding)
    if len(applied) > 1:
        raise ContentRefused(f"the body is compressed more than once ({', '.join(applied)})", permanent=True)
    inflater = _Inflater() if applied and applied[0] in ("gzip", "x-gzip", "deflate") else None
    size = 0
    async for part in parts:
        for piece in inflater.feed(part) if inflater else (part,):
            size += len(piece)
            if size > max_bytes:
                raise ContentTooLarge(f"larger than {max_bytes} bytes", permanent=True)
            yield piece
            if inflater:
                await asyncio.sleep(0)  # one part may hold a thousand pieces
    if inflater:
        for piece in inflater.end():  # at most one byte
            yield piece


class _Inflater:
    """Decodes gzip, also of several members, and zlib; passes through everything else."""

    def __init__(self) -> None:
        self._head: bytes | None = b""
        """The first bytes, until there are enough of them to judge."""
        self._plain = False
        self._stream = zlib.decompressobj(_EITHER)
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._plain:
            yield data
            return
        if self._head is not None:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._head = self._head, None
            self._plain = not _compressed(data)
            if self._plain:
                yield data
                return
        while True:
            if self._ended:
                if not data.startswith(b"\x1f"):
                    return  # padding after the last member
                self._stream, self._ended = zlib.decompressobj(_EITHER), False
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as exc:
                raise ContentRefused("the compressed body is broken") from exc
            if piece:
                yield piece
            self._ended = self._stream.eof
            data = self._stream.unused_data if self._ended else self._stream.unconsumed_tail
            if not data and (self._ended or len(piece) < PIECE_BYTES):
                return

    def end(self) -> Iterator[bytes]:
        if self._head:
            yield self._head
        elif not self._plain and self._head is None and not self._ended:
            raise ContentRefused("the compressed body is cut off")


def _compressed(head: bytes) -> bool:
    """Return whether a body begins as gzip or zlib do."""
    return head[:2] == b"\x1f\x8b" or (head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0)
