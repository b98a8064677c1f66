"""A table of behaviours of result hosts, and the outcome for the image. Nothing unsafe is kept, whatever its name."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import ssl
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image as pillow

from receiver.domain.jobs import KeptImage
from submitter.sandbox import test_picture as picture_bytes
from tests.receiver.net.test_client import Request, ResetNow, Say, serving
from tests.receiver.upstream.test_archive import Links as Nothing
from tests.receiver.upstream.test_archive import archive, run, succeeded
from tests.support.bombs import ZLIB, mebibytes
from tests.support.certificates import self_signed
from tests.support.pictures import chunk, png

PICTURE = picture_bytes(80, 60)
HTML = b"<!DOCTYPE html><html><title>Just a moment</title></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
SAFE = {f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "tiff", "avif", "bmp")}
Answers = Callable[[int, Request, Say], Awaitable[None]]


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    pillow.effect_noise((120, 90), 90).convert("RGB").save(out, kind)
    return out.getvalue()


def answer(body: bytes = PICTURE, status: str = "200 OK", *, length: int | None = -1, **headers: str) -> bytes:
    """*length*: what is claimed; -1 for the truth, None for no claim."""
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length < 0 else length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def always(data: bytes) -> Answers:
    async def say_it(n: int, request: Request, say: Say) -> None:
        await say(data)

    return say_it


# --- What takes long to make is made for the test that sends it -------------------------------------------------------


async def large_metadata(n: int, request: Request, say: Say) -> None:
    await say(answer(png(9, 9, extra=chunk(b"zTXt", b"a\0\0" + mebibytes(64, form=ZLIB)))))


async def gzip_twice(n: int, request: Request, say: Say) -> None:
    await say(answer(gzip.compress(mebibytes(64)), Content_Encoding="gzip, gzip"))


async def bomb(n: int, request: Request, say: Say) -> None:
    await say(answer(await asyncio.to_thread(mebibytes, 1024), Content_Encoding="gzip"))


def then(*firsts: bytes, last: bytes | None = None) -> Answers:
    """*firsts* one after the other, then *last*, the picture if it is not given."""

    async def say_it(n: int, request: Request, say: Say) -> None:
        await say(firsts[n - 1] if n <= len(firsts) else answer() if last is None else last)

    return say_it


async def drip(n: int, request: Request, say: Say) -> None:
    body = answer()
    for start in range(0, len(body), 400):
        await say(body[start : start + 400])
        await asyncio.sleep(0.001)


async def chunked(n: int, request: Request, say: Say) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = [PICTURE[start : start + 300] for start in range(0, len(PICTURE), 300)]
    await say(head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n")


async def resumed(n: int, request: Request, say: Say) -> None:
    start = int(request.headers.get("range", "bytes=0-")[6:].rstrip("-"))
    if start:
        place = f"bytes {start}-{len(PICTURE) - 1}/{len(PICTURE)}"
        await say(answer(PICTURE[start:], "206 Partial", Content_Range=place))
    else:
        await say(answer(Accept_Ranges="bytes", ETag='"1"')[:-1])


def redirects(target: str, *, times: int = 1) -> Answers:
    async def say_it(n: int, request: Request, say: Say) -> None:
        arrived = request.target.endswith("/there") or n > times
        await say(answer() if arrived else answer(b"", "302 Found", Location=target))

    return say_it


async def cut_between_chunks(n: int, request: Request, say: Say) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    await say(answer() if n > 1 else head + b"%x\r\n%s\r\n" % (len(PICTURE), PICTURE))


async def reset(n: int, request: Request, say: Say) -> None:
    await say(answer() if n > 1 else answer()[:-40])
    if n == 1:
        await asyncio.sleep(0.01)  # what was said is not to be overtaken by the reset
        raise ResetNow


async def endless(n: int, request: Request, say: Say) -> None:
    await say(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE)
    while True:
        await say(bytes(4 << 20))


@dataclass
class Row:
    name: str
    answers: Answers
    state: str
    fetches: int | None = 1
    """None: as many as there is time for."""
    reason: str = ""
    link: str = "{origin}/picture"
    tls: bool = False


KEPT = [
    Row("a plain picture", always(answer()), "kept"),
    Row("no content type", always(answer()), "kept"),
    Row("called text/html", always(answer(Content_Type="text/html")), "kept"),
    Row("called a stream of octets", always(answer(Content_Type="application/octet-stream")), "kept"),
    Row("no length", always(answer(length=None)), "kept"),
    Row("chunked", chunked, "kept"),
    Row("drips", drip, "kept"),
    Row("labelled aws-chunked", always(answer(Content_Encoding="aws-chunked")), "kept"),
    Row("labelled utf-8", always(answer(Content_Encoding="utf-8")), "kept"),
    Row("labelled none", always(answer(Content_Encoding="none")), "kept"),
    Row("labelled br over plain bytes", always(answer(Content_Encoding="br")), "kept"),
    Row("labelled gzip over plain bytes", always(answer(Content_Encoding="gzip")), "kept"),
    Row("really gzip", always(answer(gzip.compress(PICTURE), Content_Encoding="gzip")), "kept"),
    Row("203", always(answer(status="203 Non-Authoritative")), "kept"),
    Row("206 without a range", always(answer(status="206 Partial", Content_Range="bytes 0-1/2")), "kept"),
    Row("403, then there", then(answer(HTML, "403 Forbidden")), "kept", 2),
    Row("404 twice, then there", then(answer(b"", "404 No"), answer(b"", "404 No")), "kept", 3),
    Row("429, then there", then(answer(b"", "429 Slow", Retry_After="1")), "kept", 2),
    Row("500, then there", then(answer(HTML, "500 Oops")), "kept", 2),
    Row("empty, then there", then(answer(b"")), "kept", 2),
    Row("a page, then there", then(answer(HTML)), "kept", 2),
    Row("half of it, then there", then(answer(PICTURE[: len(PICTURE) // 2], length=None)), "kept", 2),
    Row("a length too long, then true", then(answer(length=10**6)), "kept", 2),
    Row("cut, and continued by range", resumed, "kept", 2),
    Row("another path", redirects("/there"), "kept", 2),
    Row("a relative path", redirects("there"), "kept", 2),
    Row("three redirects", redirects("/again", times=3), "kept", 4),
    Row("junk behind the end", always(answer(PICTURE + b"trailer" * 99)), "kept"),
    Row("large metadata", large_metadata, "kept"),
    Row("HTTP/1.0", always(answer().replace(b"HTTP/1.1", b"HTTP/1.0", 1)), "kept"),
    Row("early hints before it", always(b"HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\n" + answer()), "kept"),
    Row("503, then there", then(answer(HTML, "503 Busy", Retry_After="1")), "kept", 2),
    Row("204, then there", then(answer(b"", "204 No Content", length=None)), "kept", 2),
    Row("304 unasked, then there", then(answer(b"", "304 Not Modified")), "kept", 2),
    Row(
        "a part from the middle, then whole", then(answer(b"x", "206 Partial", Content_Range="bytes 5-5/9")), "kept", 2
    ),
    Row("chunked and cut, then there", cut_between_chunks, "kept", 2),
    Row("reset in the middle, then there", reset, "kept", 2),
    Row("two lengths, then one", then(answer(Content_length="1")), "kept", 2),
    Row("a head of 200 kB, then there", then(answer(X_Long="x" * 200_000)), "kept", 2),
    Row("really deflate", always(answer(zlib.compress(PICTURE), Content_Encoding="deflate")), "kept"),
    Row("WEBP", always(answer(encoded("WEBP"))), "kept"),
    Row("GIF", always(answer(encoded("GIF"))), "kept"),
    Row("AVIF", always(answer(encoded("AVIF"))), "kept"),
    Row("TIFF", always(answer(encoded("TIFF"))), "kept"),
    Row("a garbled header line first", then(b"HTTP/1.1 nonsense\r\n\r\n"), "kept", 2),
    Row("closes at once, then there", then(b""), "kept", 2),
]
LOST = [
    Row("403 for ever", always(answer(HTML, "403 Forbidden")), "lost", None, "answered 403"),
    Row("410", always(answer(b"", "410 Gone")), "lost", 1, "answered 410"),
    Row("a page for ever", always(answer(HTML)), "lost", None, "not kept"),
    Row("SVG with a script", always(answer(SVG, Content_Type="image/png")), "lost", None, "not kept"),
    Row("half of it for ever", always(answer(PICTURE[:-40], length=None)), "lost", None, "cut off"),
    Row("PDF called PNG", always(answer(b"%PDF-1.7 " * 99, Content_Type="image/png")), "lost", None, "not kept"),
    Row("10 GB", always(answer(b"", length=10**10)), "lost", 1, "larger than"),
    Row("gzip twice", gzip_twice, "lost", 1, "more than once"),
    Row("a bomb of 1 GB", bomb, "lost", 1, "larger than"),
    Row("a private address", redirects("http://10.0.0.1/x.png", times=99), "lost", None, "must not be reached"),
    Row("an empty answer for ever", always(answer(b"")), "lost", None, "empty"),
    Row("an endless answer", endless, "lost", 1, "larger than"),
    Row("JSON", always(answer(b'{"error": "expired"}', Content_Type="image/png")), "lost", None, "not kept"),
    Row("a redirect to nowhere", always(answer(b"", "302 Found")), "lost", None, "without a usable Location"),
    Row("links to a private address", always(answer()), "lost", 0, "must not be reached", "http://10.0.0.1/x.png"),
    Row("links to metadata", always(answer()), "lost", 0, "must not be reached", "http://169.254.169.254/latest"),
    Row("a port where nobody listens", always(answer()), "lost", 0, "no connection", "http://127.0.0.1:64999/x.png"),
    Row("a certificate of its own", always(answer()), "lost", 0, "certificate", tls=True),
    Row("a file", redirects("file:///etc/passwd", times=99), "lost", None, ""),
    Row("a circle", redirects("/again", times=10**6), "lost", None, "redirected more than"),
]


@dataclass
class Outcome:
    image: KeptImage
    """As it is a while later."""
    fetches: int
    """Requests that reached the host."""
    data: bytes | None
    """What is kept."""
    peak_bytes: int
    """The most memory that was allocated."""


async def outcome(tmp_path: Path, row: Row) -> Outcome:
    """What becomes of an image whose host behaves as *row* says."""
    tracemalloc.start()
    try:
        image, fetches, data = await kept(tmp_path, row)
        return Outcome(image, fetches, data, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


async def kept(tmp_path: Path, row: Row) -> tuple[KeptImage, int, bytes | None]:
    fetched = 0
    context = None
    if row.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self_signed(tmp_path, "127.0.0.1"))

    async def script(request: Request, say: Say) -> None:
        nonlocal fetched
        fetched += 1
        await row.answers(fetched, request, say)
        raise ConnectionError("the server closes")

    async with archive(tmp_path, Nothing()) as (keeper, running), serving(script, context) as (origin, _):
        address = origin.removeprefix("http://")
        link = row.link.format(origin=f"https://{address}" if row.tls else origin, address=address)
        job_id = await succeeded(running, link, expires_in=70)
        await run(keeper, running.clock, seconds=300)
        found = await running.store.job(job_id)
        assert found is not None
        path = tmp_path / "images" / job_id / "0"
        assert not [part for part in (tmp_path / "parts").rglob("*") if part.is_file() and part.stat().st_size]
        return found[1][0], fetched, path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("row", [*KEPT, *LOST], ids=lambda row: row.name)
async def test_what_becomes_of_an_image(tmp_path: Path, row: Row) -> None:
    found = await outcome(tmp_path, row)
    image = found.image
    assert image.state == row.state, image.last_error
    assert (found.data is not None) == (row.state == "kept")
    if found.data is not None:
        assert image.sha256 == hashlib.sha256(found.data).hexdigest()
        assert image.content_type in SAFE
    if row.fetches is not None:
        assert found.fetches == row.fetches
    if row.state == "lost" and row.reason:
        assert row.reason in (image.last_error or "")
    assert found.peak_bytes < 40 << 20


def test_the_table_is_long_enough() -> None:
    assert len(KEPT) + len(LOST) >= 40
