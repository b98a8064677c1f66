"""
The one door: callbacks, answers to looks and answers to submit calls are recorded, read and settled here.

Theory. `record` returns when the evidence is on disk; only then may anybody be told that we have it. Reading comes
afterwards: the reader takes whatever has no `read_at`, oldest first, turns each piece into news with its provider's
own reader, and hands the batch to `store.settle`, which writes the new states and the verdicts in one transaction. A
death before the recording: the sender was not answered and comes again, or we look. A death between recording and
settling: the evidence is still unread, and the next start reads it. A death after settling: done.

Answers that bring no report (429, a refused key, ...) are read into our own words by `outcome_of`: the class of the
provider's error decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx
import structlog

from receiver.blobs import Blobs
from receiver.evidence import Evidence
from receiver.groups import GroupCommit
from receiver.jobs import Source, Verdict
from receiver.lifecycle import News, Timing
from receiver.loops import Loop
from receiver.metrics import Metrics
from receiver.store import Item, Settled, Store
from submitter.errors import (
    AccountRefused,
    AnswerLost,
    CallbackUnreadable,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    TaskNotFound,
)
from submitter.provider import Provider
from submitter.vocabulary import Callback, Failure, Image, Report, State, Trust

log = structlog.get_logger("receiver.intake")

_MAX_BODY_IN_ROW = 256 * 1024


@dataclass(frozen=True, slots=True)
class Wakes:
    """Whom to wake when there is something for them."""

    look: Callable[[], None]
    submit: Callable[[], None]
    deliver: Callable[[], None]
    archive: Callable[[], None]
    told: Callable[[], None]


class Intake:
    """Records evidence and settles it. One reader per process; any number of recorders."""

    def __init__(
        self,
        store: Store,
        providers: Mapping[str, Provider],
        blobs: Blobs,
        metrics: Metrics,
        *,
        confirm: str,
        timing_of: Callable[[str], Timing],
        wakes: Wakes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._providers = providers
        self._blobs = blobs
        self._metrics = metrics
        self._confirm = confirm
        self._timing_of = timing_of
        self._wakes = wakes
        self._clock = clock
        self._recording: GroupCommit[Evidence] = GroupCommit(store.evidence.record, batch=512)
        self.loop = Loop("reader", self.read_some)

    async def record(self, evidence: Evidence) -> None:
        """Return when *evidence* is durable. Raises `Overloaded` when too much waits for the disk."""
        await self._recording.add(evidence)
        if evidence.read_at is None:
            self.loop.wake()

    async def record_answer(
        self,
        response: httpx.Response,
        *,
        source: Source,
        provider: str,
        job_id: str,
        asked_at: datetime,
        note: str | None = None,
    ) -> None:
        """Record the answer to one of our own calls. A large body (an image) is kept beside the database."""
        body, name = response.content, None
        if len(body) > _MAX_BODY_IN_ROW:
            name, body = await self._blobs.put_body(body), b""
        await self.record(
            Evidence(
                source=source,
                provider=provider,
                job_id=job_id,
                received_at=self._clock(),
                headers=tuple((k.lower(), v) for k, v in response.headers.items()),
                body=body,
                body_name=name,
                trust=Trust.OWN_CALL,
                asked_at=asked_at,
                status=response.status_code,
                note=note,
            )
        )

    async def read_some(self, *, limit: int = 400) -> float:
        """Read and settle the oldest unread evidence. Returns 0 when there may be more."""
        unread = await self._store.evidence.unread(limit=limit)
        if not unread:
            return 3600.0
        await self.read(unread)
        return 0.0 if len(unread) == limit else 0.001

    async def read(self, unread: Sequence[Evidence]) -> Settled:
        """Read *unread* with the providers' readers and settle it."""
        now = self._clock()
        seen_before = await self._store.evidence.earlier_deliveries(unread)
        items: list[Item] = []
        closed: list[tuple[int, Verdict, str | None]] = []
        for evidence in unread:
            assert evidence.id is not None
            if evidence.id in seen_before:
                closed.append((evidence.id, Verdict.DUPLICATE, None))
                continue
            try:
                news = await self._news_from(evidence, now)
            except CallbackUnreadable as exc:
                log.warning("callback_unreadable", provider=evidence.provider, job=evidence.job_id, reason=str(exc))
                closed.append((evidence.id, Verdict.UNREADABLE, str(exc)))
                continue
            if news is None or evidence.job_id is None:
                closed.append((evidence.id, Verdict.IGNORED, None))
                continue
            items.append(Item(evidence.job_id, news, evidence.id))
        if closed:
            await self._store.evidence.close(closed, now)
        settled = await self.settle(items, now) if items else Settled([])
        for evidence in unread:
            if evidence.source is Source.CALLBACK:
                self._metrics.settle_seconds.observe(max((self._clock() - evidence.received_at).total_seconds(), 0))
        return settled

    async def settle(self, items: Sequence[Item], now: datetime | None = None) -> Settled:
        """Settle *items* and wake whoever has work from it. Images that came as bytes are kept first."""
        now = now or self._clock()
        items = [await self._keep_data(item) for item in items]
        settled = await self._store.settle(items, now, self._timing_of)
        for item, change in zip(items, settled.changes, strict=True):
            if change is None:
                log.warning("evidence_without_job", job=item.job_id)
                continue
            for name in change.events:
                self._metrics.job_events.labels(change.job.provider, name).inc()
                if change.job.settled_by and change.job.finished_at and name in ("job.succeeded", "job.failed"):
                    self._metrics.settled.labels(change.job.provider, change.job.settled_by.value).inc()
                log.info(
                    name.replace(".", "_"),
                    job=change.job.id,
                    provider=change.job.provider,
                    state=change.job.state.value,
                    settled_by=change.job.settled_by and change.job.settled_by.value,
                    error=change.job.error and change.job.error.code,
                )
        if settled.events:
            self._wakes.told()
        if settled.deliveries:
            self._wakes.deliver()
        if settled.images:
            self._wakes.archive()
        self._wakes.look()
        self._wakes.submit()
        return settled

    # --- From evidence to news --------------------------------------------------------------------------------------

    async def _news_from(self, evidence: Evidence, now: datetime) -> News | None:
        provider = self._providers.get(evidence.provider)
        if provider is None:
            raise CallbackUnreadable("this provider is not set up here any more")
        if evidence.source is Source.CALLBACK:
            return self._from_callback(provider, evidence)
        response = httpx.Response(
            evidence.status or 0,
            headers=[(name, value) for name, value in evidence.headers if name not in _DECODED],
            content=evidence.body if evidence.body_name is None else await self._blobs.read_body(evidence.body_name),
        )
        if evidence.source is Source.RESPONSE:
            return await self._from_submit(provider, evidence, response, now)
        return self._from_look(provider, evidence, response, now)

    def _from_callback(self, provider: Provider, evidence: Evidence) -> News | None:
        callback = Callback(
            headers=tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in evidence.headers),
            body=evidence.body,
            received_at=evidence.received_at,
            peer=evidence.peer,
        )
        report = provider.read(callback)
        if report is None:
            return None
        believed = {
            "always": not report.state.terminal and evidence.trust is Trust.SIGNED_BODY,
            "never": True,
        }.get(self._confirm, evidence.trust is Trust.SIGNED_BODY)
        if not provider.pollable:
            believed = evidence.trust is Trust.SIGNED_BODY or self._confirm == "never"
        return News(report, Source.CALLBACK, believed=believed)

    async def _from_submit(
        self, provider: Provider, evidence: Evidence, response: httpx.Response, now: datetime
    ) -> News:
        try:
            report = provider.submitted(response)
        except ProviderError as exc:
            tries = await self._tries(evidence.job_id)
            return replace(outcome_of(exc, tries=tries, now=now), asked_at=evidence.asked_at)
        return News(report, Source.RESPONSE, asked_at=evidence.asked_at)

    def _from_look(self, provider: Provider, evidence: Evidence, response: httpx.Response, now: datetime) -> News:
        try:
            report = provider.polled(response)
        except ProviderError as exc:
            log.warning("look_failed", provider=provider.name, job=evidence.job_id, code=exc.code)
            retry_at = None
            if exc.retry_after_seconds is not None:
                retry_at = now + timedelta(seconds=exc.retry_after_seconds)
            return News(
                None,
                Source.POLL,
                retry_at=retry_at,
                trouble=f"look: {exc.code}: {exc}"[:500],
                forget_claim=isinstance(exc, TaskNotFound),
                asked_at=evidence.asked_at,
            )
        return News(report, Source.POLL, asked_at=evidence.asked_at)

    async def _tries(self, job_id: str | None) -> int:
        found = await self._store.job(job_id) if job_id else None
        return found[0].tries if found else 0

    async def _keep_data(self, item: Item) -> Item:
        """Write images that came as bytes to disk; from here on they are rows like all others, already kept."""
        report = item.news.report
        if report is None or not any(image.data for image in report.images):
            return item
        kept: list[Image] = []
        for n, image in enumerate(report.images):
            kept.append(image if image.data is None else await self._blobs.keep_data(item.job_id, n, image))
        return replace(item, news=replace(item.news, report=replace(report, images=tuple(kept))))


_DECODED = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Stored bodies are decoded already."""


def outcome_of(exc: ProviderError, *, tries: int, now: datetime) -> News:
    """
    What an unsuccessful submit call makes of its job.

    Refused: failed. Busy or not sent: queued again, later. Key or credit: queued again. Lost: unconfirmed.
    """
    trouble = f"submit: {exc.code}: {exc}"[:500]
    error = Failure(exc.code, str(exc), exc.permanent)
    if isinstance(exc, AnswerLost):
        return News(Report(None, State.UNCONFIRMED, error=error), Source.RESPONSE, trouble=trouble)
    if isinstance(exc, ProviderRefused | TaskNotFound):
        return News(Report(None, State.FAILED, error=error), Source.RESPONSE)
    if isinstance(exc, ProviderBusy) and exc.tries is not None and tries >= exc.tries:
        return News(Report(None, State.FAILED, error=error), Source.RESPONSE)
    if isinstance(exc, AccountRefused):
        return News(Report(None, State.QUEUED), Source.RESPONSE, retry_at=now, trouble=trouble)
    pause = exc.retry_after_seconds
    if pause is None:
        pause = min(2.0 ** min(max(tries - 1, 0), 6), 60.0)
    return News(Report(None, State.QUEUED), Source.RESPONSE, retry_at=now + timedelta(seconds=pause), trouble=trouble)
