"""
Leases of this process. A lease is renewed while its work lasts; a dead holder's work is free again within ten seconds.

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
    """The leases of this process on jobs."""

    def __init__(self, statements: JobLeases, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.owner = secrets.token_hex(8)
        self._statements = statements
        self._clock = clock
        self._held: set[str] = set()
        self.loop = Loop("leases", self._renew, idle_seconds=LEASE.total_seconds() / 4)

    @contextmanager
    def holding(self, job_id: str) -> Iterator[None]:
        """Renew the lease on *job_id* while the block runs."""
        self._held.add(job_id)
        try:
            yield
        finally:
            self._held.discard(job_id)

    @property
    def held(self) -> frozenset[str]:
        """The jobs that this process works on. If it was suspended for a while, their leases may have lapsed."""
        return frozenset(self._held)

    async def first_queued(self, providers: Sequence[str]) -> dict[str, datetime]:
        """Return when the first queued job of each of *providers* may be sent; those without one are left out."""
        return await self._statements.first_queued(providers)

    async def claim_queued(self, provider: str, *, limit: int, allowance: Allowance) -> Claimed:
        """Claim up to *limit* queued jobs of *provider* that are due, within the limits shared by all processes."""
        return await self._statements.claim_queued(
            provider, self._clock(), owner=self.owner, lease=LEASE, limit=limit, allowance=allowance
        )

    async def begin_sending(self, job: Job, now: datetime, *, deadline_at: datetime, awaits_callback: bool) -> bool:
        """Move *job* from `queued` to `sending`, if it is still held here. Committed before the first byte is sent."""
        return await self._statements.begin_sending(
            job, now, owner=self.owner, lease=LEASE, deadline_at=deadline_at, awaits_callback=awaits_callback
        )

    async def first_due(self, providers: Sequence[str]) -> dict[str, datetime]:
        """Return when the first poll of each of *providers* is due; those without one are left out."""
        return await self._statements.first_due(providers)

    async def claim_due(self, limits: Mapping[str, int], allowances: Mapping[str, Allowance]) -> dict[str, Claimed]:
        """Claim jobs whose poll is due, within *limits* by provider and the limits shared by all processes."""
        return await self._statements.claim_due(
            limits, self._clock(), owner=self.owner, lease=LEASE, allowances=allowances
        )

    async def hand_back(self, job_id: str, due_at: datetime) -> None:
        """Release a job that was not sent or not polled; it falls due at *due_at*."""
        await self._statements.hand_back([job_id], due_at, owner=self.owner)

    async def lapsed_sending(self) -> list[str]:
        """Return the jobs whose holder, another process, died while it was sending them."""
        return [job_id for job_id in await self._statements.lapsed_sending(self._clock()) if job_id not in self._held]

    async def _renew(self) -> float:
        if self._held:
            await self._statements.renew(sorted(self._held), self._clock(), owner=self.owner, lease=LEASE)
        return LEASE.total_seconds() / 4
