"""Request bodies: read up to a limit, and parsed as the JSON object they must be."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from starlette.requests import ClientDisconnect, Request

from receiver.web.problems import Problem
from submitter.provider import deeper_than

_MAX_SMALL_JSON_BYTES = 64 * 1024
_MAX_DEPTH = 100
_GZIP = b"\x1f\x8b"


async def read_body(request: Request, *, limit: int) -> bytes:
    """Read the request's body. Raises `Problem` 413 if it is larger than *limit*; the rest is read and dropped."""
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
    except ClientDisconnect as exc:
        raise Problem(400, "disconnected", "the body was cut", remedy="send the request again, whole") from exc
    if size > limit:
        raise Problem(413, "too_large", f"the body may have at most {limit} bytes", remedy="send less")
    return b"".join(parts)


async def small_json(request: Request) -> dict[str, Any]:
    """Read an optional small JSON object."""
    body = await read_body(request, limit=_MAX_SMALL_JSON_BYTES)
    return parse_document(body) if body.strip() else {}


def parse_document(data: bytes) -> dict[str, Any]:
    """Parse the JSON object of a request."""
    try:
        document = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_without_doubles)
        if not isinstance(document, dict):
            raise Problem(400, "invalid_json", "the body is not a JSON object", remedy="send a JSON object")
        if deeper_than(document, _MAX_DEPTH):
            detail = f"the body is nested deeper than {_MAX_DEPTH} levels"
            raise Problem(400, "invalid_json", detail, remedy="send flatter JSON")
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")  # 1e999 is read as infinite
    except UnicodeEncodeError as exc:
        raise Problem(400, "invalid_json", "the body has half of a surrogate pair", remedy="send valid text") from exc
    except (ValueError, RecursionError) as exc:
        if data.startswith(_GZIP):
            raise Problem(400, "invalid_json", "the body is compressed", remedy="send it as it is") from exc
        raise Problem(400, "invalid_json", "the body is not JSON", remedy="send a JSON object") from exc
    return document


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises `Problem` for a doubled name: other programs would read another value than we do."""
    document = dict(pairs)
    if len(document) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        detail = f"an object has the name {name[:60]!a} more than once"
        raise Problem(400, "invalid_json", detail, remedy="send each name once")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
