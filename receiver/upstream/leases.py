"""
Who holds what. A lease is renewed while its work lives; a dead holder's work is free again within ten seconds.

Each process has one owner token. Renewals of everything held go out together.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from receiver.runtime.loops import Loop
from receiver.store.jobs import JobStore

LEASE = timedelta(seconds=8)
"""With the second that a loop may sleep before it looks, and one to spare, ten."""


class Leases:
    """This process's hold on jobs."""

    def __init__(self, store: JobStore, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.owner = secrets.token_hex(8)
        self._store = store
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

    async def _renew(self) -> float:
        if self._held:
            await self._store.leases.renew(sorted(self._held), self._clock(), owner=self.owner, lease=LEASE)
        return LEASE.total_seconds() / 4
