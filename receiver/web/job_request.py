"""
What a `POST /v1/jobs` asks for, read from its JSON; a picture in it goes to a file and not through the parser.

Parsing or decoding tens of megabytes in one call would hold the interpreter, and with it every callback, as long as it
takes, in whichever thread it runs. So the text of a large picture is cut out of the body unread and decoded piece by
piece; what is left is small.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from receiver.store.blobs import Blobs
from receiver.web.body import parse_document
from receiver.web.problems import Problem

MAX_INPUT_BYTES = 100 * 1024 * 1024
_SMALL_BYTES = 256 * 1024
_PIECE = 4 * 64 * 1024
_PICTURE = re.compile(rb'"base64"\s*:\s*"')
_DATA_URL = re.compile(rb"data:[^,]{0,100};base64,")
_WHITE = b" \t\r\n"
_CUT = _WHITE + b"\\"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A parsed request for a job. Exactly one of `url`, `part` is set; `part` is a complete file of ours."""

    document: Mapping[str, Any]
    url: str | None
    part: Path | None
    part_sha256: str | None

    def digest(self) -> str:
        """What decides whether two asks are the same: the JSON without the picture, and the picture's own digest."""
        rest = {name: value for name, value in self.document.items() if name != "image"}
        canonical = json.dumps([rest, self.url, self.part_sha256], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def job_request_from_json(body: bytes, blobs: Blobs) -> JobRequest:
    """An ask whose image is `{"url"}` or `{"base64"}`. Writes the decoded image to a part file; call it in a thread."""
    cut = _cut(body)
    document = parse_document(body if cut is None else cut.rest)
    if cut is not None and document.get("image") != {"base64": cut.mark}:
        # What was cut out is something else: all of it for the parser, then.
        cut, document = None, parse_document(body)
    image = document.get("image")
    if not isinstance(image, dict) or len(image) != 1 or next(iter(image)) not in ("url", "base64"):
        raise Problem(
            422,
            "invalid_image",
            'image must be {"url": …} or {"base64": …}',
            field="image",
            remedy="give exactly one of the two, or send multipart with the file",
        )
    ((kind, value),) = image.items()
    if not isinstance(value, str) or not value:
        raise Problem(
            422, "invalid_image", f"image.{kind} must be text", field=f"image.{kind}", remedy="send it as a JSON string"
        )
    if kind == "url":
        return JobRequest(document, value, None, None)
    pieces = _decoded(memoryview(value.encode()), ignored=_WHITE) if cut is None else _decoded(cut.text, ignored=_CUT)
    return JobRequest(document, None, *_kept(pieces, blobs))


@dataclass(frozen=True, slots=True)
class _Cut:
    """A body with *mark* in the place of a long text, which has no escapes but `\\/`."""

    rest: bytes
    mark: str
    text: memoryview


def _cut(body: bytes) -> _Cut | None:
    if len(body) <= _SMALL_BYTES:
        return None
    for found in _PICTURE.finditer(body):
        start, end = found.end(), body.find(b'"', found.end())
        if end - start < _SMALL_BYTES // 2:
            continue
        if body.find(b"\\", start, end) > 0 and body.count(b"\\", start, end) != body.count(b"\\/", start, end):
            continue
        mark = secrets.token_hex(16)
        return _Cut(body[:start] + mark.encode() + body[end:], mark, memoryview(body)[start:end])
    return None


def _kept(pieces: Iterator[bytes], blobs: Blobs) -> tuple[Path, str]:
    part = blobs.new_part()
    digest = hashlib.sha256()
    try:
        with part.open("wb") as target:
            for data in pieces:
                digest.update(data)
                target.write(data)
    except (binascii.Error, ValueError) as exc:
        part.unlink(missing_ok=True)
        raise Problem(
            422,
            "invalid_image",
            "image.base64 is not base64",
            field="image.base64",
            remedy="send standard base64, with or without a data: prefix",
        ) from exc
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part, digest.hexdigest()


def _decoded(text: memoryview, *, ignored: bytes) -> Iterator[bytes]:
    """The bytes that *text* stands for, piece by piece. A `data:` prefix and the *ignored* characters are let pass."""
    head = _DATA_URL.match(text[:200])
    at, left = (head.end() if head else 0), b""
    while at < len(text):
        piece = left + bytes(text[at : at + _PIECE]).translate(None, ignored)
        at += _PIECE
        whole = len(piece) // 4 * 4 if at < len(text) else len(piece)
        yield base64.b64decode(piece[:whole], validate=True)
        left = piece[whole:]
        if whole % 4:
            raise ValueError("not in groups of four")
        if piece[:whole].endswith(b"=") and (left or bytes(text[at:]).translate(None, ignored)):
            raise ValueError("text after the padding")
