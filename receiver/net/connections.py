"""
HTTP/1.1 over connections that are kept alive for a short time.

h11 reads heads and chunked bodies. A body of known length, or that ends with its connection, needs no parser: it is
passed on as it arrives, without copies. A megabyte costs a third of what it costs through httpcore's pool, a small
answer half. A post or a GET whose answer is an ordinary one (plain.py) needs no parser at all.

Raises httpx's exceptions.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

import h11
import httpcore
import httpx

from receiver.net.plain import PlainAnswer, plain_answer

_READ_BYTES = 64 * 1024
_LARGEST_HEAD = 100 * 1024
_WRITE_BYTES = 256 * 1024
_NO_BODY = frozenset({204, 304})
_LONGEST_BODY = 10**9
_LINE = re.compile(rb"[\t\x20-\x7e]+")

Origin = tuple[bytes, bytes, int]
"""Scheme, host and port."""


class Pool:
    """
    Connections to any number of hosts, at most *max_connections* in all; idle ones give way to new ones.

    A connection is reused within *keepalive_seconds*, if its answer was read to the end and its host keeps it open.
    """

    def __init__(
        self,
        backend: httpcore.AsyncNetworkBackend,
        ssl_context: ssl.SSLContext,
        *,
        max_connections: int,
        keepalive_seconds: float,
    ) -> None:
        self._backend = backend
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._keepalive_seconds = keepalive_seconds
        self._places = asyncio.Semaphore(max_connections)
        self._busy: set[Connection] = set()
        self._idle: deque[tuple[float, Connection]] = deque()
        """Idle connections with their expiry times, the first to expire at the left."""

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; the caller reads the response's body and closes it."""
        timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        async with self._exchange(request.url, timeouts.get("pool"), timeouts.get("connect")) as connection:
            return await connection.exchange(request, timeouts, self)

    async def post(
        self, url: httpx.URL, head: bytes, body: bytes, *, connect_timeout: float, most_bytes: int
    ) -> PlainAnswer | httpx.Response:
        """
        Write *head* and *body*, and return the answer: whole if it is plain and has at most *most_bytes*.

        Otherwise it is as that of `send`. The caller sees to the time.
        """
        async with self._exchange(url, None, connect_timeout) as connection:
            answer = await connection.post(url, head, body, most_bytes, self)
        if isinstance(answer, PlainAnswer):
            await self.give_back(connection, reusable=answer.lasting)
        return answer

    @asynccontextmanager
    async def _exchange(
        self, url: httpx.URL, pool_timeout: float | None, connect_timeout: float | None
    ) -> AsyncIterator[Connection]:
        """A connection to *url*, busy until it is given back; it is closed if the block raises."""
        with _in_httpx_terms():
            await self._place(pool_timeout)
            connection: Connection | None = None
            try:
                connection = await self._connection(url, connect_timeout)
                self._busy.add(connection)
                yield connection
            except BaseException:
                if connection is None:
                    self._places.release()
                else:
                    await self.give_back(connection, reusable=False)
                raise

    async def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """End an exchange on *connection*, and free its slot for another."""
        if connection not in self._busy:
            return
        self._busy.discard(connection)
        self._places.release()
        if reusable:
            self._idle.append((_now() + self._keepalive_seconds, connection))
        else:
            await connection.aclose()
        await self._reap()

    async def aclose(self) -> None:
        for connection in [*self._busy, *(connection for _, connection in self._idle)]:
            await connection.aclose()
        self._idle.clear()

    async def _place(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._places.acquire()
        except TimeoutError as exc:
            raise httpcore.PoolTimeout from exc

    async def _connection(self, url: httpx.URL, timeout: float | None) -> Connection:
        origin = _origin(url)
        for place in reversed(range(len(self._idle))):
            expires_at, connection = self._idle[place]
            if connection.origin == origin and expires_at > _now():
                del self._idle[place]
                if connection.is_quiet():
                    return connection
                await connection.aclose()
                break  # its host closes idle connections: the others are likely to be closed as well
        await self._reap(opening=1)
        _, host, port = origin
        name = host.decode("ascii")
        stream = await self._backend.connect_tcp(name, port, timeout)
        if url.scheme == "https":
            try:
                stream = await stream.start_tls(self._ssl_context, name, timeout)
            except BaseException:
                await stream.aclose()
                raise
        return Connection(origin, stream)

    async def _reap(self, *, opening: int = 0) -> None:
        """Close idle connections that have expired, and others to make room for *opening* new ones."""
        most_idle = self._max_connections - len(self._busy) - opening
        while self._idle and (self._idle[0][0] <= _now() or len(self._idle) > most_idle):
            _, connection = self._idle.popleft()
            await connection.aclose()


class Connection:
    """One connection to *origin*, for one exchange at a time."""

    def __init__(self, origin: Origin, stream: httpcore.AsyncNetworkStream) -> None:
        self.origin = origin
        self._stream = stream

    def is_quiet(self) -> bool:
        """Return whether nothing, end of stream included, has arrived since the last answer."""
        return not self._stream.get_extra_info("is_readable")

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def exchange(
        self, request: httpx.Request, timeouts: Mapping[str, float | None], pool: Pool
    ) -> httpx.Response:
        head = _plain_get(request)
        if head is not None:
            return await self._get(request, head, timeouts, pool)
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)
        with suppress(httpcore.WriteError):  # its answer may have arrived before
            await self._write(parser, request, timeouts.get("write"))
        return await self._answer(parser, request.method, timeouts.get("read"), pool)

    async def _get(
        self, request: httpx.Request, head: bytes, timeouts: Mapping[str, float | None], pool: Pool
    ) -> httpx.Response:
        timeout = timeouts.get("read")
        with suppress(httpcore.WriteError):
            await self._stream.write(head, timeouts.get("write"))
        data = await self.read(timeout)
        answer = plain_answer(data, _LONGEST_BODY)
        if answer is not None:
            return self._rest_of(answer, timeout, pool)
        asked = h11.Request(method="GET", target=request.url.raw_path, headers=request.headers.raw)
        return await self._parsed(asked, b"", data, timeout, pool)

    async def post(
        self, url: httpx.URL, head: bytes, body: bytes, most_bytes: int, pool: Pool
    ) -> PlainAnswer | httpx.Response:
        with suppress(httpcore.WriteError):
            await self._stream.write(head + body, None)
        data = await self.read(None)
        answer = plain_answer(data, most_bytes)
        if answer is not None and not answer.missing:
            return answer
        if answer is not None:  # its status counts, even if the rest never comes
            return self._rest_of(answer, None, pool)
        headers = [(b"host", url.netloc), (b"content-length", b"%d" % len(body))]
        asked = h11.Request(method="POST", target=url.raw_path, headers=headers)
        return await self._parsed(asked, body, data, None, pool)

    def _rest_of(self, answer: PlainAnswer, timeout: float | None, pool: Pool) -> httpx.Response:
        framing = Framing(answer.body, len(answer.body) + answer.missing, parser=None, lasting=answer.lasting)
        return httpx.Response(answer.status, headers=answer.headers, stream=Body(self, pool, framing, timeout))

    async def _parsed(
        self, asked: h11.Request, body: bytes, data: bytes, timeout: float | None, pool: Pool
    ) -> httpx.Response:
        """Read the answer that begins with *data*, to what was *asked* and is written already, with a parser."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)
        with _protocol_errors(httpcore.LocalProtocolError):
            for event in (asked, h11.Data(data=body), h11.EndOfMessage()):
                parser.send(event)
        if data:
            parser.receive_data(data)
        return await self._answer(parser, asked.method.decode("ascii"), timeout, pool)

    async def _answer(self, parser: h11.Connection, method: str, timeout: float | None, pool: Pool) -> httpx.Response:
        with _protocol_errors(httpcore.RemoteProtocolError):
            head = await self._head(parser, timeout)
            body = Body(self, pool, _framing(method, head, parser), timeout)
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=body)

    async def read(self, timeout: float | None) -> bytes:
        return await self._stream.read(_READ_BYTES, timeout)

    async def _write(self, parser: h11.Connection, request: httpx.Request, timeout: float | None) -> None:
        """Write a head and its body, together if they are short."""
        with _protocol_errors(httpcore.LocalProtocolError):
            head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            waiting = [parser.send(head) or b""]
            size = 0
            assert isinstance(request.stream, AsyncIterable)
            async for part in request.stream:
                waiting.append(parser.send(h11.Data(data=part)) or b"")
                size += len(part)
                if size >= _WRITE_BYTES:
                    await self._stream.write(b"".join(waiting), timeout)
                    waiting, size = [], 0
            waiting.append(parser.send(h11.EndOfMessage()) or b"")
            await self._stream.write(b"".join(waiting), timeout)

    async def _head(self, parser: h11.Connection, timeout: float | None) -> h11.Response:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.read(timeout))
            elif isinstance(event, h11.Response):
                return event
            elif not isinstance(event, h11.InformationalResponse):
                raise httpcore.RemoteProtocolError("the connection was closed without an answer")


def _plain_get(request: httpx.Request) -> bytes | None:
    """Return the bytes of a GET without a body; None for any other request, which a parser writes."""
    fields = request.headers.raw
    lines = [b"GET %b HTTP/1.1" % request.url.raw_path, *(b"%b: %b" % field for field in fields)]
    has_body = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in fields)
    if request.method != "GET" or has_body or not all(map(_LINE.fullmatch, lines)):
        return None
    return b"\r\n".join([*lines, b"\r\n"])


class Framing:
    """The framing of a body: its end is found by *length* (None: the end of the connection), or by *parser*."""

    def __init__(self, first: bytes, length: int | None, *, parser: h11.Connection | None, lasting: bool) -> None:
        self.first = first
        """The part of the body that has arrived."""
        self.length = length
        self.parser = parser
        self.lasting = lasting
        """The connection may be reused after the body."""


def _framing(method: str, head: h11.Response, parser: h11.Connection) -> Framing:
    said = {name: value.lower() for name, value in head.headers}
    lasting = head.http_version >= b"1.1" and b"close" not in said.get(b"connection", b"")
    if b"transfer-encoding" in said and head.status_code not in _NO_BODY and method != "HEAD":
        return Framing(b"", None, parser=parser, lasting=lasting)
    first, _ = parser.trailing_data
    if head.status_code in _NO_BODY or method == "HEAD":
        length: int | None = 0
    else:
        length = int(said[b"content-length"]) if b"content-length" in said else None
    return Framing(first, length, parser=None, lasting=lasting and length is not None)


class Body(httpx.AsyncByteStream):
    """The body of an answer, read once; its connection is released at its end, or by `aclose`."""

    def __init__(self, connection: Connection, pool: Pool, framing: Framing, timeout: float | None) -> None:
        self._connection = connection
        self._pool = pool
        self._framing = framing
        self._timeout = timeout
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        framing = self._framing
        if framing.parser is not None:
            parts = self._parsed(framing.parser)
        elif framing.length is None:
            parts = self._up_to_the_end(framing.first)
        else:
            parts = self._counted(framing.first, framing.length)
        with _in_httpx_terms():
            async for part in parts:
                yield part
        await self.aclose()

    async def aclose(self) -> None:
        await self._pool.give_back(self._connection, reusable=self._ended and self._framing.lasting)

    async def _counted(self, data: bytes, missing: int) -> AsyncIterator[bytes]:
        while missing > 0:
            data = data or await self._connection.read(self._timeout)
            if not data:
                raise httpcore.RemoteProtocolError("closed before the whole body came")
            missing -= len(data)
            yield data if missing >= 0 else data[:missing]
            data = b""
        self._ended = missing == 0 and not data

    async def _up_to_the_end(self, data: bytes) -> AsyncIterator[bytes]:
        data = data or await self._connection.read(self._timeout)
        while data:
            yield data
            data = await self._connection.read(self._timeout)

    async def _parsed(self, parser: h11.Connection) -> AsyncIterator[bytes]:
        with _protocol_errors(httpcore.RemoteProtocolError):
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(await self._connection.read(self._timeout))
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
                else:
                    self._ended = isinstance(event, h11.EndOfMessage) and not parser.trailing_data[0]
                    return


@contextmanager
def _protocol_errors(kind: type[httpcore.ProtocolError]) -> Iterator[None]:
    try:
        yield
    except h11.ProtocolError as exc:
        raise kind(str(exc)) from exc


def _origin(url: httpx.URL) -> Origin:
    return url.raw_scheme, url.raw_host, url.port or (443 if url.scheme == "https" else 80)


def _now() -> float:
    return asyncio.get_running_loop().time()


_HTTPX_ERRORS: dict[type[BaseException], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.TimeoutException: httpx.TimeoutException,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.NetworkError: httpx.NetworkError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.ProtocolError: httpx.ProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}


@contextmanager
def _in_httpx_terms() -> Iterator[None]:
    try:
        yield
    except tuple(_HTTPX_ERRORS) as exc:
        kind = next(_HTTPX_ERRORS[kind] for kind in type(exc).__mro__ if kind in _HTTPX_ERRORS)
        raise kind(str(exc)) from exc
