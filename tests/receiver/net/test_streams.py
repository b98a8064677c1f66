"""Connections read ahead within a bound, and take nothing that was said in the clear for what came encrypted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpcore
import pytest

from receiver.net.streams import READ_AHEAD_BYTES, connect
from tests.support.waiting import eventually, patiently

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected_to(peer: Peer) -> AsyncIterator[httpcore.AsyncNetworkStream]:
    """A connection to *peer*, which is closed once *peer* returns."""
    conversations: list[asyncio.Task[None]] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.extend(filter(None, [asyncio.current_task()]))
        try:
            await peer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    stream = await connect("127.0.0.1", server.sockets[0].getsockname()[1], 30)
    try:
        yield stream
    finally:
        await stream.aclose()
        server.close()
        for conversation in conversations:
            conversation.cancel()
        await asyncio.gather(*conversations)


async def test_all_that_was_said_is_read_then_the_end() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(3) * 1_000_000)
        await writer.drain()

    async with connected_to(peer) as stream:
        await stream.write(b"abc")
        said = b""
        while piece := await patiently(stream.read(65536)):
            said += piece
        assert said == b"abc" * 1_000_000
        assert await stream.read(1) == b""
        assert stream.get_extra_info("is_readable")


async def test_a_sender_that_nobody_reads_is_paused() -> None:
    sent = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with connected_to(peer) as stream:
        read = len(await patiently(stream.read(65536)))
        before = -1
        while before != sent:  # until the sender, which is never out of work, gets nothing more away
            before = sent
            await asyncio.sleep(0.2)
        rest, held = 0, sent - read
        while rest < held:  # the sender goes on meanwhile
            piece = await patiently(stream.read(65536))
            assert len(piece) <= 3 * READ_AHEAD_BYTES
            rest += len(piece)


async def test_what_is_said_before_the_handshake_is_no_answer() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with connected_to(peer) as stream:
        with pytest.raises(httpcore.ConnectError):
            await patiently(stream.start_tls(ssl.create_default_context(), "a.example", 30))


async def test_an_idle_connection_that_was_closed_is_seen_to_be() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.readexactly(1)

    async with connected_to(peer) as stream:
        assert await patiently(stream.read(1)) == b"x"
        assert not stream.get_extra_info("is_readable")
        await stream.write(b"y")
        await eventually(lambda: stream.get_extra_info("is_readable"))


async def test_nobody_there_is_a_connect_error() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return None

    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(httpcore.ConnectError):
        await connect("127.0.0.1", port, 30)


async def test_a_read_in_vain_ends_in_time() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with connected_to(peer) as stream:
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(1, timeout=0.01)
