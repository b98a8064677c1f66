"""Compressed data that swells."""

from __future__ import annotations

import zlib
from functools import cache

GZIP = 31
ZLIB = 15
_PIECE = bytes(1 << 20)


@cache
def mebibytes(count: int, *, form: int = GZIP) -> bytes:
    """Compress *count* MiB of zeros, without ever holding them: a test's memory is its subject's."""
    compressor = zlib.compressobj(1, wbits=form)
    return b"".join(compressor.compress(_PIECE) for _ in range(count)) + compressor.flush()
