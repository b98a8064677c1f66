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

from sqlalchemy import func, select
from sqlalchemy.sql.elements import ColumnElement

from receiver.domain.jobs import iso
from receiver.store import tables
from receiver.store.database import Database
from receiver.store.rows import moment

_TABLE = tables.events.c


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

    def clauses(self) -> list[ColumnElement[bool]]:
        """The same in SQL."""
        clauses: list[ColumnElement[bool]] = []
        if self.types:
            clauses.append(_TABLE.type.in_(sorted(self.types)))
        if self.providers:
            clauses.append(_TABLE.provider.in_(sorted(self.providers)))
        if self.job_id is not None:
            clauses.append(_TABLE.job_id == self.job_id)
        return clauses


ALL = EventFilter()


class Events:
    """Pages of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> int:
        """The highest position; 0 where there is no event yet."""
        async with self._database.read() as connection:
            return int(await connection.scalar(select(func.coalesce(func.max(_TABLE.position), 0))) or 0)

    async def after(self, position: int, *, limit: int, choice: EventFilter = ALL) -> tuple[Sequence[Event], int]:
        """
        Up to *limit* events above *position*, lowest first, and the position that has been read up to.

        The latter lies beyond the last event where the ones behind it were not wanted.
        """
        async with self._database.read() as connection:
            newest = int(await connection.scalar(select(func.coalesce(func.max(_TABLE.position), 0))) or 0)
            rows = await connection.execute(
                select(tables.events)
                .where(_TABLE.position > position, *choice.clauses())
                .order_by(_TABLE.position)
                .limit(limit)
            )
            found = [_event(row) for row in rows.mappings()]
        if len(found) == limit:
            return found, found[-1].position
        return found, max(newest, position, found[-1].position if found else 0)


def _event(row: Any) -> Event:
    return Event(
        position=row["position"],
        id=row["id"],
        type=row["type"],
        job_id=row["job_id"],
        provider=row["provider"],
        created_at=moment(row["created_at"]),
        body=row["body"],
    )
