"""Providers: their queues, rates, callbacks and cost, and the switch that pauses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.upstream.slots import ProviderSlot
from receiver.web.page.api import Api
from receiver.web.page.gate import Gate, to_page
from receiver.web.page.notices import notice_of
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session


@dataclass(frozen=True, slots=True)
class ProvidersPage:
    """The list of providers, and their pauses."""

    gate: Gate
    pages: Pages
    api: Api
    slots: Mapping[str, ProviderSlot]

    def routes(self) -> list[Route]:
        gate = self.gate
        return [
            Route("/providers", gate.page(self.list), methods=["GET"]),
            Route("/providers/{name}/pause", gate.action(self.pause), methods=["POST"]),
            Route("/providers/{name}/resume", gate.action(self.resume), methods=["POST"]),
        ]

    async def list(self, request: Request, session: Session) -> Response:
        providers = (await self.api.get(session.caller, "/v1/providers"))["items"]
        context = {
            "providers": providers,
            "spend": {provider["name"]: _by_unit(provider["spend"]) for provider in providers},
            "slots": self.slots,
            "done": notice_of(request.query_params),
            "now": datetime.now(UTC),
        }
        return await self.pages.answer(request, session, "providers.html", context)

    async def pause(self, request: Request, session: Session, form: FormData) -> Response:
        reason = str(form.get("reason", "")).strip()
        asked = {"reason": reason} if reason else {}
        await self.api.post(session.caller, f"/v1/providers/{request.path_params['name']}/pause", asked)
        return to_page(request, "providers?done=pause")

    async def resume(self, request: Request, session: Session, form: FormData) -> Response:
        await self.api.post(session.caller, f"/v1/providers/{request.path_params['name']}/resume")
        return to_page(request, "" if form.get("back") == "overview" else "providers?done=resume")


def _by_unit(days: Iterable[Mapping[str, Any]]) -> dict[str, Decimal]:
    """Add up the costs of several days, by unit: credits and money can't be added."""
    spend: dict[str, Decimal] = {}
    for day in days:
        spend[day["unit"]] = spend.get(day["unit"], Decimal(0)) + Decimal(day["amount"])
    return spend
