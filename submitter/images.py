"""
What an image is to a provider: a local copy, streamed as base64, as a multipart file, or named by a URL.

Nothing here reads a whole file into memory: bodies are streamed with their Content-Length known beforehand, may be
iterated again (a second try), and hold no file open between two chunks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import threading
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from PIL import Image as pillow

from submitter.errors import TaskRefused
from submitter.vocabulary import Picture

USER_AGENT = "upscale-receiver/0.1"
CHUNK_BYTES = 3 * 128 * 1024
"""A multiple of three, so that base64 of the chunks is base64 of the file."""
MAX_PIXELS = 178_956_970
"""Beyond this no provider takes a picture, and opening it is an attack on whoever decodes it."""
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "AVIF")
_CONTENT_TYPES = {"MPO": "image/jpeg"}
_EXTENSIONS = {"image/jpeg": "jpg", "image/svg+xml": "svg"}


def inspect(path: Path, *, url: str | None = None) -> Picture:
    """
    Look at the header of the file at *path*, whatever its name says; raises `TaskRefused` and nothing else.

    Never decodes the picture. Reads the file once for its digest, so call it in a thread for large ones.
    """
    try:
        with path.open("rb") as file:
            content_type, width, height = _sniff(file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as exc:
        raise TaskRefused("the image file can't be read", field="image", code="not_an_image") from exc
    return Picture(path=path, url=url, content_type=content_type, width=width, height=height, size=size, sha256=digest)


def magic_type(data: bytes) -> str | None:
    """The image type that the first bytes of *data* claim, None if they claim none that a provider sends."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


# --- Requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file's bytes in the middle of a body, as they are or as base64."""

    path: Path
    size: int
    base64: bool = False

    @property
    def length(self) -> int:
        return (self.size + 2) // 3 * 4 if self.base64 else self.size

    def chunk(self, offset: int) -> bytes:
        """The body's bytes for the file's chunk at *offset*; the file is not held open in between."""
        wanted = min(CHUNK_BYTES, self.size - offset)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(wanted)
        except OSError as exc:
            raise TaskRefused("the image file is gone", field="image", code="image_gone") from exc
        if len(data) != wanted:
            raise TaskRefused("the image file changed after it was checked", field="image", code="image_gone")
        return base64.b64encode(data) if self.base64 else data


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request body of pieces in memory and files on disk. Asynchronous reading happens off the event loop."""

    def __init__(self, pieces: Sequence[bytes | FilePart]) -> None:
        self.pieces = tuple(pieces)
        self.length = sum(len(piece) if isinstance(piece, bytes) else piece.length for piece in self.pieces)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                for offset in range(0, piece.size, CHUNK_BYTES):
                    yield piece.chunk(offset)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                for offset in range(0, piece.size, CHUNK_BYTES):
                    yield await asyncio.to_thread(piece.chunk, offset)


def plain_request(method: str, url: str | httpx.URL, headers: Mapping[str, str]) -> httpx.Request:
    """A request without a body."""
    return httpx.Request(method, url, headers=_headers(headers))


def json_request(
    method: str,
    url: str | httpx.URL,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    *,
    picture: Picture | None = None,
    at: Sequence[str] = ("request", "image_base64"),
) -> httpx.Request:
    """
    A request with the JSON *body*; with *picture*, its file as raw base64 (no `data:` prefix) under the key path *at*.

    Whatever *body* holds at that path is replaced.
    """
    sent_headers = _headers(headers, content_type="application/json")
    if picture is None:
        return httpx.Request(method, url, headers=sent_headers, content=_json_bytes(body))
    marker = secrets.token_hex(16)
    before, after = _json_bytes(_placed(body, tuple(at), marker)).split(marker.encode())
    return _streamed(method, url, sent_headers, Body([before, _file_part(picture, as_base64=True), after]))


def multipart_request(
    url: str | httpx.URL,
    headers: Mapping[str, str],
    fields: Mapping[str, str],
    *,
    picture: Picture | None = None,
    part: str = "image",
) -> httpx.Request:
    """A multipart POST of text *fields*, then *picture*'s file as the part named *part*."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes | FilePart] = []
    for name, value in fields.items():
        pieces.append(_part_head(boundary, name) + b"\r\n\r\n" + value.encode("utf-8", "replace") + b"\r\n")
    if picture is not None:
        extension = _EXTENSIONS.get(picture.content_type, picture.content_type.rpartition("/")[2])
        head = f'; filename="image.{extension}"\r\nContent-Type: {picture.content_type}\r\n\r\n'
        pieces += [_part_head(boundary, part) + head.encode(), _file_part(picture, as_base64=False), b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    sent_headers = _headers(headers, content_type=f"multipart/form-data; boundary={boundary}")
    return _streamed("POST", url, sent_headers, Body(pieces))


def _streamed(method: str, url: str | httpx.URL, headers: dict[str, str], body: Body) -> httpx.Request:
    url = httpx.URL(url)
    # A request that is given a stream gets no Host and no Content-Length by itself.
    headers = {"Host": url.netloc.decode("ascii"), **headers, "Content-Length": str(body.length)}
    return httpx.Request(method, url, headers=headers, stream=body)


def _headers(headers: Mapping[str, str], *, content_type: str | None = None) -> dict[str, str]:
    ours = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    if content_type is not None:
        ours["Content-Type"] = content_type
    return {**ours, **headers}


def _json_bytes(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise TaskRefused("the options can't be written as JSON", field="options", code="invalid_options") from exc


def _placed(body: Mapping[str, Any], at: tuple[str, ...], value: str) -> dict[str, Any]:
    """A copy of *body* with *value* under the key path *at*."""
    key, *rest = at
    if not rest:
        return {**body, key: value}
    inner = body.get(key)
    return {**body, key: _placed(inner if isinstance(inner, Mapping) else {}, tuple(rest), value)}


def _part_head(boundary: str, name: str) -> bytes:
    quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted}"'.encode("utf-8", "replace")


def _file_part(picture: Picture, *, as_base64: bool) -> FilePart:
    if picture.path is None:
        raise TaskRefused("this provider needs the image file, not only its address", field="image", code="no_file")
    return FilePart(picture.path, picture.size, as_base64)


# --- Sniffing ---------------------------------------------------------------------------------------------------------

_pillow_lock = threading.Lock()
"""Silencing warnings changes the whole process, and two threads doing so at once can leave it changed."""


def _sniff(file: BinaryIO) -> tuple[str, int, int]:
    head = file.read(64)
    found = None
    if magic_type(head) == "image/webp":
        found = "image/webp", *_webp_size(head)
    elif head:
        found = _pillow_header(file)
    if found is None or found[1] < 1 or found[2] < 1:
        what = "is empty" if not head else "is not an image, or its header is broken"
        raise TaskRefused(f"the file {what}; send a JPEG, PNG or WEBP", field="image", code="not_an_image")
    if found[1] * found[2] > MAX_PIXELS:
        raise _too_large()
    return found


def _pillow_header(file: BinaryIO) -> tuple[str, int, int] | None:
    file.seek(0)
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with pillow.open(file, formats=_FORMATS) as opened:
                kind, (width, height) = opened.format or "", opened.size
        except pillow.DecompressionBombError as exc:
            raise _too_large() from exc
        except Exception:  # noqa: BLE001 - decoders raise nearly anything on hostile bytes; all of it means "no"
            return None
    return _CONTENT_TYPES.get(kind) or pillow.MIME.get(kind, "application/octet-stream"), width, height


def _webp_size(head: bytes) -> tuple[int, int]:
    """
    Canvas size from a WEBP's first chunk; (0, 0) if it makes no sense.

    Pillow would read the whole file and set up a decoder with two canvases of memory; the size is in the first bytes.
    """
    kind, data = head[12:16], head[20:30]
    if len(data) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    return 0, 0


def _too_large() -> TaskRefused:
    return TaskRefused(
        f"the picture has more than {MAX_PIXELS} pixels; send a smaller one", field="image", code="image_too_large"
    )
