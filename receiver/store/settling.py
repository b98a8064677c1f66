"""
Settling a batch of updates: planned without holding the writer, carried out in one short transaction.

The plan is made from a reader's view of the jobs; `lifecycle.advance` decides what each becomes. Carrying it out is SQL
alone, and stops (`Overtaken`) if a job is no longer in the version that was read: then the batch is planned again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from receiver.domain.events import NewEvent, job_event
from receiver.domain.jobs import Job, KeptImage, Source, Verdict
from receiver.domain.lifecycle import Change, Update, advance
from receiver.domain.polling import Timing
from receiver.store.codecs import us
from receiver.store.errors import Overtaken
from receiver.store.images import insert_images, new_image, relink_images
from receiver.store.outbox import EventRows, event_rows, write_event_rows
from receiver.store.rows import JOBS, jobs_by_id
from receiver.store.statements import Fetch, Hold, LockRows, Run, UpdateMany, Work
from receiver.store.subscriptions import subscribers, subscriptions_revision
from submitter.vocabulary import Failure, Report, State, Trust

TimingOf = Callable[[str], Timing]


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """An update for `settle`, with the evidence it was read from."""

    job_id: str
    update: Update
    evidence_id: int | None = None
    verdict: Verdict | None = None
    """The verdict to write on the evidence instead of the one from `advance`."""
    trust: Trust | None = None
    """The trust in the evidence, if that is known only now."""


EvidenceVerdict = tuple[int, Verdict, str | None]
"""Evidence (by id) that is not an update, with its verdict and a note."""


@dataclass(slots=True)
class Settled:
    """The result of a batch: `changes` in the order of the items (None: no such job, or `overtaken`)."""

    changes: list[Change | None]
    moved: list[bool] = field(default_factory=list)
    """For each item, whether it changed its job."""
    events: int = 0
    deliveries: int = 0
    """Those that wait to be claimed."""
    images: int = 0
    overtaken: frozenset[int] = frozenset()
    """Evidence that another process settled meanwhile; it had no effect here."""


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Updates to settle together, in their order, and verdicts on evidence that is not an update.

    The evidence is unread, or all of it was read before and is read *again*.
    """

    items: Sequence[JobUpdate]
    closed: Sequence[EvidenceVerdict]
    again: bool = False

    def settled_by_others(self) -> Work[frozenset[int]]:
        """Return the ids of its evidence that another reader has settled meanwhile."""
        ids = [item.evidence_id for item in self.items if item.evidence_id is not None]
        ids += [number for number, _, _ in self.closed]
        rows = yield Fetch("SELECT id FROM evidence WHERE id IN (??) AND read_at IS NULL", (ids,))
        return frozenset(ids) - {row[0] for row in rows}


def plan(
    batch: Batch,
    now: datetime,
    timing_of: TimingOf,
    *,
    base_url: str,
    first_delay_seconds: float,
    overtaken: bool,
) -> Work[Plan]:
    """Plan *batch* from a reader's view; if it was *overtaken*, leave out the evidence that others settled."""
    settled = Settled([])
    if overtaken and not batch.again:
        settled.overtaken = yield from batch.settled_by_others()
    items = batch.items
    closed = [verdict for verdict in batch.closed if verdict[0] not in settled.overtaken]
    read = yield from jobs_by_id({item.job_id for item in items})
    current = dict(read)
    holders = yield from _holders(items, current)
    new_events: list[NewEvent] = []
    images: list[tuple[KeptImage, datetime]] = []
    relinked: list[tuple[KeptImage, datetime]] = []
    written: tuple[str, str | None]
    verdicts: dict[tuple[str, str | None], list[int]] = {}
    released: set[str] = set()
    timings: dict[str, Timing] = {}
    for item in items:
        if item.evidence_id in settled.overtaken:
            settled.changes.append(None)
            settled.moved.append(False)
            continue
        job = current.get(item.job_id)
        if job is None:
            settled.changes.append(None)
            settled.moved.append(False)
            written = (Verdict.IGNORED.value, None)
        else:
            if job.provider not in timings:
                timings[job.provider] = timing_of(job.provider)
            change = _one(job, item.update, now, timings[job.provider], holders)
            settled.changes.append(change)
            settled.moved.append(change.job is not job and change.job != job)
            written = ((item.verdict or change.verdict).value, item.trust and item.trust.value)
            current[job.id] = change.job
            ends_work = item.update.source in (Source.POLL, Source.RESPONSE) and not item.update.again
            if ends_work or change.job.state is not job.state:
                released.add(job.id)
            kept = [new_image(change.job.id, n, image, now) for n, image in enumerate(change.images)]
            images += [(image, now) for image in kept]
            relinked += [(new_image(change.job.id, n, image, now), now) for n, image in enumerate(change.relinked)]
            new_events += [job_event(name, change.job, kept, base_url=base_url) for name in change.events]
        if item.evidence_id is not None:
            verdicts.setdefault(written, []).append(item.evidence_id)
    rows = event_rows(new_events, (yield from subscribers()), now, first_delay_seconds)
    settled.events, settled.deliveries = len(new_events), len(rows.deliveries) + len(rows.fan_outs)
    settled.images = len(images) + len(relinked)
    notes: dict[tuple[str, str | None], list[int]] = {}
    for number, verdict, note in closed:
        notes.setdefault((verdict.value, note), []).append(number)
    updates = job_updates(read, current, released)
    return Plan(settled, us(now), batch.again, updates, verdicts, notes, images, relinked, rows)


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes of a batch, planned without holding the writer, carried out if nothing has changed meanwhile."""

    settled: Settled
    read_at: int
    again: bool
    updates: dict[tuple[str, ...], list[tuple[Any, ...]]]
    verdicts: dict[tuple[str, str | None], list[int]]
    notes: dict[tuple[str, str | None], list[int]]
    images: list[tuple[KeptImage, datetime]]
    relinked: list[tuple[KeptImage, datetime]]
    rows: EventRows

    def carry_out(self) -> Work[None]:
        """Write it all. Raises `Overtaken` if a job, an endpoint or a piece of evidence has changed meanwhile."""
        if self.rows.events:
            yield Hold("subscriptions", shared=True)
            if (yield from subscriptions_revision()) != self.rows.revision:
                raise Overtaken
        yield LockRows("jobs", [row[0] for rows in self.updates.values() for row in rows])
        yield from update_jobs(self.updates)
        unread = "" if self.again else " AND read_at IS NULL"
        for (verdict, trust), ids in self.verdicts.items():
            if (yield Run(_VERDICT + unread, (verdict, trust, self.read_at, ids))) != len(ids):
                raise Overtaken
        for (verdict, note), ids in self.notes.items():
            if (yield Run(_NOTE + unread, (verdict, note, self.read_at, ids))) != len(ids):
                raise Overtaken
        yield from insert_images(self.images)
        yield from relink_images(self.relinked)
        yield from write_event_rows(self.rows)


_VERDICT = "UPDATE evidence SET verdict = ?, trust = coalesce(?, trust), read_at = ? WHERE id IN (??)"
_NOTE = "UPDATE evidence SET verdict = ?, note = coalesce(?, note), read_at = ? WHERE id IN (??)"


def _one(job: Job, update: Update, now: datetime, timing: Timing, holders: dict[tuple[str, str], str]) -> Change:
    change = advance(job, update, now, timing, jitter=random.random())
    learned, claimed = change.job.remote_id, change.job.claimed_id
    if learned is not None and learned != job.remote_id:
        held = holders.setdefault((job.provider, learned), job.id) != job.id
        return _taken_by_another(job, update, now, timing) if held else change
    if claimed is not None and holders.get((job.provider, claimed), job.id) != job.id:
        return Change(job, Verdict.IGNORED)
    return change


def _taken_by_another(job: Job, update: Update, now: datetime, timing: Timing) -> Change:
    """Ignore an update that names a task that another job holds, but count the call that brought it."""
    if update.source is Source.POLL:
        update = replace(update, report=None, forget_claim=True)
    elif update.source is Source.RESPONSE:
        error = Failure("task_id_taken", "the provider answered with the task id of another job", permanent=False)
        update = replace(
            update, report=Report(None, State.UNCONFIRMED, error=error), last_error=f"submit: {error.code}"
        )
    else:
        return Change(job, Verdict.IGNORED)
    return replace(advance(job, update, now, timing), verdict=Verdict.IGNORED)


def job_updates(
    read: dict[str, Job], current: dict[str, Job], released: set[str]
) -> dict[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the changed values, grouped by the columns that changed; leases on *released* are removed."""
    updates: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for job_id, job in current.items():
        before = read[job_id]
        changed = JOBS.changes(before, job)
        if job_id in released:
            changed |= {"lease_owner": None, "lease_until": None}
        if changed:
            updates.setdefault(tuple(changed), []).append((job_id, before.version, *changed.values()))
    return updates


def update_jobs(updates: dict[tuple[str, ...], list[tuple[Any, ...]]]) -> Work[None]:
    """Write *updates* where the version is still the one that was read. Raises `Overtaken` otherwise."""
    for names, rows in updates.items():
        if (yield UpdateMany("jobs", names, rows)) != len(rows):
            raise Overtaken


def _holders(items: Sequence[JobUpdate], jobs: dict[str, Job]) -> Work[dict[tuple[str, str], str]]:
    """Return the holder of each task id that a job without one is about to learn."""
    learned: dict[str, set[str]] = {}
    for item in items:
        report, job = item.update.report, jobs.get(item.job_id)
        if report is not None and report.remote_id is not None and job is not None and job.remote_id is None:
            learned.setdefault(job.provider, set()).add(report.remote_id)
    holders: dict[tuple[str, str], str] = {}
    for provider, remote_ids in learned.items():
        rows = yield Fetch(_HOLDERS, (provider, sorted(remote_ids)))
        holders.update({(provider, row[0]): row[1] for row in rows})
    return holders


_HOLDERS = "SELECT remote_id, id FROM jobs WHERE provider = ? AND remote_id IN (??)"
