"""
Jobs, evidence and images: every statement, as sentences of the domain, one transaction each.

`settle` is where news becomes state: it reads the jobs of a batch, lets `lifecycle.advance` say what each becomes, and
writes jobs, events, deliveries, images and verdicts in one transaction. Evidence is written before it is read, so a
process that dies anywhere in between reads it again at its next start.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import aiosqlite
from sqlalchemy import desc, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver import tables
from receiver.database import Database
from receiver.jobs import Job, KeptImage, Source, Verdict
from receiver.lifecycle import Change, News, Timing, advance
from receiver.outbox import Happening, tell
from receiver.rows import (
    IMAGE_COLUMNS,
    JOB_COLUMNS,
    MUTABLE,
    from_us,
    image_from_row,
    job_from_row,
    job_from_tuple,
    job_values,
    moment,
    to_us,
    us,
)
from submitter.vocabulary import Image, Report, State, Trust

_JOBS = ", ".join(JOB_COLUMNS)
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came, as it came. `id` is None until it is written."""

    source: Source
    provider: str
    job_id: str | None
    received_at: datetime
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    verdict: Verdict = Verdict.RECEIVED
    trust: Trust | None = None
    read_at: datetime | None = None
    asked_at: datetime | None = None
    status: int | None = None
    body_name: str | None = None
    peer: str | None = None
    delivery_id: str | None = None
    note: str | None = None
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of news for `settle`, with the evidence it was read from."""

    job_id: str
    news: News
    evidence_id: int | None = None


@dataclass(slots=True)
class Settled:
    """What a batch came to: `changes` in the order of the items (None: no such job)."""

    changes: list[Change | None]
    events: int = 0
    deliveries: int = 0
    images: int = 0


TimingOf = Callable[[str], Timing]


class Store:
    """The sentences. *public_url* goes into the image addresses of events; *first_delay_seconds* delays deliveries."""

    def __init__(self, database: Database, *, public_url: str = "", first_delay_seconds: float = 0.0) -> None:
        self.database = database
        self._public_url = public_url
        self._first_delay = first_delay_seconds

    # --- Evidence -------------------------------------------------------------------------------------------------

    async def record(self, batch: Sequence[Evidence]) -> None:
        """Make *batch* durable in one commit."""
        async with self.database.write_raw() as db:
            await db.executemany(_INSERT_EVIDENCE, [_evidence_values(item) for item in batch])

    async def unread(self, *, limit: int, after: int = 0) -> list[Evidence]:
        """Evidence that nobody has read, oldest first."""
        async with self.database.read() as connection:
            rows = await connection.execute(
                select(tables.evidence)
                .where(tables.evidence.c.read_at.is_(None), tables.evidence.c.id > after)
                .order_by(tables.evidence.c.id)
                .limit(limit)
            )
            return [_evidence_from_row(row) for row in rows.mappings()]

    async def earlier_deliveries(self, evidence: Sequence[Evidence]) -> set[int]:
        """Those of *evidence* (by id) whose delivery id their job has seen before."""
        keyed = [item for item in evidence if item.delivery_id and item.job_id and item.id]
        if not keyed:
            return set()
        first: dict[tuple[str, str], int] = {}
        table = tables.evidence.c
        async with self.database.read() as connection:
            for chunk in _chunks(sorted({item.job_id for item in keyed if item.job_id})):
                rows = await connection.execute(
                    select(table.job_id, table.delivery_id, func.min(table.id))
                    .where(table.job_id.in_(chunk), table.delivery_id.is_not(None), table.verdict != Verdict.REFUSED)
                    .group_by(table.job_id, table.delivery_id)
                )
                first.update({(row[0], row[1]): row[2] for row in rows})
        return {
            item.id for item in keyed if item.id and first.get((item.job_id or "", item.delivery_id or "")) != item.id
        }

    async def close_evidence(self, verdicts: Iterable[tuple[int, Verdict, str | None]], now: datetime) -> None:
        """Mark evidence as read that is about no job's state."""
        async with self.database.write_raw() as db:
            await db.executemany(
                "UPDATE evidence SET verdict = ?, note = coalesce(?, note), read_at = ? WHERE id = ?",
                [(verdict.value, note, us(now), number) for number, verdict, note in verdicts],
            )

    async def evidence_of(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Evidence]:
        async with self.database.read() as connection:
            rows = await connection.execute(
                select(tables.evidence)
                .where(tables.evidence.c.job_id == job_id, tables.evidence.c.id > after)
                .order_by(tables.evidence.c.id)
                .limit(limit)
            )
            return [_evidence_from_row(row) for row in rows.mappings()]

    # --- Settling -------------------------------------------------------------------------------------------------

    async def settle(self, items: Sequence[Item], now: datetime, timing_of: TimingOf) -> Settled:
        """
        Advance the jobs that *items* are about, in their order, in one transaction.

        Changes, events, deliveries, images and the verdicts on the evidence are committed together. A task id that
        another job holds is never taken over: such news is recorded and ignored.
        """
        settled = Settled([])
        async with self.database.write_raw() as db:
            read = await _jobs_by_id(db, {item.job_id for item in items})
            current = dict(read)
            holders = await _holders(db, items, current)
            happenings: list[Happening] = []
            images: list[tuple[Any, ...]] = []
            verdicts: list[tuple[Any, ...]] = []
            released: set[str] = set()
            for item in items:
                job = current.get(item.job_id)
                if job is None:
                    settled.changes.append(None)
                    verdicts.append((Verdict.IGNORED.value, us(now), item.evidence_id))
                    continue
                change = self._one(job, item.news, now, timing_of(job.provider), holders)
                settled.changes.append(change)
                verdicts.append((change.verdict.value, us(now), item.evidence_id))
                current[job.id] = change.job
                if item.news.source in (Source.POLL, Source.RESPONSE) or change.job.state is not job.state:
                    released.add(job.id)
                kept = [_new_image(change.job.id, n, image, now) for n, image in enumerate(change.images)]
                images += [_image_values(image, now) for image in kept]
                happenings += [self.happening(name, change.job, kept) for name in change.events]
            await _update_jobs(db, read, current, released)
            await db.executemany(
                "UPDATE evidence SET verdict = ?, read_at = ? WHERE id = ?", [v for v in verdicts if v[2] is not None]
            )
            if images:
                await db.executemany(_INSERT_IMAGE, images)
            settled.deliveries = await tell(db, happenings, now, first_delay_seconds=self._first_delay)
            settled.events, settled.images = len(happenings), len(images)
        return settled

    def _one(self, job: Job, news: News, now: datetime, timing: Timing, holders: dict[tuple[str, str], str]) -> Change:
        change = advance(job, news, now, timing, jitter=random.uniform(-1, 1))
        taken = change.job.remote_id
        if taken is None or taken == job.remote_id:
            return change
        holder = holders.setdefault((job.provider, taken), job.id)
        if holder == job.id:
            return change
        return Change(job, Verdict.IGNORED)

    def happening(self, name: str, job: Job, images: Sequence[KeptImage]) -> Happening:
        """An event about *job* in its public shape."""
        return Happening(
            name,
            job.to_json(images, base_url=self._public_url),
            job_id=job.id,
            provider=job.provider,
            notify_url=job.notify_url,
        )

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
                row = await _one_row(
                    db,
                    "SELECT digest, job_id FROM idempotency WHERE token_id = ? AND key = ? AND created_at > ?",
                    (token_id, key, since),
                )
                if row is not None:
                    if row[0] != digest:
                        raise KeyReused(row[1])
                    known = (await _jobs_by_id(db, {row[1]})).get(row[1])
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
                db, [self.happening("job.queued", job, ())], job.created_at, first_delay_seconds=self._first_delay
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
            return None if found is None else (found, await _images_of(connection, [job_id]))

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
            pictures = await _images_of(connection, [job.id for job in found])
        return [(job, [image for image in pictures if image.job_id == job.id]) for job in found]

    async def is_open(self, job_id: str) -> bool:
        """Whether the job exists and has not ended."""
        async with self.database.read() as connection:
            state = await connection.scalar(select(tables.jobs.c.state).where(tables.jobs.c.id == job_id))
        return state is not None and not State(state).terminal

    async def cancel(self, job_id: str, now: datetime, *, abandon: bool) -> bool:
        """End a job by our own word: queued ones, with *abandon* also those that were sent. False: too late."""
        async with self.database.write_raw() as db:
            job = (await _jobs_by_id(db, {job_id})).get(job_id)
            if job is None or job.state.terminal or (job.state is not State.QUEUED and not abandon):
                return False
            change = advance(job, News(Report(None, State.CANCELED), None), now, Timing(1, 1, 1))
            await _update_jobs(db, {job_id: job}, {job_id: change.job}, {job_id})
            happenings = [self.happening(name, change.job, ()) for name in change.events]
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

    # --- Submitting -----------------------------------------------------------------------------------------------

    async def claim_queued(
        self, provider: str, now: datetime, *, owner: str, lease: timedelta, limit: int
    ) -> list[Job]:
        """Take up to *limit* queued jobs of *provider* whose time has come, longest waiting first."""
        async with self.database.write_raw() as db:
            rows = await _all_rows(
                db,
                f"SELECT {_JOBS} FROM jobs WHERE state = 'queued' AND provider = ? AND retry_at <= ?"
                " AND (lease_until IS NULL OR lease_until < ?) ORDER BY retry_at LIMIT ?",
                (provider, us(now), us(now), limit),
            )
            found = [job_from_tuple(row) for row in rows]
            await db.executemany(
                "UPDATE jobs SET lease_owner = ?, lease_until = ? WHERE id = ?",
                [(owner, us(now + lease), job.id) for job in found],
            )
        return found

    async def next_queued_at(self, provider: str) -> datetime | None:
        """When the next queued job of *provider* may be sent."""
        table = tables.jobs.c
        async with self.database.read() as connection:
            value = await connection.scalar(
                select(func.min(table.retry_at)).where(table.state == "queued", table.provider == provider)
            )
        return None if value is None else moment(value)

    async def begin_sending(
        self, job: Job, now: datetime, *, owner: str, lease: timedelta, deadline_at: datetime, awaits_callback: bool
    ) -> bool:
        """`queued` → `sending`, if *owner* still holds it. Committed before the first byte leaves."""
        async with self.database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE jobs SET state = 'sending', version = version + 1, tries = tries + 1, sent_at = ?,"
                " deadline_at = ?, awaits_callback = ?, retry_at = NULL, trouble = NULL, lease_until = ?"
                " WHERE id = ? AND state = 'queued' AND lease_owner = ?",
                (us(now), us(deadline_at), int(awaits_callback), us(now + lease), job.id, owner),
            )
            return cursor.rowcount == 1

    async def renew(self, job_ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        async with self.database.write_raw() as db:
            await db.executemany(
                "UPDATE jobs SET lease_until = ? WHERE id = ? AND lease_owner = ?",
                [(us(now + lease), job_id, owner) for job_id in job_ids],
            )

    async def hand_back(self, job_ids: Sequence[str], *, owner: str) -> None:
        """Drop the leases on jobs that were not sent or not looked at."""
        async with self.database.write_raw() as db:
            await db.executemany(
                "UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE id = ? AND lease_owner = ?",
                [(job_id, owner) for job_id in job_ids],
            )

    async def lapsed_sending(self, now: datetime, *, limit: int = 200) -> list[str]:
        """Jobs whose holder died while sending."""
        table = tables.jobs.c
        async with self.database.read() as connection:
            rows = await connection.execute(
                select(table.id).where(table.state == "sending", table.lease_until < us(now)).limit(limit)
            )
            return [row[0] for row in rows]

    # --- Looking --------------------------------------------------------------------------------------------------

    async def claim_due(
        self, now: datetime, *, owner: str, lease: timedelta, limit: int, skip: Sequence[str] = ()
    ) -> list[Job]:
        """Take up to *limit* jobs whose look is due, earliest first, none of the providers in *skip*."""
        without = f" AND provider NOT IN ({', '.join('?' for _ in skip)})" if skip else ""
        async with self.database.write_raw() as db:
            rows = await _all_rows(
                db,
                f"SELECT {_JOBS} FROM jobs WHERE look_at <= ?"
                f" AND (lease_until IS NULL OR lease_until < ?){without} ORDER BY look_at LIMIT ?",
                (us(now), us(now), *skip, limit),
            )
            found = [job_from_tuple(row) for row in rows]
            await db.executemany(
                "UPDATE jobs SET lease_owner = ?, lease_until = ? WHERE id = ?",
                [(owner, us(now + lease), job.id) for job in found],
            )
        return found

    async def next_look_at(self) -> datetime | None:
        table = tables.jobs.c
        async with self.database.read() as connection:
            value = await connection.scalar(select(func.min(table.look_at)).where(table.look_at.is_not(None)))
        return None if value is None else moment(value)

    async def look_now(self, job_id: str, now: datetime) -> bool:
        """Make a job's look due now, if it can be looked at."""
        async with self.database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE jobs SET look_at = ?, version = version + 1 WHERE id = ? AND remote_id IS NOT NULL"
                " AND state IN ('running', 'unconfirmed', 'expired', 'canceled') AND late_at IS NULL",
                (us(now), job_id),
            )
            return cursor.rowcount == 1

    # --- Images ---------------------------------------------------------------------------------------------------

    async def claim_images(
        self, now: datetime, *, lease: timedelta, limit: int
    ) -> list[tuple[KeptImage, datetime | None]]:
        """Take wanted images whose try is due, the one whose link dies first at the front; with when to give up."""
        async with self.database.write_raw() as db:
            rows = await _all_rows(
                db,
                f"SELECT {', '.join(IMAGE_COLUMNS)} FROM images WHERE state = 'wanted' AND next_at <= ?"
                " AND (lease_until IS NULL OR lease_until < ?)"
                " ORDER BY coalesce(expires_at, give_up_at), next_at LIMIT ?",
                (us(now), us(now), limit),
            )
            found = [dict(zip(IMAGE_COLUMNS, row, strict=True)) for row in rows]
            await db.executemany(
                "UPDATE images SET lease_until = ? WHERE job_id = ? AND n = ?",
                [(us(now + lease), row["job_id"], row["n"]) for row in found],
            )
        return [(image_from_row(row), from_us(row["give_up_at"])) for row in found]

    async def renew_image(self, image: KeptImage, now: datetime, *, lease: timedelta) -> None:
        async with self.database.write_raw() as db:
            await db.execute(
                "UPDATE images SET lease_until = ? WHERE job_id = ? AND n = ? AND state = 'wanted'",
                (us(now + lease), image.job_id, image.n),
            )

    async def next_image_at(self) -> datetime | None:
        table = tables.images.c
        async with self.database.read() as connection:
            value = await connection.scalar(select(func.min(table.next_at)).where(table.state == "wanted"))
        return None if value is None else moment(value)

    async def image_kept(self, image: KeptImage, now: datetime) -> int:
        """Our copy is safe. When it was the last one wanted, `job.images_kept`. Returns deliveries queued."""
        return await self._image_done(image, now, state="kept", trouble=None)

    async def image_lost(self, image: KeptImage, now: datetime, *, trouble: str) -> int:
        """Given up. The job's state is not touched; `job.images_lost` tells."""
        return await self._image_done(image, now, state="lost", trouble=trouble)

    async def image_later(self, image: KeptImage, *, next_at: datetime, trouble: str) -> None:
        async with self.database.write_raw() as db:
            await db.execute(
                "UPDATE images SET tries = tries + 1, next_at = ?, trouble = ?, lease_until = NULL"
                " WHERE job_id = ? AND n = ? AND state = 'wanted'",
                (us(next_at), trouble, image.job_id, image.n),
            )

    async def _image_done(self, image: KeptImage, now: datetime, *, state: str, trouble: str | None) -> int:
        async with self.database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE images SET state = ?, content_type = coalesce(?, content_type), width = coalesce(?, width),"
                " height = coalesce(?, height), bytes = ?, sha256 = ?, tries = tries + 1, trouble = ?, kept_at = ?,"
                " next_at = NULL, lease_until = NULL WHERE job_id = ? AND n = ? AND state = 'wanted'",
                (
                    state,
                    image.content_type,
                    image.width,
                    image.height,
                    image.bytes,
                    image.sha256,
                    trouble,
                    us(now),
                    image.job_id,
                    image.n,
                ),
            )
            if cursor.rowcount != 1:
                return 0
            rows = await _all_rows(
                db, f"SELECT {', '.join(IMAGE_COLUMNS)} FROM images WHERE job_id = ? ORDER BY n", (image.job_id,)
            )
            all_of_it = [image_from_row(dict(zip(IMAGE_COLUMNS, row, strict=True))) for row in rows]
            if any(one.state == "wanted" for one in all_of_it):
                return 0
            job = (await _jobs_by_id(db, {image.job_id}))[image.job_id]
            name = "job.images_kept" if all(one.kept for one in all_of_it) else "job.images_lost"
            return await tell(db, [self.happening(name, job, all_of_it)], now, first_delay_seconds=self._first_delay)


class KeyReused(Exception):
    """An idempotency key came again with other content. `job_id` is the job it made."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


# --- Statements and rows --------------------------------------------------------------------------------------------

_INSERT_EVIDENCE = (
    "INSERT INTO evidence (job_id, provider, source, verdict, trust, received_at, read_at, asked_at, status, headers,"
    " body, body_name, peer, delivery_id, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_IMAGE = (
    f"INSERT INTO images ({', '.join(IMAGE_COLUMNS)}) VALUES ({', '.join('?' for _ in IMAGE_COLUMNS)})"
    " ON CONFLICT (job_id, n) DO NOTHING"
)
_UPDATE_JOB = (
    f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in MUTABLE)}, version = ?,"
    " lease_owner = CASE WHEN ? THEN NULL ELSE lease_owner END,"
    " lease_until = CASE WHEN ? THEN NULL ELSE lease_until END WHERE id = ? AND version = ?"
)


async def _update_jobs(
    db: aiosqlite.Connection, read: dict[str, Job], current: dict[str, Job], released: set[str]
) -> None:
    rows = []
    for job_id, job in current.items():
        before = read[job_id]
        if job is before and job_id not in released:
            continue
        values = job_values(job)
        free = job_id in released
        rows.append((*(values[name] for name in MUTABLE), before.version + 1, free, free, job_id, before.version))
    if not rows:
        return
    cursor = await db.executemany(_UPDATE_JOB, rows)
    if cursor.rowcount != len(rows):
        raise RuntimeError("a job changed inside an immediate transaction")


async def _holders(db: aiosqlite.Connection, items: Sequence[Item], jobs: dict[str, Job]) -> dict[tuple[str, str], str]:
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
    for chunk in _chunks(sorted(learned)):
        by_provider: dict[str, list[str]] = {}
        for provider, remote_id in chunk:
            by_provider.setdefault(provider, []).append(remote_id)
        for provider, remote_ids in by_provider.items():
            marks = ", ".join("?" for _ in remote_ids)
            rows = await _all_rows(
                db,
                f"SELECT remote_id, id FROM jobs WHERE provider = ? AND remote_id IN ({marks})",
                (provider, *remote_ids),
            )
            holders.update({(provider, row[0]): row[1] for row in rows})
    return holders


async def _jobs_by_id(db: aiosqlite.Connection, ids: set[str]) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for chunk in _chunks(sorted(ids)):
        marks = ", ".join("?" for _ in chunk)
        for row in await _all_rows(db, f"SELECT {_JOBS} FROM jobs WHERE id IN ({marks})", tuple(chunk)):
            job = job_from_tuple(row)
            found[job.id] = job
    return found


async def _job(connection: AsyncConnection, job_id: str) -> Job | None:
    table = tables.jobs.c
    row = (
        (await connection.execute(select(*[table[name] for name in JOB_COLUMNS]).where(table.id == job_id)))
        .mappings()
        .first()
    )
    return None if row is None else job_from_row(row)


async def _images_of(connection: AsyncConnection, job_ids: Sequence[str]) -> list[KeptImage]:
    if not job_ids:
        return []
    rows = await connection.execute(
        select(tables.images)
        .where(tables.images.c.job_id.in_(job_ids))
        .order_by(tables.images.c.job_id, tables.images.c.n)
    )
    return [image_from_row(row) for row in rows.mappings()]


def _new_image(job_id: str, n: int, image: Image, now: datetime) -> KeptImage:
    return KeptImage(
        job_id=job_id,
        n=n,
        source_url=image.url,
        expires_at=image.expires_at,
        content_type=image.content_type,
        width=image.width,
        height=image.height,
    )


def _image_values(image: KeptImage, now: datetime) -> tuple[Any, ...]:
    give_up_at = image.expires_at or now + timedelta(hours=24)
    values = {
        "job_id": image.job_id,
        "n": image.n,
        "source_url": image.source_url,
        "expires_at": to_us(image.expires_at),
        "content_type": image.content_type,
        "width": image.width,
        "height": image.height,
        "state": image.state,
        "tries": 0,
        "next_at": us(now),
        "give_up_at": us(max(give_up_at, now + timedelta(minutes=1))),
    }
    return tuple(values.get(name) for name in IMAGE_COLUMNS)


def _evidence_values(item: Evidence) -> tuple[Any, ...]:
    return (
        item.job_id,
        item.provider,
        item.source.value,
        item.verdict.value,
        item.trust and item.trust.value,
        us(item.received_at),
        to_us(item.read_at),
        to_us(item.asked_at),
        item.status,
        json.dumps(item.headers, separators=(",", ":")),
        item.body,
        item.body_name,
        item.peer,
        item.delivery_id,
        item.note,
    )


def _evidence_from_row(row: Any) -> Evidence:
    return Evidence(
        id=row["id"],
        source=Source(row["source"]),
        provider=row["provider"],
        job_id=row["job_id"],
        received_at=moment(row["received_at"]),
        headers=tuple((name, value) for name, value in json.loads(row["headers"])),
        body=bytes(row["body"]),
        verdict=Verdict(row["verdict"]),
        trust=None if row["trust"] is None else Trust(row["trust"]),
        read_at=from_us(row["read_at"]),
        asked_at=from_us(row["asked_at"]),
        status=row["status"],
        body_name=row["body_name"],
        peer=row["peer"],
        delivery_id=row["delivery_id"],
        note=row["note"],
    )


async def _all_rows(db: aiosqlite.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
    return list(await db.execute_fetchall(sql, values))


async def _one_row(db: aiosqlite.Connection, sql: str, values: tuple[Any, ...] = ()) -> Any | None:
    rows = await _all_rows(db, sql, values)
    return rows[0] if rows else None


def _chunks(values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
