"""A subscriber of the tests: a real server that answers as it is told and remembers what came."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.ids import new_id
from receiver.downstream.notifier import Notifier
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.metrics import Metrics
from receiver.settings import Settings
from receiver.store.database import Database
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryFilter, DeliveryLog, DeliveryView
from receiver.store.endpoints import Endpoint, Endpoints, SigningSecret
from receiver.web.auth import Bearer
from receiver.web.deliveries import DeliveriesApi
from receiver.web.endpoints import EndpointsApi
from receiver.web.problems import Problem, answer_problem
from submitter.signatures import new_secret
from tests.support.streams import record_events, serving
from tests.support.waiting import eventually

TOKEN = "a-token-for-tests"
_TLS = httpx.create_ssl_context(trust_env=False)
LOOPBACK = Settings(allow_networks="127.0.0.0/8").allow_networks  # type: ignore[arg-type]


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    path: str
    at: float
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Subscriber:
    """Answers each path by what `answers` holds for it: statuses one after the other, the last for ever."""

    answers: dict[str, list[int | float | Response]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    origin: str = ""

    def at(self, path: str) -> list[Seen]:
        return [one for one in self.seen if one.path == path]

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response("", 400)
        self.seen.append(Seen(path, time.monotonic(), dict(request.headers), body))
        script = self.answers.get(path, [200])
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return Response("late")
        return answer if isinstance(answer, Response) else Response(f"answer {answer}", answer)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = Starlette(routes=[Route("/{rest:path}", self.answer, methods=["POST"])])
        async with serving(app) as origin:
            self.origin = origin
            yield origin


class DeliveryStack:
    """Database, notifier and API of endpoints and deliveries, without the rest of the receiver."""

    def __init__(
        self, database: Database, *, schedule: tuple[float, ...] = (0, 0.15, 0.3, 0.6), most_notify_calls: int = 256
    ) -> None:
        self.database = database
        self.endpoints = Endpoints(database)
        self.log = DeliveryLog(database)
        self.metrics = Metrics()
        self.guard = Guard(LOOPBACK)
        self.notify_secret = new_secret()
        self.later = 0.0
        self.notifier = Notifier(
            Deliveries(database),
            self.endpoints,
            lambda: Outbound(self.guard, ssl_context=_TLS, max_connections=1),
            self.metrics,
            owner="test",
            secrets=[self.notify_secret],
            schedule=schedule,
            on_events=self.wake,
            most_notify_calls=most_notify_calls,
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
        made = Endpoint(new_id("ep"), url, datetime.now(UTC), (SigningSecret(new_secret()),), **more)  # type: ignore[arg-type]
        await self.endpoints.add(made)
        return made

    async def write_events(self, *names: str, **more: str) -> None:
        await record_events(self.database, names, **more)
        self.wake()

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
    """A delivery_stack whose notifier runs."""
    database = await Database.open(tmp_path / "receiver.db")
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
