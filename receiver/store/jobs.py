"""
Jobs: every statement about them, as verbs of the domain, one transaction each.

`settle` turns updates into state: it reads the jobs of a batch, has `lifecycle.advance` decide what each becomes, and
writes jobs, events, deliveries, images and verdicts in one transaction. Evidence is written before it is read, so
evidence that a process had not settled when it died is read again at the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog

from receiver.domain.events import NewEvent, job_event
from receiver.domain.jobs import Job, KeptImage
from receiver.domain.lifecycle import Update, advance
from receiver.domain.pauses import Pause
from receiver.domain.polling import Timing
from receiver.store.codecs import us
from receiver.store.database import Database
from receiver.store.errors import Conflict
from receiver.store.evidence import EvidenceLog
from receiver.store.handover import Handover
from receiver.store.images import Images, images_of
from receiver.store.job_list import JobFilter, JobPage, job_page
from receiver.store.leases import JobLeases
from receiver.store.outbox import write_events
from receiver.store.providers import pause_of
from receiver.store.rows import JOBS, jobs_by_id
from receiver.store.settling import (
    Batch,
    EvidenceVerdict,
    JobUpdate,
    Plan,
    Settled,
    TimingOf,
    job_updates,
    plan,
    update_jobs,
)
from receiver.store.statements import Fetch, InsertMany, LockRows, Run, Work, alone, first
from submitter.vocabulary import Report, State

log = structlog.get_logger("receiver.store")

_OPTIMISM = 3


class JobStore:
    """
    The statements about jobs; `evidence`, `leases` and `images` hold the others of their lifecycle.

    *public_url*, which may change, goes into the image addresses of events; *first_delay_seconds* delays deliveries.
    `handover` leads deliveries of what is settled to the notifier of this process.
    """

    def __init__(
        self, database: Database, *, public_url: Callable[[], str] = str, first_delay_seconds: float = 0.0
    ) -> None:
        self.database = database
        self.evidence = EvidenceLog(database)
        self.leases = JobLeases(database)
        self.handover = Handover()
        self.images = Images(database, public_url=public_url, first_delay_seconds=first_delay_seconds)
        self._public_url = public_url
        self._first_delay = first_delay_seconds

    # --- Settling -------------------------------------------------------------------------------------------------

    async def settle(
        self,
        items: Sequence[JobUpdate],
        now: datetime,
        timing_of: TimingOf,
        closed: Sequence[EvidenceVerdict] = (),
        *,
        again: bool = False,
        dry_run: bool = False,
    ) -> Settled:
        """
        Advance the jobs that *items* are about, in their order, in one transaction.

        Changes, events, deliveries, images and the verdicts on the evidence are committed together. They are planned
        without holding the writer, and planned again if a job's version changed meanwhile. A task id that another job
        holds is never taken over: such an update is recorded and ignored. Evidence that another process has settled
        meanwhile is left as it is, unless all of it is read *again*. With *dry_run*, nothing is written.
        """
        batch = Batch(items, closed, again)

        def planned(*, overtaken: bool) -> Work[Plan]:
            return plan(
                batch,
                now,
                timing_of,
                base_url=self._public_url(),
                first_delay_seconds=self._first_delay,
                overtaken=overtaken,
            )

        if dry_run:
            return (await self.database.read(lambda: planned(overtaken=False))).settled
        overtaken = False
        for _ in range(_OPTIMISM):
            made = await self.database.read(partial(planned, overtaken=overtaken))
            held = made.rows.hold(self.handover, now)
            made.settled.deliveries -= len(held)
            try:
                await self.database.write(made.carry_out, attempts=1)
                self.handover.hand_over(held)
                return made.settled
            except Conflict:
                log.debug("overtaken", items=len(items))
                overtaken = True

        def plan_and_carry_out() -> Work[Settled]:
            yield LockRows("jobs", [item.job_id for item in items])
            made = yield from planned(overtaken=True)
            yield from made.carry_out()
            return made.settled

        return await self.database.write(plan_and_carry_out)

    def _new_event(self, name: str, job: Job, *, pause: Pause | None = None) -> NewEvent:
        return job_event(name, job, (), base_url=self._public_url(), pause=pause)

    # --- Jobs -----------------------------------------------------------------------------------------------------

    async def add_job(self, job: Job, *, idempotency: tuple[str, str, str] | None = None) -> tuple[Job, bool]:
        """
        Record a queued job and its `job.queued`. Returns the job and whether it is new.

        *idempotency* is (token id, key, digest of the content): a known key gives its job back, or raises
        `KeyReused` if the content differs.
        """

        def work() -> Work[tuple[Job, bool]]:
            if idempotency is not None:
                known = yield from _known(job, *idempotency)
                if known is not None:
                    return known, False
            yield InsertMany("jobs", JOBS.written, [JOBS.to_row(job)])
            pause = yield from pause_of(job.provider)
            queued = self._new_event("job.queued", job, pause=pause)
            yield from write_events([queued], job.created_at, first_delay_seconds=self._first_delay)
            return job, True

        return await self.database.write(work)

    async def job_of_key(self, token_id: str, key: str, now: datetime) -> tuple[str, str] | None:
        """Return (digest, job id) of a known idempotency key."""
        row = await self.database.read(lambda: first(_KEY, token_id, key, us(now - _KEY_LIFETIME)))
        return None if row is None else (row[0], row[1])

    async def job(self, job_id: str) -> tuple[Job, list[KeptImage]] | None:
        def work() -> Work[tuple[Job, list[KeptImage]] | None]:
            found = (yield from jobs_by_id([job_id])).get(job_id)
            return None if found is None else (found, (yield from images_of([job_id])))

        return await self.database.read(work)

    async def jobs(
        self,
        *,
        states: Sequence[str] = (),
        providers: Sequence[str] = (),
        lost: bool = False,
        before: str | None = None,
        limit: int = 50,
    ) -> list[tuple[Job, list[KeptImage]]]:
        """
        Return jobs, newest first. *before* is a job id: the cursor.

        With *lost*, only jobs that were done and paid for, but whose results did not all arrive.
        """
        wanted = JobFilter(states=tuple(states), providers=tuple(providers), lost=lost)
        return (await self.page(wanted, before=before, limit=limit)).jobs

    async def page(self, wanted: JobFilter, *, before: str | None = None, limit: int = 50) -> JobPage:
        """A page of the jobs that pass a filter, newest first. *before* is a job id: the cursor."""
        return await self.database.read(lambda: job_page(wanted, before=before, limit=limit))

    async def is_open(self, job_id: str) -> bool:
        """Return whether the job exists and has not ended."""
        row = await self.database.read(lambda: first("SELECT state FROM jobs WHERE id = ?", job_id))
        return row is not None and not State(row[0]).terminal

    async def cancel(self, job_id: str, now: datetime, *, abandon: bool) -> bool:
        """End a job by our own decision: a queued one, with *abandon* also one that was sent. False: too late."""

        def work() -> Work[bool]:
            job = (yield from jobs_by_id([job_id])).get(job_id)
            if job is None or job.state.terminal or (job.state is not State.QUEUED and not abandon):
                return False
            change = advance(job, Update(Report(None, State.CANCELED), None), now, Timing(1, 1, 1))
            yield from update_jobs(job_updates({job_id: job}, {job_id: change.job}, {job_id}))
            new_events = [self._new_event(name, change.job) for name in change.events]
            yield from write_events(new_events, now, first_delay_seconds=self._first_delay)
            return True

        return await self.database.write(work)

    async def queue_lengths(self) -> dict[str, int]:
        """Count the queued jobs by provider."""
        return dict(await self.database.read(alone(Fetch(_QUEUE_LENGTHS))))


_KEY_LIFETIME = timedelta(hours=24)
_KEY = "SELECT digest, job_id FROM idempotency WHERE token_id = ? AND key = ? AND created_at > ?"
_TAKE_KEY = (
    "INSERT INTO idempotency AS known (token_id, key, digest, job_id, created_at) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (token_id, key) DO UPDATE SET digest = excluded.digest, job_id = excluded.job_id,"
    " created_at = excluded.created_at WHERE known.created_at <= ? RETURNING job_id"
)
_RETAKE_KEY = "UPDATE idempotency SET job_id = ?, created_at = ? WHERE token_id = ? AND key = ? AND job_id = ?"
_QUEUE_LENGTHS = "SELECT provider, count(*) FROM jobs WHERE state = 'queued' GROUP BY provider"


def _known(job: Job, token_id: str, key: str, digest: str) -> Work[Job | None]:
    """Return the job of a known key. None: the key is *job*'s now; it was new, had expired, or its job is gone."""
    created_at, expired_at = us(job.created_at), us(job.created_at - _KEY_LIFETIME)
    if (yield from first(_TAKE_KEY, token_id, key, digest, job.id, created_at, expired_at)) is not None:
        return None
    row = yield from first(_KEY, token_id, key, expired_at)
    if row is None:
        raise Conflict("the key was dropped a moment ago")
    if row[0] != digest:
        raise KeyReused(row[1])
    known: Job | None = (yield from jobs_by_id([row[1]])).get(row[1])
    if known is None and (yield Run(_RETAKE_KEY, (job.id, created_at, token_id, key, row[1]))) != 1:
        raise Conflict("the key was taken by another request")
    return known


class KeyReused(Exception):
    """An idempotency key was reused with other content. `job_id` is the job that it made."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id
