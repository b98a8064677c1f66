"""
Requests that are answered from the HTTP protocol, without a scope, a task and a stack of applications for each.

Only ordinary requests take this path: a POST to a plain path of the route, complete after a single read, on a
connection where nothing else waits. It is offered to the route; requests that the route does not take, and all others,
go to the application as usual. Nothing is held for longer than one read, so limits of time and memory for bodies remain
the application's.

The answer is written as uvicorn writes it, byte for byte. Written against uvicorn 0.54.0; used of it, in addition to
the list in `http_protocol`: `client`, `flow.write_paused`, `expect_100_continue`, and that `cycle` may be anything with
the attributes of `DirectRequest`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from receiver.runtime.http_protocol import HttpProtocol

Headers = Sequence[tuple[bytes, bytes]]


class TrustedProxies:
    """Proxies at *addresses*, whose `X-Forwarded-For` is trusted as uvicorn's own middleware trusts it."""

    def __init__(self, addresses: Sequence[str]) -> None:
        async def nothing(*_: Any) -> None:
            pass

        self._hosts = ProxyHeadersMiddleware(nothing, list(addresses)).trusted_hosts
        self._short = lru_cache(maxsize=1024)(self._client)

    def __contains__(self, host: str | None) -> bool:
        return host in self._hosts

    def client(self, forwarded_for: bytes) -> str:
        """Return the client that the header names, possibly empty; cached, since the same few providers call."""
        return self._short(forwarded_for) if len(forwarded_for) <= 64 else self._client(forwarded_for)

    def _client(self, forwarded_for: bytes) -> str:
        return self._hosts.get_trusted_client_address(forwarded_for.decode("latin-1"))[0]


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """
    A route that may answer requests directly.

    *path* matches the whole paths that are offered. *take* returns whether it takes a request. If so, the request is
    answered once, by `DirectRequest.answer`, after *take* has returned; if not, *take* must have had no effect.
    """

    path: re.Pattern[bytes]
    take: Callable[[DirectRequest], bool]


class DirectRequest:
    """A complete request. For uvicorn it is the cycle of request and response that keeps its connection busy."""

    __slots__ = (
        "_protocol",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "parts",
        "peer",
        "response_complete",
        "response_started",
    )
    more_body = False
    message_event = asyncio.Event()
    """Required by uvicorn; nothing waits for it."""

    def __init__(self, protocol: DirectProtocol, parts: Sequence[bytes], body: bytes, keep_alive: bool) -> None:
        self.parts = parts
        """The matches of the groups of the route's `path`."""
        self.headers: Headers = protocol.headers
        """Header names are in lower case."""
        self.body = body
        self.peer = protocol.peer()
        """The address of the sender, or the one that a trusted proxy names."""
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._protocol = protocol

    def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer the request. If its sender is gone, nothing happens."""
        if not self.disconnected:
            self._protocol.answer(self, status, headers, body)


class DirectProtocol(HttpProtocol):
    """A connection; *route* answers some of its requests. The `X-Forwarded-For` of *proxies* is trusted."""

    def __init__(
        self, *args: Any, route: DirectRoute | None = None, proxies: TrustedProxies | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._route = route
        self._proxies = proxies
        self._match: re.Match[bytes] | None = None
        """The match of the request that is being read, as long as it may be offered."""
        self._held: list[bytes] = []
        """The pieces of its body that have arrived."""
        self._declining = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._match is not None:
            self._match = None
            if not self._broken:  # the rest of the body is still to come
                self._begin()
                for part in self._held:
                    super().on_body(part)

    def _decline_upgrade(self) -> None:
        self._declining = True
        super()._decline_upgrade()
        self._declining = False

    # --- What the parser says ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # As in the superclasses, but without the scope, which `_begin` makes.
        self._head_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        if (
            self._route is not None
            and (match := self._route.path.fullmatch(self.url)) is not None
            and self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not (self.pipeline or self.expect_100_continue or self._declining or self.flow.write_paused)
            and not self.parser.should_upgrade()
        ):
            self._match, self._held = match, []
            self._advanced = True
            self._head_since = None
            self._body_since, self._body_bytes = self.loop.time(), 0
        else:
            self._begin()

    def on_body(self, body: bytes) -> None:
        if self._match is None:
            super().on_body(body)
        else:
            self._advanced = True
            self._head_bytes = 0
            self._body_bytes += len(body)
            self._held.append(body)

    def on_message_complete(self) -> None:
        match, self._match = self._match, None
        if match is None or self._route is None:
            super().on_message_complete()
            return
        held, earlier = self._held, self.cycle
        body = held[0] if len(held) == 1 else b"".join(held)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        request: Any = DirectRequest(self, match.groups(), body, keep_alive)
        self.cycle = request
        self._advanced = True
        self._body_since = None
        if not self._route.take(request):
            self.cycle = earlier
            self._begin()
            for part in held:
                super().on_body(part)
            super().on_message_complete()

    def _begin(self) -> None:
        """Hand the request whose head has been read to the application."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    # --- For the request --------------------------------------------------------------------------------------------

    def peer(self) -> str | None:
        host = self.client[0] if self.client else None
        if self._proxies is not None and host in self._proxies:
            forwarded = [value for name, value in self.headers if name == b"x-forwarded-for"]
            if forwarded:
                return self._proxies.client(b", ".join(forwarded)) or host
        return host

    def answer(self, request: DirectRequest, status: int, headers: Headers, body: bytes) -> None:
        request.response_started = request.response_complete = True
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if (b"connection", b"close") in headers:
            request.keep_alive = False
        elif not request.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", body)
        self.transport.write(b"".join(lines))
        if not request.keep_alive:
            self.transport.close()
        self.on_response_complete()
