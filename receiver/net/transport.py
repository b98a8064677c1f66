"""
Connections to the addresses that the guard allows, and to no others.

The guard is asked at the time of dialling, and the address that it judged is the one dialled: the name is resolved
once, by us, and the connection is opened to that very address, while the Host header, SNI and the certificate check
keep the name. So there is no second lookup for a rebinding name server to answer differently, and a pooled connection
needs no second verdict.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpcore
import httpx

from receiver.net import streams
from receiver.net.connections import Pool
from receiver.net.guard import Guard, UrlRefused
from receiver.net.plain import PlainAnswer
from submitter import tls

Connect = Callable[[str, int, float | None], Awaitable[httpcore.AsyncNetworkStream]]

CONNECT_SECONDS = 10.0
MOST_DIALS = 4  # addresses tried per connection, so that a name with hundreds of dead ones costs no more
# Shorter than what servers commonly keep an idle connection for (5 s), so that we rarely write into one being closed.
KEEPALIVE_SECONDS = 2.0
_LINE = re.compile(r"[\t\x20-\x7e]+")


class GuardedTransport(httpx.AsyncBaseTransport):
    """
    An httpx transport that connects only where the guard allows, usable under any `httpx.AsyncClient`.

    One pool for https and one for http, because http is allowed to fewer addresses. AddressForbidden, UrlRefused and
    NoAnswer (no such name) pass through as they are; httpcore's errors become httpx's.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        connect: Connect | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 200,
    ) -> None:
        def pool(*, encrypted: bool) -> Pool:
            return Pool(
                GuardedBackend(guard, connect or streams.connect, encrypted=encrypted),
                context,
                max_connections=max_connections,
                keepalive_seconds=KEEPALIVE_SECONDS,
            )

        context = ssl_context or tls.context()
        self._pools = {"https": pool(encrypted=True), "http": pool(encrypted=False)}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pool = self._pools.get(request.url.scheme)
        if pool is None:
            raise httpx.UnsupportedProtocol("only https and http are spoken here", request=request)
        return await pool.send(request)

    async def post(
        self, url: httpx.URL, headers: Mapping[str, str], content: bytes, *, most_bytes: int
    ) -> PlainAnswer | httpx.Response:
        """Post to an http or https *url*, without httpx's objects where the answer is plain and short enough."""
        target, host = url.raw_path.decode("ascii"), url.netloc.decode("ascii")
        fields = {"Host": host, **headers, "Content-Length": str(len(content))}
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        if not all(map(_LINE.fullmatch, lines)):
            raise httpx.LocalProtocolError("a header's value is not printable ASCII")
        head = "\r\n".join([*lines, "\r\n"]).encode("ascii")
        pool = self._pools[url.scheme]
        return await pool.post(url, head, content, connect_timeout=CONNECT_SECONDS, most_bytes=most_bytes)

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """The network backend for httpcore: a connection to a host is opened to an address that was judged."""

    def __init__(self, guard: Guard, connect: Connect, *, encrypted: bool) -> None:
        self._guard = guard
        self._connect = connect
        self._encrypted = encrypted

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = (await self._guard.resolve(host, port, encrypted=self._encrypted))[:MOST_DIALS]
        clock = asyncio.get_running_loop().time
        ends_at = clock() + (CONNECT_SECONDS if timeout is None else timeout)
        failure: Exception = httpcore.ConnectTimeout()
        for tried, address in enumerate(addresses):
            # An address that swallows packets must not use up the others' time.
            share = max(ends_at - clock(), 0.0) / (len(addresses) - tried)
            try:
                return await self._connect(str(address), port, share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise UrlRefused("local sockets are not for addresses that others chose")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
