"""The guarded client against real servers on the loopback network, which the guard is told to allow."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from receiver.net.client import Answer, DownloadFailed, NoAnswer, Outbound, UrlRefused
from receiver.net.guard import Guard
from receiver.net.transport import GuardedTransport
from tests.support.certificates import self_signed
from tests.support.waiting import PATIENCE_SECONDS, patiently

LOOPBACK = [ip_network("127.0.0.0/8")]
TLS = ssl.create_default_context()

Say = Callable[[bytes], Awaitable[None]]
Script = Callable[["Request", Say], Awaitable[None]]


class Request:
    """One request as a server saw it."""

    def __init__(self, head: bytes, body: bytes, connection: int) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = httpx.Headers(
            [(name, value) for name, _, value in (line.partition(": ") for line in lines if line)]
        )
        self.body = body
        self.connection = connection


class ResetNow(ConnectionResetError):
    """Raised by a script: the connection ends with a reset, not with a close."""


class Server:
    """Plays *script* for every request: what it says goes out byte by byte as it is; returning ends nothing."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self.conversations: list[asyncio.Task[None]] = []
        self.hung_up = asyncio.Event()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.conversations += filter(None, [asyncio.current_task()])
        self.connections += 1
        connection = self.connections

        async def say(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head, b"", connection)
                request.body = await reader.readexactly(int(request.headers.get("content-length", 0)))
                self.requests.append(request)
                await self.script(request, say)
                if request.target.startswith("/close"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            if isinstance(exc, ResetNow):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.hung_up.set()
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Script, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, Server]]:
    server = Server(script)
    listening = await asyncio.start_server(server.converse, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        listening.close()
        for conversation in server.conversations:
            conversation.cancel()
        await asyncio.gather(*server.conversations)


def saying(status: str, body: bytes = b"", **headers: str) -> Script:
    async def script(request: Request, say: Say) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await say("\r\n".join([*lines, "", ""]).encode() + body)

    return script


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with Outbound(Guard(LOOPBACK), ssl_context=TLS) as client:
        yield client


async def test_a_post_carries_its_headers_and_body_and_brings_the_answer(outbound: Outbound) -> None:
    async with serving(saying("201 Created", b"thanks", X_Seen="1")) as (url, server):
        headers = {"Content-Type": "application/json", "User-Agent": "mine", "webhook-id": "evt_1"}
        answer = await outbound.post(
            f"{url}/hook?a=b", content=b'{"a":1}', headers=headers, timeout_seconds=60, max_answer_bytes=100
        )
    assert (answer.status, answer.body, answer.complete, answer.headers["x-seen"]) == (201, b"thanks", True, "1")
    [request] = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/hook?a=b", b'{"a":1}')
    assert request.headers["host"] == url.removeprefix("http://")
    assert request.headers.get_list("user-agent") == ["mine"]
    assert request.headers["webhook-id"] == "evt_1"
    assert "cookie" not in request.headers and "authorization" not in request.headers


async def test_posts_share_a_connection_and_keep_no_cookies(outbound: Outbound) -> None:
    async with serving(saying("200 OK", b"ok", Set_Cookie="a=b")) as (url, server):
        for _ in range(3):
            await outbound.post(url, content=b"", headers={}, timeout_seconds=60, max_answer_bytes=100)
    assert server.connections == 1
    assert all("cookie" not in request.headers for request in server.requests)


async def test_a_long_answer_is_cut_and_its_connection_dropped(outbound: Outbound) -> None:
    async def endless(request: Request, say: Say) -> None:
        await say(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await say(b"3e8\r\n" + b"x" * 1000 + b"\r\n")

    async with serving(endless) as (url, server):
        answer = await outbound.post(url, content=b"", headers={}, timeout_seconds=60, max_answer_bytes=1500)
        await patiently(server.hung_up.wait())
    assert (answer.status, answer.body, answer.complete) == (500, b"x" * 1500, False)


async def test_a_server_that_drips_its_head_ends_at_the_deadline(outbound: Outbound) -> None:
    async def drip(request: Request, say: Say) -> None:
        await say(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await say(b"x")
            await asyncio.sleep(0.02)

    async with serving(drip) as (url, server):
        with pytest.raises(NoAnswer) as failure:
            await outbound.post(url, content=b"", headers={}, timeout_seconds=0.2, max_answer_bytes=100)
        await patiently(server.hung_up.wait())
    assert failure.value.reason == "timeout"


async def test_a_server_that_drips_its_body_ends_at_the_deadline_and_its_status_counts(outbound: Outbound) -> None:
    async def drip(request: Request, say: Say) -> None:
        await say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await say(b"x")
            await asyncio.sleep(0.02)

    async with serving(drip) as (url, server):
        answer = await answered(outbound, url)
        await patiently(server.hung_up.wait())
    assert answer.status == 200
    assert answer.body.startswith(b"x")
    assert not answer.complete


async def answered(outbound: Outbound, url: str) -> Answer:
    """Return the answer by a deadline; later ones are tried if a busy machine delivers not even a byte by then."""
    for seconds in (0.2, 2, 20):
        with suppress(NoAnswer):
            answer = await outbound.post(url, content=b"", headers={}, timeout_seconds=seconds, max_answer_bytes=1000)
            if answer.body:
                return answer
    raise AssertionError("no byte came")


@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"", "broken"), (b"HTTP/1.1 2", "broken"), (b"SSH-2.0-OpenSSH\r\n\r\n", "broken"), (b"\0" * 200, "broken")],
)
async def test_an_answer_that_is_none_says_why(said: bytes, reason: str, outbound: Outbound) -> None:
    async with serving(lambda request, say: say(said)) as (url, _):
        with pytest.raises(NoAnswer) as failure:
            await outbound.post(f"{url}/close", content=b"", headers={}, timeout_seconds=60, max_answer_bytes=100)
    assert failure.value.reason == reason
    assert not failure.value.permanent


async def test_nobody_listening_is_no_answer_and_shows_no_address(outbound: Outbound) -> None:
    async with serving(saying("200 OK")) as (url, _):
        pass
    with pytest.raises(NoAnswer) as failure:
        await outbound.post(url, content=b"", headers={}, timeout_seconds=60, max_answer_bytes=100)
    assert failure.value.reason == "connect"
    assert "127.0.0.1" not in str(failure.value)


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(saying("200 OK")) as (url, server), Outbound(Guard(LOOPBACK), ssl_context=TLS) as outbound:
        answer = await outbound.post(url, content=b"", headers={}, timeout_seconds=60, max_answer_bytes=100)
    assert answer.status == 200
    assert "authorization" not in server.requests[0].headers


async def test_a_second_address_is_tried_when_the_first_is_dead() -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.77", "127.0.0.1"]  # the server listens on the second only

    async with (
        serving(saying("200 OK")) as (url, server),
        Outbound(Guard(LOOPBACK, resolver=resolver), ssl_context=TLS) as outbound,
    ):
        named = url.replace("127.0.0.1", "hooks.example")
        answer = await outbound.post(named, content=b"", headers={}, timeout_seconds=60, max_answer_bytes=100)
    assert answer.status == 200
    assert server.requests[0].headers["host"] == named.removeprefix("http://")


async def test_the_transport_serves_a_plain_httpx_client() -> None:
    async with (
        serving(saying("200 OK", b"hello")) as (url, _),
        httpx.AsyncClient(transport=GuardedTransport(Guard(LOOPBACK), ssl_context=TLS)) as client,
    ):
        assert (await client.get(url)).text == "hello"
    async with httpx.AsyncClient(transport=GuardedTransport(Guard(LOOPBACK), ssl_context=TLS)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
        with pytest.raises(UrlRefused):
            await client.get("http://8.8.8.8/")
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ws://127.0.0.1/")


# Downloads


async def fetch(outbound: Outbound, url: str, max_bytes: int = 1000, timeout_seconds: float = 60) -> DownloadFailed:
    """The failure that is expected."""
    with pytest.raises(DownloadFailed) as failure:
        await outbound.download(url, io.BytesIO(), max_bytes=max_bytes, timeout_seconds=timeout_seconds)
    return failure.value


async def test_a_download_is_written_and_digested_off_the_loop(outbound: Outbound, tmp_path: Path) -> None:
    picture = bytes(range(256)) * 16384
    threads = set()

    class Noting(io.FileIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            threads.add(threading.get_ident())
            assert len(data) <= 2 * 1024 * 1024
            return super().write(data)

    async with serving(saying("200 OK", picture, Content_Type="Image/PNG; q=1", Set_Cookie="a=b")) as (url, server):
        with Noting(tmp_path / "picture", "w") as to:
            got = await outbound.download(f"{url}/a.png", to, max_bytes=len(picture), timeout_seconds=60)
    assert (tmp_path / "picture").read_bytes() == picture
    assert got.sha256 == hashlib.sha256(picture).hexdigest()
    assert (got.status, got.bytes, got.content_type) == (200, len(picture), "image/png")
    assert threading.get_ident() not in threads
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_an_empty_file_is_a_file(outbound: Outbound) -> None:
    async with serving(saying("200 OK")) as (url, _):
        got = await outbound.download(url, io.BytesIO(), max_bytes=0, timeout_seconds=60)
    assert (got.bytes, got.sha256, got.content_type) == (0, hashlib.sha256().hexdigest(), "")


@pytest.mark.parametrize(
    ("status", "permanent"),
    [
        *((status, True) for status in (400, 401, 403, 404, 410, 451)),
        *((status, False) for status in (204, 206, 304, 408, 425, 429, 500, 503)),
    ],
)
async def test_the_status_tells_a_dead_link_from_a_bad_moment(status: int, permanent: bool, outbound: Outbound) -> None:
    async with serving(saying(f"{status} Said", Retry_After="7")) as (url, _):
        failure = await fetch(outbound, f"{url}/close")
    assert (failure.status, failure.permanent, failure.retry_after_seconds) == (status, permanent, 7.0)


async def test_a_file_that_says_it_is_too_large_is_not_read(outbound: Outbound) -> None:
    async def promise(request: Request, say: Say) -> None:
        await say(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")  # and not one byte of it

    async with serving(promise) as (url, server):
        failure = await fetch(outbound, url)
        await patiently(server.hung_up.wait())
    assert (failure.permanent, failure.status) == (True, 200)
    assert "larger than 1000 bytes" in str(failure)


async def test_a_file_that_does_not_say_how_large_it_is_is_cut_off(outbound: Outbound) -> None:
    async def endless(request: Request, say: Say) -> None:
        await say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await say(b"3e8\r\n" + b"x" * 1000 + b"\r\n")

    sink = io.BytesIO()
    async with serving(endless) as (url, server):
        with pytest.raises(DownloadFailed, match="larger") as failure:
            await outbound.download(url, sink, max_bytes=1_000_000, timeout_seconds=60)
        await patiently(server.hung_up.wait())
    assert failure.value.permanent
    assert len(sink.getvalue()) <= 1_000_000


async def test_more_bytes_than_declared_are_not_part_of_the_file(outbound: Outbound) -> None:
    async with serving(lambda request, say: say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour and more")) as (
        url,
        _,
    ):
        sink = io.BytesIO()
        got = await outbound.download(f"{url}/close", sink, max_bytes=5, timeout_seconds=60)
    assert (sink.getvalue(), got.bytes) == (b"four", 4)


async def test_fewer_bytes_than_declared_are_not_a_file(outbound: Outbound) -> None:
    async with serving(lambda request, say: say(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nfour")) as (url, _):
        failure = await fetch(outbound, f"{url}/close")
    assert not failure.permanent


async def test_a_dripping_file_ends_at_the_deadline(outbound: Outbound) -> None:
    async def drip(request: Request, say: Say) -> None:
        await say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await say(b"x")
            await asyncio.sleep(0.02)

    async with serving(drip) as (url, server):
        failure = await fetch(outbound, url, timeout_seconds=0.2)
        await patiently(server.hung_up.wait())
    assert (failure.status, failure.permanent) == (None, False)


async def test_no_write_is_under_way_when_a_download_has_ended(outbound: Outbound) -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended = []

    class Slow:
        def write(self, data: bytes, /) -> None:
            begun.set()
            may_end.wait(PATIENCE_SECONDS)
            ended.append(len(data))

    async with serving(saying("200 OK", b"four")) as (url, _):
        download = asyncio.create_task(outbound.download(url, Slow(), max_bytes=10, timeout_seconds=60))
        await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        download.cancel()
        await asyncio.sleep(0)
        assert not download.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await download
    assert ended == [4]


async def test_a_full_disk_is_our_fault_and_stays_an_oserror(outbound: Outbound) -> None:
    class Full:
        def write(self, data: bytes, /) -> None:
            raise OSError(28, "No space left on device")

    async with serving(saying("200 OK", b"four")) as (url, _):
        with pytest.raises(OSError, match="space"):
            await outbound.download(url, Full(), max_bytes=10, timeout_seconds=60)


async def test_a_bomb_is_not_unpacked(outbound: Outbound) -> None:
    async with serving(saying("200 OK", gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")) as (url, _):
        failure = await fetch(outbound, url, max_bytes=100_000)
    assert failure.permanent
    assert "compressed" in str(failure)


async def test_redirects_are_followed_three_times_and_not_four(outbound: Outbound) -> None:
    async def count_down(request: Request, say: Say) -> None:
        left = int(request.target.removeprefix("/"))
        if left:
            await say(f"HTTP/1.1 302 Found\r\nLocation: {left - 1}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            await say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere")

    async with serving(count_down) as (url, _):
        sink = io.BytesIO()
        await outbound.download(f"{url}/3", sink, max_bytes=10, timeout_seconds=60)
        assert sink.getvalue() == b"here"
        failure = await fetch(outbound, f"{url}/4")
    assert (failure.permanent, failure.status) == (True, 302)


async def test_a_redirect_without_a_target_is_permanent(outbound: Outbound) -> None:
    async with serving(saying("301 Moved")) as (url, _):
        failure = await fetch(outbound, url)
    assert (failure.permanent, failure.status) == (True, 301)


async def test_headers_for_one_host_are_not_sent_to_another(outbound: Outbound) -> None:
    async with serving(saying("200 OK", b"here")) as (other_url, other):

        async def script(request: Request, say: Say) -> None:
            location = f"{other_url}/there" if request.target == "/second" else "/second"
            await say(f"HTTP/1.1 307 Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

        async with serving(script) as (url, first):
            headers = {"Authorization": "Bearer s3cret", "Cookie": "a=b", "X-Key": "k"}
            await outbound.download(f"{url}/first", io.BytesIO(), max_bytes=10, timeout_seconds=60, headers=headers)
    assert [request.headers["authorization"] for request in first.requests] == ["Bearer s3cret"] * 2
    assert other.requests[0].headers.keys().isdisjoint({"authorization", "cookie", "x-key"})


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return TLS contexts for a server of hooks.example and for a client that trusts it."""
    pem = self_signed(tmp_path_factory.mktemp("tls"), "hooks.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def everywhere(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


async def test_the_dialled_address_is_pinned_while_sni_certificate_and_host_stay_on_the_name(
    authority: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server_side, client_side = authority
    asked_for = []
    server_side.sni_callback = lambda _, name, __: asked_for.append(name)
    async with (
        serving(saying("200 OK", b"ok"), server_side) as (url, server),
        Outbound(Guard(LOOPBACK, resolver=everywhere), ssl_context=client_side) as outbound,
    ):
        port = url.rpartition(":")[2]
        answer = await outbound.post(
            f"https://hooks.example:{port}/", content=b"", headers={}, timeout_seconds=60, max_answer_bytes=9
        )
        assert (answer.status, asked_for) == (200, ["hooks.example"])
        assert server.requests[0].headers["host"] == f"hooks.example:{port}"
        with pytest.raises(NoAnswer, match="certificate") as failure:
            await outbound.post(
                f"https://other.example:{port}/", content=b"", headers={}, timeout_seconds=60, max_answer_bytes=9
            )
    assert failure.value.reason == "tls"
    assert len(server.requests) == 1


async def test_a_certificate_nobody_vouches_for_is_refused(
    authority: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with serving(saying("200 OK"), authority[0]) as (url, server):
        port = url.rpartition(":")[2]
        async with Outbound(Guard(LOOPBACK, resolver=everywhere)) as outbound:
            with pytest.raises(NoAnswer) as failure:
                await outbound.post(
                    f"https://hooks.example:{port}/", content=b"", headers={}, timeout_seconds=60, max_answer_bytes=9
                )
    assert failure.value.reason == "tls"
    assert server.requests == []
