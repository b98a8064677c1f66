"""Overview: first the things that need attention, then the sums of the last hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.entity import iso
from receiver.domain.rollups import Sums, total
from receiver.store.attention import MOST_COUNTED, concerns, open_jobs
from receiver.store.database import Database
from receiver.store.rollups import DELIVERIES
from receiver.upstream.pauses import Pauses
from receiver.upstream.slots import ProviderSlot
from receiver.web.endpoints import BY_OPERATOR
from receiver.web.page.api import Api
from receiver.web.page.charts import Bar, bars
from receiver.web.page.gate import Gate
from receiver.web.page.hourly_sums import HourlySums, merged
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session

SPANS = {
    "day": (timedelta(hours=24), 1, "24 hours"),
    "week": (timedelta(days=7), 6, "7 days"),
    "month": (timedelta(days=30), 24, "30 days"),
}
"""The length of each range, the hours of a column, and its title."""
_SPEND_DAYS = timedelta(days=13)
"""The days before today."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The page after sign-in."""

    gate: Gate
    pages: Pages
    api: Api
    database: Database
    slots: Mapping[str, ProviderSlot]
    pauses: Pauses
    sums: HourlySums

    def routes(self) -> list[Route]:
        return [Route("/", self.gate.page(self.show), methods=["GET"])]

    async def show(self, request: Request, session: Session) -> Response:
        now = datetime.now(UTC)
        span = request.query_params.get("span", "day")
        length, step, words = SPANS.get(span, SPANS["day"])
        open_by_state = await open_jobs(self.database, tuple(self.slots))
        figures = await self._figures(now, length, step)
        idle = not any(count for counts in open_by_state.values() for count in counts.values())
        context = {
            "span": span if span in SPANS else "day",
            "span_words": words,
            "spans": SPANS,
            "attention": await self._attention(session, now),
            "most": MOST_COUNTED,
            "open": open_by_state,
            "summed_until": await self.sums.summed_until(now),
            "no_job": idle and not figures["all"].finished and not await self._any_job(session),
            **figures,
            "configured": [name for name, slot in self.slots.items() if slot.configured],
        }
        return await self.pages.answer(request, session, "overview.html", context)

    async def _any_job(self, session: Session) -> bool:
        return bool((await self.api.get(session.caller, "/v1/jobs", limit=1))["items"])

    async def _attention(self, session: Session, now: datetime) -> dict[str, Any]:
        found = await concerns(self.database, now)
        await self.pauses.refresh(now)

        async def jobs(ids: Sequence[str]) -> list[Any]:
            return [await self.api.get(session.caller, f"/v1/jobs/{job_id}") for job_id in ids]

        endpoints = (await self.api.get(session.caller, "/v1/endpoints", limit=200))["items"]
        return {
            "paused": [(name, pause) for name in self.slots if (pause := self.pauses.of(name)) is not None],
            "degraded": [name for name, slot in self.slots.items() if slot.degraded],
            "unconfirmed": (found.unconfirmed.count, await jobs(found.unconfirmed.ids)),
            "overdue": (found.overdue.count, await jobs(found.overdue.ids)),
            "lost": (found.lost_images.count, await jobs(found.lost_images.ids)),
            "undelivered": (
                found.undelivered.count,
                [
                    await self.api.get(session.caller, f"/v1/deliveries/{delivery_id}")
                    for delivery_id in found.undelivered.ids
                ],
            ),
            "endpoints": [
                endpoint
                for endpoint in endpoints
                if endpoint["failing_since"] or not (endpoint["enabled"] or endpoint["disabled_reason"] == BY_OPERATOR)
            ],
        }

    async def _figures(self, now: datetime, length: timedelta, step: int) -> dict[str, Any]:
        """Return sums of the last *length*, by provider, and the charts' columns of *step* hours."""
        columns = await self.sums.columns(length, step, now)
        providers = merged([sums for _, sums in columns])
        deliveries = providers.pop(DELIVERIES, Sums())
        return {
            "all": total(providers.values()),
            "providers": providers,
            "deliveries": deliveries.attempts,
            "finished_chart": bars([_finished_bar(at, sums) for at, sums in columns]),
            "delivery_chart": bars([_delivery_bar(at, sums) for at, sums in columns]),
            "spend": await self._spend(now),
        }

    async def _spend(self, now: datetime) -> dict[str, Any]:
        """Return the cost of the last two weeks, by unit and day: credits and money can't be added."""
        days = {iso(day) or "": _cost(sums) for day, sums in await self.sums.columns(_SPEND_DAYS, 24, now)}
        units = sorted({unit for cost in days.values() for unit in cost})
        return {
            unit: bars([Bar(day, {"spend": float(cost.get(unit, Decimal(0)))}) for day, cost in days.items()])
            for unit in units
        }


def _cost(sums: Mapping[str, Sums]) -> dict[str, Decimal]:
    return total(Sums(cost=of_provider.cost) for of_provider in sums.values()).cost


def _finished_bar(at: datetime, sums: Mapping[str, Sums]) -> Bar:
    finished = total(of_provider for name, of_provider in sums.items() if name != DELIVERIES).finished
    good = finished.get("succeeded", 0)
    return Bar(iso(at) or "", {"succeeded": good, "not succeeded": sum(finished.values()) - good})


def _delivery_bar(at: datetime, sums: Mapping[str, Sums]) -> Bar:
    attempts = sums.get(DELIVERIES, Sums()).attempts
    return Bar(iso(at) or "", {"delivered": attempts.get("delivered", 0), "failed": attempts.get("failed", 0)})
