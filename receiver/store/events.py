"""
Reading events by position.

Positions have no gaps for a reader that follows them: a reader that has seen position n has seen all below it. Events
never change once written.

A restore begins a new range of positions, far above all that were given before, so that a reader of what was lost is
recognized: its position lies in the gap between the two (`restored_from`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from receiver.domain.events import ALL, Event, EventFilter
from receiver.store.codecs import Codec, us
from receiver.store.database import Database
from receiver.store.statements import Fetch, Run, Work, first

_CODEC = Codec(Event)
_NEWEST = "SELECT coalesce(max(position), 0) FROM events"
_AROUND = (
    "SELECT (SELECT max(position) FROM events WHERE position <= ?),"
    " (SELECT min(position) FROM events WHERE position > ?)"
)
_MOVE = "UPDATE events SET position = position + ? WHERE position > ?"
_LEAST_GAP = 1_000_000
"""Positions that a restore skips at least."""


class Events:
    """Pages of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self) -> int:
        """Return the highest position; 0 where there is no event yet."""
        return int((await self._database.read(lambda: first(_NEWEST)))[0])

    async def restored_from(self, position: int) -> int | None:
        """
        Return the last position before the restore that dropped the event at *position*; None if there was none.

        A reader that continues from there sees everything written since the restore.
        """
        before, behind = await self._database.read(lambda: first(_AROUND, position, position))
        if before is None or behind is None or before == position or behind - before <= _LEAST_GAP:
            return None
        return int(before)

    async def begin_range(self, above: int, now: datetime) -> None:
        """
        Move the events *above* a position, or the newest event if there is none, to positions that were never given.

        They continue from the microseconds since 1970, so that restoring a backup twice gives no position twice.
        """

        def work() -> Work[None]:
            newest = (yield from first(_NEWEST))[0]
            last = above if newest > above else newest - 1
            yield Run(_MOVE, (max(us(now) - last, 10 * _LEAST_GAP), last))

        await self._database.write(work)

    async def after(self, position: int, *, limit: int, choice: EventFilter = ALL) -> tuple[Sequence[Event], int]:
        """
        Return up to *limit* events above *position*, lowest first, and the position that has been read up to.

        The latter lies beyond the last event if the events after it did not match.
        """
        condition, values = _where(choice)
        query = f"SELECT {_CODEC.sql} FROM events WHERE position > ?{condition} ORDER BY position LIMIT ?"

        def work() -> Work[tuple[int, list[Event]]]:
            newest = (yield from first(_NEWEST))[0]
            rows = yield Fetch(query, (position, *values, limit))
            return newest, [_CODEC.from_row(row) for row in rows]

        newest, found = await self._database.read(work)
        if len(found) == limit:
            return found, found[-1].position
        return found, max(newest, position, found[-1].position if found else 0)


def _where(choice: EventFilter) -> tuple[str, list[Any]]:
    """Return *choice* as conditions, each preceded by AND, and their values."""
    condition, values = "", list[Any]()
    for clause, value in (
        ("type IN (??)", sorted(choice.types)),
        ("provider IN (??)", sorted(choice.providers)),
        ("job_id = ?", choice.job_id),
    ):
        if value:
            condition += f" AND {clause}"
            values.append(value)
    return condition, values
