"""Jobs: the list, its filters, and bulk actions on all jobs that match them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.ids import made_at
from receiver.upstream.slots import ProviderSlot
from receiver.web.page.api import Api
from receiver.web.page.bulk import ACTIONS, Bulk
from receiver.web.page.gate import Gate, to_page
from receiver.web.page.notices import notice_of, notice_query
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session
from receiver.web.problems import Problem
from submitter.vocabulary import State

_FILTERS = ("q", "state", "provider", "since", "until")
_LIMIT = 40


@dataclass(frozen=True, slots=True)
class JobsPage:
    """The list of jobs, and bulk actions on it."""

    gate: Gate
    pages: Pages
    api: Api
    slots: Mapping[str, ProviderSlot]
    bulk: Bulk

    def routes(self) -> list[Route]:
        return [
            Route("/jobs", self.gate.page(self.list), methods=["GET"]),
            Route("/jobs/bulk", self.gate.action(self.act), methods=["POST"]),
        ]

    async def list(self, request: Request, session: Session) -> Response:
        filters = _filters(request.query_params)
        cursor = request.query_params.get("cursor", "")
        error: Problem | None = None
        page: dict[str, Any] = {"items": [], "next": None}
        try:
            page = await self.api.get(session.caller, "/v1/jobs", **filters, cursor=cursor, limit=_LIMIT)
        except Problem as exc:
            if exc.status != 422:
                raise
            error = exc
        context = {
            "jobs": page["items"],
            "next": page["next"] and urlencode({**filters, "cursor": page["next"]}),
            "searched_to": _searched_to(filters, page),
            "cursor": cursor,
            "filters": filters,
            "query": urlencode(filters),
            "states": [state.value for state in State],
            "slots": self.slots,
            "error": error,
            "actions": ACTIONS,
            "done": notice_of(request.query_params),
            "now": datetime.now(UTC),
        }
        return await self.pages.answer(request, session, "jobs.html", context, status=200 if error is None else 422)

    async def act(self, request: Request, session: Session, form: FormData) -> Response:
        """Show the action and the number of jobs first; once that is confirmed, carry it out."""
        filters = _filters(form)
        action = ACTIONS.get(str(form.get("action")))
        if action is None:
            raise Problem(422, "unknown_action", "there is no such action", remedy="go back and choose one of the list")
        until = str(form.get("before", ""))
        if form.get("confirmed") == "true" and until:
            done = await self.bulk.run(session.caller, action, filters, until)
            query = notice_query(
                f"bulk-{action.name}", count=done.done, refused=done.refused, more=done.left, beside=filters
            )
            return to_page(request, f"jobs?{query}")
        found = await self.bulk.count(session.caller, action, filters)
        context = {"action": action, "filters": filters, "found": found}
        return await self.pages.answer(request, session, "bulk.html", context)


def _searched_to(filters: Mapping[str, str], page: Mapping[str, Any]) -> datetime | None:
    """Return how far back a page searched for text, if it ended before it was full: to the job of its cursor."""
    ended_early = "q" in filters and page["next"] is not None and len(page["items"]) < _LIMIT
    return made_at(page["next"]) if ended_early else None


def _filters(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(given[name]).strip()[:300] for name in _FILTERS if str(given.get(name, "")).strip()}
