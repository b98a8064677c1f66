"""
Job lifecycle. Pure: no clock, no database, no network.

Everything that a job learns is an update: a callback, the answer to a poll, the answer to the submit call, or our own
decision. `advance` takes the job as read, an update and the current time, and returns the job as it becomes, the events
to emit, and the verdict to add to the evidence. A table decides what a believed update does to a job:

    state of the job    the update reports
                        running    succeeded, failed    queued    unconfirmed    expired    canceled
    queued              adopt      finish               defer     suspect        -          end
    sending             start      finish               again     doubt          -          end
    running             note       finish               -         -              end        end
    unconfirmed         start      finish               again     -              -          end
    succeeded           -          relink               -         -              -          -
    failed              -          found                -         -              -          -
    expired, canceled   note_id    late                 -         -              -          -

`succeeded` and `failed` are the provider's word: the first believed report wins, and nothing moves the job again.
But a task that is done and names no image is polled a few more times, and then fails by our own judgment: an image that
is named later, by a signed callback or a poll, still makes the job succeed (`found`). A poll of a job that has its
result brings fresh links for images that are not kept (`relink`).
`expired` and `canceled` are ours: a result that arrives later is kept and announced (`job.late_result`); the state
stays.

An update that is not trusted enough (an unsigned callback that reports an end) is a hint: it changes no state, it makes
the next poll due now, and that poll, made with our own key, brings the fact. `polling` has the second table: when the
next poll is due once one was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from receiver.domain.jobs import Job, Source, Verdict
from receiver.domain.polling import Poll, Timing, after_poll, not_after_deadline
from submitter.parsing import EMPTY_POLLS, NO_RESULT, lists_nothing
from submitter.vocabulary import Failure, Image, Report, State


@dataclass(frozen=True, slots=True)
class Update:
    """
    A report about a job, with where it came from and how far it is believed.

    `report.state` may also be our own (`queued`: send again at `retry_at`; `unconfirmed`, `expired`, `canceled`).
    `report` is None for a poll that got no answer. `source` is None for our own decision.
    """

    report: Report | None
    source: Source | None
    believed: bool = True
    retry_at: datetime | None = None
    last_error: str | None = None
    forget_claim: bool = False
    """The provider knows no task with the claimed id."""
    asked_at: datetime | None = None
    """When the poll or submit call that brought this was sent: a hint that came after it is still open."""
    received_at: datetime | None = None
    """When the callback that brought this was received; it may be read much later."""
    empty_polls: int = 0
    """The number of polls in a row, this one included, that found the task done and no image listed."""
    again: bool = False
    """Old evidence read again: no poll was made, and it restarts no timer."""


@dataclass(frozen=True, slots=True)
class Change:
    """The result of an update. `job` is the same object where nothing changes."""

    job: Job
    verdict: Verdict
    events: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    relinked: tuple[Image, ...] = ()
    """Fresh links to images of the job that may not be kept yet."""


def advance(job: Job, update: Update, now: datetime, timing: Timing, *, jitter: float = 0.0) -> Change:
    """Apply *update* to *job*. Never raises; the store increments the version."""
    report = update.report
    if report is not None and update.again and not report.state.terminal:
        report = replace(report, remote_status=job.remote_status or report.remote_status)
    if report is not None and _names_another_task(job, report, update):
        ignored = Change(job, Verdict.IGNORED)
        # The poll was still made: the next one must not be due at once.
        if update.source is not Source.POLL or update.again:
            return ignored
        return _polled(ignored, replace(update, report=None), now, timing, jitter)
    if report is not None and _is_of_an_earlier_try(job, report, update):
        return Change(job, Verdict.LATE)
    if report is not None and not update.believed:
        return _hint(job, report, update, now, timing)
    if report is not None and _may_list_it_later(job, report, update, timing):
        pause = timedelta(seconds=timing.interval * 2 ** max(update.empty_polls - 1, 0))
        update = replace(update, retry_at=now + pause, last_error=_NOT_LISTED)
        report = replace(report, state=State.RUNNING, error=None)
    if report is None:
        change = Change(replace(job, last_error=update.last_error), Verdict.BELIEVED)
    else:
        row = _ROWS[job.state].get(report.state, _ignore)
        change = row(job, report, update, now, timing)
        if update.last_error == _NOT_LISTED and change.job.state is State.RUNNING:
            change = replace(change, job=replace(change.job, last_error=_NOT_LISTED))
    if update.source is Source.POLL and not update.again:
        change = _polled(change, update, now, timing, jitter)
    return change


# --- The rows -------------------------------------------------------------------------------------------------------

_CLAIMED = Failure(
    "maybe_accepted", "the submit call was refused, but an unsigned callback names a task for this job", permanent=False
)
_NOT_LISTED = "poll: the task is done, but its answer names no image yet"

Row = Callable[[Job, Report, Update, datetime, Timing], Change]


def _ignore(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    if not job.state.terminal:
        return Change(job, Verdict.BELIEVED)
    if report.state is job.state and job.remote_status == report.remote_status:
        return Change(job, Verdict.DUPLICATE)
    return Change(job, Verdict.LATE)


def _start(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """The provider accepted the job."""
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
    """A queued job is reported running: an earlier try was accepted after all. It must not be sent again."""
    sent = replace(job, sent_at=now, deadline_at=now + timedelta(seconds=timing.lifetime), retry_at=None)
    return _start(sent, report, update, now, timing)


def _note(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """Still running. A believed callback restarts the wait before the first poll."""
    noted = _known(job, report)
    if (
        update.source is Source.CALLBACK
        and job.state is State.RUNNING
        and job.awaits_callback
        and job.hinted_at is None
        and timing.pollable
        and not update.again
    ):
        noted = replace(noted, next_poll_at=not_after_deadline(job, now + timedelta(seconds=timing.silence)))
    if noted == job:
        return Change(job, Verdict.DUPLICATE if update.source is Source.CALLBACK else Verdict.BELIEVED)
    return Change(noted, Verdict.BELIEVED)


def _note_id(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """We ended the job; should its result still come, this id can confirm it."""
    noted = _known(job, report)
    noted = replace(noted, hinted_at=_still_meant(job, noted))
    if noted.remote_id is not None and noted.hinted_at is not None and noted.next_poll_at is None and timing.pollable:
        noted = replace(noted, next_poll_at=now)
    return Change(noted, Verdict.LATE)


def _finish(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """The provider reports the end."""
    brought = Source.CALLBACK if update.source is Source.POLL and job.hinted_at is not None else update.source
    error = report.error
    if report.state is State.FAILED and error is None:
        error = Failure("failed", "the provider gave no reason", permanent=False)
    finished = replace(
        job,
        remote_id=job.remote_id or report.remote_id,
        remote_status=report.remote_status or job.remote_status,
        cost=report.cost or job.cost,
        state=report.state,
        error=error if report.state is State.FAILED else None,
        settled_by=brought,
        retry_at=None,
        next_poll_at=None,
        hinted_at=None,
        claimed_id=None,
        last_error=None,
        finished_at=now,
    )
    images = report.images if report.state is State.SUCCEEDED else ()
    return Change(finished, Verdict.BELIEVED, (f"job.{report.state.value}",), images)


def _found(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """An image appears for a task that was done and named none: its provider never reported a failure."""
    row = _finish if nothing_listed(job) else _ignore
    return row(job, report, update, now, timing)


def _relink(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """A poll of a finished job names its images again: for those that are not kept, the links may be fresh."""
    if update.source is not Source.POLL or update.again:
        return _ignore(job, report, update, now, timing)
    return Change(job, Verdict.BELIEVED, relinked=report.images)


def _late(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """The provider reports the end after we gave the job up. Kept and announced once; the state stays."""
    if job.late_at is not None:
        done = replace(job, next_poll_at=None, hinted_at=None)
        relinked = _relink(done, report, update, now, timing).relinked if report.state is State.SUCCEEDED else ()
        return Change(done, Verdict.LATE, relinked=relinked)
    late = replace(_known(job, report), late_at=now, next_poll_at=None, hinted_at=None, claimed_id=None)
    images = report.images if report.state is State.SUCCEEDED else ()
    return Change(late, Verdict.LATE, ("job.late_result",), images)


def _again(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """Certainly not accepted: back to the queue, unless a callback names a task. Then a poll must decide."""
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
    """The request was sent and no answer came: the task may run and be billed. Never sent again by itself."""
    pending_hint = job.hinted_at is not None and (job.remote_id or job.claimed_id) and timing.pollable
    doubtful = replace(
        job,
        state=State.UNCONFIRMED,
        error=report.error,
        last_error=update.last_error,
        next_poll_at=now if pending_hint else job.deadline_at,
    )
    return Change(doubtful, Verdict.BELIEVED, ("job.unconfirmed",))


def _suspect(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """A queued job that may have been sent by a process whose records are lost (a restored backup)."""
    if update.source is not None:
        return _ignore(job, report, update, now, timing)
    sent = replace(job, retry_at=None, sent_at=now, deadline_at=now + timedelta(seconds=timing.lifetime))
    return _doubt(sent, report, update, now, timing)


def _end(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """Expired or canceled: our own decision."""
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
    """A queued job stays queued until later."""
    return Change(replace(job, retry_at=update.retry_at or now, last_error=update.last_error), Verdict.BELIEVED)


_ROWS: dict[State, dict[State, Row]] = {
    State.QUEUED: {
        State.RUNNING: _adopt,
        State.SUCCEEDED: _finish,
        State.FAILED: _finish,
        State.QUEUED: _defer,
        State.UNCONFIRMED: _suspect,
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
    State.SUCCEEDED: {State.SUCCEEDED: _relink},
    State.FAILED: {State.SUCCEEDED: _found},
    State.EXPIRED: {State.RUNNING: _note_id, State.SUCCEEDED: _late, State.FAILED: _late},
    State.CANCELED: {State.RUNNING: _note_id, State.SUCCEEDED: _late, State.FAILED: _late},
}


# --- Hints ---------------------------------------------------------------------------------------------------------


def _hint(job: Job, report: Report, update: Update, now: datetime, timing: Timing) -> Change:
    """
    Record a claim by a sender who knows the job's URL. Only a poll can confirm it.

    Hints join: they make at most one poll due in an interval. The newest hint counts, because a poll sent before it
    may have been too early to see what it reports.
    """
    found = report.state is State.SUCCEEDED and nothing_listed(job)
    if job.state in (State.SUCCEEDED, State.FAILED) and not found:
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
    """A callback names a task of a job that waits to be sent again: it may be running already. A poll decides."""
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
    """Record the poll that brought *update*, and schedule the next one."""
    poll = Poll(
        now,
        asked_at=update.asked_at,
        answered=update.report is not None,
        retry_at=update.retry_at,
        forget_claim=update.forget_claim,
    )
    job, event = after_poll(change.job, poll, timing, jitter=jitter)
    return replace(change, job=job, events=change.events if event is None else (*change.events, event))


# --- Small parts ----------------------------------------------------------------------------------------------------


def nothing_listed(job: Job) -> bool:
    """Return whether *job* failed by our own judgment: its task is done, and several polls named no image."""
    return job.state is State.FAILED and job.error is not None and job.error.code == NO_RESULT


def _may_list_it_later(job: Job, report: Report, update: Update, timing: Timing) -> bool:
    """Return whether a report of a task that is done and names no image calls for another poll."""
    if not lists_nothing(report) or not timing.pollable or job.state.terminal:
        return False
    if update.source is Source.POLL and not update.again:
        deadline_at, asked_at = job.deadline_at, update.asked_at
        was_the_last = deadline_at is not None and asked_at is not None and asked_at >= deadline_at
        return update.empty_polls < EMPTY_POLLS and not was_the_last
    return True


def _is_of_an_earlier_try(job: Job, report: Report, update: Update) -> bool:
    """Return whether *report* refuses an earlier submit call: read again, it says nothing about the current one."""
    return (
        update.source is Source.RESPONSE
        and report.state in (State.QUEUED, State.FAILED, State.UNCONFIRMED)
        and update.asked_at is not None
        and job.sent_at is not None
        and update.asked_at < job.sent_at
    )


def _names_another_task(job: Job, report: Report, update: Update) -> bool:
    """Return whether *report* is about another task than the job's; a poll by a claimed id must report that task."""
    ours = job.remote_id or (job.claimed_id if update.source is Source.POLL else None)
    return update.source is not None and ours is not None and report.remote_id not in (None, ours)


def _still_meant(job: Job, known: Job) -> datetime | None:
    """Return the time of the open hint, unless the task that it claimed is not the job's."""
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
    return not_after_deadline(job, now + timedelta(seconds=pause))
