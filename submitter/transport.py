"""
The transport below `client.py`: HTTP/1.1 over httpcore, which listens for an early answer while it writes a body.

A server that refuses a large upload (413, 429) answers at once and closes. A client that first writes to the end gets a
reset, and loses the answer that was already in its socket: a certain "no" becomes "unknown", which for a paid call is
the difference between sending again and asking a person. So a read is always pending while we write, and any data that
it receives ends the writing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import httpcore
import httpx

CONNECT_SECONDS = 15.0
_SOCKET_OPTIONS = (
    [(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 128 * 1024)] if hasattr(socket, "TCP_NOTSENT_LOWAT") else []
)
"""What was handed over is nearly out: on a slow line megabytes would wait in the kernel, and seem to have been sent."""


class DirectTransport(httpx.AsyncBaseTransport):
    """
    Connections straight to the host that the URL names: no proxies from the environment, no redirects, no cookies.

    With *keep* false every request has a connection of its own. Raises httpcore's exceptions as they are.
    """

    def __init__(self, ssl_context: ssl.SSLContext, *, keep: bool) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=10 if keep else 0,
            keepalive_expiry=15.0 if keep else 0.0,
            socket_options=_SOCKET_OPTIONS,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions={"timeout": {"connect": CONNECT_SECONDS}, **request.extensions},
            )
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, AsyncIterable)
        async for part in self._response.stream:
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _ListeningStream(
            await self._backend.connect_tcp(host, port, timeout, local_address, socket_options=socket_options)
        )

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _ListeningStream(httpcore.AsyncNetworkStream):
    """A connection on which a read is pending whenever something is written."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._ahead: asyncio.Task[bytes] | None = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        ahead = self._ahead
        if ahead is None:
            return await self._stream.read(max_bytes, timeout)
        done, _ = await asyncio.wait({ahead}, timeout=timeout)
        if not done:
            raise httpcore.ReadTimeout
        self._ahead = None
        return ahead.result()

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._stream.read(65536))
        # One iteration of the loop, so that an answer that has arrived is seen before a write meets the reset after it.
        await asyncio.sleep(0)
        writing = asyncio.create_task(self._stream.write(buffer, timeout))
        try:
            await asyncio.wait({writing, self._ahead}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
                return
        finally:
            await _ended(writing)
        # httpcore takes a write error as "read what they have to say".
        raise httpcore.WriteError("answered before the whole request was written")

    async def aclose(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await _ended(ahead)
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _ListeningStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel *task* if it is not done, wait for its end, and retrieve its exception, so that no warning is logged."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
