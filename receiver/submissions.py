"""
From the queue to the provider, never twice.

Theory. A job is claimed in `queued` under a lease; everything slow (reading the input, waiting for the pace) happens
there, and a death there frees it for the next claimer. `queued` → `sending` is a compare-and-set on the lease,
committed just before the first byte leaves on a fresh connection. From then on the job is never claimed again by
anybody: either an answer is recorded as evidence and the reader settles it, or we know that the request did not
arrive whole and say so, or the job becomes `unconfirmed`. A death while sending: the lease lapses and the sweep makes
it `unconfirmed`; the holder's late answer, should it live, is still a legal row of the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import structlog

from receiver.blobs import Blobs
from receiver.intake import Intake, outcome_of
from receiver.jobs import Job, Source
from receiver.leases import LEASE, Leases
from receiver.lifecycle import News
from receiver.loops import Crew, Loop
from receiver.metrics import Metrics
from receiver.pacing import Bucket
from receiver.pauses import Pauses
from receiver.store import Item, Store
from receiver.tokens import Tokens
from submitter.client import Wire, converse
from submitter.errors import ProviderError, TaskRefused
from submitter.images import inspect
from submitter.provider import Provider
from submitter.vocabulary import Failure, Report, State, Task

log = structlog.get_logger("receiver.submissions")


@dataclass(slots=True)
class _Sending:
    """How far one submit call got: it left; its answer is recorded."""

    begun: bool = False
    answered: bool = False


class _LostHold(Exception):
    """Somebody else has the job now; nothing was sent."""


class Submissions:
    """Sends queued jobs, each provider at its own pace and concurrency."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        providers: Mapping[str, Provider],
        *,
        buckets: Mapping[str, Bucket],
        concurrency: Mapping[str, int],
        pauses: Pauses,
        leases: Leases,
        wire: Wire,
        tokens: Tokens,
        blobs: Blobs,
        metrics: Metrics,
        public_url: Callable[[], str | None],
        job_timeout: timedelta,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._intake = intake
        self._providers = providers
        self._buckets = buckets
        self._pauses = pauses
        self._leases = leases
        self._wire = wire
        self._tokens = tokens
        self._blobs = blobs
        self._metrics = metrics
        self._public_url = public_url
        self._job_timeout = job_timeout
        self._clock = clock
        self.loop = Loop("submissions", self.step)
        self.crews = {name: Crew(size, on_free=self.loop.wake) for name, size in concurrency.items()}

    async def step(self) -> float:
        """Send what may be sent now; give up on what a dead holder was sending."""
        now = self._clock()
        await self._sweep(now)
        pause = 3600.0
        for name in self._providers:
            pause = min(pause, await self._send_some(name, now))
        return pause

    async def _send_some(self, name: str, now: datetime) -> float:
        crew, bucket = self.crews[name], self._buckets[name]
        allowed = self._pauses.allowed(name, now, in_flight=crew.busy)
        limit = crew.free if allowed is None else min(crew.free, allowed)
        tokens = bucket.available()
        if tokens is not None:
            limit = min(limit, tokens)
        if limit > 0:
            jobs = await self._store.claims.claim_queued(name, now, owner=self._leases.owner, lease=LEASE, limit=limit)
            for job in jobs:
                bucket.take()
                self._pauses.leaving(name)
                crew.start(self._work(job), name=f"submit {job.id}")
            if len(jobs) == limit:
                return 0.05
        next_at = await self._store.claims.next_queued_at(name)
        if next_at is None:
            return 3600.0
        wait = max((next_at - now).total_seconds(), 0.0)
        return max(wait, bucket.seconds_to_next() if tokens == 0 else 0.0, 0.05)

    async def _work(self, job: Job) -> None:
        provider = self._providers[job.provider]
        sending = _Sending()
        with self._leases.holding(job.id):
            try:
                await self._send(provider, job, sending)
            except _LostHold:
                self._buckets[job.provider].give_back()
            except TaskRefused as exc:
                error = Failure(exc.code, str(exc), permanent=True)
                await self._settle(job, News(Report(None, State.FAILED, error=error), Source.RESPONSE))
            except ProviderError as exc:
                self._metrics.submits.labels(provider.name, type(exc).__name__).inc()
                log.warning("submit_unsuccessful", job=job.id, provider=provider.name, code=exc.code)
                if not sending.answered:
                    tries = job.tries + 1
                    await self._settle(job, outcome_of(exc, tries=tries, now=self._clock()))
            except asyncio.CancelledError:
                await asyncio.shield(self._let_go(job, sending))
                raise
            except Exception:
                await self._let_go(job, sending)
                raise
            else:
                self._metrics.submits.labels(provider.name, "accepted").inc()

    async def _send(self, provider: Provider, job: Job, sending: _Sending) -> None:
        options = provider.Options.model_validate(job.options)
        picture = await asyncio.to_thread(inspect, self._blobs.input_path(job.input_name), url=self._input_url(job))
        callback_url = self._callback_url(provider, job)

        async def send(request: httpx.Request) -> httpx.Response:
            asked_at = self._clock()
            begun = sending.begun or await self._store.claims.begin_sending(
                job,
                asked_at,
                owner=self._leases.owner,
                lease=LEASE,
                deadline_at=asked_at + self._job_timeout,
                awaits_callback=callback_url is not None,
            )
            if not begun:
                raise _LostHold
            sending.begun = True
            response = await self._wire.send(request, timeout_seconds=provider.submit_timeout_seconds)
            await self._intake.record_answer(
                response, source=Source.RESPONSE, provider=provider.name, job_id=job.id, asked_at=asked_at
            )
            sending.answered = True
            return response

        task = Task(picture, options.to_send(), options.passthrough)
        await converse(provider.submit(task, callback_url), send)

    def _callback_url(self, provider: Provider, job: Job) -> str | None:
        public_url = self._public_url()
        if public_url is None or not provider.options_for_callback(job.options):
            return None
        return f"{public_url}/callbacks/{provider.name}/{self._tokens.callback(job.id, provider.name)}"

    def _input_url(self, job: Job) -> str | None:
        public_url = self._public_url()
        if public_url is None:
            return job.input_url
        return f"{public_url}/inputs/{self._tokens.input(job.id)}"

    async def _settle(self, job: Job, news: News) -> None:
        await self._intake.settle([Item(job.id, news)])

    async def _let_go(self, job: Job, sending: _Sending) -> None:
        """We stop. What was not sent goes back to the queue; what was may be running; what was answered is evidence."""
        if not sending.begun:
            await self._store.claims.hand_back([job.id], owner=self._leases.owner)
        elif not sending.answered:
            error = Failure("interrupted", "the receiver stopped before the provider answered", permanent=False)
            report = Report(None, State.UNCONFIRMED, error=error)
            await self._settle(job, News(report, None, trouble="submit: interrupted"))

    async def _sweep(self, now: datetime) -> None:
        lapsed = await self._store.claims.lapsed_sending(now)
        error = Failure("holder_died", "the process that was sending it died before an answer came", permanent=False)
        news = News(Report(None, State.UNCONFIRMED, error=error), None, trouble="submit: holder died")
        if lapsed:
            await self._intake.settle([Item(job_id, news) for job_id in lapsed], now)
