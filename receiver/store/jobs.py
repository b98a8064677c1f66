"""
Jobs: every statement about them, as sentences of the domain, one transaction each.

`settle` is where updates become state: it reads the jobs of a batch, lets `lifecycle.advance` say what each becomes,
and writes jobs, events, deliveries, images and verdicts in one transaction. Evidence is written before it is read, so a
process that dies anywhere in between reads it again at its next start.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import desc, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.jobs import Job, KeptImage
from receiver.domain.lifecycle import Update, advance
from receiver.domain.polling import Timing
from receiver.store import tables
from receiver.store.database import Database, on_its_thread
from receiver.store.evidence import EvidenceLog
from receiver.store.images import Images, images_of
from receiver.store.leases import JobLeases
from receiver.store.outbox import NewEvent, job_event, write_events
from receiver.store.rows import (
    JOB_COLUMNS,
    job_from_row,
    job_values,
    jobs_by_id,
    one_row,
    us,
)
from receiver.store.settling import (
    EvidenceVerdict,
    JobUpdate,
    Overtaken,
    Plan,
    Settled,
    TimingOf,
    job_updates,
    plan,
    update_jobs,
)
from submitter.vocabulary import Report, State

log = structlog.get_logger("receiver.store")

_OPTIMISM = 3


class JobStore:
    """
    The sentences about jobs; `evidence`, `leases` and `images` hold those about the rest of their way.

    *public_url*, which may change, goes into the image addresses of events; *first_delay_seconds* delays deliveries.
    """

    def __init__(
        self, database: Database, *, public_url: Callable[[], str] = str, first_delay_seconds: float = 0.0
    ) -> None:
        self.database = database
        self.evidence = EvidenceLog(database)
        self.leases = JobLeases(database)
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
        dry_run: bool = False,
    ) -> Settled:
        """
        Advance the jobs that *items* are about, in their order, in one transaction.

        Changes, events, deliveries, images and the verdicts on the evidence are committed together. What they are is
        worked out beside the writer; should a job have changed meanwhile (its version tells), once more. A task id that
        another job holds is never taken over: such an update is recorded and ignored. With *dry_run*,
        nothing is written.
        """

        def planned(db: sqlite3.Connection) -> Plan:
            return plan(
                db,
                items,
                now,
                timing_of,
                closed,
                base_url=self._public_url(),
                first_delay_seconds=self._first_delay,
            )

        if dry_run:
            return (await self.database.glance(planned)).settled
        for _ in range(_OPTIMISM):
            made = await self.database.glance(planned)
            try:
                await self.database.batch(made.carry_out)
                return made.settled
            except (Overtaken, sqlite3.IntegrityError):
                log.debug("overtaken", items=len(items))

        def plan_and_carry_out(db: sqlite3.Connection) -> Settled:
            made = planned(db)
            made.carry_out(db)
            return made.settled

        return await self.database.batch(plan_and_carry_out)

    def _new_event(self, name: str, job: Job, images: Sequence[KeptImage]) -> NewEvent:
        return job_event(name, job, images, base_url=self._public_url())

    # --- Jobs -----------------------------------------------------------------------------------------------------

    async def add_job(self, job: Job, *, idempotency: tuple[str, str, str] | None = None) -> tuple[Job, bool]:
        """
        Record a queued job and its `job.queued`. Returns the job and whether it is new.

        *idempotency* is (token id, key, digest of the content): a known key gives its job back, or raises
        `KeyReused` if the content differs.
        """
        async with self.database.write_raw() as db:
            if idempotency is not None:
                token_id, key, digest = idempotency
                since = us(job.created_at - timedelta(hours=24))
                row = await one_row(
                    db,
                    "SELECT digest, job_id FROM idempotency WHERE token_id = ? AND key = ? AND created_at > ?",
                    (token_id, key, since),
                )
                if row is not None:
                    if row[0] != digest:
                        raise KeyReused(row[1])
                    known = (await jobs_by_id(db, {row[1]})).get(row[1])
                    if known is not None:
                        return known, False
                await db.execute(
                    "INSERT OR REPLACE INTO idempotency (token_id, key, digest, job_id, created_at)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (token_id, key, digest, job.id, us(job.created_at)),
                )
            values = job_values(job)
            marks = ", ".join("?" for _ in values)
            await db.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
            await write_events(
                db, [self._new_event("job.queued", job, ())], job.created_at, first_delay_seconds=self._first_delay
            )
        return job, True

    async def job_of_key(self, token_id: str, key: str, now: datetime) -> tuple[str, str] | None:
        """(digest, job id) of a known idempotency key."""
        table = tables.idempotency.c
        async with self.database.read() as connection:
            row = (
                await connection.execute(
                    select(table.digest, table.job_id).where(
                        table.token_id == token_id,
                        table.key == key,
                        table.created_at > us(now - timedelta(hours=24)),
                    )
                )
            ).first()
        return None if row is None else (row[0], row[1])

    async def job(self, job_id: str) -> tuple[Job, list[KeptImage]] | None:
        async with self.database.read() as connection:
            found = await _job(connection, job_id)
            return None if found is None else (found, await images_of(connection, [job_id]))

    async def jobs(
        self,
        *,
        states: Sequence[str] = (),
        providers: Sequence[str] = (),
        before: str | None = None,
        limit: int = 50,
    ) -> list[tuple[Job, list[KeptImage]]]:
        """Newest first. *before* is a job id: the cursor."""
        table = tables.jobs.c
        query = select(*[table[name] for name in JOB_COLUMNS]).order_by(desc(table.id)).limit(limit)
        if states:
            query = query.where(table.state.in_(states))
        if providers:
            query = query.where(table.provider.in_(providers))
        if before:
            query = query.where(table.id < before)
        async with self.database.read() as connection:
            found = [job_from_row(row) for row in (await connection.execute(query)).mappings()]
            pictures = await images_of(connection, [job.id for job in found])
        return [(job, [image for image in pictures if image.job_id == job.id]) for job in found]

    async def is_open(self, job_id: str) -> bool:
        """Whether the job exists and has not ended."""
        async with self.database.read() as connection:
            state = await connection.scalar(select(tables.jobs.c.state).where(tables.jobs.c.id == job_id))
        return state is not None and not State(state).terminal

    async def cancel(self, job_id: str, now: datetime, *, abandon: bool) -> bool:
        """End a job by our own word: queued ones, with *abandon* also those that were sent. False: too late."""
        async with self.database.write_raw() as db:
            job = (await jobs_by_id(db, {job_id})).get(job_id)
            if job is None or job.state.terminal or (job.state is not State.QUEUED and not abandon):
                return False
            change = advance(job, Update(Report(None, State.CANCELED), None), now, Timing(1, 1, 1))
            await on_its_thread(db, update_jobs, job_updates({job_id: job}, {job_id: change.job}, {job_id}))
            new_events = [self._new_event(name, change.job, ()) for name in change.events]
            await write_events(db, new_events, now, first_delay_seconds=self._first_delay)
        return True

    async def queue_lengths(self) -> dict[str, int]:
        """Queued jobs by provider."""
        table = tables.jobs.c
        async with self.database.read() as connection:
            rows = await connection.execute(
                select(table.provider, func.count()).where(table.state == "queued").group_by(table.provider)
            )
            return {row[0]: row[1] for row in rows}


class KeyReused(Exception):
    """An idempotency key came again with other content. `job_id` is the job it made."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


async def _job(connection: AsyncConnection, job_id: str) -> Job | None:
    table = tables.jobs.c
    row = (
        (await connection.execute(select(*[table[name] for name in JOB_COLUMNS]).where(table.id == job_id)))
        .mappings()
        .first()
    )
    return None if row is None else job_from_row(row)
