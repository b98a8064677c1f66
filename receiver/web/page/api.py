"""
The API's own handlers, called in this process on behalf of a session.

A page shows the API's answers and makes its changes through the API: it has no rules of its own, and a read token is
refused by the same line of code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Router
from starlette.types import Message, Receive, Scope, Send

from receiver.web.auth import Bearer, Caller
from receiver.web.problems import NOT_FOUND

_CALLER = "receiver.caller"


class _OnBehalf(Bearer):
    """Trusts the caller that a page puts into the scope, which no request from outside can have."""

    def __init__(self) -> None:
        super().__init__(())

    def identify(self, request: Request) -> Caller | None:
        caller = request.scope.get(_CALLER)
        return caller if isinstance(caller, Caller) else None


class Api:
    """Calls `/v1` as a caller. Refusals are raised: `receiver.web.problems.Problem`."""

    def __init__(self, routes_of: Callable[[Bearer], Iterable[BaseRoute]]) -> None:
        self._router = Router(list(routes_of(_OnBehalf())), redirect_slashes=False)

    async def get(self, caller: Caller, path: str, **query: Any) -> Any:
        """Return the JSON answer to `GET path`; None and empty values of *query* are left out."""
        return await self._call(caller, "GET", path, query=query)

    async def post(
        self,
        caller: Caller,
        path: str,
        document: Mapping[str, Any] | None = None,
        *,
        method: str = "POST",
        key: str = "",
    ) -> Any:
        """Return the JSON answer to a change. *key* is an idempotency key."""
        body = json.dumps(document or {}).encode()
        return await self._call(caller, method, path, body=body, headers={"idempotency-key": key} if key else {})

    def forwarded(self, request: Request, caller: Caller, path: str) -> Response:
        """Return the API's own response to *request* at *path*: for files. Refusals are raised when it is sent."""
        scope = {**request.scope, **_scope(caller, request.method, path)}
        scope.pop("starlette.exception_handlers", None)  # which would answer for the path of the API
        return _Forwarded(self._router, scope)

    async def _call(
        self,
        caller: Caller,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        sent = {"content-type": "application/json", **(headers or {})}
        scope = {
            **_scope(caller, method, path),
            "query_string": urlencode([item for item in (query or {}).items() if item[1]], doseq=True).encode(),
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        }
        parts: list[bytes] = []
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return pending.pop() if pending else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._router(scope, receive, send)
        text = b"".join(parts)
        try:
            return json.loads(text) if text else None
        except ValueError as exc:  # no route of the API: the router's own answer
            raise NOT_FOUND from exc


class _Forwarded(Response):
    """Answers by another application."""

    def __init__(self, app: Router, scope: Scope) -> None:
        super().__init__()
        self._app = app
        self._scope = scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(item for item in self.raw_headers if item[0] not in given)]
            await send(message)

        await self._app(self._scope, receive, with_headers)


def _scope(caller: Caller, method: str, path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},  # a stream must not wait for a disconnect
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "state": {},
        _CALLER: caller,
    }
