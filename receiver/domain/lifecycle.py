"""
How a job moves. Pure: no clock, no database, no network.

Whatever happens to a job is an update of it: a callback, the answer to a poll, the answer to the submit
call, or our own doing. `advance` takes the job as read, one update and the moment, and says what the job
becomes, which events that is worth, and what to write behind the evidence. Two tables decide:

    state of the job   what a believed update makes of it
                       running   succeeded, failed   queued   unconfirmed   expired   canceled
    queued             adopt     finish              defer    -             -         end
    sending            start     finish              again    doubt         -         end
    running            note      finish              -        -             end       end
    unconfirmed        start     finish              again    -             -         end
    succeeded, failed  -         -                   -        -             -         -
    expired, canceled  note      late                -        -             -         -

`succeeded` and `failed` are the provider's word: the first believed one wins and nothing moves the job again. `expired`
and `canceled` are ours: a result that comes later is kept and told (`job.late_result`), the state stays.

An update that is not trusted enough (an unsigned callback that claims an end) is a hint: it moves nothing, it makes the
next poll due now, and that poll, made with our own key, brings the fact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from receiver.domain.jobs import Job, Source, Verdict
from submitter.vocabulary import Failure, Image, Report, State


@dataclass(frozen=True, slots=True)
class Update:
    """
    One thing to know about a job.

    `report.state` may also be one of ours (`queued`: send again at `retry_at`; `unconfirmed`, `expired`, `canceled`).
    `report` is None for a poll that brought no answer. `source` is None for our own doing.
    """

    report: Report | None
    source: Source | None
    believed: bool = True
    retry_at: datetime | None = None
    last_error: str | None = None
    forget_claim: bool = False
    """The claimed task id proved to be nobody's."""
    asked_at: datetime | None = None
    """When the poll that brought this left: a hint that came after it is still open."""
    received_at: datetime | None = None
    """When the callback that brought this came; it may be read a good while later."""
    again: bool = False
    """Old evidence, read again: no poll was made, and no silence broken."""


@dataclass(frozen=True, slots=True)
class Timing:
    """
    When a provider's jobs are polled, in seconds. `silence` is how long a callback may take, `lifetime` how long a
    job may run before it expires; half way there a running job is overdue.
    """

    first: float
    interval: float
    silence: float
    growth: float = 1.5
    cap: float = 60.0
    lifetime: float = 3600.0
    pollable: bool = True

    def after(self, polls: int, *, jitter: float = 0.0) -> timedelta:
        """The pause before the next poll when *polls* were made. *jitter* in [0, 1] stretches it by up to a tenth."""
        pause = min(self.interval * self.growth ** min(polls, 40), max(self.cap, self.interval))
        return timedelta(seconds=pause * (1 + 0.1 * jitter))


@dataclass(frozen=True, slots=True)
class Change:
    """What an update makes of a job. `job` is the same object where nothing changes."""

    job: Job
    verdict: Verdict
    events: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()


def advance(job: Job, update: Update, now: datetime, timing: Timing, *, jitter: float = 0.0) -> Change:
    """What *update* makes of *job*. Never raises; the version is counted up by the store, not here."""
    report = update.report
    if report is not None and update.again and not report.state.terminal:
        report = replace(report, remote_status=job.remote_status or report.remote_status)
    if report is not None and _names_another_task(job, report, update):
        ignored = Change(job, Verdict.IGNORED)
        # The poll was made all the same, and the next one must not be due at once.
        if update.source is not Source.POLL or update.again:
            return ignored
        return _polled(ignored, replace(update, report=None), now, timing, jitter)
    if report is not None and _is_of_an_earlier_try(job, report, update):
        return Change(job, Verdict.LATE)
    if report is not None and not update.believed:
        return _hint(job, report, update, now, timing)
    if report is None:
        change = Change(replace(job, last_error=update.last_error), Verdict.BELIEVED)
    else:
        row = _ROWS[job.state].get(report.state, _ignore)
        change = row(job, report, update, now, timing)
    if update.source is Source.POLL and not update.again:
        change = _polled(change, update, now, timing, jitter)
    return change


# --- The rows -------------------------------------------------------------------------------------------------------

_CLAIMED = Failure(
    "maybe_accepted", "its submit call was refused, but an unsigned callback names a task of it", permanent=False
)

Row = Callable[[Job, Report, Update, datetime, Timing], Change]


def _ignore(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    if not job.state.terminal:
        return Change(job, Verdict.BELIEVED)
    if report.state is job.state and job.remote_status == report.remote_status:
        return Change(job, Verdict.DUPLICATE)
    return Change(job, Verdict.LATE)


def _start(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """The provider has it."""
    known = _known(job, report)
    started = replace(
        known,
        hinted_at=_still_meant(job, known),
        state=State.RUNNING,
        error=None,
        last_error=None,
    )
    started = replace(started, next_poll_at=_first_poll(started, now, timing))
    return Change(started, Verdict.BELIEVED, ("job.running",))


def _adopt(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """A queued job is said to run: an earlier try of ours was accepted after all. It must not be sent again."""
    sent = replace(job, sent_at=now, deadline_at=now + timedelta(seconds=timing.lifetime), retry_at=None)
    return _start(sent, report, update, now, timing)


def _note(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """Still running. A believed callback breaks the silence, so the first poll can wait again."""
    noted = _known(job, report)
    if (
        update.source is Source.CALLBACK
        and job.state is State.RUNNING
        and job.awaits_callback
        and job.hinted_at is None
        and timing.pollable
        and not update.again
    ):
        noted = replace(noted, next_poll_at=_not_after_deadline(job, now + timedelta(seconds=timing.silence)))
    if noted == job:
        return Change(job, Verdict.DUPLICATE if update.source is Source.CALLBACK else Verdict.BELIEVED)
    return Change(noted, Verdict.BELIEVED)


def _note_id(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """We ended the job; should its result still come, this id is what can confirm it."""
    noted = _known(job, report)
    noted = replace(noted, hinted_at=_still_meant(job, noted))
    if noted.remote_id is not None and noted.hinted_at is not None and noted.next_poll_at is None and timing.pollable:
        noted = replace(noted, next_poll_at=now)
    return Change(noted, Verdict.LATE)


def _finish(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """The provider's word."""
    brought = Source.CALLBACK if update.source is Source.POLL and job.hinted_at is not None else update.source
    error = report.error
    if report.state is State.FAILED and error is None:
        error = Failure("failed", "the provider gave no reason", permanent=False)
    finished = replace(
        _known(job, report),
        state=report.state,
        error=error if report.state is State.FAILED else None,
        settled_by=brought,
        sent_at=job.sent_at,
        retry_at=None,
        next_poll_at=None,
        hinted_at=None,
        claimed_id=None,
        last_error=None,
        finished_at=now,
    )
    images = report.images if report.state is State.SUCCEEDED else ()
    return Change(finished, Verdict.BELIEVED, (f"job.{report.state.value}",), images)


def _late(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """The provider's word, after we gave the job up. Kept and told once; the state stays."""
    if job.late_at is not None:
        return Change(replace(job, next_poll_at=None, hinted_at=None), Verdict.LATE)
    late = replace(_known(job, report), late_at=now, next_poll_at=None, hinted_at=None, claimed_id=None)
    images = report.images if report.state is State.SUCCEEDED else ()
    return Change(late, Verdict.LATE, ("job.late_result",), images)


def _again(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """Surely not accepted: back to the queue. Unless a callback came that names a task: then a poll must decide."""
    if job.claimed_id is not None and job.hinted_at is not None and timing.pollable:
        if job.state is State.UNCONFIRMED:
            return Change(job, Verdict.BELIEVED)
        return _doubt(job, replace(report, error=_CLAIMED), update, now, timing)
    queued = replace(
        job,
        state=State.QUEUED,
        retry_at=update.retry_at or now,
        sent_at=None,
        deadline_at=None,
        next_poll_at=None,
        hinted_at=None,
        claimed_id=None,
        error=None,
        last_error=update.last_error,
    )
    return Change(queued, Verdict.BELIEVED)


def _doubt(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """It left and no answer came: it may run, and be billed. Never sent again by itself."""
    pending_hint = job.hinted_at is not None and (job.remote_id or job.claimed_id) and timing.pollable
    doubtful = replace(
        job,
        state=State.UNCONFIRMED,
        error=report.error,
        last_error=update.last_error,
        next_poll_at=now if pending_hint else job.deadline_at,
    )
    return Change(doubtful, Verdict.BELIEVED, ("job.unconfirmed",))


def _end(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """Ours to say: expired or canceled."""
    ended = replace(
        job,
        state=report.state,
        error=report.error,
        next_poll_at=job.next_poll_at if job.hinted_at is not None else None,
        retry_at=None,
        finished_at=now,
        settled_by=None,
    )
    return Change(ended, Verdict.BELIEVED, (f"job.{report.state.value}",))


def _defer(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """A queued job stays queued, until later."""
    return Change(replace(job, retry_at=update.retry_at or now, last_error=update.last_error), Verdict.BELIEVED)


_ROWS: dict[State, dict[State, Row]] = {
    State.QUEUED: {
        State.RUNNING: _adopt,
        State.SUCCEEDED: _finish,
        State.FAILED: _finish,
        State.QUEUED: _defer,
        State.CANCELED: _end,
    },
    State.SENDING: {
        State.RUNNING: _start,
        State.SUCCEEDED: _finish,
        State.FAILED: _finish,
        State.QUEUED: _again,
        State.UNCONFIRMED: _doubt,
        State.CANCELED: _end,
    },
    State.RUNNING: {
        State.RUNNING: _note,
        State.SUCCEEDED: _finish,
        State.FAILED: _finish,
        State.EXPIRED: _end,
        State.CANCELED: _end,
    },
    State.UNCONFIRMED: {
        State.RUNNING: _start,
        State.SUCCEEDED: _finish,
        State.FAILED: _finish,
        State.QUEUED: _again,
        State.CANCELED: _end,
    },
    State.SUCCEEDED: {},
    State.FAILED: {},
    State.EXPIRED: {State.RUNNING: _note_id, State.SUCCEEDED: _late, State.FAILED: _late},
    State.CANCELED: {State.RUNNING: _note_id, State.SUCCEEDED: _late, State.FAILED: _late},
}


# --- Hints and polls ------------------------------------------------------------------------------------------------


def _hint(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """
    Somebody who knows the job's URL says something. Only a poll can tell whether it is so.

    Hints join: the poll they make due is at most one in an interval. The newest moment counts, because a poll that
    left before it may have come too early for what it tells.
    """
    if job.state in (State.SUCCEEDED, State.FAILED):
        return Change(job, Verdict.LATE)
    if not report.state.terminal and job.state is not State.UNCONFIRMED:
        return Change(job, Verdict.HINT)
    if job.late_at is not None:
        return Change(job, Verdict.LATE)
    claimed = job.claimed_id if job.remote_id else (report.remote_id or job.claimed_id)
    if job.state is State.QUEUED and job.tries > 0 and claimed and timing.pollable:
        return _claimed_in_queue(job, claimed, update, now, timing)
    next_poll_at = job.next_poll_at
    if timing.pollable and (job.remote_id or claimed) and job.state not in (State.QUEUED, State.SENDING):
        due = now if job.polled_at is None else max(now, job.polled_at + timedelta(seconds=timing.interval))
        next_poll_at = due if job.next_poll_at is None else min(due, job.next_poll_at)
    came_at = update.received_at or now
    hinted_at = came_at if job.hinted_at is None else max(job.hinted_at, came_at)
    return Change(replace(job, hinted_at=hinted_at, claimed_id=claimed, next_poll_at=next_poll_at), Verdict.HINT)


def _claimed_in_queue(job: Job, claimed: str, update: Update, now: datetime, timing: Timing) -> Change:
    """A job that is to be sent again, and a callback that names its task: it may run already. A poll decides."""
    sent = replace(
        job,
        hinted_at=update.received_at or now,
        claimed_id=claimed,
        retry_at=None,
        sent_at=now,
        deadline_at=now + timedelta(seconds=timing.lifetime),
    )
    doubt = _doubt(sent, Report(None, State.UNCONFIRMED, error=_CLAIMED), update, now, timing)
    return replace(doubt, verdict=Verdict.HINT)


def _polled(change: Change, update: Update, now: datetime, timing: Timing, jitter: float) -> Change:
    """A poll was made: book it and say when the next one is due. A hint that came after it left wants another one."""
    hinted_at = change.job.hinted_at
    newer_hint = hinted_at is not None and update.asked_at is not None and hinted_at > update.asked_at
    soon = now + timedelta(seconds=timing.interval)
    job = replace(
        change.job,
        polled_at=now,
        polls=change.job.polls + 1,
        claimed_id=None if update.forget_claim and not newer_hint else change.job.claimed_id,
    )
    if job.state in (State.SUCCEEDED, State.FAILED) or job.late_at is not None:
        return replace(change, job=replace(job, next_poll_at=None))
    answered = update.report is not None
    if job.state.terminal:
        nothing_to_ask = not (job.remote_id or job.claimed_id)
        too_long = hinted_at is not None and now - hinted_at > timedelta(hours=1)
        if nothing_to_ask or (not newer_hint and (answered or too_long)):
            return replace(change, job=replace(job, hinted_at=None, next_poll_at=None))
        pause = soon if newer_hint else update.retry_at or now + timing.after(job.polls, jitter=jitter)
        return replace(change, job=replace(job, next_poll_at=pause))
    past_deadline = job.deadline_at is not None and now >= job.deadline_at
    was_the_last = job.deadline_at is not None and (update.asked_at or now) >= job.deadline_at
    if job.state is State.RUNNING and was_the_last:
        return _expire(replace(change, job=job), now, next_poll_at=soon if newer_hint else None)
    still_hinted = job.hinted_at if newer_hint or not answered else None
    pause = now + timing.after(max(job.polls - 1, 0), jitter=jitter)
    next_poll_at: datetime | None = max(pause, update.retry_at) if update.retry_at else pause
    if job.state is State.UNCONFIRMED and not (job.remote_id or job.claimed_id):
        next_poll_at, still_hinted = None if past_deadline else job.deadline_at, None
    if newer_hint and next_poll_at is not None:
        next_poll_at = min(next_poll_at, soon)
    if job.state is State.RUNNING and next_poll_at is not None:
        next_poll_at = _not_after_deadline(job, next_poll_at)
    job = replace(job, next_poll_at=next_poll_at, hinted_at=still_hinted)
    if job.overdue_at is None and _is_overdue(job, now):
        return replace(change, job=replace(job, overdue_at=now), events=(*change.events, "job.overdue"))
    return replace(change, job=job)


def _is_overdue(job: Job, now: datetime) -> bool:
    """Unconfirmed at its deadline, or running for half of its time."""
    if job.deadline_at is None or job.sent_at is None:
        return False
    if job.state is State.UNCONFIRMED:
        return now >= job.deadline_at
    return now >= job.sent_at + (job.deadline_at - job.sent_at) / 2


def _expire(change: Change, now: datetime, *, next_poll_at: datetime | None) -> Change:
    """Its time is over. With *next_poll_at* a hint is still open: what it tells may become a late result."""
    error = Failure("expired", "no result came before the job's deadline; the last poll found none", permanent=False)
    expired = replace(
        change.job,
        state=State.EXPIRED,
        error=error,
        next_poll_at=next_poll_at,
        hinted_at=change.job.hinted_at if next_poll_at is not None else None,
        finished_at=now,
        settled_by=None,
    )
    return replace(change, job=expired, events=(*change.events, "job.expired"))


# --- Small parts ----------------------------------------------------------------------------------------------------


def _is_of_an_earlier_try(job: Job, report: Report, update: Update) -> bool:
    """A "no" to an earlier submit call, read again, says nothing about the one that is under way."""
    return (
        update.source is Source.RESPONSE
        and report.state in (State.QUEUED, State.FAILED, State.UNCONFIRMED)
        and update.asked_at is not None
        and job.sent_at is not None
        and update.asked_at < job.sent_at
    )


def _names_another_task(job: Job, report: Report, update: Update) -> bool:
    """A poll by a claimed id must bring that very task."""
    ours = job.remote_id or (job.claimed_id if update.source is Source.POLL else None)
    return update.source is not None and ours is not None and report.remote_id not in (None, ours)


def _still_meant(job: Job, known: Job) -> datetime | None:
    """The open hint, unless the task that it claimed is not the one that the job turned out to be."""
    return job.hinted_at if job.claimed_id in (None, known.remote_id) else None


def _known(job: Job, report: Report) -> Job:
    return replace(
        job,
        remote_id=job.remote_id or report.remote_id,
        remote_status=report.remote_status or job.remote_status,
        cost=report.cost or job.cost,
        claimed_id=None if (job.remote_id or report.remote_id) else job.claimed_id,
    )


def _first_poll(job: Job, now: datetime, timing: Timing) -> datetime | None:
    if not timing.pollable:
        return job.deadline_at
    if job.hinted_at is not None:
        return now
    pause = timing.silence if job.awaits_callback else timing.first
    return _not_after_deadline(job, now + timedelta(seconds=pause))


def _not_after_deadline(job: Job, moment: datetime) -> datetime:
    return moment if job.deadline_at is None else min(moment, job.deadline_at)
