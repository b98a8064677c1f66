"""A load balancer of the tests: one address in front of several web processes, some of which may be dead."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.serving import serving


@dataclass
class Balancer:
    """
    Passes each request to the next of *backends* (origins); one that refuses the connection is passed over.

    A request whose answer is lost is answered 502, and not sent again. `requested` lists the methods and paths of all
    that came, `acknowledged` the callbacks that were answered 200: the path, and the digest of the body.
    """

    backends: Sequence[str]
    requested: list[tuple[str, str]] = field(default_factory=list)
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    _turns: itertools.count[int] = field(default_factory=itertools.count)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = Starlette(routes=[Route("/{rest:path}", self._answer, methods=["GET", "POST", "DELETE"])])
        async with httpx.AsyncClient(trust_env=False, timeout=60) as self._client, serving(app) as origin:
            yield origin

    async def _answer(self, request: Request) -> Response:
        self.requested.append((request.method, request.url.path))
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        first = next(self._turns)
        for turn in range(len(self.backends)):
            url = self.backends[(first + turn) % len(self.backends)] + request.url.path
            try:
                answer = await self._client.request(
                    request.method, url, params=request.query_params, content=body, headers=headers
                )
            except httpx.ConnectError:
                continue
            except httpx.TransportError:
                return Response(status_code=502)
            if answer.status_code == 200 and request.url.path.startswith("/callbacks/"):
                self.acknowledged.append((request.url.path, sha256(body).hexdigest()))
            kind = answer.headers.get("content-type", "application/octet-stream")
            return Response(answer.content, answer.status_code, {"content-type": kind})
        return Response(status_code=503)
