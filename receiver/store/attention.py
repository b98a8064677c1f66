"""
Whatever needs attention: jobs that can't settle by themselves, lost images, deliveries that were given up.

Each kind is a few rows and a count that stops at `MOST_COUNTED`; all of them are ranges of indexes. Deliveries and
images are looked for among the last week's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from receiver.domain.ids import lowest_id
from receiver.store.codecs import us
from receiver.store.database import Database
from receiver.store.statements import Fetch, Work, first
from submitter.vocabulary import State

MOST_COUNTED = 1000
_RECENT = timedelta(days=7)
_SHOWN = 3
_OLDEST_EXAMINED = 2000


@dataclass(frozen=True, slots=True)
class Concern:
    """Ids of one kind, the most urgent first, and how many there are in all."""

    ids: Sequence[str]
    count: int


@dataclass(frozen=True, slots=True)
class Concerns:
    """Ids of jobs, and of deliveries."""

    unconfirmed: Concern
    overdue: Concern
    lost_images: Concern
    undelivered: Concern


async def concerns(database: Database, now: datetime) -> Concerns:
    """Return everything that waits for an operator now."""

    def work() -> Work[Concerns]:
        since = now - _RECENT
        return Concerns(
            unconfirmed=(yield from _concern(_UNCONFIRMED, State.UNCONFIRMED.value)),
            overdue=(yield from _concern(_OVERDUE, State.RUNNING.value)),
            lost_images=(yield from _concern(_LOST_IMAGES, us(since))),
            undelivered=(yield from _concern(_UNDELIVERED, lowest_id("dlv", since))),
        )

    return await database.read(work)


async def open_jobs(database: Database, providers: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count the open jobs, by state and provider."""

    def work() -> Work[dict[str, dict[str, int]]]:
        counts: dict[str, dict[str, int]] = {}
        for state in State:
            if not state.terminal:
                rows = yield Fetch(_OPEN, (state.value, list(providers)))
                counts[state.value] = dict(rows)
        return counts

    return await database.read(work)


def _concern(query: str, value: str | int) -> Work[Concern]:
    rows = yield Fetch(f"{query} LIMIT ?", (value, _SHOWN))
    ids = [row[0] for row in rows]
    if len(ids) < _SHOWN:
        return Concern(ids, len(ids))
    count = (yield from first(f"SELECT count(*) FROM ({query} LIMIT ?) AS found", value, MOST_COUNTED))[0]
    return Concern(ids, count)


_UNCONFIRMED = "SELECT id FROM jobs WHERE state = ?"
_OVERDUE = (
    "SELECT id FROM (SELECT id, overdue_at FROM jobs WHERE state = ?"
    f" LIMIT {_OLDEST_EXAMINED}) AS oldest WHERE overdue_at IS NOT NULL"
)
_LOST_IMAGES = "SELECT DISTINCT job_id FROM images WHERE state = 'lost' AND kept_at >= ?"
_UNDELIVERED = "SELECT id FROM deliveries WHERE state = 'given_up' AND id >= ? ORDER BY id"
_OPEN = "SELECT provider, count(*) FROM jobs WHERE state = ? AND provider IN (??) GROUP BY provider"
