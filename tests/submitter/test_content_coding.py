"""Labels are hints, real gzip is undone, and the limit counts decoded bytes."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import pytest

from submitter.content_coding import PIECE_BYTES, ContentRefused, ContentTooLarge, decoded
from tests.support.bombs import mebibytes
from tests.support.pictures import png

PICTURE = png(200, 160)
LONG = bytes(range(256)) * 4000


async def parts(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def undone(data: bytes, label: str, *, size: int = 1000, limit: int = 10 << 20) -> bytes:
    return b"".join([piece async for piece in decoded(parts(data, size), label, max_bytes=limit)])


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    "label",
    ["", "identity", "aws-chunked", "utf-8", "none", "binary", "identity, aws-chunked", "gzip", "br", "deflate"],
)
async def test_plain_bytes_are_plain_whatever_their_label(label: str, size: int) -> None:
    assert await undone(PICTURE, label, size=size) == PICTURE


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("label", "data"),
    [
        ("gzip", gzip.compress(LONG)),
        ("GZIP, aws-chunked", gzip.compress(LONG)),
        ("x-gzip", gzip.compress(LONG[:500_000]) + gzip.compress(LONG[500_000:])),
        ("gzip", gzip.compress(LONG) + bytes(512)),
        ("deflate", zlib.compress(LONG)),
    ],
)
async def test_real_compression_is_undone(label: str, data: bytes, size: int) -> None:
    assert await undone(data, label, size=size) == LONG


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("label", ["", "gzip"])
async def test_a_tiny_body_is_what_it_is(label: str, length: int) -> None:
    assert await undone(b"{}"[:length], label) == b"{}"[:length]


@pytest.mark.parametrize("cut", [3, 20, -9, -1])
async def test_a_cut_compressed_body_is_refused(cut: int) -> None:
    with pytest.raises(ContentRefused, match="cut off"):
        await undone(gzip.compress(LONG)[:cut], "gzip")


async def test_a_broken_compressed_body_is_refused() -> None:
    with pytest.raises(ContentRefused, match="broken"):
        await undone(b"\x1f\x8bnot at all gzip", "gzip")


@pytest.mark.parametrize("label", ["gzip, gzip", "gzip, br", "deflate,gzip", "zstd, aws-chunked, gzip"])
async def test_stacked_codings_are_refused(label: str) -> None:
    with pytest.raises(ContentRefused, match="more than once"):
        await undone(gzip.compress(gzip.compress(bytes(1 << 20))), label)


async def test_a_bomb_costs_a_piece_and_stops_at_the_limit() -> None:
    bomb = mebibytes(256)
    made = 0
    tracemalloc.start()
    try:
        with pytest.raises(ContentTooLarge):
            async for piece in decoded(parts(bomb, len(bomb)), "gzip", max_bytes=32 << 20):
                made += len(piece)
                assert len(piece) <= PIECE_BYTES
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made <= 32 << 20
    assert peak < 4 << 20


async def test_plain_bytes_are_counted_too() -> None:
    with pytest.raises(ContentTooLarge):
        await undone(LONG, "aws-chunked", limit=len(LONG) - 1)
    assert await undone(LONG, "aws-chunked", limit=len(LONG)) == LONG
