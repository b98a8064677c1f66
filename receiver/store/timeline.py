"""
A job's timeline: what was received, what it led to, which events were delivered, and what happens next and when.

Everything is read from the tables; nothing is guessed. Lines hold no URL with a token, no payload and no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from receiver.domain.entity import iso
from receiver.domain.evidence import Evidence
from receiver.domain.jobs import DEAD_LINK, Job, KeptImage, Source, Verdict
from receiver.domain.pauses import Pause
from receiver.domain.redaction import redact
from receiver.store.codecs import from_us, moment
from receiver.store.database import Database
from receiver.store.evidence import EvidenceLog
from receiver.store.jobs import JobStore
from receiver.store.statements import Fetch, Work
from submitter.vocabulary import State, Trust

_MOST_EVIDENCE = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """Something that happened, or will happen. `what` is one word; `at` is None if the time is unknown."""

    at: datetime | None
    what: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"at": iso(self.at), "what": self.what, "text": self.text, **self.facts}


@dataclass(frozen=True, slots=True)
class Timeline:
    """The steps so far, oldest first, and the next ones."""

    job: Job
    images: Sequence[KeptImage]
    past: Sequence[Line]
    next: Sequence[Line]
    pause: Pause | None = None
    """The pause of its provider."""

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job.to_json(self.images, pause=self.pause),
            "timeline": [line.to_json() for line in self.past],
            "next": [line.to_json() for line in self.next],
        }


async def explain(database: Database, job_id: str, now: datetime) -> Timeline | None:
    """Return the timeline of a job, or None if there is no such job."""
    found = await JobStore(database).job(job_id)
    if found is None:
        return None
    job, images = found
    past = _own(job)
    coming: list[Line] = []
    after = 0
    while page := await EvidenceLog(database).of(job_id, after=after, limit=100):
        past += [_evidence(piece) for piece in page]
        after = page[-1].id or 0
        if len(page) < 100 or len(past) > _MOST_EVIDENCE:
            break
    found_rows = await database.read(lambda: _rows(job))
    for row in found_rows.events:
        past.append(
            Line(
                moment(row[3]),
                "event",
                f"event {row[0]} emitted",
                {"type": row[0], "event": row[1], "position": row[2]},
            )
        )
    for row in found_rows.images:
        (coming if row[1] == "wanted" else past).append(_image(row))
    past += [_attempt(row) for row in found_rows.attempts]
    for row in found_rows.deliveries:
        (coming if row[4] == "pending" else past).append(_delivery(row))
    past.sort(key=lambda line: line.at or now)
    return Timeline(job, images, past, [*_next(job, found_rows.pause, now), *coming], found_rows.pause)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows about one job, other than itself and its evidence."""

    events: list[Any]
    images: list[Any]
    attempts: list[Any]
    deliveries: list[Any]
    pause: Pause | None


def _rows(job: Job) -> Work[_Rows]:
    events = yield Fetch(_EVENTS, (job.id,))
    images = yield Fetch(_IMAGES, (job.id,))
    attempts = yield Fetch(_ATTEMPTS, (job.id,))
    deliveries = yield Fetch(_DELIVERIES, (job.id,))
    paused = yield Fetch(_PAUSE, (job.provider,))
    pauses = [
        Pause(reason or "", moment(since), moment(probe_at), probes) for reason, since, probe_at, probes in paused
    ]
    return _Rows(events, images, attempts, deliveries, next(iter(pauses), None))


_EVENTS = "SELECT type, id, position, created_at FROM events WHERE job_id = ? ORDER BY position"
_IMAGES = "SELECT n, state, tries, last_error, kept_at, next_at, bytes FROM images WHERE job_id = ? ORDER BY n"
_ATTEMPTS = (
    "SELECT d.id, d.event_type, coalesce(d.endpoint_id, 'notify URL'), coalesce(e.url, d.url), a.started_at,"
    " a.seconds, a.status, a.error FROM deliveries d JOIN attempts a ON a.delivery_id = d.id"
    " LEFT JOIN endpoints e ON e.id = d.endpoint_id WHERE d.job_id = ? ORDER BY a.id"
)
_DELIVERIES = (
    "SELECT d.id, d.event_type, coalesce(d.endpoint_id, 'notify URL'), coalesce(e.url, d.url), d.state,"
    " d.tries, d.next_at, d.finished_at, d.last_error"
    " FROM deliveries d LEFT JOIN endpoints e ON e.id = d.endpoint_id WHERE d.job_id = ?"
    " AND d.state IN ('pending', 'given_up', 'dropped')"
)
_PAUSE = "SELECT paused_reason, paused_at, probe_at, probes FROM providers WHERE name = ? AND paused_at IS NOT NULL"


def _own(job: Job) -> list[Line]:
    lines = [Line(job.created_at, "queued", f"recorded, to be sent to {job.provider}")]
    if job.resubmit_of:
        lines[0] = Line(job.created_at, "queued", f"recorded again, after {job.resubmit_of}")
    if job.sent_at:
        awaits = "with a callback URL" if job.awaits_callback else "without a callback URL"
        lines.append(Line(job.sent_at, "submit", f"request sent, {awaits} (try {job.tries})", {"try": job.tries}))
    if job.overdue_at:
        lines.append(Line(job.overdue_at, "overdue", "noticed as overdue"))
    if job.late_at:
        lines.append(Line(job.late_at, "late", "a result came after the job had ended"))
    if job.finished_at:
        by = f", settled by {_CHANNELS[job.settled_by]}" if job.settled_by else ""
        why = f": {job.error.message}" if job.error else ""
        lines.append(Line(job.finished_at, job.state.value, f"ended as {job.state}{by}{redact(why)}"))
    return lines


_CHANNELS = {Source.CALLBACK: "a callback", Source.POLL: "a poll", Source.RESPONSE: "the answer to the submit call"}
_VERDICTS = {
    Verdict.RECEIVED: "not read yet",
    Verdict.BELIEVED: "believed",
    Verdict.HINT: "unsigned callback: confirming with the provider",
    Verdict.DUPLICATE: "known already",
    Verdict.LATE: "too late: the job had ended",
    Verdict.IGNORED: "ignored: it is about another task, or about none",
    Verdict.UNREADABLE: "unreadable",
    Verdict.REFUSED: "refused",
}


def _evidence(piece: Evidence) -> Line:
    verdict = _VERDICTS[piece.verdict]
    note = redact(piece.note) if piece.note else None
    facts: dict[str, Any] = {
        "evidence": piece.id,
        "verdict": piece.verdict.value,
        "trust": None if piece.trust is None else piece.trust.value,
        "status": piece.status,
        "peer": piece.peer,
        "note": note,
        "bytes": len(piece.body) if piece.body_name is None else None,
        "read_at": iso(piece.read_at),
    }
    if piece.source is Source.CALLBACK:
        if piece.verdict is Verdict.BELIEVED and piece.trust is Trust.SIGNED_BODY:
            verdict = "signature verified"
        peer = f" from {piece.peer}" if piece.peer else ""
        why = f" ({note})" if note else ""
        return Line(piece.received_at, "callback", f"callback{peer}: {verdict}{why}", facts)
    answered = "answered" if piece.status is None else f"answered {piece.status}"
    if piece.source is Source.POLL:
        why = f", {note}" if note else ""
        return Line(piece.received_at, "poll", f"poll{why}: {answered}, {verdict}", facts)
    return Line(piece.received_at, "answer", f"submit call {answered}: {verdict}", facts)


def _image(row: Sequence[Any]) -> Line:
    n, state, tries, last_error, kept_at, next_at, size = row
    facts = {"n": n, "state": state, "tries": tries, "last_error": last_error}
    if state == "kept":
        return Line(from_us(kept_at), "image", f"image {n} kept, {size} bytes", facts)
    if state == "lost":
        return Line(from_us(kept_at), "image", f"image {n} lost: {last_error or DEAD_LINK}", facts)
    if state == "removed":
        return Line(from_us(kept_at), "image", f"image {n} removed after RECEIVER_KEEP_IMAGES_DAYS", facts)
    again = f" again, try {tries + 1}" + (f" ({last_error})" if last_error else "") if tries else ""
    return Line(from_us(next_at), "image", f"image {n} is fetched{again}", facts)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _attempt(row: Sequence[Any]) -> Line:
    delivery, kind, to, url, started_at, seconds, status, error = row
    came = error or f"answered {status}"
    text = f"{kind} to {to} at {_host(url)}: {came}, after {_seconds(seconds)}"
    return Line(moment(started_at), "delivery", text, {"delivery": delivery, "status": status, "error": error})


def _delivery(row: Sequence[Any]) -> Line:
    delivery, kind, to, url, state, tries, next_at, finished_at, error = row
    facts = {"delivery": delivery, "state": state, "tries": tries}
    if state == "pending":
        again = f", try {tries + 1}" if tries else ""
        return Line(from_us(next_at), "delivery", f"{kind} is delivered to {to} at {_host(url)}{again}", facts)
    why = f": {error}" if error else ""
    return Line(from_us(finished_at), "delivery", f"{kind} to {to} was {state.replace('_', ' ')}{why}", facts)


def _next(job: Job, pause: Pause | None, now: datetime) -> list[Line]:
    """Return the lines about what the job itself waits for."""
    match job.state:
        case State.QUEUED if pause is not None and pause.by_operator:
            return [Line(None, "resume", f"{job.provider} is paused ({pause.reason}); it is sent once that is resumed")]
        case State.QUEUED if pause is not None:
            return [Line(pause.probe_at, "probe", f"{job.provider} is paused ({pause.reason}); one job probes it")]
        case State.QUEUED:
            last_error = f" again ({redact(job.last_error)})" if job.last_error else ""
            return [Line(max(job.retry_at or now, now), "submit", f"sent{last_error} when its turn comes")]
        case State.SENDING:
            return [Line(None, "answer", "the submit call is under way; without an answer the job becomes unconfirmed")]
        case State.RUNNING | State.UNCONFIRMED:
            return _waiting(job)
        case _ if job.next_poll_at is not None:
            return [Line(job.next_poll_at, "poll", "a last poll, for a late result")]
        case _:
            return []


def _waiting(job: Job) -> list[Line]:
    lines = []
    if job.awaits_callback:
        lines.append(Line(None, "callback", "a callback, at any time"))
    if job.next_poll_at is not None:
        why = "to confirm what a callback said" if job.hinted_at else "if nothing arrives before"
        lines.append(Line(job.next_poll_at, "poll", f"poll {job.polls + 1}, {why}"))
    if job.state is State.UNCONFIRMED:
        lines.append(Line(None, "operator", "may be running and billed: wait for a callback, resubmit, or abandon it"))
    elif job.deadline_at is not None:
        lines.append(Line(job.deadline_at, "expired", "one last poll, then the job expires"))
    return lines


def _host(url: str | None) -> str:
    return (urlsplit(url).hostname or "?") if url else "?"
