"""An answer to a post is the same, and so is what becomes of its connection, whether a parser read it or not."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest

from receiver.net.client import NoAnswer, Outbound
from receiver.net.guard import Guard
from receiver.net.plain import plain_answer
from tests.receiver.net.test_connections import CHUNKS, LENGTH, Host, serving, transport
from tests.support.waiting import patiently

_MOST = 100
_PLAIN = [
    LENGTH,
    LENGTH.replace(b"200 OK", b"500"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nconnection: keep-alive\r\n\r\n"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nX:\t caf\xe9 \t\r\nRetry-After: 5\r\n\r\n"),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /\r\ncontent-length: 2\r\n\r\nno",
]
_OTHERS = [
    CHUNKS,
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH,
    LENGTH.replace(b"1.1", b"1.0"),
    LENGTH + b"HTTP/1.1 200 OK\r\n",
    CHUNKS.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1),
    LENGTH.replace(b"\r\n", b"\n"),
    LENGTH.replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n"),
    LENGTH.replace(b"h: 5", b"h : 5"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nContent-Length: 6\r\n\r\n"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"),
    LENGTH.replace(b"\r\n\r\n", b"\r\nX: a\0b\r\n\r\n"),
    LENGTH.replace(b": 5", b": +5"),
    LENGTH.replace(b": 5", b": -5"),
    LENGTH.replace(b": 5", b": 5, 5"),
    LENGTH.replace(b": 5", b": 0x5"),
    LENGTH.replace(b": 5", b": " + b"9" * 30),
    LENGTH.replace(b": 5", b":"),
    LENGTH.replace(b"200 OK", b"200\0OK"),
    LENGTH.replace(b"200 OK", b"99 OK"),
    LENGTH.replace(b"HTTP", b"http"),
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.7\r\n\r\n",
]


@pytest.mark.parametrize("answer", [*_PLAIN, *_OTHERS])
async def test_a_post_is_answered_as_a_parser_reads_it(answer: bytes) -> None:
    host = Host(answer, closes=b"Content-Length: 5" not in answer and answer not in _PLAIN)
    async with serving(host) as url, transport() as made:
        parsed = [await _parsed(made, url) for _ in range(2)]
        connections, host.connections = host.connections, 0
        async with Outbound(Guard([ip_network("127.0.0.0/8")])) as outbound:
            posted = [await _posted(outbound, url) for _ in range(2)]
    assert posted == parsed
    assert host.connections == connections


def test_the_ordinary_ones_need_no_parser_and_the_others_do() -> None:
    assert all(plain_answer(answer, _MOST) for answer in _PLAIN)
    assert not any(plain_answer(answer, _MOST) for answer in _OTHERS)
    assert plain_answer(LENGTH, 4) is None


async def test_the_status_counts_though_the_body_never_comes_to_its_end() -> None:
    host = Host(LENGTH.removesuffix(b"age"), closes=True)
    async with serving(host) as url, Outbound(Guard([ip_network("127.0.0.0/8")])) as outbound:
        for _ in range(2):
            assert await _posted(outbound, url) == (200, [(b"content-length", b"5")], b"im", False)
    assert host.connections == 2


async def test_a_body_that_comes_behind_its_head_leaves_the_connection_for_the_next_post() -> None:
    host = Host(LENGTH.removesuffix(b"image"), rest=b"image")
    async with serving(host) as url, Outbound(Guard([ip_network("127.0.0.0/8")])) as outbound:
        for _ in range(3):
            assert await _posted(outbound, url) == (200, [(b"content-length", b"5")], b"image", True)
    assert host.connections == 1


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\0b", "é"])
async def test_a_header_that_is_no_single_line_is_not_sent(value: str) -> None:
    host = Host(LENGTH)
    async with serving(host) as url, Outbound(Guard([ip_network("127.0.0.0/8")])) as outbound:
        with pytest.raises(NoAnswer):
            await outbound.post(url, content=b"", headers={"x": value}, timeout_seconds=60, max_answer_bytes=1)
    assert host.connections == 0


Seen = tuple[int, list[tuple[bytes, bytes]], bytes, bool] | None


async def _posted(outbound: Outbound, url: str) -> Seen:
    try:
        came = await outbound.post(url, content=b"", headers={}, timeout_seconds=60, max_answer_bytes=_MOST)
    except NoAnswer:
        return None
    return came.status, _fields(came.headers), came.body, came.complete


async def _parsed(made: httpx.AsyncBaseTransport, url: str) -> Seen:
    try:
        response = await patiently(made.handle_async_request(httpx.Request("POST", url)))
    except httpx.TransportError:
        return None
    body = b""
    try:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for part in response.stream:
            body += part
    except httpx.TransportError:
        return response.status_code, _fields(response.headers), body, False
    finally:
        await response.aclose()
    return response.status_code, _fields(response.headers), body, True


def _fields(headers: httpx.Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers.raw]
