"""Statistics: `/v1/stats`, sums by hour, behind a bearer token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.domain.entity import iso
from receiver.domain.rollups import HOUR, Sums, hour_of
from receiver.store.rollups import DELIVERIES, RollupTable
from receiver.web.auth import Bearer
from receiver.web.query_params import cursor_of, known_only, limit_of


@dataclass(frozen=True, slots=True)
class StatsApi:
    """`/v1/stats`: hourly sums of jobs, callbacks and deliveries; those of the current hour are a few seconds old."""

    rollups: RollupTable
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        return [Route("/v1/stats", bearer.guard(self.list), methods=["GET"])]

    async def list(self, request: Request) -> Response:
        """`?cursor=&limit=`: an item for each hour, newest first, quiet hours included."""
        known_only(request, "cursor", "limit")
        limit = limit_of(request)
        before = cursor_of(request)
        end = hour_of(self.clock()) + HOUR
        if before:
            end = min(end, datetime(1970, 1, 1, tzinfo=UTC) + before % 10**7 * HOUR)
        start = max(end - limit * HOUR, datetime(1970, 1, 1, tzinfo=UTC))
        hours = by_hour(await self.rollups.between(start, end), start, end)
        following = str(int(start.timestamp()) // 3600)
        items = [_item(hour, sums) for hour, sums in reversed(hours.items())]
        return JSONResponse({"items": items, "next": following if start > _oldest(self.clock()) else None})


def by_hour(
    rows: Iterable[tuple[datetime, str, Sums]], start: datetime, end: datetime
) -> dict[datetime, dict[str, Sums]]:
    """Group *rows* by hour and provider, with every hour from *start* until before *end*, oldest first."""
    hours: dict[datetime, dict[str, Sums]] = {}
    while start < end:
        hours[start] = {}
        start += HOUR
    for hour, provider, sums in rows:
        hours[hour][provider] = sums
    return hours


def _item(hour: datetime, sums: dict[str, Sums]) -> dict[str, Any]:
    attempts = sums.get(DELIVERIES, Sums()).attempts
    return {
        "hour": iso(hour),
        "providers": {name: its.shown() for name, its in sums.items() if name != DELIVERIES},
        "delivery_attempts": {"delivered": attempts.get("delivered", 0), "failed": attempts.get("failed", 0)},
    }


def _oldest(now: datetime) -> datetime:
    return hour_of(now) - timedelta(days=400)
