"""
Jobs: every statement about them, as sentences of the domain, one transaction each.

`settle` is where news becomes state: it reads the jobs of a batch, lets `lifecycle.advance` say what each becomes, and
writes jobs, events, deliveries, images and verdicts in one transaction. Evidence is written before it is read, so a
process that dies anywhere in between reads it again at its next start.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import desc, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver import tables
from receiver.claims import Claims
from receiver.database import Database, on_its_thread
from receiver.evidence import EvidenceLog
from receiver.images import Images, images_of, insert_images, new_image
from receiver.jobs import Job, KeptImage, Source, Verdict
from receiver.lifecycle import Change, News, Timing, advance
from receiver.outbox import Happening, about_job, tell, tell_in
from receiver.rows import (
    JOB_COLUMNS,
    changed_columns,
    chunks,
    execute_rows,
    job_from_row,
    job_values,
    jobs_by_id,
    jobs_in,
    one_row,
    us,
)
from submitter.vocabulary import Failure, Report, State, Trust


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of news for `settle`, with the evidence it was read from."""

    job_id: str
    news: News
    evidence_id: int | None = None
    verdict: Verdict | None = None
    """What to write behind the evidence instead of what `advance` says."""
    trust: Trust | None = None
    """What the evidence is worth, if that is known only now."""


Closed = tuple[int, Verdict, str | None]
"""Evidence (by id) that is no news, with its verdict and a note."""


@dataclass(slots=True)
class Settled:
    """What a batch came to: `changes` in the order of the items (None: no such job)."""

    changes: list[Change | None]
    moved: list[bool] = field(default_factory=list)
    """Whether each item changed its job."""
    events: int = 0
    deliveries: int = 0
    images: int = 0


TimingOf = Callable[[str], Timing]


class Store:
    """
    The sentences about jobs; `evidence`, `claims` and `images` hold those about the rest of their way.

    *public_url*, which may change, goes into the image addresses of events; *first_delay_seconds* delays deliveries.
    """

    def __init__(
        self, database: Database, *, public_url: Callable[[], str] = str, first_delay_seconds: float = 0.0
    ) -> None:
        self.database = database
        self.evidence = EvidenceLog(database)
        self.claims = Claims(database)
        self.images = Images(database, public_url=public_url, first_delay_seconds=first_delay_seconds)
        self._public_url = public_url
        self._first_delay = first_delay_seconds

    # --- Settling -------------------------------------------------------------------------------------------------

    async def settle(
        self,
        items: Sequence[Item],
        now: datetime,
        timing_of: TimingOf,
        closed: Sequence[Closed] = (),
        *,
        rehearse: bool = False,
    ) -> Settled:
        """
        Advance the jobs that *items* are about, in their order, in one transaction.

        Changes, events, deliveries, images and the verdicts on the evidence are committed together. A task id that
        another job holds is never taken over: such news is recorded and ignored. To *rehearse* is to say what would be,
        and write nothing.
        """

        def work(db: sqlite3.Connection) -> Settled:
            settled = self._settle(db, items, now, timing_of, closed)
            if rehearse:
                raise _Rehearsed(settled)
            return settled

        try:
            return await self.database.batch(work)
        except _Rehearsed as rehearsed:
            return rehearsed.settled

    def _settle(
        self,
        db: sqlite3.Connection,
        items: Sequence[Item],
        now: datetime,
        timing_of: TimingOf,
        closed: Sequence[Closed],
    ) -> Settled:
        settled = Settled([])
        read = jobs_in(db, {item.job_id for item in items})
        current = dict(read)
        holders = _holders(db, items, current)
        happenings: list[Happening] = []
        images: list[tuple[KeptImage, datetime]] = []
        verdicts: dict[tuple[str, str | None], list[int]] = {}
        released: set[str] = set()
        timings: dict[str, Timing] = {}
        for item in items:
            job = current.get(item.job_id)
            if job is None:
                settled.changes.append(None)
                settled.moved.append(False)
                if item.evidence_id is not None:
                    verdicts.setdefault((Verdict.IGNORED.value, None), []).append(item.evidence_id)
                continue
            if job.provider not in timings:
                timings[job.provider] = timing_of(job.provider)
            change = self._one(job, item.news, now, timings[job.provider], holders)
            settled.changes.append(change)
            settled.moved.append(change.job != job)
            if item.evidence_id is not None:
                written = ((item.verdict or change.verdict).value, item.trust and item.trust.value)
                verdicts.setdefault(written, []).append(item.evidence_id)
            current[job.id] = change.job
            ends_work = item.news.source in (Source.POLL, Source.RESPONSE) and not item.news.again
            if ends_work or change.job.state is not job.state:
                released.add(job.id)
            kept = [new_image(change.job.id, n, image, now) for n, image in enumerate(change.images)]
            images += [(image, now) for image in kept]
            happenings += [self._happening(name, change.job, kept) for name in change.events]
        _update_jobs(db, read, current, released)
        for (verdict, trust), ids in verdicts.items():
            db.execute(
                "UPDATE evidence SET verdict = ?, trust = coalesce(?, trust), read_at = ?"
                f" WHERE id IN ({', '.join('?' * len(ids))})",
                (verdict, trust, us(now), *ids),
            )
        db.executemany(
            "UPDATE evidence SET verdict = ?, note = coalesce(?, note), read_at = ? WHERE id = ?",
            [(verdict.value, note, us(now), number) for number, verdict, note in closed],
        )
        insert_images(db, images)
        settled.deliveries = tell_in(db, happenings, now, self._first_delay)
        settled.events, settled.images = len(happenings), len(images)
        return settled

    def _one(self, job: Job, news: News, now: datetime, timing: Timing, holders: dict[tuple[str, str], str]) -> Change:
        change = advance(job, news, now, timing, jitter=random.random())
        learned, claimed = change.job.remote_id, change.job.claimed_id
        if learned is not None and learned != job.remote_id:
            held = holders.setdefault((job.provider, learned), job.id) != job.id
            return self._taken(job, news, now, timing) if held else change
        if claimed is not None and holders.get((job.provider, claimed), job.id) != job.id:
            return Change(job, Verdict.IGNORED)
        return change

    def _taken(self, job: Job, news: News, now: datetime, timing: Timing) -> Change:
        """The news names a task that another job holds: it is not taken over, but the call that brought it was made."""
        if news.source is Source.POLL:
            news = replace(news, report=None, forget_claim=True)
        elif news.source is Source.RESPONSE:
            error = Failure("task_id_taken", "the provider answered with the task id of another job", permanent=False)
            news = replace(news, report=Report(None, State.UNCONFIRMED, error=error), trouble=f"submit: {error.code}")
        else:
            return Change(job, Verdict.IGNORED)
        return replace(advance(job, news, now, timing), verdict=Verdict.IGNORED)

    def _happening(self, name: str, job: Job, images: Sequence[KeptImage]) -> Happening:
        return about_job(name, job, images, base_url=self._public_url())

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
            await tell(
                db, [self._happening("job.queued", job, ())], job.created_at, first_delay_seconds=self._first_delay
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
        provider: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[tuple[Job, list[KeptImage]]]:
        """Newest first. *before* is a job id: the cursor."""
        table = tables.jobs.c
        query = select(*[table[name] for name in JOB_COLUMNS]).order_by(desc(table.id)).limit(limit)
        if states:
            query = query.where(table.state.in_(states))
        if provider:
            query = query.where(table.provider == provider)
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
            change = advance(job, News(Report(None, State.CANCELED), None), now, Timing(1, 1, 1))
            await on_its_thread(db, _update_jobs, {job_id: job}, {job_id: change.job}, {job_id})
            happenings = [self._happening(name, change.job, ()) for name in change.events]
            await tell(db, happenings, now, first_delay_seconds=self._first_delay)
        return True

    async def queue_lengths(self) -> dict[str, int]:
        """Queued jobs by provider."""
        table = tables.jobs.c
        async with self.database.read() as connection:
            rows = await connection.execute(
                select(table.provider, func.count()).where(table.state == "queued").group_by(table.provider)
            )
            return {row[0]: row[1] for row in rows}


class _Rehearsed(Exception):
    """Rolls a rehearsal back, and carries what it came to."""

    def __init__(self, settled: Settled) -> None:
        super().__init__()
        self.settled = settled


class KeyReused(Exception):
    """An idempotency key came again with other content. `job_id` is the job it made."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def _update_jobs(db: sqlite3.Connection, read: dict[str, Job], current: dict[str, Job], released: set[str]) -> None:
    """Write what changed, where the version is still the one that was read; let go of the leases on *released*."""
    statements: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for job_id, job in current.items():
        before = read[job_id]
        changed = changed_columns(before, job)
        if job_id in released:
            changed |= {"lease_owner": None, "lease_until": None}
        if changed:
            statements.setdefault(tuple(changed), []).append((job_id, before.version, *changed.values()))
    for names, rows in statements.items():
        marks = ", ".join("?" * (len(names) + 2))
        assignments = ", ".join(f"{name} = new.{name}" for name in names)
        statement = (
            f"WITH new (job_id, read_version, {', '.join(names)}) AS (VALUES ({marks}))"
            f" UPDATE jobs SET {assignments}, version = version + 1 FROM new"
            " WHERE jobs.id = new.job_id AND jobs.version = new.read_version"
        )
        if execute_rows(db, statement, rows) != len(rows):
            raise RuntimeError("a job changed inside an immediate transaction")


def _holders(db: sqlite3.Connection, items: Sequence[Item], jobs: dict[str, Job]) -> dict[tuple[str, str], str]:
    """Which job holds each task id that a job without one is about to learn."""
    learned = {
        (job.provider, item.news.report.remote_id)
        for item in items
        if item.news.report is not None
        and item.news.report.remote_id is not None
        and (job := jobs.get(item.job_id)) is not None
        and job.remote_id is None
    }
    holders: dict[tuple[str, str], str] = {}
    for chunk in chunks(sorted(learned)):
        by_provider: dict[str, list[str]] = {}
        for provider, remote_id in chunk:
            by_provider.setdefault(provider, []).append(remote_id)
        for provider, remote_ids in by_provider.items():
            marks = ", ".join("?" for _ in remote_ids)
            rows = db.execute(
                f"SELECT remote_id, id FROM jobs WHERE provider = ? AND remote_id IN ({marks})",
                (provider, *remote_ids),
            )
            holders.update({(provider, row[0]): row[1] for row in rows})
    return holders


async def _job(connection: AsyncConnection, job_id: str) -> Job | None:
    table = tables.jobs.c
    row = (
        (await connection.execute(select(*[table[name] for name in JOB_COLUMNS]).where(table.id == job_id)))
        .mappings()
        .first()
    )
    return None if row is None else job_from_row(row)
