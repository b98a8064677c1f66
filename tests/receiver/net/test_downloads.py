"""Downloads take bytes for what they are, undo real compression within the limit, and go on after a cut."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import AsyncIterator

import pytest

from receiver.net.client import DownloadCut, DownloadFailed, NotContinued, Outbound, UrlRefused
from receiver.net.guard import Guard
from tests.receiver.net.test_client import LOOPBACK, TLS, Request, Say, saying, serving
from tests.support.bombs import mebibytes
from tests.support.waiting import patiently

FILE = bytes(range(256)) * 4000
GZIPPED = gzip.compress(FILE)


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with Outbound(Guard(LOOPBACK), ssl_context=TLS) as client:
        yield client


async def got(outbound: Outbound, url: str, *, max_bytes: int = len(FILE)) -> bytes:
    """The file at *url*; its size and digest are those that the download says."""
    sink = io.BytesIO()
    downloaded = await outbound.download(url, sink, max_bytes=max_bytes, timeout_seconds=20)
    assert downloaded.bytes == len(sink.getvalue())
    assert downloaded.sha256 == hashlib.sha256(sink.getvalue()).hexdigest()
    return sink.getvalue()


@pytest.mark.parametrize(
    ("label", "body"),
    [
        *(
            (label, FILE)
            for label in ("", "aws-chunked", "utf-8", "binary", "none", "identity, aws-chunked", "gzip", "br")
        ),
        ("gzip", GZIPPED),
        ("aws-chunked,gzip", GZIPPED),
    ],
)
async def test_the_file_is_had_whatever_the_label(label: str, body: bytes, outbound: Outbound) -> None:
    async with serving(saying("200 OK", body, Content_Encoding=label)) as (url, _):
        assert await got(outbound, url) == FILE


async def test_compressed_more_than_once_is_refused(outbound: Outbound) -> None:
    body = gzip.compress(mebibytes(100))
    async with serving(saying("200 OK", body, Content_Encoding="gzip, gzip")) as (url, _):
        with pytest.raises(DownloadFailed, match="more than once") as failure:
            await got(outbound, url)
    assert failure.value.permanent


async def test_the_limit_counts_decoded_bytes(outbound: Outbound) -> None:
    async with serving(saying("200 OK", GZIPPED, Content_Encoding="gzip")) as (url, _):
        with pytest.raises(DownloadFailed, match="larger than"):
            await got(outbound, url, max_bytes=len(FILE) - 1)


async def test_a_cut_compressed_file_may_come_whole_the_next_time(outbound: Outbound) -> None:
    async with serving(saying("200 OK", GZIPPED[:-20], Content_Encoding="gzip")) as (url, _):
        with pytest.raises(DownloadFailed, match="cut off") as failure:
            await got(outbound, url)
    assert not failure.value.permanent


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("203 Transformed", {}),
        ("206 Partial", {}),
        ("206 Partial", {"Content_Range": "bytes 0-1/2"}),
        ("206 Partial", {"Content_Range": f"bytes 0-{len(FILE) - 1}/{len(FILE)}"}),
    ],
)
async def test_the_whole_file_may_come_as_203_or_206(status: str, headers: dict[str, str], outbound: Outbound) -> None:
    async with serving(saying(status, FILE, **headers)) as (url, _):
        assert await got(outbound, url) == FILE


async def test_a_part_from_the_middle_is_no_file(outbound: Outbound) -> None:
    async with serving(saying("206 Partial", FILE[5:], Content_Range="bytes 5-9/10")) as (url, _):
        with pytest.raises(DownloadFailed) as failure:
            await got(outbound, url)
    assert (failure.value.status, failure.value.permanent) == (206, False)


@pytest.mark.parametrize(
    ("hosts", "refused"),
    [
        ((), False),
        (("127.0.0.1",), False),
        (("a.example", "127.0.0.1"), False),
        (("*.0.0.1",), False),
        (("*.example",), True),
        (("*.127.0.0.1",), True),
        (("27.0.0.1",), True),
    ],
)
async def test_files_come_from_the_hosts_that_are_named(
    hosts: tuple[str, ...], refused: bool, outbound: Outbound
) -> None:
    async with serving(saying("200 OK", FILE)) as (url, server):
        fetching = outbound.download(url, io.BytesIO(), max_bytes=len(FILE), timeout_seconds=20, hosts=hosts)
        if refused:
            with pytest.raises(UrlRefused, match=r"127\.0\.0\.1 is not listed"):
                await fetching
        else:
            await fetching
        assert bool(server.requests) is not refused


async def test_a_redirect_leads_to_no_other_host(outbound: Outbound) -> None:
    async with serving(saying("200 OK", FILE)) as (url, elsewhere):
        there = url.replace("127.0.0.1", "127.0.0.2")
        async with serving(saying("302 Found", Location=there)) as (start, _):
            with pytest.raises(UrlRefused, match=r"127\.0\.0\.2 is not listed"):
                await outbound.download(
                    start, io.BytesIO(), max_bytes=len(FILE), timeout_seconds=20, hosts=["127.0.0.1"]
                )
    assert not elsewhere.requests


class Cutting:
    """Breaks off after *step* bytes of each answer; goes on where Range asks for it if *ranges*."""

    def __init__(self, step: int, *, ranges: bool = True, tag: str = 'ETag: "1"', label: str = "") -> None:
        self.step, self.ranges, self.tag, self.label = step, ranges, tag, label
        self.asked: list[tuple[str | None, str | None]] = []

    async def __call__(self, request: Request, say: Say) -> None:
        asked = request.headers.get("range")
        self.asked.append((asked, request.headers.get("if-range")))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        head = [f"HTTP/1.1 {'206 Partial' if start else '200 OK'}", f"Content-Length: {len(FILE) - start}", self.tag]
        head += ["Accept-Ranges: bytes"] if self.ranges else []
        head += [f"Content-Range: bytes {start}-{len(FILE) - 1}/{len(FILE)}"] if start else []
        head += [f"Content-Encoding: {self.label}"] if self.label else []
        await say("\r\n".join([*head, "", ""]).encode() + FILE[start : start + self.step])
        raise ConnectionError("cut")


@pytest.mark.parametrize("step", [len(FILE) // 2 + 1, len(FILE) // 4 + 1])
async def test_a_cut_file_is_continued_where_its_host_allows(step: int, outbound: Outbound) -> None:
    host = Cutting(step)
    async with serving(host) as (url, _):
        assert await got(outbound, url) == FILE
    starts = [f"bytes={step * n}-" for n in range(1, len(host.asked))]
    assert host.asked == [(None, None), *((start, '"1"') for start in starts)]


@pytest.mark.parametrize(
    ("host", "requests"),
    [
        (Cutting(len(FILE) // 2, ranges=False), 1),
        (Cutting(len(FILE) // 2, tag="X-Nothing: 1"), 1),
        (Cutting(len(FILE) // 2, tag='ETag: W/"weak"'), 1),
        (Cutting(len(FILE) // 9), 4),
        (Cutting(0), 1),
    ],
    ids=["no ranges", "nothing to recognise it by", "a weak tag", "cut too often", "nothing came"],
)
async def test_a_file_that_can_not_be_continued_may_come_the_next_time(
    host: Cutting, requests: int, outbound: Outbound
) -> None:
    async with serving(host) as (url, _):
        with pytest.raises(DownloadFailed) as failure:
            await got(outbound, url)
    assert not failure.value.permanent
    assert len(host.asked) == requests


async def test_a_file_that_changed_meanwhile_is_not_joined(outbound: Outbound) -> None:
    class Changed(Cutting):
        async def __call__(self, request: Request, say: Say) -> None:
            if "range" not in request.headers:
                await super().__call__(request, say)
            await say(f"HTTP/1.1 200 OK\r\nContent-Length: {len(FILE)}\r\n\r\n".encode() + FILE[::-1])

    async with serving(Changed(1000)) as (url, _):
        with pytest.raises(DownloadFailed, match="cut off") as failure:
            await patiently(got(outbound, url))
    assert not failure.value.permanent


async def test_the_next_try_goes_on_where_the_last_one_was_cut(outbound: Outbound) -> None:
    host, to, cut = Cutting(len(FILE) // 9), io.BytesIO(), None
    tries = 0
    async with serving(host) as (url, _):
        while True:
            tries += 1
            try:
                came = await outbound.fetch(url, to, max_bytes=len(FILE), timeout_seconds=60, resume=cut)
                break
            except DownloadCut as exc:
                cut = exc.arriving
    digest = came.finish()
    assert (to.getvalue(), came.bytes, digest) == (FILE, len(FILE), hashlib.sha256(FILE).hexdigest())
    assert tries == 3
    starts = [asked and int(asked.removeprefix("bytes=").rstrip("-")) for asked, _ in host.asked]
    assert starts == [None, *(len(FILE) // 9 * n for n in range(1, len(host.asked)))]


@pytest.mark.parametrize(
    ("later", "error"),
    [
        ("200 OK\r\nContent-Length: 3\r\n\r\nnew", NotContinued),
        (
            f'206 Part\r\nETag: "2"\r\nContent-Range: bytes {len(FILE) // 9 * 4}-\r\nContent-Length: 3\r\n\r\nnew',
            NotContinued,
        ),
        ("206 Part\r\nContent-Range: bytes 3-5/6\r\nContent-Length: 3\r\n\r\nnew", NotContinued),
        ("416 Range\r\nContent-Length: 0\r\n\r\n", NotContinued),
        ("503 Busy\r\nContent-Length: 0\r\n\r\n", DownloadCut),
        ("403 No\r\nContent-Length: 0\r\n\r\n", DownloadFailed),
    ],
)
async def test_what_the_next_try_answers_says_whether_there_is_more_to_come(
    later: str, error: type[DownloadFailed], outbound: Outbound
) -> None:
    host, to = Cutting(len(FILE) // 9), io.BytesIO()

    async def script(request: Request, say: Say) -> None:
        await (host(request, say) if len(host.asked) < 4 else say(f"HTTP/1.1 {later}".encode()))

    async with serving(script) as (url, _):
        with pytest.raises(DownloadCut) as cut:
            await outbound.download(url, to, max_bytes=len(FILE), timeout_seconds=60)
        with pytest.raises(DownloadFailed) as failure:
            await outbound.fetch(url, to, max_bytes=len(FILE), timeout_seconds=60, resume=cut.value.arriving)
    assert type(failure.value) is error
    assert to.getvalue() == FILE[: len(FILE) // 9 * 4]
