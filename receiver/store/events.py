"""
Reading what was told: events by position.

Positions have no gaps for a reader that goes by them: who has seen position n has seen all below it. Events are never
changed once they are written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from receiver.domain.jobs import iso
from receiver.store.database import Database
from receiver.store.rows import moment
from receiver.store.statements import Fetch, Work, first

_COLUMNS = ("position", "id", "type", "job_id", "provider", "created_at", "body")
_NEWEST = "SELECT coalesce(max(position), 0) FROM events"


@dataclass(frozen=True, slots=True)
class Event:
    """One row of `events`. `body` is the very text that subscribers are sent."""

    position: int
    id: str
    type: str
    job_id: str | None
    provider: str | None
    created_at: datetime
    body: str = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The public shape: what subscribers are sent, and where it stands."""
        body = json.loads(self.body)
        return {
            "position": self.position,
            "id": self.id,
            "type": self.type,
            "job_id": self.job_id,
            "provider": self.provider,
            "created_at": iso(self.created_at),
            "timestamp": body["timestamp"],
            "data": body["data"],
        }


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a reader wants. Empty: all of them."""

    types: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    job_id: str | None = None

    def takes(self, event: Event) -> bool:
        return (
            (not self.types or event.type in self.types)
            and (not self.providers or event.provider in self.providers)
            and (self.job_id is None or event.job_id == self.job_id)
        )

    def where(self) -> tuple[str, list[Any]]:
        """The same as conditions in SQL, each behind an AND, with their values."""
        condition, values = "", list[Any]()
        for clause, value in (
            ("type IN (??)", sorted(self.types)),
            ("provider IN (??)", sorted(self.providers)),
            ("job_id = ?", self.job_id),
        ):
            if value:
                condition += f" AND {clause}"
                values.append(value)
        return condition, values


ALL = EventFilter()


class Events:
    """Pages of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> int:
        """The highest position; 0 where there is no event yet."""
        return int((await self._database.read(lambda: first(_NEWEST)))[0])

    async def after(self, position: int, *, limit: int, choice: EventFilter = ALL) -> tuple[Sequence[Event], int]:
        """
        Up to *limit* events above *position*, lowest first, and the position that has been read up to.

        The latter lies beyond the last event where the ones behind it were not wanted.
        """
        condition, values = choice.where()
        query = f"SELECT {', '.join(_COLUMNS)} FROM events WHERE position > ?{condition} ORDER BY position LIMIT ?"

        def work() -> Work[tuple[int, list[Event]]]:
            newest = (yield from first(_NEWEST))[0]
            rows = yield Fetch(query, (position, *values, limit))
            return newest, [_event(row) for row in rows]

        newest, found = await self._database.read(work)
        if len(found) == limit:
            return found, found[-1].position
        return found, max(newest, position, found[-1].position if found else 0)


def _event(row: Any) -> Event:
    position, event_id, event_type, job_id, provider, created_at, body = row
    return Event(position, event_id, event_type, job_id, provider, moment(created_at), body)
