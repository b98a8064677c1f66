"""Providers: `/v1/providers`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.domain.entity import iso
from receiver.runtime.wakes import Wakes
from receiver.store.jobs import JobStore
from receiver.upstream.pauses import Pauses
from receiver.upstream.slots import ProviderSlot
from receiver.upstream.statistics import ProviderStatistics
from receiver.web.auth import Bearer
from receiver.web.body import small_json
from receiver.web.problems import Problem
from receiver.web.query_params import known_only
from receiver.web.schemas import NewPause, options_schema, validated


class QueueSeconds(Protocol):
    """Returns the seconds until a provider's queue is sent, if that can be known."""

    def __call__(self, name: str, length: int, *, call_seconds: float | None) -> float | None: ...


@dataclass(frozen=True, slots=True)
class ProvidersApi:
    """`/v1/providers`: shows options, pauses and queues of the providers; pauses and resumes them."""

    store: JobStore
    slots: Mapping[str, ProviderSlot]
    queue_seconds: QueueSeconds
    pauses: Pauses
    statistics: ProviderStatistics
    wakes: Wakes
    public_url: Callable[[], str | None]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        guard = bearer.guard
        return [
            Route("/v1/providers", guard(self.list), methods=["GET"]),
            Route("/v1/providers/{name}/pause", guard(self.pause), methods=["POST"]),
            Route("/v1/providers/{name}/resume", guard(self.resume), methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        known_only(request)
        await self.pauses.refresh(self.clock())
        queued = await self.store.queue_lengths()
        spend = await self.statistics.spend(now=self.clock())
        items = []
        for name, slot in self.slots.items():
            provider = slot.provider
            pause = self.pauses.of(name)
            length = queued.get(name, 0)
            health = await self.statistics.health(name)
            # A call to a synchronous provider lasts as long as its task.
            took = None if provider.pollable else health.turnaround_seconds
            seconds = self.queue_seconds(name, length, call_seconds=took)
            done_at = None if seconds is None else iso(self.clock() + timedelta(seconds=seconds))
            items.append(
                {
                    "name": name,
                    "title": provider.title,
                    "configured": slot.configured,
                    "capabilities": {
                        "callbacks": provider.callbacks,
                        "pollable": provider.pollable,
                        "wants_url": provider.wants_url,
                        "takes_files": not provider.wants_url or self.public_url() is not None,
                        "trust": None if provider.trust is None else provider.trust.value,
                    },
                    "options": options_schema(provider.Options),
                    "paused": None if pause is None else pause.to_json(),
                    "queue": {
                        "length": length,
                        "done_in_seconds": None if seconds is None else round(seconds, 3),
                        "done_at": done_at,
                    },
                    "health": health.to_json(),
                    "spend": spend.get(name, []),
                }
            )
        return JSONResponse({"items": items, "next": None})

    async def pause(self, request: Request) -> Response:
        """`POST /v1/providers/{name}/pause`: its jobs wait in the queue until it is resumed."""
        name = self._name(request)
        asked = validated(NewPause, await small_json(request))
        await self.pauses.pause(name, self.clock(), reason=asked.reason)
        self.wakes.events_written()
        pause = self.pauses.of(name)
        return JSONResponse({"name": name, "paused": None if pause is None else pause.to_json()})

    async def resume(self, request: Request) -> Response:
        name = self._name(request)
        resumed = await self.pauses.resume(name, self.clock())
        self.wakes.jobs_queued()
        return JSONResponse({"name": name, "resumed": resumed, "paused": None})

    def _name(self, request: Request) -> str:
        name: str = request.path_params["name"]
        if name not in self.slots:
            raise Problem(
                404,
                "unknown_provider",
                "there is no such provider",
                field="name",
                remedy="GET /v1/providers lists them",
            )
        return name
