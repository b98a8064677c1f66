"""httpx requests and responses over a connection pool of httpcore's."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import httpcore
import httpx


async def send(
    pool: httpcore.AsyncConnectionPool,
    request: httpx.Request,
    *,
    extensions: MutableMapping[str, Any],
    errors: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> httpx.Response:
    """
    Send *request* through *pool* with httpcore's *extensions*; the caller reads the response's body.

    httpcore's exceptions pass as they are, unless *errors* translates them, here and while the body is read.
    """
    url = request.url
    with errors():
        response = await pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=extensions,
            )
        )
    return httpx.Response(
        response.status, headers=response.headers, stream=_Body(response, errors), extensions=response.extensions
    )


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._response = response
        self._errors = errors

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._errors():
            assert isinstance(self._response.stream, AsyncIterable)
            async for part in self._response.stream:
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()
