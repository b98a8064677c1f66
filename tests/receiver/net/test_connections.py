"""Reuse of connections, and the detection of the end of a body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network

import httpcore
import httpx
import pytest

from receiver.net import streams
from receiver.net.guard import Guard
from receiver.net.transport import Connect, GuardedTransport
from tests.support.waiting import eventually, patiently

Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Host:
    """Gives the same answer to every request, and its *rest* later; counts connections, and those that are open."""

    def __init__(self, answer: bytes, *, rest: bytes = b"", closes: bool = False) -> None:
        self.answer = answer
        self.rest = rest
        self.closes = closes
        self.connections = 0
        self.open = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(self.answer)
                await writer.drain()
                if self.rest:
                    await asyncio.sleep(0.02)
                    writer.write(self.rest)
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(host: Host) -> AsyncIterator[str]:
    server = await asyncio.start_server(host.converse, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/file"
    finally:
        server.close()


@asynccontextmanager
async def transport(*, connect: Connect | None = None, max_connections: int = 10) -> AsyncIterator[GuardedTransport]:
    guard = Guard([ip_network("127.0.0.0/8")])
    made = GuardedTransport(guard, connect=connect, max_connections=max_connections)
    try:
        yield made
    finally:
        await made.aclose()


async def fetched(transport: GuardedTransport, url: str, method: str = "GET") -> bytes:
    response = await patiently(transport.handle_async_request(httpx.Request(method, url)))
    try:
        return await patiently(response.aread())
    finally:
        await response.aclose()


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nim\r\n3;a=b\r\nage\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body", "connections"),
    [
        (LENGTH, b"image", 1),
        (CHUNKS, b"image", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", 1),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH, b"image", 1),
        (LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"image", 3),
        (LENGTH.replace(b"1.1", b"1.0"), b"image", 3),
        (LENGTH + b"HTTP/1.1 200 OK\r\n", b"image", 3),  # nobody asked for that
        (CHUNKS + b"more", b"image", 3),
    ],
)
async def test_a_connection_is_used_again_behind_a_whole_answer(answer: bytes, body: bytes, connections: int) -> None:
    host = Host(answer)
    async with serving(host) as url, transport() as made:
        for _ in range(3):
            assert await fetched(made, url) == body
    assert host.connections == connections


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    host = Host(b"HTTP/1.1 200 OK\r\n\r\n" + b"image" * 100_000, closes=True)
    async with serving(host) as url, transport() as made:
        assert await fetched(made, url) == b"image" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nimage",
        CHUNKS[:-20],
        CHUNKS.replace(b"\r\n3;", b"\r\nz;"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nimage",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.7\r\n\r\n",
        b"",
    ],
)
async def test_half_an_answer_is_an_error(answer: bytes) -> None:
    host = Host(answer, closes=True)
    async with serving(host) as url, transport() as made:
        with pytest.raises(httpx.RemoteProtocolError):
            await fetched(made, url)
        await eventually(lambda: host.open == 0)


async def test_the_answer_to_head_has_no_body() -> None:
    host = Host(LENGTH.removesuffix(b"image"))
    async with serving(host) as url, transport() as made:
        for _ in range(2):
            assert await fetched(made, url, "HEAD") == b""
    assert host.connections == 1


async def test_a_connection_that_its_host_closed_meanwhile_is_not_used_again() -> None:
    host, opened = Host(LENGTH, closes=True), []

    async def connecting(address: str, port: int, timeout: float | None) -> httpcore.AsyncNetworkStream:
        opened.append(await streams.connect(address, port, timeout))
        return opened[-1]

    async with serving(host) as url, transport(connect=connecting) as made:
        assert await fetched(made, url) == b"image"
        await eventually(lambda: opened[0].get_extra_info("is_readable"))
        assert await fetched(made, url) == b"image"
    assert len(opened) == 2


async def test_no_more_connections_are_open_than_allowed() -> None:
    hosts = [Host(LENGTH) for _ in range(4)]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(host)) for host in hosts]
        made = await stack.enter_async_context(transport(max_connections=2))
        for url in (*urls, urls[0]):
            assert await fetched(made, url) == b"image"
            await eventually(lambda: sum(host.open for host in hosts) <= 2)
        first = await made.handle_async_request(httpx.Request("GET", urls[0]))
        second = await made.handle_async_request(httpx.Request("GET", urls[1]))
        third = asyncio.create_task(fetched(made, urls[2]))
        await asyncio.sleep(0.05)
        assert not third.done()
        await first.aclose()
        assert await patiently(third) == b"image"
        await second.aclose()


async def test_an_answer_that_is_closed_unread_gives_its_place_back() -> None:
    host = Host(LENGTH)
    async with serving(host) as url, transport(max_connections=1) as made:
        for _ in range(3):
            response = await patiently(made.handle_async_request(httpx.Request("GET", url)))
            await response.aclose()
            await response.aclose()
    assert host.connections == 3
