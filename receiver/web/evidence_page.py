"""
A page of evidence as JSON, whatever it contains: bounded in bytes, written piece by piece.

Pages are limited in bytes as well as items. A body that is larger by itself (an image as an answer) is read, masked and
encoded in pieces, so that it is never in memory as a whole and no step holds up the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from receiver.domain.evidence import Evidence
from receiver.domain.redaction import evidence_to_json, redact
from receiver.store.blobs import Blobs
from receiver.store.evidence import EvidenceLog

_PAGE_BYTES = 2 * 1024 * 1024
_ROWS_AT_ONCE = 8
_LARGE_BYTES = 256 * 1024
_PIECE_BYTES = 192 * 1024
_LONGEST_MASKED = 8192
_BETWEEN = re.compile(r"[^A-Za-z0-9_.\-\\/%:]")
"""A character that no token, key or address contains: no masked text extends across it."""


async def evidence_page(log: EvidenceLog, job_id: str, *, after: int, limit: int) -> tuple[list[Evidence], str | None]:
    """Return a job's evidence after the id *after*, up to *limit* pieces or `_PAGE_BYTES`, and the next cursor."""
    page: list[Evidence] = []
    size = 0
    while True:
        place = (page[-1].id or 0) if page else after
        found = await log.of(job_id, after=place, limit=min(_ROWS_AT_ONCE, limit + 1 - len(page)))
        for evidence in found:
            if len(page) == limit or size > _PAGE_BYTES:
                return page, str(page[-1].id)
            page.append(evidence)
            size += len(evidence.body) + len(evidence.headers_json) + (_PAGE_BYTES if evidence.body_name else 0)
        if not found:
            return page, None


async def page_as_json(
    page: Sequence[Evidence], following: str | None, *, blobs: Blobs, keys: Sequence[str]
) -> AsyncIterator[bytes]:
    """Yield the text of `{"items": […], "next": …}`, without *keys* and tokens."""
    yield b'{"items":['
    for n, evidence in enumerate(page):
        if n:
            yield b","
        path = None if evidence.body_name is None else blobs.body_path(evidence.body_name)
        if path is None and len(evidence.body) <= _LARGE_BYTES:
            yield await asyncio.to_thread(_whole, evidence, keys)
        else:
            async for piece in _in_pieces(evidence, path, keys):
                yield piece
    yield b'],"next":' + _json(following) + b"}"


def _whole(evidence: Evidence, keys: Sequence[str]) -> bytes:
    return _json(evidence_to_json(evidence, keys))


async def _in_pieces(evidence: Evidence, path: Path | None, keys: Sequence[str]) -> AsyncIterator[bytes]:
    shown = evidence_to_json(replace(evidence, body=b""), keys)
    del shown["body"]
    yield _json(shown)[:-1]
    is_text = await asyncio.to_thread(_is_utf8, evidence, path)
    yield b',"body":"' if is_text else b',"body":null,"body_base64":"'
    pieces = _masked(_pieces(evidence, path), "utf-8" if is_text else "latin-1", keys)
    encoded = (_escaped(text) for text in pieces) if is_text else _in_base64(pieces)
    while (piece := await asyncio.to_thread(next, encoded, None)) is not None:
        yield piece
    yield b'"}'


def _pieces(evidence: Evidence, path: Path | None) -> Iterator[bytes]:
    if path is None:
        for at in range(0, len(evidence.body), _PIECE_BYTES):
            yield evidence.body[at : at + _PIECE_BYTES]
        return
    try:
        file: BinaryIO = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _is_utf8(evidence: Evidence, path: Path | None) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in _pieces(evidence, path):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _masked(pieces: Iterator[bytes], encoding: str, keys: Sequence[str]) -> Iterator[str]:
    """Yield the masked text of *pieces*; each is cut where no masked text can extend across."""
    decoder = codecs.getincrementaldecoder(encoding)()
    held = ""
    for piece in pieces:
        text = held + decoder.decode(piece)
        at = len(text)
        for found in _BETWEEN.finditer(text, max(len(text) - _LONGEST_MASKED, 0)):
            at = found.end()
        yield redact(text[:at], keys)
        held = text[at:]
    yield redact(held, keys)


def _escaped(text: str) -> bytes:
    return _json(text)[1:-1]


def _in_base64(pieces: Iterator[str]) -> Iterator[bytes]:
    left = b""
    for text in pieces:
        data = left + text.encode("latin-1")
        whole = len(data) // 3 * 3
        yield base64.b64encode(data[:whole])
        left = data[whole:]
    yield base64.b64encode(left)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
