"""
`/healthz` (alive), `/readyz` (able to work) and `/metrics`. The sums are read when somebody asks, not on the hot
path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.runtime.loops import Loop
from receiver.runtime.metrics import Metrics
from receiver.store.database import Database
from receiver.store.rows import us
from receiver.upstream.statistics import ProviderStatistics
from receiver.web.problems import NOT_FOUND
from submitter.provider import Provider
from submitter.providers import PROVIDERS
from submitter.vocabulary import State

_DEAD_LOOP_SECONDS = 30.0
_MOST_UNREAD = 50_000
_WRITE_SECONDS = 2.0
_WRITTEN_SECONDS = 1.0
"""For so long a write that worked speaks for the next ones."""

_MOST_COUNTED = 100_000

# How many wait, counted in an index, and since when the oldest does. None of them reads a table from end to end.
_QUEUES = {
    "unread": "SELECT count(*), (SELECT received_at FROM evidence WHERE read_at IS NULL ORDER BY id LIMIT 1)"
    " FROM evidence WHERE read_at IS NULL",
    "queued": "SELECT count(*), (SELECT created_at FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1)"
    " FROM jobs WHERE state = 'queued'",
    "due_polls": "SELECT count(*), min(next_poll_at) FROM jobs WHERE next_poll_at <= :now"
    f" AND provider IN ({', '.join(repr(name) for name in PROVIDERS)})",
    "deliveries": "SELECT count(*), (SELECT created_at FROM deliveries WHERE state = 'pending' ORDER BY id LIMIT 1)"
    " FROM deliveries WHERE state = 'pending'",
    "images": "SELECT count(*), min(next_at) FROM images WHERE state = 'wanted'",
}
_UNREAD = f"SELECT count(*) FROM (SELECT 1 FROM evidence WHERE read_at IS NULL LIMIT {_MOST_UNREAD + 1})"
# Bounded: the provider of a job stands in its row alone.
_OPEN = (
    "SELECT provider, count(*), count(overdue_at) FROM (SELECT provider, overdue_at FROM jobs WHERE state = :state"
    f" ORDER BY id LIMIT {_MOST_COUNTED}) AS some GROUP BY provider"
)
_OPEN_STATES = [state.value for state in State if not state.terminal]


class Health:
    """What a probe and a scraper see."""

    def __init__(
        self,
        database: Database,
        loops: Sequence[Loop],
        metrics: Metrics,
        statistics: ProviderStatistics,
        providers: Mapping[str, Provider],
        *,
        from_outside: Callable[[Request], bool] = lambda request: False,
    ) -> None:
        self._database = database
        self._loops = loops
        self._metrics = metrics
        self._statistics = statistics
        self._providers = providers
        self._from_outside = from_outside
        self._written_at = -_WRITTEN_SECONDS
        self._writing: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """503 as long as one of the checks fails; each says what it found."""
        self._for_operators(request)
        checks: dict[str, str] = {}
        try:
            checks["migrations"] = "ok" if await self._database.schema_is_current() else "behind; run receiver migrate"
            async with self._database.read() as connection:
                unread = (await connection.exec_driver_sql(_UNREAD)).scalar_one()
            await self._write()
            checks["database"] = "ok"
            checks["backlog"] = "ok" if unread <= _MOST_UNREAD else f"more than {_MOST_UNREAD} wait to be read"
        except TimeoutError:
            checks["database"] = f"nothing could be written for {_WRITE_SECONDS:g} s"
        except Exception as exc:  # noqa: BLE001 (a probe reports whatever is wrong)
            checks["database"] = f"failed: {type(exc).__name__}"
        now = time.monotonic()
        dead = [loop.name for loop in self._loops if now - loop.beat_at > _DEAD_LOOP_SECONDS or loop.failures > 3]
        checks["loops"] = "ok" if not dead else f"not running: {', '.join(dead)}"
        good = all(value == "ok" for value in checks.values())
        return JSONResponse({"status": "ready" if good else "not ready", "checks": checks}, 200 if good else 503)

    def _for_operators(self, request: Request) -> None:
        """`Problem` 404 for a request from outside: what is measured is nobody's business there."""
        if self._from_outside(request):
            raise NOT_FOUND

    async def _write(self) -> None:
        """A database that can be read may be locked by somebody, or its disk full: then no callback can be kept."""
        if time.monotonic() - self._written_at < _WRITTEN_SECONDS:
            return
        if self._writing is None:
            self._writing = asyncio.create_task(self._database.write_nothing())
        writing = self._writing
        done, _ = await asyncio.wait({writing}, timeout=_WRITE_SECONDS)
        if not done:
            raise TimeoutError
        self._writing = None
        writing.result()
        self._written_at = time.monotonic()

    async def metrics(self, request: Request) -> Response:
        self._for_operators(request)
        await self._measure(datetime.now(UTC))
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _measure(self, now: datetime) -> None:
        metrics = self._metrics
        async with self._database.read() as connection:
            for queue, sql in _QUEUES.items():
                parameters = {"now": us(now)} if ":now" in sql else {}
                row: Any = (await connection.exec_driver_sql(sql, parameters)).one()
                metrics.waiting.labels(queue).set(row[0])
                metrics.oldest.labels(queue).set(0 if row[1] is None else max(us(now) - row[1], 0) / 1_000_000)
            metrics.jobs.clear()
            overdue = 0
            for state in _OPEN_STATES:
                counted: list[Any] = list(await connection.exec_driver_sql(_OPEN, {"state": state}))
                for provider, count, late in counted:
                    metrics.jobs.labels(provider, state).set(count)
                    overdue += late
            metrics.overdue.set(overdue)
        for name in self._providers:
            health = await self._statistics.health(name)
            if health.lost_callbacks is not None:
                metrics.lost_callbacks.labels(name).set(health.lost_callbacks)
            if health.turnaround_seconds is not None:
                metrics.turnaround.labels(name).set(health.turnaround_seconds)
        metrics.spend.clear()
        for provider, days in (await self._statistics.spend(now=now, days=1)).items():
            for one in days:
                metrics.spend.labels(provider, one["unit"]).set(float(one["amount"]))
        for loop in self._loops:
            metrics.loop_age.labels(loop.name).set(time.monotonic() - loop.beat_at)
