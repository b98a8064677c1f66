"""Queue lengths and ages. Every count reads an index, or is bounded: none reads a table from end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from receiver.store.codecs import from_us, us
from receiver.store.database import Database
from receiver.store.statements import Fetch, Work, first
from submitter.vocabulary import State

_MOST_COUNTED = 100_000
_OPEN_STATES = [state.value for state in State if not state.terminal]


@dataclass(frozen=True, slots=True)
class Queue:
    """The length of a queue, and the time since which its oldest item waits."""

    name: str
    waiting: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """The number of jobs of one provider in one open state, and how many of them are known to be overdue."""

    provider: str
    state: str
    count: int
    overdue: int


class Backlog:
    """The statements for probes and scrapers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unread(self, *, most: int) -> int:
        """Count the unread pieces of evidence; counting stops just above *most*."""
        row = await self._database.read(lambda: first(UNREAD, most + 1))
        return int(row[0])

    async def measure(self, now: datetime, providers: Sequence[str]) -> tuple[list[Queue], list[OpenJobs]]:
        """Return all queues, and the open jobs; due polls are counted for *providers* only."""

        def work() -> Work[tuple[list[Queue], list[OpenJobs]]]:
            queues = []
            for name, query in QUEUES.items():
                count, oldest = yield from first(query)
                queues.append(Queue(name, count, from_us(oldest)))
            count, oldest = yield from first(DUE_POLLS, us(now), list(providers))
            queues.append(Queue("due_polls", count, from_us(oldest)))
            jobs = []
            for state in _OPEN_STATES:
                rows = yield Fetch(OPEN, (state,))
                jobs += [OpenJobs(provider, state, count, overdue) for provider, count, overdue in rows]
            return queues, jobs

        return await self._database.read(work)


QUEUES = {
    "unread": "SELECT count(*), min(received_at) FROM evidence WHERE read_at IS NULL",
    "queued": "SELECT count(*), (SELECT created_at FROM jobs WHERE id = (SELECT min(id) FROM jobs"
    " WHERE state = 'queued')) FROM jobs WHERE state = 'queued'",
    "deliveries": "SELECT count(*), (SELECT created_at FROM deliveries WHERE state = 'pending' ORDER BY id LIMIT 1)"
    " FROM deliveries WHERE state = 'pending'",
    "images": "SELECT count(*), min(next_at) FROM images WHERE state = 'wanted'",
}
DUE_POLLS = "SELECT count(*), min(next_poll_at) FROM jobs WHERE next_poll_at <= ? AND provider IN (??)"
UNREAD = "SELECT count(*) FROM (SELECT 1 FROM evidence WHERE read_at IS NULL LIMIT ?) AS unread"
# Bounded: no index has the provider of a job, only its row.
OPEN = (
    "SELECT provider, count(*), count(overdue_at) FROM (SELECT provider, overdue_at FROM jobs WHERE state = ?"
    f" LIMIT {_MOST_COUNTED}) AS open_jobs GROUP BY provider"
)
