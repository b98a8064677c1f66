"""
A budget for the disk space of a job's unsigned callbacks.

Anyone who knows a callback URL may post to it; a budget for each job keeps that from filling the disk. It is counted in
memory and, after every eighth of it, from the stored data: so it holds over restarts and over several processes, to
within such a step, and costs nothing for a job with few callbacks.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

_MOST_JOBS = 10_000
_AGAIN_SECONDS = 30.0


@dataclass(slots=True)
class _Taken:
    """Bytes of a job: stored when last summed, received since, and being written to the disk."""

    stored: int = 0
    since: int = 0
    on_the_way: int = 0
    spent_at: float | None = None
    hinted_at: float | None = None


class CallbackBudget:
    """Admits callbacks within *limit* bytes per job. *stored* sums the bytes on disk for a job."""

    def __init__(
        self, limit: int, stored: Callable[[str], Awaitable[int]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._step = max(limit // 8, 1)
        self._stored = stored
        self._clock = clock
        self._jobs: OrderedDict[str, _Taken] = OrderedDict()

    async def admits(self, job_id: str, size: int) -> bool:
        """Return whether *size* more bytes fit; if so, call `written` once they are on disk, or lost."""
        taken = self._jobs.setdefault(job_id, _Taken())
        self._jobs.move_to_end(job_id)
        self._forget()
        now = self._clock()
        if taken.spent_at is not None and now - taken.spent_at < _AGAIN_SECONDS:
            return False
        taken.since += size
        taken.on_the_way += size
        if taken.since > self._step or taken.stored + taken.since > self._limit:
            stored = await self._stored(job_id)
            # Callbacks received meanwhile are being written, too: they may be counted twice, until the next time.
            taken.stored, taken.since = stored + taken.on_the_way, 0
        if taken.stored + taken.since > self._limit:
            taken.stored -= size
            taken.on_the_way -= size
            taken.spent_at = now
            return False
        taken.spent_at = None
        return True

    def written(self, job_id: str, size: int) -> None:
        if (taken := self._jobs.get(job_id)) is not None:
            taken.on_the_way -= size

    def may_hint(self, job_id: str) -> bool:
        """Return whether to poll the provider, now that the budget is spent: once every `_AGAIN_SECONDS`."""
        taken = self._jobs.get(job_id)
        if taken is None or taken.spent_at is None or taken.hinted_at == taken.spent_at:
            return False
        taken.hinted_at = taken.spent_at
        return True

    def _forget(self) -> None:
        while len(self._jobs) > _MOST_JOBS:
            job_id = next((name for name, taken in self._jobs.items() if not taken.on_the_way), None)
            if job_id is None:
                return
            del self._jobs[job_id]
