"""
The single way in: callbacks, answers to polls and answers to submit calls are recorded, read and settled here.

Theory. `record` returns when the evidence is on disk; only then may the sender be answered 200. Reading comes
afterwards: the reader takes all evidence without `read_at`, oldest first, turns each piece into an update, and passes
the batch to `store.settle`, which writes the new states and the verdicts in one transaction. After a crash before the
recording, the sender has no answer and tries again, or we poll. After a crash between recording and settling, the
evidence is still unread, and the next start reads it. A crash after settling loses nothing.

Answers come first: while many callbacks wait for the disk, the reader takes only a share of the time, a larger one once
it is seconds behind. Recorded evidence can wait; a provider that waits for its 200 may give up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import structlog

from receiver.domain.events import JOB_EVENTS
from receiver.domain.evidence import Evidence, headers_to_json
from receiver.domain.jobs import Source, Verdict
from receiver.domain.lifecycle import Change, Update
from receiver.domain.polling import Timing
from receiver.runtime.group_commit import GroupCommit
from receiver.runtime.logs import InfoLines
from receiver.runtime.loops import Loop
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.errors import StoreError
from receiver.store.jobs import JobStore
from receiver.store.settling import EvidenceVerdict, JobUpdate, Settled
from receiver.upstream.reader import Reading, holds_data, keep_data
from receiver.upstream.slots import ProviderSlot
from submitter.vocabulary import Report, State, Trust

log = structlog.get_logger("receiver.intake")

_MAX_BODY_IN_ROW = 256 * 1024
_BATCH = 100
"""Evidence settled in one transaction, which a callback may have to wait for."""
_PATIENCE_SECONDS = 2.0
"""The shortest time that a provider is documented to wait for its 200 is 5 s; a 503 in time is better than silence."""
_CROWD = 24
"""More callbacks than this waiting for the disk are a rush; fewer are answered in time without slowing the reader."""
_GATHER_SECONDS = 0.005
"""The pause between two batches that are not full: more may arrive, and each batch has its cost."""
_LONGEST_PAUSE_SECONDS = 0.5
_BEHIND = timedelta(seconds=5)
_EVENT_LINES = {
    name: InfoLines(log, name.replace(".", "_"), "job", "provider", "state", "settled_by", "error")
    for name in JOB_EVENTS
}
_SOON = timedelta(seconds=1)
"""No loop sleeps longer than this; only work that is due earlier is worth waking it for."""


class Intake:
    """Records evidence and settles it. One reader per process; any number of recorders."""

    def __init__(
        self,
        store: JobStore,
        slots: Mapping[str, ProviderSlot],
        blobs: Blobs,
        metrics: Metrics,
        *,
        confirm: str,
        wakes: Wakes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._metrics = metrics
        self._slots = slots
        self.wakes = wakes
        self._clock = clock
        providers = {name: slot.provider for name, slot in slots.items()}
        self._reading = Reading(store, providers, blobs, confirm=confirm)
        self._recording: GroupCommit[Evidence] = GroupCommit(
            self._commit,
            batch=512,
            patience_seconds=_PATIENCE_SECONDS,
            weigh=lambda evidence: len(evidence.body),
        )
        self.reading = asyncio.Lock()
        self._place = ""
        """The job that the last batch ended at; the next batch continues after it."""
        self.loop = Loop("reader", self.read_some, woken=wakes.reader)

    async def record(self, evidence: Evidence) -> None:
        """Return once *evidence* is durable. Raises `Overloaded` when too much waits for the disk."""
        await self._recording.add(evidence)

    def hand_in(self, evidence: Evidence, done: Callable[[BaseException | None], None]) -> None:
        """Record *evidence* as `record` does; *done*, which must not raise, is called with its error or None."""
        self._recording.put(evidence, done)

    async def _commit(self, batch: Sequence[Evidence]) -> None:
        await self._store.evidence.record(batch)
        if any(evidence.read_at is None for evidence in batch):
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
        """Record the answer to one of our own calls. A large body (an image) is kept as a file."""
        body, name = response.content, None
        if len(body) > _MAX_BODY_IN_ROW:
            name, body = await self._blobs.put_body(body), b""
        await self.record(
            Evidence(
                source=source,
                provider=provider,
                job_id=job_id,
                received_at=self._clock(),
                headers_json=headers_to_json([(name.lower(), value) for name, value in response.headers.raw]),
                body=body,
                body_name=name,
                trust=Trust.OWN_CALL,
                asked_at=asked_at,
                status=response.status_code,
                note=note,
            )
        )

    async def read_some(self, *, limit: int = _BATCH) -> float:
        """Read and settle unread evidence, of all jobs in turn. Returns 0 when there is more."""
        async with self.reading:
            began = time.monotonic()
            unread = await self._store.evidence.unread(limit=limit, after=self._place)
            self._place = unread.place
            if not unread.evidence:
                return 3600.0
            await self.read(unread.evidence)
        pause = 0.0 if unread.more else _GATHER_SECONDS
        if self._recording.unanswered > _CROWD:
            oldest = min(evidence.received_at for evidence in unread.evidence)
            behind = self._clock() - oldest > _BEHIND
            pause = max(pause, min((1 if behind else 9) * (time.monotonic() - began), _LONGEST_PAUSE_SECONDS))
        await asyncio.sleep(pause)
        return 0.0 if unread.more else 0.001

    async def hint(self, job_id: str) -> None:
        """Make a poll of *job_id* due, for an unsigned callback that is not kept."""
        report = Report(None, State.SUCCEEDED)
        update = Update(report, Source.CALLBACK, believed=False, received_at=self._clock())
        await self.settle([JobUpdate(job_id, update)])

    async def read(self, unread: Sequence[Evidence]) -> Settled:
        """Read *unread* with the providers' readers and settle it."""
        now = self._clock()
        repeats = await self._store.evidence.repeats(unread)
        items: list[JobUpdate] = []
        closed: list[EvidenceVerdict] = []
        for evidence in unread:
            if evidence.id in repeats:
                closed.append((evidence.id, Verdict.DUPLICATE, None))
                continue
            read = await self._reading.read(evidence, now)
            if read.update is None or evidence.job_id is None:
                closed.append((evidence.id, read.verdict or Verdict.IGNORED, read.note))
            else:
                items.append(JobUpdate(evidence.job_id, read.update, evidence.id, read.verdict))
        settled = await self._settle_all(items, closed, now)
        for evidence in unread:
            if evidence.source is Source.CALLBACK:
                self._metrics.settle_seconds.observe(max((now - evidence.received_at).total_seconds(), 0))
        return settled

    async def settle(
        self, items: Sequence[JobUpdate], now: datetime | None = None, closed: Sequence[EvidenceVerdict] = ()
    ) -> Settled:
        """Settle *items* and wake the loops that have work from it. Images that arrived as bytes are kept first."""
        now = now or self._clock()
        items = [
            replace(item, update=await keep_data(self._blobs, item.job_id, item.update))
            if holds_data(item.update)
            else item
            for item in items
        ]
        settled = await self._store.settle(items, now, self._timing, closed)
        for item, change in zip(items, settled.changes, strict=True):
            if change is None and item.evidence_id in settled.overtaken:
                log.debug("evidence_settled_elsewhere", job=item.job_id)
            elif change is None:
                log.warning("evidence_without_job", job=item.job_id)
        self._log_events([change for change in settled.changes if change is not None and change.events])
        if settled.events:
            self.wakes.stream.set()
        if settled.deliveries:
            self.wakes.notifier.set()
        if settled.images:
            self.wakes.archive.set()
        jobs = [change.job for change in settled.changes if change is not None]
        if any(job.next_poll_at is not None and job.next_poll_at <= now + _SOON for job in jobs):
            self.wakes.poller.set()
        if any(job.state is State.QUEUED for job in jobs):
            self.wakes.submissions.set()
        return settled

    async def _settle_all(
        self, items: Sequence[JobUpdate], closed: Sequence[EvidenceVerdict], now: datetime
    ) -> Settled:
        """
        Settle a batch; if one piece of it fails in our own code, settle the others without it.

        A database error is not the fault of any piece: it is raised, and everything stays unread.
        """
        try:
            return await self.settle(items, now, closed)
        except (StoreError, OSError):
            raise
        except Exception as exc:
            if not items:
                raise
            job_id = items[0].job_id if len(items) == 1 else None
            log.error("settling_failed", pieces=len(items), job=job_id, error=type(exc).__name__, detail=str(exc)[:300])
            if len(items) == 1:
                note = f"settling it failed: {type(exc).__name__}"
                number = items[0].evidence_id
                broken = [] if number is None else [(number, Verdict.UNREADABLE, note)]
                return await self.settle([], now, [*closed, *broken])
        for item in items:
            await self._settle_all([item], (), now)
        return await self.settle([], now, closed)

    def _log_events(self, changes: Sequence[Change]) -> None:
        emitted: Counter[tuple[str, str]] = Counter()
        settled: Counter[tuple[str, str]] = Counter()
        lines: defaultdict[str, list[tuple[str | None, ...]]] = defaultdict(list)
        for change in changes:
            job = change.job
            by = None if job.settled_by is None else job.settled_by.value
            code = None if job.error is None else job.error.code
            for name in change.events:
                emitted[job.provider, name] += 1
                if by and name in ("job.succeeded", "job.failed"):
                    settled[job.provider, by] += 1
                lines[name].append((job.id, job.provider, job.state.value, by, code))
        for labels, count in emitted.items():
            self._metrics.job_events.labels(*labels).inc(count)
        for labels, count in settled.items():
            self._metrics.settled.labels(*labels).inc(count)
        for name, rows in lines.items():
            _EVENT_LINES[name].write(rows)

    def _timing(self, provider: str) -> Timing:
        return self._slots[provider].timing
