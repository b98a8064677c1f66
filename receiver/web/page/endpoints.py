"""Endpoints: their health, and all actions of an operator on them. A secret is shown once, when it is created."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.events import EVENT_TYPES
from receiver.domain.ids import is_id
from receiver.web.page.api import Api
from receiver.web.page.gate import Gate, to_page
from receiver.web.page.notices import notice_of
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session
from receiver.web.problems import Problem

_SHOWN = 100
_RECENT = 40


@dataclass(frozen=True, slots=True)
class EndpointsPage:
    """The list of endpoints, and the actions on them."""

    gate: Gate
    pages: Pages
    api: Api
    providers: tuple[str, ...]

    def routes(self) -> list[Route]:
        gate = self.gate
        actions = ("test", "enable", "disable", "remove")
        return [
            Route("/endpoints", gate.page(self.list), methods=["GET"]),
            Route("/endpoints", gate.action(self.add), methods=["POST"]),
            Route("/endpoints/{id}", gate.action(self.edit), methods=["POST"]),
            Route("/endpoints/{id}/rotate-secret", gate.action(self.rotate), methods=["POST"]),
            *(Route(f"/endpoints/{{id}}/{name}", self._action(name), methods=["POST"]) for name in actions),
        ]

    async def list(self, request: Request, session: Session) -> Response:
        return await self._list(request, session)

    async def add(self, request: Request, session: Session, form: FormData) -> Response:
        try:
            made = await self.api.post(session.caller, "/v1/endpoints", _asked(form))
        except Problem as exc:
            return await self._list(request, session, error=exc, given=form)
        return await self._list(request, session, secret=made, done="The endpoint is there. This is its secret:")

    async def edit(self, request: Request, session: Session, form: FormData) -> Response:
        path = f"/v1/endpoints/{_id(request)}"
        try:
            await self.api.post(session.caller, path, _asked(form), method="PATCH")
        except Problem as exc:
            return await self._list(request, session, error=exc)
        return to_page(request, "endpoints?done=edit")

    async def rotate(self, request: Request, session: Session, form: FormData) -> Response:
        rotated = await self.api.post(session.caller, f"/v1/endpoints/{_id(request)}/rotate-secret")
        done = "This is the new secret. The old one also signs for a day:"
        return await self._list(request, session, secret=rotated, done=done)

    def _action(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def act(request: Request, session: Session, form: FormData) -> Response:
            path = f"/v1/endpoints/{_id(request)}"
            if name == "test":
                await self.api.post(session.caller, f"{path}/test")
            elif name == "remove":
                await self.api.post(session.caller, path, method="DELETE")
            else:
                await self.api.post(session.caller, path, {"enabled": name == "enable"}, method="PATCH")
            return to_page(request, "" if form.get("back") == "overview" else f"endpoints?done={name}")

        return self.gate.action(act)

    async def _list(
        self,
        request: Request,
        session: Session,
        *,
        secret: Mapping[str, Any] | None = None,
        error: Problem | None = None,
        given: FormData | None = None,
        done: str = "",
    ) -> Response:
        page = await self.api.get(session.caller, "/v1/endpoints", limit=_SHOWN)
        recent = {
            endpoint["id"]: (
                await self.api.get(session.caller, "/v1/deliveries", endpoint=endpoint["id"], limit=_RECENT)
            )["items"]
            for endpoint in page["items"]
        }
        context = {
            "endpoints": page["items"],
            "more": page["next"],
            "recent": recent,
            "types": EVENT_TYPES,
            "providers": self.providers,
            "secret": secret,
            "error": error,
            "given": given or {},
            "done": done or notice_of(request.query_params),
            "now": datetime.now(UTC),
        }
        status = 200 if error is None else error.status
        return await self.pages.answer(request, session, "endpoints.html", context, status=status)


def _id(request: Request) -> str:
    endpoint_id: str = request.path_params["id"]
    if not is_id("ep", endpoint_id):
        raise Problem(404, "no_such_endpoint", "there is no such endpoint", remedy="choose one of the list")
    return endpoint_id


def _asked(form: FormData) -> dict[str, Any]:
    """Return the fields of the form as the API takes them."""
    asked: dict[str, Any] = {
        "url": str(form.get("url", "")).strip(),
        "description": str(form.get("description", "")).strip(),
        "event_types": [str(name) for name in form.getlist("event_types")],
        "providers": [str(name) for name in form.getlist("providers")],
        "rate": str(form.get("rate", "")).strip() or None,
    }
    for name, number in (("timeout_seconds", float), ("concurrency", int)):
        if text := str(form.get(name, "")).strip():
            try:
                asked[name] = number(text)
            except ValueError:
                asked[name] = text  # the API's error says what it accepts
    return asked
