"""Files that never change, as responses: from the disk or from the object store, with ranges, names and tags."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import structlog
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from receiver.store.object_store import ObjectStore

log = structlog.get_logger("receiver.images")

_FOR_EVER = "private, max-age=31536000, immutable"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


async def file_response(request: Request, path: Path, content_type: str, *, name: str, tag: str | None) -> Response:
    """
    Respond with a file on our disk, or 304. *tag* identifies its content; a browser saves it as *name*.

    Raises FileNotFoundError.
    """
    headers = _headers(tag)
    found = await asyncio.to_thread(path.stat)
    if _known(request, headers):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        path,
        media_type=content_type,
        headers=headers,
        stat_result=found,
        filename=name,
        content_disposition_type="inline",
    )


async def object_response(
    request: Request, objects: ObjectStore, key: str, content_type: str, *, name: str, tag: str | None
) -> Response:
    """
    An object, streamed through us, or 304; one range at a time is served.

    Its first bytes are there before the answer begins: FileNotFoundError if it is gone by then.
    """
    headers = _headers(tag)
    size = await objects.size(key)
    if _known(request, headers):
        return Response(status_code=304, headers=headers)
    headers |= {"accept-ranges": "bytes", "content-disposition": f'inline; filename="{name}"'}
    start, end, status = 0, size, 200
    asked = _range(request, headers, size)
    if asked is not None:
        start, end = asked
        if start >= end:
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        status = 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=content_type)
    pieces = objects.read(key, start, end)
    beginning = await anext(pieces, b"")
    return StreamingResponse(_joined(beginning, pieces, key), status, headers=headers, media_type=content_type)


async def _joined(beginning: bytes, rest: AsyncGenerator[bytes, None], key: str) -> AsyncGenerator[bytes, None]:
    """The pieces of an object. One that fails in the middle ends its connection: the length that was said is missed."""
    yield beginning
    try:
        async with aclosing(rest):
            async for piece in rest:
                yield piece
    except OSError as exc:
        log.warning("object_cut_off", object=key, reason=exc.strerror)
        raise


def _headers(tag: str | None) -> dict[str, str]:
    headers = {"x-content-type-options": "nosniff", "cache-control": _FOR_EVER}
    return headers | ({"etag": f'"{tag}"'} if tag else {})


def _known(request: Request, headers: dict[str, str]) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "etag" in headers and (headers["etag"] in given or "*" in given)


def _range(request: Request, headers: dict[str, str], size: int) -> tuple[int, int] | None:
    """Return start and end of the single requested range; None for the whole, and for an invalid range."""
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip())
    unchanged = request.headers.get("if-range")
    if asked is None or (unchanged is not None and unchanged != headers.get("etag")):
        return None
    first, last = asked.groups()
    if not first:
        return (max(size - int(last), 0), size) if last else None
    return int(first), min(int(last) + 1, size) if last else size
