"""
Network streams for httpcore, on asyncio's own transports.

httpcore's default reads 64 KiB at a time, pauses the socket in between, and decrypts TLS in Python. Here arriving data
accumulates, up to READ_AHEAD_BYTES, while earlier data is being processed, and is handed over without a copy: a
megabyte takes a handful of iterations of the event loop. The transports decrypt TLS, in C where uvloop runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import Any, cast

import httpcore

READ_AHEAD_BYTES = 256 * 1024
"""A connection is paused at this many unread bytes; the last iteration may bring as much again."""

_NO_LIMIT = contextlib.nullcontext()


async def connect(address: str, port: int, timeout: float | None) -> httpcore.AsyncNetworkStream:
    """Open a TCP connection to an IP address; raises httpcore's ConnectError and ConnectTimeout."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            transport, incoming = await loop.create_connection(_Incoming, address, port)
    except TimeoutError as exc:
        raise httpcore.ConnectTimeout from exc
    except OSError as exc:
        raise httpcore.ConnectError(str(exc)) from exc
    return SocketStream(transport, incoming)


class SocketStream(httpcore.AsyncNetworkStream):
    """A connection. `read` returns a piece as it arrived, which may be larger than requested."""

    def __init__(self, transport: asyncio.Transport, incoming: _Incoming) -> None:
        self._transport = transport
        self._incoming = incoming

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout) if timeout is not None else _NO_LIMIT:
                return await self._incoming.read()
        except TimeoutError as exc:
            raise httpcore.ReadTimeout from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Return once the operating system has taken all of *buffer*."""
        if not buffer:
            return
        if self._transport.is_closing():
            raise httpcore.WriteError("the connection is closed")
        self._transport.write(buffer)
        try:
            async with asyncio.timeout(timeout) if timeout is not None else _NO_LIMIT:
                await self._incoming.written()
        except TimeoutError as exc:
            raise httpcore.WriteTimeout from exc
        except OSError as exc:
            raise httpcore.WriteError(str(exc)) from exc

    async def aclose(self) -> None:
        self._transport.abort()
        await asyncio.sleep(0)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                encrypted = await loop.start_tls(
                    self._transport, self._incoming, ssl_context, server_hostname=server_hostname
                )
            if encrypted is None:
                raise ConnectionResetError("the connection was closed during the TLS handshake")
        except BaseException as exc:
            self._transport.abort()
            if isinstance(exc, TimeoutError):
                raise httpcore.ConnectTimeout from exc
            if isinstance(exc, OSError):  # ssl.SSLError is one
                raise httpcore.ConnectError(str(exc)) from exc
            raise
        self._incoming.encrypted(encrypted)
        return SocketStream(encrypted, self._incoming)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of an idle connection: whether it has ended, or has sent something unasked
            return self._incoming.ready
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return self._transport.get_extra_info(name)


class _Incoming(asyncio.Protocol):
    """Received bytes that are unread. Nothing is taken from the socket before TLS begins or the first read."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._encrypted = False
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._is_paused = True
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_full = False

    @property
    def ready(self) -> bool:
        """Return whether a read would return at once."""
        return bool(self._pieces) or self._ended

    async def read(self) -> bytes:
        """Return the received bytes, at least one; none at the end. Raises OSError if the connection broke."""
        if not self.ready:
            self._resume()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._pieces:
            if self._error is not None:
                raise ConnectionResetError("the connection broke") from self._error
            return b""
        data = self._pieces.popleft()
        self._size -= len(data)
        if self._size < READ_AHEAD_BYTES:
            self._resume()
        return data

    async def written(self) -> None:
        """Wait until the operating system has taken everything that was written."""
        if self._is_full:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self._error is not None:
            raise ConnectionResetError("the connection broke") from self._error

    def encrypted(self, transport: asyncio.Transport) -> None:
        """Read from now on what *transport* decrypts."""
        self._transport = transport
        self._encrypted, self._is_paused = True, False
        transport.set_write_buffer_limits(0)

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= READ_AHEAD_BYTES and self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self._ended = True
        _wake(self._reader)
        return not self._encrypted  # we may still be writing

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._is_full = True, False
        self._error = exc
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        _wake(self._writer)

    def _resume(self) -> None:
        if self._is_paused and not self._ended and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
