"""The skew between our clock and others', from the `Date` headers of answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx


@dataclass(frozen=True, slots=True)
class Skew:
    """A difference of clocks: *host* is *seconds* ahead of us."""

    host: str
    seconds: float


class Clocks:
    """Collects the skews that answers show."""

    def __init__(self) -> None:
        self._skews: list[Skew] = []

    def note(self, answer: httpx.Response, now: datetime | None = None) -> None:
        """Record the date of an answer that has just arrived."""
        try:
            said = parsedate_to_datetime(answer.headers["date"])
        except (KeyError, ValueError):
            return
        if said.tzinfo is not None:
            seconds = (said - (now or datetime.now(UTC))).total_seconds()
            self._skews.append(Skew(answer.request.url.host, seconds))

    def worst(self) -> Skew | None:
        return max(self._skews, key=lambda skew: abs(skew.seconds), default=None)
