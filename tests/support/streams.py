"""What downstream tests share: a database with events in it, and a reader of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from receiver.store.database import Database
from receiver.store.outbox import NewEvent, write_events
from tests.support.waiting import eventually, patiently


@dataclass(frozen=True)
class Frame:
    """One event as a client of the stream sees it."""

    position: int
    type: str
    body: dict[str, Any]
    webhook_id: str


async def read_frames(response: httpx.Response) -> AsyncIterator[Frame]:
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
    database: Database, names: Sequence[str], *, data: dict[str, Any] | None = None, **more: Any
) -> None:
    """Tell *names* in one transaction, as the parts of the receiver do."""
    async with database.write_raw() as db:
        await write_events(
            db, [NewEvent(name, data or {"n": n}, **more) for n, name in enumerate(names)], datetime.now(UTC)
        )


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """*app* on a real port; gives its origin. Fails if it does not end."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await patiently(task)


class _Server(uvicorn.Server):
    def capture_signals(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
