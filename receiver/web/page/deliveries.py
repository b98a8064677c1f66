"""Deliveries: the list and its filters, and replays of one of them, or of everything since a given time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.deliveries import DeliveryState
from receiver.domain.events import EVENT_TYPES
from receiver.domain.ids import is_id
from receiver.web.page.api import Api
from receiver.web.page.gate import Gate, to_page
from receiver.web.page.notices import notice_of, notice_query
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session
from receiver.web.problems import Problem

_FILTERS = ("state", "endpoint", "type", "job")
_LIMIT = 40


@dataclass(frozen=True, slots=True)
class DeliveriesPage:
    """The list of deliveries, and replays."""

    gate: Gate
    pages: Pages
    api: Api

    def routes(self) -> list[Route]:
        gate = self.gate
        return [
            Route("/deliveries", gate.page(self.list), methods=["GET"]),
            Route("/deliveries/replay", gate.action(self.replay_many), methods=["POST"]),
            Route("/deliveries/{id}/replay", gate.action(self.replay), methods=["POST"]),
        ]

    async def list(self, request: Request, session: Session) -> Response:
        query = request.query_params
        filters = {name: query[name].strip()[:300] for name in _FILTERS if query.get(name, "").strip()}
        cursor, error = query.get("cursor", ""), None
        page: dict[str, Any] = {"items": [], "next": None}
        try:
            page = await self.api.get(session.caller, "/v1/deliveries", **filters, cursor=cursor, limit=_LIMIT)
        except Problem as exc:
            if exc.status != 422:
                raise
            error = exc
        context = {
            "deliveries": page["items"],
            "next": page["next"] and urlencode({**filters, "cursor": page["next"]}),
            "cursor": cursor,
            "filters": filters,
            "query": urlencode(filters),
            "states": [state.value for state in DeliveryState],
            "types": EVENT_TYPES,
            "endpoints": (await self.api.get(session.caller, "/v1/endpoints", limit=200))["items"],
            "error": error,
            "done": notice_of(query),
            "now": datetime.now(UTC),
        }
        status = 200 if error is None else 422
        return await self.pages.answer(request, session, "deliveries.html", context, status=status)

    async def replay(self, request: Request, session: Session, form: FormData) -> Response:
        await self.api.post(session.caller, f"/v1/deliveries/{request.path_params['id']}/replay")
        if form.get("back") == "overview":
            return to_page(request)
        job = str(form.get("job", ""))
        if is_id("job", job):
            return to_page(request, f"jobs/{job}?done=replay")
        return to_page(request, "deliveries?done=replay")

    async def replay_many(self, request: Request, session: Session, form: FormData) -> Response:
        """Count first; once that is confirmed, replay."""
        asked: dict[str, Any] = {}
        if endpoint := str(form.get("endpoint", "")).strip():
            asked["endpoint_id"] = endpoint
        if since := str(form.get("since", "")).strip():
            asked["since"] = _in_utc(since)
        if form.get("confirmed") != "true":
            found = await self.api.post(session.caller, "/v1/deliveries/replay", {**asked, "dry_run": True})
            context = {"found": found, "asked": asked}
            return await self.pages.answer(request, session, "replay.html", context)
        done = await self.api.post(session.caller, "/v1/deliveries/replay", asked)
        return to_page(request, f"deliveries?{notice_query('replay-many', count=done['replayed'])}")


def _in_utc(moment: str) -> str:
    """Add the zone to the value of a form's time field, which has none; the form says that it is UTC."""
    if "T" not in moment:
        return f"{moment}T00:00:00Z"
    return moment if moment.endswith(("Z", "z")) or "+" in moment else f"{moment}Z"
