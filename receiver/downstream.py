"""The JSON API of what goes downstream: events, endpoints and deliveries, under `/v1`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.api import Bearer, cursor_of, limit_of
from receiver.events import Choice, Events
from receiver.outbox import EVENT_TYPES
from receiver.problems import Problem
from receiver.stream import Stream


@dataclass(frozen=True, slots=True)
class EventsApi:
    """`GET /v1/events`: pages, or a stream for who accepts `text/event-stream`."""

    events: Events
    stream: Stream
    providers: Sequence[str]

    def routes(self, bearer: Bearer) -> list[Route]:
        return [Route("/v1/events", bearer.guard(self.list), methods=["GET"])]

    async def list(self, request: Request) -> Response:
        choice = Choice(
            types=frozenset(chosen_of(request, "type", EVENT_TYPES)),
            providers=frozenset(chosen_of(request, "provider", self.providers)),
            job_id=request.query_params.get("job") or request.query_params.get("job_id"),
        )
        if request.method == "GET" and "text/event-stream" in request.headers.get("accept", ""):
            return await self._streamed(request, choice)
        limit = limit_of(request, most=500)
        after = max(cursor_of(request), cursor_of(request, "after"))
        found, _ = await self.events.after(after, limit=limit + 1, choice=choice)
        page = found[:limit]
        following = str(page[-1].position) if len(found) > limit else None
        return JSONResponse({"items": [event.to_json() for event in page], "next": following})

    async def _streamed(self, request: Request, choice: Choice) -> Response:
        position = await self._position(request)
        # `last-event-id` tells a client where it stands before its first event, should it be cut until then.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "last-event-id": str(position)}
        return StreamingResponse(
            self.stream.frames(position, choice), headers=headers, media_type="text/event-stream; charset=utf-8"
        )

    async def _position(self, request: Request) -> int:
        """Above which position to begin: the header's, else the query's, else what happens from now on."""
        given = request.headers.get("last-event-id")
        if given:
            if not (given.isascii() and given.isdigit() and len(given) < 19):
                raise Problem(
                    422, "invalid_cursor", "Last-Event-ID must be the `id` of an event", field="Last-Event-ID"
                )
            return int(given)
        for name in ("last_event_id", "after", "cursor"):
            if request.query_params.get(name):
                return cursor_of(request, name)
        return await self.stream.start_position()


def chosen_of(request: Request, name: str, known: Sequence[str]) -> list[str]:
    """The values of a filter that may be repeated or separated by commas; each must be *known*."""
    chosen = [value.strip() for value in ",".join(request.query_params.getlist(name)).split(",") if value.strip()]
    for value in chosen:
        if value not in known:
            raise Problem(
                422,
                "invalid_filter",
                f"there is no {name} {value[:48]!r}",
                field=name,
                remedy=f"use {', '.join(known)}",
            )
    return chosen
