"""
Who holds what. A lease is renewed while its work lives; a dead holder's work is free again within ten seconds.

Each process has one owner token. Renewals of everything held go out together.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from receiver.domain.jobs import Job
from receiver.runtime.loops import Loop
from receiver.store.leases import LEASE, Claimed, JobLeases
from receiver.store.pace import Allowance


class Leases:
    """This process's hold on jobs."""

    def __init__(self, statements: JobLeases, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.owner = secrets.token_hex(8)
        self._statements = statements
        self._clock = clock
        self._held: set[str] = set()
        self.loop = Loop("leases", self._renew, idle_seconds=LEASE.total_seconds() / 4)

    @contextmanager
    def holding(self, job_id: str) -> Iterator[None]:
        """Renew the lease on *job_id* as long as the block runs."""
        self._held.add(job_id)
        try:
            yield
        finally:
            self._held.discard(job_id)

    @property
    def held(self) -> frozenset[str]:
        """What this process works on. Its leases may have lapsed all the same, if it was stopped for a while."""
        return frozenset(self._held)

    async def first_queued(self, providers: Sequence[str]) -> dict[str, datetime]:
        """Return when the first queued job of each of *providers* may be sent; those without one are left out."""
        return await self._statements.first_queued(providers)

    async def claim_queued(self, provider: str, *, limit: int, allowance: Allowance) -> Claimed:
        """Take up to *limit* queued jobs of *provider* whose time has come, within what all processes may."""
        return await self._statements.claim_queued(
            provider, self._clock(), owner=self.owner, lease=LEASE, limit=limit, allowance=allowance
        )

    async def begin_sending(self, job: Job, now: datetime, *, deadline_at: datetime, awaits_callback: bool) -> bool:
        """`queued` → `sending`, if it is still held here. Committed before the first byte leaves."""
        return await self._statements.begin_sending(
            job, now, owner=self.owner, lease=LEASE, deadline_at=deadline_at, awaits_callback=awaits_callback
        )

    async def first_due(self, providers: Sequence[str]) -> dict[str, datetime]:
        """Return when the first poll of each of *providers* is due; those without one are left out."""
        return await self._statements.first_due(providers)

    async def claim_due(self, limits: Mapping[str, int], allowances: Mapping[str, Allowance]) -> dict[str, Claimed]:
        """Take jobs whose poll is due, of each provider in *limits* at most so many, within what all processes may."""
        return await self._statements.claim_due(
            limits, self._clock(), owner=self.owner, lease=LEASE, allowances=allowances
        )

    async def hand_back(self, job_id: str, due_at: datetime) -> None:
        """Let go of a job that was not sent or not polled; it falls due at *due_at*."""
        await self._statements.hand_back([job_id], due_at, owner=self.owner)

    async def lapsed_sending(self) -> list[str]:
        """Return the jobs whose holder, another process, died while it was sending them."""
        return [job_id for job_id in await self._statements.lapsed_sending(self._clock()) if job_id not in self._held]

    async def _renew(self) -> float:
        if self._held:
            await self._statements.renew(sorted(self._held), self._clock(), owner=self.owner, lease=LEASE)
        return LEASE.total_seconds() / 4
