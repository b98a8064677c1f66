"""
Polling: the status calls for jobs whose poll is due.

A job is due because a callback did not arrive in time, because its provider sends none, because a hint needs to be
confirmed, or because its deadline has passed (the last poll). One index search finds them, however many jobs are open.
The claim is a lease, so status calls for one job never overlap; the answer is evidence, and settling it determines when
the next poll is due. A poll without any answer is settled here: nothing new, to be polled again later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import httpx
import structlog

from receiver.domain.jobs import Job, Source
from receiver.domain.lifecycle import Update
from receiver.runtime.loops import Loop, TaskPool
from receiver.runtime.metrics import Metrics
from receiver.store.pace import Allowance
from receiver.store.settling import JobUpdate
from receiver.upstream.intake import Intake
from receiver.upstream.leases import Leases
from receiver.upstream.slots import ProviderSlot
from submitter.client import HttpSender, converse
from submitter.errors import NotSent, ProviderBusy, ProviderError
from submitter.vocabulary import State

log = structlog.get_logger("receiver.poller")

_POLL_TIMEOUT_SECONDS = 30.0


MOST_POLLS = 16
"""Status calls to one provider in flight."""


class Poller:
    """
    Makes due polls, *concurrency* at once for each provider, each within its documented pace.

    Each provider has its own slots: one whose status calls hang takes none of another's.
    A job whose provider can't be polled, for lack of a key, still falls due: its deadline applies.
    """

    def __init__(
        self,
        intake: Intake,
        slots: Mapping[str, ProviderSlot],
        leases: Leases,
        sender: HttpSender,
        metrics: Metrics,
        *,
        concurrency: int = MOST_POLLS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._intake = intake
        self._slots = slots
        self._leases = leases
        self._sender = sender
        self._metrics = metrics
        self._clock = clock
        self.loop = Loop("poller", self.step, woken=intake.wakes.poller)
        self.pools = {name: TaskPool(concurrency, on_idle=self.loop.wake) for name in slots}

    async def shutdown(self, *, grace_seconds: float) -> None:
        """Give calls in flight *grace_seconds* to end, then cancel them."""
        await asyncio.gather(*(pool.shutdown(grace_seconds=grace_seconds) for pool in self.pools.values()))

    async def step(self) -> float:
        now = self._clock()
        firsts = await self._leases.first_due(list(self._slots))
        due = sorted((name for name, first in firsts.items() if first <= now), key=firsts.__getitem__)
        waits = [(first - now).total_seconds() for first in firsts.values() if first > now]
        limits: dict[str, int] = {}
        allowances: dict[str, Allowance] = {}
        for name in due:
            slot, free = self._slots[name], self.pools[name].free
            limit = min(free, slot.poll_pace.allowed()) if slot.configured else free
            if limit > 0:
                limits[name] = limit
                if slot.configured:
                    allowances[name] = slot.poll_pace.allowance(f"{name}/poll")
            elif free > 0:
                waits.append(max(slot.poll_pace.seconds_to_next(), 0.05))
        if not limits:
            return max(min(waits, default=3600.0), 0.0)
        claimed = await self._leases.claim_due(limits, allowances)
        for name in allowances:
            self._slots[name].poll_pace.claimed(claimed[name].fills_in)
        jobs = [job for name in due if name in claimed for job in claimed[name].jobs]
        for job in jobs:
            pool = self.pools[job.provider]
            if f"poll {job.id}" in pool.names():
                continue  # this process was suspended for longer than a lease, and claimed it again
            self._slots[job.provider].poll_pace.leaving(job.id)
            pool.start(self._work(job), name=f"poll {job.id}", job=job.id)
        # Due but not to be claimed: another poll of the same job is under way.
        return 0.0 if jobs else 0.5

    async def _work(self, job: Job) -> None:
        asked = False
        with self._leases.holding(job.id):
            try:
                asked = await self._poll(job)
            except asyncio.CancelledError:
                await asyncio.shield(self._leases.hand_back(job.id, self._clock()))
                raise
            finally:
                self._slots[job.provider].poll_pace.ended(job.id, made=asked)

    async def _poll(self, job: Job) -> bool:
        """Poll *job*. Returns whether the provider was called."""
        slot = self._slots[job.provider]
        provider, pace = slot.provider, slot.poll_pace
        remote_id = job.remote_id or job.claimed_id
        asked_at = self._clock()
        if remote_id is None or not provider.pollable:
            await self._nothing_new(job, asked_at, last_error=job.last_error)
            return False
        if not slot.configured:
            last_error = f"poll: there is no API key; set {job.provider.upper()}_API_KEY"
            await self._nothing_new(job, asked_at, last_error=last_error)
            return False
        answered = False

        async def send(request: httpx.Request) -> httpx.Response:
            nonlocal answered
            response = await self._sender.send(request, timeout_seconds=_POLL_TIMEOUT_SECONDS, fresh=False)
            await self._intake.record_answer(
                response,
                source=Source.POLL,
                provider=job.provider,
                job_id=job.id,
                asked_at=asked_at,
                note=_reason(job, asked_at),
            )
            answered = True
            return response

        try:
            report = await converse(provider.poll(remote_id), send)
        except ProviderError as exc:
            self._metrics.polls.labels(job.provider, type(exc).__name__).inc()
            # Only failures that concern all tasks hold back the others: 429, 503, and no connection at all.
            if isinstance(exc, ProviderBusy | NotSent) and getattr(exc, "tries", None) is None:
                pace.not_now(exc.retry_after_seconds, for_all=isinstance(exc, ProviderBusy))
            else:
                pace.answered()
            if not answered:
                log.warning("poll_unanswered", job=job.id, provider=job.provider, code=exc.code)
                await self._nothing_new(job, asked_at, last_error=f"poll: {exc.code}: {exc}"[:500])
        else:
            pace.answered()
            self._metrics.polls.labels(job.provider, report.state.value).inc()
        return True

    async def _nothing_new(self, job: Job, asked_at: datetime, *, last_error: str | None) -> None:
        update = Update(None, Source.POLL, last_error=last_error, asked_at=asked_at)
        await self._intake.settle([JobUpdate(job.id, update)])


def _reason(job: Job, now: datetime) -> str:
    if job.hinted_at is not None:
        return "to confirm a callback"
    if job.state is State.SUCCEEDED or job.late_at is not None:
        return "for fresh links to images that are not kept"
    if job.deadline_at is not None and now >= job.deadline_at:
        return "the last poll before it expires"
    if job.awaits_callback:
        return "no callback came in time"
    return "due"
