"""
The sandbox's own requests: callbacks out, input pictures in.

They go straight to httpx's transport: the client above it writes every URL into the log, and these URLs are secrets.
Every call has its own connection, as from a provider's fleet; proxies from the environment are not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from submitter import tls
from submitter.sandbox.tasks import Failing

LARGEST_INPUT_BYTES = 100 * 1024 * 1024
_REDIRECTS = 3


class Outbound:
    """A client that is created on first use, in the event loop of that use."""

    def __init__(self) -> None:
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, timeout_seconds: float
    ) -> tuple[int | None, str | None]:
        """Deliver *body*; return the HTTP status, or the kind of error. Redirects are not followed."""
        try:
            request = httpx.Request("POST", url, headers=headers, content=body)
            async with asyncio.timeout(timeout_seconds):
                response = await self._send(request)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError:
            return None, "timeout"
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as exc:
            return None, type(exc).__name__
        return response.status_code, None

    async def fetch(self, url: str, *, timeout_seconds: float = 30.0) -> bytes:
        """Download *url*; raises `Failing` with code `unreachable`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                address = httpx.URL(url)
                for _ in range(_REDIRECTS + 1):
                    response = await self._send(httpx.Request("GET", address, headers={"accept": "image/*"}))
                    try:
                        if response.has_redirect_location:
                            address = address.join(response.headers["location"])
                            continue
                        if response.status_code != 200:
                            raise Failing("unreachable", f"the image URL answered {response.status_code}")
                        data = bytearray()
                        async for chunk in response.aiter_bytes():
                            data += chunk
                            if len(data) > LARGEST_INPUT_BYTES:
                                raise Failing("unreachable", "the image is too large")
                        return bytes(data)
                    finally:
                        await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, TimeoutError) as exc:
            raise Failing("unreachable", "the image URL could not be fetched") from exc
        raise Failing("unreachable", "the image URL redirects too often")

    async def aclose(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        if self._transport is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self._transport = httpx.AsyncHTTPTransport(verify=tls.context(), trust_env=False, limits=limits)
        if request.url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol("http and https only")
        request.headers.setdefault("user-agent", "upscaling-sandbox")
        response = await self._transport.handle_async_request(request)
        response.request = request
        return response
