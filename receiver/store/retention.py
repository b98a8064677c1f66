"""
Removal of old data: evidence and attempts after `KEEP_DAYS`, finished jobs' inputs and idempotency keys after a day.

Finished jobs (with their images and evidence), images alone and events (with their deliveries) are removed where an
operator has set an age. The newest event stays at any age: positions continue from it.

Unread evidence stays, and so does that of a job that has not ended. Everything is removed in small batches, each a
short transaction followed by a pause of several times its length, so that a callback never waits long. A file is
removed before the row that names it: a crash in between leaves a row without a file, which the next pass removes. Where
the row of an image stays, it says first that the file is going: a request that found none would have it fetched again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog

from receiver.domain.ids import lowest_id
from receiver.runtime.loops import Loop
from receiver.store.blobs import Blobs
from receiver.store.codecs import us
from receiver.store.database import Database
from receiver.store.statements import Fetch, LockRows, Run, RunMany, Work, alone

log = structlog.get_logger("receiver.pruning")

_DAY = timedelta(hours=24)
_PASS_SECONDS = 600.0
_BATCH = 100
_REST = 4
"""The pause after a batch, as a multiple of its duration."""
_ENDED = "('succeeded', 'failed', 'expired', 'canceled')"


@dataclass(slots=True)
class Pruned:
    """The number of things that a pass removed."""

    evidence: int = 0
    attempts: int = 0
    inputs: int = 0
    idempotency_keys: int = 0
    jobs: int = 0
    images: int = 0
    events: int = 0

    def __bool__(self) -> bool:
        return any(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Retention:
    """The ages to keep: *evidence* and attempts, finished *jobs*, *images*, *events* and deliveries; None: for ever."""

    evidence: timedelta
    jobs: timedelta | None = None
    events: timedelta | None = None
    images: timedelta | None = None


class Pruning:
    """The loop that removes old data: one pass at start, then one every ten minutes."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        *,
        keep: Retention,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._keep = keep
        self._clock = clock
        self._pruned = Pruned()
        self._pass: AsyncGenerator[float, None] | None = None
        self._next_at = 0.0
        self.loop = Loop("pruning", self._step)

    async def prune(self) -> Pruned:
        """Make one whole pass over everything that is old now."""
        self._pruned = Pruned()
        async for pause in self._batches():
            await asyncio.sleep(pause)
        return self._pruned

    async def _step(self) -> float:
        """Remove one batch; between the passes, nothing."""
        if self._pass is None:
            if time.monotonic() < self._next_at:
                return self._next_at - time.monotonic()
            self._pass, self._pruned = self._batches(), Pruned()
        try:
            return await anext(self._pass)
        except StopAsyncIteration:
            if self._pruned:
                log.info("pruned", **asdict(self._pruned))
        except BaseException:
            self._pass = None
            raise
        self._pass, self._next_at = None, time.monotonic() + _PASS_SECONDS
        return _PASS_SECONDS

    async def _batches(self) -> AsyncGenerator[float, None]:
        """Remove one batch after the other; yields the seconds to rest after each."""
        now = self._clock()
        old, a_day_ago = us(now - self._keep.evidence), us(now - _DAY)
        async for count, pause in self._walk(_OLD_EVIDENCE, "DELETE FROM evidence WHERE id IN (??)", old):
            self._pruned.evidence += count
            yield pause
        async for count, pause in self._walk(_OLD_ATTEMPTS, "DELETE FROM attempts WHERE id IN (??)", old):
            self._pruned.attempts += count
            yield pause
        count = _BATCH
        while count == _BATCH:
            began = time.monotonic()
            count = await self._database.write(alone(Run(_OLD_KEYS, (a_day_ago, _BATCH))))
            self._pruned.idempotency_keys += count
            yield _rest(began)
        async for count, pause in self._inputs(now - _DAY):
            self._pruned.inputs += count
            yield pause
        if self._keep.jobs is not None:
            async for count, pause in self._jobs(now - self._keep.jobs):
                self._pruned.jobs += count
                yield pause
        if self._keep.images is not None:
            async for count, pause in self._images(now, now - self._keep.images):
                self._pruned.images += count
                yield pause
        async for pause in self._unshared():
            yield pause
        if self._keep.events is not None:
            async for count, pause in self._events(now - self._keep.events):
                self._pruned.events += count
                yield pause

    async def _walk(self, query: str, deletion: str, before: int) -> AsyncGenerator[tuple[int, float], None]:
        """Walk a log from its start. Ids are in the order of time, so the walk ends where the young rows begin."""
        after, more = 0, True
        while more:
            rows = await self._database.read(alone(Fetch(query, (after, _SCAN))))
            old = [row for row in rows if row[3] < before]
            more, after = len(old) == _SCAN, old[-1][0] if old else after
            for batch in _batches([row for row in old if row[1]]):
                began = time.monotonic()
                for _, _, name, _ in batch:
                    if name is not None:
                        await self._blobs.drop_body(name)
                await self._database.write(alone(Run(deletion, ([row[0] for row in batch],))))
                yield len(batch), _rest(began)

    async def _jobs(self, before: datetime) -> AsyncGenerator[tuple[int, float], None]:
        """Walk the jobs by id, that is, by age. Files go first, and a job that is being polled or read stays."""
        after, more = "", True
        while more:
            rows = await self._database.read(
                alone(Fetch(_OLD_JOBS, (us(before), after, lowest_id("job", before), _SCAN)))
            )
            more, after = len(rows) == _SCAN, rows[-1][0] if rows else after
            for batch in _batches([job_id for job_id, over in rows if over]):
                began = time.monotonic()
                for job_id, n in await self._database.read(alone(Fetch(_IMAGES, (list(batch),)))):
                    await self._blobs.drop_image(job_id, n)
                for (name,) in await self._database.read(alone(Fetch(_BODIES, (list(batch),)))):
                    await self._blobs.drop_body(name)
                yield await self._database.write(partial(_without_jobs, list(batch))), _rest(began)

    async def _images(self, now: datetime, before: datetime) -> AsyncGenerator[tuple[int, float], None]:
        """Remove copies that were kept before *before*, and files that a crash has left of such."""
        while True:
            began = time.monotonic()
            old = await self._database.read(alone(Fetch(_OLD_IMAGES, (us(before), _BATCH))))
            changes = [(us(now), us(now), job_id, n, us(before)) for job_id, n in old]
            await self._database.write(alone(RunMany(_REMOVE_IMAGE, changes)))
            removed = await self._database.read(alone(Fetch(_HALF_REMOVED, (_BATCH,))))
            if not removed:
                return
            for job_id, n in removed:
                await self._blobs.drop_image(job_id, n)
            await self._database.write(alone(RunMany(_IMAGE_REMOVED, [tuple(row) for row in removed])))
            yield len(removed), _rest(began)

    async def _unshared(self) -> AsyncGenerator[float, None]:
        """Free the bytes of images of which the last one went."""
        began = time.monotonic()
        async for _ in self._blobs.drop_unshared():
            yield _rest(began)
            began = time.monotonic()

    async def _events(self, before: datetime) -> AsyncGenerator[tuple[int, float], None]:
        """Walk the events by id, that is, by age."""
        after, more = "", True
        while more:
            rows = await self._database.read(alone(Fetch(_OLD_EVENTS, (after, lowest_id("evt", before), _SCAN))))
            more, after = len(rows) == _SCAN, rows[-1][0] if rows else after
            for batch in _batches([event_id for event_id, over in rows if over]):
                began = time.monotonic()
                yield await self._database.write(partial(_without_events, list(batch))), _rest(began)

    async def _inputs(self, before: datetime) -> AsyncGenerator[tuple[int, float], None]:
        """Remove inputs: the directory lists those that exist, the jobs say which of them are no longer needed."""
        names = await asyncio.to_thread(self._blobs.inputs_older_than, before.timestamp())
        for batch in _batches(names):
            began = time.monotonic()
            needed = {row[0] for row in await self._database.read(alone(Fetch(_NEEDED, (list(batch), us(before)))))}
            going = [name for name in batch if name not in needed]
            for name in going:
                await self._blobs.drop_input(name)
            yield len(going), _rest(began)


def _without_jobs(job_ids: list[str]) -> Work[int]:
    yield LockRows("jobs", job_ids)
    # Evidence or requests that arrived since they were found keep a job.
    going = [row[0] for row in (yield Fetch(_STILL_OLD, (job_ids,)))]
    for deletion in ("DELETE FROM evidence WHERE job_id IN (??)", "DELETE FROM images WHERE job_id IN (??)"):
        yield Run(deletion, (going,))
    return int((yield Run("DELETE FROM jobs WHERE id IN (??)", (going,))))


def _without_events(event_ids: list[str]) -> Work[int]:
    # A delivery that was replayed since they were found keeps its event.
    pending = {row[0] for row in (yield Fetch(_PENDING, (event_ids,)))}
    going = [event_id for event_id in event_ids if event_id not in pending]
    yield Run(_ATTEMPTS_OF_EVENTS, (going,))
    yield Run("DELETE FROM deliveries WHERE event_id IN (??)", (going,))
    return int((yield Run("DELETE FROM events WHERE id IN (??)", (going,))))


def _rest(began: float) -> float:
    return _REST * (time.monotonic() - began)


_SCAN = 500
# One lookup for each row: of an EXISTS, PostgreSQL would make a table of all open jobs, and read all jobs for it.
_OLD_EVIDENCE = (
    "SELECT id, read_at IS NOT NULL"
    f" AND coalesce((SELECT state FROM jobs WHERE jobs.id = evidence.job_id), 'succeeded') IN {_ENDED},"
    " body_name, received_at FROM evidence WHERE id > ? ORDER BY id LIMIT ?"
)
_OLD_ATTEMPTS = (
    "SELECT id, coalesce((SELECT state FROM deliveries WHERE deliveries.id = attempts.delivery_id), '') <> 'pending',"
    " NULL, started_at FROM attempts WHERE id > ? ORDER BY id LIMIT ?"
)
_NEEDED = f"SELECT id FROM jobs WHERE id IN (??) AND (state NOT IN {_ENDED} OR finished_at >= ?)"
_IDLE = "next_poll_at IS NULL AND NOT EXISTS (SELECT 1 FROM evidence WHERE job_id = jobs.id AND read_at IS NULL)"
_OLD_JOBS = (
    f"SELECT id, state IN {_ENDED} AND finished_at < ? AND {_IDLE}"
    " FROM jobs WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
)
_STILL_OLD = f"SELECT id FROM jobs WHERE id IN (??) AND state IN {_ENDED} AND {_IDLE}"
_IMAGES = "SELECT job_id, n FROM images WHERE job_id IN (??)"
_OLD_IMAGES = "SELECT job_id, n FROM images WHERE state = 'kept' AND kept_at < ? ORDER BY kept_at LIMIT ?"
_REMOVE_IMAGE = (
    "UPDATE images SET state = 'removed', kept_at = ?, next_at = ?"
    " WHERE job_id = ? AND n = ? AND state = 'kept' AND kept_at < ?"
)
_HALF_REMOVED = "SELECT job_id, n FROM images WHERE state = 'removed' AND next_at IS NOT NULL ORDER BY next_at LIMIT ?"
_IMAGE_REMOVED = "UPDATE images SET next_at = NULL WHERE job_id = ? AND n = ? AND state = 'removed'"
_BODIES = "SELECT body_name FROM evidence WHERE job_id IN (??) AND body_name IS NOT NULL"
_OLD_EVENTS = (
    "SELECT id, (position IS NULL AND example = 1 OR position < (SELECT max(position) FROM events)) AND NOT EXISTS"
    " (SELECT 1 FROM deliveries WHERE event_id = events.id AND state = 'pending')"
    " FROM events WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
)
_PENDING = "SELECT event_id FROM deliveries WHERE event_id IN (??) AND state = 'pending'"
_ATTEMPTS_OF_EVENTS = "DELETE FROM attempts WHERE delivery_id IN (SELECT id FROM deliveries WHERE event_id IN (??))"
_OLD_KEYS = (
    "DELETE FROM idempotency WHERE (token_id, key) IN"
    " (SELECT token_id, key FROM idempotency WHERE created_at < ? ORDER BY created_at LIMIT ?)"
)


def _batches(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[start : start + _BATCH] for start in range(0, len(values), _BATCH))
