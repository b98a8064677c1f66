"""Events: `/v1/events`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.domain.events import EVENT_TYPES, EventFilter
from receiver.downstream.stream import Stream
from receiver.store.events import Events
from receiver.web.accept import accepted
from receiver.web.auth import Bearer
from receiver.web.problems import Problem
from receiver.web.query_params import chosen_of, cursor_of, known_only, limit_of, text_of

_PARAMETERS = ("type", "provider", "job", "after", "last_event_id", "cursor", "limit")


@dataclass(frozen=True, slots=True)
class EventsApi:
    """`GET /v1/events`: pages, or a stream for clients that accept `text/event-stream`."""

    events: Events
    stream: Stream
    providers: Sequence[str]
    began_at: int | None = None
    """The newest position when this process started: events since a restore come after it."""

    def routes(self, bearer: Bearer) -> list[Route]:
        return [Route("/v1/events", bearer.guard(self.list), methods=["GET"])]

    async def list(self, request: Request) -> Response:
        choice = EventFilter(
            types=frozenset(chosen_of(request, "type", EVENT_TYPES)),
            providers=frozenset(chosen_of(request, "provider", self.providers)),
            job_id=text_of(request, "job") or text_of(request, "job_id"),
        )
        if _wants_a_stream(request):
            # Clients of such streams add parameters of their own, and never retry after a refusal.
            return await self._streamed(request, choice)
        known_only(request, *_PARAMETERS, aliases=("job_id",))
        limit = limit_of(request, most=500)
        after = await self._known(max(cursor_of(request), cursor_of(request, "after")))
        found, _ = await self.events.after(after, limit=limit + 1, choice=choice)
        page = found[:limit]
        following = str(page[-1].position) if len(found) > limit else None
        return JSONResponse({"items": [event.to_json() for event in page], "next": following})

    async def _streamed(self, request: Request, choice: EventFilter) -> Response:
        position = await self._position(request)
        # `last-event-id` gives a client its position before the first event, in case it is cut off until then.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "last-event-id": str(position)}
        return StreamingResponse(
            self.stream.frames(position, choice), headers=headers, media_type="text/event-stream; charset=utf-8"
        )

    async def _position(self, request: Request) -> int:
        """Return the position to start after: the header's, else the query's, else the newest."""
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
            return await self._known(int(given))
        for name in ("last_event_id", "after", "cursor"):
            if request.query_params.get(name):
                return await self._known(cursor_of(request, name))
        return await self.stream.start_position()

    async def _known(self, position: int) -> int:
        """
        Return *position* if it is in this log.

        A reader at any other position would miss events without noticing. It is sent to where nothing is missed: before
        the first event since the restore, or since this process started.
        """
        if position == 0:
            return position
        newest = await self.events.newest()
        if position <= newest:
            resume_after = await self.events.restored_from(position)
        else:
            resume_after = newest if self.began_at is None else min(self.began_at, newest)
        if resume_after is None:
            return position
        raise Problem(
            409,
            "position_ahead",
            f"position {position} is not in this log, whose newest event is {newest}",
            field="after",
            remedy=f"go on from {resume_after}: the log was restored from a backup, or is another receiver's",
            newest=newest,
            resume_after=resume_after,
        )


def _wants_a_stream(request: Request) -> bool:
    wanted = accepted(request)
    stream = wanted.get("text/event-stream", 0.0)
    return request.method == "GET" and stream > 0 and stream >= wanted.get("application/json", 0.0)
