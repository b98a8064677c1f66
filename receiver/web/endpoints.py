"""The JSON API of what goes downstream: events, endpoints and deliveries, under `/v1`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.domain.ids import new_id
from receiver.domain.jobs import iso
from receiver.downstream.stream import Stream
from receiver.net.guard import Guard
from receiver.store.delivery_log import DeliveryFilter, DeliveryLog, DeliveryState, ReplayRefused
from receiver.store.endpoints import Endpoint, Endpoints, SigningSecret
from receiver.store.events import EventFilter, Events
from receiver.store.outbox import EVENT_TYPES
from receiver.web.admission import check_target
from receiver.web.examples import example_data
from receiver.web.jobs import Bearer, small_json
from receiver.web.problems import Problem
from receiver.web.query_params import chosen_of, cursor_of, known_only, limit_of, place_of, text_of
from receiver.web.schemas import BulkReplay, EndpointChange, NewEndpoint, Rotation, Trial, validated
from submitter.signatures import new_secret

_EVENT_PARAMETERS = ("type", "provider", "job", "after", "last_event_id", "cursor", "limit")
_DELIVERY_PARAMETERS = ("state", "undelivered", "fault", "endpoint", "job", "event", "type", "cursor", "limit")
_DELIVERY_ALIASES = ("endpoint_id", "job_id", "event_id", "event_type")

BY_OPERATOR = "switched off by an operator"


@dataclass(frozen=True, slots=True)
class EventsApi:
    """`GET /v1/events`: pages, or a stream for who accepts `text/event-stream`."""

    events: Events
    stream: Stream
    providers: Sequence[str]

    def routes(self, bearer: Bearer) -> list[Route]:
        return [Route("/v1/events", bearer.guard(self.list), methods=["GET"])]

    async def list(self, request: Request) -> Response:
        choice = EventFilter(
            types=frozenset(chosen_of(request, "type", EVENT_TYPES)),
            providers=frozenset(chosen_of(request, "provider", self.providers)),
            job_id=text_of(request, "job") or text_of(request, "job_id"),
        )
        if request.method == "GET" and "text/event-stream" in request.headers.get("accept", ""):
            # Clients of such streams add parameters of their own, and never come again after a refusal.
            return await self._streamed(request, choice)
        known_only(request, *_EVENT_PARAMETERS, aliases=("job_id",))
        limit = limit_of(request, most=500)
        after = max(cursor_of(request), cursor_of(request, "after"))
        found, _ = await self.events.after(after, limit=limit + 1, choice=choice)
        page = found[:limit]
        following = str(page[-1].position) if len(found) > limit else None
        return JSONResponse({"items": [event.to_json() for event in page], "next": following})

    async def _streamed(self, request: Request, choice: EventFilter) -> Response:
        position = await self._position(request)
        # `last-event-id` tells a client where it stands before its first event, should it be cut until then.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "last-event-id": str(position)}
        return StreamingResponse(
            self.stream.frames(position, choice), headers=headers, media_type="text/event-stream; charset=utf-8"
        )

    async def _position(self, request: Request) -> int:
        """Above which position to begin: the header's, else the query's, else what happens from now on."""
        given = request.headers.get("last-event-id", "").strip(" \t")
        if given:
            if not (given.isascii() and given.isdigit() and len(given) < 19):
                raise Problem(
                    422,
                    "invalid_cursor",
                    "Last-Event-ID must be the `id` of an event",
                    field="Last-Event-ID",
                    remedy="send the `id` of the last event that was seen, or leave it out",
                )
            return int(given)
        for name in ("last_event_id", "after", "cursor"):
            if request.query_params.get(name):
                return cursor_of(request, name)
        return await self.stream.start_position()


@dataclass(frozen=True, slots=True)
class EndpointsApi:
    """`/v1/endpoints`. A secret is shown when it is made and never again."""

    endpoints: Endpoints
    log: DeliveryLog
    guard: Guard
    base_url: Callable[[], str]
    changed: Callable[[], None]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        guard = bearer.guard
        return [
            Route("/v1/endpoints", guard(self.list), methods=["GET"]),
            Route("/v1/endpoints", guard(self.create), methods=["POST"]),
            Route("/v1/endpoints/{id}", guard(self.show), methods=["GET"]),
            Route("/v1/endpoints/{id}", guard(self.update), methods=["PATCH"]),
            Route("/v1/endpoints/{id}", guard(self.replace), methods=["PUT"]),
            Route("/v1/endpoints/{id}", guard(self.remove), methods=["DELETE"]),
            Route("/v1/endpoints/{id}/test", guard(self.test), methods=["POST"]),
            Route("/v1/endpoints/{id}/rotate-secret", guard(self.rotate), methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        known_only(request, "cursor", "limit")
        limit = limit_of(request)
        found = await self.endpoints.page(after=place_of(request, "ep") or "", limit=limit + 1)
        page = found[:limit]
        following = page[-1].id if len(found) > limit else None
        return JSONResponse({"items": [one.to_json() for one in page], "next": following})

    async def create(self, request: Request) -> Response:
        asked = validated(NewEndpoint, await small_json(request))
        await self._check_url(asked.url)
        secret = asked.secret or new_secret()
        endpoint = Endpoint(
            id=new_id("ep"), created_at=self.clock(), secrets=(SigningSecret(secret),), **asked.settings()
        )
        if not endpoint.enabled:
            endpoint = endpoint.switched(on=False, reason=BY_OPERATOR)
        await self.endpoints.add(endpoint)
        headers = {"location": f"{self.base_url()}/v1/endpoints/{endpoint.id}"}
        return JSONResponse({**endpoint.to_json(), "secret": secret}, 201, headers=headers)

    async def show(self, request: Request) -> Response:
        return JSONResponse((await self._found(request)).to_json())

    async def update(self, request: Request) -> Response:
        """`PATCH`: what is named changes, the rest stays."""
        asked = validated(EndpointChange, await small_json(request))
        if "url" in asked.model_fields_set:
            await self._check_url(asked.url)
        return await self._changed(request, asked.settings(only_given=True))

    async def replace(self, request: Request) -> Response:
        """`PUT`: what is not named goes back to its default. The secret stays."""
        asked = validated(NewEndpoint, await small_json(request))
        if asked.secret is not None:
            raise Problem(
                422,
                "invalid_field",
                "a secret changes by rotation only",
                field="secret",
                remedy="POST /v1/endpoints/{id}/rotate-secret",
            )
        await self._check_url(asked.url)
        return await self._changed(request, asked.settings())

    async def remove(self, request: Request) -> Response:
        if not await self.endpoints.remove(request.path_params["id"], self.clock()):
            raise _no_such_endpoint()
        self.changed()
        return Response(status_code=204)

    async def test(self, request: Request) -> Response:
        """An example event, queued like a real one; its delivery is the answer."""
        endpoint = await self._found(request)
        asked = validated(Trial, await small_json(request))
        data = example_data(asked.event_type, endpoint, self.clock(), base_url=self.base_url())
        delivery_id = await self.log.send_example(endpoint.id, asked.event_type, data, self.clock())
        self.changed()
        return await _delivery_answer(self.log, delivery_id, self.base_url())

    async def rotate(self, request: Request) -> Response:
        asked = validated(Rotation, await small_json(request))
        secret, now = asked.secret or new_secret(), self.clock()
        overlap = timedelta(seconds=asked.overlap_seconds)
        rotated = await self.endpoints.change(
            request.path_params["id"], lambda one: one.rotated(secret, now, overlap=overlap), now
        )
        if rotated is None:
            raise _no_such_endpoint()
        self.changed()
        return JSONResponse({**rotated.to_json(), "secret": secret, "old_secrets_sign_until": iso(now + overlap)})

    async def _changed(self, request: Request, settings: dict[str, Any]) -> Response:
        def change(before: Endpoint) -> Endpoint:
            after = replace(before, **settings)
            if after.enabled != before.enabled:
                return after.switched(on=after.enabled, reason=BY_OPERATOR)
            return after

        after = await self.endpoints.change(request.path_params["id"], change, self.clock())
        if after is None:
            raise _no_such_endpoint()
        self.changed()
        return JSONResponse(after.to_json())

    async def _check_url(self, url: str) -> None:
        await check_target(self.guard, url, field="url", code="invalid_url")

    async def _found(self, request: Request) -> Endpoint:
        found = await self.endpoints.one(request.path_params["id"])
        if found is None:
            raise _no_such_endpoint()
        return found


@dataclass(frozen=True, slots=True)
class DeliveriesApi:
    """`/v1/deliveries`: what was delivered and what was not, and once more."""

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
        known_only(request, *_DELIVERY_PARAMETERS, aliases=_DELIVERY_ALIASES)
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
        return JSONResponse({"items": [one.to_json() for one in page], "next": following})

    async def show(self, request: Request) -> Response:
        return await _delivery_answer(self.log, request.path_params["id"], status=200)

    async def replay(self, request: Request) -> Response:
        try:
            there = await self.log.replay(request.path_params["id"], self.clock())
        except ReplayRefused as exc:
            raise Problem(409, exc.code, str(exc), remedy=exc.remedy) from exc
        if not there:
            raise _no_such_delivery()
        self.changed()
        return await _delivery_answer(self.log, request.path_params["id"])

    async def replay_many(self, request: Request) -> Response:
        asked = validated(BulkReplay, await small_json(request))
        if asked.endpoint_id is not None:
            endpoint = await self.endpoints.one(asked.endpoint_id)
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


async def _delivery_answer(log: DeliveryLog, delivery_id: str, base_url: str = "", *, status: int = 202) -> Response:
    found = await log.one(delivery_id)
    if found is None:
        raise _no_such_delivery()
    shown, attempts = found
    headers = {"location": f"{base_url}/v1/deliveries/{delivery_id}"} if status == 202 else {}
    answer = {**shown.to_json(), "attempts": [attempt.to_json() for attempt in attempts]}
    return JSONResponse(answer, status, headers=headers)


def _no_such_endpoint() -> Problem:
    return Problem(
        404, "no_such_endpoint", "there is no such endpoint", field="id", remedy="GET /v1/endpoints lists them"
    )


def _no_such_delivery() -> Problem:
    return Problem(
        404, "no_such_delivery", "there is no such delivery", field="id", remedy="GET /v1/deliveries lists them"
    )
