"""
Drives exchanges over HTTP: the I/O of calls to providers, and the rules for sending again.

What matters after a failure is whether the provider can have received the whole request. The bytes of the body are
counted as they are handed to the connection: if fewer were sent than announced, the provider can't have accepted it
(`NotSent`, send again); if all were sent, it may be running and billed (`AnswerLost`, never sent again automatically).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpcore
import httpx

from submitter import tls
from submitter.bounded import MAX_ANSWER_BYTES
from submitter.content_coding import ContentRefused, ContentTooLarge, decoded
from submitter.errors import AnswerLost, NotSent, ProviderBusy, ProviderError
from submitter.images import inspect
from submitter.parsing import EMPTY_POLLS, lists_nothing
from submitter.provider import Provider
from submitter.transport import DirectTransport
from submitter.vocabulary import Exchange, Report, Task

T = TypeVar("T")

MAX_REFUSAL_BYTES = 1 << 20
STALL_SECONDS = 30.0
MIN_FAILED_POLLS = 5
"""Status calls that may fail in a row before the caller gets the error of a paid task."""
_PIECE_BYTES = 64 * 1024
_FAILURES = (
    TimeoutError,
    OSError,
    httpx.TransportError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)
_NO_CONNECTION = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.PoolTimeout,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)
_TIMEOUTS = (TimeoutError, httpx.TimeoutException, httpcore.TimeoutException)


async def converse(exchange: Exchange[T], send: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> T:
    """Carry out the requests of *exchange* with *send* until it returns; errors of both pass through."""
    try:
        request = next(exchange)
        while True:
            request = exchange.send(await send(request))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        exchange.close()


class HttpSender:
    """
    Sends requests: TLS verified, no proxies from the environment, no redirects, no cookies, nothing logged.

    A single instance per process is enough; many tasks may use it at once. *transport* replaces the network in tests.
    """

    def __init__(self, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        if transport is not None:
            self._fresh = self._kept = transport
        else:
            self._fresh = DirectTransport(tls.context(), keep=False)
            self._kept = DirectTransport(tls.context(), keep=True)

    async def send(
        self,
        request: httpx.Request,
        *,
        timeout_seconds: float,
        stall_seconds: float = STALL_SECONDS,
        fresh: bool = True,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> httpx.Response:
        """
        Send *request* and read the whole answer, whatever its status.

        The answer must arrive within *timeout_seconds* of the end of the body. A body may take any time, as long as
        some of it is sent every *stall_seconds*. *fresh*: use a connection of its own, as submit calls must. Raises
        `NotSent` or `AnswerLost`. An unsuccessful answer is returned even if its body is cut off or too long: its
        status is what counts.
        """
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(timeout_seconds)

        def moved() -> None:
            if not limit.expired():
                limit.reschedule(loop.time() + (timeout_seconds if body.whole else stall_seconds))

        body = _CountedBody(request, moved)
        sent = httpx.Request(request.method, request.url, headers=request.headers, stream=body)
        transport = self._fresh if fresh else self._kept
        answer: httpx.Response | None = None
        content = bytearray()
        try:
            async with limit:
                answer = await transport.handle_async_request(sent)
                if not body.whole:  # it arrived early, and still has its own time
                    limit.reschedule(loop.time() + timeout_seconds)
                await _read_into(content, answer, max_answer_bytes)
        except _FAILURES as exc:
            if answer is None or answer.is_success:
                raise _failure(exc, request.url.host, body, answer) from exc
        finally:
            await body.aclose()
            if answer is not None:
                await answer.aclose()
        return _whole(answer, bytes(content), request)

    async def aclose(self) -> None:
        await self._fresh.aclose()
        await self._kept.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _CountedBody(httpx.AsyncByteStream):
    """
    A request's body that counts how much of it was handed to the connection.

    It is handed over in small pieces, and *moved* is called for each: the connection requests the next one when it
    has written the last.
    """

    def __init__(self, request: httpx.Request, moved: Callable[[], None]) -> None:
        self._moved = moved
        announced = request.headers.get("content-length", "")
        self._announced = int(announced) if announced.isdecimal() else None
        self._chunked = "transfer-encoding" in request.headers
        self._stream = request.stream
        self._chunks: AsyncIterator[bytes] | None = None
        self._piece = memoryview(b"")
        self._handed = 0
        self._exhausted = False

    @property
    def whole(self) -> bool:
        """Return whether the other side may have received everything; without a body, once it was its turn."""
        if self._chunks is None:
            return False
        return self._exhausted if self._chunked else self._handed >= (self._announced or 0)

    def __aiter__(self) -> AsyncIterator[bytes]:
        if not isinstance(self._stream, httpx.AsyncByteStream):
            raise TypeError("the request's stream can't be read asynchronously")
        self._chunks = self._stream.__aiter__()
        self._moved()
        return self

    async def __anext__(self) -> bytes:
        if self._chunks is None:
            raise StopAsyncIteration
        while not self._piece:
            try:
                self._piece = memoryview(await anext(self._chunks))
            except StopAsyncIteration:
                self._exhausted = True
                self._moved()
                raise
        piece, self._piece = bytes(self._piece[:_PIECE_BYTES]), self._piece[_PIECE_BYTES:]
        # Counted before it is handed over: a write that fails may have written.
        self._handed += len(piece)
        self._moved()
        return piece

    async def aclose(self) -> None:
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()


async def _read_into(content: bytearray, answer: httpx.Response, max_answer_bytes: int) -> None:
    """Decode the answer, and count the bytes as they are produced. An unsuccessful answer may be incomplete."""
    limit = max_answer_bytes if answer.is_success else min(MAX_REFUSAL_BYTES, max_answer_bytes)
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    parts = decoded(answer.stream, answer.headers.get("content-encoding", ""), max_bytes=limit)
    try:
        async with aclosing(parts):
            async for part in parts:
                content += part
    except ContentTooLarge as exc:
        if answer.is_success:
            raise AnswerLost(f"the answer is longer than {limit} bytes", code="answer_too_large") from exc
    except ContentRefused as exc:
        if answer.is_success:
            raise AnswerLost(f"the answer can't be read: {exc}", code="unreadable_answer") from exc


def _whole(answer: httpx.Response | None, content: bytes, request: httpx.Request) -> httpx.Response:
    """Return the answer with its decoded body in memory, so that it can be stored and read again."""
    if answer is None:
        raise AssertionError("an answer was sent or an error raised")
    framing = (b"content-encoding", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in framing]
    return httpx.Response(answer.status_code, headers=headers, content=content, request=request)


def _failure(exc: Exception, host: str, body: _CountedBody, answer: httpx.Response | None) -> ProviderError:
    timed_out = isinstance(exc, _TIMEOUTS)
    if answer is not None:
        return AnswerLost(f"{host}: the answer was cut", code="timeout" if timed_out else "answer_cut")
    if isinstance(exc, _NO_CONNECTION) or not body.whole:
        if isinstance(exc, _NO_CONNECTION):
            return NotSent(f"{host}: no connection ({str(exc) or type(exc).__name__})", code="no_connection")
        return NotSent(f"{host}: the connection ended before the request was written", code="cut_while_writing")
    if timed_out:
        return AnswerLost(f"{host}: no answer in time; the task may be running and billed", code="timeout")
    return AnswerLost(f"{host}: the connection ended without an answer; the task may be running", code="reset")


class Submitter:
    """
    A provider for use in a script, without any server: `async with Submitter(provider) as submitter: …`

    Retries only requests that were certainly not accepted, with at most *tries* tries.
    """

    def __init__(self, provider: Provider, *, sender: HttpSender | None = None, tries: int = 5) -> None:
        self.provider = provider
        self.tries = tries
        self._sender = sender or HttpSender()

    async def submit(self, task: Task, callback_url: str | None = None) -> Report:
        """Send *task*; a synchronous provider's report is final, others' are `RUNNING`."""
        busy = 0
        while True:
            try:
                return await converse(self.provider.submit(task, callback_url), self._send)
            except (ProviderBusy, NotSent) as exc:
                busy += 1
                limit = exc.tries if isinstance(exc, ProviderBusy) and exc.tries is not None else self.tries
                if busy >= min(limit, self.tries):
                    raise
                await asyncio.sleep(_delay(exc, busy))

    async def poll(self, remote_id: str) -> Report:
        """Ask once for the status of the task."""
        return await converse(self.provider.poll(remote_id), self._ask)

    async def upscale(
        self,
        path: Path,
        options: Mapping[str, Any] | None = None,
        *,
        url: str | None = None,
        timeout_seconds: float = 3600.0,
    ) -> Report:
        """
        Send the image at *path* (with its public address *url*, if the provider needs one) and wait for the result.

        Once the task is accepted, it is paid for: a status call that fails is made again, and every error from then on
        names the task (`error.remote_id`), so that `poll` can still fetch its result. Raises `AnswerLost` if the task
        is still running after *timeout_seconds*, and the last status call's error if several in a row fail.
        """
        picture = await asyncio.to_thread(inspect, path, url=url)
        report = await self.submit(self.provider.task(picture, options or {}))
        remote_id = report.remote_id
        if remote_id is None or not self.provider.pollable or (report.state.terminal and not lists_nothing(report)):
            return report
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._followed(remote_id)
        except TimeoutError as exc:
            lost = AnswerLost(f"still running after {timeout_seconds:g} s", code="still_running")
            raise lost.about(remote_id) from exc
        except ProviderError as exc:
            exc.about(remote_id)
            raise

    async def _followed(self, remote_id: str) -> Report:
        """Poll until the task ends. A task that is done and lists no image yet is polled a few more times."""
        rhythm = self.provider.rhythm
        delay, interval, failed, empty = rhythm.first, rhythm.interval, 0, 0
        while True:
            await asyncio.sleep(delay)
            delay, interval = interval, min(interval * rhythm.growth, max(rhythm.cap, rhythm.interval))
            try:
                report = await self.poll(remote_id)
            except ProviderError as exc:
                failed += 1
                if failed >= max(self.tries, MIN_FAILED_POLLS):
                    raise
                delay = max(delay, exc.retry_after_seconds or 0.0)
                continue
            failed = 0
            empty = empty + 1 if lists_nothing(report) else 0
            if report.state.terminal and not 0 < empty < EMPTY_POLLS:
                return report

    async def _send(self, request: httpx.Request) -> httpx.Response:
        return await self._sender.send(request, timeout_seconds=self.provider.submit_timeout_seconds)

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        return await self._sender.send(request, timeout_seconds=30.0, fresh=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sender.aclose()


def _delay(exc: ProviderError, times: int) -> float:
    """Return the seconds to wait: as the provider asks, else a second that doubles up to a minute."""
    if exc.retry_after_seconds is not None:
        return exc.retry_after_seconds
    return min(60.0, 2.0 ** (times - 1))
