"""
Who may work on which job: leases under leases, for sending and for polling.

A claim is a lease with an owner token; a holder that dies lets it lapse. `begin_sending` is a compare-and-set on that
token, so that a job whose holder was given up for dead is not sent by two.

A claim also moves the job's due moment (`retry_at` or `next_poll_at`) to the lease's end, and a renewal moves it on. So
what is held is not among what is due, a search for due jobs never walks over held ones, and a dead holder's job falls
due by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.jobs import Job
from receiver.store.database import Database
from receiver.store.rows import JOB_COLUMNS, all_rows, job_from_tuple, moment, us
from submitter.parsing import NO_RESULT

_JOBS = ", ".join(JOB_COLUMNS)
_FREE = "(lease_until IS NULL OR lease_until <= ?)"
QUEUED = f"SELECT {_JOBS} FROM jobs WHERE state = 'queued' AND provider = ? AND retry_at <= ? AND {_FREE}" + (
    " ORDER BY retry_at LIMIT ?"
)
DUE = f"SELECT {_JOBS} FROM jobs WHERE provider = ? AND next_poll_at <= ? AND {_FREE} ORDER BY next_poll_at LIMIT ?"
_FIRST_QUEUED = "SELECT min(retry_at) FROM jobs WHERE state = 'queued' AND provider = ?"
_FIRST_DUE = "SELECT min(next_poll_at) FROM jobs WHERE provider = ? AND next_poll_at IS NOT NULL"


class JobLeases:
    """The sentences about leases on jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Submitting -------------------------------------------------------------------------------------------------

    async def first_queued(self, providers: Sequence[str]) -> dict[str, datetime]:
        """When the first queued job of each of *providers* may be sent; those without one are left out."""
        return await self._firsts(_FIRST_QUEUED, providers)

    async def claim_queued(
        self, provider: str, now: datetime, *, owner: str, lease: timedelta, limit: int
    ) -> list[Job]:
        """Take up to *limit* queued jobs of *provider* whose time has come, longest waiting first."""
        async with self._database.write_raw() as db:
            rows = await all_rows(db, QUEUED, (provider, us(now), us(now), limit))
            found = [job_from_tuple(row) for row in rows]
            until = us(now + lease)
            await db.executemany(
                "UPDATE jobs SET lease_owner = ?, lease_until = ?, retry_at = ? WHERE id = ?",
                [(owner, until, until, job.id) for job in found],
            )
        return found

    async def begin_sending(
        self, job: Job, now: datetime, *, owner: str, lease: timedelta, deadline_at: datetime, awaits_callback: bool
    ) -> bool:
        """`queued` → `sending`, if *owner* still holds it. Committed before the first byte leaves."""
        async with self._database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE jobs SET state = 'sending', version = version + 1, tries = tries + 1, sent_at = ?,"
                " deadline_at = ?, awaits_callback = ?, retry_at = NULL, last_error = NULL, lease_until = ?"
                " WHERE id = ? AND state = 'queued' AND lease_owner = ?",
                (us(now), us(deadline_at), int(awaits_callback), us(now + lease), job.id, owner),
            )
            return cursor.rowcount == 1

    async def lapsed_sending(self, now: datetime, *, limit: int = 200) -> list[str]:
        """Jobs whose holder died while sending, unless their answer is there and waits to be read."""
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                f"SELECT id FROM jobs WHERE state = 'sending' AND {_FREE} AND NOT EXISTS (SELECT 1 FROM evidence"
                " WHERE job_id = jobs.id AND source = 'response' AND read_at IS NULL) LIMIT ?",
                (us(now), limit),
            )
            return [row[0] for row in rows]

    # --- Leases -----------------------------------------------------------------------------------------------------

    async def renew(self, job_ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        """Hold on; a due moment that was moved to the lease's end goes with it."""
        until = us(now + lease)
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE jobs SET retry_at = CASE WHEN retry_at = lease_until THEN ? ELSE retry_at END,"
                " next_poll_at = CASE WHEN next_poll_at = lease_until THEN ? ELSE next_poll_at END, lease_until = ?"
                " WHERE id = ? AND lease_owner = ?",
                [(until, until, until, job_id, owner) for job_id in job_ids],
            )

    async def hand_back(self, job_ids: Sequence[str], due_at: datetime, *, owner: str) -> None:
        """Let go of jobs that were not sent or not polled; they fall due at *due_at*."""
        due = us(due_at)
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE jobs SET retry_at = CASE WHEN retry_at = lease_until THEN ? ELSE retry_at END,"
                " next_poll_at = CASE WHEN next_poll_at = lease_until THEN ? ELSE next_poll_at END,"
                " lease_owner = NULL, lease_until = NULL WHERE id = ? AND lease_owner = ?",
                [(due, due, job_id, owner) for job_id in job_ids],
            )

    # --- Polling ----------------------------------------------------------------------------------------------------

    async def first_due(self, providers: Sequence[str]) -> dict[str, datetime]:
        """When the first poll of each of *providers* is due; those without one are left out."""
        return await self._firsts(_FIRST_DUE, providers)

    async def claim_due(self, limits: Mapping[str, int], now: datetime, *, owner: str, lease: timedelta) -> list[Job]:
        """Take jobs whose poll is due, earliest first, of each provider in *limits* at most so many."""
        found: list[Job] = []
        async with self._database.write_raw() as db:
            for provider, limit in limits.items():
                rows = await all_rows(db, DUE, (provider, us(now), us(now), limit))
                found += [job_from_tuple(row) for row in rows]
            until = us(now + lease)
            await db.executemany(
                "UPDATE jobs SET lease_owner = ?, lease_until = ?, next_poll_at = ? WHERE id = ?",
                [(owner, until, until, job.id) for job in found],
            )
        return found

    async def poll_now(self, job_id: str, now: datetime, *, interval_seconds: float) -> bool:
        """Make a poll due, *interval_seconds* after the last at the earliest; False if the job can't be polled."""
        interval = int(interval_seconds * 1_000_000)
        async with self._database.write_raw() as db:
            cursor = await db.execute(
                "UPDATE jobs SET version = version + 1,"
                " next_poll_at = CASE WHEN polled_at > ? THEN polled_at + ? ELSE ? END"
                " WHERE id = ? AND remote_id IS NOT NULL"
                " AND (state IN ('running', 'unconfirmed', 'expired', 'canceled') AND late_at IS NULL"
                " OR state = 'failed' AND error_code = ?)",
                (us(now) - interval, interval, us(now), job_id, NO_RESULT),
            )
            return cursor.rowcount == 1

    async def _firsts(self, sentence: str, providers: Sequence[str]) -> dict[str, datetime]:
        if not providers:
            return {}
        async with self._database.read() as connection:
            columns = ", ".join(f"({sentence})" for _ in providers)
            row: Any = (await connection.exec_driver_sql(f"SELECT {columns}", tuple(providers))).one()
        return {name: moment(value) for name, value in zip(providers, row, strict=True) if value is not None}
