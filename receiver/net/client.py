"""
The HTTP client for all addresses that others chose: endpoints, result links, image inputs.

The guard (guard.py) judges addresses, and the transport (transport.py) connects to no others. Proxies and credentials
from the environment are ignored, no cookie is kept, and only downloads follow redirects, each judged like a first URL.

Nothing here logs, and no error's text holds a URL: they are secrets.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

import httpx

from receiver.net.arriving import (
    Arrived,
    Arriving,
    DownloadCut,
    Downloaded,
    DownloadFailed,
    NotContinued,
    Sink,
    parts_of,
)
from receiver.net.guard import (
    LONGEST_URL,
    AddressForbidden,
    Guard,
    NoAnswer,
    OutboundError,
    OutboundRefused,
    UrlRefused,
)
from receiver.net.plain import PlainAnswer
from receiver.net.transport import CONNECT_SECONDS, Connect, GuardedTransport
from submitter.threads import in_thread

__all__ = [
    "AddressForbidden",
    "Answer",
    "Arrived",
    "Arriving",
    "DownloadCut",
    "DownloadFailed",
    "Downloaded",
    "Guard",
    "GuardedTransport",
    "NoAnswer",
    "NotContinued",
    "Outbound",
    "OutboundError",
    "OutboundRefused",
    "UrlRefused",
]

MOST_REDIRECTS = 3
MOST_RESUMES = 3

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.I | re.A)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULTS = {"user-agent": "upscale-receiver", "accept": "*/*", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a post. `body` is its first bytes; `complete`: they are all of it."""

    status: int
    headers: httpx.Headers
    body: bytes
    complete: bool


class Outbound:
    """
    Guarded posts and downloads. Use it in `async with`, or call `aclose()` at the end.

    Raises OutboundError and nothing else for failures of the other side. *connect* opens a TCP connection to an
    address that has been judged.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        connect: Connect | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 200,
    ) -> None:
        self.guard = guard
        self._transport = GuardedTransport(
            guard, connect=connect, ssl_context=ssl_context, max_connections=max_connections
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def post(
        self, url: str, *, content: bytes, headers: Mapping[str, str], timeout_seconds: float, max_answer_bytes: int
    ) -> Answer:
        """
        Send *content* and return the answer; a redirect is returned too, not followed.

        *timeout_seconds* covers everything, from the lookup to the last byte. Once a status was received, it is the
        answer, even if its body trickles in, breaks off or is too large: the connection is then dropped.
        """
        target = self.guard.check_url(url)
        fields = _DEFAULTS | {name.lower(): value for name, value in headers.items()}
        response: httpx.Response | None = None
        body = bytearray()
        complete = False
        try:
            async with asyncio.timeout(timeout_seconds):
                came = await self._transport.post(target, fields, content, most_bytes=max_answer_bytes)
                if isinstance(came, PlainAnswer):
                    return Answer(came.status, httpx.Headers(came.headers), came.body, True)
                response = came
                try:
                    async with aclosing(parts_of(response)) as parts:
                        async for part in parts:
                            body += part
                            if len(body) > max_answer_bytes:
                                break
                        else:
                            complete = True
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TransportError) as exc:
            if response is None:
                raise _no_answer(exc, timeout_seconds) from exc
        return Answer(response.status_code, response.headers, bytes(body[:max_answer_bytes]), complete)

    async def download(
        self,
        url: str,
        to: Sink,
        *,
        max_bytes: int,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        hosts: Sequence[str] = (),
    ) -> Downloaded:
        """Do `fetch`, and write the last part too."""
        came = await self.fetch(
            url, to, max_bytes=max_bytes, timeout_seconds=timeout_seconds, headers=headers, hosts=hosts
        )
        return Downloaded(came.status, came.content_type, came.bytes, await in_thread(came.finish))

    async def fetch(
        self,
        url: str,
        to: Sink,
        *,
        max_bytes: int,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        hosts: Sequence[str] = (),
        resume: Arriving | None = None,
    ) -> Arrived:
        """
        Download *url* into *to*, at most *max_bytes* within *timeout_seconds*, redirects included.

        The caller finishes it, on a thread on which there may be more to do with the file.

        *headers* are for the host of *url* only: a redirect to another host gets none of them. *hosts* (`name` or
        `*.name`), if not empty, are the only ones allowed. On failure *to* holds the bytes received so far, and no
        write is still under way. `DownloadCut` brings what to *resume*, in another try of the same *url* and *to*.
        """
        target = _among(hosts, self.guard.check_url(url))
        arriving = resume or Arriving(to, max_bytes)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._download(target, arriving, headers or {}, hosts)
        except (TimeoutError, httpx.TransportError, NoAnswer) as exc:
            message = str(exc if isinstance(exc, NoAnswer) else _no_answer(exc, timeout_seconds))
            if arriving.rest() is None:
                raise DownloadFailed(message, status=None, permanent=False) from exc
            await arriving.flush()
            raise DownloadCut(message, arriving) from exc
        except DownloadFailed as exc:
            if exc.permanent or isinstance(exc, NotContinued) or arriving.rest() is None:
                raise
            await arriving.flush()
            raise DownloadCut(str(exc), arriving, exc) from exc

    async def _download(
        self, target: httpx.URL, arriving: Arriving, headers: Mapping[str, str], hosts: Sequence[str]
    ) -> Arrived:
        response, target, headers = await self._followed(target, headers, hosts, arriving.rest() or {})
        for resumed in range(MOST_RESUMES + 1):
            try:
                await arriving.take(response)
                break
            except httpx.TransportError:
                rest = arriving.rest()
                if rest is None or resumed == MOST_RESUMES:
                    raise
            finally:
                await response.aclose()
            response = await self._send("GET", target, {**headers, **rest})
        return arriving.arrived()

    async def _followed(
        self, target: httpx.URL, headers: Mapping[str, str], hosts: Sequence[str], rest: Mapping[str, str]
    ) -> tuple[httpx.Response, httpx.URL, Mapping[str, str]]:
        """
        Return the first answer that is not a redirect, its URL, and the headers that were sent to its host.

        *rest* are the headers that ask for the rest of a file, and go to every host.
        """
        for _ in range(MOST_REDIRECTS + 1):
            response = await self._send("GET", target, {**headers, **rest})
            if response.status_code not in _REDIRECTS:
                return response, target, headers
            try:
                following = _among(hosts, self._follow(target, response))
            finally:
                await response.aclose()
            if _origin(following) != _origin(target):
                headers = {}
            target = following
        message = f"redirected more than {MOST_REDIRECTS} times"
        raise DownloadFailed(message, status=response.status_code, permanent=True)

    def _follow(self, target: httpx.URL, response: httpx.Response) -> httpx.URL:
        location = response.headers.get("location", "")
        if not location or len(location) > LONGEST_URL:
            message = f"answered {response.status_code} without a usable Location"
            raise DownloadFailed(message, status=response.status_code, permanent=True)
        # A whole URL is judged as it was sent, before a library has normalized it.
        if location.startswith("//"):
            location = f"{target.scheme}:{location}"
        elif not _SCHEME.match(location):
            try:
                location = str(target.join(location))
            except (httpx.InvalidURL, ValueError) as exc:
                raise UrlRefused("redirected to a URL that can't be read") from exc
        return self.guard.check_url(location)

    async def _send(self, method: str, target: httpx.URL, headers: Mapping[str, str]) -> httpx.Response:
        merged = httpx.Headers(_DEFAULTS)
        merged.update(headers)
        # httpcore's other limits are per read and write; ours is on the whole, around this call.
        extensions = {"timeout": {"connect": CONNECT_SECONDS}}
        request = httpx.Request(method, target, headers=merged, extensions=extensions)
        return await self._transport.handle_async_request(request)


def _among(hosts: Sequence[str], url: httpx.URL) -> httpx.URL:
    """Return *url* if its host is among *hosts*, or there are none; raise UrlRefused otherwise."""
    name = url.host.lower()
    if hosts and not any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts):
        raise UrlRefused(f"{name} is not listed in RECEIVER_RESULT_HOSTS")
    return url


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port


def _no_answer(exc: Exception, timeout_seconds: float) -> NoAnswer:
    """Describe *exc* in our own words: the libraries' texts contain the addresses that were dialled."""
    if isinstance(exc, httpx.ConnectTimeout):
        return NoAnswer("no connection in time", reason="timeout")
    if isinstance(exc, TimeoutError | httpx.TimeoutException):
        return NoAnswer(f"no whole answer within {timeout_seconds:g} s", reason="timeout")
    if isinstance(exc, httpx.ConnectError):
        cause: BaseException | None = exc
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return NoAnswer(f"the certificate is not valid: {cause.verify_message}", reason="tls")
            if isinstance(cause, ssl.SSLError):
                return NoAnswer("the TLS handshake failed", reason="tls")
            cause = cause.__cause__ or cause.__context__  # httpcore raises again `from None`
        return NoAnswer("no connection: refused or unreachable", reason="connect")
    return NoAnswer("the connection broke before a whole answer came", reason="broken")
