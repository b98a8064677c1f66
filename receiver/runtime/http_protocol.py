"""
HTTP/1.1 of one connection: uvicorn's, with the protections of a server that the public reaches without a proxy.

Offered upgrades are ignored and the body is read; white space around a header's value is removed; trailers are dropped;
heads are bounded in size and time, bodies in time; an unreadable request is answered after the requests before it.

Written against uvicorn 0.54.0 and httptools 0.9.0. Undocumented attributes of uvicorn that are used, all of
`HttpToolsProtocol`: `parser`, `cycle` (`more_body`, `keep_alive`, `disconnected`, `message_event`, `response_started`,
`response_complete`), `url`, `headers`, `expect_100_continue`, `pipeline`, `flow.read_paused`, `server_state`
(`connections`, `default_headers`), `loop`, `transport`, `_unset_keepalive_if_required`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = structlog.get_logger("receiver.server")

_HEAD_BYTES = 64 * 1024
"""The limit for a request line and its headers, for trailers, and for the framing between two chunks of a body."""
_HEAD_SECONDS = 30.0
"""The time for a complete head to arrive on an open connection; the same as the idle timeout."""
_BODY_SECONDS = 30.0
_SLOWEST_BODY = 1024
"""The least rate of a body in bytes per second, once it has taken `_BODY_SECONDS`."""
_MOST_PIPELINED = 100
_LOGGED_A_MINUTE = 5


class RefusalLog:
    """Logs unreadable requests, a few per minute: their sender must not be able to fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = -60.0
        self._logged = 0
        self._unlogged = 0

    def refused(self, status: int, reason: str) -> None:
        now = self._clock()
        if now - self._since >= 60:
            self._since, self._logged = now, 0
        if self._logged == _LOGGED_A_MINUTE:
            self._unlogged += 1
            return
        self._logged += 1
        more = {"unlogged_before": self._unlogged} if self._unlogged else {}
        self._unlogged = 0
        log.warning("request_refused", status=status, reason=reason, **more)


class _Unacceptable(Exception):
    """The request is refused with *status*. Raised inside a parser's callback."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HttpProtocol(HttpToolsProtocol):
    """
    One connection.

    An offered upgrade makes the parser stop after the head. A new parser is then given the same head without the
    offer, followed by the rest of the data, so the body is read and framed as if nothing had been offered; the
    application sees the headers as they were sent.
    """

    def __init__(self, *args: Any, refusals: RefusalLog, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refusals = refusals
        self._head_bytes = 0
        self._unframed_bytes = 0
        """The number of bytes since the last complete head, piece of body or message."""
        self._advanced = False
        self._broken = False
        self._refusal: _Unacceptable | None = None
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._broken:
            return
        self._advanced = False
        received = len(data)
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as exc:
                    data = data[exc.args[0] :]
                    self._decline_upgrade()
        except httptools.HttpParserInvalidURLError:
            self._refuse(self._refusal or _Unacceptable(400, "its URL has characters that must be percent-encoded"))
            return
        except httptools.HttpParserInvalidMethodError:
            self._refuse(self._refusal or _Unacceptable(400, "it is not HTTP"))
            return
        except httptools.HttpParserError as exc:  # the parser's own words: a constant text
            self._refuse(self._refusal or _Unacceptable(400, f"it can't be read as HTTP: {exc}"))
            return
        self._unframed_bytes = 0 if self._advanced else self._unframed_bytes + received
        if self._unframed_bytes > _HEAD_BYTES:
            self._refuse(_Unacceptable(431, "its head or trailers are too large"))

    def close_if_slow(self, now: float) -> None:
        """Close a connection whose next head, or whose body, takes too long to arrive."""
        if self._broken or self.transport.is_closing():
            return
        if self._head_since is not None and now - self._head_since > _HEAD_SECONDS:
            if self._unframed_bytes:
                self._refuse(_Unacceptable(408, "its head arrived too slowly"))
            else:
                self.transport.close()
        elif (
            self._body_since is not None
            and not self.flow.read_paused
            and now - self._body_since > _BODY_SECONDS + self._body_bytes / _SLOWEST_BODY
        ):
            self._refuse(_Unacceptable(408, "its body arrived too slowly"))

    # --- What the parser says ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Called a dozen times for each request: the superclass's few lines are copied here to save a call.
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_BYTES:
            raise self._too_large()
        if self._body_since is None:  # else it is a trailer, which must not be trusted
            name, value = name.lower(), value.strip(b" \t")
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._advanced = True
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise self._unacceptable(405, "it asks for a proxy")
            return
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise self._unacceptable(429, "too many requests wait for their answers")
        super().on_headers_complete()
        self._head_since = None
        self._body_since, self._body_bytes = self.loop.time(), 0

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        self._head_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._advanced = True
        if not self.parser.should_upgrade():
            self._body_since = None
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._head_since = self.loop.time()
            # A client that got no 100 Continue may or may not send its body: the next bytes are ambiguous.
            if self.cycle.more_body and self.expect_100_continue and not self._body_bytes:
                self.transport.close()
        super().on_response_complete()

    # --- Parts ------------------------------------------------------------------------------------------------------

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _HEAD_BYTES:
            raise self._too_large()

    def _too_large(self) -> _Unacceptable:
        return self._unacceptable(431, "its head or trailers are too large")

    def _unacceptable(self, status: int, reason: str) -> _Unacceptable:
        """Return an error to raise in a callback of the parser, which replaces it with its own."""
        self._refusal = _Unacceptable(status, reason)
        return self._refusal

    def _decline_upgrade(self) -> None:
        headers = self.headers
        head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        head += [name + b": " + value for name, value in headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join(head) + b"\r\n\r\n")
        self.headers[:] = headers

    def _refuse(self, refusal: _Unacceptable) -> None:
        """
        Answer an unreadable request, and close the connection.

        Answers follow the order of requests: if an earlier request is still unanswered, its answer comes first, and
        the connection is closed after it.
        """
        self._broken = True
        self._head_since = self._body_since = None
        self._refusals.refused(refusal.status, refusal.reason)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            return
        answering = cycle is not None and not cycle.response_complete
        if not self.pipeline and not (answering and cycle.response_started) and not self.transport.is_closing():
            self.transport.write(_refusal_answer(refusal, self.server_state.default_headers))
        if answering:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


def _refusal_answer(refusal: _Unacceptable, headers: list[tuple[bytes, bytes]]) -> bytes:
    body = f"the request was refused: {refusal.reason}\n".encode()
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [b"content-type: text/plain; charset=utf-8", b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
