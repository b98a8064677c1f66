"""
What a batch of updates comes to: planned beside the writer, carried out in one short transaction.

The plan is made from a reader's view of the jobs; `lifecycle.advance` says what each becomes. Carrying it out is SQL
alone, and stops (`Overtaken`) where a job is no longer in the version that was read: then all of it is planned again.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from receiver.domain.jobs import Job, KeptImage, Source, Verdict
from receiver.domain.lifecycle import Change, Update, advance
from receiver.domain.polling import Timing
from receiver.store.images import insert_images, new_image
from receiver.store.outbox import EventRows, NewEvent, event_rows, job_event, subscriptions_in, write_event_rows
from receiver.store.rows import changed_columns, chunks, execute_rows, jobs_in, us
from submitter.vocabulary import Failure, Report, State, Trust

TimingOf = Callable[[str], Timing]


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """An update for `settle`, with the evidence it was read from."""

    job_id: str
    update: Update
    evidence_id: int | None = None
    verdict: Verdict | None = None
    """What to write behind the evidence instead of what `advance` says."""
    trust: Trust | None = None
    """What the evidence is worth, if that is known only now."""


EvidenceVerdict = tuple[int, Verdict, str | None]
"""Evidence (by id) that is no update, with its verdict and a note."""


@dataclass(slots=True)
class Settled:
    """What a batch came to: `changes` in the order of the items (None: no such job)."""

    changes: list[Change | None]
    moved: list[bool] = field(default_factory=list)
    """Whether each item changed its job."""
    events: int = 0
    deliveries: int = 0
    images: int = 0


def plan(
    db: sqlite3.Connection,
    items: Sequence[JobUpdate],
    now: datetime,
    timing_of: TimingOf,
    closed: Sequence[EvidenceVerdict],
    *,
    base_url: str,
    first_delay_seconds: float,
) -> Plan:
    """What *items* come to, in their order, worked out from a reader's view."""
    settled = Settled([])
    read = jobs_in(db, {item.job_id for item in items})
    current = dict(read)
    holders = _holders(db, items, current)
    new_events: list[NewEvent] = []
    images: list[tuple[KeptImage, datetime]] = []
    written: tuple[str, str | None]
    verdicts: dict[tuple[str, str | None], list[int]] = {}
    released: set[str] = set()
    timings: dict[str, Timing] = {}
    for item in items:
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
            settled.moved.append(change.job != job)
            written = ((item.verdict or change.verdict).value, item.trust and item.trust.value)
            current[job.id] = change.job
            ends_work = item.update.source in (Source.POLL, Source.RESPONSE) and not item.update.again
            if ends_work or change.job.state is not job.state:
                released.add(job.id)
            kept = [new_image(change.job.id, n, image, now) for n, image in enumerate(change.images)]
            images += [(image, now) for image in kept]
            new_events += [job_event(name, change.job, kept, base_url=base_url) for name in change.events]
        if item.evidence_id is not None:
            verdicts.setdefault(written, []).append(item.evidence_id)
    rows = event_rows(new_events, subscriptions_in(db), now, first_delay_seconds)
    settled.events, settled.images, settled.deliveries = len(new_events), len(images), len(rows.deliveries)
    return Plan(settled, us(now), job_updates(read, current, released), verdicts, closed, images, rows)


class Overtaken(Exception):
    """What a plan was made from is not so any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch comes to, made without holding the writer, and carried out if nothing has moved meanwhile."""

    settled: Settled
    read_at: int
    updates: dict[tuple[str, ...], list[tuple[Any, ...]]]
    verdicts: dict[tuple[str, str | None], list[int]]
    closed: Sequence[EvidenceVerdict]
    images: list[tuple[KeptImage, datetime]]
    rows: EventRows

    def carry_out(self, db: sqlite3.Connection) -> None:
        if self.rows.events and subscriptions_in(db) != self.rows.subscriptions:
            raise Overtaken
        update_jobs(db, self.updates)
        for (verdict, trust), ids in self.verdicts.items():
            db.execute(
                "UPDATE evidence SET verdict = ?, trust = coalesce(?, trust), read_at = ?"
                f" WHERE id IN ({', '.join('?' * len(ids))})",
                (verdict, trust, self.read_at, *ids),
            )
        db.executemany(
            "UPDATE evidence SET verdict = ?, note = coalesce(?, note), read_at = ? WHERE id = ?",
            [(verdict.value, note, self.read_at, number) for number, verdict, note in self.closed],
        )
        insert_images(db, self.images)
        write_event_rows(db, self.rows)


def _one(job: Job, update: Update, now: datetime, timing: Timing, holders: dict[tuple[str, str], str]) -> Change:
    change = advance(job, update, now, timing, jitter=random.random())
    learned, claimed = change.job.remote_id, change.job.claimed_id
    if learned is not None and learned != job.remote_id:
        held = holders.setdefault((job.provider, learned), job.id) != job.id
        return _taken(job, update, now, timing) if held else change
    if claimed is not None and holders.get((job.provider, claimed), job.id) != job.id:
        return Change(job, Verdict.IGNORED)
    return change


def _taken(job: Job, update: Update, now: datetime, timing: Timing) -> Change:
    """The update names a task that another job holds: it is not taken over, but the call that brought it was made."""
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
    """What changed, by the columns that did; the leases on *released* are let go of."""
    updates: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for job_id, job in current.items():
        before = read[job_id]
        changed = changed_columns(before, job)
        if job_id in released:
            changed |= {"lease_owner": None, "lease_until": None}
        if changed:
            updates.setdefault(tuple(changed), []).append((job_id, before.version, *changed.values()))
    return updates


def update_jobs(db: sqlite3.Connection, updates: dict[tuple[str, ...], list[tuple[Any, ...]]]) -> None:
    """Write them where the version is still the one that was read; a row that is not was somebody else's meanwhile."""
    for names, rows in updates.items():
        marks = ", ".join("?" * (len(names) + 2))
        assignments = ", ".join(f"{name} = new.{name}" for name in names)
        statement = (
            f"WITH new (job_id, read_version, {', '.join(names)}) AS (VALUES ({marks}))"
            f" UPDATE jobs SET {assignments}, version = version + 1 FROM new"
            " WHERE jobs.id = new.job_id AND jobs.version = new.read_version"
        )
        if execute_rows(db, statement, rows) != len(rows):
            raise Overtaken


def _holders(db: sqlite3.Connection, items: Sequence[JobUpdate], jobs: dict[str, Job]) -> dict[tuple[str, str], str]:
    """Which job holds each task id that a job without one is about to learn."""
    learned = {
        (job.provider, item.update.report.remote_id)
        for item in items
        if item.update.report is not None
        and item.update.report.remote_id is not None
        and (job := jobs.get(item.job_id)) is not None
        and job.remote_id is None
    }
    holders: dict[tuple[str, str], str] = {}
    for chunk in chunks(sorted(learned)):
        by_provider: dict[str, list[str]] = {}
        for provider, remote_id in chunk:
            by_provider.setdefault(provider, []).append(remote_id)
        for provider, remote_ids in by_provider.items():
            marks = ", ".join("?" for _ in remote_ids)
            rows = db.execute(
                f"SELECT remote_id, id FROM jobs WHERE provider = ? AND remote_id IN ({marks})",
                (provider, *remote_ids),
            )
            holders.update({(provider, row[0]): row[1] for row in rows})
    return holders
