"""
A file being downloaded: decoded within its limit, digested, written off the event loop, and resumed after a cut.

An answer's own description is not trusted: content codings that are no compression are ignored, and an answer of 206 or
203 may hold the whole file. Whether it does is for the code that inspects the file to find out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import httpx

from receiver.net.guard import OutboundError
from submitter.content_coding import ContentRefused, ContentTooLarge, codings, decoded
from submitter.retry_after import retry_after_seconds
from submitter.threads import in_thread

WRITE_BYTES = 1024 * 1024
LONGEST_RETRY_AFTER = 86_400.0
_WHOLE = frozenset({200, 203, 206})
_PASSING = frozenset({408, 425, 429})  # of 4xx, those that another try may cure


class DownloadFailed(OutboundError):
    """
    The file was not received. `status` is the answer's, or None if there was none.

    `permanent`: the link is dead, or leads to something that we don't keep; otherwise another try may succeed.
    """

    def __init__(
        self, message: str, *, status: int | None, permanent: bool, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.permanent = permanent
        self.retry_after_seconds = retry_after_seconds


class DownloadCut(DownloadFailed):
    """It broke off or took too long, and its host may send the rest: hand *arriving* to the next try."""

    def __init__(self, message: str, arriving: Arriving, answer: DownloadFailed | None = None) -> None:
        status, retry_after = (None, None) if answer is None else (answer.status, answer.retry_after_seconds)
        super().__init__(message, status=status, permanent=False, retry_after_seconds=retry_after)
        self.arriving = arriving


class NotContinued(DownloadFailed):
    """The download can't be resumed: the file has changed, or its host sends only whole files."""

    def __init__(self) -> None:
        super().__init__("cut off, and the rest was not to be had", status=None, permanent=False)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A whole file, of which the last part may not be written yet."""

    status: int
    content_type: str
    bytes: int
    finish: Callable[[], str]
    """Write the last part, and return the SHA-256. Blocks; to be called once, and not while anything else writes."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole file. `content_type` is the server's claim, lower case, without parameters, empty if it made none."""

    status: int
    content_type: str
    bytes: int
    sha256: str


class Sink(Protocol):
    """The target of a download: a file opened for binary writing. Called in a thread, one call at a time."""

    def write(self, data: bytes, /) -> object: ...


class Arriving:
    """A file being downloaded. Where its host allows it, the rest is requested after a cut, and appended."""

    def __init__(self, to: Sink, max_bytes: int) -> None:
        self._to = to
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._size = 0
        self._waiting: list[bytes] = []
        self._unwritten = 0
        self._first: httpx.Response | None = None

    async def take(self, response: httpx.Response) -> None:
        """Write the body of *response*, the whole file or the rest of it; httpx.TransportError if it is cut off."""
        if self._first is None:
            self._check(response)
            self._first = response
        elif not self._continues(response):
            if response.status_code not in (*_WHOLE, 416):
                self._check(response)
            raise NotContinued
        label = response.headers.get("content-encoding", "")
        body = parts_of(response)
        if codings(label):
            body = decoded(body, label, max_bytes=self._max_bytes - self._size)
        try:
            async with aclosing(body):
                async for piece in body:
                    self._size += len(piece)
                    if self._size > self._max_bytes:
                        raise ContentTooLarge(f"larger than {self._max_bytes} bytes", permanent=True)
                    self._waiting.append(piece)
                    self._unwritten += len(piece)
                    if self._unwritten >= WRITE_BYTES:
                        await self._write()
        except ContentTooLarge as exc:
            once = " once its compressed form is undone" if codings(label) else ""
            raise self._failed(f"larger than {self._max_bytes} bytes{once}", permanent=True) from exc
        except ContentRefused as exc:
            raise self._failed(str(exc), permanent=exc.permanent) from exc

    def rest(self) -> dict[str, str] | None:
        """Return the headers that request the missing rest; None if the download can't be resumed."""
        if self._first is None or self._size == 0:
            return None
        headers = self._first.headers
        tag = headers.get("etag", "")
        unchanged = tag if tag.startswith('"') else headers.get("last-modified", "")
        if "bytes" not in headers.get("accept-ranges", "").lower() or not unchanged:
            return None
        if codings(headers.get("content-encoding", "")):
            return None
        return {"range": f"bytes={self._size}-", "if-range": unchanged}

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self._size

    async def flush(self) -> None:
        """Have what has come written and digested."""
        await self._write()

    def arrived(self) -> Arrived:
        assert self._first is not None
        if self._first.status_code == 206 and self._size == 0:
            raise self._failed("answered 206 with nothing", permanent=False)
        content_type = self._first.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Arrived(self._first.status_code, content_type, self._size, self._finish)

    def _check(self, response: httpx.Response) -> None:
        """Check the answer's head. A part that starts at byte 0 may be the whole file: its inspection will show."""
        status = response.status_code
        starts_later = status == 206 and _range_start(response) not in (None, 0)
        if status not in _WHOLE or starts_later:
            raise DownloadFailed(
                f"answered {status}",
                status=status,
                permanent=400 <= status < 500 and status not in _PASSING,
                retry_after_seconds=retry_after_seconds(response.headers, longest=LONGEST_RETRY_AFTER),
            )
        declared = response.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_bytes:
            raise DownloadFailed(f"larger than {self._max_bytes} bytes", status=status, permanent=True)

    def _continues(self, response: httpx.Response) -> bool:
        assert self._first is not None
        tag, first = response.headers.get("etag"), self._first.headers.get("etag")
        unchanged = tag is None or first is None or tag == first
        return unchanged and response.status_code == 206 and _range_start(response) == self._size

    def _failed(self, message: str, *, permanent: bool) -> DownloadFailed:
        if self._first is None:
            return DownloadFailed(message, status=None, permanent=permanent)
        return DownloadFailed(
            message,
            status=self._first.status_code,
            permanent=permanent,
            retry_after_seconds=retry_after_seconds(self._first.headers, longest=LONGEST_RETRY_AFTER),
        )

    async def _write(self) -> None:
        pieces, self._waiting, self._unwritten = self._waiting, [], 0
        if pieces:
            await in_thread(self._digested, pieces)

    def _finish(self) -> str:
        pieces, self._waiting, self._unwritten = self._waiting, [], 0
        self._digested(pieces)
        return self._digest.hexdigest()

    def _digested(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
            self._to.write(piece)


def _range_start(response: httpx.Response) -> int | None:
    """Return the offset of the part of a file that an answer holds; None if it is not given."""
    said = re.match(r"\s*bytes\s+(\d{1,15})-", response.headers.get("content-range", ""), re.ASCII | re.IGNORECASE)
    return int(said[1]) if said else None


def parts_of(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Return the parts of the body as they were sent: content codings are not decoded."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    parts = aiter(response.stream)
    assert isinstance(parts, AsyncGenerator)
    return parts
