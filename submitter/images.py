"""
Images in requests to providers: a local copy, streamed as base64 or as a multipart file, or a URL.

Nothing here reads a whole file into memory: bodies are streamed with their Content-Length known beforehand, may be
iterated again (a second try), and hold no file open between two chunks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from submitter.errors import TaskRefused
from submitter.image_files import CutOff, FileBytes, NotAnImage, measure
from submitter.vocabulary import Picture

USER_AGENT = "upscale-receiver/0.1"
CHUNK_BYTES = 3 * 128 * 1024
"""A multiple of three, so that base64 of the chunks is base64 of the file."""
_EXTENSIONS = {"image/jpeg": "jpg", "image/svg+xml": "svg"}


def inspect(path: Path, *, url: str | None = None, sha256: str | None = None) -> Picture:
    """
    Read the headers of the image at *path*, regardless of its name; raises `TaskRefused` and nothing else.

    Never decodes the picture, and refuses half a file. Reads the file once for its digest, unless *sha256* is known, so
    call it in a thread.
    """
    try:
        with path.open("rb") as file:
            measured = measure(FileBytes(file.fileno()))
            digest = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
    except OSError as exc:
        raise TaskRefused("the image file can't be read", field="image", code="not_an_image") from exc
    except CutOff as exc:
        raise TaskRefused(
            f"the image is cut off: {exc}; send the whole file", field="image", code="image_cut_off"
        ) from exc
    except NotAnImage as exc:
        raise TaskRefused(f"{exc}; send a JPEG, PNG or WEBP", field="image", code="not_an_image") from exc
    return Picture(
        path=path,
        url=url,
        content_type=measured.content_type,
        width=measured.width,
        height=measured.height,
        size=size,
        sha256=digest,
    )


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
        """Return the body's bytes for the file's chunk at *offset*; the file is not held open in between."""
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
    """Build a request without a body."""
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
    Build a request with the JSON *body*, and *picture*'s file as raw base64 (no `data:` prefix) at the key path *at*.

    Any value of *body* at that path is replaced.
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
    """Build a multipart POST of text *fields*, then *picture*'s file as the part named *part*."""
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
    # httpx adds no Host and no Content-Length to a request that is built with a stream.
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
    """Return a copy of *body* with *value* at the key path *at*."""
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
