"""
The content of `POST /v1/jobs`, read from its JSON; a picture in it goes to a file and not through the parser.

Parsing or decoding tens of megabytes in one call would hold the interpreter, and with it every callback, for the whole
time, in whichever thread it runs. So the text of a large picture is cut out of the body unparsed and decoded piece by
piece; the rest is small.
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
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from receiver.store.blobs import Blobs
from receiver.web.body import parse_document
from receiver.web.problems import Problem

MAX_INPUT_BYTES = 100 * 1024 * 1024
_SMALL_BYTES = 256 * 1024
_LONGEST_FILE_NAME = 255
_PIECE = 4 * 64 * 1024
_MAX_REST_BYTES = 1024 * 1024
"""The limit for JSON without its picture: parsed, it takes up to fifty times as much memory."""
_MOST_CANDIDATES = 100
_PICTURE = re.compile(rb'"base64"\s*:\s*"')
_DATA_URL = re.compile(rb"data:[^,]{0,100};base64,", re.IGNORECASE)
_WHITE = b" \t\r\n"
_ESCAPES = {b"\\/": b"/", b"\\n": b"", b"\\r": b"", b"\\t": b""}
"""The escapes that a base64 text may have in JSON, and their meaning here."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """
    A parsed request for a job. Exactly one of `url`, `part` is set; `part` is a complete file of our own.

    `file_name` is the name of the image at its source.
    """

    document: Mapping[str, Any]
    url: str | None
    part: Path | None
    part_sha256: str | None
    file_name: str | None = None

    def digest(self) -> str:
        """Return the digest that identifies equal requests: of the JSON without the picture, and of the picture."""
        rest = {name: value for name, value in self.document.items() if name != "image"}
        canonical = json.dumps([rest, self.url, self.part_sha256], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def job_request_from_json(body: bytes, blobs: Blobs) -> JobRequest:
    """Parse a request with an image as `{"url"}` or `{"base64"}`, which is written to a part file. Run in a thread."""
    cut = _cut(body)
    document = parse_document(_small(body if cut is None else cut.rest))
    if cut is not None and document.get("image") != {"base64": cut.mark}:
        # The text cut out was not a picture: the parser gets all of it.
        cut, document = None, parse_document(_small(body))
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
        return JobRequest(document, value, None, None, _file_name_of_url(value))
    text = memoryview(value.encode()) if cut is None else cut.text
    pieces = _decoded(text, escaped=cut is not None)
    return JobRequest(document, None, *_kept(pieces, blobs))


def file_name_of(path: str) -> str | None:
    """Return the last part of *path*, with any slashes, without control characters; at most 255 characters."""
    name = "".join(letter for letter in re.split(r"[/\\]", path)[-1] if letter.isprintable()).strip()
    return name[:_LONGEST_FILE_NAME] or None


def _file_name_of_url(url: str) -> str | None:
    try:
        return file_name_of(unquote(urlsplit(url).path))
    except ValueError:  # no URL; fetching it says so
        return None


@dataclass(frozen=True, slots=True)
class _Cut:
    """A body with *mark* in place of a long text, which has no escapes except `_ESCAPES`."""

    rest: bytes
    mark: str
    text: memoryview


def _small(text: bytes) -> bytes:
    if len(text) > _MAX_REST_BYTES:
        raise Problem(
            413,
            "too_large",
            f"apart from its picture, the JSON may have at most {_MAX_REST_BYTES} bytes",
            remedy="send the picture as image.base64, or multipart with the file",
        )
    return text


def _cut(body: bytes) -> _Cut | None:
    if len(body) <= _SMALL_BYTES:
        return None
    for found in islice(_PICTURE.finditer(body), _MOST_CANDIDATES):
        start, end = found.end(), body.find(b'"', found.end())
        if end - start < _SMALL_BYTES // 2:
            continue
        # Each count is one call over the whole text, which blocks everything else: most texts need none.
        if body.find(b"\\", start, end) >= 0 and body.count(b"\\", start, end) != sum(
            body.count(escape, start, end) for escape in _ESCAPES
        ):
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
            remedy="send base64, standard or URL-safe, with or without a data: prefix",
        ) from exc
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part, digest.hexdigest()


def _decoded(text: memoryview, *, escaped: bool) -> Iterator[bytes]:
    """
    Decode *text* piece by piece: of either alphabet, padded or not. A `data:` prefix and white space are accepted.

    *escaped*: the text is as written between the quotes of JSON.
    """
    head = _DATA_URL.match(text[:200])
    at, left, held, ended, seen = (head.end() if head else 0), b"", b"", False, set[bytes]()
    while at < len(text):
        raw, held = held + bytes(text[at : at + _PIECE]), b""
        at += _PIECE
        if escaped and b"\\" in raw:
            if raw.endswith(b"\\") and at < len(text):
                raw, held = raw[:-1], b"\\"
            for escape, meant in _ESCAPES.items():
                raw = raw.replace(escape, meant)
        piece = left + raw.translate(None, _WHITE)
        if ended and piece:
            raise ValueError("text after the padding")
        whole = len(piece) // 4 * 4
        if at >= len(text) and whole < len(piece) and b"=" not in piece[whole:]:
            piece += b"=" * (4 - len(piece) % 4)  # of one character alone, no decoder makes anything
            whole = len(piece)
        seen |= {sign for sign in (b"+", b"/", b"-", b"_") if sign in piece}
        if seen & {b"+", b"/"} and seen & {b"-", b"_"}:
            raise ValueError("of two alphabets")
        yield base64.b64decode(piece[:whole], altchars=b"-_", validate=True)
        left = piece[whole:]
        if left and at >= len(text):
            raise ValueError("not in groups of four")
        ended = ended or piece[:whole].endswith(b"=")
        if ended and left:
            raise ValueError("text after the padding")
