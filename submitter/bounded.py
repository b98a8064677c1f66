"""An httpx transport whose answers are decoded within a limit, for our clients that read whole answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx

from submitter import tls
from submitter.content_coding import ContentRefused, decoded

MAX_ANSWER_BYTES = 64 << 20
MAX_FILE_BYTES = 1 << 30
_LABELS = frozenset({b"content-encoding", b"content-length"})


class BoundedTransport(httpx.AsyncBaseTransport):
    """
    Limits decoded answers to *max_bytes* and images to `MAX_FILE_BYTES`; event streams are not limited. Longer answers,
    and those encoded more than once, raise `httpx.RemoteProtocolError` after the bytes that fit.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, *, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._transport = transport or httpx.AsyncHTTPTransport(verify=tls.context(), trust_env=False)
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        kind = response.headers.get("content-type", "").lower()
        if kind.startswith("text/event-stream"):
            return response
        limit = MAX_FILE_BYTES if kind.startswith("image/") else self._max_bytes
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _LABELS]
        stream = _Decoded(response, response.headers.get("content-encoding", ""), limit, request)
        return httpx.Response(
            response.status_code, headers=headers, stream=stream, extensions=response.extensions, request=request
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Decoded(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, label: str, max_bytes: int, request: httpx.Request) -> None:
        self._response = response
        self._label = label
        self._max_bytes = max_bytes
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        pieces = decoded(self._response.stream, self._label, max_bytes=self._max_bytes)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        except ContentRefused as exc:
            raise httpx.RemoteProtocolError(f"the answer can't be read: {exc}", request=self._request) from exc

    async def aclose(self) -> None:
        await self._response.aclose()
