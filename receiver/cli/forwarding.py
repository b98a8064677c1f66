"""
Forwarding of events from a receiver anywhere to an application on this machine, signed as an endpoint's would be.

One at a time and in order. The position moves on after any answer of the application; while it can't be reached, the
event waits for it, so that an application that restarts misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from submitter import tls
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.event_types import Event
from submitter.signatures import signed_headers

_TIMEOUT_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 2.0
_ENDING_SECONDS = 1.0
_MOST_BYTES = 1024 * 1024
"""The limit for an answer's body; the connection of a longer or slower one is closed."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The outcome of one event: the application's answer, or why there is none."""

    event: Event
    status: int | None
    error: str | None
    seconds: float


class Forwarder:
    """
    Posts events to *url*, signed with *secret*, with *headers* in addition to those of an endpoint's deliveries.

    `waiting` is called when the application can't be reached.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str,
        headers: Mapping[str, str] | None = None,
        waiting: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._url = url
        self._secret = secret
        self._headers = dict(headers or {})
        self._waiting = waiting
        self._last: Event | None = None
        self._again = asyncio.Event()

    async def run(
        self, receiver: AsyncClient, forwarded: Callable[[Forwarded], None], *, after: int | None, types: Sequence[str]
    ) -> None:
        """Run until cancelled. Raises `RequestRefused` if the receiver does not let us listen."""
        # Answers are neither decoded nor kept, so neither a wrong label nor a decompression bomb has any effect.
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False, verify=tls.context()) as client:
            lane = asyncio.Lock()
            again = asyncio.create_task(self._redeliver(client, lane, forwarded))
            try:
                async with aclosing(receiver.events(after=after, types=types)) as events:
                    async for event in events:
                        async with lane:
                            self._last = event
                            forwarded(await self._forward(client, event))
            finally:
                again.cancel()
                await asyncio.gather(again, return_exceptions=True)

    def redeliver_last(self) -> None:
        """Forward the last event again, with a new signature, under the same id."""
        self._again.set()

    async def _redeliver(
        self, client: httpx.AsyncClient, lane: asyncio.Lock, forwarded: Callable[[Forwarded], None]
    ) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            async with lane:
                if self._last is None:
                    self._waiting("no event has come yet")
                else:
                    forwarded(await self._forward(client, self._last))

    async def _forward(self, client: httpx.AsyncClient, event: Event) -> Forwarded:
        pause = 0.1
        while True:
            began, now = time.perf_counter(), datetime.now(UTC)
            body = event.body.encode()
            headers = {
                "content-type": "application/json",
                "accept-encoding": "identity",
                **self._headers,
                **signed_headers([self._secret], event.id, now, body),
            }
            try:
                status = await _status_of(client, self._url, body, headers)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self._waiting(f"{event.type} {event.id} waits: nothing listens there")
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            except httpx.RequestError as exc:
                return Forwarded(event, None, type(exc).__name__, time.perf_counter() - began)
            else:
                return Forwarded(event, status, None, time.perf_counter() - began)


async def _status_of(client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Post, and return the status as soon as it arrives; the rest of the answer gets a short time to end."""
    async with client.stream("POST", url, content=body, headers=headers) as answer:
        seen = 0
        with contextlib.suppress(TimeoutError, httpx.RequestError):
            async with asyncio.timeout(_ENDING_SECONDS):
                async for piece in answer.aiter_raw():
                    seen += len(piece)
                    if seen > _MOST_BYTES:
                        break
        return answer.status_code
