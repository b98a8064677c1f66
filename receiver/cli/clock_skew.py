"""How far our clock is from others': their `Date` headers, read by the way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx


@dataclass(frozen=True, slots=True)
class Skew:
    """*seconds* by which *host* is ahead of us."""

    host: str
    seconds: float


class Clocks:
    """Collects what answers say of the time."""

    def __init__(self) -> None:
        self._skews: list[Skew] = []

    def note(self, answer: httpx.Response, now: datetime | None = None) -> None:
        """Take the date of an answer that came just now."""
        try:
            said = parsedate_to_datetime(answer.headers["date"])
        except (KeyError, ValueError):
            return
        if said.tzinfo is not None:
            seconds = (said - (now or datetime.now(UTC))).total_seconds()
            self._skews.append(Skew(answer.request.url.host, seconds))

    def worst(self) -> Skew | None:
        return max(self._skews, key=lambda skew: abs(skew.seconds), default=None)
