"""
An id for each request: the caller's or proxy's `X-Request-ID` if it is well formed, else a new one.

It is in every log line that the request causes, and in its answer. For a callback no id is made before a line is
written, and the answer, which no person reads, has none.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.runtime.route_path import route_path

_NAME = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_request: ContextVar[Scope | None] = ContextVar("request", default=None)


class RequestIds:
    """ASGI middleware around *app*."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _request.set(scope)
        if route_path(scope).startswith("/callbacks/"):
            await self._app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_NAME, id_of(scope).encode())]
            await send(message)

        await self._app(scope, receive, send_named)


def request_id() -> str | None:
    """Return the id of the request that is being answered, or None outside of a request."""
    scope = _request.get()
    return None if scope is None else id_of(scope)


def id_of(scope: Scope) -> str:
    """Return the id of the request of *scope*, made when it is first needed."""
    found: str | None = scope.get("receiver.request_id")
    if found is None:
        found = scope["receiver.request_id"] = id_in(scope["headers"])
    return found


def id_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that the sender of *headers* gave to the request, if it is well formed, else a new one."""
    for name, value in headers:
        if name == _NAME:
            if _SANE.fullmatch(value):
                return value.decode("ascii")
            break
    return f"req_{secrets.token_hex(10)}"
