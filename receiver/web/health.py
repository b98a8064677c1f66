"""
`/healthz` (alive), `/readyz` (able to work) and `/metrics`. The sums are read on request, not on the hot path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.runtime.loops import DEAD_AFTER_SECONDS, Loop
from receiver.runtime.metrics import Metrics
from receiver.store.backlog import Backlog
from receiver.store.database import Database
from receiver.store.errors import DatabaseUnavailable
from receiver.upstream.statistics import ProviderStatistics
from receiver.web.problems import NOT_FOUND
from submitter.providers import PROVIDERS

_MOST_UNREAD = 50_000
_WRITE_SECONDS = 2.0
_WRITTEN_SECONDS = 1.0
"""How long a successful write stands in for further ones."""


class Health:
    """The endpoints for probes and scrapers."""

    def __init__(
        self,
        database: Database,
        loops: Sequence[Loop],
        metrics: Metrics,
        statistics: ProviderStatistics,
        providers: Sequence[str],
        *,
        from_outside: Callable[[Request], bool] = lambda request: False,
    ) -> None:
        self._database = database
        self._backlog = Backlog(database)
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
        """Answer 503 while any check fails; each check reports what it found."""
        self._for_operators(request)
        checks: dict[str, str] = {}
        try:
            checks["migrations"] = "ok" if await self._database.schema_is_current() else "behind; run receiver migrate"
            unread = await self._backlog.unread(most=_MOST_UNREAD)
            await self._write()
            checks["database"] = "ok"
            checks["backlog"] = "ok" if unread <= _MOST_UNREAD else f"more than {_MOST_UNREAD} wait to be read"
        except TimeoutError:
            checks["database"] = f"nothing could be written for {_WRITE_SECONDS:g} s"
        except DatabaseUnavailable as exc:
            checks["database"] = f"unavailable: {exc}"
        except Exception as exc:  # noqa: BLE001 (a probe reports whatever is wrong)
            checks["database"] = f"failed: {type(exc).__name__}"
        now = time.monotonic()
        dead = [loop.name for loop in self._loops if now - loop.beat_at > DEAD_AFTER_SECONDS or loop.failures > 3]
        checks["loops"] = "ok" if not dead else f"not running: {', '.join(dead)}"
        good = all(value == "ok" for value in checks.values())
        return JSONResponse({"status": "ready" if good else "not ready", "checks": checks}, 200 if good else 503)

    def _for_operators(self, request: Request) -> None:
        """Raise `Problem` 404 for a request from outside: measurements are not for the public."""
        if self._from_outside(request):
            raise NOT_FOUND

    async def _write(self) -> None:
        """Check that the database can be written: it may be locked, or its disk full, and still be readable."""
        if time.monotonic() - self._written_at < _WRITTEN_SECONDS:
            return
        if self._writing is None:
            self._writing = asyncio.create_task(self._database.check_writable())
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
        queues, jobs = await self._backlog.measure(now, tuple(PROVIDERS))
        for queue in queues:
            age = 0.0 if queue.oldest_at is None else max((now - queue.oldest_at).total_seconds(), 0)
            metrics.waiting.labels(queue.name).set(queue.waiting)
            metrics.oldest.labels(queue.name).set(age)
        metrics.jobs.clear()
        for group in jobs:
            metrics.jobs.labels(group.provider, group.state).set(group.count)
        metrics.overdue.set(sum(group.overdue for group in jobs))
        for name in self._providers:
            health = await self._statistics.health(name)
            if health.lost_callbacks is not None:
                metrics.lost_callbacks.labels(name).set(health.lost_callbacks)
            if health.turnaround_seconds is not None:
                metrics.turnaround.labels(name).set(health.turnaround_seconds)
        metrics.spend.clear()
        for provider, days in (await self._statistics.spend(now=now, days=1)).items():
            for day in days:
                metrics.spend.labels(provider, day["unit"]).set(float(day["amount"]))
        for loop in self._loops:
            metrics.loop_age.labels(loop.name).set(time.monotonic() - loop.beat_at)
