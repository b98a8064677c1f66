"""The notifier and the API of endpoints and deliveries on a real database, without the rest of the receiver."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from receiver.domain.deliveries import DeliveryFilter, DeliveryView
from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.events import Event
from receiver.domain.ids import new_id
from receiver.downstream.notifier import DeliveryPolicy, Notifier
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.settings import Settings
from receiver.store.database import Database, open_database
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.store.events import Events
from receiver.store.jobs import JobStore
from receiver.web.auth import Bearer
from receiver.web.deliveries import DeliveriesApi
from receiver.web.endpoints import EndpointsApi
from receiver.web.problems import Problem, answer_problem
from submitter.signatures import new_secret
from tests.support.engines import database_of
from tests.support.streams import number_events, record_events
from tests.support.waiting import eventually

TOKEN = "a-token-for-tests"
_TLS = httpx.create_ssl_context(trust_env=False)
LOOPBACK = Settings(allow_networks="127.0.0.0/8").allow_networks


class DeliveryStack:
    """Database, notifier and API of endpoints and deliveries, without the rest of the receiver."""

    def __init__(
        self,
        database: Database,
        *,
        schedule: tuple[float, ...] = (0, 0.15, 0.3, 0.6),
        most_notify_calls: int = 256,
        most_calls: int = 1024,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        guard: Guard | None = None,
        connect: Callable[[], Outbound] | None = None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.endpoints = Endpoints(database)
        self.log = DeliveryLog(database)
        self.metrics = Metrics()
        self.guard = guard or Guard(LOOPBACK)
        self.notify_secret = new_secret()
        self.store = JobStore(database)
        self.notifier = Notifier(
            Deliveries(database),
            self.endpoints,
            connect or (lambda: Outbound(self.guard, ssl_context=_TLS, max_connections=1)),
            self.metrics,
            DeliveryPolicy((self.notify_secret,), schedule, most_notify_calls, most_calls),
            handover=self.store.handover,
            wakes=Wakes(),
            clock=clock,
        )
        changed = self.notifier.endpoints_changed
        bearer = Bearer([TOKEN])
        self.app = Starlette(
            routes=[
                *EndpointsApi(self.endpoints, self.log, self.guard, base_url=str, changed=changed).routes(bearer),
                *DeliveriesApi(self.endpoints, self.log, changed=changed).routes(bearer),
            ],
            exception_handlers={Problem: answer_problem},
        )

    def wake(self) -> None:
        self.notifier.loop.wake()

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        return httpx.AsyncClient(transport=transport, base_url="http://receiver.test", headers=headers)

    async def endpoint(self, url: str, **more: object) -> Endpoint:
        made = Endpoint(new_id("ep"), url, self.clock(), (SigningSecret(new_secret()),), **more)  # type: ignore[arg-type]
        await self.endpoints.add(made)
        return made

    async def write_events(self, *names: str, **more: Any) -> None:
        await record_events(self.database, names, now=self.clock(), **more)
        self.wake()

    async def events(self) -> Sequence[Event]:
        """All events, in order."""
        await number_events(self.database)
        return (await Events(self.database).after(0, limit=1000))[0]

    async def deliveries(self, **wanted: object) -> list[DeliveryView]:
        """Oldest first."""
        return (await self.log.page(DeliveryFilter(**wanted), limit=5000))[::-1]  # type: ignore[arg-type]

    async def settled(self) -> list[DeliveryView]:
        """All deliveries, once none is pending."""

        async def none_pending() -> bool:
            return not await self.deliveries(states=("pending",))

        await eventually(none_pending)
        return await self.deliveries()


@contextlib.asynccontextmanager
async def delivery_stack(tmp_path: Path, **more: Any) -> AsyncIterator[DeliveryStack]:
    """A `DeliveryStack` whose notifier runs."""
    database = await open_database(database_of(tmp_path))
    made = DeliveryStack(database, **more)
    loops = [made.notifier.loop, made.notifier.renewals]
    running = [asyncio.create_task(loop.run()) for loop in loops]
    try:
        yield made
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await made.notifier.shutdown(grace_seconds=0)
        await database.close()
        await _threads_ended()
        assert not any(loop.failures for loop in loops)


async def _threads_ended() -> None:
    """A read that was cancelled lives on in its connection's thread for a moment, and must not outlive the loop."""

    def ended() -> bool:
        return not any("_connection_worker_thread" in thread.name for thread in threading.enumerate())

    await eventually(ended)
