"""Overview: what needs a person first, then what the last hours came to."""

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
from receiver.domain.rollups import HOUR, Sums, hour_of, total
from receiver.store.attention import MOST_COUNTED, concerns, open_jobs
from receiver.store.database import Database
from receiver.store.rollups import DELIVERIES
from receiver.upstream.pauses import Pauses
from receiver.upstream.slots import ProviderSlot
from receiver.web.endpoints import BY_OPERATOR
from receiver.web.page.api import Api
from receiver.web.page.charts import Bar, bars
from receiver.web.page.gate import Gate
from receiver.web.page.hourly_sums import HourlySums
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session

SPANS = {
    "day": (timedelta(hours=24), "24 hours"),
    "week": (timedelta(days=7), "7 days"),
    "month": (timedelta(days=30), "30 days"),
}


@dataclass(frozen=True, slots=True)
class Overview:
    """The first page."""

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
        length, words = SPANS.get(span, SPANS["day"])
        context = {
            "span": span if span in SPANS else "day",
            "span_words": words,
            "spans": SPANS,
            "attention": await self._attention(session, now),
            "most": MOST_COUNTED,
            "open": await open_jobs(self.database, tuple(self.slots)),
            **await self._figures(now, length),
            "configured": [name for name, slot in self.slots.items() if slot.configured],
        }
        return self.pages.answer(request, session, "overview.html", context)

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
                [await self.api.get(session.caller, f"/v1/deliveries/{one}") for one in found.undelivered.ids],
            ),
            "endpoints": [
                one
                for one in endpoints
                if one["failing_since"] or not (one["enabled"] or one["disabled_reason"] == BY_OPERATOR)
            ],
        }

    async def _figures(self, now: datetime, length: timedelta) -> dict[str, Any]:
        """Sums of the last *length*, by provider, and columns of charts: of hours, or of days."""
        end = hour_of(now) + HOUR
        start = end - length
        hours = await self.sums.between(start, end, now)
        step = 1 if length <= timedelta(hours=24) else 24 if length > timedelta(days=7) else 6
        columns = [
            (moments[0], _merged([hours[moment] for moment in moments])) for moments in _grouped(list(hours), step)
        ]
        providers = _merged(list(hours.values()))
        deliveries = providers.pop(DELIVERIES, Sums())
        return {
            "step": step,
            "all": total(providers.values()),
            "providers": providers,
            "deliveries": deliveries.attempts,
            "finished_chart": bars([_finished_bar(at, sums) for at, sums in columns]),
            "delivery_chart": bars([_delivery_bar(at, sums) for at, sums in columns]),
            "spend": await self._spend(now),
        }

    async def _spend(self, now: datetime) -> dict[str, Any]:
        """What the last two weeks cost, a day at a time, by unit: credits and money can't be added."""
        end = hour_of(now).replace(hour=0) + timedelta(days=1)
        start = end - timedelta(days=14)
        days: dict[str, Sums] = {iso(start + timedelta(days=n)) or "": Sums() for n in range(14)}
        for hour, sums in (await self.sums.between(start, end, now)).items():
            for one in sums.values():
                if one.cost:
                    days[iso(hour.replace(hour=0)) or ""].add(Sums(cost=one.cost))
        units = sorted({unit for sums in days.values() for unit in sums.cost})
        return {
            unit: bars([Bar(day, {"spend": float(sums.cost.get(unit, Decimal(0)))}) for day, sums in days.items()])
            for unit in units
        }


def _finished_bar(at: datetime, sums: Mapping[str, Sums]) -> Bar:
    finished = total(one for name, one in sums.items() if name != DELIVERIES).finished
    good = finished.get("succeeded", 0)
    return Bar(iso(at) or "", {"succeeded": good, "not succeeded": sum(finished.values()) - good})


def _delivery_bar(at: datetime, sums: Mapping[str, Sums]) -> Bar:
    attempts = sums.get(DELIVERIES, Sums()).attempts
    return Bar(iso(at) or "", {"delivered": attempts.get("delivered", 0), "failed": attempts.get("failed", 0)})


def _merged(several: Sequence[Mapping[str, Sums]]) -> dict[str, Sums]:
    names = sorted({name for sums in several for name in sums})
    return {name: total(sums[name] for sums in several if name in sums) for name in names}


def _grouped(moments: list[datetime], step: int) -> list[list[datetime]]:
    return [moments[at : at + step] for at in range(0, len(moments), step)]
