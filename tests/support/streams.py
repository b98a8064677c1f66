"""Shared helpers of downstream tests: a database with events in it, and a reader of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from receiver.domain.events import NewEvent
from receiver.store.database import Database
from receiver.store.outbox import write_events
from receiver.store.statements import NumberEvents, alone


@dataclass(frozen=True)
class Frame:
    """One event as a client of the stream sees it."""

    position: int
    type: str
    body: dict[str, Any]
    webhook_id: str


async def read_frames(response: httpx.Response) -> AsyncGenerator[Frame, None]:
    """The events of a stream, comments left out."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            yield Frame(int(fields["id"]), fields["event"], json.loads(fields["data"]), fields["webhook-id"])
        fields = {}


async def record_events(
    database: Database,
    names: Sequence[str],
    *,
    data: dict[str, Any] | None = None,
    now: datetime | None = None,
    **more: Any,
) -> None:
    """Write events of the types *names* in one transaction, as the parts of the receiver do, and number them."""
    new_events = [NewEvent(name, data or {"n": n}, **more) for n, name in enumerate(names)]
    await database.write(lambda: write_events(new_events, now or datetime.now(UTC)))
    await number_events(database)


async def number_events(database: Database) -> None:
    """Give the events that were written their positions, where the engine does not by itself."""
    await database.write(alone(NumberEvents(1000)))
