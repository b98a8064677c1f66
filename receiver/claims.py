"""
Who may work on which job: claims under leases, for sending and for looking.

A claim is a lease with an owner token; a holder that dies lets it lapse. `begin_sending` is a compare-and-set on that
token, so that a job whose holder was given up for dead is not sent by two.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select

from receiver import tables
from receiver.database import Database
from receiver.jobs import Job
from receiver.rows import JOB_COLUMNS, all_rows, job_from_tuple, moment, us

_JOBS = ", ".join(JOB_COLUMNS)


class Claims:
    """The sentences about leases on jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Submitting -------------------------------------------------------------------------------------------------

    async def claim_queued(
        self, provider: str, now: datetime, *, owner: str, lease: timedelta, limit: int
    ) -> list[Job]:
        """Take up to *limit* queued jobs of *provider* whose time has come, longest waiting first."""
        async with self._database.write_raw() as db:
            rows = await all_rows(
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
        async with self._database.read() as connection:
            value = await connection.scalar(
                select(func.min(table.retry_at)).where(table.state == "queued", table.provider == provider)
            )
        return None if value is None else moment(value)

    async def begin_sending(
        self, job: Job, now: datetime, *, owner: str, lease: timedelta, deadline_at: datetime, awaits_callback: bool
    ) -> bool:
        """`queued` → `sending`, if *owner* still holds it. Committed before the first byte leaves."""
        async with self._database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE jobs SET state = 'sending', version = version + 1, tries = tries + 1, sent_at = ?,"
                " deadline_at = ?, awaits_callback = ?, retry_at = NULL, trouble = NULL, lease_until = ?"
                " WHERE id = ? AND state = 'queued' AND lease_owner = ?",
                (us(now), us(deadline_at), int(awaits_callback), us(now + lease), job.id, owner),
            )
            return cursor.rowcount == 1

    async def renew(self, job_ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE jobs SET lease_until = ? WHERE id = ? AND lease_owner = ?",
                [(us(now + lease), job_id, owner) for job_id in job_ids],
            )

    async def hand_back(self, job_ids: Sequence[str], *, owner: str) -> None:
        """Drop the leases on jobs that were not sent or not looked at."""
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE jobs SET lease_owner = NULL, lease_until = NULL WHERE id = ? AND lease_owner = ?",
                [(job_id, owner) for job_id in job_ids],
            )

    async def lapsed_sending(self, now: datetime, *, limit: int = 200) -> list[str]:
        """Jobs whose holder died while sending."""
        table = tables.jobs.c
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(table.id).where(table.state == "sending", table.lease_until < us(now)).limit(limit)
            )
            return [row[0] for row in rows]

    # --- Looking ----------------------------------------------------------------------------------------------------

    async def claim_due(
        self, now: datetime, *, owner: str, lease: timedelta, limit: int, skip: Sequence[str] = ()
    ) -> list[Job]:
        """Take up to *limit* jobs whose look is due, earliest first, none of the providers in *skip*."""
        without = f" AND provider NOT IN ({', '.join('?' for _ in skip)})" if skip else ""
        async with self._database.write_raw() as db:
            rows = await all_rows(
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
        async with self._database.read() as connection:
            value = await connection.scalar(select(func.min(table.look_at)).where(table.look_at.is_not(None)))
        return None if value is None else moment(value)

    async def look_now(self, job_id: str, now: datetime) -> bool:
        """Make a job's look due now, if it can be looked at."""
        async with self._database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE jobs SET look_at = ?, version = version + 1 WHERE id = ? AND remote_id IS NOT NULL"
                " AND state IN ('running', 'unconfirmed', 'expired', 'canceled') AND late_at IS NULL",
                (us(now), job_id),
            )
            return cursor.rowcount == 1
