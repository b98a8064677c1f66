"""Anything that strangers may send over a connection: real sockets, and a small application that echoes requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from receiver.runtime.http_protocol import HttpProtocol
from receiver.runtime.server import Server, listen, running, server
from tests.support.waiting import patiently

OFFERS = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
    "several": "Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0, x\r\nUpgrade: y\r\n",
    "none named": "Connection: upgrade\r\n",
    "not in Connection": "Upgrade: h2c\r\n",
}
INNER = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Echo:
    """Answers each request with what it got, as JSON, once *gate* is open."""

    server: Server
    port: int
    seen: list[dict[str, Any]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/unread":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.seen.append({"path": scope["path"], "gone": True})
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await self.gate.wait()
        headers = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
        got = {"path": scope["path"], "body": body.decode("latin-1"), "headers": headers}
        self.seen.append(got)
        answer = json.dumps(got).encode()
        length = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": answer})

    def connections(self) -> list[HttpProtocol]:
        return [each for each in self.server.server_state.connections if isinstance(each, HttpProtocol)]

    def pass_time(self, seconds: float) -> None:
        for connection in self.connections():
            connection.close_if_slow(asyncio.get_running_loop().time() + seconds)


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[Echo]:
    listener = listen("127.0.0.1", 0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await made(scope, receive, send)

    made = Echo(server(app, on_stop=lambda: None), listener.getsockname()[1])
    made.server.config.lifespan = "off"
    made.gate.set()
    async with running(made.server, listener):
        yield made


async def exchanged(port: int, *pieces: bytes, end: bool = True) -> bytes:
    """Everything that is answered to *pieces*, each sent by itself; with *end* our side is closed behind them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)
        if end:
            writer.write_eof()
        answered = b""
        with contextlib.suppress(ConnectionError):
            while part := await patiently(reader.read(65536)):
                answered += part
        return answered
    finally:
        writer.close()


def statuses(answered: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answered)]


def post(path: str, body: bytes, lines: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offered_upgrade_is_ignored_and_the_body_read(offer: str, apart: bool) -> None:
    async with echo() as made:
        whole = post("/outer", INNER, OFFERS[offer]) + post("/next", b"2", "Connection: close\r\n")
        at = whole.index(b"\r\n\r\n") + 4
        answered = await exchanged(made.port, *((whole[:at], whole[at:]) if apart else (whole,)), end=False)
    assert statuses(answered) == [200, 200]
    assert [(request["path"], request["body"]) for request in made.seen] == [("/outer", INNER.decode()), ("/next", "2")]
    sent = [line.split(": ") for line in OFFERS[offer].splitlines()]
    assert [[name.lower(), value] for name, value in sent] == made.seen[0]["headers"][1:-1]


async def test_a_chunked_body_behind_an_offer_is_read_and_its_trailers_are_not_believed() -> None:
    async with echo() as made:
        chunked = b"3\r\nabc\r\n2\r\nde\r\n0\r\nAuthorization: Bearer trailer\r\n\r\n"
        head = f"POST /c HTTP/1.1\r\nHost: x\r\n{OFFERS['h2c']}Transfer-Encoding: chunked\r\n\r\n".encode()
        answered = await exchanged(made.port, head, chunked[:9], chunked[9:])
    assert statuses(answered) == [200]
    assert made.seen[0]["body"] == "abcde"
    assert "authorization" not in dict(made.seen[0]["headers"])


async def test_offers_without_a_body_and_byte_by_byte() -> None:
    async with echo() as made:
        for method in ("GET", "HEAD", "DELETE"):
            request = f"{method} /x HTTP/1.1\r\nHost: x\r\n{OFFERS['h2c']}\r\n".encode()
            assert statuses(await exchanged(made.port, request)) == [200]
        slowly = post("/slow", b"body", OFFERS["websocket"])
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        for n in range(len(slowly)):
            writer.write(slowly[n : n + 1])
            await asyncio.sleep(0)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
    assert made.seen[-1]["body"] == "body"


async def test_a_request_for_a_proxy_is_refused() -> None:
    async with echo() as made:
        assert statuses(await exchanged(made.port, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + INNER)) == [405]
    assert made.seen == []


async def test_white_space_around_a_value_is_no_part_of_it() -> None:
    async with echo() as made:
        await exchanged(made.port, post("/x", b"1", "Idempotency-Key: \t order 17 \t\r\nX-Empty:  \r\n"))
    headers = dict(made.seen[0]["headers"])
    assert headers["idempotency-key"] == "order 17"
    assert headers["x-empty"] == ""


HUGE = {
    "one header": (b"GET / HTTP/1.1\r\nX: ", b"x"),
    "many headers": (b"GET / HTTP/1.1\r\n", b"X: abcdefgh\r\n"),
    "the URL": (b"GET /", b"x"),
    "a header's name": (b"GET / HTTP/1.1\r\n", b"x"),
    "empty lines": (b"\r\n", b"\r\n"),
    "trailers": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        b"X: abcdefgh\r\n",
    ),
    "a chunk's extension": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
}


@pytest.mark.parametrize("what", HUGE)
async def test_a_head_without_end_is_refused_at_64_kib(what: str) -> None:
    start, more = HUGE[what]
    async with echo() as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(start)
        sent = 0
        piece = more * (8192 // len(more))
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 8 << 20:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            assert statuses(await reader.read()) in ([431], [400], [])
        writer.close()
        assert sent < 8 << 20, "it was read without end"
    assert all("gone" in request for request in made.seen)


async def test_a_head_of_just_under_64_kib_is_read_in_whatever_pieces() -> None:
    request = post("/x", b"b" * 300_000, f"X: {'x' * 60_000}\r\n")
    async with echo() as made:
        for size in (1000, 70_000, len(request)):
            pieces = [request[at : at + size] for at in range(0, len(request), size)]
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
            for piece in pieces * 2:
                writer.write(piece)
                await asyncio.sleep(0)
            writer.write_eof()
            assert statuses(await reader.read()) == [200, 200]
            writer.close()
        too_large = post("/x", b"", f"X: {'x' * 66_000}\r\n")
        assert statuses(await exchanged(made.port, too_large)) == [431]


async def test_connections_that_never_send_a_request_are_closed_and_slow_ones_refused() -> None:
    async with echo() as made:
        silent, half, body, between = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(4)]
        half[1].write(b"GET / HTTP/1.1\r\nX: ")
        body[1].write(post("/slow", b"x" * 100)[:-50])
        between[1].write(post("/fine", b"1"))
        await between[0].readuntil(b"}")
        while len(made.connections()) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        made.pass_time(20)
        assert len(made.connections()) == 4
        made.pass_time(31)
        assert await silent[0].read() == b""
        assert statuses(await half[0].read()) == [408]
        assert statuses(await body[0].read()) == [408]
        assert await between[0].read() == b""
        for _, writer in (silent, half, body, between):
            writer.close()
    assert made.seen[-1] == {"path": "/slow", "gone": True}


async def test_an_answer_that_takes_long_is_not_cut() -> None:
    async with echo() as made:
        made.gate.clear()
        asking = asyncio.create_task(exchanged(made.port, post("/x", b"1"), end=False))
        while not made.connections() or made.seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        made.pass_time(600)
        made.gate.set()
        while not made.seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        made.pass_time(31)
        assert statuses(await asking) == [200]


async def test_what_cannot_be_read_is_answered_behind_what_came_before() -> None:
    async with echo() as made:
        made.gate.clear()
        asking = asyncio.create_task(exchanged(made.port, post("/first", b"1") + b"\x00 nonsense\r\n\r\n", end=False))
        await asyncio.sleep(0.1)
        made.gate.set()
        answered = await asking
    assert statuses(answered) == [200]
    assert [request["path"] for request in made.seen] == ["/first"]


async def test_a_broken_chunk_ends_its_request_unheard() -> None:
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with echo() as made:
        assert statuses(await exchanged(made.port, head, b"3\r\nabc\r\nzz\r\n")) == [400]
        while not made.seen:
            await asyncio.sleep(0.01)
    assert made.seen == [{"path": "/x", "gone": True}]


async def test_a_client_that_was_refused_before_it_sent_its_body_is_not_misread() -> None:
    async with echo() as made:
        head = b"POST /unread HTTP/1.1\r\nHost: x\r\nExpect: 100-continue \r\nContent-Length: 33\r\n\r\n"
        answered = await exchanged(made.port, head, INNER, end=False)
        assert statuses(answered) == [401]
        reported = await exchanged(made.port, post("/x", b"", "Expect: 100-continue\r\n")[:-4] + b"\r\n\r\n")
        assert statuses(reported) == [100, 200]


async def test_pipelined_requests_wait_in_a_bounded_line() -> None:
    async with echo() as made:
        made.gate.clear()
        asking = asyncio.create_task(exchanged(made.port, INNER * 1000, end=False))
        await asyncio.sleep(0.2)
        made.gate.set()
        answered = statuses(await asking)
    assert set(answered) == {200}
    assert len(answered) <= 102


async def test_malformed_requests_are_logged_a_few_times_a_minute() -> None:
    async with echo() as made:
        with capture_logs() as lines:
            for _ in range(50):
                assert statuses(await exchanged(made.port, b"\x16\x03\x01 nonsense\r\n\r\n")) == [400]
    assert len([line for line in lines if line["event"] == "request_refused"]) == 5
