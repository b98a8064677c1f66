"""
The machine's clock may be set back; what was due by the old time must not wait until that time comes again.

A row holds the latest time at which a process was alive. A clock that shows a much earlier time was set back by the
difference, while a process ran or between two runs. Every time that lies ahead is then moved by as much, in the same
transaction that sets the row back, so that only one of several processes does it. Clocks of several machines differ by
less than `_TOLERANCE`, or signatures would not be accepted either.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from receiver.store.codecs import us
from receiver.store.database import Database
from receiver.store.statements import FOR_UPDATE, Fetch, Run, Work
from submitter.vocabulary import State

_TOLERANCE = timedelta(minutes=2)
_OPEN = ", ".join(f"'{state.value}'" for state in State if not state.terminal)
_SEEN = "SELECT seen_at FROM clock WHERE id = 1"
_FIRST = "INSERT INTO clock (id, seen_at) VALUES (1, ?) ON CONFLICT (id) DO NOTHING"
_SEE = "UPDATE clock SET seen_at = ? WHERE id = 1"
_AHEAD = (
    ("jobs", "retry_at", ""),
    ("jobs", "next_poll_at", ""),
    ("jobs", "lease_until", ""),
    ("jobs", "deadline_at", f" AND state IN ({_OPEN})"),
    ("deliveries", "next_at", " AND state = 'pending'"),
    ("deliveries", "lease_until", " AND state = 'pending'"),
    ("images", "next_at", " AND state = 'wanted'"),
    ("images", "give_up_at", " AND state = 'wanted'"),
    ("images", "lease_until", " AND state = 'wanted'"),
    ("providers", "probe_at", ""),
)
"""The columns with times that something waits for."""


class ClockRecord:
    """The statements about the clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(self, now: datetime) -> timedelta | None:
        """Record that it is *now*. If the clock was set back, move the due times along; returns by how much."""

        def work() -> Work[timedelta | None]:
            yield Run(_FIRST, (us(now),))
            ((seen_at,),) = yield Fetch(_SEEN, (), FOR_UPDATE)
            step = timedelta(microseconds=seen_at - us(now))
            if timedelta(0) <= step <= _TOLERANCE:
                return None
            yield Run(_SEE, (us(now),))
            if step < timedelta(0):
                return None
            for table, column, more in _AHEAD:
                moved = f"UPDATE {table} SET {column} = {column} - ? WHERE {column} > ?{more}"
                yield Run(moved, (seen_at - us(now), us(now)))
            return step

        return await self._database.write(work)
