"""
Leases on jobs: which process may send or poll one.

A claim is a lease with an owner token; when its holder dies, it lapses. `begin_sending` is a compare-and-set on that
token, so that a job whose holder was taken for dead is not sent twice.

A claim also moves the job's due time (`retry_at` or `next_poll_at`) to the lease's end, and a renewal moves it on. So
held jobs are not among the due ones, a search for due jobs never walks over held ones, and a dead holder's job falls
due by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from receiver.domain.jobs import Job
from receiver.store.codecs import moment, us
from receiver.store.database import Database
from receiver.store.pace import Allowance, granted, spend
from receiver.store.rows import JOBS
from receiver.store.statements import SKIP_LOCKED, Fetch, Run, Work, alone
from submitter.parsing import NO_RESULT

LEASE = timedelta(seconds=8)
"""The duration of a claim unless it is renewed: ten seconds with the one that a loop may sleep and one to spare."""

_JOBS = JOBS.sql
_ID = JOBS.place("id")
_FREE = "(lease_until IS NULL OR lease_until <= ?)"
QUEUED = f"SELECT {_JOBS} FROM jobs WHERE state = 'queued' AND provider = ? AND retry_at <= ? AND {_FREE}" + (
    " ORDER BY retry_at LIMIT ?"
)
DUE = f"SELECT {_JOBS} FROM jobs WHERE provider = ? AND next_poll_at <= ? AND {_FREE} ORDER BY next_poll_at LIMIT ?"
_FIRST_QUEUED = "SELECT min(retry_at) FROM jobs WHERE state = 'queued' AND provider = ?"
_FIRST_DUE = "SELECT min(next_poll_at) FROM jobs WHERE provider = ? AND next_poll_at IS NOT NULL"
_HOLD_QUEUED = "UPDATE jobs SET lease_owner = ?, lease_until = ?, retry_at = ? WHERE id IN (??)"
_HOLD_DUE = "UPDATE jobs SET lease_owner = ?, lease_until = ?, next_poll_at = ? WHERE id IN (??)"
_BEGIN_SENDING = (
    "UPDATE jobs SET state = 'sending', version = version + 1, tries = tries + 1, sent_at = ?, deadline_at = ?,"
    " awaits_callback = ?, retry_at = NULL, last_error = NULL, lease_until = ?"
    " WHERE id = ? AND state = 'queued' AND lease_owner = ?"
)
_LAPSED_SENDING = (
    f"SELECT id FROM jobs WHERE state = 'sending' AND {_FREE} AND NOT EXISTS (SELECT 1 FROM evidence"
    " WHERE job_id = jobs.id AND source = 'response' AND read_at IS NULL) LIMIT ?"
)
_MOVE_DUE = (
    "UPDATE jobs SET retry_at = CASE WHEN retry_at = lease_until THEN ? ELSE retry_at END,"
    " next_poll_at = CASE WHEN next_poll_at = lease_until THEN ? ELSE next_poll_at END,"
)
_RENEW = f"{_MOVE_DUE} lease_until = ? WHERE id IN (??) AND lease_owner = ?"
_HAND_BACK = f"{_MOVE_DUE} lease_owner = NULL, lease_until = NULL WHERE id IN (??) AND lease_owner = ?"
_POLL_NOW = (
    "UPDATE jobs SET version = version + 1,"
    " next_poll_at = CASE WHEN next_poll_at <= ? THEN next_poll_at WHEN polled_at BETWEEN ? AND ? THEN polled_at + ?"
    " ELSE ? END WHERE id = ? AND remote_id IS NOT NULL"
    " AND (state IN ('running', 'unconfirmed', 'expired', 'canceled') AND late_at IS NULL"
    " OR state = 'failed' AND error_code = ? OR (state = 'succeeded' OR late_at IS NOT NULL)"
    " AND EXISTS (SELECT 1 FROM images WHERE job_id = jobs.id AND images.state IN ('wanted', 'lost')))"
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """
    The jobs that were claimed, and what the provider's shared limits allow after that.

    *fills_in*: the seconds until each token bucket is full; *crowded*: whether other processes hold all places.
    """

    jobs: list[Job]
    fills_in: tuple[float, ...] = ()
    crowded: bool = False


class JobLeases:
    """The statements about leases on jobs, one transaction each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Submitting -------------------------------------------------------------------------------------------------

    async def first_queued(self, providers: Sequence[str]) -> dict[str, datetime]:
        """Return when the first queued job of each of *providers* may be sent; those without one are left out."""
        return await self._firsts(_FIRST_QUEUED, providers)

    async def claim_queued(
        self,
        provider: str,
        now: datetime,
        *,
        owner: str,
        lease: timedelta,
        limit: int,
        allowance: Allowance | None = None,
    ) -> Claimed:
        """
        Claim up to *limit* queued jobs of *provider* that are due, longest waiting first.

        No more are claimed than *allowance* has left over all processes; each takes one of its tokens.
        """

        def work() -> Work[Claimed]:
            grant = yield from granted(allowance, provider, limit, now, owner=owner, lease=lease)
            rows = []
            if grant.limit:
                rows = yield Fetch(QUEUED, (provider, us(now), us(now), grant.limit), SKIP_LOCKED)
            if rows:
                until = us(now + lease)
                yield Run(_HOLD_QUEUED, (owner, until, until, [row[_ID] for row in rows]))
            fills_in = yield from spend(allowance, grant, len(rows), now)
            return Claimed([JOBS.from_row(row) for row in rows], fills_in, grant.crowded)

        return await self._database.write(work)

    async def begin_sending(
        self, job: Job, now: datetime, *, owner: str, lease: timedelta, deadline_at: datetime, awaits_callback: bool
    ) -> bool:
        """Move *job* from `queued` to `sending`, if *owner* still holds it. Committed before the first byte is sent."""
        values = (us(now), us(deadline_at), int(awaits_callback), us(now + lease), job.id, owner)
        return bool(await self._database.write(alone(Run(_BEGIN_SENDING, values))) == 1)

    async def lapsed_sending(self, now: datetime, *, limit: int = 200) -> list[str]:
        """Return jobs whose holder died while sending, unless their answer has arrived and waits to be read."""
        rows = await self._database.read(alone(Fetch(_LAPSED_SENDING, (us(now), limit))))
        return [row[0] for row in rows]

    # --- Leases -----------------------------------------------------------------------------------------------------

    async def renew(self, job_ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        """Extend leases; a due time that was moved to the lease's end moves along."""
        until = us(now + lease)
        await self._database.write(alone(Run(_RENEW, (until, until, until, list(job_ids), owner))))

    async def hand_back(self, job_ids: Sequence[str], due_at: datetime, *, owner: str) -> None:
        """Release jobs that were not sent or not polled; they fall due at *due_at*."""
        due = us(due_at)
        await self._database.write(alone(Run(_HAND_BACK, (due, due, list(job_ids), owner))))

    # --- Polling ----------------------------------------------------------------------------------------------------

    async def first_due(self, providers: Sequence[str]) -> dict[str, datetime]:
        """Return when the first poll of each of *providers* is due; those without one are left out."""
        return await self._firsts(_FIRST_DUE, providers)

    async def claim_due(
        self,
        limits: Mapping[str, int],
        now: datetime,
        *,
        owner: str,
        lease: timedelta,
        allowances: Mapping[str, Allowance] | None = None,
    ) -> dict[str, Claimed]:
        """
        Claim jobs whose poll is due, earliest first, and of each provider at most its entry in *limits*.

        No more are claimed of each than its entry in *allowances* has left; each takes one of its tokens.
        """
        shared = allowances or {}

        def work() -> Work[dict[str, Claimed]]:
            found, held = {}, []
            for provider, limit in sorted(limits.items()):  # buckets are locked in one order
                allowance = shared.get(provider)
                grant = yield from granted(allowance, provider, limit, now, owner=owner, lease=lease)
                rows = []
                if grant.limit:
                    rows = yield Fetch(DUE, (provider, us(now), us(now), grant.limit), SKIP_LOCKED)
                fills_in = yield from spend(allowance, grant, len(rows), now)
                found[provider] = Claimed([JOBS.from_row(row) for row in rows], fills_in)
                held += [row[_ID] for row in rows]
            if held:
                until = us(now + lease)
                yield Run(_HOLD_DUE, (owner, until, until, held))
            return found

        return await self._database.write(work)

    async def poll_now(self, job_id: str, now: datetime, *, apart_seconds: float) -> bool:
        """
        Make a poll due, no earlier than *apart_seconds* after the last; False if the job can't be polled.

        One that is due already keeps its place among the others.
        """
        apart, moment_us = int(apart_seconds * 1_000_000), us(now)
        values = (moment_us, moment_us - apart, moment_us, apart, moment_us, job_id, NO_RESULT)
        return bool(await self._database.write(alone(Run(_POLL_NOW, values))) == 1)

    async def _firsts(self, query: str, providers: Sequence[str]) -> dict[str, datetime]:
        def work() -> Work[dict[str, datetime]]:
            found = {}
            for name in providers:
                ((first,),) = yield Fetch(query, (name,))
                if first is not None:
                    found[name] = moment(first)
            return found

        return await self._database.read(work)
