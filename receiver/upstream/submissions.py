"""
From the queue to the provider, never twice.

Theory. A job is claimed in `queued` under a lease; everything slow (reading the input, waiting for the pace) happens
there, and a crash there frees it for the next claim. `queued` → `sending` is a compare-and-set on the lease, committed
just before the first byte is sent on a fresh connection. From then on the job is never claimed again: either an answer
is recorded as evidence and the reader settles it, or we know that the request did not arrive whole and queue the job
again, or the job becomes `unconfirmed`. After a crash while sending, the lease lapses and the sweep makes the job
`unconfirmed`; a late answer of its holder, if that still lives, is still a legal row of the table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import structlog

from receiver.domain.jobs import Job, Source
from receiver.domain.lifecycle import Update
from receiver.domain.redaction import redact
from receiver.runtime.loops import Loop, TaskPool
from receiver.runtime.metrics import Metrics
from receiver.store.settling import JobUpdate
from receiver.upstream.intake import Intake
from receiver.upstream.leases import Leases
from receiver.upstream.pauses import Pauses
from receiver.upstream.reader import outcome_of
from receiver.upstream.slots import ProviderSlot
from receiver.upstream.task_preparation import TaskPreparation
from submitter.client import HttpSender, converse
from submitter.errors import AccountRefused, AnswerLost, NotSent, ProviderBusy, ProviderError, TaskRefused
from submitter.vocabulary import Failure, Report, State

log = structlog.get_logger("receiver.submissions")

_RECORD_AGAIN_SECONDS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
_LAST_WORD_SECONDS = 2.0
_AFTER_ERROR = timedelta(seconds=30)
_CROWDED_SECONDS = 0.25
"""The retry interval while other processes hold all slots of a provider: the end of their calls wakes no loop here."""


@dataclass(slots=True)
class _Sending:
    """The progress of one submit call: when it began, and whether it was sent, answered and recorded."""

    begun_at: datetime | None = None
    left: bool = False
    answered: bool = False
    recorded: bool = False


class _LostHold(Exception):
    """Another process holds the job now; nothing was sent."""


class Submissions:
    """Sends queued jobs, each provider at its own pace. Providers without a key are skipped."""

    def __init__(
        self,
        intake: Intake,
        slots: Mapping[str, ProviderSlot],
        pauses: Pauses,
        leases: Leases,
        preparation: TaskPreparation,
        sender: HttpSender,
        metrics: Metrics,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._intake = intake
        self._slots = {name: slot for name, slot in slots.items() if slot.configured}
        self._pauses = pauses
        self._leases = leases
        self._preparation = preparation
        self._sender = sender
        self._metrics = metrics
        self._clock = clock
        self.loop = Loop("submissions", self.step, woken=intake.wakes.submissions)
        self.pools = {
            name: TaskPool(slot.pace.concurrency, on_idle=self.loop.wake) for name, slot in self._slots.items()
        }

    async def step(self) -> float:
        """Send the jobs that may be sent now; give up on those that a dead holder was sending."""
        now = self._clock()
        await self._sweep(now)
        await self._pauses.refresh(now)
        firsts = await self._leases.first_queued(list(self._slots))
        pauses = [await self._send_some(name, first, now) for name, first in firsts.items()]
        return min(pauses, default=3600.0)

    def done_in_seconds(self, name: str, length: int, *, call_seconds: float | None) -> float | None:
        """Return the seconds until *length* queued jobs of a provider are sent; None if that can't be known."""
        if name not in self._slots or (length and self._pauses.of(name) is not None):
            return None
        return self._slots[name].pace.seconds_for(length, call_seconds=call_seconds)

    async def _send_some(self, name: str, first: datetime, now: datetime) -> float:
        """Start the calls that may be sent; return the seconds after which to step again."""
        if first > now:
            return (first - now).total_seconds()
        pace, pool = self._slots[name].pace, self.pools[name]
        pause = self._pauses.of(name)
        limit = min(pace.allowed(), pool.free)
        if pause is not None:
            limit = 1 if self._pauses.may_probe(name, now) and pool.free else 0
        if limit == 0:
            wait = pace.seconds_to_next() if pause is None else (pause.probe_at - now).total_seconds()
            # A free slot, and the end of a probe, wake the loop.
            return max(wait, 0.05 if pause is None and pool.free else 1.0)
        # A probe is alone among all processes.
        places = pace.places if pause is None else min(pace.places, 1)
        allowance = pace.allowance(f"{name}/submit", places=places)
        claimed = await self._leases.claim_queued(name, limit=limit, allowance=allowance)
        pace.claimed(claimed.fills_in)
        under_way = pool.names()
        for job in claimed.jobs:
            if f"submit {job.id}" in under_way:
                continue  # this process was suspended for longer than a lease, and claimed it again
            pace.leaving(job.id)
            if pause is not None and not await self._pauses.begin_probe(name, job.id, now):
                pace.ended(job.id, made=False)
                await self._leases.hand_back(job.id, now)
                return _CROWDED_SECONDS
            pool.start(self._work(job), name=f"submit {job.id}", job=job.id)
        if claimed.crowded:
            return _CROWDED_SECONDS
        return 0.0 if len(claimed.jobs) == limit else 0.05

    async def _work(self, job: Job) -> None:
        sending = _Sending()
        pace = self._slots[job.provider].pace
        with self._leases.holding(job.id):
            try:
                await self._send(job, sending)
            except _LostHold:
                pass
            except TaskRefused as exc:
                error = Failure(exc.code, str(exc), permanent=True)
                await self._settle(job, Update(Report(None, State.FAILED, error=error), Source.RESPONSE))
            except ProviderError as exc:
                await self._unsuccessful(job, sending, exc)
            except asyncio.CancelledError:
                # An answer that could not be recorded has had its time; the sweep after the next start settles the job.
                if not sending.answered:
                    await _within(_LAST_WORD_SECONDS, asyncio.ensure_future(self._let_go(job, sending)), job=job.id)
                raise
            except Exception:
                await self._let_go(job, sending, pause=_AFTER_ERROR)
                raise
            else:
                self._metrics.submits.labels(job.provider, "accepted").inc()
                await self._answered(job, sending)
            finally:
                pace.ended(job.id, made=sending.left)
                self._pauses.probe_ended(job.provider, job.id)

    async def _send(self, job: Job, sending: _Sending) -> None:
        provider = self._slots[job.provider].provider
        prepared = await self._preparation.prepare(provider, job)

        async def send(request: httpx.Request) -> httpx.Response:
            asked_at = self._clock()
            if sending.begun_at is None:
                await self._begin(job, sending, asked_at, awaits_callback=prepared.callback_url is not None)
            sending.begun_at = asked_at
            sending.left = True
            response = await self._sender.send(request, timeout_seconds=provider.submit_timeout_seconds)
            sending.answered = True
            hurry = asyncio.Event()
            recording = asyncio.ensure_future(self._record(job, sending, response, asked_at, hurry))
            try:
                await asyncio.shield(recording)
            except asyncio.CancelledError:
                hurry.set()
                await _within(_LAST_WORD_SECONDS, recording, job=job.id)
                raise
            return response

        await converse(provider.submit(prepared.task, prepared.callback_url), send)

    async def _begin(self, job: Job, sending: _Sending, now: datetime, *, awaits_callback: bool) -> None:
        """Move *job* from `queued` to `sending`. Even if cancelled, *sending* shows whether that was committed."""
        lifetime = timedelta(seconds=self._slots[job.provider].timing.lifetime)
        beginning = asyncio.ensure_future(
            self._leases.begin_sending(job, now, deadline_at=now + lifetime, awaits_callback=awaits_callback)
        )
        try:
            if not await asyncio.shield(beginning):
                raise _LostHold
        except asyncio.CancelledError:
            if await _within(_LAST_WORD_SECONDS, beginning, job=job.id) and beginning.result():
                sending.begun_at = now
            raise

    async def _record(
        self, job: Job, sending: _Sending, response: httpx.Response, asked_at: datetime, hurry: asyncio.Event
    ) -> None:
        """Record the answer to a paid call, with some patience for our own disk; in a *hurry*, with one more try."""
        for pause in (*_RECORD_AGAIN_SECONDS, None):
            try:
                await self._intake.record_answer(
                    response, source=Source.RESPONSE, provider=job.provider, job_id=job.id, asked_at=asked_at
                )
                sending.recorded = True
                return
            except Exception as exc:
                log.error("answer_not_recorded", job=job.id, error=type(exc).__name__, again_in_seconds=pause)
                if pause is None or hurry.is_set():
                    raise
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await hurry.wait()

    async def _unsuccessful(self, job: Job, sending: _Sending, exc: ProviderError) -> None:
        """Settle a call without an answer; the reader settles a recorded one."""
        now = self._clock()
        self._metrics.submits.labels(job.provider, type(exc).__name__).inc()
        log.warning("submit_unsuccessful", job=job.id, provider=job.provider, code=exc.code)
        pace = self._slots[job.provider].pace
        if isinstance(exc, AccountRefused):
            pace.refused()
            sent_at = sending.begun_at or now
            await self._pauses.refused(job.provider, now, sent_at=sent_at, reason=redact(f"{exc.code}: {exc}"))
        elif isinstance(exc, ProviderBusy | NotSent):
            pace.not_now(exc.retry_after_seconds)
        elif not isinstance(exc, AnswerLost):
            await self._answered(job, sending)
        if not sending.recorded:
            await self._settle(job, outcome_of(exc, tries=job.tries + 1, now=now))

    async def _answered(self, job: Job, sending: _Sending) -> None:
        now = self._clock()
        self._slots[job.provider].pace.answered()
        await self._pauses.answered(job.provider, now, sent_at=sending.begun_at or now)

    async def _settle(self, job: Job, update: Update) -> None:
        await self._intake.settle([JobUpdate(job.id, update)])

    async def _let_go(self, job: Job, sending: _Sending, *, pause: timedelta = timedelta(0)) -> None:
        """Release a job as we stop: unsent, it is queued again; sent, it may be running; recorded, it is evidence."""
        if sending.begun_at is None:
            await self._leases.hand_back(job.id, self._clock() + pause)
        elif not sending.left:
            now = self._clock()
            await self._settle(
                job, Update(Report(None, State.QUEUED), None, retry_at=now, last_error="submit: interrupted")
            )
        elif not sending.recorded:
            said = "its answer could not be recorded" if sending.answered else "the receiver stopped before an answer"
            error = Failure("interrupted", f"{said}; the task may be running and billed", permanent=False)
            report = Report(None, State.UNCONFIRMED, error=error)
            await self._settle(job, Update(report, None, last_error="submit: interrupted"))

    async def _sweep(self, now: datetime) -> None:
        lapsed = await self._leases.lapsed_sending()
        error = Failure("holder_died", "the process that was sending it died before an answer came", permanent=False)
        update = Update(Report(None, State.UNCONFIRMED, error=error), None, last_error="submit: holder died")
        if lapsed:
            await self._intake.settle([JobUpdate(job_id, update) for job_id in lapsed], now)


async def _within(seconds: float, work: asyncio.Future[Any], *, job: str) -> bool:
    """Wait up to *seconds* for *work*, then give it up. Returns whether it succeeded; its error is logged."""
    await asyncio.wait([work], timeout=seconds)
    if not work.done():
        work.cancel()
        await asyncio.wait([work], timeout=0.1)
    error = work.exception() if work.done() and not work.cancelled() else TimeoutError()
    if error is not None:
        log.error("stopped_in_the_middle", job=job, error=type(error).__name__)
    return error is None
