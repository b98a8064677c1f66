"""Hostile URLs through the real client: what counts is whom the connector was asked for."""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Awaitable, Callable

import httpcore
import pytest

from receiver.net.client import (
    AddressForbidden,
    Answer,
    Downloaded,
    DownloadFailed,
    Guard,
    NoAnswer,
    Outbound,
    OutboundError,
    UrlRefused,
)
from receiver.net.guard import Resolver

PUBLIC = "93.184.216.34"
NAMES = {
    "public.example": [PUBLIC],
    "xn--mnchen-3ya.example": [PUBLIC],
    "loopback.example": ["127.0.0.1"],
    "private.example": ["10.1.2.3"],
    "metadata.google.internal": ["169.254.169.254"],
    "mixed.example": [PUBLIC, "192.168.1.1"],
    "mixed6.example": ["2606:4700:4700::1111", "::1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::a00:1"],
    "sixtofour.example": ["2002:7f00:1::"],
    "zone.example": ["fe80::1%2"],
    "unspecified.example": ["0.0.0.0"],
    "ula.example": ["fd00::1"],
    "tailnet.example": ["100.101.102.103"],
    "azure.example": ["168.63.129.16"],
    "nowhere.example": [],
}

HOSTILE = [
    # Addresses in plain words
    "https://127.0.0.1/",
    "https://127.255.255.254:8443/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.31.255.255/",
    "https://192.168.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    # ... and in others
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0x7F.0x0.0x0.0x1/",
    "https://0177.0.0.1/",
    "https://00000177.0.0.1/",
    "https://017700000001/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0/",
    "https://10.1/",
    "https://127.0.0.1./",
    "https://127.0.0.256/",
    "https://4294967297/",
    "https://127。0。0。1/",
    "https://１２７.0.0.1/",
    "https://①②⑦.⓪.⓪.①/",
    "https://127%2e0%2e0%2e1/",
    "https://%31%32%37.0.0.1/",
    "https://loopback%2eexample/",
    "https://127.0.0.1%00.public.example/",
    # IPv6
    "https://[::]/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]:8443/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[::ffff:0:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::169.254.169.254]/",
    "https://[64:ff9b:1::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2002:a9fe:a9fe::]/",
    "https://[2001:0:41d0:1::80ff:fffe]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[::1/",
    "https://::1/",
    "https://[127.0.0.1]/",
    "https://[v1.::1]/",
    # Who is meant?
    "https://public.example@127.0.0.1/",
    "https://public.example:443@127.0.0.1/",
    "https://127.0.0.1@public.example/",
    "https://user:word@public.example/",
    "https://@public.example/",
    "https://public.example%40127.0.0.1/",
    "https://public.example\\@127.0.0.1/",
    "https://127.0.0.1\\.public.example/",
    "https:\\\\127.0.0.1/",
    "https:///127.0.0.1/",
    "https:127.0.0.1/",
    "https:/127.0.0.1/",
    "//127.0.0.1/",
    "https://127.0.0.1#@public.example/",
    "https://127.0.0.1?@public.example/",
    "https://public.example\t@127.0.0.1/",
    "https://public.example /",
    " https://127.0.0.1/",
    "https://public.example\r\nHost: 127.0.0.1/",
    "https://public.example/\r\nX-Injected: yes",
    "https://",
    "",
    # Names
    "https://loopback.example/",
    "https://LOOPBACK.example/",
    "https://loopback.example./",
    "https://public.example./",
    "https://private.example/",
    "https://metadata.google.internal/computeMetadata/v1/",
    "https://mixed.example/",
    "https://mixed6.example/",
    "https://mapped.example/",
    "https://nat64.example/",
    "https://sixtofour.example/",
    "https://zone.example/",
    "https://unspecified.example/",
    "https://ula.example/",
    "https://tailnet.example/",
    "https://azure.example/",
    "https://nowhere.example/",
    "https://unheard-of.example/",
    "https://public..example/",
    "https://-public.example/",
    "https://pub(lic).example/",
    f"https://{'a' * 64}.example/",
    f"https://{'a.' * 130}example/",
    # Schemes
    "http://public.example/",
    "http://93.184.216.34/",
    "http://127.0.0.1/",
    "ftp://public.example/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "ws://public.example/",
    "wss://public.example/",
    "data:image/png;base64,AAAA",
    "javascript://public.example/%0aalert(1)",
    "jar:https://public.example!/",
    # Ports
    "https://public.example:0/",
    "https://public.example:22/",
    "https://public.example:25/",
    "https://public.example:6379/",
    "https://public.example:65536/",
    "https://public.example:99999999999/",
    "https://public.example:-1/",
    "https://public.example:+443/",
    "https://public.example:４４３/",
    "https://public.example:443:80/",
    "https://public.example:https/",
    # Size
    f"https://public.example/{'a' * 9000}",
]


async def names(host: str, port: int) -> list[str]:
    """Our own zone; what is not in it gets the C library's reading, which is generous with numbers."""
    if host in NAMES:
        return NAMES[host]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Connector:
    """Remembers whom it was asked for, and plays them *answers* in turn; without one left, nobody is there."""

    def __init__(self, *answers: bytes) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answers = list(answers)

    async def __call__(self, address: str, port: int, timeout: float | None) -> httpcore.AsyncNetworkStream:
        self.asked.append((address, port))
        if not self.answers:
            raise httpcore.ConnectError("nobody there")
        return httpcore.AsyncMockStream([self.answers.pop(0)])


TLS = ssl.create_default_context()


def guarded(connector: Connector, resolver: Resolver = names) -> Outbound:
    return Outbound(Guard(resolver=resolver), connect=connector, ssl_context=TLS)


def redirect(location: str, status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return head.encode("utf-8", "surrogateescape")


async def post(outbound: Outbound, url: str) -> Answer:
    return await outbound.post(url, content=b"{}", headers={}, timeout_seconds=60, max_answer_bytes=100)


async def download(outbound: Outbound, url: str) -> Downloaded:
    return await outbound.download(url, io.BytesIO(), max_bytes=1000, timeout_seconds=60)


def test_the_table_is_long_enough() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100


@pytest.mark.parametrize("call", [post, download])
@pytest.mark.parametrize("url", HOSTILE, ids=ascii)
async def test_a_hostile_url_never_reaches_the_connector(
    url: str, call: Callable[[Outbound, str], Awaitable[object]]
) -> None:
    connector = Connector()
    async with guarded(connector) as outbound:
        with pytest.raises(OutboundError) as failure:
            await call(outbound, url)
    assert connector.asked == []
    if "example/" in url and any(name in url for name in ("nowhere", "unheard")):
        assert isinstance(failure.value, NoAnswer | DownloadFailed)
        assert not failure.value.permanent
    else:
        assert isinstance(failure.value, UrlRefused | AddressForbidden)
        assert failure.value.permanent


@pytest.mark.parametrize(
    "url", ["https://public.example/", "https://münchen.example/", f"https://{PUBLIC}/", "https://[2606:4700::1]:444/"]
)
async def test_the_same_connector_is_asked_for_public_addresses(url: str) -> None:
    connector = Connector()
    async with guarded(connector) as outbound:
        with pytest.raises(NoAnswer) as failure:
            await post(outbound, url)
    assert failure.value.reason == "connect"
    assert connector.asked in ([(PUBLIC, 443)], [("2606:4700::1", 444)])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_post_does_not_follow_a_redirect(status: int) -> None:
    connector = Connector(redirect("https://public.example/other", status))
    async with guarded(connector) as outbound:
        answer = await post(outbound, "https://public.example/")
    assert answer.status == status
    assert connector.asked == [(PUBLIC, 443)]


@pytest.mark.parametrize("location", [url for url in HOSTILE if url and "\r" not in url and url[0] != " "], ids=ascii)
async def test_a_redirect_to_a_hostile_url_is_judged_like_a_first_url(location: str) -> None:
    connector = Connector(redirect(location))
    async with guarded(connector) as outbound:
        with pytest.raises(OutboundError):
            await download(outbound, "https://public.example/")
    assert connector.asked == [(PUBLIC, 443)]


@pytest.mark.parametrize(
    "location", ["", " ", "/\\127.0.0.1/", "?127.0.0.1", "127.0.0.1", "@127.0.0.1", "/é ü"], ids=ascii
)
async def test_a_redirect_to_a_mere_path_reaches_nobody_but_the_host_that_sent_it(location: str) -> None:
    connector = Connector(redirect(location))
    async with guarded(connector) as outbound:
        with pytest.raises(OutboundError):
            await download(outbound, "https://public.example/")
    assert set(connector.asked) == {(PUBLIC, 443)}


async def test_a_redirect_from_https_to_http_is_refused() -> None:
    connector = Connector(redirect("http://public.example/"))
    async with guarded(connector) as outbound:
        with pytest.raises(UrlRefused, match="https"):
            await download(outbound, "https://public.example/")
    assert connector.asked == [(PUBLIC, 443)]


async def test_what_was_judged_is_dialled_though_the_name_has_moved_since() -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]
    lookups = []

    async def rebinding(host: str, port: int) -> list[str]:
        lookups.append(host)
        return answers[min(len(lookups), len(answers)) - 1]

    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    connector = Connector(ok, ok)
    async with guarded(connector, rebinding) as outbound:
        assert (await post(outbound, "https://rebind.example/")).body == b"ok"
        assert lookups == ["rebind.example"]  # once: nothing between verdict and dial asks again
        with pytest.raises(AddressForbidden):
            await post(outbound, "https://rebind.example/")
    assert connector.asked == [(PUBLIC, 443)]


async def test_the_judged_addresses_are_tried_in_turn_and_not_without_end() -> None:
    found = [f"93.184.216.{last}" for last in range(1, 100)]

    async def many(host: str, port: int) -> list[str]:
        return found

    connector = Connector()
    async with guarded(connector, many) as outbound:
        with pytest.raises(NoAnswer):
            await post(outbound, "https://many.example/")
    assert [address for address, _ in connector.asked] == found[:4]


async def test_no_error_text_holds_the_url_or_what_the_name_resolved_to() -> None:
    async with guarded(Connector()) as outbound:
        for start in ("https://private.example", "https://public.example", "https://public.example:22", "ftp://x"):
            for call in (post, download):
                with pytest.raises(OutboundError) as failure:
                    await call(outbound, f"{start}/s3cret?token=s3cret")
                assert "s3cret" not in str(failure.value)
                assert "10.1.2.3" not in str(failure.value)
                assert PUBLIC not in str(failure.value)
