"""Deliveries: `/v1/deliveries`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.domain.deliveries import DeliveryFilter, DeliveryState, ReplayRefused
from receiver.domain.events import EVENT_TYPES
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.web.auth import Bearer
from receiver.web.body import small_json
from receiver.web.problems import Problem
from receiver.web.query_params import chosen_of, known_only, limit_of, place_of, text_of
from receiver.web.schemas import BulkReplay, validated

_PARAMETERS = ("state", "undelivered", "fault", "endpoint", "job", "event", "type", "cursor", "limit")
_ALIASES = ("endpoint_id", "job_id", "event_id", "event_type")


@dataclass(frozen=True, slots=True)
class DeliveriesApi:
    """`/v1/deliveries`: lists deliveries and replays them."""

    endpoints: Endpoints
    log: DeliveryLog
    changed: Callable[[], None]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        guard = bearer.guard
        return [
            Route("/v1/deliveries", guard(self.list), methods=["GET"]),
            Route("/v1/deliveries/replay", guard(self.replay_many), methods=["POST"]),
            Route("/v1/deliveries/{id}", guard(self.show), methods=["GET"]),
            Route("/v1/deliveries/{id}/replay", guard(self.replay), methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """`?state=&endpoint=&job=&event=&type=&fault=&undelivered=true&cursor=&limit=`, newest first."""
        known_only(request, *_PARAMETERS, aliases=_ALIASES)
        limit = limit_of(request)
        wanted = DeliveryFilter(
            states=tuple(chosen_of(request, "state", tuple(DeliveryState))),
            endpoint_id=text_of(request, "endpoint") or text_of(request, "endpoint_id"),
            job_id=text_of(request, "job") or text_of(request, "job_id"),
            event_id=text_of(request, "event") or text_of(request, "event_id"),
            event_types=tuple(chosen_of(request, "type", EVENT_TYPES) or chosen_of(request, "event_type", EVENT_TYPES)),
            fault=next(iter(chosen_of(request, "fault", ("ours", "theirs"))), None),
            undelivered="true" in chosen_of(request, "undelivered", ("true", "false")),
        )
        found = await self.log.page(wanted, before=place_of(request, "dlv"), limit=limit + 1)
        page = found[:limit]
        following = page[-1].id if len(found) > limit else None
        return JSONResponse({"items": [delivery.to_json() for delivery in page], "next": following})

    async def show(self, request: Request) -> Response:
        return await delivery_answer(self.log, request.path_params["id"], status=200)

    async def replay(self, request: Request) -> Response:
        try:
            there = await self.log.replay(request.path_params["id"], self.clock())
        except ReplayRefused as exc:
            raise Problem(409, exc.code, str(exc), remedy=exc.remedy) from exc
        if not there:
            raise _no_such_delivery()
        self.changed()
        return await delivery_answer(self.log, request.path_params["id"])

    async def replay_many(self, request: Request) -> Response:
        asked = validated(BulkReplay, await small_json(request))
        if asked.endpoint_id is not None:
            endpoint = await self.endpoints.get(asked.endpoint_id)
            if endpoint is None:
                raise Problem(
                    422,
                    "no_such_endpoint",
                    "there is no such endpoint",
                    field="endpoint_id",
                    remedy="GET /v1/endpoints lists them",
                )
            if not endpoint.enabled:
                raise Problem(
                    409,
                    "endpoint_disabled",
                    "the endpoint is disabled",
                    field="endpoint_id",
                    remedy="enable the endpoint first",
                )
        replayed = await self.log.replay_many(
            self.clock(),
            endpoint_id=asked.endpoint_id,
            since=asked.since,
            states=asked.states(),
            dry_run=asked.dry_run,
        )
        if not asked.dry_run:
            self.changed()
        return JSONResponse({**replayed.to_json(), "dry_run": asked.dry_run}, 200 if asked.dry_run else 202)


async def delivery_answer(log: DeliveryLog, delivery_id: str, base_url: str = "", *, status: int = 202) -> Response:
    found = await log.get(delivery_id)
    if found is None:
        raise _no_such_delivery()
    shown, attempts = found
    headers = {"location": f"{base_url}/v1/deliveries/{delivery_id}"} if status == 202 else {}
    answer = {**shown.to_json(), "attempts": [attempt.to_json() for attempt in attempts]}
    return JSONResponse(answer, status, headers=headers)


def _no_such_delivery() -> Problem:
    return Problem(
        404, "no_such_delivery", "there is no such delivery", field="id", remedy="GET /v1/deliveries lists them"
    )
