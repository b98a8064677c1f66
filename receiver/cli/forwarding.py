"""
Events of a receiver, wherever it runs, to an application on this machine, signed as an endpoint's would be.

One at a time and in order. The position moves on when the application has answered, whatever it answered; while it
can't be connected to, the event waits for it, so that an application that restarts misses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from submitter.bounded import BoundedTransport
from submitter.remote import Event, Receiver
from submitter.signatures import signed_headers

_TIMEOUT_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What became of one event: the application's answer, or why there is none."""

    event: Event
    status: int | None
    error: str | None
    seconds: float


class Forwarder:
    """Posts events to *url*, signed with *secret*. `waiting` is called when the application is not there."""

    def __init__(self, url: str, *, secret: str, waiting: Callable[[str], None] = lambda why: None) -> None:
        self._url = url
        self._secret = secret
        self._waiting = waiting

    async def run(
        self, receiver: Receiver, told: Callable[[Forwarded], None], *, after: int | None, types: Sequence[str]
    ) -> None:
        """Go on until cancelled. Raises `RequestRefused` if the receiver does not let us listen."""
        async with (
            httpx.AsyncClient(transport=BoundedTransport(), timeout=_TIMEOUT_SECONDS) as client,
            aclosing(receiver.events(after=after, types=types)) as events,
        ):
            async for event in events:
                told(await self._forward(client, event))

    async def _forward(self, client: httpx.AsyncClient, event: Event) -> Forwarded:
        pause = 0.1
        while True:
            began, now = time.perf_counter(), datetime.now(UTC)
            body = event.body.encode()
            headers = {
                "content-type": "application/json",
                **signed_headers([self._secret], event.id, now, body),
            }
            try:
                answer = await client.post(self._url, content=body, headers=headers)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self._waiting(f"{event.type} {event.id} waits: nothing listens there")
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            except httpx.TransportError as exc:
                return Forwarded(event, None, type(exc).__name__, time.perf_counter() - began)
            else:
                return Forwarded(event, answer.status_code, None, time.perf_counter() - began)
